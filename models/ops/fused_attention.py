"""The stand-in for CUDA's attention kernels on fake tensors; :mod:`models.ops.fused_blocks` has the rules.

Read off PyTorch's ``aten/src/ATen/native/transformers/cuda`` and its cuDNN graph (2.11 to 2.13), each kernel's
workspace with it, and held by what an H200 allocated.

Shape suffixes: B batch, H heads, L queries, S keys, K head dimension.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLASH_QUERIES = 128
"""Flash's backward works on whole blocks of queries, and so does its workspace."""
MULTIPROCESSORS = 132
"""Of an H100 and an H200 (SXM): how many of them a forward of flash's fills decides whether it splits the keys."""


def expected_kernel(q_BHLK: Tensor) -> str:
    """The kernel that runs where none is asked for: cuDNN's, which an H200 measured as the fastest at every length from
    512 to 32K forward and from 1K to 16K in a train step. Neither it nor flash takes float32."""
    return "cudnn" if q_BHLK.dtype in (torch.float16, torch.bfloat16) else "efficient"


def fake_attention(q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, kernel: str) -> Tensor:
    """``(B, H, L, K)`` without data, by flash, cudnn or efficient."""
    return FakeAttention.apply(q_BHLK, k_BHSK, v_BHSK, kernel)


class FakeAttention(torch.autograd.Function):
    """In units of the query's bytes T, with keys as many:

    =========  ===================================================================================================
    forward    the output T, and each query's log of its sum in float32: flash always, others for a backward;
               flash, for each of several splits of the keys: its output in float32 2 T, and its own sums
    backward   dq, dk, dv 3 T; dq again in float32, which blocks of keys add to; a float a query
               flash: copies of the output and its gradient, 2 T, unless heads lie beside each other
    =========  ===================================================================================================
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
        # Efficient makes (B, L, H, K) and shows it transposed; the others keep q's layout.
        out = _heads_inside(q) if kernel == "efficient" else torch.empty_like(q)
        if kernel == "flash" or any(ctx.needs_input_grad):
            log_sums = q.new_empty(q.shape[:3], dtype=torch.float32)
            ctx.save_for_backward(q, k, v, out, log_sums)
        if kernel == "flash" and (splits := flash_splits(q, k)) > 1:
            B, H, L, K = q.shape
            _partial_sums = q.new_empty(splits, B, H, L, dtype=torch.float32)
            _partial_outputs = q.new_empty(splits, B, H, L, _rounded(K, 32), dtype=torch.float32)
        ctx.kernel = kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, _ = ctx.saved_tensors
        B, H, L, K = q.shape
        if ctx.kernel == "flash":
            _copies = [t.transpose(1, 2).contiguous() for t in (dout, out)]
            L, K = _rounded(L, FLASH_QUERIES), _rounded(K, 32 if K <= 128 else 64)
        gradient_of = _heads_inside if ctx.kernel == "efficient" else torch.empty_like
        dq, dk, dv = gradient_of(q), gradient_of(k), gradient_of(v)
        if q.dtype != torch.float32:
            _wide_dq = q.new_empty(B, H, L, K, dtype=torch.float32)
        _dout_out = q.new_empty(B, H, L, dtype=torch.float32)  # products of the output and its gradient, summed
        return dq, dk, dv, None


def flash_splits(q_BHLK: Tensor, k_BHSK: Tensor) -> int:
    """Into how many parts a forward of flash's splits the keys, so that few queries still fill the GPU.

    FlashAttention-2's rule in PyTorch (``num_splits_heuristic``): the fewest parts that use the multiprocessors, of two
    blocks each, at least 85 % as well as the best number does; one where the queries alone fill four fifths of them.
    """
    B, H, L, K = q_BHLK.shape
    places, queries = 2 * MULTIPROCESSORS, B * H * math.ceil(L / 64)
    if queries >= 0.8 * places:
        return 1
    key_blocks = math.ceil(k_BHSK.shape[2] / (256 if K <= 64 else 128 if K <= 128 else 64))
    # Another part that takes away no block from the longest one is none.
    eligible = [
        n
        for n in range(1, min(128, places, key_blocks) + 1)
        if n == 1 or math.ceil(key_blocks / n) != math.ceil(key_blocks / (n - 1))
    ]
    use = {n: (waves := queries * n / places) / math.ceil(waves) for n in eligible}
    return next(n for n in eligible if use[n] >= 0.85 * max(use.values()))


def _heads_inside(like_BHLK: Tensor) -> Tensor:
    return torch.empty_like(like_BHLK.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _rounded(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple
