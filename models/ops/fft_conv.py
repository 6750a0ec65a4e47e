"""Long causal convolution by FFT, and the convolution kernel of a diagonal state space.

Shape suffixes: B batch, D channels, L sequence length, N complex modes, C chunks, T chunk length,
P sampled places.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.context import observe, relative_error

_NUM_CHECKED = 8
_PIECE = 2**15
"""Positions that are turned from channels last to channels first, or back, at a time."""


def fast_fft_len(minimum: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least ``minimum``: sizes that FFT libraries like."""
    best = 2 ** math.ceil(math.log2(max(minimum, 2)))
    five = 1
    while five < best:
        three = five
        while three < best:
            two = max(1, math.ceil(math.log2(max(1.0, minimum / three))))
            best = min(best, three * 2**two)
            three *= 3
        five *= 5
    return best


def fft_conv_flops(seq_len: int, channels: int, *, products: int = 1) -> float:
    """Operations of one sequence: three real transforms (2.5 n log2 n each), and a product of spectra forward."""
    n = fast_fft_len(2 * seq_len)
    return channels * (3 * 2.5 * n * math.log2(n) + products * 6 * (n / 2 + 1))


def causal_conv(x_BDL: Tensor, kernel_DL: Tensor) -> Tensor:
    """``y[t] = sum_j kernel[j] x[t - j]``, linear (zero-padded), computed in float32 or wider.

    Args:
        x_BDL: input of any floating dtype; half precisions are transformed in float32, because FFT
            libraries lose too much below it.
        kernel_DL: float32 or float64.

    Returns:
        ``(B, D, L)`` in the dtype of ``x``. Differentiable once.
    """
    B, D, L = x_BDL.shape
    y_BDL = _CausalConv.apply(x_BDL, kernel_DL)
    observe(
        "fft_conv",
        "torch-fft",
        forward_flops=B * fft_conv_flops(L, D),
        # One transform of dy, then a product and a transform back to each gradient.
        backward_flops=B * fft_conv_flops(L, D, products=2),
        check=lambda: _conv_error(x_BDL, kernel_DL, y_BDL),
    )
    return y_BDL


class _CausalConv(torch.autograd.Function):
    """PyTorch's own gradient of a real transform is a complex one of the whole length, and the kernel's is transformed
    back for each sequence: together three times these. The output lies in memory as x does."""

    @staticmethod
    def forward(ctx: Any, x_BDL: Tensor, kernel_DL: Tensor) -> Tensor:
        ctx.wide, ctx.fft_len = torch.promote_types(x_BDL.dtype, torch.float32), fast_fft_len(2 * x_BDL.shape[-1])
        ctx.kernel_dtype = kernel_DL.dtype
        x_BDF, kernel_DF = (torch.fft.rfft(_padded(t, ctx.fft_len, ctx.wide)) for t in (x_BDL, kernel_DL))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x_BDF, kernel_DF)
            y_BDF = x_BDF * kernel_DF
        else:
            y_BDF = x_BDF.mul_(kernel_DF)
        del x_BDF, kernel_DF  # what is not kept is gone before the transform back, where memory peaks
        return _transformed_back(y_BDF, ctx.fft_len, like=x_BDL)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BDL: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BDF, kernel_DF = ctx.saved_tensors
        x_wanted, kernel_wanted = ctx.needs_input_grad
        dx_BDL = dkernel_DL = None
        dy_BDF = torch.fft.rfft(_padded(dy_BDL, ctx.fft_len, ctx.wide))
        if kernel_wanted:
            products_BDF = x_BDF.conj_physical().mul_(dy_BDF)
            dkernel_DF = products_BDF.sum(0) if len(products_BDF) > 1 else products_BDF[0]
            del products_BDF
            dkernel_DL = _transformed_back(dkernel_DF, ctx.fft_len, like=dy_BDL[0], dtype=ctx.kernel_dtype)
            del dkernel_DF
        if x_wanted:
            dy_BDF.mul_(kernel_DF.conj_physical())
            dx_BDL = _transformed_back(dy_BDF, ctx.fft_len, like=dy_BDL)
        return dx_BDL, dkernel_DL


def _padded(tensor: Tensor, fft_len: int, dtype: torch.dtype) -> Tensor:
    """``(…, fft_len)``, dense, with zeros behind."""
    length = tensor.shape[-1]
    padded = tensor.new_empty(*tensor.shape[:-1], fft_len, dtype=dtype)
    padded[..., length:].zero_()
    _copy(tensor, padded[..., :length])
    return padded


def _transformed_back(spectrum: Tensor, fft_len: int, *, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    whole = torch.fft.irfft(spectrum, n=fft_len)
    out = torch.empty_like(like, dtype=dtype or like.dtype)
    _copy(whole[..., : like.shape[-1]], out)
    return out


def _copy(source: Tensor, target: Tensor) -> None:
    """A piece of time after another, for the cache's sake: where one of the two has its channels side by side, a whole
    million took five times as long a position as 64K on an H200. What pieces gain was not timed apart."""
    for start in range(0, source.shape[-1], _PIECE):
        target[..., start : start + _PIECE].copy_(source[..., start : start + _PIECE])


def _conv_error(x_BDL: Tensor, kernel_DL: Tensor, y_BDL: Tensor) -> float:
    """Sampled places of sampled channels against the direct sum in float64."""
    _, D, L = x_BDL.shape
    channels = torch.linspace(0, D - 1, min(D, _NUM_CHECKED), device=x_BDL.device).long()
    places = torch.linspace(0, L - 1, min(L, _NUM_CHECKED), device=x_BDL.device).long().tolist()
    x, kernel = x_BDL[0, channels].double(), kernel_DL[channels].double()
    direct = [(x[:, : t + 1].flip(-1) * kernel[:, : t + 1]).sum(-1) for t in places]
    return relative_error(y_BDL[0, channels][:, places], torch.stack(direct, dim=-1))


def chunk_len(seq_len: int) -> int:
    """Chunks near the square root of the length balance the two factors of a power w^t."""
    return 2 ** max(4, round(math.log2(seq_len) / 2))


def ssm_kernel(coefficients_DN: Tensor, log_decay_DN: Tensor, seq_len: int) -> Tensor:
    """``K[t] = sum_n coefficients[n] exp(t * log_decay[n])`` for t < seq_len: ``(D, L)`` real.

    Complex modes stand for conjugate pairs: twice the real part of the sum.

    The powers are split as w^(c T + t) = w^(c T) w^t, so that memory grows as D (L + N sqrt(L))
    and not as D N L; the sum over modes is one batched matrix product.
    """
    T = chunk_len(seq_len)
    num_chunks = -(-seq_len // T)
    starts_C = torch.arange(num_chunks, device=log_decay_DN.device, dtype=log_decay_DN.real.dtype) * T
    within_T = torch.arange(T, device=log_decay_DN.device, dtype=log_decay_DN.real.dtype)
    outer_DCN = coefficients_DN[:, None] * torch.exp(starts_C[:, None] * log_decay_DN[:, None])
    inner_DNT = torch.exp(log_decay_DN[..., None] * within_T)
    if not log_decay_DN.is_complex():
        return torch.bmm(outer_DCN, inner_DNT).flatten(1)[:, :seq_len]
    # 2 Re(u v) = 2 (Re u Re v - Im u Im v): one real product of twice the depth.
    left_DC2N = torch.cat([outer_DCN.real, -outer_DCN.imag], dim=-1)
    right_D2NT = torch.cat([inner_DNT.real, inner_DNT.imag], dim=-2)
    return 2 * torch.bmm(left_DC2N, right_D2NT).flatten(1)[:, :seq_len]


def ssm_final_state(x_BDL: Tensor, input_DN: Tensor, log_decay_DN: Tensor) -> Tensor:
    """``h = sum_t exp((L - 1 - t) log_decay) input x[t]``: the state after the last position, ``(B, D, N)``."""
    B, D, L = x_BDL.shape
    T = chunk_len(L)
    num_chunks = -(-L // T)
    padded = torch.nn.functional.pad(x_BDL.to(log_decay_DN.real.dtype), (num_chunks * T - L, 0))
    real_dtype = log_decay_DN.real.dtype
    remaining_T = torch.arange(T - 1, -1, -1, device=x_BDL.device, dtype=real_dtype)
    remaining_C = torch.arange(num_chunks - 1, -1, -1, device=x_BDL.device, dtype=real_dtype) * T
    within_DTN = torch.exp(remaining_T[:, None] * log_decay_DN[:, None])
    chunks_BDCT = padded.view(B, D, num_chunks, T).to(log_decay_DN.dtype)
    states_BDCN = chunks_BDCT @ within_DTN
    return (states_BDCN * torch.exp(remaining_C[:, None] * log_decay_DN[:, None])).sum(dim=2) * input_DN
