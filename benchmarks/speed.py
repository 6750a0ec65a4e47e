"""The ``speed`` benchmark: is it right, what does it hold, how long does it take. In that order."""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.workloads import Workload, build_workload
from harness import Trial, WrongOutput
from harness.clocks import MIN_SAMPLES, Timing, time_calls, time_once_ms, time_replays
from harness.gpu_clocks import ClockReading
from harness.memory import allocator_peak, keep_freed_memory, load_libraries, memory_of, touch_memory
from harness.worker import Report
from models.ops.context import OpReport, observing

_MOST_SLACK_BYTES = 2**31
"""A convolution by FFT touched fresh pages in its third call still where half as much again as it holds was touched,
and none where twice as much was. Pages cost a virtual machine up to a second a GiB, which bounds it."""

TOLERANCES = {"float32": 1e-3, "float64": 1e-8, "bfloat16": 3e-2, "float16": 1e-2}
"""Largest relative error of a checked slice. Choices with room above
what `quick` saw up to 2^20 tokens: under 1e-6 in float32 on a CPU, 6e-3 in bfloat16 on an H200; far
below what a wrong kernel gives."""
TF32_TOLERANCE = 5e-3
"""Of float32 on CUDA: mamba-ssm's state space dual multiplies it in TF32, and is 1.5e-3 off on an H200."""

CHECKED_TOKENS = 2**15
MIN_CHECKED_CALLS = 6
"""The calls of an operator are checked up to so many tokens in all, and never fewer calls than these: of a model of 24
blocks every one up to 1K tokens, and from 8K on the first, the last and four between. Blocks run one kernel on one
shape, so that what breaks at a length breaks in each; of a million tokens a reference takes four times as long as the
kernel."""

MIN_CALLS = {"cpu": {"forward": 7.0, "train": 9.0}, "cuda": {"forward": 3.5, "train": 3.0}}
"""What a trial costs at the least, in calls. On a GPU a first one, on which kernels are chosen; the check, which an
operator's forward does without, and one sample. On a CPU a memory pass (one call, or two train steps) on fresh pages,
which takes about 2.5 times as long, touching pages for the samples, the check, a warm-up and one sample."""


def run_speed(trial: Trial, _context: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Measure one ``speed`` trial; see the record's contract for the units.

    ``checked_calls`` says of each operator how many of its calls were compared with a reference, of how many. Where an
    operator's call takes the host half as long as the device or longer, ``replay_ms`` is its time without launches, as
    calls captured in a CUDA graph take (``calls_per_replay`` of them in one), or ``replay_error`` says why not.

    On a GPU the allocator counts as it goes, which takes no time, so that ``peak_alloc_bytes`` is of the timed calls
    themselves; ``peak_reserved_bytes`` is of the first call. On a CPU counting is slow, and a pass of its own.
    """
    device = torch.device(trial.device)
    on_gpu = device.type == "cuda"
    built: list[Workload] = []
    call_ms: list[float] = []
    phases_s: dict[str, float] = {}
    ran_first: list[OpReport] = []
    # One call of a million tokens can take seconds. What an operator's first gave is held until it is checked; what all
    # of a model's give would not fit, and on a CPU it would count as memory.
    checks_first = on_gpu and trial.direction == "forward" and trial.protocol["level"] == "operator"

    def build_and_call() -> None:
        built.append(build_workload(trial))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)  # weights are drawn in float32, whatever they are cast to
        with observing(verify=checks_first, later=checks_first) as ran:
            call_ms.append(time_once_ms(built[0].call, device))
        ran_first.append(ran)
        if trial.direction == "train" and not on_gpu:
            built[0].call()  # the first call that meets the optimizer's state

    if on_gpu:
        load_libraries(device)
    held_before = torch.cuda.memory_allocated(device) if on_gpu else 0
    with phase("first_call" if on_gpu else "memory", phases_s):
        metrics: dict[str, Any] = dict(memory_of(build_and_call, device))
    metrics["first_call_ms"] = round(call_ms[0], 3)
    (workload,) = built
    allocator = keep_freed_memory()
    if not on_gpu:
        with phase("touch", phases_s):
            # Beside what a call holds there is what lies between its blocks, and what the last call has left.
            held = metrics["peak_alloc_bytes"]
            touch_memory(held + min(held, _MOST_SLACK_BYTES))
    # Asked for now, so that the check's work covers the asking.
    clocks_before = ClockReading() if on_gpu else None
    with phase("check", phases_s):
        checked = verify(trial, workload, ran_first.pop())
    metrics["checked_calls"] = {op: f"{count} of {checked.calls[op]}" for op, count in checked.checked_calls.items()}
    metrics["max_relative_error"] = max(checked.errors.values(), default=0.0)
    backend = describe_backend(checked, workload.precision, device) | {"host_allocator": allocator}
    metrics |= workload.sizes()
    if workload.cost is not None:
        metrics["cost"] = workload.cost.as_dict()
    if clocks_before is not None:
        metrics["gpu_clocks"] = {"before": clocks_before.read()}
    report({**metrics, "backend": backend})

    with phase("timing", phases_s), allocator_peak(device, above=held_before) as peak:
        # A CPU's allocator was changed after the memory pass, and the check has no backward to warm up.
        timing = time_calls(workload.call, device, budget_s=trial.protocol["sample_budget_s"], warmed_up=on_gpu)
    metrics |= peak
    metrics |= _timing_metrics(trial, workload, timing)
    if trial.protocol["level"] == "operator" and timing.near_launch_bound:
        with phase("replays", phases_s):
            metrics |= _replay_metrics(trial, workload, timing)
    if clocks_before is not None:
        metrics["gpu_clocks"]["after"] = ClockReading().read()
    metrics["phases_s"] = phases_s
    return {"metrics": metrics, "backend": backend | {"clock": timing.clock}}


def _timing_metrics(trial: Trial, workload: Workload, timing: Timing) -> dict[str, Any]:
    median_s = statistics.median(timing.samples_ms) / 1e3
    metrics: dict[str, Any] = {
        "latency_ms": [round(sample, 6) for sample in timing.samples_ms],
        "calls_per_sample": timing.calls_per_sample,
        "warm_up_calls": timing.warm_up_calls,
        "l2_policy": timing.l2_policy,
    }
    if workload.rate_of is not None:
        amount, unit = workload.rate_of
        metrics |= {"rate": amount / median_s, "rate_unit": unit}
    else:
        metrics["tokens_per_s"] = trial.batch * trial.seq_len / median_s
    if timing.few_samples:
        metrics["few_samples"] = f"{len(timing.samples_ms)} of {MIN_SAMPLES}: a call outlasts the sampling budget"
    if timing.host_ms is not None:
        metrics |= {
            "host_ms": [round(sample, 6) for sample in timing.host_ms],
            "launch_bound": bool(timing.launch_bound),
        }
    return metrics


def _replay_metrics(trial: Trial, workload: Workload, timing: Timing) -> dict[str, Any]:
    """The device's own time of a call whose launches take about as long; or why it cannot be had."""
    issued_ms = statistics.median(timing.samples_ms)
    try:
        replays = time_replays(
            workload.call,
            torch.device(trial.device),
            per_call_ms=issued_ms,
            budget_s=trial.protocol["sample_budget_s"] / 2,
        )
    except RuntimeError as error:  # what was measured before stands
        return {"replay_error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    return {"replay_ms": [round(sample, 6) for sample in replays.samples_ms], "calls_per_replay": replays.calls}


@contextmanager
def phase(name: str, into: dict[str, float]) -> Iterator[None]:
    """Note how many seconds the block took."""
    began = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - began, 6)


def verify(trial: Trial, workload: Workload, first: OpReport | None = None) -> OpReport:
    """Compare slices of every operator's output with references, at this very length.

    Args:
        first: of a call before. Its checks are run, where it has any that wait; else a forward runs, and of long ones
            :func:`evenly_spread` calls are compared, of as many as ran then. Of an operator that did not every call is.

    Raises:
        WrongOutput: an error beyond the dtype's tolerance; then no speed is given.
    """
    if first is not None and first.waiting:
        checked = first
        checked.run_waiting()
    else:
        most = max(MIN_CHECKED_CALLS, CHECKED_TOKENS // (trial.batch * trial.seq_len))
        chosen = {op: evenly_spread(total, most) for op, total in (first.calls if first else {}).items()}
        with observing(verify=lambda op, index: op not in chosen or index in chosen[op]) as checked:
            workload.forward()
    limit = operator_tolerance(trial)
    for operator, error in checked.errors.items():
        if not error <= limit:  # a NaN is not below any limit
            raise WrongOutput(
                f"{operator} ({checked.kernel_of(operator)}) differs from its reference by {error:.3g} at "
                f"seq_len={trial.seq_len}, where {trial.dtype} allows {limit:g}; no speed is given"
            )
    return checked


def evenly_spread(total: int, most: int) -> frozenset[int]:
    """At most ``most`` (2 or more) of ``range(total)``, the first and the last among them."""
    if total <= most:
        return frozenset(range(total))
    return frozenset(round(i * (total - 1) / (most - 1)) for i in range(most))


def operator_tolerance(trial: Trial) -> float:
    """The largest relative error that a trial's operators may have."""
    return TF32_TOLERANCE if (trial.device, trial.dtype) == ("cuda", "float32") else TOLERANCES[trial.dtype]


def describe_backend(checked: OpReport, precision: str, device: torch.device) -> dict[str, Any]:
    """Which kernels ran and under which switches."""
    backend: dict[str, Any] = {
        **checked.backends,
        "precision": precision,
        "compiled": False,
        "cuda_graph": False,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        backend["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return backend
