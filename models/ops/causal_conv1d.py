"""Short depthwise causal convolution, as in every Mamba block.

On CUDA it is causal-conv1d's kernel where that is installed: one pass over memory each way, where PyTorch's operators
take some twenty with the gradients. Elsewhere W shifted multiply-adds.

Shape suffixes: B batch, L sequence length, E channels, W width of the convolution.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.context import is_fake, observe, relative_error, stands_for

_WIDTHS = (2, 3, 4)
_VECTOR = 8
"""The kernel for channels that lie together loads so many at a time."""
_NUM_CHECKED = 4096


def causal_conv1d(x_BLE: Tensor, weight_E1W: Tensor, bias_E: Tensor) -> Tensor:
    """Position t sees t - W + 1 … t: ``(B, L, E)``."""
    B, L, E = x_BLE.shape
    width = weight_E1W.shape[-1]
    kernel = _kernel_for(x_BLE, width)
    if kernel is None:
        y_BLE = shifted_multiply_adds(x_BLE, weight_E1W, bias_E)
    else:
        y_BLE = kernel(x_BLE.transpose(1, 2), weight_E1W.squeeze(1), bias_E).transpose(1, 2)
    observe(
        "causal_conv1d",
        "torch" if kernel is None else "causal-conv1d",
        forward_flops=2.0 * B * L * E * width,
        backward_flops=4.0 * B * L * E * width,
        check=None if kernel is None or is_fake(x_BLE) else lambda: _end_error(x_BLE, weight_E1W, bias_E, y_BLE),
    )
    return y_BLE


def causal_conv1d_silu(x_BLE: Tensor, weight_E1W: Tensor, bias_E: Tensor) -> Tensor:
    """``silu(conv(x))``; see :func:`causal_conv1d`."""
    return F.silu(causal_conv1d(x_BLE, weight_E1W, bias_E))


def shifted_multiply_adds(x_BLE: Tensor, weight_E1W: Tensor, bias_E: Tensor) -> Tensor:
    """The convolution in PyTorch, in our layout.

    On one CPU thread it is neither faster nor slower than PyTorch's grouped convolution between transpositions (0.4
    against 0.3 ms at 1K positions of 128 channels, 147 against 136 ms at 64K).
    """
    length, width = x_BLE.shape[1], weight_E1W.shape[-1]
    padded = F.pad(x_BLE, (0, 0, width - 1, 0))
    weight_WE = weight_E1W.squeeze(1).T.to(x_BLE.dtype)
    y_BLE = bias_E.to(x_BLE.dtype) + padded[:, :length] * weight_WE[0]
    for w in range(1, width):
        y_BLE = y_BLE.addcmul(padded[:, w : w + length], weight_WE[w])
    return y_BLE


def _kernel_for(x_BLE: Tensor, width: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """causal-conv1d's function, its stand-in for a fake tensor that stands for CUDA, or None where it cannot run."""
    places = (x_BLE.shape[2], x_BLE.stride(0), x_BLE.stride(1), x_BLE.storage_offset())
    if width not in _WIDTHS or x_BLE.dtype == torch.float64:
        return None
    if x_BLE.stride(2) != 1 or any(place % _VECTOR for place in places):
        return None
    if is_fake(x_BLE):
        return _FakeCausalConv1d.apply if stands_for(x_BLE) == "cuda" else None
    return _package() if x_BLE.is_cuda else None


@functools.cache
def _package() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        return None
    return causal_conv1d_fn


def _end_error(x_BLE: Tensor, weight_E1W: Tensor, bias_E: Tensor, y_BLE: Tensor) -> float:
    """At the last positions: a wrong offset shows where offsets are largest."""
    count = min(_NUM_CHECKED, x_BLE.shape[1])
    seen_BLE = x_BLE[:, -count - weight_E1W.shape[-1] + 1 :]
    return relative_error(y_BLE[:, -count:], shifted_multiply_adds(seen_BLE, weight_E1W, bias_E)[:, -count:])


class _FakeCausalConv1d(torch.autograd.Function):
    """What causal-conv1d 1.7.0 allocates, and no data; :mod:`models.ops.fused_blocks` has the rules."""

    @staticmethod
    def forward(ctx: Any, x_BEL: Tensor, weight_EW: Tensor, bias_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_BEL, weight_EW, bias_E)
        return torch.empty_like(x_BEL)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BEL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BEL, weight_EW, bias_E = ctx.saved_tensors
        if dy_BEL.stride(1) != 1:  # channels must lie together here too
            dy_BEL = dy_BEL.transpose(1, 2).contiguous().transpose(1, 2)
        wide = [torch.zeros_like(t, dtype=torch.float32).to(t.dtype) for t in (weight_EW, bias_E)]
        return torch.empty_like(x_BEL), wide[0], wide[1]
