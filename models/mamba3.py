"""Mamba-3: a state space with a trapezoidal rule and rotating states, in its own block; one input and one output.

The state of a head takes in this position's input and the one before it, and B and C turn by an angle that depends on
the input, which is a complex state written in real numbers:

    h_t = exp(A dt_t) (h_{t-1} + dt_t (1 - lambda_t) v_{t-1} k_{t-1}^T) + dt_t lambda_t v_t k_t^T
    y_t = (h_t q_t + D v_t) silu(z_t)

k and q are B and C after RMSNorm, with a bias of each head, their first half rotated by adjacent pairs. Parameter names
and shapes are those of mamba-ssm's ``Mamba3`` in its default form (single B and C, half of the state rotated, no norm
before the projection out), so that its checkpoints load.

Symbols and shape suffixes: B batch, L sequence length, D d_model, E d_inner (expand D), H heads, P head_dim (E / H),
N d_state, S rotated pairs (N / 4), Z width of the projection in. dt: the step size of a head, softplus of a projection;
A: its decay's rate, at most -1e-4; lambda: the share of this position's input, sigmoid of ``trap``; angle: the sum of
``pi tanh(turn) dt`` so far; v: inputs; z: the gate; D: the skip.
"""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, RMSNorm, State, init_linear
from models.mamba2 import DT_FLOOR, DT_MAX, DT_MIN
from models.ops import fused_mamba3, mamba3_kernels
from models.ops.context import is_fake, observe, stands_for
from models.ops.mamba3_kernels import CHUNK
from models.ops.ssd import ssd, ssd_flops

LEAST_RATE = 1e-4
CHECKED_PIECE = 2**14  # tokens at a time, so that a check takes little memory


class Operands(NamedTuple):
    """What the recurrence is made of, at one position or at all of them; dt and what follows in float32 at least."""

    z: Tensor  # (…, E)
    v: Tensor  # (…, H, P)
    B: Tensor  # (…, N) normalised, as is C; without bias and rotation
    C: Tensor
    dt: Tensor  # (…, H)
    log_decay: Tensor  # (…, H), A dt
    trap: Tensor  # (…, H) as projected, as is turn
    turn: Tensor  # (…, S)

    def shares(self) -> tuple[Tensor, Tensor]:
        """``dt lambda`` and ``dt (1 - lambda)``, ``(…, H)``: weights of this position's input and of the one before."""
        trap = self.trap.to(self.dt.dtype)
        return self.dt * trap.sigmoid(), self.dt * (-trap).sigmoid()

    def turned(self) -> Tensor:
        """``(…, H, S)``: by how much the angles grow."""
        return (self.turn.to(self.dt.dtype).tanh() * math.pi)[..., None, :] * self.dt[..., None]


class Mamba3(Mixer):
    """The Mamba-3 block. Raises ValueError for widths that do not split into heads or pairs."""

    wide_params = frozenset({"dt_bias", "B_bias", "C_bias", "D"})
    mixes_channels: ClassVar[bool] = True

    def __init__(
        self, d_model: int, *, d_state: int = 128, expand: int = 2, head_dim: int = 64, fused: bool = True
    ) -> None:
        super().__init__()
        self.options = {"d_model": d_model, "d_state": d_state, "expand": expand, "head_dim": head_dim}
        self.d_inner, self.d_state, self.head_dim = expand * d_model, d_state, head_dim
        self.num_heads, self.num_angles, self.fused = self.d_inner // head_dim, d_state // 4, fused
        if self.d_inner % head_dim:
            raise ValueError(
                f"d_model={d_model} times expand={expand} does not split into heads of {head_dim}; change head_dim"
            )
        if d_state % 4 or d_state == 0:
            raise ValueError(f"d_state={d_state} does not split into halves of whole pairs; make it a multiple of 4")
        H, N = self.num_heads, d_state
        self.widths = [self.d_inner, self.d_inner, N, N, H, H, H, self.num_angles]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.dt_bias = nn.Parameter(torch.empty(H, dtype=torch.float32))
        self.B_bias = nn.Parameter(torch.empty(H, 1, N, dtype=torch.float32))
        self.C_bias = nn.Parameter(torch.empty(H, 1, N, dtype=torch.float32))
        self.B_norm, self.C_norm = RMSNorm(N), RMSNorm(N)
        self.D = nn.Parameter(torch.empty(H, dtype=torch.float32))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)
        for parameter in (self.B_bias, self.C_bias, self.D, self.B_norm.weight, self.C_norm.weight):
            nn.init.ones_(parameter)
        # dt is drawn log-uniformly; the bias is its inverse under softplus.
        dt_H = torch.empty_like(self.dt_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        dt_H = dt_H.exp().clamp(min=DT_FLOOR)
        self.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))

    def _operands(self, projected: Tensor) -> Operands:
        z, v, B, C, dt, rate, trap, turn = projected.split(self.widths, dim=-1)
        wide = torch.promote_types(projected.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        log_decay = (-F.softplus(rate.to(wide))).clamp(max=-LEAST_RATE) * dt
        v = v.unflatten(-1, (self.num_heads, self.head_dim))
        return Operands(z, v, self.B_norm(B), self.C_norm(C), dt, log_decay, trap, turn)

    def _keys_and_queries(self, given: Operands, angle: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, H, N)`` in the angles' dtype: with each head's bias, and the first S adjacent pairs rotated."""
        cos, sin = angle.cos(), angle.sin()  # (…, H, S)

        def rotated(x: Tensor, bias_H1N: Tensor) -> Tensor:
            biased = x[..., None, :] + bias_H1N.squeeze(1).to(angle.dtype)  # (…, H, N)
            turning, kept = biased.tensor_split([2 * self.num_angles], dim=-1)
            even, odd = turning.unflatten(-1, (self.num_angles, 2)).unbind(-1)
            pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
            return torch.cat([pairs.flatten(-2), kept], dim=-1)

        return rotated(given.B, self.B_bias), rotated(given.C, self.C_bias)

    def _mix(self, projected_BLZ: Tensor, past: State | None = None) -> tuple[Tensor, State]:
        """The portable form: gated outputs ``(B, L, E)`` and the state behind them, from the state ``past`` on.

        One state space dual gives what positions read of those strictly before: there the input of position s has the
        weight ``dt_s lambda_s + dt_{s+1} (1 - lambda_{s+1})``, of which the second part is known one position later.
        Each reads its own input apart: subtracted from a dual that holds it, that second part would leave its rounding
        behind, and with it a trace of the next position.
        """
        given = self._operands(projected_BLZ)
        v_BLHP, wide = given.v, given.dt.dtype
        # In float64: after many turns a sum in float32 has no digits left for the angle.
        angle_BLHS = given.turned().cumsum(1, dtype=torch.float64)
        if past is not None:
            angle_BLHS = angle_BLHS + past["angle"][:, None]
        angle_BLHS = angle_BLHS.remainder(2 * math.pi).to(wide)
        k_BLHN, q_BLHN = (t.to(v_BLHP.dtype) for t in self._keys_and_queries(given, angle_BLHS))
        own_BLH, before_BLH = given.shares()

        weight_BLH = given.log_decay.exp() * (before_BLH + _delayed(own_BLH))
        inflow_BLHP = weight_BLH[..., None] * _delayed(v_BLHP, None if past is None else past["v"])
        y_BLHP, h_BHPN = ssd(
            inflow_BLHP.to(v_BLHP.dtype),
            given.log_decay,
            _delayed(k_BLHN, None if past is None else past["k"]),
            q_BLHN,
            h0_BHPN=None if past is None else past["h"],
        )
        skip_BLH = self.D.to(wide) + own_BLH * (k_BLHN * q_BLHN).sum(-1, dtype=wide)
        y_BLHP = torch.addcmul(y_BLHP, skip_BLH[..., None].to(y_BLHP.dtype), v_BLHP)
        v_BHP, k_BHN = v_BLHP[:, -1], k_BLHN[:, -1]
        h_BHPN = h_BHPN + (own_BLH[:, -1, :, None] * v_BHP)[..., None] * k_BHN[:, :, None]
        return y_BLHP.flatten(2) * F.silu(given.z), {"angle": angle_BLHS[:, -1], "h": h_BHPN, "k": k_BHN, "v": v_BHP}

    def forward(self, x_BLD: Tensor) -> Tensor:
        projected_BLZ = self.in_proj(x_BLD)
        fused, why = self._choose(projected_BLZ)
        if fused is None:
            y_BLE, _ = self._mix(projected_BLZ)
            if why:
                observe("mamba3_block", f"portable (no mamba-ssm: {why})")
            return self.out_proj(y_BLE)
        y_BLE = self.mix_fused(fused, projected_BLZ)
        B, L, _ = x_BLD.shape
        forward_flops, backward_flops = self._flops(L)
        observe(
            "mamba3_block",
            "mamba-ssm mamba3_siso_combined",
            forward_flops=B * forward_flops,
            backward_flops=B * backward_flops,
            check=None if is_fake(x_BLD) else lambda: self._error(y_BLE, projected_BLZ),
        )
        return self.out_proj(y_BLE)  # (B, L, D)

    def _choose(self, projected_BLZ: Tensor) -> tuple[Callable[..., Tensor] | None, str]:
        """The fused operator or none, and why it is not the one where it would be in its place."""
        fake = is_fake(projected_BLZ)
        if not self.fused or not (stands_for(projected_BLZ) == "cuda" if fake else projected_BLZ.is_cuda):
            return None, ""
        why = mamba3_kernels.unavailable(projected_BLZ, self.options, heads=self.num_heads)
        if why:
            return None, why
        return fused_mamba3.mamba3_siso_combined if fake else mamba3_kernels.import_fused(), ""

    def mix_fused(self, fused: Callable[..., Tensor], projected_BLZ: Tensor) -> Tensor:
        """The same through the package's operator, with the tensors that its own module passes: ``(B, L, E)``."""
        given = self._operands(projected_BLZ)
        wide = given.dt.dtype
        y_BLHP = fused(
            Q=given.C.unsqueeze(2),
            K=given.B.unsqueeze(2),
            V=given.v,
            ADT=given.log_decay.mT,
            DT=given.dt.mT,
            Trap=given.trap.mT,
            Q_bias=self.C_bias.to(wide).squeeze(1),
            K_bias=self.B_bias.to(wide).squeeze(1),
            Angles=given.turn.unsqueeze(2).expand(-1, -1, self.num_heads, -1).to(wide),
            D=self.D.to(wide),
            Z=given.z.unflatten(-1, (self.num_heads, self.head_dim)),
            chunk_size=CHUNK,
        )
        return y_BLHP.flatten(2).to(projected_BLZ.dtype)

    def _error(self, y_BLE: Tensor, projected_BLZ: Tensor) -> float:
        """Relative error of the fused operator's outputs against the portable form in float32; about 1e-2."""
        past: State | None = None
        squares = torch.zeros(2, dtype=torch.float64, device=y_BLE.device)
        for start in range(0, y_BLE.shape[1], CHECKED_PIECE):
            part = slice(start, start + CHECKED_PIECE)
            wanted, past = self._mix(projected_BLZ[:, part].float(), past)
            squares += torch.stack([(t.double() ** 2).sum() for t in (y_BLE[:, part] - wanted, wanted)])
        return float((squares[0] / squares[1].clamp_min(1e-60)).sqrt())

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        y_BLE, last = self._mix(self.in_proj(x_BLD))
        for name, tensor in last.items():
            state[name].copy_(tensor)
        return self.out_proj(y_BLE)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        H, P, N = self.num_heads, self.head_dim, self.d_state
        wide = torch.promote_types(dtype, torch.float32)
        shapes = {
            "angle": ((H, self.num_angles), wide),
            "h": ((H, P, N), wide),
            "k": ((H, N), dtype),
            "v": ((H, P), dtype),
        }
        return {name: torch.zeros(batch, *s, device=device, dtype=kind) for name, (s, kind) in shapes.items()}

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        given = self._operands(self.in_proj(x_BD))
        angle_BHS, h_BHPN = state["angle"], state["h"]
        angle_BHS.add_(given.turned()).remainder_(2 * math.pi)
        k_BHN, q_BHN = self._keys_and_queries(given, angle_BHS)
        own_BH, before_BH = given.shares()
        h_BHPN.addcmul_((before_BH[..., None] * state["v"])[..., None], state["k"][:, :, None].to(h_BHPN.dtype))
        h_BHPN.mul_(given.log_decay.exp()[..., None, None])
        h_BHPN.addcmul_((own_BH[..., None] * given.v)[..., None], k_BHN[:, :, None])
        y_BHP = torch.einsum("bhpn,bhn->bhp", h_BHPN, q_BHN) + self.D.to(h_BHPN.dtype)[:, None] * given.v
        state["k"].copy_(k_BHN)
        state["v"].copy_(given.v)
        return self.out_proj(y_BHP.flatten(1).to(given.z.dtype) * F.silu(given.z))

    def _flops(self, seq_len: int) -> tuple[float, float]:
        """Those of the state space dual of the same sizes, with B and C of each head its own."""
        H = self.num_heads
        return ssd_flops(seq_len=seq_len, heads=H, head_dim=self.head_dim, d_state=self.d_state, groups=H, chunk=CHUNK)

    def op_flops(self, seq_len: int) -> float:
        return self._flops(seq_len)[0]


def _delayed(t_BL: Tensor, first_B: Tensor | None = None) -> Tensor:
    """Each position's predecessor: ``first_B``, or zeros, then all but the last."""
    first_B1 = torch.zeros_like(t_BL[:, :1]) if first_B is None else first_B[:, None].to(t_BL.dtype)
    return torch.cat([first_B1, t_BL[:, :-1]], dim=1)
