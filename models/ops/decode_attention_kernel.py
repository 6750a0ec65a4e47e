"""Triton's kernel of :func:`models.ops.decode_attention.decode_attention`: Flash-Decoding (Dao et al., 2023).

One program reads one part of one query head's keys and values, and a second kernel merges a head's parts. The parts
are those of the positions that hold something, whose number the programs load: the launch is the same at any number,
as a captured graph needs it. Importing this module needs Triton.

Within a part every place of a block has a softmax of its own, of the positions that it meets in block after block:
so a warp waits for no other before the end.

Shape suffixes: B batch, H query heads, G key heads, K head dimension, M positions of the cache, N positions of a block,
P parts.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.ops.decode_attention import decode_buffers, num_parts
from models.ops.fused_attention import MULTIPROCESSORS

_BLOCK_BYTES = 2**13
"""Of a block of keys, and of one of values: of 2**14 a multiprocessor holds three programs, of this the four that
:func:`num_parts` counts on, and with two more blocks of each on their way they keep the memory busy."""
_MIN_BLOCK, _MAX_BLOCK = 16, 128


# One compilation serves every cache and number of heads: those of a U-Net's stages differ.
@triton.jit(do_not_specialize=["num_heads", "num_sharing", "max_len"])
def _attend_part(  # type: ignore[no-untyped-def]
    q_ptr, keys_ptr, values_ptr, count_ptr, partial_ptr, log_sums_ptr,
    q_batch, q_head, keys_batch, keys_head, keys_place, values_batch, values_head, values_place,  # strides
    num_heads,
    num_sharing,  # query heads that share a key head
    max_len,  # M
    scale,  # of scores, with log2(e): powers of two are the GPU's own
    K: tl.constexpr,
    WIDE_K: tl.constexpr,  # K up to a power of two
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    batch, head = row // num_heads, row % num_heads
    key_head = head // num_sharing
    held = tl.minimum(tl.load(count_ptr), max_len).to(tl.int32)
    part_len = tl.cdiv(tl.cdiv(held, PARTS), BLOCK) * BLOCK
    start = part * part_len
    stop = tl.minimum(start + part_len, held)

    k_K = tl.arange(0, WIDE_K)
    in_K = k_K < K
    q_K = tl.load(q_ptr + batch * q_batch + head * q_head + k_K, mask=in_K, other=0.0).to(tl.float32) * scale
    keys_ptr += batch * keys_batch + key_head * keys_head
    values_ptr += batch * values_batch + key_head * values_head

    # Not minus infinity: a place that has met no position yet would subtract it from itself.
    highest_N = tl.full([BLOCK], -1.0e30, dtype=tl.float32)
    total_N = tl.zeros([BLOCK], dtype=tl.float32)
    sum_NK = tl.zeros([BLOCK, WIDE_K], dtype=tl.float32)
    # With stages of its own a loop without matrix products is pipelined too.
    for first in tl.range(start, stop, BLOCK, num_stages=STAGES):
        place_N = first + tl.arange(0, BLOCK)
        in_N = place_N < stop
        in_NK = in_N[:, None] & in_K[None, :]
        far_N1 = place_N.to(tl.int64)[:, None]
        k_NK = tl.load(keys_ptr + far_N1 * keys_place + k_K[None, :], mask=in_NK, other=0.0)
        v_NK = tl.load(values_ptr + far_N1 * values_place + k_K[None, :], mask=in_NK, other=0.0)
        scores_N = tl.where(in_N, tl.sum(k_NK.to(tl.float32) * q_K[None, :], axis=1), float("-inf"))
        higher_N = tl.maximum(highest_N, scores_N)
        shrink_N = tl.exp2(highest_N - higher_N)
        weight_N = tl.exp2(scores_N - higher_N)
        total_N = total_N * shrink_N + weight_N
        sum_NK = sum_NK * shrink_N[:, None] + weight_N[:, None] * v_NK.to(tl.float32)
        highest_N = higher_N

    highest = tl.max(highest_N, axis=0)
    weight_N = tl.exp2(highest_N - highest)
    total = tl.sum(total_N * weight_N, axis=0)
    # A part without positions: zeros, and a log-sum of minus infinity.
    out_K = tl.sum(sum_NK * weight_N[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(partial_ptr + (row * PARTS + part) * K + k_K, out_K, mask=in_K)
    if PARTS > 1:
        tl.store(log_sums_ptr + row * PARTS + part, highest + tl.log2(total))


@triton.jit
def _merge_parts(  # type: ignore[no-untyped-def]
    partial_ptr, log_sums_ptr, out_ptr, K: tl.constexpr, WIDE_K: tl.constexpr, PARTS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part_P, k_K = tl.arange(0, PARTS), tl.arange(0, WIDE_K)
    in_K = k_K < K
    log_sums_P = tl.load(log_sums_ptr + row * PARTS + part_P)
    weight_P = tl.exp2(log_sums_P - tl.max(log_sums_P, axis=0))
    partial_PK = tl.load(
        partial_ptr + (row * PARTS + part_P)[:, None] * K + k_K[None, :], mask=in_K[None, :], other=0.0
    )
    out_K = tl.sum(partial_PK * weight_P[:, None], axis=0) / tl.sum(weight_P, axis=0)
    tl.store(out_ptr + row * K + k_K, out_K, mask=in_K)


def attend(
    q_BHK: Tensor,
    keys_BGMK: Tensor,
    values_BGMK: Tensor,
    count_1: Tensor,
    *,
    parts: int | None = None,
    block: int | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Tensor:
    """As :func:`models.ops.decode_attention.decode_attention`; the last dimension of each must have stride 1.

    Args:
        parts, block: how many parts, and positions of a block; powers of two. Chosen by the sizes if not given.
        num_warps, num_stages: of a program that reads a part: its width, and blocks on their way at a time.
    """
    (B, H, K), (G, M) = q_BHK.shape, keys_BGMK.shape[1:3]
    wide = triton.next_power_of_2(K)
    if parts is None:
        parts = num_parts(B * H, M, _multiprocessors(q_BHK.device))
    if block is None:
        block = min(max(_BLOCK_BYTES // (wide * q_BHK.element_size()), _MIN_BLOCK), _MAX_BLOCK)
    out_BHK, partial, log_sums = decode_buffers(q_BHK, parts)
    with torch.cuda.device_of(q_BHK):
        _attend_part[(B * H, parts)](
            q_BHK,
            keys_BGMK,
            values_BGMK,
            count_1,
            partial,
            log_sums,
            *q_BHK.stride()[:2],
            *keys_BGMK.stride()[:3],
            *values_BGMK.stride()[:3],
            H,
            H // G,
            M,
            math.log2(math.e) / K**0.5,
            K=K,
            WIDE_K=wide,
            BLOCK=block,
            PARTS=parts,
            STAGES=num_stages,
            num_warps=num_warps,
        )
        if parts > 1:
            _merge_parts[(B * H,)](partial, log_sums, out_BHK, K=K, WIDE_K=wide, PARTS=parts, num_warps=4)
    return out_BHK


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
