"""Wirings: how a block surrounds a mixer. Any mixer fits into any of them (Gu & Dao, arXiv 2312.00752, Fig. 3).

=========  ================================================  ==================================
Plain      ``GLU(W gelu(mixer(x)))``                         S4's own block (arXiv 2111.00396)
H3         ``W (q * mixer(conv(k) * v))``                    H3 (arXiv 2212.14052), Hyena
Mamba      ``W (mixer(silu(conv(x))) * silu(z))``            Mamba (arXiv 2312.00752)
=========  ================================================  ==================================

Symbols and shape suffixes: B batch, L sequence length, D d_model, E inner width, W conv width.
q, k, v, x, z: projections of the block's input; z is the gate. ``conv`` is a short depthwise convolution.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.ops import fused_blocks
from models.ops.causal_conv1d import causal_conv1d
from models.ops.context import is_fake, observe, relative_error, stands_for
from models.ops.inference_kernels import InferenceKernels, inference_kernels, keep_window, projected_from_left
from models.s6 import S6

CONV_WIDTH = 4


class ShortConv(nn.Conv1d):
    """A depthwise causal convolution; parameters as mamba-ssm's ``conv1d``."""

    def __init__(self, channels: int, *, width: int = CONV_WIDTH) -> None:
        super().__init__(channels, channels, width, groups=channels, padding=width - 1)
        self.width = width

    def init_weights(self, generator: torch.Generator) -> None:
        """PyTorch's default for this shape."""
        bound = 1 / math.sqrt(self.width)
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)  # type: ignore[arg-type]

    def forward(self, x_BLE: Tensor) -> Tensor:
        return causal_conv1d(x_BLE, self.weight, self.bias)  # type: ignore[arg-type]

    def prefill(self, x_BLE: Tensor, window_BEW: Tensor) -> Tensor:
        """As forward; leaves the last W inputs in ``window``."""
        keep_window(x_BLE.transpose(1, 2), window_BEW)
        return self(x_BLE)

    def step(self, x_BE: Tensor, window_BEW: Tensor) -> Tensor:
        window_BEW.copy_(window_BEW.roll(-1, dims=-1))
        window_BEW[..., -1] = x_BE
        return (window_BEW * self.weight.squeeze(1)).sum(-1) + self.bias  # type: ignore[operator]


class Wiring(Mixer):
    """Common to the three: a mixer inside, projections around it."""

    mixes_channels = True
    inner: Mixer
    out_proj: nn.Linear
    conv_flops: float = 0.0
    """Of the short convolution, for one position."""

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        return self.inner.init_state(batch, max_len, device=device, dtype=dtype)

    def op_flops(self, seq_len: int) -> float:
        return self.inner.op_flops(seq_len) + self.conv_flops * seq_len

    @property
    def label(self) -> str:
        return f"{self.inner.label} in {type(self).__name__}"


class Plain(Wiring):
    """No gating branch: activation and output projection. The projection is S4's, which ends in a GLU."""

    def __init__(self, d_model: int, inner: Mixer) -> None:
        super().__init__()
        self.inner = inner
        self.out_proj = nn.Linear(d_model, 2 * d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        self.inner.init_weights(generator)
        init_linear(self.out_proj, generator)

    def _output(self, y: Tensor) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y)), dim=-1)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._output(self.inner(x_BLD))

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        return self._output(self.inner.prefill(x_BLD, state))

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        return self._output(self.inner.step(x_BD, state))


class H3(Wiring):
    """Multiplicative gates before and after the mixer; H3's shift SSM is a short convolution here.

    With ``convolve_all`` queries and values pass through it too, as Hyena has it.
    """

    def __init__(self, d_model: int, inner: Mixer, *, d_inner: int, convolve_all: bool = False) -> None:
        super().__init__()
        self.inner, self.d_inner = inner, d_inner
        self.in_proj = nn.Linear(d_model, 3 * d_inner, bias=False)
        self.num_convolved = 3 * d_inner if convolve_all else d_inner
        self.conv1d = ShortConv(self.num_convolved)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.conv_flops = 2.0 * CONV_WIDTH * self.num_convolved

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        self.conv1d.init_weights(generator)
        self.inner.init_weights(generator)
        init_linear(self.out_proj, generator)

    def _split(self, projected: Tensor, conv: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """q ``(…, E)`` and what the mixer reads, k v ``(…, E)``."""
        parts = [*conv(projected[..., : self.num_convolved]).split(self.d_inner, dim=-1)]
        parts += projected.split(self.d_inner, dim=-1)[len(parts) :]
        k, q, v = parts
        return q, k * v

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BLE, kv_BLE = self._split(self.in_proj(x_BLD), self.conv1d)
        return self.out_proj(q_BLE * self.inner(kv_BLE))  # (B, L, D)

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        q_BLE, kv_BLE = self._split(self.in_proj(x_BLD), lambda x: self.conv1d.prefill(x, state["shift"]))
        return self.out_proj(q_BLE * self.inner.prefill(kv_BLE, state))

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        q_BE, kv_BE = self._split(self.in_proj(x_BD), lambda x: self.conv1d.step(x, state["shift"]))
        return self.out_proj(q_BE * self.inner.step(kv_BE, state))

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        window = torch.zeros(batch, self.num_convolved, CONV_WIDTH, device=device, dtype=dtype)
        return {"shift": window, **super().init_state(batch, max_len, device=device, dtype=dtype)}


@functools.cache
def import_fused_block() -> Callable[..., Tensor] | None:
    """mamba-ssm's kernel for everything between the two projections, where it imports."""
    try:
        from causal_conv1d import causal_conv1d_fn  # noqa: F401 (the fused block calls it)
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn
    except ImportError:
        return None
    return mamba_inner_fn


class Mamba(Wiring):
    """Project in, short convolution, mixer, gate, project out (Algorithm 2 and Fig. 3 of the paper).

    With S6 inside it is the Mamba block; on CUDA it then runs mamba-ssm's fused kernel where that
    imports and ``fused`` allows it.
    """

    def __init__(self, d_model: int, inner: Mixer, *, d_inner: int, fused: bool = True) -> None:
        super().__init__()
        self.inner, self.d_inner, self.fused = inner, d_inner, fused
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = ShortConv(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.conv_flops = 2.0 * CONV_WIDTH * d_inner

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        self.conv1d.init_weights(generator)
        self.inner.init_weights(generator)
        init_linear(self.out_proj, generator)

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(y * F.silu(z))

    def _portable(self, x_BLD: Tensor) -> Tensor:
        x_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        return self._output(self.inner(F.silu(self.conv1d(x_BLE))), z_BLE)  # (B, L, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        fused = self._fused_block(x_BLD)
        return self._portable(x_BLD) if fused is None else self._run_fused(fused, x_BLD)

    def _fused_block(self, x_BLD: Tensor) -> Callable[..., Tensor] | None:
        # The kernels know no float64.
        if not self.fused or x_BLD.dtype == torch.float64 or not self._inner_is_published_s6():
            return None
        if is_fake(x_BLD):
            return fused_blocks.mamba_inner if stands_for(x_BLD) == "cuda" else None
        return import_fused_block() if x_BLD.is_cuda else None

    def _inner_is_published_s6(self) -> bool:
        return isinstance(self.inner, S6) and self.inner.is_published

    def _run_fused(self, fused: Callable[..., Tensor], x_BLD: Tensor) -> Tensor:
        s6 = self.inner
        assert isinstance(s6, S6)
        # Channels outermost: the block then turns none of its tensors round. Turning them took a quarter of a step.
        xz_B2EL = projected_from_left(self.in_proj.weight, x_BLD)
        weights = (self.conv1d.weight, self.conv1d.bias, s6.x_proj.weight, s6.dt_proj.weight, self.out_proj.weight)
        # After out_proj's missing bias: A, and no B and C of their own, since they depend on the input.
        options: dict[str, Any] = {"D": s6.D.float(), "delta_bias": s6.dt_proj.bias.float()}
        y_BLD = fused(xz_B2EL, *weights, None, s6.A(), None, None, **options)
        B, L, _ = x_BLD.shape
        flops = B * self.op_flops(L)
        if is_fake(x_BLD):  # the real block's products are PyTorch's, whose counter sees them
            flops += 2.0 * B * L * sum(w.weight.numel() for w in (s6.x_proj, s6.dt_proj, self.out_proj))
        observe(
            "mamba_block",
            "mamba-ssm mamba_inner_fn",
            forward_flops=flops,
            # Two gradients a product, and the recomputed convolution, dt and states.
            backward_flops=3.0 * flops,
            check=None if is_fake(x_BLD) else lambda: relative_error(y_BLD, self._portable(x_BLD)),
        )
        return y_BLD

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        if (kernels := self._inference_kernels(x_BLD)) is not None:
            return self._prefill_fused(kernels, x_BLD, state)
        x_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        x_BLE = F.silu(self.conv1d.prefill(x_BLE, state["conv"]))
        return self._output(self.inner.prefill(x_BLE, state), z_BLE)

    def _inference_kernels(self, x: Tensor) -> InferenceKernels | None:
        return inference_kernels(x) if self.fused and self._inner_is_published_s6() else None

    def _prefill_fused(self, kernels: InferenceKernels, x_BLD: Tensor, state: State) -> Tensor:
        """As mamba-ssm's own module reads a prompt."""
        s6 = self.inner
        assert isinstance(s6, S6)
        x_BEL, z_BEL = projected_from_left(self.in_proj.weight, x_BLD).chunk(2, dim=1)
        keep_window(x_BEL, state["conv"])
        x_BEL = kernels.conv(x_BEL, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        dt_BRL, B_BNL, C_BNL = (s6.x_proj.weight @ x_BEL).split(s6.sizes, dim=1)
        y_BEL, h_BEN = kernels.scan(
            x_BEL, s6.dt_proj.weight @ dt_BRL, s6.A(), B_BNL, C_BNL, s6.D.float(),
            z=z_BEL, delta_bias=s6.dt_proj.bias.float(), delta_softplus=True, return_last_state=True,
        )  # fmt: skip
        state["h"].copy_(h_BEN)
        y_BLD = self.out_proj(y_BEL.transpose(1, 2))
        B, L, _ = x_BLD.shape
        observe(
            "mamba_block",
            "mamba-ssm selective_scan_fn with its last state",
            forward_flops=B * self.op_flops(L),
            check=None if is_fake(x_BLD) else lambda: relative_error(y_BLD, self._portable(x_BLD)),
        )
        return y_BLD

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        if (kernels := self._inference_kernels(x_BD)) is not None:
            return self._step_fused(kernels, x_BD, state)
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        x_BE = F.silu(self.conv1d.step(x_BE, state["conv"]))
        return self._output(self.inner.step(x_BE, state), z_BE)

    def _step_fused(self, kernels: InferenceKernels, x_BD: Tensor, state: State) -> Tensor:
        s6 = self.inner
        assert isinstance(s6, S6)
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        conv_weight_EW = self.conv1d.weight.squeeze(1)
        x_BE = kernels.conv_step(x_BE, state["conv"], conv_weight_EW, self.conv1d.bias, activation="silu")
        dt_BR, B_BN, C_BN = s6.x_proj(x_BE).split(s6.sizes, dim=-1)
        y_BE = kernels.state_step(
            state["h"], x_BE, F.linear(dt_BR, s6.dt_proj.weight), s6.A(), B_BN, C_BN, s6.D,
            z=z_BE, dt_bias=s6.dt_proj.bias, dt_softplus=True,
        )  # fmt: skip
        observe("mamba_block", "mamba-ssm selective_state_update", forward_flops=len(x_BD) * self.step_flops)
        return self.out_proj(y_BE)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        window = torch.zeros(batch, self.d_inner, CONV_WIDTH, device=device, dtype=dtype)
        return {"conv": window, **super().init_state(batch, max_len, device=device, dtype=dtype)}
