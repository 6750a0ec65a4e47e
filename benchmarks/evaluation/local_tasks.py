"""lm-eval's tasks on local items: prompts, choices and metrics from its own task files, documents from here."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from benchmarks.evaluation.catalogue import ITEMS, LABELS, ZERO_SHOT, canonical_name, task_names
from benchmarks.evaluation.embedded import EMBEDDED, NOTE
from benchmarks.evaluation.formats import to_document
from benchmarks.evaluation.hub import HubError, hub_items
from benchmarks.evaluation.lines import Document, Line
from harness.trials import canonical_json
from tasks import Provenance, TaskError
from tasks.archive import Member, read_members
from tasks.download import downloads_allowed
from tasks.sources import ResolvedSource, SourceSpec, resolve_source

if TYPE_CHECKING:
    from benchmarks.evaluation.lm_harness import ConfigurableTask

_SUFFIXES = (ITEMS, LABELS)
_SPLIT_WORDS = {"validation": {"val", "valid", "validation", "dev"}, "test": {"test"}}
"""What the splits that lm-eval asks are called in file names."""


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
            "task": self.name,
            **ZERO_SHOT[self.name].overrides,
            "custom_dataset": lambda **_: {"validation": dataset, "test": dataset},
            "training_split": None,
            "num_fewshot": 0,
        }
        return ConfigurableTask(config=config)


def load_tasks(
    names: Sequence[str], *, data_root: Path | None = None, sources: Mapping[str, Path] | None = None
) -> list[LocalTask]:
    """Read every task's items before anything else is done. Raises :class:`TaskError`."""
    wanted = task_names(names)
    given = {canonical_name(name): path for name, path in (sources or {}).items()}
    if unused := [name for name in given if name not in wanted]:
        raise TaskError(f"--source {unused[0]}=…: {unused[0]} is not among --tasks {','.join(wanted)}; add it there")
    return [_load(name, data_root, given.get(name)) for name in wanted]


def _load(name: str, data_root: Path | None, source: Path | None) -> LocalTask:
    """A file's items, else the hub's where it may be asked, else the embedded ones."""
    spec = SourceSpec(task=name, suffixes=_SUFFIXES, layouts=ZERO_SHOT[name].layouts)
    resolved = resolve_source(spec, data_root=data_root, source=source)
    if resolved.files:
        members = [m for file in resolved.files for m in read_members(file.path, file.name, _SUFFIXES)]
        title = resolved.files[0].name if len(resolved.files) == 1 else name
        documents = tuple(to_document(name, line) for line in _lines(name, members))
        return LocalTask(name=name, documents=documents, provenance=resolved.provenance(name=title, embedded_sha256=""))
    notes = resolved.notes
    if downloads_allowed():
        try:
            found = hub_items(name)
        except HubError as error:
            notes += (str(error),)
        else:
            sha256 = _sha256(found.documents)
            provenance = Provenance(name=found.name, kind="download", sha256=sha256, note="; ".join(notes))
            return LocalTask(name=name, documents=found.documents, provenance=provenance)
    return _embedded(name, resolved, notes)


def _embedded(name: str, resolved: ResolvedSource, notes: tuple[str, ...]) -> LocalTask:
    items = EMBEDDED[name]
    lines = [Line(place=f"embedded {name}, item {i}", fields=item) for i, item in enumerate(items)]
    provenance = resolved.provenance(name=f"{name} sample", embedded_sha256=_sha256(items), notes=(*notes, NOTE))
    return LocalTask(name=name, documents=tuple(to_document(name, line) for line in lines), provenance=provenance)


def _sha256(items: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(canonical_json(list(items)).encode()).hexdigest()


def _lines(task: str, members: Sequence[Member]) -> list[Line]:
    labels = {m.name.removesuffix(LABELS): m for m in members if m.name.endswith(LABELS)}
    member = _items_file(task, [m for m in members if not m.name.endswith(LABELS)], set(labels))
    lines = list(_json_lines(member))
    if not lines:
        raise TaskError(f"{member.place}: no items; name a file with one JSON object a line")
    if answers := labels.get(member.name.removesuffix(ITEMS)):
        return _with_labels(lines, answers)
    return lines


def _items_file(task: str, items: Sequence[Member], labelled: set[str]) -> Member:
    """The one file to be asked: of several splits those with answers, and of those the split that lm-eval asks."""
    words = _SPLIT_WORDS[ZERO_SHOT[task].split]
    chosen = list(items)
    for keep in (
        lambda m: m.name.removesuffix(ITEMS) in labelled,
        lambda m: bool(words & set(re.split(r"[^a-z]+", PurePosixPath(m.name).stem.lower()))),
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
