"""Attention of a step of generation: one query a head, over the positions of a static cache that hold something.

=============  ======================================================================================================
decode-triton  on CUDA: blocks share the keys out among them and are merged by their log-sums (Flash-Decoding: Dao et
               al., 2023), so that one query fills the GPU; how many positions hold something is read on the device, so
               that a captured step reads those and no other (:mod:`models.ops.decode_attention_kernel`)
sdpa-held      on a CPU: PyTorch's over a slice of the cache, whose end the host may know there
sdpa-masked    elsewhere (float64 or wider heads on CUDA, gradients, no Triton): PyTorch's over the whole cache, masked
=============  ======================================================================================================

Shape suffixes: B batch, H heads, G key heads, R = H / G query heads that share one, K head dimension, M positions of
the cache, S positions that hold something, P parts that the keys are split into.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.context import is_fake, observe, relative_error, stands_for, why_missing
from models.ops.fused_attention import MULTIPROCESSORS
from models.ops.inference_kernels import DTYPES

MAX_HEAD_DIM = 256
"""Of the kernel, which holds some positions' whole heads in registers."""
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MIN_PART, _MAX_PARTS = 128, 64
"""Positions of a full cache's part, which must be worth the merging; one program merges a head's parts at once."""


def decode_attention(q_BHK: Tensor, keys_BGMK: Tensor, values_BGMK: Tensor, count_1: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(K)) v`` over the first ``count_1`` positions of a cache: ``(B, H, K)``.

    Args:
        q_BHK: ``(B, H, K)``; query head h reads key head ``h // (H / G)``.
        keys_BGMK, values_BGMK: ``(B, G, M, K)`` each, of q's dtype; slices of a longer cache too. G divides H.
        count_1: ``(1,)`` int64 on the same device, at least 1; more than M, as of a ring that went round, means M.
    """
    (B, H, K), M = q_BHK.shape, keys_BGMK.shape[2]
    seen = M  # as far as the host knows, and so the prediction
    if _has_kernel(q_BHK, keys_BGMK, values_BGMK):
        if is_fake(q_BHK):
            out_BHK, name = decode_buffers(q_BHK, num_parts(B * H, M, MULTIPROCESSORS))[0], "predicted"
        else:
            from models.ops.decode_attention_kernel import attend  # Triton comes with PyTorch for CUDA alone

            out_BHK, name = attend(q_BHK, keys_BGMK, values_BGMK, count_1), "decode-triton"
    elif is_fake(q_BHK) or q_BHK.device.type != "cpu":
        mask_1M = (torch.arange(M, device=q_BHK.device) < count_1)[None]
        out_BHK = _grouped_sdpa(q_BHK, keys_BGMK, values_BGMK, mask_1M)
        name = "predicted" if is_fake(q_BHK) else "sdpa-masked"
    else:
        seen = min(int(count_1), M)
        out_BHK, name = _grouped_sdpa(q_BHK, keys_BGMK[:, :, :seen], values_BGMK[:, :, :seen]), "sdpa-held"
    observe(
        "attention",
        name,
        forward_flops=4.0 * B * H * K * seen,
        # Of the cache as it is when the check runs: one that waited would see later steps'.
        check=lambda: _slice_error(q_BHK, keys_BGMK, values_BGMK, count_1, out_BHK),
    )
    return out_BHK


def _has_kernel(*tensors: Tensor) -> bool:
    """Whether Triton's kernel runs on query, keys and values; of fake tensors whether it would."""
    q = tensors[0]
    if q.dtype not in DTYPES or q.shape[-1] > MAX_HEAD_DIM:
        return False
    if any(t.dtype != q.dtype or t.stride(-1) != 1 or t.requires_grad for t in tensors):
        return False
    if is_fake(q):
        return stands_for(q) == "cuda"
    return q.is_cuda and not why_missing("triton")


def _grouped_sdpa(q_BHK: Tensor, keys_BGSK: Tensor, values_BGSK: Tensor, mask_1S: Tensor | None = None) -> Tensor:
    # The query heads that share a key head are its queries.
    q_BGRK = q_BHK.unflatten(1, (keys_BGSK.shape[1], -1))
    return F.scaled_dot_product_attention(q_BGRK, keys_BGSK, values_BGSK, attn_mask=mask_1S).flatten(1, 2)


def num_parts(num_rows: int, max_len: int, multiprocessors: int) -> int:
    """P, a power of two: so many that ``num_rows`` = B H times as many programs fill the GPU.

    It is fixed by the cache's M = ``max_len`` positions, since the host does not know how many hold something.
    """
    wanted = math.ceil(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors / num_rows)
    most = max(1, min(wanted, max_len // _MIN_PART, _MAX_PARTS))
    return 1 << (most.bit_length() - 1)


def decode_buffers(q_BHK: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel fills: the output ``(B, H, K)``, and in float32 each part's ``(B H, P, K)`` and its log-sum
    ``(B H, P)``. A single part is the output, and its log-sum is not asked for."""
    B, H, K = q_BHK.shape
    out_BHK = q_BHK.new_empty(B, H, K)
    if parts == 1:
        return out_BHK, out_BHK, out_BHK
    partial = q_BHK.new_empty(B * H, parts, K, dtype=torch.float32)
    return out_BHK, partial, q_BHK.new_empty(B * H, parts, dtype=torch.float32)


def _slice_error(q_BHK: Tensor, keys_BGMK: Tensor, values_BGMK: Tensor, count_1: Tensor, out_BHK: Tensor) -> float:
    """The first and the last head of the first and the last sequence, against float64 softmax."""
    (B, H, K), (G, M) = q_BHK.shape, keys_BGMK.shape[1:3]
    held = min(int(count_1), M)
    outs, references = [], []
    for b in sorted({0, B - 1}):
        for h in sorted({0, H - 1}):
            keys_SK, values_SK = (t[b, h // (H // G), :held].double() for t in (keys_BGMK, values_BGMK))
            scores_S = keys_SK @ q_BHK[b, h].double() / K**0.5
            references.append(scores_S.softmax(dim=0) @ values_SK)
            outs.append(out_BHK[b, h])
    return relative_error(torch.cat(outs), torch.cat(references))
