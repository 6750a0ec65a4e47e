"""One evaluation: a checkpoint on every task that has no record yet, one record a task."""

import datetime
import io
import json
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.evaluation.adapter import MAX_LENGTH, ByteLM
from benchmarks.evaluation.checkpoints import Checkpoint, find_checkpoint
from benchmarks.evaluation.lm_harness import LM_EVAL_VERSION, ConfigurableTask, evaluate
from benchmarks.evaluation.local_tasks import LocalTask, load_tasks
from benchmarks.evaluation.summary import item_lines, task_metrics
from benchmarks.plan import ROOT
from benchmarks.speed import describe_backend
from harness import Status, Trial, TrialFailure
from harness.code_version import code_version
from harness.environment import fingerprint
from harness.memory import host_peak
from harness.outcomes import is_out_of_memory
from harness.records import Record, RecordWriter, read_records, write_environment
from models import Model
from models.ops import scan_kernel
from models.ops.context import observing
from tasks import Provenance, TaskError
from tasks.cache import write_atomically

BOOTSTRAP_ITERS = 1000
"""Resamplings behind a perplexity's standard error, which they fix to 2 %; lm-eval's 100,000 take minutes."""
_CODE = ("models", "benchmarks/evaluation", "harness/statistics.py")
"""What a result depends on: a trial's identity is hashed from it."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Everything that the command line says about an evaluation."""

    model: str
    tasks: tuple[str, ...]
    device: str
    out: Path = Path("results/runs/eval")
    runs: Path = Path("results/runs")
    data_root: Path | None = None
    sources: Mapping[str, Path] | None = None
    limit: int | None = None
    """Only a task's first items; part of the trial's identity."""
    batch_size: int = 16
    max_length: int = MAX_LENGTH


def run_evaluation(options: EvalOptions, *, log: TextIO = sys.stderr) -> list[dict[str, Any]]:
    """Score a checkpoint on tasks; returns their records in the order asked, old ones included.

    Checkpoint and items are found and checked before the model is loaded. Raises CheckpointError and
    TaskError for what is wrong with them.
    """
    checkpoint = find_checkpoint(options.model, options.runs)
    tasks = load_tasks(options.tasks, data_root=options.data_root, sources=options.sources)
    trials = {task.name: _trial(task, checkpoint, options) for task in tasks}
    version = code_version([ROOT / path for path in _CODE] + _own_code(checkpoint.model))
    ids = {name: trial.trial_id(version) for name, trial in trials.items()}
    with RecordWriter(options.out) as writer:
        for warning in writer.warnings:
            print(f"note: {warning}", file=log)
        recorded = {r["trial_id"]: r for r in read_records([writer.path])[0] if r["status"] == "ok"}
        missing = [task for task in tasks if ids[task.name] not in recorded]
        if len(missing) < len(tasks):
            print(f"{len(tasks) - len(missing)} of {len(tasks)} tasks are recorded already in {options.out}", file=log)
        if missing:
            scan_kernel.ensure_built()  # so that no task's clock sees the compiler
            scorer = _Scorer(checkpoint, options, writer, log)
            for task in missing:
                recorded[ids[task.name]] = scorer.record(task, trials[task.name], ids[task.name])
    return [recorded[ids[task.name]] for task in tasks]


def _own_code(model: str) -> list[Path]:
    return [Path(model.rpartition(":")[0])] if ".py:" in model else []


def _trial(task: LocalTask, checkpoint: Checkpoint, options: EvalOptions) -> Trial:
    return Trial(
        kind="eval",
        model=checkpoint.model,
        task=task.name,
        seq_len=options.max_length,
        batch=options.batch_size,
        dtype="float32",
        direction="forward",
        device=options.device,
        seed=0,
        protocol={
            "checkpoint": {"sha256": checkpoint.sha256},
            "source": _source_identity(task.provenance),
            "limit": options.limit,
            "num_fewshot": 0,
            "lm_eval": LM_EVAL_VERSION,
        },
    )


def _source_identity(provenance: Provenance) -> dict[str, Any]:
    """As for other trials: the same file is the same source, however it was found."""
    kind = provenance.kind if provenance.kind == "embedded" else "files"
    return {"name": provenance.name, "kind": kind, "sha256": provenance.sha256, "note": provenance.note}


class _Scorer:
    """A loaded model, and where its records go."""

    def __init__(self, checkpoint: Checkpoint, options: EvalOptions, writer: RecordWriter, log: TextIO) -> None:
        self._options, self._writer, self._log = options, writer, log
        self._model = checkpoint.load(options.device)
        self._about = {key: value for key, value in checkpoint.config.items() if key not in ("model", "vocab_size")}
        self._backend = _backend(self._model, torch.device(options.device))
        self._env_id, environment = fingerprint(ROOT, device=options.device, num_threads=torch.get_num_threads())
        write_environment(options.out, self._env_id, environment)

    def record(self, task: LocalTask, trial: Trial, trial_id: str) -> dict[str, Any]:
        """Score one task and write its record, whatever became of it."""
        started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        started = time.monotonic()
        status: Status = "ok"
        error: dict[str, str] | None = None
        metrics: dict[str, Any] = {}
        try:
            metrics = self._measure(task, trial_id)
        except (TaskError, TrialFailure, RuntimeError, MemoryError) as failure:
            status = _status_of(failure)
            error = {"type": type(failure).__name__, "message": str(failure), "tail": ""}
        record = Record(
            trial_id=trial_id,
            trial=trial,
            status=status,
            env_id=self._env_id,
            started_at=started_at,
            wall_s=time.monotonic() - started,
            metrics={"params": self._model.num_params, "checkpoint": self._about, **metrics},
            backend=self._backend,
            error=error,
        )
        self._writer.append(record)
        self._say(f"{task.name}: {status}, {record.wall_s:.1f} s\n")
        return record.as_dict()

    def _measure(self, task: LocalTask, trial_id: str) -> dict[str, Any]:
        lm = ByteLM(
            self._model,
            batch_size=self._options.batch_size,
            max_length=self._options.max_length,
            on_progress=lambda done, total: self._progress(f"{task.name} {done}/{total}"),
        )
        built = task.build()
        # lm-eval prints bars and notes; a run has a line of progress of its own.
        with host_peak() as host, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            answer = evaluate(
                lm=lm,
                task_dict={"tasks": {task.name: built}, "groups": {}},
                limit=self._options.limit,
                bootstrap_iters=BOOTSTRAP_ITERS,
            )
        samples = [{**sample, "gold": _gold(built, sample)} for sample in answer["samples"][task.name]]
        items = f"items/{trial_id}.jsonl"
        content = "".join(json.dumps(line) + "\n" for line in item_lines(samples))
        if not write_atomically(self._options.out / items, content.encode()):
            raise TaskError(f"cannot write {self._options.out / items}; choose another folder with --out")
        counts = lm.take_counts()
        return {
            **task_metrics(answer["results"][task.name], samples),
            "truncated": counts.truncated,
            "requests": counts.requests,
            "tokens_per_s": counts.tokens / max(counts.model_s, 1e-9),
            "items": items,
            **host.as_dict(),
        }

    def _progress(self, text: str) -> None:
        if self._log.isatty():
            self._say(text)

    def _say(self, text: str) -> None:
        self._log.write(("\r\x1b[K" if self._log.isatty() else "") + text)
        self._log.flush()


def _status_of(failure: BaseException) -> Status:
    if isinstance(failure, TaskError):
        return "unsupported"
    if isinstance(failure, TrialFailure):
        return failure.status
    return "oom" if is_out_of_memory(failure) else "error"


def _gold(task: ConfigurableTask, sample: Mapping[str, Any]) -> int:
    """Which of an item's requests is the right answer; winogrande's differ in the context, not in the answer."""
    if len(sample["arguments"]) == 1:
        return 0
    return int((task.doc_to_text if task.multiple_input else task.doc_to_target)(sample["doc"]))


@torch.no_grad()
def _backend(model: Model, device: torch.device) -> dict[str, Any]:
    """The kernels that run, seen on a short input."""
    with observing() as kernels:
        model(torch.zeros(1, 64, dtype=torch.int64, device=device))
    return describe_backend(kernels, "float32", device)
