"""Mamba-2: a state space with one decay a head, in its own block (Dao & Gu, arXiv 2405.21060, section 7).

One projection gives everything, a short causal convolution runs over x, B and C together, the state space dual
mixes, and a gated RMSNorm precedes the projection out. Parameter names and shapes are those of mamba-ssm's
``Mamba2`` with ``rmsnorm=True, norm_before_gate=False``, so that its checkpoints load.

Symbols and shape suffixes: B batch, L sequence length, D d_model, E d_inner (expand D), H heads, P head_dim (E / H),
N d_state, G groups that share B and C, F channels of the convolution (E + 2 G N), W its width. dt: the step size Δ
of a head, softplus of a projection; A = -exp(A_log): the decay's rate of a head; z: the gate; D: the skip.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import RMS_NORM_EPS, Mixer, State, init_linear, rms_norm
from models.ops import fused_blocks
from models.ops.causal_conv1d import causal_conv1d_silu
from models.ops.context import is_fake, observe, relative_error, stands_for
from models.ops.inference_kernels import MAX_OFFSET, InferenceKernels, conv_silu, inference_kernels, keep_window
from models.ops.ssd import CHUNK, ssd, ssd_flops

CONV_WIDTH = 4
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
A_MIN, A_MAX = 1.0, 16.0


@functools.cache
def import_fused_block() -> Callable[..., Tensor] | None:
    """mamba-ssm's kernels for everything behind the first projection, where they import."""
    try:
        from causal_conv1d import causal_conv1d_fn  # noqa: F401 (the fused block calls its extension)
        from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined
    except ImportError:
        return None
    return mamba_split_conv1d_scan_combined


class GatedRMSNorm(nn.Module):
    """``RMSNorm(y * silu(z))``, over each of ``num_groups`` parts of the width alone."""

    def __init__(self, width: int, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = (y * F.silu(z)).unflatten(-1, (self.num_groups, -1))
        return rms_norm(gated, None, RMS_NORM_EPS).flatten(-2) * self.weight.to(y.dtype)


class Mamba2(Mixer):
    """The Mamba-2 block. Raises ValueError for widths that do not split into heads and groups."""

    wide_params = frozenset({"A_log", "D", "dt_bias"})
    mixes_channels: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        expand: int = 2,
        head_dim: int = 64,
        num_groups: int = 1,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.head_dim = expand * d_model, d_state, head_dim
        self.num_heads, self.num_groups, self.fused = self.d_inner // head_dim, num_groups, fused
        if self.d_inner % head_dim or self.num_heads % num_groups:
            raise ValueError(
                f"d_model={d_model} times expand={expand} does not split into heads of {head_dim} in {num_groups} "
                "groups; change head_dim or num_groups"
            )
        channels = self.d_inner + 2 * num_groups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + channels + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, CONV_WIDTH, groups=channels, padding=CONV_WIDTH - 1)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.norm = GatedRMSNorm(self.d_inner, num_groups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)
        bound = 1 / math.sqrt(CONV_WIDTH)
        nn.init.uniform_(self.conv1d.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.conv1d.bias, -bound, bound, generator=generator)  # type: ignore[arg-type]
        # dt is drawn log-uniformly; the bias is its inverse under softplus.
        dt_H = torch.empty_like(self.dt_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        dt_H = dt_H.exp().clamp(min=DT_FLOOR)
        self.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(A_MIN, A_MAX, generator=generator).log())
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """z ``(…, E)``, x, B and C before their convolution ``(…, F)``, dt ``(…, H)`` in float32 at least."""
        z, xBC, dt = self._split(self.in_proj(x))
        wide = torch.promote_types(dt.dtype, torch.float32)
        return z, xBC, F.softplus(dt.to(wide) + self.dt_bias.to(wide))

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        return projected.split([self.d_inner, self.conv1d.out_channels, self.num_heads], dim=-1)

    def _select(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x ``(…, H, P)``, B and C ``(…, G, N)``."""
        states = self.num_groups * self.d_state
        x, B, C = xBC.split([self.d_inner, states, states], dim=-1)
        by_group = (self.num_groups, self.d_state)
        return x.unflatten(-1, (self.num_heads, self.head_dim)), B.unflatten(-1, by_group), C.unflatten(-1, by_group)

    def _A(self) -> Tensor:
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def _portable(self, x_BLD: Tensor, state: State | None = None) -> Tensor:
        z_BLE, xBC_BLF, dt_BLH = self._project(x_BLD)
        if state is not None:
            keep_window(xBC_BLF.transpose(1, 2), state["conv"])
        xBC_BLF = causal_conv1d_silu(xBC_BLF, self.conv1d.weight, self.conv1d.bias)  # type: ignore[arg-type]
        x_BLHP, B_BLGN, C_BLGN = self._select(xBC_BLF)
        dtx_BLHP = (dt_BLH[..., None] * x_BLHP).to(x_BLHP.dtype)
        y_BLHP, h_BHPN = ssd(dtx_BLHP, dt_BLH * self._A(), B_BLGN, C_BLGN)
        if state is not None:
            state["h"].copy_(h_BHPN)
        y_BLHP = torch.addcmul(y_BLHP, self.D.to(y_BLHP.dtype)[:, None], x_BLHP)
        return self.out_proj(self.norm(y_BLHP.flatten(2), z_BLE))  # (B, L, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        fused = self._fused_block(x_BLD)
        return self._portable(x_BLD) if fused is None else self._run_fused(fused, x_BLD)

    def _fused_block(self, x_BLD: Tensor) -> Callable[..., Tensor] | None:
        # The kernels know no float64.
        if not self.fused or x_BLD.dtype == torch.float64:
            return None
        if x_BLD.shape[0] * x_BLD.shape[1] * self.in_proj.out_features >= MAX_OFFSET:
            return None  # it reads the projections where they lie
        if is_fake(x_BLD):
            return fused_blocks.mamba_split_conv1d_scan_combined if stands_for(x_BLD) == "cuda" else None
        return import_fused_block() if x_BLD.is_cuda else None

    def _run_fused(self, fused: Callable[..., Tensor], x_BLD: Tensor) -> Tensor:
        y_BLD = fused(
            self.in_proj(x_BLD),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias.float(),
            self._A(),
            D=self.D.float(),
            chunk_size=CHUNK["mamba-ssm"],
            activation="silu",
            rmsnorm_weight=self.norm.weight,
            rmsnorm_eps=RMS_NORM_EPS,
            outproj_weight=self.out_proj.weight,
            headdim=self.head_dim,
            ngroups=self.num_groups,
            norm_before_gate=False,
        )
        B, L, _ = x_BLD.shape
        forward_flops, backward_flops = self._ssd_flops(L, CHUNK["mamba-ssm"])
        conv_flops = 2.0 * L * self.conv1d.weight.numel()
        # The projection out is a product of PyTorch's in it, and counted as such.
        observe(
            "mamba2_block",
            "mamba-ssm mamba_split_conv1d_scan_combined",
            forward_flops=B * (forward_flops + conv_flops),
            # Two gradients of the convolution, and its output again.
            backward_flops=B * (backward_flops + 3 * conv_flops),
            check=None if is_fake(x_BLD) else lambda: relative_error(y_BLD, self._portable(x_BLD)),
        )
        return y_BLD

    def _ssd_flops(self, seq_len: int, chunk: int) -> tuple[float, float]:
        return ssd_flops(
            seq_len=seq_len,
            heads=self.num_heads,
            head_dim=self.head_dim,
            d_state=self.d_state,
            groups=self.num_groups,
            chunk=chunk,
        )

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        kernels = inference_kernels(x_BLD) if self.fused else None
        B, L, _ = x_BLD.shape
        # Steps and gate lie between the other projections of a position, so that their offsets count all of these.
        num_parts = math.ceil(B * L * self.in_proj.out_features / MAX_OFFSET)
        if kernels is None or num_parts > B:
            return self._portable(x_BLD, state)
        size = math.ceil(B / num_parts)
        parts = [self._prefill_fused(kernels, x_BLD[i : i + size], state, first=i) for i in range(0, B, size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _prefill_fused(self, kernels: InferenceKernels, x_BLD: Tensor, state: State, *, first: int) -> Tensor:
        """As mamba-ssm's own module reads a prompt; of the sequences from the ``first`` on."""
        state = {name: tensor[first : first + len(x_BLD)] for name, tensor in state.items()}
        z_BLE, xBC_BLF, dt_BLH = self._split(self.in_proj(x_BLD))
        keep_window(xBC_BLF.transpose(1, 2), state["conv"])
        xBC_BLF = conv_silu(kernels, xBC_BLF, self.conv1d.weight, self.conv1d.bias)  # type: ignore[arg-type]
        x_BLHP, B_BLGN, C_BLGN = self._select(xBC_BLF)
        y_BLHP, h_BHPN = kernels.dual(
            x_BLHP, dt_BLH, self._A(), B_BLGN, C_BLGN, CHUNK["mamba-ssm"],
            D=self.D.float(), dt_bias=self.dt_bias.float(), dt_softplus=True, return_final_states=True,
        )  # fmt: skip
        state["h"].copy_(h_BHPN)
        y_BLD = self.out_proj(self.norm(y_BLHP.flatten(2), z_BLE))
        B, L, _ = x_BLD.shape
        observe(
            "mamba2_block",
            "mamba-ssm mamba_chunk_scan_combined with its last state",
            forward_flops=B * (self._ssd_flops(L, CHUNK["mamba-ssm"])[0] + 2.0 * L * self.conv1d.weight.numel()),
            check=None if is_fake(x_BLD) else lambda: relative_error(y_BLD, self._portable(x_BLD)),
        )
        return y_BLD

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch, self.conv1d.out_channels, CONV_WIDTH, device=device, dtype=dtype),
            "h": torch.zeros(batch, self.num_heads, self.head_dim, self.d_state, device=device, dtype=wide),
        }

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        if self.fused and (kernels := inference_kernels(x_BD)) is not None:
            return self._step_fused(kernels, x_BD, state)
        z_BE, xBC_BF, dt_BH = self._project(x_BD)
        conv_BFW, h_BHPN = state["conv"], state["h"]
        conv_BFW.copy_(conv_BFW.roll(-1, dims=-1))
        conv_BFW[..., -1] = xBC_BF
        xBC_BF = F.silu((conv_BFW * self.conv1d.weight.squeeze(1)).sum(-1) + self.conv1d.bias)  # type: ignore[operator]
        x_BHP, B_BGN, C_BGN = (t.to(h_BHPN.dtype) for t in self._select(xBC_BF))
        B_BHN, C_BHN = (t.repeat_interleave(self.num_heads // self.num_groups, dim=1) for t in (B_BGN, C_BGN))
        h_BHPN.mul_(torch.exp(dt_BH * self._A())[..., None, None])
        h_BHPN.addcmul_((dt_BH[..., None] * x_BHP)[..., None], B_BHN[:, :, None])
        y_BHP = torch.einsum("bhpn,bhn->bhp", h_BHPN, C_BHN) + self.D.to(x_BHP.dtype)[:, None] * x_BHP
        return self.out_proj(self.norm(y_BHP.flatten(1).to(z_BE.dtype), z_BE))

    def _step_fused(self, kernels: InferenceKernels, x_BD: Tensor, state: State) -> Tensor:
        z_BE, xBC_BF, dt_BH = self._split(self.in_proj(x_BD))
        conv_weight_FW = self.conv1d.weight.squeeze(1)
        xBC_BF = kernels.conv_step(xBC_BF, state["conv"], conv_weight_FW, self.conv1d.bias, activation="silu")
        x_BHP, B_BGN, C_BGN = self._select(xBC_BF)
        # Strides of 0 tell the kernel that a head has one step and one decay.
        by_channel = (-1, self.head_dim)
        y_BHP = kernels.state_step(
            state["h"],
            x_BHP,
            dt_BH[..., None].expand_as(x_BHP),
            self._A()[:, None, None].expand(*by_channel, self.d_state),
            B_BGN,
            C_BGN,
            self.D[:, None].expand(by_channel),
            dt_bias=self.dt_bias[:, None].expand(by_channel),
            dt_softplus=True,
        )
        observe("mamba2_block", "mamba-ssm selective_state_update", forward_flops=len(x_BD) * self.step_flops)
        return self.out_proj(self.norm(y_BHP.flatten(1), z_BE))

    def op_flops(self, seq_len: int) -> float:
        return self._ssd_flops(seq_len, CHUNK["chunked"])[0] + 2.0 * seq_len * self.conv1d.weight.numel()
