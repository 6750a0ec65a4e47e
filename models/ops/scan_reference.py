"""The selective scan in PyTorch alone: the definition, and a form that is fast without a kernel.

:func:`sequential_scan` is the recurrence as written, for tests. :func:`chunked_scan` runs anywhere: a segment
of the sequence at a time, so that (B, L, D, N) never exists; within a segment a work-efficient scan of radix
8 whose every operation covers the segment; states at segment starts are kept and the rest recomputed in the
backward. Both take a complex A (S4D's, Mamba-3's) with real or complex B and C; y is then the plain complex
sum over n: whoever stores half of conjugate pairs takes twice the real part himself. With W (D, N) it is
``y_t[d] = sum_n C_t[n] W[d, n] h_t[d, n]``.
"""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.context import is_fake, stands_for

RADIX = 8
SEGMENT_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
"""States of a segment: they should stay in a CPU's cache, and must fill a GPU at each of the scan's steps."""
MIN_SEGMENT = RADIX**2


def sequential_scan(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    h0_BDN: Tensor | None,
    W_DN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step after the other. O(L D N) memory under autograd: for tests and short sequences."""
    h_BDN = A_DN.new_zeros(x_BLD.shape[0], *A_DN.shape) if h0_BDN is None else h0_BDN
    ys: list[Tensor] = []
    # unbind: indexing would make the backward quadratic.
    for x_BD, dt_BD, B_BN, C_BN in zip(*(s.unbind(1) for s in (x_BLD, dt_BLD, B_BLN, C_BLN)), strict=True):
        h_BDN = torch.exp(dt_BD[..., None] * A_DN) * h_BDN + (dt_BD * x_BD)[..., None] * B_BN[:, None]
        read_BDN = C_BN[:, None] if W_DN is None else C_BN[:, None] * W_DN
        ys.append((h_BDN * read_BDN).sum(-1))
    return torch.stack(ys, 1), h_BDN


def chunked_scan(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    h0_BDN: Tensor | None,
    W_DN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, differentiable once, in O(L D) memory."""
    if h0_BDN is None:
        dtypes = [t.dtype for t in (A_DN, B_BLN, C_BLN, W_DN) if t is not None]
        dtype = functools.reduce(torch.promote_types, dtypes)
        h0_BDN = torch.zeros(x_BLD.shape[0], *A_DN.shape, dtype=dtype, device=A_DN.device)
    return _ChunkedScan.apply(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, h0_BDN, W_DN)


def _scan_(a_BSR: Tensor, b_BSR: Tensor, h_BR: Tensor, *, reverse: bool = False) -> None:
    """``b_t += a_t b_{t-1}`` in place along S (``b_{t+1}`` with ``reverse``), from h; a is destroyed.

    Chunks of RADIX are scanned side by side from zero, their last states recursively, and what came before a
    chunk is then added to all its elements at once.
    """
    S = a_BSR.shape[1]
    num_chunks = S // RADIX if S > RADIX else 0
    whole = num_chunks * RADIX
    if num_chunks:
        start = S - whole if reverse else 0
        a_BcTR, b_BcTR = (s[:, start : start + whole].unflatten(1, (num_chunks, RADIX)) for s in (a_BSR, b_BSR))
        steps = range(RADIX - 1, -1, -1) if reverse else range(RADIX)
        for before, now in itertools.pairwise(steps):
            b_BcTR[:, :, now].addcmul_(a_BcTR[:, :, now], b_BcTR[:, :, before])
            a_BcTR[:, :, now].mul_(a_BcTR[:, :, before])
        end = steps[-1]
        _scan_(a_BcTR[:, :, end], b_BcTR[:, :, end], h_BR, reverse=reverse)
        rest = slice(1, None) if reverse else slice(0, -1)
        first, later, sooner = (-1, slice(0, -1), slice(1, None)) if reverse else (0, slice(1, None), slice(0, -1))
        b_BcTR[:, first, rest].addcmul_(a_BcTR[:, first, rest], h_BR[:, None])
        b_BcTR[:, later, rest].addcmul_(a_BcTR[:, later, rest], b_BcTR[:, sooner, end, None])
        h_BR = b_BcTR[:, -1 - first, end]  # the chunk at the other end
    for t in range(S - whole - 1, -1, -1) if reverse else range(whole, S):
        h_BR = b_BSR[:, t].addcmul_(a_BSR[:, t], h_BR)


class _ChunkedScan(torch.autograd.Function):
    """States lie as (B, S, N, D), flattened to R = N D: channels innermost, so that sums over N are vectorised."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, W: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        A_ND = A.T.to(h0.dtype).contiguous()
        h_BR = h0.transpose(1, 2).flatten(1)
        y_BLD = torch.empty(x.shape, dtype=h0.dtype, device=x.device)
        segments = _segments(x, A)
        # One allocation: small states between large temporaries would leave holes that no temporary fits.
        starts_sBR = torch.empty(len(segments) + 1, *h_BR.shape, dtype=h0.dtype, device=x.device)
        starts_sBR[0] = h_BR
        # Segments are alike: without data, one shows the memory of all.
        for i, part in enumerate(segments[:1] if is_fake(x) else segments):
            h_BSND = _states(x[:, part], dt[:, part], A_ND, B[:, part], starts_sBR[i])[1]
            starts_sBR[i + 1] = _rows(h_BSND)[:, -1]
            if W is not None:
                h_BSND.mul_(W.T)
            torch.sum(h_BSND.mul_(C[:, part, :, None]), 2, out=y_BLD[:, part])
            del h_BSND  # or it would lie beside the next segment's
        ctx.save_for_backward(x, dt, A, B, C, W, starts_sBR)
        return y_BLD, starts_sBR[-1].unflatten(1, A_ND.shape).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh_last: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, W, starts_sBR = ctx.saved_tensors
        wide = gy.dtype
        A_ND = A.T.to(wide).contiguous()
        W_ND = None if W is None else W.T.to(wide).conj().contiguous()
        dx, ddt, dB, dC = (torch.empty(s.shape, dtype=s.dtype, device=s.device) for s in (x, dt, B, C))
        dA_ND, dW_ND = torch.zeros_like(A_ND), torch.zeros_like(A_ND)
        g_BR = gh_last.transpose(1, 2).flatten(1)
        segments = list(enumerate(_segments(x, A)))
        for i, part in segments[:1] if is_fake(x) else reversed(segments):
            x_BSD, dt_BSD, B_BSN, gy_BSD = (x[:, part], dt[:, part], B[:, part], gy[:, part])
            a_BSND, h_BSND = _states(x_BSD, dt_BSD, A_ND, B_BSN, starts_sBR[i], keep_decay=True)
            a_BSND = a_BSND.conj()
            C_BSN1 = C[:, part, :, None].conj()
            read_BSND = h_BSND.conj() * gy_BSD[:, :, None]
            if W_ND is not None:
                dW_ND += (read_BSND * C_BSN1).sum((0, 1))
                read_BSND *= W_ND
            _narrow(dC[:, part], read_BSND.sum(-1))
            del read_BSND
            # dL/dh_t: what y_t gives, and what h_{t+1} hands down.
            g_BSND = _outer(gy_BSD, C_BSN1, wide)
            if W_ND is not None:
                g_BSND *= W_ND
            decay_BSND = torch.ones_like(g_BSND)
            decay_BSND[:, :-1] = a_BSND[:, 1:]
            _scan_(_rows(decay_BSND), _rows(g_BSND), g_BR, reverse=True)
            del decay_BSND
            _narrow(dB[:, part], (g_BSND * (dt_BSD * x_BSD)[:, :, None].conj()).sum(-1))
            gu_BSD = (g_BSND * B_BSN[..., None].conj()).sum(2)
            # dL/d(dt_t A): the gradient of the exponent.
            w_BSND = g_BSND.mul_(a_BSND)
            g_BR = w_BSND[:, 0].flatten(1).clone()
            w_BSND[:, 1:] *= h_BSND[:, :-1].conj()
            w_BSND[:, 0] *= starts_sBR[i].unflatten(1, A_ND.shape).conj()
            _narrow(dx[:, part], gu_BSD * dt_BSD)
            _narrow(ddt[:, part], (w_BSND * A_ND.conj()).sum(2) + gu_BSD * x_BSD.conj())
            dA_ND += w_BSND.mul_(dt_BSD[:, :, None]).sum((0, 1))
            del a_BSND, h_BSND, g_BSND, w_BSND, gu_BSD  # as in the forward
        dA, dW = torch.empty_like(A), None if W is None else torch.empty_like(W)
        _narrow(dA, dA_ND.T)
        if dW is not None:
            _narrow(dW, dW_ND.T)
        return (dx, ddt, dA, dB, dC, g_BR.unflatten(1, A_ND.shape).transpose(1, 2).contiguous(), dW)


def _segments(x_BLD: Tensor, A_DN: Tensor) -> list[slice]:
    B, L, _ = x_BLD.shape
    budget = SEGMENT_ELEMENTS.get(stands_for(x_BLD), SEGMENT_ELEMENTS["cpu"])
    size = max(MIN_SEGMENT, budget // (B * A_DN.numel()))
    return [slice(i, min(i + size, L)) for i in range(0, L, size)]


def _states(
    x_BSD: Tensor, dt_BSD: Tensor, A_ND: Tensor, B_BSN: Tensor, h_BR: Tensor, *, keep_decay: bool = False
) -> tuple[Tensor, Tensor]:
    """Decays (rubbish unless kept) and states of a segment."""
    a_BSND = _outer(dt_BSD, A_ND, A_ND.dtype).exp_()
    h_BSND = _outer(dt_BSD * x_BSD, B_BSN[..., None], A_ND.dtype)
    _scan_(_rows(a_BSND.clone() if keep_decay else a_BSND), _rows(h_BSND), h_BR)
    return a_BSND, h_BSND


def _outer(left_BSD: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Their product as (B, S, N, D), contiguous whatever the strides of the two: it is scanned in place."""
    B, S, D = left_BSD.shape
    product_BSND = torch.empty(B, S, right.shape[-2], D, dtype=dtype, device=left_BSD.device)
    # Cast here and not inside mul, where no prediction of memory would see it.
    return torch.mul(left_BSD.to(dtype)[:, :, None], right, out=product_BSND)


def _rows(states_BSND: Tensor) -> Tensor:
    return states_BSND.view(*states_BSND.shape[:2], -1)  # view: a copy would lose what is written into it


def _narrow(to: Tensor, value: Tensor) -> None:
    """Copy, keeping the real part where ``to`` is real."""
    to.copy_(value.real if value.is_complex() and not to.is_complex() else value)
