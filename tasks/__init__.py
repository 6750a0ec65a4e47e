"""What is asked of a model: synthetic probes, language, DNA and audio.

Names are imported when first used, so that ``import tasks`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.base import (
        IGNORE_INDEX,
        MAX_SEQ_LEN,
        MIN_SEQ_LEN,
        SPLITS,
        Batch,
        ExampleStream,
        Provenance,
        Split,
        Task,
        TaskError,
    )
    from tasks.corpus import CorpusTask, EvaluationWindows
    from tasks.registry import TASKS, TaskEntry, describe_source, fetch_sources, make_task, task_entry, task_names
    from tasks.synthetic.probe import Probe

_HOME = {
    **dict.fromkeys(
        (
            "IGNORE_INDEX",
            "MAX_SEQ_LEN",
            "MIN_SEQ_LEN",
            "SPLITS",
            "Batch",
            "ExampleStream",
            "Provenance",
            "Split",
            "Task",
            "TaskError",
        ),
        "tasks.base",
    ),
    **dict.fromkeys(("CorpusTask", "EvaluationWindows"), "tasks.corpus"),
    **dict.fromkeys(
        ("TASKS", "TaskEntry", "describe_source", "fetch_sources", "make_task", "task_entry", "task_names"),
        "tasks.registry",
    ),
    "Probe": "tasks.synthetic.probe",
}

__all__ = [
    "IGNORE_INDEX",
    "MAX_SEQ_LEN",
    "MIN_SEQ_LEN",
    "SPLITS",
    "TASKS",
    "Batch",
    "CorpusTask",
    "EvaluationWindows",
    "ExampleStream",
    "Probe",
    "Provenance",
    "Split",
    "Task",
    "TaskEntry",
    "TaskError",
    "describe_source",
    "fetch_sources",
    "make_task",
    "task_entry",
    "task_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tasks' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
