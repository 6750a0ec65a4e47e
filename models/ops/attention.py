"""Causal attention: the kernel of ``scaled_dot_product_attention`` that is fastest here, and blocked variants of it.

================  ===============================================================================
plain             one call; on CUDA the kernel is chosen by measurement, see :func:`choose_kernel`
``window``        sliding window: linear time, blocks of queries against the keys that they can see
``slopes_H``      ALiBi: ``-slope (i - j)`` is added to the scores, built a block at a time; in bfloat16 on
                  CUDA by more head dimensions, which any kernel takes
``xpos_K``        xPos: dimension k of a score is scaled by ``exp(rate_k (i - j))``
================  ===============================================================================

The variants combine. Blocks are computed again in the backward, so that no mask, bias or score is ever kept.

Shape suffixes: B batch, H heads, L sequence length, K head dimension, S keys that a block sees, P queries of a
block, N blocks folded into one call, Q sampled queries. Query i, key j, distance d = i - j >= 0.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalBias, causal_lower_right

from models.ops.context import is_fake, observe, relative_error, stands_for

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
KERNEL_VARIABLE = "SEQBENCH_SDPA"
"""Environment variable: ``auto`` measures, ``default`` leaves the choice to PyTorch, a kernel's name forces it."""

_NAMES = {kernel: name for name, kernel in KERNELS.items()}
_MEASURED_LEN = 2**14  # positions that a measurement runs on, all sequences together
_MATH_MAX_LEN = 1024  # the math kernel keeps all the scores; beyond this it is not offered
_NUM_ROUNDS, _TIMED_MS = 4, 2.0  # of as many calls as make a timing that long, at most 20
_CLEARLY_FASTER = 0.95  # a kernel needs less than this share of the default's time to displace it

_NUM_CHECKED_QUERIES = 16
_MASK_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}  # of one block's bias or mask: 64 MiB and 1 GiB in float32
_MAX_MASKED_BLOCK = 1024  # queries; half of a block's last square of scores is masked away
_FOLDED_LEN = 2**14  # positions whose blocks are folded into one call
_LOG_NEGLIGIBLE = -69.0  # exp() of it is 2^-100: what is scaled by less adds nothing to a sum in float32
# An xPos block's scales reach exp(0.0025 * block / 2) to either side of its centre: 2^14.5, or 2^1.8 in float16.
_CENTRED_BLOCK, _CENTRED_BLOCK_FLOAT16 = 8192, 1024


@dataclass(frozen=True, kw_only=True)
class _Pattern:
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
    folded = slopes_H is not None and window is None and _folds_slopes(q_BHLK)
    pattern = _Pattern(window=window, slopes_H=slopes_H, xpos_K=xpos_K, folded=folded)
    if pattern.window is None and not pattern.biased and not (pattern.centred and _centred_block(q_BHLK) < L):
        out, name = _plain(*_centred(q_BHLK, k_BHLK, v_BHLK, pattern, offset=0), scale=K**-0.5)
        out_BHLK, recomputed = out[..., :K], 0.0
    else:
        out_BHLK = _BlockedAttention.apply(q_BHLK, k_BHLK, v_BHLK, pattern)
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


# --------------------------------------------------------------------------------------------------
# One call, and the choice of its kernel


_forced: ContextVar[str | None] = ContextVar("seqbench_sdpa", default=None)
_fastest: dict[tuple[object, ...], SDPBackend] = {}
"""Measured choices of this process."""


@contextmanager
def force_kernel(name: str) -> Iterator[None]:
    """Within, ``name`` stands in for the environment variable :data:`KERNEL_VARIABLE`."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _plain(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, str]:
    """The output, and the name of the kernel for the record."""
    if is_fake(q):
        # Held while the prediction's fake kernel "runs"; the real one allocates it out of our sight.
        scratch = _cpu_scratch(q, k.shape[2]) if stands_for(q) == "cpu" else None
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        del scratch
        return out, "predicted"
    kernel = choose_kernel(q, k, v)
    with sdpa_kernel(kernel) if kernel != _default(q, k, v) else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out, f"sdpa-{_NAMES.get(kernel, kernel)}"


def choose_kernel(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> SDPBackend:
    """The kernel to run plain causal attention with: forced, measured, or PyTorch's own choice.

    Each of the candidates is timed on the first sequences, at most 16K positions of them, forward, or forward and
    backward where gradients are needed. The winner is kept for calls of this kind (device, dtype, head dimension;
    length, sequences times heads to the next power of two) in this process. PyTorch's own choice is displaced only
    by one that is clearly faster. Nothing is timed while a CUDA graph is captured.

    Raises:
        ValueError: a forced kernel that does not exist or cannot run here.
    """
    wanted = _forced.get() or os.environ.get(KERNEL_VARIABLE, "auto")
    default = _default(q_BHLK, k_BHLK, v_BHLK)
    if wanted in KERNELS:
        return _runnable(KERNELS[wanted], q_BHLK, k_BHLK, v_BHLK)
    if wanted not in ("auto", "default"):
        raise ValueError(f"{KERNEL_VARIABLE}={wanted!r} is not one of auto, default, {', '.join(KERNELS)}")
    candidates = _candidates(q_BHLK)
    if wanted == "default" or len(candidates) < 2:
        return default
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q_BHLK, k_BHLK, v_BHLK))
    _, H, L, K = q_BHLK.shape
    sequences, length = max(1, _MEASURED_LEN // L), min(L, _MEASURED_LEN)
    q, k, v = (t[:sequences, :, :length] for t in (q_BHLK, k_BHLK, v_BHLK))
    key = (q.device, q.dtype, K, _next_power_of_two(q.shape[0] * H), _next_power_of_two(length), needs_grad)
    if key not in _fastest:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return default
        times = dict.fromkeys(candidates, float("inf"))
        for _ in range(_NUM_ROUNDS):  # in turn, so that a machine's slow moment meets all of them
            for kernel in candidates:
                times[kernel] = min(times[kernel], _time_of(kernel, q, k, v, needs_grad))
            candidates = [kernel for kernel in candidates if times[kernel] < float("inf")]
        best = min(times, key=times.__getitem__)
        clearly = times[best] < _CLEARLY_FASTER * times.get(default, float("inf"))
        _fastest[key] = best if clearly else default
    return _fastest[key]


def _candidates(q: Tensor) -> list[SDPBackend]:
    if q.device.type != "cuda":
        # Timed at 64 to 1024 positions on one thread, the math kernel never beat flash, forward or backward.
        return [SDPBackend.FLASH_ATTENTION]
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return [*fused, SDPBackend.MATH] if q.shape[2] <= _MATH_MAX_LEN else fused


def _default(q: Tensor, k: Tensor, v: Tensor) -> SDPBackend:
    return SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True))


def _runnable(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> SDPBackend:
    """``kernel``, if PyTorch would take it for these tensors when allowed no other."""
    try:
        with sdpa_kernel(kernel), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _default(q, k, v)
    except RuntimeError as error:
        raise ValueError(
            f"{KERNEL_VARIABLE}={_NAMES[kernel]} cannot run {q.dtype} heads of width {q.shape[3]} on "
            f"{q.device.type}; set it to auto"
        ) from error
    return kernel


def _time_of(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, needs_grad: bool) -> float:
    """Milliseconds of a warm call, infinite where the kernel does not run."""
    q, k, v = (t.detach().requires_grad_(needs_grad) for t in (q, k, v))

    def call() -> None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if needs_grad:
            torch.autograd.grad(out, (q, k, v), out.detach())

    try:
        with sdpa_kernel(kernel), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
            calls = int(min(max(_TIMED_MS / _time_ms(call, q.device), 1), 20))
            return _time_ms(call, q.device, calls)
    except RuntimeError:  # PyTorch's for a kernel that does not support this; being out of memory is one too
        return float("inf")


def _time_ms(call: Callable[[], None], device: torch.device, calls: int = 1) -> float:
    """Of one call, on the average of so many in a row."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * (time.perf_counter() - began) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _cpu_scratch(q_BHLK: Tensor, keys: int) -> Tensor:
    """The buffer that PyTorch's CPU flash kernel takes for a forward pass.

    Per thread, one block of scores, two statistics a query and one block of outputs, in float32;
    half precisions keep a second copy of the scores. Read off ``FlashAttentionKernel.cpp`` (2.11 to
    2.13) and held by a test that compares prediction and allocator.
    """
    L, K = q_BHLK.shape[2:]
    queries = min(L, 256 if L >= 768 else 64 if L >= 192 else 32)
    scores = queries * min(keys, 512)
    per_thread = 4 * (scores + 2 * queries + queries * K) + (2 * scores if q_BHLK.element_size() == 2 else 0)
    return torch.empty(torch.get_num_threads() * per_thread, dtype=torch.uint8, device=q_BHLK.device)


# --------------------------------------------------------------------------------------------------
# Blocks of queries


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


def _spans(q_BHLK: Tensor, pattern: _Pattern) -> list[_Span]:
    """First growing blocks, which see all the keys before them, then sliding ones, all alike but for the last."""
    L, window, budget = q_BHLK.shape[2], pattern.window, _mask_elements(q_BHLK, pattern)
    spans: list[_Span] = []
    start, full = 0, L if window is None else window
    while start < full:
        if not pattern.biased and (start == 0 or stands_for(q_BHLK) == "cuda"):  # causal kernels need no mask
            block = _centred_block(q_BHLK) if pattern.centred else full
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


def _mask_elements(q: Tensor, pattern: _Pattern) -> int:
    """How many elements a mask of one head may have."""
    elements = _MASK_ELEMENTS.get(stands_for(q), _MASK_ELEMENTS["cpu"])
    return elements // q.shape[1] if pattern.biased else elements


def _centred_block(q: Tensor) -> int:
    return _CENTRED_BLOCK_FLOAT16 if q.dtype == torch.float16 else _CENTRED_BLOCK


class _BlockedAttention(torch.autograd.Function):
    """Keeps q, k and v alone, and does each block's forward again in the backward."""

    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, pattern: _Pattern) -> Tensor:
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


def _attend(q: Tensor, k: Tensor, v: Tensor, span: _Span, pattern: _Pattern) -> Tensor:
    """One span: q ``(B, H, N P, K)``, k and v ``(B, H, before + N P, K)``; out like q."""
    B, N, P, S, K = q.shape[0], span.num_blocks, span.block, span.before + span.block, q.shape[3]
    if N > 1:  # into the batch, as views of overlapping keys
        q = q.unflatten(2, (N, P)).transpose(1, 2).flatten(0, 1)  # (B N, H, P, K)
        k, v = (t.unfold(2, S, P).permute(0, 2, 1, 4, 3).flatten(0, 1) for t in (k, v))  # (B N, H, S, K)
    q, k, v = _centred(q, k, v, pattern, offset=span.before)
    how = _visibility(q, span, pattern)
    if not is_fake(q):
        pattern.ran.add(_kernel_of(q, k, v, how))
    scratch = _cpu_scratch(q, S) if is_fake(q) and stands_for(q) == "cpu" else None
    out = F.scaled_dot_product_attention(q, k, v, **how, scale=K**-0.5)[..., :K]
    del scratch
    return out.unflatten(0, (B, N)).transpose(1, 2).flatten(2, 3) if N > 1 else out


def _visibility(q: Tensor, span: _Span, pattern: _Pattern) -> dict[str, Any]:
    """Arguments that show a block's queries no more than their keys, with their biases."""
    P, S = span.block, span.before + span.block
    # Blocks that see fewer positions than the window are plainly causal.
    window = pattern.window if pattern.window is not None and pattern.window < S else None
    if not pattern.biased and window is None:
        if P == S or (is_fake(q) and stands_for(q) == "cuda"):
            return {"is_causal": True}
        if q.is_cuda:  # a kernel's own mask: its last query sees the last key
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
    if isinstance(how.get("attn_mask"), CausalBias):  # takes flash where it runs, and passes cuDNN over
        return "flash" if q.dtype in (torch.float16, torch.bfloat16) else "efficient"
    kernel = SDPBackend(torch._fused_sdp_choice(q, k, v, **how))
    return _NAMES.get(kernel, str(kernel))


def _centred(q: Tensor, k: Tensor, v: Tensor, pattern: _Pattern, *, offset: int) -> tuple[Tensor, Tensor, Tensor]:
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


def _folds_slopes(q: Tensor) -> bool:
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


# --------------------------------------------------------------------------------------------------


def _slice_error(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, out_BHLK: Tensor, pattern: _Pattern) -> float:
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
