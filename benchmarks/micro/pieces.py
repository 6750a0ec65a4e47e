"""The trials that micro benchmarks stand for, and what a record needs to know of each.

pytest-benchmark measures; its own comparison is not the gate. Each benchmark carries its trial, so that
:mod:`benchmarks.micro.import_json` can make records that `seqbench gate` judges by the suite's rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.speed import verify
from benchmarks.workloads import build_workload
from harness import Direction, Trial
from harness.code_version import code_version

ROOT = Path(__file__).parents[2]
LEVEL = "micro"
"""Trials of their own: another clock than the suites', and no sampling budget."""
_CODE = ("models", "harness", "tasks", "benchmarks/micro", "benchmarks/operators.py", "benchmarks/workloads.py")


def micro_trial(
    piece: str,
    *,
    seq_len: int,
    batch: int = 1,
    direction: Direction = "forward",
    task: str | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> Trial:
    """A trial of kind ``speed`` and level ``micro``; ``piece`` stands where a model's name does."""
    return Trial(
        kind="speed", model=piece, task=task, seq_len=seq_len, batch=batch, dtype="float32", direction=direction,
        device="cpu", seed=0, protocol={"level": LEVEL, **(protocol or {})},
    )  # fmt: skip


def operator_call(trial: Trial) -> tuple[Callable[[], object], dict[str, Any]]:
    """An operator's call, and the kernels that run in it. Raises WrongOutput for one that computes something else."""
    known = replace(trial, protocol={**trial.protocol, "level": "operator"})
    workload = build_workload(known)
    return workload.call, dict(verify(known, workload).backends)


def measure(
    benchmark: BenchmarkFixture, trial: Trial, call: Callable[[], object], backend: Mapping[str, Any] | None = None
) -> None:
    """Time ``call``; the JSON then says which trial it was, of which code, with which kernels."""
    benchmark.group = trial.model
    benchmark.extra_info |= {
        "trial_id": trial.trial_id(code_version([ROOT / name for name in _CODE])),
        "trial": trial.as_dict(),
        "backend": {**(backend or {}), "threads": torch.get_num_threads(), "clock": "perf_counter"},
    }
    call()  # caches are warm and kernels built before the first round
    benchmark(call)
