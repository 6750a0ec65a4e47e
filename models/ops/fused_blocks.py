"""Stand-ins for mamba-ssm's fused blocks on fake tensors: they allocate what the kernels' functions do, and compute
nothing.

A fake tensor has no data to give a CUDA kernel, and the portable form of a block holds more than the fused one. So
these functions take the same arguments, create every tensor that the real function creates, in its order and dtype,
and keep it as long: a name here is a local variable there, and ``del`` stands where that one is set anew or its
function returns. They were read off mamba-ssm 2.3.2 and causal-conv1d 1.7.0; what is smaller than a channel's worth of
floats is left out. FLOPs are the caller's to state: it reports the same numbers for the real block.

Glossary: ``scan`` is the CUDA extension of the selective scan, ``conv`` that of causal-conv1d; a *narrow* dtype is the
one of activations, half under autocast; ``A, D, dt``: decay, skip, step size.

Shape suffixes: B batch, L sequence length, D d_model, E inner width, R rank of dt, N states, J = R + 2 N, W conv width;
of Mamba-2 also H heads, P head_dim, G groups, F = E + 2 G N, Z = 2 E + 2 G N + H, K chunks, Q steps of a chunk.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.fused_ssd import NUM_SMS, SSDSizes, hold_ssd_backward, hold_ssd_forward

SCAN_CHUNK = 2048
"""Steps of the selective scan between which it keeps the state and the product of decays, in float32."""


def mamba_inner(
    xz_B2EL: Tensor,
    conv_weight_E1W: Tensor,
    conv_bias_E: Tensor,
    x_proj_weight_JE: Tensor,
    dt_proj_weight_ER: Tensor,
    out_proj_weight_DE: Tensor,
    out_proj_bias_D: None,
    A_EN: Tensor,
    B: None,
    C: None,
    *,
    D: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """As ``mamba_ssm.ops.selective_scan_interface.mamba_inner_fn``: ``(B, L, D)``, without data.

    ``xz`` is ``(B, 2 E, L)``; projections out have no bias, B and C depend on the input: the arguments of that name
    are None.
    """
    assert out_proj_bias_D is None and B is None and C is None
    weights = (conv_weight_E1W, conv_bias_E, x_proj_weight_JE, dt_proj_weight_ER, out_proj_weight_DE)
    return FakeMambaInner.apply(xz_B2EL, *weights, A_EN, D, delta_bias)


class FakeMambaInner(torch.autograd.Function):
    """mamba-ssm's ``MambaInnerFn`` with ``checkpoint_lvl=1``.

    In units of ``B L E`` narrow elements:

    ==================  ====================================================================================
    saved               xz 2 (a copy, if its positions are not adjacent), the scan's output before the gate 1;
                        x_proj's output J / E, B and C 2 N / E; per 2048 steps, 2 N floats a channel
    forward, at most    saved, and conv 1, dt 1, gated output 1; the caller's own xz 2, where it was copied
    backward, at most   saved, and conv 1, dt 1, d(xz) 2, d(gated) 1, d(conv) 1, d(dt) 1, gated output 1;
                        with more than one sequence, 1 for a transposed copy
    ==================  ====================================================================================

    Under autocast the three projections' weights are saved as narrow copies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        x_proj_weight: Tensor,
        dt_proj_weight: Tensor,
        out_proj_weight: Tensor,
        A: Tensor,
        D: Tensor,
        dt_bias: Tensor,
    ) -> Tensor:
        batch, _, length = xz.shape
        x_proj_weight, dt_proj_weight = _autocast(x_proj_weight), _autocast(dt_proj_weight)
        out_proj_weight = _autocast(out_proj_weight)
        xz = dense(xz)  # (B, 2 E, L)
        x, z = xz.chunk(2, dim=1)
        conv_out = torch.empty_like(x)  # (B, E, L)
        x_dbl = _rows(conv_out).new_empty(batch * length, x_proj_weight.shape[0])  # (B L, J)
        dt = _by_channel(x_dbl, x.shape)
        B, C = (x_dbl.new_empty(batch, 1, A.shape[1], length) for _ in range(2))
        out, scanned, gated = torch.empty_like(dt), scan_states(dt, A), torch.empty_like(z)
        del conv_out, dt
        ctx.save_for_backward(
            xz, conv_weight, conv_bias, x_dbl, x_proj_weight, dt_proj_weight, out_proj_weight, A, B, C, D, dt_bias,
            scanned, out,
        )  # fmt: skip
        # PyTorch's product folds the batch into rows, which copies, if the weight is a parameter itself.
        rows = _rows(gated) if out_proj_weight.requires_grad else gated
        return rows.new_empty(batch, length, out_proj_weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (xz, conv_weight, conv_bias, x_dbl, x_proj_weight, dt_proj_weight, out_proj_weight, A, B, C, D, dt_bias,
         _scanned, out) = ctx.saved_tensors  # fmt: skip
        x, _ = xz.chunk(2, dim=1)
        dy = dense(dy)
        conv_out, dt = torch.empty_like(x), _by_channel(x_dbl, x.shape)
        dxz = torch.empty_like(xz)
        _held: list[Tensor] = [_by_channel(dy, x.shape)]  # gradient of the gated output
        # The scan: its gated output again, and gradients.
        gated = torch.empty_like(out)
        dconv_out, ddt = torch.empty_like(conv_out), torch.empty_like(dt)
        wide_dB, wide_dC = (torch.empty_like(t, dtype=torch.float32) for t in (B, C))
        dA, dD, ddt_bias = (torch.empty_like(t) for t in (A, D, dt_bias))
        dB, dC = wide_dB.to(B.dtype), wide_dC.to(C.dtype)
        del wide_dB, wide_dC
        # Projections.
        dout_proj_weight = torch.empty_like(out_proj_weight)
        dx_dbl = torch.empty_like(x_dbl)
        dB = dB.clone()  # positions first, then written into dx_dbl
        del dB
        dC = dC.clone()
        del dC
        ddt_proj_weight = torch.empty_like(dt_proj_weight)
        x_dbl.new_empty(x_dbl.shape[0], dt_proj_weight.shape[1])  # d(rows of dt's rank), then written into dx_dbl
        dconv_out = dconv_out.transpose(0, 1).reshape(x.shape[1], -1)  # (E, B L): a copy if B > 1
        _rows(conv_out)
        dx_proj_weight = torch.empty_like(x_proj_weight)
        # The convolution's gradient of x goes into dxz.
        dconv_weight = torch.empty_like(conv_weight, dtype=torch.float32).to(conv_weight.dtype)
        dconv_bias = torch.empty_like(conv_bias, dtype=torch.float32).to(conv_bias.dtype)
        _held += [gated, dconv_out, ddt, dx_dbl]
        return (
            dxz, dconv_weight, dconv_bias, dx_proj_weight, ddt_proj_weight, dout_proj_weight, dA, dD, ddt_bias,
        )  # fmt: skip


def scan_states(u_BEL: Tensor, A_EN: Tensor) -> Tensor:
    num_chunks = math.ceil(u_BEL.shape[2] / SCAN_CHUNK)
    return u_BEL.new_empty(*u_BEL.shape[:2], num_chunks, 2 * A_EN.shape[1], dtype=torch.float32)


def _autocast(weight: Tensor) -> Tensor:
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _rows(t_BEL: Tensor) -> Tensor:
    """``(B L, E)``: a view of one sequence, a copy of several."""
    return t_BEL.transpose(1, 2).reshape(-1, t_BEL.shape[1])


def _by_channel(like: Tensor, shape: torch.Size) -> Tensor:
    """A product ``(E, B L)``, seen as ``(B, E, L)``."""
    batch, channels, length = shape
    return like.new_empty(channels, batch * length).unflatten(1, (batch, length)).transpose(0, 1)


def mamba_split_conv1d_scan_combined(
    zxbcdt_BLZ: Tensor,
    conv_weight_FW: Tensor,
    conv_bias_F: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    *,
    D: Tensor,
    chunk_size: int,
    rmsnorm_weight: Tensor,
    outproj_weight: Tensor,
    headdim: int,
    ngroups: int,
    **_same_memory: object,
) -> Tensor:
    """As the function of that name in ``mamba_ssm.ops.triton.ssd_combined``: ``(B, L, D)``, without data.

    Args as there, with the gated norm and the projection out; activation, eps and the norm's place change no memory.
    """
    weights = (conv_weight_FW, conv_bias_F, dt_bias_H, A_H, D, rmsnorm_weight, outproj_weight)
    return FakeMamba2Block.apply(zxbcdt_BLZ, *weights, chunk_size, headdim, ngroups)


class FakeMamba2Block(torch.autograd.Function):
    """mamba-ssm's ``MambaSplitConv1dScanCombinedFn``; its projection out is a product of PyTorch's here too, and
    counted as such.

    ==================  ====================================================================================
    saved               the projection in ``B L Z``, the scan's output ``B L E``, the norm's ``B L G`` floats
    forward, at most    saved, and conv ``B L F``, normed output ``B L E``, the states of chunks ``B K H P N`` twice
                        (narrow and float32) or scores ``B K G Q Q`` floats
    backward, at most   saved, and conv and its gradient ``2 B L F``, d(zxbcdt) ``B L Z``, output again and two
                        gradients of it ``3 B L E``, and the scan's (:mod:`models.ops.fused_ssd`)
    ==================  ====================================================================================

    Where Z is no multiple of eight, the convolution takes a copy of its channels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        zxbcdt: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
        norm_weight: Tensor,
        out_proj_weight: Tensor,
        chunk: int,
        head_dim: int,
        groups: int,
    ) -> Tensor:
        batch, length, _ = zxbcdt.shape
        heads, width = A.shape[0], conv_weight.shape[0]
        inner = heads * head_dim
        sizes = SSDSizes(batch, length, heads, head_dim, groups, (width - inner) // groups // 2, chunk)
        xBC = zxbcdt[..., inner : inner + width]
        xBC_conv = _convolved(xBC)  # (B, L, F)
        out, *_held = hold_ssd_forward(xBC_conv, sizes)
        rstd = torch.empty(groups * batch * length, dtype=torch.float32, device=out.device)
        normed = torch.empty_like(out)
        out_proj_weight = _autocast(out_proj_weight)
        y = F.linear(normed.to(out_proj_weight.dtype), out_proj_weight)  # (B, L, D)
        ctx.save_for_backward(
            zxbcdt, conv_weight, conv_bias, out, A, D, dt_bias, norm_weight, rstd, out_proj_weight
        )  # fmt: skip
        ctx.sizes = sizes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        zxbcdt, conv_weight, conv_bias, out, A, D, dt_bias, norm_weight, rstd, out_proj_weight = ctx.saved_tensors
        sizes: SSDSizes = ctx.sizes
        inner, width = sizes.heads * sizes.head_dim, conv_weight.shape[0]
        xBC = zxbcdt[..., inner : inner + width]
        out_again = torch.empty_like(out)
        xBC_conv = _convolved(xBC)
        dzxbcdt, dxBC = torch.empty_like(zxbcdt), torch.empty_like(xBC)
        dnormed = F.linear(dy, out_proj_weight.t())  # (B, L, E)
        dout = torch.empty_like(out)
        dnorm_weight = _norm_weight_gradient(norm_weight, sizes.groups, out.element_size())
        hold_ssd_backward(xBC_conv, zxbcdt[..., -sizes.heads :], sizes)
        dA, dD, ddt_bias = (torch.empty_like(t, dtype=torch.float32) for t in (A, D, dt_bias))
        dout_proj_weight = torch.einsum("bld,ble->de", dy, out_again)
        # The convolution: x again if its rows are not aligned, and then a gradient that is copied into its place.
        dconv_in = dzxbcdt[..., inner : inner + width]
        _x, dconv_in = _aligned(xBC), _aligned(dconv_in)
        dconv_weight = torch.empty_like(conv_weight, dtype=torch.float32).to(conv_weight.dtype)
        dconv_bias = torch.empty_like(conv_bias, dtype=torch.float32).to(conv_bias.dtype)
        del xBC_conv, dxBC, dnormed, dout, rstd  # all of them are held until here
        return (
            dzxbcdt, dconv_weight, dconv_bias, ddt_bias, dA, dD, dnorm_weight, dout_proj_weight, None, None, None,
        )  # fmt: skip


def _aligned(xBC_BLF: Tensor) -> Tensor:
    """What the convolution takes: rows a multiple of eight elements apart, a copy if need be."""
    return xBC_BLF if xBC_BLF.stride(1) % 8 == 0 else xBC_BLF.contiguous()


def _convolved(xBC_BLF: Tensor) -> Tensor:
    return torch.empty_like(_aligned(xBC_BLF), memory_format=torch.contiguous_format)


def _norm_weight_gradient(weight_E: Tensor, groups: int, element_size: int) -> Tensor:
    """By partial sums, one row a program."""
    group_size = weight_E.shape[0] // groups
    block = min(2**16 // element_size, 1 << (group_size - 1).bit_length())
    num_warps = min(max(block // 256, 1), 8)
    rows = math.ceil(NUM_SMS * math.ceil(4 / num_warps) / groups)
    return weight_E.new_empty(rows, weight_E.shape[0], dtype=torch.float32).sum(0).to(weight_E.dtype)


def rms_norm(x: Tensor, weight_D: Tensor | None) -> Tensor:
    """As PyTorch's fused RMSNorm on CUDA: ``(…, D)``, without data. On a CPU it is a chain of operators instead."""
    return FakeRMSNorm.apply(x, weight_D)


class FakeRMSNorm(torch.autograd.Function):
    """``aten::_fused_rms_norm``: keeps its input and one float a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)
