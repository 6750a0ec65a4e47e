"""What a run plans: trials with their costs, and which of them share a process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.supervisor import Outcome
from harness.trials import Trial


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial, its identity, and what it is expected to cost."""

    trial: Trial
    trial_id: str
    time_limit_s: float
    predicted_peak_bytes: int | None = None
    flops: float | None = None
    """Of one timed call."""
    calls: float = 1.0
    """How many such calls the trial makes at the least, checks and memory passes included."""
    extra_s: float = 0.0
    """Time that does not follow from calls: start-up, data, evaluation."""
    speed_key: str = ""
    """Trials with one key run the same code, so that one's rate predicts another's."""
    unsupported: str = ""
    """Why the trial cannot be run at all; known when it was planned."""
    num_threads: int | None = None
    """CPU threads of a trial that may share the machine with its like, one set of cores each; None:
    all cores and the machine to itself."""
    together: str = ""
    """Trials with one key, at most ``max_together`` of them, may run in one process; "": none."""
    max_together: int = 1
    whole_device: bool = False
    """Whether it fills a GPU, so that nothing else may hold any of its memory."""
    payload: Mapping[str, Any] | None = None
    """What the worker needs beside the trial (data folders); not part of its identity."""


Unit = Sequence[PlannedTrial]
"""What one process runs: a trial, or several that may run together."""


def units_of(planned: Sequence[PlannedTrial]) -> list[Unit]:
    """In the order of their first trials."""
    units: list[list[PlannedTrial]] = []
    open_units: dict[str, list[PlannedTrial]] = {}
    for plan in planned:
        unit = open_units.get(plan.together) if plan.together else None
        if unit is None or len(unit) >= plan.max_together:
            unit = open_units[plan.together] = []
            units.append(unit)
        unit.append(plan)
    return list(units)


def share_of(outcome: Outcome, plan: PlannedTrial, *, num_together: int) -> Outcome:
    """One trial's share of what its process left: its own metrics, and its own status where it got that far."""
    if num_together == 1:
        return outcome
    own = outcome.metrics.get("by_trial", {}).get(plan.trial_id, {})
    status = own.get("status", outcome.status)
    if "status" not in own and status == "ok":
        message = "the process ended well but said nothing of this trial"
        return replace(outcome, status="error", metrics={}, error={"type": "NoOutcome", "message": message, "tail": ""})
    error = own.get("error") if "status" in own else outcome.error
    return replace(outcome, status=status, metrics=own.get("metrics", {}), backend=own.get("backend", {}), error=error)
