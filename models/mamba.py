"""Mamba: the selective state space model S6 in its own wiring (Gu & Dao, arXiv 2312.00752).

Algorithm 2 and Fig. 3 of the paper: project in, short causal convolution, selective scan, gate,
project out. Parameter names and shapes are those of mamba-ssm's ``Mamba``.

Symbols and shape suffixes: B batch, L sequence length, D d_model, E d_inner (2 D), N d_state,
R dt_rank, W conv width. dt: the step size Δ (softplus of a low-rank projection); A = -exp(A_log):
the diagonal decay; B, C: input-dependent projections into and out of the state; z: the gate.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, SequenceModel, State, init_linear
from models.ops.causal_conv1d import causal_conv1d_silu
from models.ops.context import is_fake, observe, relative_error
from models.ops.selective_scan import selective_scan

CONV_WIDTH = 4
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


@functools.cache
def import_fused_block() -> Callable[..., Tensor] | None:
    """mamba-ssm's kernel for everything between the two projections, where it imports."""
    try:
        from causal_conv1d import causal_conv1d_fn  # noqa: F401 (the fused block calls it)
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn
    except ImportError:
        return None
    return mamba_inner_fn


class S6(Mixer):
    """The Mamba block: selective scan between two projections, gated."""

    wide_params = frozenset({"A_log", "D"})

    def __init__(self, d_model: int, *, d_state: int = 16, expand: int = 2, fused: bool = True) -> None:
        super().__init__()
        self.d_model, self.d_inner, self.d_state = d_model, expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.fused = fused
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, CONV_WIDTH, groups=self.d_inner, padding=CONV_WIDTH - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.d_inner, dtype=torch.float32))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            init_linear(linear, generator)
        bound = 1 / math.sqrt(CONV_WIDTH)
        nn.init.uniform_(self.conv1d.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.conv1d.bias, -bound, bound, generator=generator)  # type: ignore[arg-type]
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5, generator=generator)
        # The released code draws dt log-uniformly; the bias is its inverse under softplus.
        dt_E = torch.empty_like(self.dt_proj.bias).uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        dt_E = dt_E.exp().clamp(min=DT_FLOOR)
        self.dt_proj.bias.copy_(dt_E + torch.log(-torch.expm1(-dt_E)))
        # S4D-Real: A_n = -(n + 1).
        self.A_log.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def _A(self) -> Tensor:
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input-dependent dt ``(…, E)``, B and C ``(…, N)``."""
        dt_low, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.softplus(self.dt_proj(dt_low)), B, C

    def _portable(self, x_BLD: Tensor, state: State | None = None) -> Tensor:
        x_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        if state is not None:
            tail = x_BLE[:, -CONV_WIDTH:].transpose(1, 2)
            state["conv"].zero_()
            state["conv"][..., -tail.shape[-1] :] = tail
        x_BLE = causal_conv1d_silu(x_BLE, self.conv1d.weight, self.conv1d.bias)  # type: ignore[arg-type]
        dt_BLE, B_BLN, C_BLN = self._select(x_BLE)
        y_BLE, h_BEN = selective_scan(x_BLE, dt_BLE, self._A(), B_BLN, C_BLN)
        if state is not None:
            state["h"].copy_(h_BEN)
        y_BLE = torch.addcmul(y_BLE, self.D.to(y_BLE.dtype), x_BLE)
        return self.out_proj(y_BLE * F.silu(z_BLE))  # (B, L, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        fused = import_fused_block() if self.fused and x_BLD.is_cuda and not is_fake(x_BLD) else None
        if fused is None:
            return self._portable(x_BLD)
        # mamba-ssm wants channels before positions; projecting from the left gives them so.
        xz_B2EL = self.in_proj(x_BLD).transpose(1, 2)
        y_BLD = fused(xz_B2EL, *self._fused_arguments(), D=self.D.float(), delta_bias=self.dt_proj.bias.float())
        B, L, _ = x_BLD.shape
        per_token = 9.0 * self.d_inner * self.d_state + self._fused_linear_flops()
        observe(
            "mamba_block",
            "mamba-ssm mamba_inner_fn",
            forward_flops=B * L * per_token,
            # Two gradients a product, and the recomputed convolution, dt and states.
            backward_flops=3.0 * B * L * per_token,
            check=lambda: relative_error(y_BLD, self._portable(x_BLD)),
        )
        return y_BLD

    def _fused_arguments(self) -> tuple[Any, ...]:
        return (
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            None,
            self._A(),
            None,
            None,
        )

    def _fused_linear_flops(self) -> float:
        linears = (self.x_proj, self.dt_proj, self.out_proj)
        return 2.0 * (sum(linear.weight.numel() for linear in linears) + self.conv1d.weight.numel())

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        return self._portable(x_BLD, state)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch, self.d_inner, CONV_WIDTH, device=device, dtype=dtype),
            "h": torch.zeros(batch, self.d_inner, self.d_state, device=device, dtype=wide),
        }

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        conv_BEW, h_BEN = state["conv"], state["h"]
        conv_BEW.copy_(conv_BEW.roll(-1, dims=-1))
        conv_BEW[..., -1] = x_BE
        x_BE = F.silu((conv_BEW * self.conv1d.weight.squeeze(1)).sum(-1) + self.conv1d.bias)  # type: ignore[operator]
        dt_BE, B_BN, C_BN = self._select(x_BE)
        dtx_BE = (dt_BE * x_BE).to(h_BEN.dtype)
        h_BEN.mul_(torch.exp(dt_BE.to(h_BEN.dtype)[..., None] * self._A()))
        h_BEN.addcmul_(dtx_BE[..., None], B_BN.to(h_BEN.dtype)[:, None])
        y_BE = torch.einsum("ben,bn->be", h_BEN, C_BN.to(h_BEN.dtype)).to(x_BE.dtype) + self.D.to(x_BE.dtype) * x_BE
        return self.out_proj((y_BE * F.silu(z_BE)).to(x_BD.dtype))

    def op_flops(self, seq_len: int) -> float:
        return (9.0 * self.d_inner * self.d_state + 2.0 * CONV_WIDTH * self.d_inner) * seq_len


def mamba(*, vocab_size: int, d_model: int, num_layers: int, d_state: int = 16) -> SequenceModel:
    """A Mamba language model, weights exchangeable with mamba-ssm's ``MambaLMHeadModel``."""
    mixers: list[Mixer] = [S6(d_model, d_state=d_state) for _ in range(num_layers)]
    return SequenceModel(vocab_size=vocab_size, d_model=d_model, mixers=mixers)
