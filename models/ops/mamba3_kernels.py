"""mamba-ssm's fused operator for Mamba-3's recurrence: where it can run, and its compilation.

It rounds its inputs to bfloat16 whatever it is given, and keeps the rotations' angles, up to 2 pi, in bfloat16: so it
serves bfloat16 alone, in which it lies about 1e-2 from the portable form. In wider types its results would be
wrong by their standards.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from models.ops.compiling import compile_share, die_with_parent, why_not_compiled
from models.ops.context import is_fake, why_missing

CHUNK = 64  # what the package recommends for one input and output
PERIOD = 16 * CHUNK
"""Kernels are specialised by whether 16 divides a size or a stride, and by which are 1: lengths that lie this far apart
share theirs, unless they are short."""
_PACKAGE = "mamba_ssm.ops.triton.mamba3"
_MAIN = "from models.ops.mamba3_kernels import main; main()"


def import_fused() -> Callable[..., Tensor]:
    """The operator; see :func:`unavailable` for whether there is one."""
    from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined

    return mamba3_siso_combined


def unavailable(projected_BLZ: Tensor, options: Mapping[str, int], *, heads: int) -> str:
    """Why the operator cannot run on a projection, or "". Compiles it, if need be, in this dtype and direction.

    Args:
        projected_BLZ: on a GPU, or fake.
        options: of :class:`models.mamba3.Mamba3`: d_model, d_state, expand, head_dim.
    """
    B, L, _ = projected_BLZ.shape
    N, P = options["d_state"], options["head_dim"]
    if projected_BLZ.dtype != torch.bfloat16:
        return f"it would round {str(projected_BLZ.dtype).removeprefix('torch.')} to bfloat16"
    for name, width in (("d_state", N), ("head_dim", P)):
        if width < 16 or width & (width - 1):
            return f"its blocks are powers of two from 16, not {name}={width}"
    if (elements := B * L * heads * max(N, P)) >= 2**31:
        return f"its indices have 32 bits, too few for {elements:,} elements"
    if is_fake(projected_BLZ):
        return ""
    if why := why_missing(f"{_PACKAGE}.mamba3_siso_combined"):
        return why
    # Short, since the card may be full of ours.
    length = L if L < 2 * PERIOD else PERIOD + L % PERIOD
    specification = json.dumps([dict(options), min(B, 2), length, torch.is_grad_enabled()])
    key = [f"{name} {version(name)}" for name in ("mamba-ssm", "torch", "triton")]
    key.append(torch.cuda.get_device_name(projected_BLZ.device))
    return why_not_compiled((sys.executable, "-c", _MAIN, specification), tuple(key))


@functools.cache
def autotuned_kernels() -> list[Any]:
    """The package's kernels that choose among configurations."""
    from mamba_ssm.ops.triton.mamba3 import angle_dt, mamba3_siso_bwd, mamba3_siso_fwd

    modules = (angle_dt, mamba3_siso_fwd, mamba3_siso_bwd)
    found = {id(v): v for m in modules for v in vars(m).values() if hasattr(v, "configs") and hasattr(v, "fn")}
    return list(found.values())


def main() -> None:
    """In a child process: one forward, and backward where gradients are wanted; with i and n, a share's compilation."""
    from models.mamba3 import Mamba3

    die_with_parent()
    options, batch, length, trains = json.loads(sys.argv[1])
    if share := [int(argument) for argument in sys.argv[2:]]:
        compile_share(autotuned_kernels(), *share)
    with torch.device("cuda"):
        mixer = Mamba3(**options)
        with torch.no_grad():
            mixer.init_weights(torch.Generator("cuda").manual_seed(0))
        projected_BLZ = torch.randn(batch, length, mixer.in_proj.out_features, dtype=torch.bfloat16)
    with torch.set_grad_enabled(trains):
        y_BLE = mixer.mix_fused(import_fused(), projected_BLZ.requires_grad_(trains))
        if trains:
            y_BLE.backward(torch.ones_like(y_BLE))
    torch.cuda.synchronize()
