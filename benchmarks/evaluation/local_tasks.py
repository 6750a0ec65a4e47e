"""lm-eval's tasks on local items: prompts, choices and metrics from its own task files, documents from here."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from benchmarks.evaluation.embedded import EMBEDDED, NOTE
from benchmarks.evaluation.formats import Document, Line, to_document
from harness.trials import canonical_json
from tasks import Provenance, TaskError
from tasks.archive import Member, read_members
from tasks.sources import Layout, SourceSpec, resolve_source

if TYPE_CHECKING:
    from benchmarks.evaluation.lm_harness import ConfigurableTask

_LABELS = "-labels.lst"
_SUFFIXES = (".jsonl", _LABELS)


def _anywhere(*patterns: str) -> tuple[Layout, ...]:
    return tuple(Layout(name=pattern, globs=(f"language/**/{pattern}",)) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """Where lm-eval describes a task, and where its items may lie under the data root."""

    yaml: str
    layouts: tuple[Layout, ...]


ZERO_SHOT: dict[str, ZeroShotTask] = {
    "lambada_openai": ZeroShotTask(
        yaml="lambada/lambada_openai.yaml", layouts=_anywhere("*lambada_openai*.jsonl", "*lambada*.jsonl")
    ),
    "hellaswag": ZeroShotTask(yaml="hellaswag/hellaswag.yaml", layouts=_anywhere("*hellaswag*.jsonl")),
    "piqa": ZeroShotTask(
        yaml="piqa/piqa.yaml",
        layouts=(
            Layout(
                name="piqa",
                globs=("language/**/piqa/valid*.jsonl", f"language/**/piqa/valid*{_LABELS}"),
                needs_all=True,
            ),
            *_anywhere("*piqa*.jsonl"),
        ),
    ),
    "arc_easy": ZeroShotTask(yaml="arc/arc_easy.yaml", layouts=_anywhere("*arc_easy*.jsonl")),
    "arc_challenge": ZeroShotTask(yaml="arc/arc_challenge.yaml", layouts=_anywhere("*arc_challenge*.jsonl")),
    "winogrande": ZeroShotTask(yaml="winogrande/default.yaml", layouts=_anywhere("*winogrande*.jsonl")),
    "openbookqa": ZeroShotTask(
        yaml="openbookqa/openbookqa.yaml", layouts=_anywhere("*openbookqa*.jsonl", "*openbook_qa*.jsonl")
    ),
}


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """A task's documents, read and checked."""

    name: str
    documents: tuple[Document, ...]
    provenance: Provenance

    def build(self) -> "ConfigurableTask":
        """lm-eval's task over these documents, zero-shot."""
        from benchmarks.evaluation.lm_harness import TASK_FILES, ConfigurableTask, datasets, load_yaml

        dataset = datasets.Dataset.from_list(list(self.documents))
        config = load_yaml(TASK_FILES / ZERO_SHOT[self.name].yaml)
        config.pop("tag", None)  # a name for several tasks; belongs to lm-eval's index
        config |= {
            "custom_dataset": lambda **_: {"validation": dataset, "test": dataset},
            "training_split": None,
            "num_fewshot": 0,
        }
        return ConfigurableTask(config=config)


def load_tasks(
    names: Sequence[str], *, data_root: Path | None = None, sources: Mapping[str, Path] | None = None
) -> list[LocalTask]:
    """Read every task's items before anything else is done. Raises :class:`TaskError`."""
    given = sources or {}
    wanted = list(dict.fromkeys(names))
    for name in [*wanted, *given]:
        if name not in ZERO_SHOT:
            near = difflib.get_close_matches(name, ZERO_SHOT, n=3)
            guess = f"did you mean {', '.join(near)}? " if near else ""
            raise TaskError(f"unknown zero-shot task {name!r}; {guess}There are {', '.join(ZERO_SHOT)}")
    if unused := [name for name in given if name not in wanted]:
        raise TaskError(f"--source {unused[0]}=…: {unused[0]} is not among --tasks {','.join(wanted)}; add it there")
    return [_load(name, data_root, given.get(name)) for name in wanted]


def _load(name: str, data_root: Path | None, source: Path | None) -> LocalTask:
    spec = SourceSpec(task=name, suffixes=_SUFFIXES, layouts=ZERO_SHOT[name].layouts)
    resolved = resolve_source(spec, data_root=data_root, source=source)
    embedded = EMBEDDED.get(name, [])
    if resolved.files:
        members = [m for file in resolved.files for m in read_members(file.path, file.name, _SUFFIXES)]
        lines = _lines(name, members)
        title = resolved.files[0].name if len(resolved.files) == 1 else name
    elif embedded:
        lines = [Line(place=f"embedded {name}, item {i}", fields=item) for i, item in enumerate(embedded)]
        title = f"{name} sample"
    else:
        reason = f" ({'; '.join(resolved.notes)})" if resolved.notes else ""
        raise TaskError(
            f"{name}: no items{reason}, and no embedded sample; name a file with --source {name}=PATH, "
            "or a data root with --data DIR"
        )
    sha256 = hashlib.sha256(canonical_json(embedded).encode()).hexdigest()
    notes = () if resolved.files else (NOTE,)
    provenance = resolved.provenance(name=title, embedded_sha256=sha256, notes=notes)
    return LocalTask(name=name, documents=tuple(to_document(name, line) for line in lines), provenance=provenance)


def _lines(task: str, members: Sequence[Member]) -> list[Line]:
    labels = {m.name.removesuffix(_LABELS): m for m in members if m.name.endswith(_LABELS)}
    member = _items_file(task, [m for m in members if not m.name.endswith(_LABELS)], set(labels))
    lines = list(_json_lines(member))
    if not lines:
        raise TaskError(f"{member.place}: no items; name a file with one JSON object a line")
    if answers := labels.get(member.name.removesuffix(".jsonl")):
        return _with_labels(lines, answers)
    return lines


def _items_file(task: str, items: Sequence[Member], labelled: set[str]) -> Member:
    """The one file to be asked: of several splits those with answers, and of those the validation split."""
    chosen = list(items)
    for keep in (
        lambda m: m.name.removesuffix(".jsonl") in labelled,
        lambda m: PurePosixPath(m.name).name.startswith("val"),
        lambda m: task in PurePosixPath(m.name).name,
    ):
        if len(chosen) > 1:
            chosen = [m for m in chosen if keep(m)] or chosen
    if len(chosen) != 1:
        found = ", ".join(m.place for m in chosen[:5]) or "none"
        raise TaskError(
            f"{task}: needs one .jsonl file, found {len(chosen)} ({found}); name it with --source {task}=PATH"
        )
    return chosen[0]


def _json_lines(member: Member) -> list[Line]:
    lines = []
    for number, content in enumerate(member.data.split(b"\n"), start=1):
        if not content.strip():
            continue
        place = f"{member.place}, line {number}"
        try:
            fields: Any = json.loads(content)
        except ValueError as error:  # not JSON, or not UTF-8
            raise TaskError(f"{place}: not a JSON object ({error}); mend or remove the line") from error
        if not isinstance(fields, dict):
            raise TaskError(f"{place}: a JSON {type(fields).__name__}, not an object; mend or remove the line")
        lines.append(Line(place=place, fields=fields))
    return lines


def _with_labels(lines: Sequence[Line], answers: Member) -> list[Line]:
    labels = answers.data.decode(errors="replace").split()
    if len(labels) != len(lines):
        raise TaskError(f"{answers.place}: {len(labels)} labels for {len(lines)} items; the two files must be a pair")
    pairs = enumerate(zip(lines, labels, strict=True), start=1)
    return [
        Line(place=f"{line.place} (label {number} of {PurePosixPath(answers.name).name})",
             fields={**line.fields, "label": label})
        for number, (line, label) in pairs
    ]  # fmt: skip
