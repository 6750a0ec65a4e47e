"""Triton kernels compiled and tuned before a GPU run's trials, so that no trial's limit or clock sees it.

Triton compiles a kernel in each of its configurations, one after the other, and times them all, on the first call of
every process: a minute and more for a train step of Mamba-2. Here child processes compile side by side, one more
times the configurations at :data:`TOKENS`, and trials take over its choices (:mod:`models.ops.autotuning`). Shapes that
Triton specialises otherwise are still compiled in a trial, but in the chosen configuration alone.
"""

import importlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from harness import Trial
from models import family
from models.ops.compiling import compile_share, die_with_parent, why_not_compiled

TOKENS = 2**14
"""Enough to fill a GPU; at the lengths where it is not full, launches take the time."""
USERS = ("ssd", "mamba2", "linear_attention", "retnet")
"""Operators and families of models that run mamba-ssm's Triton kernels; Mamba-3 sees to its own."""
_MAIN = "from benchmarks.tuning import main; main()"


def tune_ahead(trials: Iterable[Trial], *, gpu: str, log: TextIO) -> None:
    """Compile and tune what these trials need, unless that was done before; says in the log how long it took."""
    wanted = tuning_trials(trials)
    if not wanted:
        return
    try:
        key = (gpu, *(f"{name} {version(name)}" for name in ("mamba-ssm", "torch", "triton")))
    except PackageNotFoundError:
        return  # they run PyTorch's operators
    began = time.monotonic()
    why = why_not_compiled((sys.executable, "-c", _MAIN, json.dumps([t.as_dict() for t in wanted])), key)
    note = f"; not all of it ({why}), so that trials will do it themselves" if why else ""
    print(f"compiled and tuned Triton's kernels in {time.monotonic() - began:.0f} s{note}", file=log)


def tuning_trials(trials: Iterable[Trial]) -> list[Trial]:
    """One trial for each set of kernels that trials run: an operator, or a block of a model, at batch 1."""
    found: dict[tuple[object, ...], Trial] = {}
    for trial in trials:
        if trial.device != "cuda" or trial.model.rpartition(":")[0] or family(trial.model) not in USERS:
            continue
        sizes = {k: v for k, v in trial.protocol.items() if k in ("width", "d_state", "head_dim")}
        level = "operator" if trial.protocol.get("level") == "operator" else "block"
        wanted = replace(
            trial,
            kind="speed",
            task=None,
            seq_len=TOKENS,
            batch=1,
            direction="train" if trial.kind == "training" else trial.direction,
            seed=0,
            protocol={"level": level, **sizes},
        )
        found.setdefault((family(trial.model), wanted.direction, wanted.dtype, level, *sizes.values()), wanted)
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """In a child process: run the trials' calls and keep what was chosen; with i and n only compile a share."""
    import torch

    from benchmarks.workloads import build_workload
    from models.ops.autotuning import autotuned_kernels, choices_path, choices_remembered, tune_briefly

    die_with_parent()
    torch.set_float32_matmul_precision("high")
    importlib.import_module("benchmarks.preload_cuda")
    specification, *share = sys.argv[1:] if arguments is None else arguments
    if share:
        compile_share(list(autotuned_kernels().values()), *map(int, share))
    else:
        tune_briefly(autotuned_kernels())
    with choices_remembered(choices_path()):
        for described in json.loads(specification):
            build_workload(Trial.from_dict(described)).call()
            torch.cuda.synchronize()
