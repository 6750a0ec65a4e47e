"""The run: every planned trial that has no record yet, cheap ones first, one record each.

The runner knows nothing of models and tasks. It asks a :class:`CostModel` whether a trial can fit
and when it will end, hands it to a supervisor, and writes down what became of it.
"""

import datetime
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Protocol

from harness.outcomes import CutShort
from harness.records import Record, RecordWriter
from harness.supervisor import Outcome
from harness.trials import Trial
from harness.units import PlannedTrial, Unit, share_of, units_of
from harness.worker import Limits


class Executor(Protocol):
    """What runs trials; :class:`harness.supervisor.Supervisor` and the tests' mock are two."""

    def run(self, payload: Mapping[str, Any], limits: Limits) -> Outcome: ...

    def cancel(self) -> None: ...


class CostModel:
    """Predicts how long a trial's call takes, from what the run has measured so far.

    Time is taken as an overhead and a rate: the line through the two most expensive finished trials
    with the same key. From a single one the overhead cannot be told, so its rate is an upper estimate.
    """

    _FAR = 16.0
    """A single finished trial is no ground for refusing one that costs more than so many times as much."""

    def __init__(self, default_flops_per_s: float) -> None:
        self._default = default_flops_per_s
        self._points: dict[str, dict[float, float]] = {}

    def observe(self, planned: PlannedTrial, latency_ms: float) -> None:
        """Learn from a finished trial."""
        if planned.flops and latency_ms > 0:
            self._points.setdefault(planned.speed_key, {})[planned.flops] = latency_ms

    def latency_ms(self, planned: PlannedTrial) -> float | None:
        """Predicted time of one call; None where the FLOPs are unknown."""
        if not planned.flops:
            return None
        points = sorted(self._points.get(planned.speed_key, {}).items())[-2:]
        if not points:
            return 1e3 * planned.flops / self._default
        flops, latency_ms = points[-1]
        in_proportion = latency_ms * planned.flops / flops
        if len(points) < 2 or planned.flops <= flops:
            return in_proportion
        earlier_flops, earlier_ms = points[0]
        added_ms = (latency_ms - earlier_ms) * (planned.flops - flops) / (flops - earlier_flops)
        # A line never promises to get cheaper, nor, where noise bends it, worse than proportion does.
        return min(max(latency_ms, latency_ms + added_ms), in_proportion)

    def knows(self, planned: PlannedTrial) -> bool:
        """Whether the prediction rests on measurements that reach far enough."""
        points = self._points.get(planned.speed_key, {})
        return len(points) > 1 or any((planned.flops or 0.0) <= self._FAR * flops for flops in points)

    def wall_s(self, planned: PlannedTrial) -> float:
        """Predicted duration of the whole trial: 0 where it will be refused, its limit at the most."""
        full_s = self.uncapped_wall_s(planned)
        if full_s > planned.time_limit_s and self.knows(planned):
            return 0.0
        return min(full_s, planned.time_limit_s)

    def uncapped_wall_s(self, planned: PlannedTrial) -> float:
        """What the whole trial would take without a limit."""
        return planned.extra_s + planned.calls * (self.latency_ms(planned) or 0.0) / 1e3


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands; sent before and after every trial."""

    done: int
    total: int
    eta_s: float
    trial: Trial
    outcome: Outcome | None = None


def run_trials(
    planned: Sequence[PlannedTrial],
    *,
    executor: Executor,
    writer: RecordWriter,
    env_id: str,
    costs: CostModel,
    memory_bytes: int,
    cores: Sequence[int],
    max_side_by_side: int | None = None,
    address_space_bytes: int | None = None,
    stop_at: float | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
) -> Iterator[Record]:
    """Run the trials; yields each record after it has been written.

    Trials with a machine to themselves go first, in the order given. Those that state their number of
    threads then run side by side, each pinned to cores of its own, and their records say so.

    Args:
        planned: trials without a record, cheap ones first.
        memory_bytes: a trial that is predicted to need more is skipped, with the prediction.
        cores: the CPU cores of this run.
        max_side_by_side: how many trials may share the machine; None for as many as cores allow.
        address_space_bytes: hard limit of a trial's process; None for none.
        stop_at: (``time.monotonic``) when the run ends: what runs is cut short, what waits gets no record.
    """
    units = units_of(planned)
    alone = [unit for unit in units if unit[0].num_threads is None]
    sharing = sorted((unit for unit in units if unit[0].num_threads is not None), key=lambda u: -costs.wall_s(u[0]))
    done = 0

    def run_on(unit: Unit, own_cores: Sequence[int], side_by_side: int) -> tuple[datetime.datetime, list[Outcome]]:
        started = clock()
        outcome = refusal(unit[0], costs, memory_bytes // (side_by_side * len(unit)))
        if outcome is None:
            outcome = _run_unit(unit, own_cores, executor, address_space_bytes, stop_at)
        outcomes = [share_of(outcome, plan, num_together=len(unit)) for plan in unit]
        if side_by_side > 1:
            outcomes = [
                replace(own, backend={**own.backend, "side_by_side": side_by_side}) if own.backend else own
                for own in outcomes
            ]
        return started, outcomes

    def write(unit: Unit, started: datetime.datetime, outcomes: Sequence[Outcome], eta_s: float) -> Iterator[Record]:
        nonlocal done
        for plan, outcome in zip(unit, outcomes, strict=True):
            metrics = {**_predictions(plan, costs), **outcome.metrics}
            record = Record(
                trial_id=plan.trial_id,
                trial=plan.trial,
                status=outcome.status,
                env_id=env_id,
                started_at=started.isoformat(timespec="seconds"),
                wall_s=outcome.wall_s,
                metrics=metrics,
                backend=outcome.backend,
                error=outcome.error,
            )
            if outcome.status == "ok" and (samples := metrics.get("latency_ms")):
                costs.observe(plan, sorted(samples)[len(samples) // 2])
            writer.append(record)
            done += 1
            on_progress(Progress(done=done, total=len(planned), eta_s=eta_s, trial=plan.trial, outcome=outcome))
            yield record

    def is_over() -> bool:
        return stop_at is not None and time.monotonic() >= stop_at

    slots = _slots([unit[0] for unit in sharing], cores)[:max_side_by_side]
    for index, unit in enumerate(alone):
        if is_over():
            return
        waiting_s = sum(costs.wall_s(u[0]) for u in sharing) / max(1, len(slots))
        eta_s = sum(costs.wall_s(u[0]) for u in alone[index:]) + waiting_s
        on_progress(Progress(done=done, total=len(planned), eta_s=eta_s, trial=unit[0].trial))
        yield from write(unit, *run_on(unit, cores, 1), eta_s)

    free = queue.SimpleQueue[Sequence[int]]()
    for slot in slots:
        free.put(slot)

    def run_in_slot(unit: Unit) -> tuple[Unit, datetime.datetime, list[Outcome]] | None:
        slot = free.get()
        try:
            return None if is_over() else (unit, *run_on(unit, slot, len(slots)))
        finally:
            free.put(slot)

    with ThreadPoolExecutor(max_workers=max(1, len(slots))) as pool:
        futures = [pool.submit(run_in_slot, unit) for unit in sharing]
        try:
            for future in as_completed(futures):
                if (ended := future.result()) is None:
                    continue
                waiting = [u for u, f in zip(sharing, futures, strict=True) if not f.done()]
                yield from write(*ended, sum(costs.wall_s(u[0]) for u in waiting) / len(slots))
        finally:
            # Left early, by Ctrl-C say: the pool would otherwise wait for everything it holds.
            if not all(future.done() for future in futures):
                for future in futures:
                    future.cancel()
                executor.cancel()


def _run_unit(
    unit: Unit, cores: Sequence[int], executor: Executor, address_space_bytes: int | None, stop_at: float | None
) -> Outcome:
    """Run in a process of its own, which is told when its time will be up and with whom it shares it."""
    first, *others = ({"trial": plan.trial.as_dict(), "trial_id": plan.trial_id} for plan in unit)
    now, time_s = time.monotonic(), unit[0].time_limit_s
    if stop_at is not None:
        time_s = max(0.0, min(time_s, stop_at - now))
    # The clock is one for all processes of a machine.
    payload = {**first, "cores": list(cores), "deadline": now + time_s, **(unit[0].payload or {})}
    if others:
        payload["companions"] = others
    limits = Limits(time_s=time_s, address_space_bytes=address_space_bytes, whole_device=unit[0].whole_device)
    outcome = executor.run(payload, limits)
    by_the_run = outcome.status == "timeout" and time_s < unit[0].time_limit_s
    if by_the_run and outcome.error is not None and outcome.error["type"] != CutShort.__name__:
        message = "ended because the run's own time was up; run the same command again"
        outcome = replace(outcome, error={**outcome.error, "type": CutShort.__name__, "message": message})
    return outcome


def _slots(sharing: Sequence[PlannedTrial], cores: Sequence[int]) -> list[Sequence[int]]:
    """Disjoint sets of cores, as many as the trials that share the machine allow."""
    if not sharing:
        return []
    width = min(len(cores), max(plan.num_threads or 1 for plan in sharing))
    return [cores[i : i + width] for i in range(0, len(cores) - width + 1, width)]


def refusal(plan: PlannedTrial, costs: CostModel, memory_bytes: int) -> Outcome | None:
    """Why a trial is not run, as the outcome that is recorded instead; None if it is run."""
    if plan.unsupported:
        return Outcome(
            status="unsupported", wall_s=0.0, error={"type": "Unsupported", "message": plan.unsupported, "tail": ""}
        )
    if plan.predicted_peak_bytes is not None and plan.predicted_peak_bytes > memory_bytes:
        message = (
            f"predicted to need {plan.predicted_peak_bytes / 2**30:.1f} GiB where {memory_bytes / 2**30:.1f} GiB "
            "are free; use a machine with more memory or a shorter length"
        )
        return Outcome(status="skipped", wall_s=0.0, error={"type": "PredictedMemory", "message": message, "tail": ""})
    # A guess from the default rate is no ground for refusing: only a measured rate is.
    if (latency_ms := costs.latency_ms(plan)) is not None and costs.knows(plan):
        wall_s = costs.uncapped_wall_s(plan)
        if wall_s > plan.time_limit_s:
            message = (
                f"predicted to take {wall_s:.0f} s, {latency_ms / 1e3:.1f} s a call, where the limit is "
                f"{plan.time_limit_s:g} s; raise time_limit_s in the suite to measure it"
            )
            return Outcome(
                status="skipped", wall_s=0.0, error={"type": "PredictedTime", "message": message, "tail": ""}
            )
    return None


def _predictions(plan: PlannedTrial, costs: CostModel) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    if plan.flops is not None:
        metrics["flops"] = plan.flops
    if plan.predicted_peak_bytes is not None:
        metrics["predicted_peak_bytes"] = plan.predicted_peak_bytes
    latency_ms = costs.latency_ms(plan)
    if latency_ms is not None:
        metrics["predicted_latency_ms"] = round(latency_ms, 4)
        metrics["predicted_from"] = "measured rate" if costs.knows(plan) else "default rate"
    return metrics


def measure_matmul_rate(seconds: float = 0.2) -> float:
    """FLOP/s of a float32 matrix product here: the default rate of a run's first predictions."""
    import torch

    a = torch.ones(384, 384)
    a @ a
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        count += 1
    return count * 2 * 384**3 / (time.perf_counter() - started)
