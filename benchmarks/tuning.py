"""Triton kernels compiled and tuned before a GPU run's trials, so that no trial's limit or clock sees it.

Triton compiles a kernel in each of its configurations, one after the other, and times them all, on the first call of
every process: a minute and more for a train step of Mamba-2. Here child processes compile side by side, one more
times the configurations at :data:`TOKENS`, and trials take over its choices (:mod:`models.ops.autotuning`). The shapes
that Triton specialises otherwise are compiled in the chosen configuration alone, side by side too.
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
from harness.environment import gpu_as_told
from models import family
from models.ops.compiling import ALL_CHOSEN, LEFT_OUT, compile_share, die_with_parent, integer_kind, why_not_compiled

TOKENS = 2**14
"""Enough to fill a GPU; at the lengths where it is not full, launches take the time."""
CHUNK = 256
"""Of mamba-ssm's state space dual: how many chunks there are is one of its kernels' integers."""
USERS = ("ssd", "mamba2", "linear_attention", "retnet")
"""Operators and families of models that run mamba-ssm's Triton kernels; Mamba-3 sees to its own."""
_MAIN = "from benchmarks.tuning import main; main()"


def tune_ahead(trials: Iterable[Trial], *, log: TextIO) -> None:
    """Compile and tune what these trials need, unless that was done before; says in the log how long it took."""
    wanted = tuning_trials(trials)
    if not wanted:
        return
    try:
        key = (str(gpu_as_told()), *(f"{name} {version(name)}" for name in ("mamba-ssm", "torch", "triton")))
    except PackageNotFoundError:
        return  # they run PyTorch's operators
    began = time.monotonic()
    why = why_not_compiled((sys.executable, "-c", _MAIN, json.dumps([t.as_dict() for t in wanted])), key)
    note = f"; not all of it ({why}), so that trials will do it themselves" if why else ""
    print(f"compiled and tuned Triton's kernels in {time.monotonic() - began:.0f} s{note}", file=log)


def tuning_trials(trials: Iterable[Trial]) -> list[Trial]:
    """One trial for each set of kernels that trials run, and one for each kind of shape beside its own.

    A set is an operator's, a block's of a model, or those of a block's prompt and step; its first trial, at batch 1
    and :data:`TOKENS`, is the one that configurations are timed on.
    """
    found: dict[tuple[object, ...], dict[tuple[int, int], Trial]] = {}
    for trial in trials:
        if trial.device != "cuda" or trial.model.rpartition(":")[0] or family(trial.model) not in USERS:
            continue
        sizes = {k: v for k, v in trial.protocol.items() if k in ("width", "d_state", "head_dim")}
        level = "operator" if trial.protocol.get("level") == "operator" else "block"
        generates = trial.kind == "generation"
        wanted = replace(
            trial,
            kind="generation" if generates else "speed",
            task=None,
            seq_len=TOKENS,
            batch=1,
            direction="train" if trial.kind == "training" else trial.direction,
            seed=0,
            protocol={"level": level, **sizes},
        )
        key = (family(trial.model), generates, wanted.direction, wanted.dtype, level, *sizes.values())
        shapes = found.setdefault(key, {(1, 16): wanted})
        kinds = (integer_kind(trial.batch), integer_kind(trial.seq_len // CHUNK))
        if kinds not in shapes:
            batch, chunks = (k or 8 for k in kinds)
            shapes[kinds] = replace(shapes[1, 16], batch=batch, seq_len=chunks * CHUNK)
    return [trial for shapes in found.values() for trial in shapes.values()]


def main(arguments: Sequence[str] | None = None) -> None:
    """In a child process: run the calls that are timed, and keep what was chosen; with i and n only compile a share.

    Exits with :data:`models.ops.compiling.LEFT_OUT` where the share left something out, and with
    :data:`models.ops.compiling.ALL_CHOSEN` where there was nothing to choose.
    """
    import torch

    from models.ops.autotuning import autotuned_kernels, choices_path, choices_remembered, tune_briefly

    die_with_parent()
    torch.set_float32_matmul_precision("high")
    importlib.import_module("benchmarks.preload_cuda")
    specification, *share = sys.argv[1:] if arguments is None else arguments
    trials = [Trial.from_dict(described) for described in json.loads(specification)]
    with choices_remembered(choices_path()):
        if share:
            mine = compile_share(list(autotuned_kernels().values()), *map(int, share))
        else:
            tune_briefly(autotuned_kernels())
            trials = [trial for trial in trials if (trial.batch, trial.seq_len) == (1, TOKENS)]
        for trial in trials:
            run_kernels(trial)
            torch.cuda.synchronize()
    if share and (mine.left_out or mine.all_chosen):
        sys.exit(LEFT_OUT if mine.left_out else ALL_CHOSEN)


def run_kernels(trial: Trial) -> None:
    """What one of :func:`tuning_trials` stands for, once."""
    import torch

    from benchmarks.workloads import DTYPES, build_workload, cut_model

    if trial.kind != "generation":
        build_workload(trial).call()
        return
    dtype = DTYPES[trial.dtype]
    with torch.no_grad():
        model = cut_model(trial, 1, torch.float32)
        (block,) = model.blocks
        block.init_weights(torch.Generator().manual_seed(trial.seed), num_layers=1)
        model.to(trial.device).cast(dtype)
        state = block.mixer.init_state(trial.batch, trial.seq_len + 1, device=torch.device(trial.device), dtype=dtype)
        width = block.norm.weight.shape[0]
        x_BLD = torch.randn(trial.batch, trial.seq_len, width, device=trial.device, dtype=dtype)
        block.prefill(x_BLD, state)
        block.step(x_BLD[:, -1], state)
