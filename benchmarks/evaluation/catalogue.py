"""The zero-shot tasks: where lm-eval describes each, where its items may lie, and the group of the Mamba paper."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks import TaskError
from tasks.sources import Layout

LABELS = "-labels.lst"
ITEMS = ".jsonl"


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """A task by lm-eval's name."""

    yaml: str
    """lm-eval's own description: prompt, choices, metrics."""
    layouts: tuple[Layout, ...]
    split: Literal["validation", "test"] = "validation"
    """Which split lm-eval asks; preferred where a folder holds several."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the description that are replaced here; none changes a request of an item in the hub's own schema."""


def _anywhere(*words: str) -> tuple[Layout, ...]:
    """Files whose name holds a word, else the files of a folder whose name does."""
    files = [Layout(name=f"*{word}*", globs=(f"language/**/*{word}*{ITEMS}",)) for word in words]
    folders = [
        Layout(name=f"*{word}*/", globs=(f"language/**/*{word}*/*{ITEMS}", f"language/**/*{word}*/*{LABELS}"))
        for word in words
    ]
    return (*files, *folders)


def _labelled(word: str, split: str) -> Layout:
    """Items and a file of labels beside them."""
    folder = f"language/**/{word}/{split}*"
    return Layout(name=word, globs=(f"{folder}{ITEMS}", f"{folder}{LABELS}"), needs_all=True)


ZERO_SHOT: dict[str, ZeroShotTask] = {
    "lambada_openai": ZeroShotTask(yaml="lambada/lambada_openai.yaml", layouts=_anywhere("lambada_openai", "lambada")),
    "hellaswag": ZeroShotTask(yaml="hellaswag/hellaswag.yaml", layouts=_anywhere("hellaswag")),
    "piqa": ZeroShotTask(yaml="piqa/piqa.yaml", layouts=(_labelled("piqa", "valid"), *_anywhere("piqa"))),
    "arc_easy": ZeroShotTask(
        yaml="arc/arc_easy.yaml", layouts=_anywhere("arc_easy", "[aA][rR][cC]-[eE]asy"), split="test"
    ),
    "arc_challenge": ZeroShotTask(
        yaml="arc/arc_challenge.yaml", layouts=_anywhere("arc_challenge", "[aA][rR][cC]-[cC]hallenge"), split="test"
    ),
    "winogrande": ZeroShotTask(yaml="winogrande/default.yaml", layouts=_anywhere("winogrande")),
    "openbookqa": ZeroShotTask(
        yaml="openbookqa/openbookqa.yaml",
        layouts=_anywhere("openbookqa", "openbook_qa", "[oO]pen[bB]ook[qQ][aA]"),
        split="test",
    ),
    "boolq": ZeroShotTask(yaml="super_glue/boolq/default.yaml", layouts=_anywhere("[bB]ool[qQ]")),
    "copa": ZeroShotTask(
        yaml="super_glue/copa/default.yaml",
        layouts=_anywhere("copa", "COPA"),
        # lm-eval gives the right answer's text there, which it looks up among the choices: the same answer.
        overrides={"doc_to_target": "label"},
    ),
    "siqa": ZeroShotTask(
        yaml="siqa/siqa.yaml",
        layouts=(_labelled("*social*iqa*", "dev"), *_anywhere("siqa", "social_iqa", "social*iqa")),
        # Items are published with two of the three answers too.
        overrides={"doc_to_choice": "{{[answerA, answerB, answerC] | select | list}}"},
    ),
}
ALIASES = {"social_iqa": "siqa"}
"""lm-eval's name of a task whose file is known by another."""
PAPER_METRICS: dict[str, tuple[str, ...]] = {
    "lambada_openai": ("perplexity", "accuracy"),
    "hellaswag": ("acc_norm",),
    "piqa": ("accuracy",),
    "arc_easy": ("accuracy",),
    "arc_challenge": ("acc_norm",),
    "winogrande": ("accuracy",),
    "openbookqa": ("acc_norm",),
}
"""The tasks that the Mamba paper's authors ask, and what its Table 3 gives of each (OpenBookQA is not in it)."""
GROUPS: dict[str, tuple[str, ...]] = {"mamba_paper": tuple(PAPER_METRICS)}


def task_names(asked: Sequence[str]) -> list[str]:
    """The tasks that names and groups stand for, each once. Raises :class:`TaskError` with near misses."""
    names: list[str] = []
    for name in asked:
        names += GROUPS.get(name) or (canonical_name(name),)
    return list(dict.fromkeys(names))


def canonical_name(name: str) -> str:
    """A task's name here. Raises :class:`TaskError` with near misses for one that is not known."""
    found = ALIASES.get(name, name)
    if found not in ZERO_SHOT:
        known = [*ZERO_SHOT, *ALIASES, *GROUPS]
        begins = [other for other in known if name and other.startswith(name)]
        near = list(dict.fromkeys([*begins, *difflib.get_close_matches(name, known, n=3)]))[:3]
        guess = f"did you mean {', '.join(near)}? There" if near else "there"
        raise TaskError(
            f"unknown zero-shot task {name!r}; {guess} are {', '.join(ZERO_SHOT)}, and the group {', '.join(GROUPS)}"
        )
    return found
