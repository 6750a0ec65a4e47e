"""The sequence-mixing operators alone, on random inputs: what ``level: operator`` runs.

An operator is named by itself (``selective_scan``, with a width) or through a model, whose own operator and sizes then
count. Every one states its cost (:mod:`benchmarks.operator_costs`) and compares a slice of its output with float64.

=========================  =========================================================================================
``selective_scan``         the best that runs here, without gate, bias and softplus: the authors' advice
``selective_scan_full``    D, gate z, bias and softplus in one call where mamba-ssm runs; elsewhere scan, then the rest
``selective_scan_torch``   chunked PyTorch
``ssd``, ``ssd_torch``     the state space dual, the best that runs here and chunked PyTorch
``fft_conv``               long convolution; the kernel's generation is no part of it
``attention``              causal attention by the kernel that was measured to be the fastest here
``attention_flash`` …      by this kernel of PyTorch's: flash, cudnn, efficient, math (scores in memory)
=========================  =========================================================================================

Shape suffixes: B batch, L sequence length, D channels, N states, H heads, K head dimension, P head width of
Mamba-2, G groups.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operator_costs import (
    CostForm,
    Shape,
    attention_cost,
    fft_conv_cost,
    materialised_attention_cost,
    selective_scan_cost,
    selective_scan_full_cost,
    ssd_cost,
)
from harness import Unsupported
from models import Mixer
from models.attention import Attention
from models.hyena import Hyena
from models.mamba2 import Mamba2
from models.ops.attention import causal_attention, force_kernel
from models.ops.context import is_fake, observe, observing, relative_error, stands_for
from models.ops.fft_conv import causal_conv
from models.ops.fused_ssd import FakeMambaSSD
from models.ops.scan_reference import chunked_scan
from models.ops.selective_scan import BACKWARD_OPS, CHECKED_CHANNELS, FORWARD_OPS, selective_scan
from models.ops.ssd import CHUNK, ssd, ssd_flops
from models.s4d import S4D
from models.s6 import S6
from models.wirings import Wiring

GATED_FORWARD_OPS, GATED_BACKWARD_OPS = 10.0, 22.0
"""For each channel and step, what the full call computes beside the scan (:mod:`benchmarks.operator_costs`)."""
DT_BIAS = -3.0
"""Bias before softplus: steps near 0.05, where a fresh model has them, so that states neither vanish nor explode."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Random inputs where and as wide as they are needed; without a generator (fake tensors) only shapes count."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator | None
    time_last: bool = False
    """Whether scans get their sequences as views of (B, D, L) tensors: what mamba-ssm's kernel reads without a copy."""

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def sequence(self, draw: Callable[..., Tensor], batch: int, seq_len: int, width: int) -> Tensor:
        """``(B, L, width)`` in the layout that the scan wants."""
        return draw(batch, width, seq_len).transpose(1, 2) if self.time_last else draw(batch, seq_len, width)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Inputs, the call on them, and what the call costs at the least."""

    draw: Callable[[Shape, Draw], list[Tensor]]
    call: Callable[..., Tensor]
    cost: CostForm
    only_on: str = ""
    """The one device type that it runs on; empty for any."""
    fused_scan: bool = False
    """Whether mamba-ssm's scan may run it, whose layout is (B, D, L)."""


# --- inputs --------------------------------------------------------------------------------------------------------


def _scan_inputs(shape: Shape, draw: Draw) -> list[Tensor]:
    B, L, D, N = shape.batch, shape.seq_len, shape.width, shape.d_state
    x_BLD = draw.sequence(draw.normal, B, L, D)
    dt_BLD = draw.sequence(draw.uniform, B, L, D).mul_(0.1)
    A_DN = -torch.arange(1.0, N + 1, device=draw.device, dtype=draw.wide).expand(D, N).contiguous()
    return [x_BLD, dt_BLD, A_DN, *(draw.sequence(draw.normal, B, L, N) for _ in range(2))]


def _full_scan_inputs(shape: Shape, draw: Draw) -> list[Tensor]:
    """As the scan's, with dt before bias and softplus; then D, z and the bias."""
    x_BLD, _, A_DN, B_BLN, C_BLN = _scan_inputs(shape, draw)
    raw_dt_BLD = draw.sequence(draw.normal, shape.batch, shape.seq_len, shape.width).mul_(0.3)
    D_D = draw.normal(shape.width, dtype=draw.wide)
    z_BLD = draw.sequence(draw.normal, shape.batch, shape.seq_len, shape.width)
    bias_D = torch.full((shape.width,), DT_BIAS, device=draw.device, dtype=draw.wide)
    return [x_BLD, raw_dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, bias_D]


def _ssd_inputs(shape: Shape, draw: Draw) -> list[Tensor]:
    """x, dt, A, B, C of Mamba-2: dt in float32 as its softplus gives it, rates A between -16 and -1."""
    B, L, H, P, N, G = (
        shape.batch, shape.seq_len, shape.num_heads, shape.head_dim, shape.d_state, shape.num_groups,
    )  # fmt: skip
    x_BLHP = draw.normal(B, L, H, P)
    dt_BLH = draw.uniform(B, L, H, dtype=draw.wide).mul_(0.1)
    A_H = draw.uniform(H, dtype=draw.wide).mul_(-15).sub_(1)
    return [x_BLHP, dt_BLH, A_H, draw.normal(B, L, G, N), draw.normal(B, L, G, N)]


def _conv_inputs(shape: Shape, draw: Draw) -> list[Tensor]:
    places_L = torch.arange(shape.seq_len, device=draw.device, dtype=draw.wide)
    kernel_DL = draw.normal(shape.width, shape.seq_len, dtype=draw.wide).mul_((places_L / -100.0).exp_())
    return [draw.normal(shape.batch, shape.width, shape.seq_len), kernel_DL]


def _attention_inputs(shape: Shape, draw: Draw) -> list[Tensor]:
    return [draw.normal(shape.batch, shape.num_heads, shape.seq_len, shape.head_dim) for _ in range(3)]


# --- calls ---------------------------------------------------------------------------------------------------------


def _scan(*inputs: Tensor, backend: str = "auto") -> Tensor:
    return selective_scan(*inputs, backend=backend)[0]


@functools.cache
def import_full_scan() -> Callable[..., Tensor] | None:
    """mamba-ssm's scan with everything that it takes along, where the package imports."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def full_scan(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor,
    z_BLD: Tensor,
    bias_D: Tensor,
) -> Tensor:
    """``(scan(x, softplus(dt + bias), A, B, C) + D x) silu(z)``: ``(B, L, D)`` in x's dtype."""
    fused = import_full_scan() if x_BLD.is_cuda and x_BLD.dtype != torch.float64 else None
    if is_fake(x_BLD) and stands_for(x_BLD) == "cuda":
        # What the kernel keeps: y before the gate, and z.
        out_BLD, backend, flops = _scan(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN) * z_BLD, "predicted", 0.0
    elif fused is None:
        y_BLD = _scan(x_BLD, F.softplus(dt_BLD + bias_D), A_DN, B_BLN, C_BLN)
        out_BLD = ((y_BLD + D_D * x_BLD) * F.silu(z_BLD)).to(x_BLD.dtype)
        backend, flops = "scan, then elementwise", 0.0  # the scan tells its own
    else:
        x, dt, B, C, z = (t.transpose(1, 2) for t in (x_BLD, dt_BLD, B_BLN, C_BLN, z_BLD))
        out_BLD = fused(x, dt, A_DN, B, C, D_D, z=z, delta_bias=bias_D, delta_softplus=True).transpose(1, 2)
        backend, flops = "mamba-ssm selective_scan_fn", float(x_BLD.numel() * A_DN.shape[1])
    inputs = (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, bias_D)
    observe(
        "selective_scan_full",
        backend,
        forward_flops=FORWARD_OPS * flops + GATED_FORWARD_OPS * x_BLD.numel(),
        backward_flops=BACKWARD_OPS * flops + GATED_BACKWARD_OPS * x_BLD.numel(),
        check=None if is_fake(x_BLD) else lambda: full_scan_error(*inputs, out_BLD),
    )
    return out_BLD


def full_scan_error(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, out: Tensor
) -> float:
    """Relative error of a few channels at full length, of the first and last sequence, against float64."""
    b = torch.tensor(sorted({0, len(x) - 1}), device=x.device)
    d = torch.linspace(0, x.shape[2] - 1, min(x.shape[2], CHECKED_CHANNELS)).round().long().to(x.device)
    x_d, dt_d, z_d, out_d = (t.index_select(2, d)[b].double() for t in (x, dt, z, out))
    dt_d = F.softplus(dt_d + bias[d].double())
    y_d, _ = chunked_scan(x_d, dt_d, A[d].double(), B[b].double(), C[b].double(), None)
    return relative_error(out_d, (y_d + D[d].double() * x_d) * F.silu(z_d))


@functools.cache
def import_chunk_scan() -> Callable[..., Tensor] | None:
    """mamba-ssm's Triton kernels of the state space dual, where the package imports."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return mamba_chunk_scan_combined


def _fake_chunk_scan(x_BLHP: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, _chunk: int) -> Tensor:
    return FakeMambaSSD.apply(x_BLHP, dt, A, B, C, None)[0]


def dual(
    x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Mamba-2's dual, which multiplies x and A by dt itself: ``(B, L, H, P)`` in x's dtype."""
    fused = None
    if backend == "auto" and x_BLHP.dtype != torch.float64:
        if is_fake(x_BLHP):
            fused = _fake_chunk_scan if stands_for(x_BLHP) == "cuda" else None
        elif x_BLHP.is_cuda:
            fused = import_chunk_scan()
    if fused is None:
        return ssd((x_BLHP * dt_BLH[..., None]).to(x_BLHP.dtype), dt_BLH * A_H, B_BLGN, C_BLGN, backend=backend)[0]
    chunk = CHUNK["mamba-ssm"]
    y_BLHP = fused(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, chunk)
    (B, L, H, P), (G, N) = x_BLHP.shape, B_BLGN.shape[2:]
    forward, backward = ssd_flops(seq_len=L, heads=H, head_dim=P, d_state=N, groups=G, chunk=chunk)
    observe(
        "ssd",
        "mamba-ssm mamba_chunk_scan_combined",
        forward_flops=B * forward,
        backward_flops=B * backward,
        check=None if is_fake(x_BLHP) else lambda: dual_error(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, y_BLHP),
    )
    return y_BLHP


def dual_error(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, y: Tensor) -> float:
    """Relative error of the first and last head and sequence at full length, against float64."""
    b = torch.tensor(sorted({0, len(x) - 1}), device=x.device)
    h = torch.tensor(sorted({0, x.shape[2] - 1}), device=x.device)
    g = h // (x.shape[2] // B.shape[2])  # one group a checked head
    x_h, dt_h, B_g, C_g = (t.index_select(2, i)[b].double() for t, i in ((x, h), (dt, h), (B, g), (C, g)))
    with observing():  # the reference need not be checked itself
        reference, _ = ssd(x_h * dt_h[..., None], dt_h * A[h].double(), B_g, C_g, backend="chunked")
    return relative_error(y.index_select(2, h)[b], reference)


def _attention_by(kernel: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Causal attention by this kernel. The call raises Unsupported where PyTorch cannot run it."""

    def call(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
        try:
            with force_kernel(kernel):
                return causal_attention(q_BHLK, k_BHLK, v_BHLK)
        except ValueError as error:
            raise Unsupported(f"attention_{kernel}: {error}") from error

    return call


_ATTENTION = Operator(draw=_attention_inputs, call=causal_attention, cost=attention_cost)
_SCAN = Operator(draw=_scan_inputs, call=_scan, cost=selective_scan_cost, fused_scan=True)
_SSD = Operator(draw=_ssd_inputs, call=dual, cost=ssd_cost)

OPERATORS: dict[str, Operator] = {
    "selective_scan": _SCAN,
    "selective_scan_full": Operator(
        draw=_full_scan_inputs, call=full_scan, cost=selective_scan_full_cost, fused_scan=True
    ),
    "selective_scan_torch": replace(_SCAN, call=functools.partial(_scan, backend="chunked"), fused_scan=False),
    "ssd": _SSD,
    "ssd_torch": replace(_SSD, call=functools.partial(dual, backend="chunked")),
    "fft_conv": Operator(draw=_conv_inputs, call=causal_conv, cost=fft_conv_cost),
    "attention": _ATTENTION,
    "attention_flash": replace(_ATTENTION, call=_attention_by("flash")),
    "attention_cudnn": replace(_ATTENTION, call=_attention_by("cudnn"), only_on="cuda"),
    "attention_efficient": replace(_ATTENTION, call=_attention_by("efficient"), only_on="cuda"),
    "attention_math": replace(_ATTENTION, call=_attention_by("math"), cost=materialised_attention_cost),
}


def find_operator(name: str, device_type: str) -> Operator:
    """The operator of a name. Raises Unsupported with the reason where it cannot run on this kind of device."""
    operator = OPERATORS[name]
    if operator.only_on and operator.only_on != device_type:
        raise Unsupported(f"{name} is a kernel for {operator.only_on}, and this trial is on {device_type}")
    return operator


def operator_of(mixer: Mixer, shape: Shape) -> tuple[str, Shape]:
    """Name and sizes of the operator that a model's mixer rests on. Raises Unsupported where it has none alone."""
    inner = mixer.inner if isinstance(mixer, Wiring) else mixer
    if isinstance(inner, S6):
        if not inner.is_published:
            raise Unsupported(f"the operator benchmark is of the real, fully selective scan, not of {inner.label}")
        return "selective_scan", replace(shape, width=inner.width, d_state=inner.d_state)
    if isinstance(inner, Attention):
        if inner.positions in ("alibi", "xpos") or inner.window:
            raise Unsupported(f"the operator benchmark is of plain causal attention, not of {inner.label}")
        return "attention", replace(shape, width=inner.d_model, head_dim=inner.head_dim)
    if isinstance(inner, S4D | Hyena):
        return "fft_conv", replace(shape, width=inner.width)
    if isinstance(inner, Mamba2):
        sizes = {"d_state": inner.d_state, "head_dim": inner.head_dim, "num_groups": inner.num_groups}
        return "ssd", replace(shape, width=inner.d_inner, **sizes)
    raise Unsupported(f"no operator benchmark for the mixer {type(inner).__name__}; use level: model")
