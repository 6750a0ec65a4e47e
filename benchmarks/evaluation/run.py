"""One evaluation: a checkpoint on every task that has no record yet, one record a task."""

import datetime
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.evaluation.adapter import EvalLM
from benchmarks.evaluation.batching import TokenBudget
from benchmarks.evaluation.checkpoints import Checkpoint, find_checkpoint
from benchmarks.evaluation.lm_harness import LM_EVAL_VERSION, ConfigurableTask, evaluate, quiet
from benchmarks.evaluation.local_tasks import LocalTask, load_tasks
from benchmarks.evaluation.response_cache import ResponseCache
from benchmarks.evaluation.summary import item_lines, task_metrics
from benchmarks.evaluation.tokenizers import Tokenizer
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
_CODE = ("models", "benchmarks/evaluation", "harness/statistics.py", "tasks/language/bpe.py")
"""What a result depends on: a trial's identity is hashed from it."""
_ANSWERING = (
    "models",
    "tasks/language/bpe.py",
    *(f"benchmarks/evaluation/{name}.py" for name in ("adapter", "decoding", "tokenizers")),
)
"""What a single answer depends on."""


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
    batch_size: int | None = None
    """None for as many as memory allows; answers do not depend on it."""
    max_length: int | None = None
    """None for what the checkpoint was made for."""
    dtype: str = "float32"
    tokenizer: str | None = None
    """A folder or a name on the hub, instead of the checkpoint's own."""
    trust_remote_code: bool = False
    use_cache: bool = True
    """Whether single answers are kept below ``out``, so that a killed evaluation goes on within a task."""


def run_evaluation(options: EvalOptions, *, log: TextIO = sys.stderr) -> list[dict[str, Any]]:
    """Score a checkpoint on tasks; returns their records in the order asked, old ones included.

    Checkpoint and items are found and checked before the model is loaded. Raises CheckpointError and
    TaskError for what is wrong with them.
    """
    tasks = load_tasks(options.tasks, data_root=options.data_root, sources=options.sources)
    checkpoint = find_checkpoint(
        options.model, options.runs, tokenizer=options.tokenizer, trust_remote_code=options.trust_remote_code
    )
    tokenizer = checkpoint.load_tokenizer()
    trials = {task.name: _trial(task, checkpoint, tokenizer, options) for task in tasks}
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
            scorer = _Scorer(checkpoint, tokenizer, options, writer, log)
            for task in missing:
                recorded[ids[task.name]] = scorer.record(task, trials[task.name], ids[task.name])
    return [recorded[ids[task.name]] for task in tasks]


def _own_code(model: str) -> list[Path]:
    return [Path(model.rpartition(":")[0])] if ".py:" in model else []


def _trial(task: LocalTask, checkpoint: Checkpoint, tokenizer: Tokenizer, options: EvalOptions) -> Trial:
    return Trial(
        kind="eval",
        model=checkpoint.model,
        task=task.name,
        seq_len=options.max_length or checkpoint.max_length(tokenizer),
        batch=options.batch_size or 0,  # 0: as many as memory allows
        dtype=options.dtype,
        direction="forward",
        device=options.device,
        seed=0,
        protocol={
            "checkpoint": {"sha256": checkpoint.sha256},
            "tokenizer": {"sha256": tokenizer.sha256},
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

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, options: EvalOptions, writer: RecordWriter, log: TextIO
    ) -> None:
        self._tokenizer, self._options, self._writer, self._log = tokenizer, options, writer, log
        self._model, about = checkpoint.load(options.device, getattr(torch, options.dtype))
        # A folder's place says nothing elsewhere.
        short = Path(tokenizer.name).name if Path(tokenizer.name).exists() else tokenizer.name
        self._about = {**about, "tokenizer": short}
        self._device = device = torch.device(options.device)
        self._backend = _backend(self._model, options.dtype, device)
        self._budget = (
            TokenBudget(batch_size=options.batch_size)
            if options.batch_size
            else TokenBudget.measured(self._model, device)
        )
        self._answering = code_version([ROOT / path for path in _ANSWERING] + _own_code(checkpoint.model))
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
            metrics = self._measure(task, trial, trial_id)
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
        before = metrics.get("answered_before")
        kept = f", {before} answers kept from before" if before else ""
        self._say(f"{task.name}: {status}, {record.wall_s:.1f} s{kept}\n")
        return record.as_dict()

    def _measure(self, task: LocalTask, trial: Trial, trial_id: str) -> dict[str, Any]:
        built = task.build()
        lm = EvalLM(
            self._model,
            self._tokenizer,
            budget=self._budget,
            max_length=trial.seq_len,
            cache=self._cache(trial, built) if self._options.use_cache else None,
            on_progress=lambda done, total: self._progress(f"{task.name} {done}/{total}"),
        )
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        with host_peak() as host, quiet():
            answer = evaluate(
                lm=lm,
                task_dict={"tasks": {task.name: built}, "groups": {}},
                limit=self._options.limit,
                bootstrap_iters=BOOTSTRAP_ITERS,
            )
        samples = [{**sample, "gold": gold_request(built, sample)} for sample in answer["samples"][task.name]]
        items = f"items/{trial_id}.jsonl"
        content = "".join(json.dumps(line) + "\n" for line in item_lines(samples))
        if not write_atomically(self._options.out / items, content.encode()):
            raise TaskError(f"cannot write {self._options.out / items}; choose another folder with --out")
        counts = lm.take_counts()
        # Of the requests that the model was asked; absent where all answers were there before.
        speed = {} if counts.tokens_per_s is None else {"tokens_per_s": counts.tokens_per_s}
        return {
            **task_metrics(answer["results"][task.name], samples),
            "truncated": counts.truncated,
            "requests": counts.requests,
            "answered_before": counts.answered_before,
            **speed,
            "items": items,
            **host.as_dict(),
            **_device_peak(self._device),
        }

    def _cache(self, trial: Trial, built: ConfigurableTask) -> ResponseCache:
        """The answers that this model gave to this task's requests, of which a limit asks only some."""
        asked = {"name": trial.task, "version": built.VERSION, "source": trial.protocol["source"]["sha256"]}
        return ResponseCache(
            self._options.out / "responses",
            {
                "task": asked,
                "checkpoint": trial.protocol["checkpoint"],
                "tokenizer": trial.protocol["tokenizer"],
                "model": trial.model,
                "dtype": trial.dtype,
                "device": trial.device,
                "code": self._answering,
            },
        )

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


def gold_request(task: ConfigurableTask, sample: Mapping[str, Any]) -> int:
    """Which of an item's requests is the right answer; winogrande's differ in the context, not in the answer."""
    if len(sample["arguments"]) == 1:
        return 0
    return int((task.doc_to_text if task.multiple_input else task.doc_to_target)(sample["doc"]))


def _device_peak(device: torch.device) -> dict[str, int]:
    """Of a GPU's allocator, the model's weights included; a CPU's keeps no count."""
    return {"peak_alloc_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


@torch.no_grad()
def _backend(model: Model, dtype: str, device: torch.device) -> dict[str, Any]:
    """The kernels that run, seen on a short input."""
    with observing() as kernels:
        model(torch.zeros(1, 64, dtype=torch.int64, device=device))
    return describe_backend(kernels, dtype, device)
