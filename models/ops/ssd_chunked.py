"""The state space dual in PyTorch: matrix products within chunks, a recurrence between them, a segment at a time.

What it computes is said in :mod:`models.ops.ssd`. Shape suffixes: B batch, L time, H heads, P head width, N states,
G groups (each shares its B and C among R = H / G heads), K chunks of a segment, Q steps of a chunk.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.context import is_fake, stands_for

CHUNK = {"mamba-ssm": 256, "chunked": 64}
"""Steps of a chunk, by the backend of :func:`models.ops.ssd.ssd`."""
SEGMENT_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""What a segment of chunks may hold at once: about a CPU's cache, and enough to fill a GPU."""

LEAST_LOG_DECAY = {torch.float32: -110.0, torch.float64: -800.0}
"""exp of it is 0: what decays faster is the same, and sums of such numbers keep their digits."""


class ChunkedSSD(torch.autograd.Function):
    """A segment of some chunks at a time; states at segment starts are kept, the rest is computed again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor, wide: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        y_BLHP, h_last_BHPN, starts_sBHPN = chunked_forward(x, log_decay, B, C, h0, wide, keep_starts=True)
        ctx.save_for_backward(x, log_decay, B, C, starts_sBHPN)
        ctx.h0_dtype = h0.dtype
        return y_BLHP, h_last_BHPN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh_last: Tensor) -> tuple[Tensor | None, ...]:
        x, log_decay, B, C, starts_sBHPN = ctx.saved_tensors
        wants_decay = log_decay is not None and ctx.needs_input_grad[1]
        dx, dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, B, C))
        dlog_decay = None
        if wants_decay:  # a constant one's is a long sum
            dtype = torch.float64 if log_decay.ndim == 1 else log_decay.dtype
            dlog_decay = torch.zeros(log_decay.shape, dtype=dtype, device=x.device)
        g_BHPN = gh_last
        segments = list(enumerate(split_segments(x, B)))
        for i, (part, steps) in segments[:1] if is_fake(x) else reversed(segments):
            chunks = Chunks(x[:, part], _slice_decay(log_decay, part), B[:, part], C[:, part], steps, gh_last.dtype)
            gradients = (dx[:, part], _slice_decay(dlog_decay, part), dB[:, part], dC[:, part])
            g_BHPN = chunks.backward(starts_sBHPN[i], gy[:, part], g_BHPN, gradients)
        if dlog_decay is not None:
            dlog_decay = dlog_decay.to(log_decay.dtype)
        return dx, dlog_decay, dB, dC, g_BHPN.to(ctx.h0_dtype), None


def chunked_forward(
    x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor, wide: torch.dtype, *, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and the states at segment starts (of the last segment only, unless kept)."""
    y_BLHP = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    segments = list(split_segments(x, B))
    # One allocation: small states between large temporaries would leave holes that no temporary fits.
    starts_sBHPN = torch.empty(len(segments) if keep_starts else 1, *h0.shape, dtype=wide, device=x.device)
    h_BHPN = h0.to(wide)
    # Segments are alike: without data, the first shows the memory of all.
    for i, (part, steps) in enumerate(segments[:1] if is_fake(x) else segments):
        starts_sBHPN[i if keep_starts else 0] = h_BHPN
        chunks = Chunks(x[:, part], _slice_decay(log_decay, part), B[:, part], C[:, part], steps, wide)
        h_BHPN = chunks.forward(h_BHPN, y_BLHP[:, part])
    return y_BLHP, h_BHPN, starts_sBHPN


def split_segments(x: Tensor, B: Tensor) -> Iterator[tuple[slice, int]]:
    """Segments of whole chunks, and at last the steps that fill none; with each the steps of its chunks."""
    (batch, length, heads, width), states = x.shape, B.shape[3]
    steps = min(CHUNK["chunked"], length)
    held = batch * heads * (2 * steps * steps + 4 * steps * width + 2 * width * states)
    budget = SEGMENT_ELEMENTS.get(stands_for(x), SEGMENT_ELEMENTS["cpu"])
    # States at segment starts should stay small beside x: 4 N steps, or more, to a state of N numbers a channel.
    size = steps * max(1, budget // held, math.ceil(4 * states / steps))
    whole = length // steps * steps
    for start in range(0, whole, size):
        yield slice(start, min(start + size, whole)), steps
    if whole < length:
        yield slice(whole, length), length - whole


def _slice_decay(log_decay: Tensor | None, part: slice) -> Tensor | None:
    return log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, part]


class Chunks:
    """One segment of K chunks of Q steps: ``(B, K Q, …)`` slices of the arguments, and what follows from them.

    Within a chunk let ``s_t`` be the sum of its log decays up to t. Then ``y_t = sum_{j <= t} exp(s_t - s_j)
    (C_t B_j) x_j + exp(s_t) h C_t`` with h the state before the chunk, and the state behind it is
    ``exp(s_Q) h + sum_j exp(s_Q - s_j) x_j B_j^T``. The exponents are never positive where decays are at most 1.
    """

    def __init__(
        self, x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, steps: int, wide: torch.dtype
    ) -> None:
        self.groups, self.steps, self.wide = B.shape[2], steps, wide
        self.x_BKGQRP = self._widened(self._by_head(x))
        self.B_BKGQN, self.C_BKGQN = (self._widened(self._by_group(t)) for t in (B, C))
        # In float64, since a difference of sums loses the digits of the smaller.
        self.s_BKGRQ = self._log_sums(log_decay)
        self.until_BKGQR1 = self.s_BKGRQ.exp().mT[..., None].to(wide)
        self.after_BKGQR1 = (self.s_BKGRQ[..., -1:] - self.s_BKGRQ).exp().mT[..., None].to(wide)
        num_chunks = x.shape[1] // steps
        self.whole_BKGR11 = self.until_BKGQR1[:, :, :, -1, :, :, None].expand(-1, num_chunks, -1, -1, -1, -1)

    def _by_head(self, t_BSHP: Tensor) -> Tensor:
        """A view ``(B, K, G, Q, R, P)``."""
        return t_BSHP.unflatten(1, (-1, self.steps)).unflatten(3, (self.groups, -1)).transpose(2, 3)

    def _by_group(self, t_BSGN: Tensor) -> Tensor:
        """A view ``(B, K, G, Q, N)``."""
        return t_BSGN.unflatten(1, (-1, self.steps)).transpose(2, 3)

    def _widened(self, view: Tensor) -> Tensor:
        return torch.empty(view.shape, dtype=self.wide, device=view.device).copy_(view)

    def _log_sums(self, log_decay: Tensor | None) -> Tensor:
        """``s``: sums over the steps of a chunk, with B and K of size 1 where all chunks are alike."""
        if log_decay is None:
            return torch.zeros(1, 1, 1, 1, self.steps, device=self.x_BKGQRP.device, dtype=torch.float64)
        log_decay = log_decay.double().clamp_min(LEAST_LOG_DECAY[self.wide])
        if log_decay.ndim == 1:
            counts_Q = torch.arange(1, self.steps + 1, device=log_decay.device)
            return (log_decay[:, None] * counts_Q).unflatten(0, (self.groups, -1))[None, None]
        return self._by_head(log_decay[..., None])[..., 0].mT.cumsum(-1)

    def _decays(self) -> Tensor:
        """``exp(s_i - s_j)`` where i >= j, 0 elsewhere: ``(B, K, G, R, Q, Q)``."""
        differences = (self.s_BKGRQ[..., :, None] - self.s_BKGRQ[..., None, :]).to(self.wide)
        later = torch.ones(self.steps, self.steps, dtype=torch.bool, device=differences.device).triu_(1)
        return differences.masked_fill_(later, -torch.inf).exp_()

    def _scores(self) -> Tensor:
        """``C_i B_j``, one for all heads of a group: ``(B, K, G, 1, Q, Q)``."""
        return (self.C_BKGQN @ self.B_BKGQN.mT)[:, :, :, None]

    def _states(self, h_BHPN: Tensor) -> tuple[Tensor, Tensor]:
        """States before each chunk ``(B, K, G, R P, N)``, and the one behind the last ``(B, H, P, N)``."""
        width = self.x_BKGQRP.shape[-2:]
        inflow_BKGQE = (self.x_BKGQRP * self.after_BKGQR1).flatten(4)
        inflow_BKGRPN = (inflow_BKGQE.mT @ self.B_BKGQN).unflatten(3, width)
        h_BKGRPN = torch.empty_like(inflow_BKGRPN)
        h_BKGRPN[:, 0] = h_BHPN.unflatten(1, (self.groups, -1))
        num_chunks = inflow_BKGRPN.shape[1]
        for k, following in itertools.pairwise(range(num_chunks)):
            torch.addcmul(inflow_BKGRPN[:, k], self.whole_BKGR11[:, k], h_BKGRPN[:, k], out=h_BKGRPN[:, following])
        last_BGRPN = torch.addcmul(inflow_BKGRPN[:, -1], self.whole_BKGR11[:, -1], h_BKGRPN[:, -1])
        return h_BKGRPN.flatten(3, 4), last_BGRPN.flatten(1, 2)

    def forward(self, h_BHPN: Tensor, y_BSHP: Tensor) -> Tensor:
        """Write the outputs into ``y``; returns the state behind the segment."""
        h_BKGEN, last_BHPN = self._states(h_BHPN)
        y_BKGQRP = (self.C_BKGQN @ h_BKGEN.mT).unflatten(4, self.x_BKGQRP.shape[-2:]).mul_(self.until_BKGQR1)
        del h_BKGEN
        weights_BKGRQQ = self._decays() * self._scores()
        y_BKGQRP += (weights_BKGRQQ @ self.x_BKGQRP.transpose(3, 4)).transpose(3, 4)
        self._by_head(y_BSHP).copy_(y_BKGQRP)
        return last_BHPN

    def backward(
        self, h_BHPN: Tensor, gy_BSHP: Tensor, g_BHPN: Tensor, into: tuple[Tensor, Tensor | None, Tensor, Tensor]
    ) -> Tensor:
        """Write the gradients of x, log_decay, B and C into ``into``; returns that of the state before.

        ``g_BHPN`` is the gradient of the state behind. A decay's gradient is gathered as that of ``s``, as row sums
        less column sums in float64: there whatever does not cross a step cancels, however small the rest.
        """
        dx, dlog_decay, dB, dC = into
        width = self.x_BKGQRP.shape[-2:]
        gy_BKGQRP = self._widened(self._by_head(gy_BSHP))
        h_BKGEN, _ = self._states(h_BHPN)

        # Between chunks.
        read_BKGQE = (gy_BKGQRP * self.until_BKGQR1).flatten(4)
        outflow_BKGRPN = (read_BKGQE.mT @ self.C_BKGQN).unflatten(3, width)
        g_BKGRPN = torch.empty_like(outflow_BKGRPN)  # of the state behind each chunk
        g_BKGRPN[:, -1] = g_BHPN.unflatten(1, (self.groups, -1))
        for k in range(g_BKGRPN.shape[1] - 1, 0, -1):
            torch.addcmul(outflow_BKGRPN[:, k], self.whole_BKGR11[:, k], g_BKGRPN[:, k], out=g_BKGRPN[:, k - 1])
        before_BGRPN = torch.addcmul(outflow_BKGRPN[:, 0], self.whole_BKGR11[:, 0], g_BKGRPN[:, 0])
        del outflow_BKGRPN
        g_BKGEN = g_BKGRPN.flatten(3, 4)
        dC_BKGQN = read_BKGQE @ h_BKGEN
        dB_BKGQN = (self.x_BKGQRP * self.after_BKGQR1).flatten(4) @ g_BKGEN
        dx_BKGQRP = (self.B_BKGQN @ g_BKGEN.mT).unflatten(4, width).mul_(self.after_BKGQR1)
        ds_BKGRQ = None
        if dlog_decay is not None:
            read_BKGQE *= self.C_BKGQN @ h_BKGEN.mT
            ds_BKGRQ = read_BKGQE.unflatten(4, width).sum(-1).mT.double()
            written_BKGRQ = (dx_BKGQRP * self.x_BKGQRP).sum(-1).mT.double()
            kept_BKGR = (g_BKGRPN * h_BKGEN.unflatten(3, width)).sum((-2, -1)) * self.whole_BKGR11[..., 0, 0]
            ds_BKGRQ -= written_BKGRQ
            ds_BKGRQ[..., -1] += written_BKGRQ.sum(-1) + kept_BKGR
        del read_BKGQE, h_BKGEN, g_BKGRPN, g_BKGEN

        # Within chunks.
        decays_BKGRQQ, scores_BKG1QQ = self._decays(), self._scores()
        gy_BKGRQP = gy_BKGQRP.transpose(3, 4)
        dx_BKGQRP += ((decays_BKGRQQ * scores_BKG1QQ).mT @ gy_BKGRQP).transpose(3, 4)
        self._by_head(dx).copy_(dx_BKGQRP)
        dscores_BKGRQQ = (gy_BKGRQP @ self.x_BKGQRP.transpose(3, 4).mT).mul_(decays_BKGRQQ)
        del decays_BKGRQQ
        dscores_BKGQQ = dscores_BKGRQQ.sum(3)
        self._by_group(dC).copy_(dC_BKGQN.add_(dscores_BKGQQ @ self.B_BKGQN))
        self._by_group(dB).copy_(dB_BKGQN.add_(dscores_BKGQQ.mT @ self.C_BKGQN))
        if ds_BKGRQ is not None and dlog_decay is not None:
            crossing_BKGRQQ = dscores_BKGRQQ.mul_(scores_BKG1QQ).double()
            ds_BKGRQ += crossing_BKGRQQ.sum(-1) - crossing_BKGRQQ.sum(-2)
            per_step_BKGRQ = ds_BKGRQ.flip(-1).cumsum(-1).flip(-1)
            if dlog_decay.ndim == 1:
                dlog_decay += per_step_BKGRQ.sum((0, 1, 4)).flatten()
            else:
                self._by_head(dlog_decay[..., None])[..., 0].copy_(per_step_BKGRQ.mT)
        return before_BGRPN.flatten(1, 2)
