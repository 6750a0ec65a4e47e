"""Blocked causal attention: windows, ALiBi and xPos, a block of queries at a time against the keys that it can see.

Blocks are computed again in the backward, so that no mask, bias or score is ever kept. What the variants are is said
in :mod:`models.ops.attention`.

Shape suffixes: B batch, H heads, L sequence length, K head dimension, S keys that a block sees, P queries of a
block, N blocks folded into one call. Query i, key j, distance d = i - j >= 0.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from models.ops.context import is_fake, stands_for
from models.ops.fused_attention import expected_kernel, fake_attention
from models.ops.sdpa import cpu_scratch, kernel_name

_MASK_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}  # of one block's bias or mask: 64 MiB and 1 GiB in float32
_MAX_MASKED_BLOCK = 1024  # queries; half of a block's last square of scores is masked away
_FOLDED_LEN = 2**14  # positions whose blocks are folded into one call
_LOG_NEGLIGIBLE = -69.0  # exp() of it is 2^-100: what is scaled by less adds nothing to a sum in float32
# An xPos block's scales reach exp(0.0025 * block / 2) to either side of its centre: 2^14.5, or 2^1.8 in float16.
_CENTRED_BLOCK, _CENTRED_BLOCK_FLOAT16 = 8192, 1024


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What a variant does to the scores; ``window`` is shorter than the sequence or None."""

    window: int | None = None
    slopes_H: Tensor | None = None
    xpos_K: Tensor | None = None
    folded: bool = False
    """Whether the slopes enter as head dimensions, see :func:`_with_slopes`, and not as a bias."""
    ran: set[str] = field(default_factory=set)
    """Filled with the kernels of the blocks."""

    @property
    def biased(self) -> bool:
        return self.slopes_H is not None and not self.folded

    @property
    def centred(self) -> bool:
        """Whether q and k are changed by their distances to the middle of a block, which must not be long then."""
        return self.xpos_K is not None or self.folded


@dataclass(frozen=True, kw_only=True)
class _Span:
    """``num_blocks`` blocks of ``block`` queries from ``start`` on; each sees itself and ``before`` keys before it."""

    start: int
    block: int
    before: int
    num_blocks: int = 1

    @property
    def queries(self) -> slice:
        return slice(self.start, self.start + self.num_blocks * self.block)

    @property
    def keys(self) -> slice:
        return slice(self.start - self.before, self.start + self.num_blocks * self.block)


def _spans(q_BHLK: Tensor, pattern: Pattern) -> list[_Span]:
    """First growing blocks, which see all the keys before them, then sliding ones, all alike but for the last."""
    L, window, budget = q_BHLK.shape[2], pattern.window, _mask_elements(q_BHLK, pattern)
    spans: list[_Span] = []
    start, full = 0, L if window is None else window
    while start < full:
        if not pattern.biased and (start == 0 or stands_for(q_BHLK) == "cuda"):  # causal kernels need no mask
            block = centred_block(q_BHLK) if pattern.centred else full
        else:
            block = _aligned(min(_MAX_MASKED_BLOCK, budget // (start + _MAX_MASKED_BLOCK)))
        block = min(block, full - start)
        spans.append(_Span(start=start, block=block, before=start))
        start += block
    if window is None:
        return spans
    # A quarter of the window: five quarters of the work that is needed, and keys that enter five blocks.
    longest = min(window // 4, budget // (window + _MAX_MASKED_BLOCK), _MAX_MASKED_BLOCK)
    block = _aligned(min(max(longest, 64), budget // (window + 64)))
    while start < L:
        num_blocks = min(max(1, _FOLDED_LEN // block), (L - start) // block)
        shape = dict(block=block, num_blocks=num_blocks) if num_blocks else dict(block=L - start)
        spans.append(_Span(start=start, before=window, **shape))
        start = spans[-1].queries.stop
    return spans


def _aligned(block: int) -> int:
    """At least 1, and so that CUDA kernels can read a mask's rows as they lie."""
    return block - block % 8 if block >= 8 else max(block, 1)


def _mask_elements(q: Tensor, pattern: Pattern) -> int:
    """How many elements a mask of one head may have."""
    elements = _MASK_ELEMENTS.get(stands_for(q), _MASK_ELEMENTS["cpu"])
    return elements // q.shape[1] if pattern.biased else elements


def centred_block(q: Tensor) -> int:
    return _CENTRED_BLOCK_FLOAT16 if q.dtype == torch.float16 else _CENTRED_BLOCK


class BlockedAttention(torch.autograd.Function):
    """Keeps q, k and v alone, and does each block's forward again in the backward."""

    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(q_BHLK, k_BHLK, v_BHLK)
        ctx.pattern = pattern
        out_BHLK = torch.empty_like(q_BHLK.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for span in _spans(q_BHLK, pattern):
            own, seen = span.queries, span.keys
            out_BHLK[:, :, own] = _attend(q_BHLK[:, :, own], k_BHLK[:, :, seen], v_BHLK[:, :, seen], span, pattern)
        return out_BHLK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gout_BHLK: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        # Sums over many blocks; q's has but one term.
        wide = torch.promote_types(q.dtype, torch.float32)
        gq, gk, gv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for span in _spans(q, ctx.pattern):
            own, seen = span.queries, span.keys
            inputs = [t.detach().requires_grad_() for t in (q[:, :, own], k[:, :, seen], v[:, :, seen])]
            with torch.enable_grad():
                out = _attend(inputs[0], inputs[1], inputs[2], span, ctx.pattern)
            gq[:, :, own], gk_span, gv_span = torch.autograd.grad(out, inputs, gout_BHLK[:, :, own])
            gk[:, :, seen] += gk_span
            gv[:, :, seen] += gv_span
        return gq, gk.to(k.dtype), gv.to(v.dtype), None


def _attend(q: Tensor, k: Tensor, v: Tensor, span: _Span, pattern: Pattern) -> Tensor:
    """One span: q ``(B, H, N P, K)``, k and v ``(B, H, before + N P, K)``; out like q."""
    B, N, P, S, K = q.shape[0], span.num_blocks, span.block, span.before + span.block, q.shape[3]
    if N > 1:  # into the batch, as views of overlapping keys
        q = q.unflatten(2, (N, P)).transpose(1, 2).flatten(0, 1)  # (B N, H, P, K)
        k, v = (t.unfold(2, S, P).permute(0, 2, 1, 4, 3).flatten(0, 1) for t in (k, v))  # (B N, H, S, K)
    q, k, v = centred(q, k, v, pattern, offset=span.before)
    how = _visibility(q, span, pattern)
    if is_fake(q):
        out = _fake_attend(q, k, v, how)[..., :K]
    else:
        pattern.ran.add(_kernel_of(q, k, v, how))
        out = F.scaled_dot_product_attention(q, k, v, **how, scale=K**-0.5)[..., :K]
    return out.unflatten(0, (B, N)).transpose(1, 2).flatten(2, 3) if N > 1 else out


def _fake_attend(q: Tensor, k: Tensor, v: Tensor, how: dict[str, Any]) -> Tensor:
    """Takes the memory of a block and computes nothing."""
    if stands_for(q) == "cuda" and "attn_mask" not in how:
        # Its mask for queries that end with the keys takes flash, as _kernel_of says.
        half, square = q.dtype in (torch.float16, torch.bfloat16), q.shape[2] == k.shape[2]
        return fake_attention(q, k, v, "flash" if half and not square else expected_kernel(q))
    scratch = cpu_scratch(q, k.shape[2]) if stands_for(q) == "cpu" else None
    out = F.scaled_dot_product_attention(q, k, v, **how)
    del scratch
    return out


def _visibility(q: Tensor, span: _Span, pattern: Pattern) -> dict[str, Any]:
    """Arguments that show a block's queries no more than their keys, with their biases."""
    P, S = span.block, span.before + span.block
    # Blocks that see fewer positions than the window are plainly causal.
    window = pattern.window if pattern.window is not None and pattern.window < S else None
    if not pattern.biased and window is None:
        if P == S or (is_fake(q) and stands_for(q) == "cuda"):
            return {"is_causal": True}
        if q.is_cuda:  # a kernel's own mask: its last query sees the last key
            from torch.nn.attention.bias import causal_lower_right  # brings torch.compile along, which takes seconds

            return {"attn_mask": causal_lower_right(P, S)}
    wide = torch.promote_types(q.dtype, torch.float32)  # whole numbers to 2^24
    places_S = torch.arange(S, device=q.device, dtype=wide)
    distance_PS = places_S[span.before :, None] - places_S
    hidden_PS = distance_PS < 0
    if window is not None:
        hidden_PS |= distance_PS >= window
    if pattern.slopes_H is None or pattern.folded:
        return {"attn_mask": hidden_PS.logical_not_()}
    bias_HPS = pattern.slopes_H.to(wide)[:, None, None] * distance_PS.neg_()
    # Kernels want it in q's dtype. What a half precision rounds off stays within its rounding of the softmax.
    return {"attn_mask": bias_HPS.masked_fill_(hidden_PS, -torch.inf).to(q.dtype)[None]}


def _kernel_of(q: Tensor, k: Tensor, v: Tensor, how: dict[str, Any]) -> str:
    if q.is_cuda and "attn_mask" in how:
        from torch.nn.attention.bias import CausalBias

        if isinstance(how["attn_mask"], CausalBias):  # takes flash where it runs, and passes cuDNN over
            return "flash" if q.dtype in (torch.float16, torch.bfloat16) else "efficient"
    kernel = SDPBackend(torch._fused_sdp_choice(q, k, v, **how))
    return kernel_name(kernel)


def centred(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v changed by their distances to the middle of q's block, which begins ``offset`` keys after k does."""
    if not pattern.centred:
        return q, k, v
    wide = torch.promote_types(q.dtype, torch.float32)
    places_S = torch.arange(k.shape[2], device=q.device, dtype=wide) - (offset + q.shape[2] // 2)
    if pattern.xpos_K is not None:
        q, k = _xpos_scaled(q, k, pattern.xpos_K, places_S)
    if pattern.folded:
        assert pattern.slopes_H is not None
        q, k, v = _with_slopes(q, k, v, pattern.slopes_H, places_S)
    return q, k, v


def folds_slopes(q: Tensor) -> bool:
    """On CUDA kernels without a bias are up to nine times faster, and bfloat16's rounding covers what folding costs.

    Within a window it does not pay: one bias serves all blocks, and wider heads have to be copied.
    """
    return q.dtype == torch.bfloat16 and stands_for(q) == "cuda"


def _with_slopes(q: Tensor, k: Tensor, v: Tensor, slopes_H: Tensor, places_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eight more head dimensions, whose products add up to ``slope place`` in the scores.

    That is ALiBi's bias but for a term that each query's keys share, and softmax ignores. Slopes are split into three
    pieces and places into three digits, which bfloat16 holds exactly and kernels add up in float32. The smallest of
    the nine products, below 0.002, is left out: head dimensions are multiples of eight.
    """
    high_S = (places_S / 2**14).floor() * 2**14
    middle_S = ((places_S - high_S) / 2**7).floor() * 2**7
    rest_H, pieces = slopes_H.float() * q.shape[3] ** 0.5, []  # scores are divided by sqrt(K)
    for _ in range(3):
        pieces.append(rest_H.to(q.dtype))
        rest_H = rest_H - pieces[-1].float()
    digits = (high_S, middle_S, places_S - high_S - middle_S)
    products = [(piece, digit) for digit in digits for piece in pieces][:8]
    slopes_H18 = torch.stack([piece for piece, _ in products], dim=-1)[:, None]
    places_S8 = torch.stack([digit.to(k.dtype) for _, digit in products], dim=-1)
    q = torch.cat([q, slopes_H18.expand(*q.shape[:3], 8)], dim=-1)
    return q, torch.cat([k, places_S8.expand(*k.shape[:3], 8)], dim=-1), F.pad(v, (0, 8))


def _xpos_scaled(q: Tensor, k: Tensor, xpos_K: Tensor, places_S: Tensor) -> tuple[Tensor, Tensor]:
    """q, at the last of the places, and k scaled by their distances to place 0.

    Far keys' scales end at 2^-100 and not in denormal numbers, which are slow.
    """
    wide = places_S.dtype
    log_SK = xpos_K.to(wide) * places_S[:, None]  # of q; k's is its negative
    q = (q * log_SK[-q.shape[2] :].exp()).to(q.dtype)
    return q, (k * log_SK.neg_().clamp_min_(_LOG_NEGLIGIBLE).exp_()).to(k.dtype)
