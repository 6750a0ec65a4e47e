"""Clocks with names: CUDA events on a GPU, ``perf_counter_ns`` on a CPU.

A sample is one number that can be compared with others of the same trial: the mean time of a call
over a short run of calls, long enough that the clock's own cost (under 0.1 us) cannot show.

A GPU works behind the host, which issues calls and runs ahead. Where issuing takes as long as the
work, the figure is the host's: such a timing is marked as launch-bound.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
L2_POLICY = "warm: every call works on the same buffers, and nothing is flushed between calls"
"""Of the last-level cache, as a training or decoding step finds it. What exceeds the cache is not served from it."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the clock saw. All times in milliseconds a call."""

    samples_ms: list[float]
    calls_per_sample: int
    warm_up_calls: int
    """Untimed calls just before the first sample."""
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


def is_launch_bound(host_ms: Sequence[float], samples_ms: Sequence[float]) -> bool:
    """Whether the host's time decides: see :data:`LAUNCH_BOUND_SHARE`."""
    return statistics.median(host_ms) >= LAUNCH_BOUND_SHARE * statistics.median(samples_ms)


def time_calls(call: Callable[[], object], device: torch.device, *, budget_s: float) -> Timing:
    """Time ``call`` within about ``budget_s`` seconds, warm-up included; on CUDA a quarter more for the host's time.

    One call at least warms up, and one sample at least is taken, however long they take; there are
    :data:`MIN_SAMPLES` or more where they fit the budget. Caches are warm, see :data:`L2_POLICY`.
    """
    clock = _cuda_run_ms if device.type == "cuda" else _cpu_run_ms
    began = time.perf_counter_ns()
    per_call_ms, warm_up_calls = clock(call, 1), 1
    while warm_up_calls <= _MORE_WARM_UP_CALLS:
        if _elapsed_s(began) + (1 + MIN_SAMPLES) * per_call_ms / 1e3 > budget_s:
            break
        per_call_ms = clock(call, 1)
        warm_up_calls += 1
    calls = calls_per_sample(per_call_ms, device.type, budget_s=budget_s)
    samples_ms: list[float] = []
    while len(samples_ms) < MAX_SAMPLES:
        samples_ms.append(clock(call, calls) / calls)
        if _elapsed_s(began) + samples_ms[-1] * calls / 1e3 > budget_s:
            break
    return Timing(
        samples_ms=samples_ms,
        calls_per_sample=calls,
        warm_up_calls=warm_up_calls,
        clock="cuda_events" if device.type == "cuda" else "perf_counter_ns",
        host_ms=issue_times_ms(call, torch.cuda.synchronize, budget_s=budget_s / 4) if device.type == "cuda" else None,
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
    return (_cuda_run_ms if device.type == "cuda" else _cpu_run_ms)(call, 1)


def _elapsed_s(began_ns: int) -> float:
    return (time.perf_counter_ns() - began_ns) / 1e9


def _cpu_run_ms(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - started) / 1e6


def _cuda_run_ms(call: Callable[[], object], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
