"""Items that ask a question to documents: those of ARC, OpenBookQA, BoolQ, COPA and Social IQa.

A line ``{query, choices, gold}`` holds a prompt that others wrote; it is taken apart here, so that the prompt of
lm-eval's own task can be made of it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evaluation.lines import Document, Line

_LETTERED = re.compile(r"([A-Z])[.)] (\S.*)")
_CONNECTORS = {"cause": "because", "effect": "therefore"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A ``{query, choices, gold}`` line, taken apart."""

    question: str
    choices: list[str]
    gold: int


def ask(line: Line, task: str = "", counts: Sequence[int] = ()) -> Asked:
    """The bare question, the answers in words, and which is right.

    ``Question:`` in front and ``Answer:`` behind are left out, being the harness's to add. Where the choices are the
    letters of answers that the query lists under ``Choices:``, the answers are taken from there.

    Args:
        counts: how many choices the task may have; any number unless given.
    """
    query, choices = line.text("query").strip(), line.texts("choices")
    gold = line.index("gold", len(choices))
    if counts and len(choices) not in counts:
        allowed = " or ".join(map(str, counts))
        raise line.wrong(f"'choices' has {len(choices)} entries where {task} has {allowed}")
    question, _, listed = query.removesuffix("Answer:").strip().partition("\nChoices:")
    if listed:
        pairs = [_LETTERED.fullmatch(answer.strip()) for answer in listed.strip().split("\n")]
        letters = [pair[1] if pair else None for pair in pairs]
        if letters != choices:
            raise line.wrong(f"'choices' are {choices!r:.60}, and not the letters of the answers in 'query'")
        choices = [pair[2] for pair in pairs if pair]
    return Asked(question=question.removeprefix("Question:").strip(), choices=choices, gold=gold)


def numbered(line: Line, key: str) -> Document:
    """``{query, choices, gold}`` with the question under ``key``."""
    asked = ask(line)
    labels = [chr(ord("A") + i) for i in range(len(asked.choices))]
    return {key: asked.question, "choices": {"text": asked.choices, "label": labels}, "answerKey": labels[asked.gold]}


def labelled(line: Line, key: str) -> Document:
    """The hub's ``{question, choices: {text, label}, answerKey}``."""
    inner = line.fields["choices"]
    if not isinstance(inner, Mapping):
        raise line.wrong(f"'choices' is {inner!r:.60}, not {{text: […], label: […]}}")
    choices = Line(place=line.place, fields=inner)
    return {key: line.text(key), **_keyed(line, choices.texts("text"), choices.texts("label"))}


def nested(line: Line, key: str) -> Document:
    """The authors' ``{question: {stem, choices: [{text, label}]}, answerKey}``."""
    inner = line.fields["question"]
    listed = inner.get("choices") if isinstance(inner, Mapping) else None
    if not isinstance(listed, list) or not all(isinstance(choice, Mapping) for choice in listed):
        raise line.wrong(f"'question' is {inner!r:.60}, not {{stem, choices: [{{text, label}}, …]}}")
    columns = {name: [choice.get(name) for choice in listed] for name in ("text", "label")}
    parts = Line(place=line.place, fields={**inner, **columns})
    return {key: parts.text("stem"), **_keyed(line, parts.texts("text"), parts.texts("label"))}


def _keyed(line: Line, texts: list[str], labels: list[str]) -> dict[str, Any]:
    answer = line.text("answerKey").strip()
    if len(texts) != len(labels) or answer not in labels:
        raise line.wrong(f"'answerKey' {answer!r} and labels {labels} do not fit {len(texts)} choices")
    return {"choices": {"text": texts, "label": labels}, "answerKey": answer}


def boolq(line: Line, key: str) -> Document:
    """SuperGLUE's and the hub's ``label``, or the authors' ``answer``: true or 1 for yes."""
    value = line.fields[key]
    label = int(value) if isinstance(value, bool) else line.index(key, 2)
    return {"passage": line.text("passage"), "question": line.text("question"), "label": label}


def boolq_query(line: Line) -> Document:
    asked = ask(line, "boolq", (2,))
    if sorted(choice.strip().lower() for choice in asked.choices) != ["no", "yes"]:
        raise line.wrong(f"'choices' are {asked.choices!r:.60}, not 'no' and 'yes'")
    passage, mark, question = asked.question.removeprefix("Passage:").strip().rpartition("\nQuestion:")
    if not mark or not passage.strip() or not question.strip():
        raise line.wrong("'query' is not of the form 'Passage: …', then 'Question: …?' on a line of its own")
    # The harness writes the question mark itself.
    bare = question.strip().removesuffix("?").rstrip()
    label = int(asked.choices[asked.gold].strip().lower() == "yes")
    return {"passage": passage.rstrip(), "question": bare, "label": label}


def copa(line: Line) -> Document:
    if line.fields["question"] not in _CONNECTORS:
        raise line.wrong(f"'question' is {line.fields['question']!r:.60}, not 'cause' or 'effect'")
    keys = ("premise", "question", "choice1", "choice2")
    return {**{key: line.text(key) for key in keys}, "label": line.index("label", 2)}


def copa_query(line: Line) -> Document:
    """``The man fainted, because``: the harness writes no comma there and takes a full stop off the premise."""
    asked = ask(line, "copa", (2,))
    for relation, connector in _CONNECTORS.items():
        if asked.question.endswith(f" {connector}"):
            premise = asked.question.removesuffix(connector).rstrip().removesuffix(",").rstrip()
            choice1, choice2 = asked.choices
            return {
                "premise": f"{premise.removesuffix('.')}.", "question": relation, "choice1": choice1,
                "choice2": choice2, "label": asked.gold,
            }  # fmt: skip
    raise line.wrong("'query' does not end in ' because' or ' therefore', by which copa asks for cause or effect")


def siqa(line: Line) -> Document:
    keys = ("context", "question", "answerA", "answerB", "answerC")
    return {**{key: line.text(key) for key in keys}, "label": str(_from_one(line, "label", 3))}


def siqa_query(line: Line) -> Document:
    """``Context: …``, then ``Question: …``. Two of the three answers are published so; a third may be absent."""
    asked = ask(line, "siqa", (2, 3))
    context, mark, question = asked.question.removeprefix("Context:").strip().partition("\nQuestion:")
    if not mark:
        # The prompt joins the two by a space, so that any space may part them.
        context, mark, question = context.partition(" ")
    if not question.strip():
        raise line.wrong("'query' is not of the form 'Context: …', then 'Question: …' on a line of its own")
    answers = dict(zip(("answerA", "answerB", "answerC"), [*asked.choices, None], strict=False))
    return {"context": context.strip(), "question": question.strip(), **answers, "label": str(1 + asked.gold)}


def _from_one(line: Line, key: str, count: int) -> int:
    """A number from 1 to ``count``, as such or as a string."""
    value = line.fields[key]
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= count:
        raise line.wrong(f"{key!r} is {value!r:.60}, not the number of one of {count} answers (1..{count})")
    return number
