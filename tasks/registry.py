"""The tasks by name. Nothing is imported until a task is made, so that listing them is quick."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.base import Provenance, Task, TaskError
    from tasks.corpus import CorpusTask

ENTRY_POINT_GROUP = "seqbench.tasks"
"""Third parties register ``name = "package.module:TaskClass"`` (or a function that returns a task)."""

_SOURCE_ARGUMENTS = ("data_root", "source")
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A registered task."""

    name: str
    target: str
    """``module:attribute`` of the class, or of a function that returns a task."""
    summary: str

    def load(self) -> "Callable[..., Task]":
        """Import the class or function."""
        module, _, attribute = self.target.partition(":")
        factory: Callable[..., Task] = getattr(import_module(module), attribute)
        return factory

    def takes_source(self) -> bool:
        """Whether ``data_root`` and ``source`` mean something to it."""
        return set(_SOURCE_ARGUMENTS) <= set(inspect.signature(self.load()).parameters)

    def options(self) -> tuple[str, ...]:
        """The names that :func:`make_task` takes as options."""
        parameters = inspect.signature(self.load()).parameters.values()
        named = (parameter.name for parameter in parameters if parameter.kind not in _ANY_NUMBER)
        return tuple(name for name in named if name not in _SOURCE_ARGUMENTS)

    def takes_any_option(self) -> bool:
        """Whether it ends in ``**options`` and so must check them itself."""
        parameters = inspect.signature(self.load()).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _entries(*entries: TaskEntry) -> dict[str, TaskEntry]:
    return {entry.name: entry for entry in entries}


TASKS: dict[str, TaskEntry] = _entries(
    TaskEntry(
        name="selective_copying",
        target="tasks.synthetic.selective_copying:SelectiveCopying",
        summary="copy the data tokens scattered in noise, in order",
    ),
    TaskEntry(
        name="induction_heads",
        target="tasks.synthetic.induction_heads:InductionHeads",
        summary="recall the token that followed the special token",
    ),
    TaskEntry(
        name="language",
        target="tasks.language:Language",
        summary="predict the next byte of text",
    ),
    TaskEntry(
        name="dna",
        target="tasks.dna:Dna",
        summary="predict the next base of DNA",
    ),
    TaskEntry(
        name="audio",
        target="tasks.audio:Music",
        summary="predict the next sample of music (16 kHz, 8-bit mu-law)",
    ),
    TaskEntry(
        name="speech",
        target="tasks.audio:Speech",
        summary="predict the next sample of short spoken words (16 kHz, 8-bit mu-law)",
    ),
    TaskEntry(
        name="species",
        target="tasks.dna:Species",
        summary="tell from which of several species a stretch of DNA is",
    ),
    TaskEntry(
        name="gue",
        target="tasks.dna:Gue",
        summary="classify short DNA: promoters, transcription factors, histone marks (GUE)",
    ),
    TaskEntry(
        name="vertebrates",
        target="tasks.dna:Vertebrates",
        summary="tell the class of vertebrates from a mitochondrial genome",
    ),
    TaskEntry(
        name="genomic_benchmarks",
        target="tasks.dna:GenomicBenchmarks",
        summary="classify DNA: promoters, enhancers, coding regions (GenomicBenchmarks)",
    ),
    TaskEntry(
        name="digits",
        target="tasks.audio:Digits",
        summary="predict the next sample of spoken digits (SC09: one second, 16 kHz, 8-bit mu-law)",
    ),
    TaskEntry(
        name="commands",
        target="tasks.audio:Commands",
        summary="tell which word a second of raw samples holds",
    ),
)


def task_names() -> tuple[str, ...]:
    """The suite's tasks, then third parties' in alphabetical order."""
    return tuple(_all_entries())


def task_entry(name: str) -> TaskEntry:
    """Raises :class:`TaskError` with the nearest names for a name that nobody registered."""
    entries = _all_entries()
    if name not in entries:
        raise _error(f"unknown task {name!r}{_near(name, entries)}; known: {', '.join(entries)}")
    return entries[name]


def make_task(name: str, *, data_root: Path | None = None, source: Path | None = None, **options: Any) -> "Task":
    """A task by its registered name.

    Args:
        name: one of :func:`task_names`.
        data_root: folder laid out as ``language/ dna/ audio/``; ``$SEQBENCH_DATA`` unless given.
        source: the user's own file, folder or archive in place of the task's data.
        **options: the task's own keyword arguments, such as ``vocab_size`` of a probe.

    Raises:
        TaskError: unknown name or option, a source for a task that generates its data, or bad data.
    """
    entry = task_entry(name)
    known = entry.options()
    for option in options:
        if option not in known and not entry.takes_any_option():
            raise _error(
                f"{name}: unknown option {option!r}{_near(option, known)}; "
                f"it takes {', '.join(known) if known else 'no options'}"
            )
    if not entry.takes_source():
        _refuse_source(name, source)
        return entry.load()(**options)
    return entry.load()(data_root=data_root, source=source, **options)


def describe_source(name: str, data_root: Path | None = None, source: Path | None = None) -> "Provenance":
    """Where a task's data would come from, and their sha256, without decoding anything.

    For a trial's identity take ``sha256`` (of a generator: ``name``, which holds its version). Kind and
    note may differ between two runs on the same bytes: a download is found in the cache the next time.
    """
    entry = task_entry(name)
    if not entry.takes_source():
        _refuse_source(name, source)
    factory = entry.load()
    if corpus_task := _corpus_task(factory):
        from tasks.sources import resolve_source

        return corpus_task.describe_source(resolve_source(corpus_task.spec, data_root=data_root, source=source))
    return make_task(name, data_root=data_root, source=source).provenance


def fetch_sources(name: str) -> tuple[Path, ...]:
    """Download a task's pinned files into the cache now; empty for a task that has none."""
    corpus_task = _corpus_task(task_entry(name).load())
    if corpus_task is None:
        return ()
    from tasks.sources import fetch_downloads

    return fetch_downloads(corpus_task.spec)


def _corpus_task(factory: "Callable[..., Task]") -> "type[CorpusTask] | None":
    from tasks.corpus import CorpusTask

    return factory if inspect.isclass(factory) and issubclass(factory, CorpusTask) else None


def _all_entries() -> dict[str, TaskEntry]:
    entries = dict(TASKS)
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        # The suite's own names cannot be taken over: a record's task must mean one thing.
        entry = TaskEntry(name=point.name, target=point.value, summary=f"third party ({point.value})")
        entries.setdefault(point.name, entry)
    return entries


def _refuse_source(name: str, source: Path | None) -> None:
    if source is not None:
        raise _error(f"--source {name}={source}: {name} generates its data and reads no source; leave it out")


def _near(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""


def _error(message: str) -> "TaskError":
    from tasks.base import TaskError

    return TaskError(message)
