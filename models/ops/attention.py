"""Causal attention through the best ``scaled_dot_product_attention`` kernel that runs here.

Shape suffixes: B batch, H heads, L sequence length, K head dimension, Q sampled queries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from models.ops.context import is_fake, observe, relative_error, stands_for

_NUM_CHECKED_QUERIES = 16
_KERNEL_NAMES = {
    SDPBackend.MATH: "sdpa-math",
    SDPBackend.FLASH_ATTENTION: "sdpa-flash",
    SDPBackend.EFFICIENT_ATTENTION: "sdpa-efficient",
    SDPBackend.CUDNN_ATTENTION: "sdpa-cudnn",
}


def causal_attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(K)) v`` over the positions up to each query's own: ``(B, H, L, K)``."""
    B, H, L, K = q_BHLK.shape
    # Held while the prediction's fake kernel "runs"; the real one allocates it out of our sight.
    scratch = _cpu_scratch(q_BHLK) if is_fake(q_BHLK) and stands_for(q_BHLK) == "cpu" else None
    out_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True)
    del scratch
    flops = causal_attention_flops(L, H * K) * B
    observe(
        "attention",
        _kernel_name(q_BHLK, k_BHLK, v_BHLK),
        forward_flops=flops,
        # Five products in the backward (scores again, dV, dP, dQ, dK) against two in the forward.
        backward_flops=2.5 * flops,
        check=lambda: _slice_error(q_BHLK, k_BHLK, v_BHLK, out_BHLK),
    )
    return out_BHLK


def causal_attention_flops(seq_len: int, width: int) -> float:
    """Forward operations of one sequence: two products over the lower triangle."""
    return 2 * 2 * width * seq_len * (seq_len + 1) / 2


def _cpu_scratch(q_BHLK: Tensor) -> Tensor:
    """The buffer that PyTorch's CPU flash kernel takes for a forward pass.

    Per thread, one block of scores, two statistics a query and one block of outputs, in float32;
    half precisions keep a second copy of the scores. Read off ``FlashAttentionKernel.cpp`` (2.11 to
    2.13) and held by a test that compares prediction and allocator.
    """
    L, K = q_BHLK.shape[2:]
    queries = min(L, 256 if L >= 768 else 64 if L >= 192 else 32)
    scores = queries * min(L, 512)
    per_thread = 4 * (scores + 2 * queries + queries * K) + (2 * scores if q_BHLK.element_size() == 2 else 0)
    return torch.empty(torch.get_num_threads() * per_thread, dtype=torch.uint8, device=q_BHLK.device)


def _kernel_name(q: Tensor, k: Tensor, v: Tensor) -> str:
    if is_fake(q):
        return "predicted"
    choice = torch._fused_sdp_choice(q, k, v, is_causal=True)
    return _KERNEL_NAMES.get(SDPBackend(choice), f"sdpa-{choice}")


def _slice_error(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, out_BHLK: Tensor) -> float:
    """Sampled queries, the last among them, of the first sequence, against float64 softmax."""
    _, H, L, K = q_BHLK.shape
    places_Q = torch.linspace(0, L - 1, min(L, _NUM_CHECKED_QUERIES), device=q_BHLK.device).long()
    outs, references = [], []
    for h in sorted({0, H - 1}):
        q_QK = q_BHLK[0, h, places_Q].double()
        scores_QL = q_QK @ k_BHLK[0, h].double().T / K**0.5
        future_QL = torch.arange(L, device=q_BHLK.device)[None, :] > places_Q[:, None]
        weights_QL = scores_QL.masked_fill(future_QL, -torch.inf).softmax(dim=-1)
        references.append(weights_QL @ v_BHLK[0, h].double())
        outs.append(out_BHLK[0, h, places_Q])
    return relative_error(torch.cat(outs), torch.cat(references))
