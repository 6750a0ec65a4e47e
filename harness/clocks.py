"""Clocks with names: CUDA events on a GPU, ``perf_counter_ns`` on a CPU.

A sample is one number that can be compared with others of the same trial: the mean time of a call
over a short run of calls, long enough that the clock's own cost (under 0.1 us) cannot show.

A GPU works behind the host, which issues calls and runs ahead. Where issuing takes as long as the
work, the figure is the host's: such a timing is marked as launch-bound.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

MIN_SAMPLES = 5
"""Fewer are recorded as they are and flagged: with five, a median has two neighbours on each side."""
MAX_SAMPLES = 30
_SHORTEST_SAMPLE_MS = {"cpu": 2.0, "cuda": 20.0}
"""A GPU that was waited for stands idle until the first kernel of a sample reaches it: 0.05 to 0.12 ms, which were up
to 5 % of samples of 2 ms (beside ``triton.testing.do_bench``, whose device is kept busy meanwhile)."""
_MORE_WARM_UP_CALLS = 2
LAUNCH_BOUND_SHARE = 0.9
"""Of the device's time: from there on the host's time decides. A call of more than about a thousand kernels
fills the queue of launches and waits for the device; it is marked as well, since the two cannot be told apart."""
NEAR_LAUNCH_BOUND_SHARE = 0.5
"""Of the device's time: from there on the host may decide, and the device's own time is worth asking for."""
_REPLAYED_MS, _MOST_REPLAYED_CALLS = 2.0, 128
"""Of calls that one graph holds: replaying it costs some microseconds, which so many calls share."""
L2_POLICY = "warm: every call works on the same buffers, and nothing is flushed between calls"
"""Of the last-level cache, as a training or decoding step finds it. What exceeds the cache is not served from it."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the clock saw. All times in milliseconds a call."""

    samples_ms: list[float]
    calls_per_sample: int
    warm_up_calls: int
    """Untimed calls just before the first sample; 0 where earlier passes had to do, see :func:`time_calls`."""
    clock: str
    host_ms: list[float] | None = None
    """Host time to issue one call to an idle device; None where the call is the host's own work."""
    l2_policy: str = L2_POLICY

    @property
    def few_samples(self) -> bool:
        return len(self.samples_ms) < MIN_SAMPLES

    @property
    def launch_bound(self) -> bool | None:
        """Whether issuing a call takes as long as the device works on it; None without a device."""
        return is_launch_bound(self.host_ms, self.samples_ms) if self.host_ms else None

    @property
    def near_launch_bound(self) -> bool:
        """Whether issuing a call takes half as long as the device works on it, or longer."""
        return bool(self.host_ms) and is_launch_bound(self.host_ms or (), self.samples_ms, NEAR_LAUNCH_BOUND_SHARE)


def is_launch_bound(host_ms: Sequence[float], samples_ms: Sequence[float], share: float = LAUNCH_BOUND_SHARE) -> bool:
    """Whether the host's time decides: see :data:`LAUNCH_BOUND_SHARE`."""
    return statistics.median(host_ms) >= share * statistics.median(samples_ms)


def time_calls(call: Callable[[], object], device: torch.device, *, budget_s: float, warmed_up: bool = False) -> Timing:
    """Time ``call`` within about ``budget_s`` seconds, warm-up included.

    One call at least warms up, and one sample at least is taken, however long they take; there are
    :data:`MIN_SAMPLES` or more where they fit the budget. Caches are warm, see :data:`L2_POLICY`.

    A sample of one call tells the host's time as well. Short calls, of which a sample needs many, are issued a few
    times more for it, within a quarter of the budget.

    Args:
        warmed_up: earlier passes ran this very call, with this allocator. Then a first call that outlasts the whole
            budget is itself the one sample, and ``warm_up_calls`` is 0.
    """
    began = time.perf_counter_ns()
    first, warm_up_calls = _run(call, 1, device), 1
    if warmed_up and first.total_ms / 1e3 > budget_s:
        return _timing([first], 1, device, warm_up_calls=0)
    per_call_ms = first.total_ms
    while warm_up_calls <= _MORE_WARM_UP_CALLS:
        if _elapsed_s(began) + (1 + MIN_SAMPLES) * per_call_ms / 1e3 > budget_s:
            break
        per_call_ms = _run(call, 1, device).total_ms
        warm_up_calls += 1
    calls = calls_per_sample(per_call_ms, device.type, budget_s=budget_s)
    runs: list[_Run] = []
    while len(runs) < MAX_SAMPLES:
        runs.append(_run(call, calls, device))
        if _elapsed_s(began) + runs[-1].total_ms / 1e3 > budget_s:
            break
    timing = _timing(runs, calls, device, warm_up_calls=warm_up_calls)
    if calls == 1 or device.type == "cpu":
        return timing
    return replace(timing, host_ms=issue_times_ms(call, torch.cuda.synchronize, budget_s=budget_s / 4))


class Replays(NamedTuple):
    """The device's own time for a call, without the host's for launching it."""

    samples_ms: list[float]
    calls: int
    """That one graph holds; a sample is of several replays of it."""


def time_replays(call: Callable[[], object], device: torch.device, *, per_call_ms: float, budget_s: float) -> Replays:
    """Time ``call`` on a GPU as :func:`time_calls` does, some calls captured in a CUDA graph that is replayed.

    Args:
        call: has run before; always the same work on the same buffers.
        per_call_ms: about how long one takes as it is issued.

    Raises:
        RuntimeError: a call that cannot be captured: one that asks the device for a value, say.
    """
    calls = replayed_calls(per_call_ms)
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        call()  # libraries have a workspace for each stream
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    timing = time_calls(graph.replay, device, budget_s=budget_s)
    return Replays([sample / calls for sample in timing.samples_ms], calls)


def replayed_calls(per_call_ms: float) -> int:
    """How many calls a graph holds."""
    return max(1, min(round(_REPLAYED_MS / max(per_call_ms, 1e-6)), _MOST_REPLAYED_CALLS))


def _timing(runs: "list[_Run]", calls: int, device: torch.device, *, warm_up_calls: int) -> Timing:
    return Timing(
        samples_ms=[run.total_ms / calls for run in runs],
        calls_per_sample=calls,
        warm_up_calls=warm_up_calls,
        clock="cuda_events" if device.type == "cuda" else "perf_counter_ns",
        host_ms=[run.issue_ms for run in runs if run.issue_ms is not None] or None,
    )


def calls_per_sample(per_call_ms: float, device_type: str, *, budget_s: float) -> int:
    """So many that a sample is long enough for its clock, unless :data:`MIN_SAMPLES` would not fit the budget then."""
    longest_ms = 1e3 * budget_s / (_MORE_WARM_UP_CALLS + MIN_SAMPLES)
    return max(1, round(min(_SHORTEST_SAMPLE_MS[device_type], longest_ms) / max(per_call_ms, 1e-6)))


def issue_times_ms(
    call: Callable[[], object], synchronize: Callable[[], object], *, budget_s: float, most: int = MIN_SAMPLES
) -> list[float]:
    """How long the host takes to issue a call, each to an idle device: one to ``most`` times.

    ``budget_s`` covers the device's work as well, which is waited for.
    """
    began = time.perf_counter_ns()
    samples_ms: list[float] = []
    while len(samples_ms) < most and (not samples_ms or _elapsed_s(began) < budget_s):
        synchronize()
        started = time.perf_counter_ns()
        call()
        samples_ms.append((time.perf_counter_ns() - started) / 1e6)
    synchronize()
    return samples_ms


def time_once_ms(call: Callable[[], object], device: torch.device) -> float:
    """One call by the device's own clock."""
    return _run(call, 1, device).total_ms


def time_and_issue_ms(call: Callable[[], object], device: torch.device) -> tuple[float, float | None]:
    """One call by the device's own clock, and the host's time to issue it to the idle device; None without one."""
    run = _run(call, 1, device)
    return run.total_ms, run.issue_ms


def _elapsed_s(began_ns: int) -> float:
    return (time.perf_counter_ns() - began_ns) / 1e9


class _Run(NamedTuple):
    """Some calls one after another, which find the device idle."""

    total_ms: float
    issue_ms: float | None
    """Until the host had issued the last; None where the calls are the host's own work."""


def _run(call: Callable[[], object], calls: int, device: torch.device) -> _Run:
    return (_cuda_run if device.type == "cuda" else _cpu_run)(call, calls)


def _cpu_run(call: Callable[[], object], calls: int) -> _Run:
    started = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return _Run((time.perf_counter_ns() - started) / 1e6, None)


def _cuda_run(call: Callable[[], object], calls: int) -> _Run:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    issuing = time.perf_counter_ns()
    for _ in range(calls):
        call()
    issue_ms = (time.perf_counter_ns() - issuing) / 1e6
    end.record()
    end.synchronize()
    return _Run(start.elapsed_time(end), issue_ms)
