"""Mamba-3 through the released package alone: ``mamba_ssm.modules.mamba3.Mamba3``, single input and output, Triton.

The trapezoidal recurrence with rotated B and C has no portable form here: without the package on a CUDA machine there
is no such mixer, and :class:`Mamba3Unavailable` says why. Its output is not compared with a reference either; its
operator rounds its inputs to bfloat16 whatever it is given. Its kernels can take very long to compile, so that a child
process compiles them first, into Triton's cache on disk, under a time limit.

Symbols and shape suffixes: B batch, L sequence length, D d_model, E d_inner, H heads, P head_dim, N d_state, S rotation
angles (N / 4, the package's default).
"""

import functools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.mamba2 import DT_FLOOR, DT_MAX, DT_MIN
from models.ops.context import is_fake, observe
from models.ops.ssd import ssd_flops

CHUNK = 64  # what the package recommends for this form
COMPILED_LEN = 4096
DEFAULT_COMPILE_LIMIT_S = 180.0


class Mamba3Unavailable(RuntimeError):
    """The package, its kernels or a part of them do not run here; the message says which and why."""


def run_within(command: Sequence[str], limit_s: float) -> None:
    """Run a command that compiles, with all that it starts killed at the limit.

    Raises Mamba3Unavailable when the limit is exceeded (naming it), or with the end of stderr when the command fails.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise Mamba3Unavailable(
            f"compilation of Mamba-3's kernels exceeded {limit_s:g} s; set SEQBENCH_COMPILE_LIMIT_S to allow more"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        tail = stderr.decode(errors="replace").strip()[-500:]
        raise Mamba3Unavailable(f"compiling Mamba-3's kernels failed with exit status {process.returncode}: {tail}")


@functools.cache
def compile_kernels(specification: str) -> None:
    """Once a process and specification: compile in a child process, see :func:`main`."""
    limit_s = float(os.environ.get("SEQBENCH_COMPILE_LIMIT_S", DEFAULT_COMPILE_LIMIT_S))
    run_within([sys.executable, "-m", "models.mamba3", specification], limit_s)


class Mamba3(Mixer):
    """The Mamba-3 block. Parameters are the package's, by its names. Raises Mamba3Unavailable without it."""

    wide_params = frozenset({"dt_bias", "B_bias", "C_bias", "D"})
    mixes_channels: ClassVar[bool] = True
    _block: Any

    def __init__(self, d_model: int, *, d_state: int = 128, expand: int = 2, head_dim: int = 64) -> None:
        super().__init__()
        try:
            from mamba_ssm.modules import mamba3
        except (ImportError, OSError) as error:
            raise Mamba3Unavailable(f"Mamba-3 needs mamba_ssm >= 2.3, which does not import: {error}") from error
        self.options = {"d_state": d_state, "expand": expand, "head_dim": head_dim}
        block = mamba3.Mamba3(d_model, d_state=d_state, expand=expand, headdim=head_dim, chunk_size=CHUNK)
        # One set of parameters, registered here too: under the package's names, and the wide ones known as such.
        self._parameters, self._modules = block._parameters, block._modules
        object.__setattr__(self, "_block", block)

    def init_weights(self, generator: torch.Generator) -> None:
        block = self._block
        init_linear(block.in_proj, generator)
        init_linear(block.out_proj, generator)
        for parameter in (block.B_bias, block.C_bias, block.D, block.B_norm.weight, block.C_norm.weight):
            nn.init.ones_(parameter)
        dt_H = torch.empty(block.nheads).uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        dt_H = dt_H.exp().clamp(min=DT_FLOOR)
        block.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))

    def forward(self, x_BLD: Tensor) -> Tensor:
        B, L, D = x_BLD.shape
        if is_fake(x_BLD):
            y_BLD = self._stand_in(x_BLD)
        elif not x_BLD.is_cuda:
            raise Mamba3Unavailable(f"Mamba-3's kernels are for CUDA tensors, these are on {x_BLD.device}")
        else:
            # Kernels are specialised by what divides a length, not by the length; and the card may be full of ours.
            shape = (B, L if L < 2 * COMPILED_LEN else COMPILED_LEN + L % COMPILED_LEN, D)
            dtypes = [str(t.dtype).removeprefix("torch.") for t in (x_BLD, self._block.in_proj.weight)]
            compile_kernels(json.dumps([self.options, shape, dtypes, torch.is_grad_enabled()]))
            y_BLD = self._block(x_BLD)
        forward, backward = self._flops(L)
        observe("mamba3_block", "mamba-ssm mamba3_siso", forward_flops=B * forward, backward_flops=B * backward)
        return y_BLD

    def _stand_in(self, x_BLD: Tensor) -> Tensor:
        """Without data: projections, and the angles that the block gives each head in float32. A lower estimate."""
        block = self._block
        z_BLE, v_BLE, _, angles_BLS = block.in_proj(x_BLD).tensor_split(
            [block.d_inner, 2 * block.d_inner, -block.num_rope_angles], dim=-1
        )
        angles_BLHS = angles_BLS[:, :, None].expand(-1, -1, block.nheads, -1).to(torch.float32, copy=True)
        y_BLHP = v_BLE.unflatten(-1, (block.nheads, -1)) * angles_BLHS.cos().sum(-1, keepdim=True)
        return block.out_proj((y_BLHP.flatten(2) * F.silu(z_BLE)).to(x_BLD.dtype))

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:  # noqa: ARG002
        raise Mamba3Unavailable("Mamba-3's recurrent step needs quack and cutlass, which mamba_ssm does not install")

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        names = ("angle", "h", "k", "v")
        cache = self._block.allocate_inference_cache(batch, max_len, device=device, dtype=dtype)
        return dict(zip(names, cache, strict=True))

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        return self.prefill(x_BD[:, None], state)[:, 0]

    def _flops(self, seq_len: int) -> tuple[float, float]:
        """Counted as those of the state space dual of the same sizes, with B and C of each head its own."""
        block = self._block
        sizes = {"heads": block.nheads, "head_dim": block.headdim, "d_state": block.d_state, "groups": block.nheads}
        return ssd_flops(seq_len=seq_len, chunk=CHUNK, **sizes)

    def op_flops(self, seq_len: int) -> float:
        return self._flops(seq_len)[0]


def main(specification: str) -> None:
    """Run one forward, and backward where gradients are wanted, on random inputs: compiles what they use."""
    options, (batch, length, d_model), (dtype, weight_dtype), trains = json.loads(specification)
    mixer = Mamba3(d_model, **options).cuda()
    for name, parameter in mixer.named_parameters():
        if name not in mixer.wide_params:
            parameter.data = parameter.data.to(getattr(torch, weight_dtype))
    x_BLD = torch.randn(batch, length, d_model, device="cuda").to(getattr(torch, dtype)).requires_grad_(trains)
    with torch.set_grad_enabled(trains):
        y_BLD = mixer._block(x_BLD)
        if trains:
            y_BLD.sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
