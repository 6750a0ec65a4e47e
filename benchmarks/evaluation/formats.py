"""Lines of local files to documents in the schema of lm-eval's own data sets.

lm-eval's task files then make prompts of them, so that prompts and metrics are the harness's own.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.evaluation import questions
from benchmarks.evaluation.lines import Document, Line
from benchmarks.evaluation.questions import ask


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way in which a task's lines are written: the keys that tell it, and its translation."""

    keys: tuple[str, ...]
    document: Callable[[Line], Document]


def _lambada(line: Line) -> Document:
    context, word = line.text("context").rstrip(), line.text("continuation").strip()
    return _last_word(line, f"{context} {word}", word)


def _lambada_text(line: Line) -> Document:
    text = line.text("text").rstrip()
    return _last_word(line, text, text.rpartition(" ")[2])


def _last_word(line: Line, text: str, word: str) -> Document:
    """The harness takes what follows the last space for the word to be guessed (``of\n\nPower`` is one in LAMBADA)."""
    if not word or " " in word or not text[: -len(word)].strip():
        raise line.wrong(f"{word!r:.60} is not one last word behind a context")
    return {"text": text}


def _hellaswag(line: Line) -> Document:
    endings = line.texts("endings")
    return {
        "activity_label": line.text("activity_label"),
        "ctx_a": line.text("ctx_a", may_be_empty=True),
        "ctx_b": line.text("ctx_b", may_be_empty=True),
        "endings": endings,
        "label": str(line.index("label", len(endings))),
    }


def _hellaswag_query(line: Line) -> Document:
    """The harness joins ``activity: context`` itself, so that a query is taken apart there."""
    activity, colon, context = line.text("query").partition(": ")
    if not colon:
        raise line.wrong("'query' is not of the form 'activity: context'")
    choices = line.texts("choices")
    label = str(line.index("gold", len(choices)))
    return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": choices, "label": label}


def _piqa(line: Line) -> Document:
    texts = {key: line.text(key) for key in ("goal", "sol1", "sol2")}
    return {**texts, "label": line.index("label", 2)}


def _piqa_query(line: Line) -> Document:
    asked = ask(line, "piqa", (2,))
    return {"goal": asked.question, "sol1": asked.choices[0], "sol2": asked.choices[1], "label": asked.gold}


def _winogrande(line: Line) -> Document:
    if "_" not in line.text("sentence"):
        raise line.wrong("'sentence' has no '_' for the options to stand in")
    answer = str(line.fields["answer"]).strip()
    if answer not in ("1", "2"):
        raise line.wrong(f"'answer' is {answer!r:.60}, not 1 or 2")
    return {key: line.text(key) for key in ("sentence", "option1", "option2")} | {"answer": answer}


def _winogrande_options(line: Line) -> Document:
    """The two contexts become one sentence with a gap again: what they share, ``_``, the continuation."""
    contexts = [context.rstrip() for context in line.texts("context_options")]
    if len(contexts) != 2:
        raise line.wrong(f"'context_options' has {len(contexts)} entries where winogrande has 2")
    before = _shared_words(*contexts)
    if "_" in before:
        raise line.wrong("'context_options' hold '_', which marks the gap in winogrande's sentences")
    return {
        "sentence": f"{before}_ {line.text('continuation').strip()}",
        "option1": contexts[0][len(before) :],
        "option2": contexts[1][len(before) :],
        "answer": str(1 + line.index("gold", 2)),
    }


def _winogrande_query(line: Line) -> Document:
    """A sentence with its gap, and the two words or phrases for it."""
    asked = ask(line, "winogrande", (2,))
    if "_" not in asked.question:
        raise line.wrong("'query' has no '_' for the choices to stand in")
    option1, option2 = asked.choices
    return {"sentence": asked.question, "option1": option1, "option2": option2, "answer": str(1 + asked.gold)}


def _shared_words(first: str, second: str) -> str:
    """
    >>> _shared_words("The cat, not the rat", "The cat, not the robin")
    'The cat, not the '
    """
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[: first[:shared].rfind(" ") + 1]


_QUERY_KEYS = ("query", "choices", "gold")
_ARC = (
    Form(keys=_QUERY_KEYS, document=lambda line: questions.numbered(line, "question")),
    Form(keys=("question", "choices", "answerKey"), document=lambda line: questions.labelled(line, "question")),
    Form(keys=("question", "answerKey"), document=lambda line: questions.nested(line, "question")),
)
FORMS: dict[str, tuple[Form, ...]] = {
    "lambada_openai": (
        Form(keys=("context", "continuation"), document=_lambada),
        Form(keys=("text",), document=_lambada_text),
    ),
    "hellaswag": (
        Form(keys=("activity_label", "ctx_a", "ctx_b", "endings", "label"), document=_hellaswag),
        Form(keys=_QUERY_KEYS, document=_hellaswag_query),
    ),
    "piqa": (
        Form(keys=("goal", "sol1", "sol2", "label"), document=_piqa),
        Form(keys=_QUERY_KEYS, document=_piqa_query),
    ),
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "winogrande": (
        Form(keys=("sentence", "option1", "option2", "answer"), document=_winogrande),
        Form(keys=("context_options", "continuation", "gold"), document=_winogrande_options),
        Form(keys=_QUERY_KEYS, document=_winogrande_query),
    ),
    "openbookqa": (
        Form(keys=_QUERY_KEYS, document=lambda line: questions.numbered(line, "question_stem")),
        Form(
            keys=("question_stem", "choices", "answerKey"),
            document=lambda line: questions.labelled(line, "question_stem"),
        ),
        Form(keys=("question", "answerKey"), document=lambda line: questions.nested(line, "question_stem")),
    ),
    "boolq": (
        Form(keys=_QUERY_KEYS, document=questions.boolq_query),
        Form(keys=("passage", "question", "label"), document=lambda line: questions.boolq(line, "label")),
        Form(keys=("passage", "question", "answer"), document=lambda line: questions.boolq(line, "answer")),
    ),
    "copa": (
        Form(keys=_QUERY_KEYS, document=questions.copa_query),
        Form(keys=("premise", "question", "choice1", "choice2", "label"), document=questions.copa),
    ),
    "siqa": (
        Form(keys=_QUERY_KEYS, document=questions.siqa_query),
        Form(keys=("context", "question", "answerA", "answerB", "answerC", "label"), document=questions.siqa),
    ),
}
LABELS_BESIDE = ("piqa", "siqa")
"""Tasks that are published as items and a file of labels."""


def to_document(task: str, line: Line) -> Document:
    """The document that a line of a task stands for. Raises :class:`TaskError` naming file and line."""
    for form in FORMS[task]:
        if all(key in line.fields for key in form.keys):
            return form.document(line)
    known = " or ".join("{" + ", ".join(form.keys) + "}" for form in FORMS[task])
    pair = "; with labels in a file X-labels.lst beside X.jsonl, name their folder" if task in LABELS_BESIDE else ""
    raise line.wrong(f"has the keys {{{', '.join(map(str, line.fields))}}}, where {task} needs {known}{pair}")
