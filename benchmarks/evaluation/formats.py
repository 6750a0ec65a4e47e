"""Lines of local files to documents in the schema of lm-eval's own data sets.

lm-eval's task files then make prompts of them, so that prompts and metrics are the harness's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks import TaskError

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One JSON object of a file, with checked access to its fields."""

    place: str
    """``file, line 3``: what an error message calls it."""
    fields: Mapping[str, Any]

    def wrong(self, what: str) -> TaskError:
        return TaskError(f"{self.place}: {what}")

    def text(self, key: str, *, may_be_empty: bool = False) -> str:
        return self._checked_text(key, self.fields.get(key), may_be_empty)

    def texts(self, key: str) -> list[str]:
        values = self.fields.get(key)
        if not isinstance(values, list) or len(values) < 2:
            raise self.wrong(f"{key!r} is {values!r:.60}, not a list of two or more strings")
        return [self._checked_text(key, value, False) for value in values]

    def index(self, key: str, count: int) -> int:
        """A number below ``count``, written as such or as a string (the hub's HellaSwag does)."""
        value = self.fields.get(key)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise self.wrong(f"{key!r} is {value!r:.60}, not the number of one of {count} answers (0..{count - 1})")
        return value

    def _checked_text(self, key: str, value: Any, may_be_empty: bool) -> str:
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            raise self.wrong(f"{key!r} is {value!r:.60}, not a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(f"{key!r} holds half of a surrogate pair at {error.start}; it is not Unicode") from error
        return value


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
    choices = line.texts("choices")
    if len(choices) != 2:
        raise line.wrong(f"'choices' has {len(choices)} entries where piqa has 2")
    return {"goal": _question(line), "sol1": choices[0], "sol2": choices[1], "label": line.index("gold", 2)}


def _question(line: Line) -> str:
    """The bare question: ``Question:`` and ``Answer:`` are the harness's to add."""
    return line.text("query").strip().removeprefix("Question:").removesuffix("Answer:").strip()


def _labelled_choices(line: Line) -> dict[str, Any]:
    """The hub's ``{choices: {text, label}, answerKey}``."""
    inner = line.fields["choices"]
    if not isinstance(inner, Mapping):
        raise line.wrong(f"'choices' is {inner!r:.60}, not {{text: […], label: […]}}")
    choices = Line(place=line.place, fields=inner)
    texts, labels, answer = choices.texts("text"), choices.texts("label"), line.text("answerKey").strip()
    if len(texts) != len(labels) or answer not in labels:
        raise line.wrong(f"'answerKey' {answer!r} and labels {labels} do not fit {len(texts)} choices")
    return {"choices": {"text": texts, "label": labels}, "answerKey": answer}


def _numbered_choices(line: Line) -> dict[str, Any]:
    texts = line.texts("choices")
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    return {"choices": {"text": texts, "label": labels}, "answerKey": labels[line.index("gold", len(texts))]}


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
    Form(keys=_QUERY_KEYS, document=lambda line: {"question": _question(line), **_numbered_choices(line)}),
    Form(
        keys=("question", "choices", "answerKey"),
        document=lambda line: {"question": line.text("question"), **_labelled_choices(line)},
    ),
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
    ),
    "openbookqa": (
        Form(keys=_QUERY_KEYS, document=lambda line: {"question_stem": _question(line), **_numbered_choices(line)}),
        Form(
            keys=("question_stem", "choices", "answerKey"),
            document=lambda line: {"question_stem": line.text("question_stem"), **_labelled_choices(line)},
        ),
    ),
}


def to_document(task: str, line: Line) -> Document:
    """The document that a line of a task stands for. Raises :class:`TaskError` naming file and line."""
    for form in FORMS[task]:
        if all(key in line.fields for key in form.keys):
            return form.document(line)
    known = " or ".join("{" + ", ".join(form.keys) + "}" for form in FORMS[task])
    pair = "; with labels in a file X-labels.lst beside X.jsonl, name their folder" if task == "piqa" else ""
    raise line.wrong(f"has the keys {{{', '.join(map(str, line.fields))}}}, where {task} needs {known}{pair}")
