"""The kernels that mamba-ssm and causal-conv1d have for generation: a prompt that leaves its state, and one position.

They know no gradients and no float64. Elsewhere a mixer's own PyTorch operators do the same.

Shape suffixes: B batch, L sequence length, F channels, W width of the convolution.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ops import fused_inference
from models.ops.context import is_fake, stands_for

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_OFFSET = 2**31
"""mamba-ssm's Triton kernels count elements in 32 bits: beyond it they read elsewhere (seen: an illegal access, of
Mamba-2's block at 2^20 positions of 3,352 projections)."""


@dataclass(frozen=True, kw_only=True)
class InferenceKernels:
    """The packages' functions, by what they do."""

    conv: Callable[..., Tensor]
    """``causal_conv1d_fn``: of a whole sequence, channels before positions."""
    conv_step: Callable[..., Tensor]
    """``causal_conv1d_update``: of one position; shifts the window of the last inputs in place."""
    scan: Callable[..., tuple[Tensor, Tensor]]
    """``selective_scan_fn``: with gate, step bias and the last state."""
    dual: Callable[..., tuple[Tensor, Tensor]]
    """``mamba_chunk_scan_combined``: Mamba-2's, with skip, step bias and the last state."""
    state_step: Callable[..., Tensor]
    """``selective_state_update``: one position of a state, in place; of a channel's or a head's."""


@functools.cache
def _import() -> InferenceKernels | None:
    try:
        from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return InferenceKernels(
        conv=causal_conv1d_fn,
        conv_step=causal_conv1d_update,
        scan=selective_scan_fn,
        dual=mamba_chunk_scan_combined,
        state_step=selective_state_update,
    )


_STAND_INS = InferenceKernels(
    conv=fused_inference.causal_conv1d_fn,
    conv_step=fused_inference.causal_conv1d_update,
    scan=fused_inference.selective_scan_fn,
    dual=fused_inference.mamba_chunk_scan_combined,
    state_step=fused_inference.selective_state_update,
)


def inference_kernels(x: Tensor) -> InferenceKernels | None:
    """The kernels, or None where they cannot run on ``x`` or are not installed.

    For a fake tensor that stands for CUDA, functions that allocate what the kernels' do, installed or not: a plan for
    a GPU may be made elsewhere.
    """
    if x.dtype not in DTYPES or x.requires_grad:
        return None
    if is_fake(x):
        return _STAND_INS if stands_for(x) == "cuda" else None
    return _import() if x.is_cuda else None


def conv_silu(kernels: InferenceKernels, x_BLF: Tensor, weight_F1W: Tensor, bias_F: Tensor) -> Tensor:
    """``silu`` of a short convolution over a whole sequence: ``(B, L, F)``."""
    x_BFL = x_BLF.transpose(1, 2)
    # The kernel for channels that lie together loads eight at a time.
    if any(number % 8 for number in (x_BFL.shape[1], x_BFL.stride(0), x_BFL.stride(2))):
        x_BFL = x_BFL.contiguous()
    return kernels.conv(x_BFL, weight_F1W.squeeze(1), bias_F, activation="silu").transpose(1, 2)


def keep_window(x_BFL: Tensor, window_BFW: Tensor) -> None:
    """Leave the last W inputs of a sequence in the window, zeros before the first."""
    tail_BFw = x_BFL[..., -window_BFW.shape[-1] :]
    window_BFW.zero_()
    window_BFW[..., -tail_BFw.shape[-1] :] = tail_BFw


def projected_from_left(weight_ED: Tensor, x_BLD: Tensor) -> Tensor:
    """``x W^T`` with positions last, as the kernels want them, and no copy: ``(B, E, L)``."""
    B, L, _ = x_BLD.shape
    return (weight_ED @ x_BLD.flatten(0, 1).T).unflatten(1, (B, L)).transpose(0, 1)


def outgrows_32_bits(*tensors: Tensor | None) -> bool:
    """Whether the last element of any lies 2^31 or more behind its first, where Triton's kernels lose it."""
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) >= MAX_OFFSET
        for t in tensors
        if t is not None
    )
