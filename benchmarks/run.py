"""One run of a suite: plan, skip what is recorded, run the rest, one record each."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.plan import ROOT, RunSettings, plan_trials, trial_ids
from benchmarks.suite_trials import Selection, SuiteTrial, expand
from benchmarks.suites import Suite
from benchmarks.training_state import state_path
from benchmarks.tuning import tune_ahead
from harness import CutShort, Trial
from harness.environment import fingerprint
from harness.memory import host_available_bytes
from harness.records import RecordWriter, read_records, write_environment
from harness.runner import CostModel, Executor, Progress, measure_matmul_rate, run_trials
from harness.supervisor import Supervisor, settle_imports
from harness.trials import format_length
from harness.units import PlannedTrial
from tasks import describe_source

MEMORY_MARGIN = 0.85
"""Share of the free memory that a trial may be predicted to need: FFT plans and libraries need some too."""
_MAX_ON_ONE_GPU = 6
"""Small trainings are bound by kernel launches: a few of them share a GPU without harm to their results."""
_PRELOAD = {"cpu": ("harness.preload",), "cuda": ("harness.preload", "benchmarks.preload_cuda")}
_TARGET = "benchmarks.worker:execute"
_WARM_UP = {"cpu": None, "cuda": "benchmarks.worker:start_cuda"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Everything that the command line says about a run."""

    device: str
    out: Path
    settings: RunSettings
    shard: tuple[int, int] = (1, 1)
    fresh: bool = False
    memory_bytes: int | None = None
    stop_at: float | None = None
    """When the run ends, by ``time.monotonic``: trainings are saved, to be continued by the same command."""


def planned_suite(suite: Suite, selection: Selection, options: RunOptions) -> list[PlannedTrial]:
    """The plan of a suite for this machine and these data. Raises SuiteError and TaskError."""
    return plan_trials(_expanded(suite, selection, options), options.settings)


def prepared_suite(
    suite: Suite, selection: Selection, options: RunOptions, *, log: TextIO = sys.stderr
) -> list[PlannedTrial]:
    """:func:`planned_suite`; the Triton kernels of what has no record yet are compiled meanwhile.

    Raises RecordsError, before all that takes long, where no record can be written.
    """
    trials = _expanded(suite, selection, options)
    with RecordWriter(_folder(options)) as writer:
        for warning in writer.warnings:
            print(f"note: {warning}", file=log)
    say_embedded((item.trial for item in trials), log)
    recorded = {} if options.fresh else _recorded(options.out)
    missing = [item.trial for item, trial_id in zip(trials, trial_ids(trials), strict=True) if trial_id not in recorded]
    with ThreadPoolExecutor(1) as pool:
        tuning = pool.submit(tune_ahead, missing, log=log)
        planned = plan_trials(trials, options.settings)
        tuning.result()
    return planned


def _folder(options: RunOptions) -> Path:
    """Where this part of the run writes."""
    shard, num_shards = options.shard
    return options.out if num_shards == 1 else options.out / f"shard-{shard}-of-{num_shards}"


def _expanded(suite: Suite, selection: Selection, options: RunOptions) -> list[SuiteTrial]:
    wanted = selection.tasks or {task for entry in suite.trials for task in getattr(entry, "tasks", ())}
    sources = {task: source_identity(task, options.settings) for task in sorted(wanted)}
    for task in options.settings.sources or {}:
        describe_source(task, options.settings.data_root, (options.settings.sources or {})[task])
    settle_imports(_TARGET, _PRELOAD[options.device])  # planning may be the first to have processes forked
    return expand(suite, selection, device=options.device, source_of=sources)


def say_embedded(trials: Iterable[Trial], log: TextIO) -> None:
    """Name the tasks for which no files were found, and what they read instead: nobody should learn that afterwards."""
    sources = {trial.task: trial.protocol.get("source", {}) for trial in trials if trial.task}
    for task, source in sorted(sources.items()):
        if source.get("kind") == "embedded":
            print(f"note: {task} is asked on embedded data, a stand-in: {source['note']}", file=log)


def source_identity(task: str, settings: RunSettings) -> dict[str, Any]:
    """Which bytes a task is asked on: part of its trials' identity."""
    provenance = describe_source(task, settings.data_root, (settings.sources or {}).get(task))
    kind = provenance.kind if provenance.kind in ("generator", "embedded") else "files"
    return {"name": provenance.name, "kind": kind, "sha256": provenance.sha256, "note": provenance.note}


def run_suite(
    planned: Sequence[PlannedTrial], options: RunOptions, *, executor: Executor | None = None, log: TextIO = sys.stderr
) -> dict[str, int]:
    """Run what has no record yet, or one that says it was cut short.

    Returns how many trials ended with which status, old ones included.
    """
    shard, num_shards = options.shard
    folder = _folder(options)
    mine = [p for p in planned if int(p.trial_id[:8], 16) % num_shards == shard - 1]
    with RecordWriter(folder) as writer:
        for warning in writer.warnings:
            print(f"note: {warning}", file=log)
        recorded = {} if options.fresh else _recorded(options.out)
        missing = [p for p in mine if p.trial_id not in recorded]
        if len(missing) < len(mine):
            print(f"{len(mine) - len(missing)} of {len(mine)} trials are recorded already in {options.out}", file=log)
        env_id, environment = fingerprint(ROOT, device=options.device, num_threads=len(options.settings.cores))
        write_environment(folder, env_id, environment)
        memory_bytes = options.memory_bytes or int(free_memory_bytes(options.device, environment) * MEMORY_MARGIN)
        counts: dict[str, int] = {}
        states = options.settings.states
        for p in mine:
            if options.fresh and states:
                state_path(states, p.trial_id).unlink(missing_ok=True)
            if p.trial_id in recorded:
                status = recorded[p.trial_id]["status"]
                counts[status] = counts.get(status, 0) + 1
        costs = CostModel(measure_matmul_rate() * 0.2)
        for p in mine:  # what an earlier part of the run has measured tells what the rest will take
            record = recorded.get(p.trial_id, {})
            if record.get("status") == "ok" and (samples := record["metrics"].get("latency_ms")):
                costs.observe(p, statistics.median(samples))
        with _own_executor(options, environment) if executor is None else nullcontext(executor) as running:
            for ended in run_trials(
                missing,
                executor=running,
                writer=writer,
                env_id=env_id,
                costs=costs,
                memory_bytes=memory_bytes,
                cores=options.settings.cores,
                max_side_by_side=_MAX_ON_ONE_GPU if options.device == "cuda" else None,
                address_space_bytes=_address_space(options),
                stop_at=options.stop_at,
                on_progress=progress_printer(log),
            ):
                counts[ended.status] = counts.get(ended.status, 0) + 1
                if states and ended.status == "ok":  # only now: until its record is written, it may be needed
                    state_path(states, ended.trial_id).unlink(missing_ok=True)
    if waiting := len(mine) - sum(counts.values()):
        print(f"time is up: {waiting} trials were not begun; run the same command again to go on", file=log)
    return counts


def _own_executor(options: RunOptions, environment: Mapping[str, Any]) -> AbstractContextManager[Supervisor]:
    # What leaves must fit into the margin beside the largest trial that is run, and two contexts too.
    margin = (1 - MEMORY_MARGIN) * free_memory_bytes(options.device, environment)
    return closing(
        Supervisor(
            _TARGET,
            preload=_PRELOAD[options.device],
            warm_up=_WARM_UP[options.device],
            little_bytes=int(0.75 * margin),
        )
    )


def _recorded(out: Path) -> dict[str, Mapping[str, Any]]:
    """trial id -> record of everything recorded below a folder, other shards included, but what was cut short."""
    records, _ = read_records([out] if out.exists() else [])
    return {
        record["trial_id"]: record for record in records if (record.get("error") or {}).get("type") != CutShort.__name__
    }


def _address_space(options: RunOptions) -> int | None:
    """A hard limit only where the user named one: it bounds the process, its libraries included."""
    return options.memory_bytes if options.device == "cpu" else None


def free_memory_bytes(device: str, environment: Mapping[str, Any]) -> int:
    """What a trial can get: the GPU's memory as nvidia-smi tells it, or the host's available memory."""
    if device == "cuda" and (gpu := environment.get("gpu")):
        return int(gpu["memory.total"].split()[0]) * 2**20
    return host_available_bytes()


def progress_printer(log: TextIO) -> Callable[[Progress], None]:
    """A status line that rewrites itself on a terminal; elsewhere one plain line a trial."""
    on_terminal = log.isatty()
    began = time.monotonic()

    def show(progress: Progress) -> None:
        width = len(str(progress.total))
        head = f"[{progress.done:{width}}/{progress.total}]"
        if progress.outcome is None:
            if on_terminal:
                line = f"{head} {progress.trial} …  about {format_seconds(progress.eta_s)} left"
                log.write("\r\x1b[K" + line[: os.get_terminal_size(log.fileno()).columns - 1])
                log.flush()
            return
        outcome = progress.outcome
        detail = _headline(outcome.metrics) if outcome.status == "ok" else (outcome.error or {}).get("message", "")
        line = f"{head} {progress.trial}  {outcome.status}  {detail.splitlines()[0] if detail else ''}"
        log.write(("\r\x1b[K" if on_terminal else "") + line.rstrip() + "\n")
        if progress.done == progress.total:
            log.write(f"{progress.total} trials in {format_seconds(time.monotonic() - began)}\n")
        log.flush()

    return show


def _headline(metrics: Mapping[str, Any]) -> str:
    parts = []
    if samples := metrics.get("latency_ms"):
        parts.append(f"{sorted(samples)[len(samples) // 2]:.3g} ms")
    if peak := metrics.get("peak_alloc_bytes"):
        parts.append(f"{peak / 2**20:.4g} MiB")
    if accuracy := metrics.get("accuracy"):
        parts.append(f"accuracy {accuracy['value']:.3f}")
    if bits := metrics.get("bits_per_token"):
        parts.append(f"{bits['value']:.3f} bits/token")
    longest = [s for s in metrics.get("scores", ()) if s["status"] == "ok"]
    if longest:
        last = max(longest, key=lambda s: s["seq_len"])
        value = last.get("accuracy", last.get("bits_per_token", {})).get("value", float("nan"))
        parts.append(f"at {format_length(last['seq_len'])}: {value:.3f}")
    return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def summarise(counts: Mapping[str, int]) -> str:
    """``98 ok, 6 skipped``."""
    return (
        ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda kv: -kv[1]))
        or "nothing was run"
    )


def plan_table(planned: Iterable[PlannedTrial], *, rate: float, memory_bytes: int) -> str:
    """The plan as text: cost of every trial, what will be skipped, and an ETA."""
    costs = CostModel(rate)
    rows = [f"{'trial':60} {'GFLOP/call':>12} {'peak':>10} {'about':>9}"]
    total = 0.0
    for p in planned:
        wall_s = costs.uncapped_wall_s(p)
        note = ""
        if p.unsupported:
            note = f"  unsupported: {p.unsupported}"
        elif (p.predicted_peak_bytes or 0) > memory_bytes:
            note = "  will be skipped: memory"
        elif wall_s > p.time_limit_s:
            note = f"  may be skipped: its limit is {p.time_limit_s:g} s"
        else:
            total += wall_s
        flops = f"{p.flops / 1e9:.3g}" if p.flops else "-"
        peak = f"{p.predicted_peak_bytes / 2**20:.4g} MiB" if p.predicted_peak_bytes else "-"
        rows.append(f"{p.trial!s:60} {flops:>12} {peak:>10} {format_seconds(wall_s):>9}{note}")
    rows.append(
        f"about {format_seconds(total)} in all, from this machine's matrix-product rate; "
        "a run corrects it as it measures, and skips what would outlast its limit"
    )
    return "\n".join(rows)
