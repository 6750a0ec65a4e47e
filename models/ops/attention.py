"""Causal attention: the kernel of ``scaled_dot_product_attention`` that is fastest here, and blocked variants of it.

================  ===============================================================================
plain             one call; on CUDA the kernel is chosen by measurement, see :mod:`models.ops.sdpa`
``window``        sliding window: linear time, blocks of queries against the keys that they can see
``slopes_H``      ALiBi: ``-slope (i - j)`` is added to the scores, built a block at a time; in bfloat16 on
                  CUDA by more head dimensions, which any kernel takes
``xpos_K``        xPos: dimension k of a score is scaled by ``exp(rate_k (i - j))``
================  ===============================================================================

The variants combine; they run in blocks of queries (:mod:`models.ops.attention_blocks`).

Shape suffixes: B batch, H heads, L sequence length, K head dimension, S keys that a query sees.
"""

import torch
from torch import Tensor

from models.ops.attention_blocks import BlockedAttention, Pattern, centred, centred_block, folds_slopes
from models.ops.context import observe, relative_error
from models.ops.sdpa import KERNEL_VARIABLE, KERNELS, choose_kernel, force_kernel, plain_attention

__all__ = [
    "KERNELS",
    "KERNEL_VARIABLE",
    "causal_attention",
    "causal_attention_flops",
    "choose_kernel",
    "force_kernel",
]

_NUM_CHECKED_QUERIES = 16


def causal_attention(
    q_BHLK: Tensor,
    k_BHLK: Tensor,
    v_BHLK: Tensor,
    *,
    window: int | None = None,
    slopes_H: Tensor | None = None,
    xpos_K: Tensor | None = None,
) -> Tensor:
    """``softmax(q k^T / sqrt(K)) v`` over the positions up to each query's own: ``(B, H, L, K)``.

    Args:
        q_BHLK, k_BHLK, v_BHLK: ``(B, H, L, K)`` each, of one dtype.
        window: how many positions a query sees, its own among them; all if not given.
        slopes_H: ALiBi's slopes, one a head (:func:`models.ops.positions.alibi_slopes`). No gradient flows to them.
        xpos_K: xPos' rates, one a dimension (:func:`models.ops.positions.xpos_rates`), for q and k that are rotated
            already. Scales are taken relative to a centre within each block of queries, so that they neither overflow
            nor lose a digit at any position.

    Raises:
        ValueError: a window below 1, or a value of ``SEQBENCH_SDPA`` that is no kernel or cannot run here.
    """
    B, H, L, K = q_BHLK.shape
    if window is not None and window < 1:
        raise ValueError(f"window={window} is below 1: a position sees at least itself; raise it, or pass None for all")
    window = None if window is None or window >= L else window
    folded = slopes_H is not None and window is None and folds_slopes(q_BHLK)
    pattern = Pattern(window=window, slopes_H=slopes_H, xpos_K=xpos_K, folded=folded)
    if pattern.window is None and not pattern.biased and not (pattern.centred and centred_block(q_BHLK) < L):
        out, name = plain_attention(*centred(q_BHLK, k_BHLK, v_BHLK, pattern, offset=0), scale=K**-0.5)
        out_BHLK, recomputed = out[..., :K], 0.0
    else:
        out_BHLK = BlockedAttention.apply(q_BHLK, k_BHLK, v_BHLK, pattern)
        name, recomputed = "+".join(["sdpa-blocked", *sorted(pattern.ran)]) if pattern.ran else "predicted", 1.0
    # PyTorch's counter sees the products of the math kernel, and of no other.
    flops = 0.0 if name == "sdpa-math" else causal_attention_flops(L, H * K, pattern.window) * B
    observe(
        "attention",
        name,
        forward_flops=flops,
        # Five products in the backward (scores again, dV, dP, dQ, dK) against two in the forward.
        backward_flops=(2.5 + recomputed) * flops,
        check=lambda: _slice_error(q_BHLK, k_BHLK, v_BHLK, out_BHLK, pattern),
    )
    return out_BHLK


def causal_attention_flops(seq_len: int, width: int, window: int | None = None) -> float:
    """Forward operations of one sequence: two products over the pairs of positions that see each other."""
    seen = min(seq_len, window or seq_len)
    return 2 * 2 * width * (seen * (seen + 1) / 2 + (seq_len - seen) * seen)


def _slice_error(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, out_BHLK: Tensor, pattern: Pattern) -> float:
    """Sampled queries, the last among them, of the first sequence, against float64 softmax."""
    _, H, L, K = q_BHLK.shape
    places = torch.linspace(0, L - 1, min(L, _NUM_CHECKED_QUERIES)).long().tolist()
    outs, references = [], []
    for h in sorted({0, H - 1}):
        for i in places:
            seen = slice(0 if pattern.window is None else max(0, i + 1 - pattern.window), i + 1)
            q_K, k_SK = q_BHLK[0, h, i].double(), k_BHLK[0, h, seen].double()
            distance_S = torch.arange(k_SK.shape[0] - 1, -1, -1, device=q_K.device, dtype=torch.float64)
            if pattern.xpos_K is not None:
                k_SK *= (pattern.xpos_K.double() * distance_S[:, None]).exp()
            scores_S = k_SK @ q_K / K**0.5
            if pattern.slopes_H is not None:
                scores_S -= pattern.slopes_H[h].double() * distance_S
            references.append(scores_S.softmax(dim=0) @ v_BHLK[0, h, seen].double())
            outs.append(out_BHLK[0, h, i])
    return relative_error(torch.cat(outs), torch.cat(references))
