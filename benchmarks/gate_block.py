"""One block of the gate's timing tier: a fresh process that times a tree's own code. ``python -P gate_block.py PLAN``.

This file is copied out of the gate's checkout and run on either tree, which needs no code of the gate: of the tree it
imports ``harness.Trial`` and ``benchmarks.workloads.build_workload``, and, where they exist,
``benchmarks.speed.verify`` and ``harness.outcomes.is_out_of_memory``.

A plan is a JSON file::

    tree         folder of the tree, which must be where the imports come from
    out          file that gets one JSON line for every step, so that a killed process says how far it came
    trials       {name: specification of a speed trial on the CPU}
    calls        {name: calls of a sample}; what is missing is calibrated to sample_ms
    sample_ms    length of a sample
    num_samples  samples of a block for each benchmark and factor
    factors      [1.0], or the slowdowns to inject beside it
    verify       whether outputs are checked first
    core         the CPU that the process is pinned to

Samples of all benchmarks take turns, so that a disturbance spreads over all of them.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Call = Callable[[], object]
_WARM_UP_CALLS = 3


def sample_ms(call: Call, calls: int, factor: float) -> float:
    """The mean time of ``calls`` calls, in ms, made slower by ``factor`` through real work.

    The additional share is made of whole calls as far as they go; what is left of it is a busy loop for that share of
    the time that the sample's own calls took.
    """
    extra = (factor - 1) * calls
    more_calls = int(extra + 1e-9)
    call()  # other benchmarks have had the caches since the last sample
    started = time.perf_counter_ns()
    for _ in range(calls):
        call()
    rest_ns = (time.perf_counter_ns() - started) * max(0.0, extra - more_calls) / calls
    for _ in range(more_calls):
        call()
    until = time.perf_counter_ns() + rest_ns
    while rest_ns > 1 and time.perf_counter_ns() < until:
        pass
    return (time.perf_counter_ns() - started) / calls / 1e6


def calibrate(call: Call, target_ms: float) -> int:
    """How many calls last about ``target_ms``."""
    once_ms = []
    for _ in range(_WARM_UP_CALLS):
        started = time.perf_counter_ns()
        call()
        once_ms.append((time.perf_counter_ns() - started) / 1e6)
    return max(1, round(target_ms / max(min(once_ms), 1e-4)))


def build(name: str, plan: Mapping[str, Any], trial_class: Any, build_workload: Any) -> tuple[Call, int]:
    """A benchmark's call, warm and checked, and its calls of a sample. Raises what the tree raises."""
    trial = trial_class(**plan["trials"][name])
    workload = build_workload(trial)
    if plan["verify"]:
        try:
            from benchmarks.speed import verify
        except ImportError:  # a tree without that check is compared without it
            pass
        else:
            verify(trial, workload)
    calls = calibrate(workload.call, plan["sample_ms"])
    return workload.call, plan["calls"].get(name) or calls


def describe(error: BaseException) -> dict[str, str]:
    """``status`` and ``message`` of a benchmark that cannot run."""
    try:
        from harness.outcomes import is_out_of_memory
    except ImportError:
        out_of_memory = isinstance(error, MemoryError)
    else:
        out_of_memory = is_out_of_memory(error)
    status = "oom" if out_of_memory else getattr(error, "status", "error")
    return {"status": str(status), "message": f"{type(error).__name__}: {error}"}


def time_all(calls: Mapping[str, tuple[Call, int]], plan: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """``{name: {factor: samples in ms}}``; the factors' order turns from one sample to the next."""
    factors = plan["factors"]
    samples: dict[str, dict[str, list[float]]] = {name: {str(f): [] for f in factors} for name in calls}
    gc.collect()
    gc.disable()
    for turn in range(plan["num_samples"]):
        shift = turn % len(factors)
        for name, (call, count) in calls.items():
            for factor in factors[shift:] + factors[:shift]:
                samples[name][str(factor)].append(sample_ms(call, count, factor))
    return samples


def main(plan_path: str) -> int:
    """Run a plan; 0 also where benchmarks failed, since the output says so."""
    plan = json.loads(Path(plan_path).read_text())
    os.sched_setaffinity(0, {plan["core"]})
    tree = Path(plan["tree"]).resolve()
    with open(plan["out"], "a", buffering=1) as out:
        import harness
        from benchmarks.workloads import build_workload

        imported = Path(str(harness.__file__)).resolve()
        if not imported.is_relative_to(tree):
            raise RuntimeError(f"harness was imported from {imported}, not from the tree {tree}")
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
        calls: dict[str, tuple[Call, int]] = {}
        for name in plan["trials"]:
            print(json.dumps({"begin": name}), file=out)
            try:
                calls[name] = build(name, plan, harness.Trial, build_workload)
            except Exception as error:  # noqa: BLE001 - whatever a tree raises is that benchmark's end, with its status
                print(json.dumps({"failed": name, **describe(error)}), file=out)
        print(json.dumps({"begin": ""}), file=out)
        samples = time_all(calls, plan)
        print(json.dumps({"samples": samples, "calls": {name: count for name, (_, count) in calls.items()}}), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
