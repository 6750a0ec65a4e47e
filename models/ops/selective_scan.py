"""The selective scan of Mamba: the best implementation that runs here, and the choice between them.

``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t`` and ``y_t = sum_n C_t[n] h_t[:, n]`` (Gu and Dao 2023, section 3.3,
without the skip ``D x`` and the gate). Shapes: B batch, L time, D channels, N states.

With weights W (D, N) it is ``y_t[d] = sum_n C_t[n] W[d, n] h_t[d, n]``. That is all that factors of B and C of a
channel's own can do: channels and states do not mix, so ``B_t[n] P[d, n]`` and ``C_t[n] Q[d, n]`` give the y of
``W = P Q`` (section 4.6's constant B or C: ones for that sequence, the constants in W). The states are then those
of B without P.

==============  ==================================================================================
``kernel``      C++ for CPUs, built on first use (:mod:`models.ops.scan_kernel`); float32, float64
``mamba-ssm``   the released fused CUDA kernel, where the package is installed; from h = 0, with W in place of C
                alone, in float32 or with a complex A in complex64
``chunked``     PyTorch, any device, any dtype, complex too (:mod:`models.ops.scan_reference`)
``sequential``  the recurrence as written, for tests
==============  ==================================================================================
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.context import is_fake, observe, relative_error, why_missing
from models.ops.scan_kernel import ensure_built, scan_backward, scan_forward
from models.ops.scan_reference import chunked_scan, sequential_scan

__all__ = ["BACKENDS", "available_backends", "ensure_built", "force_backend", "selective_scan", "slice_error"]

BACKENDS = ("kernel", "mamba-ssm", "chunked", "sequential")

# Operations for each of the B L D N states, exp counted as one. Forward: the 9 in use for selective scans
# (dt A, exp, dt x B, a h +, C h +, counted without fusing). Backward: 7 for recomputing h, and 14 for dB, dC, A's and
# u's gradients, h's own (two each) and the two products on the way through exp.
FORWARD_OPS, BACKWARD_OPS = 9.0, 21.0
WEIGHTED_FORWARD_OPS, WEIGHTED_BACKWARD_OPS = 1.0, 4.0  # with W: in y; in dC, in h's gradient, and two for dW

CHECKED_CHANNELS = 4
CHECKED_PIECE = 2**16  # tokens at a time, so that a check takes little memory

_forced: ContextVar[str | None] = ContextVar("seqbench_scan_backend", default=None)


def selective_scan(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor | None,
    *,
    h0_BDN: Tensor | None = None,
    W_DN: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs and last state of the scan; differentiable once, in all tensors and through both results.

    Args:
        x_BLD, dt_BLD: inputs and positive step sizes (softplus is the caller's).
        A_DN: the decay's rate, real, or complex for all but ``kernel``.
        B_BLN, C_BLN: what enters the state and what is read from it; None for a C of ones. They, x and dt may be
            slices of larger tensors: no copy is made while the last dimension is dense.
        h0_BDN: state before the first step; zeros if not given.
        W_DN: weights of the read-out, real or complex; ones if not given. mamba-ssm knows such weights only in
            place of C, so that a CUDA device runs ``chunked`` where both are given.
        backend: one of :data:`BACKENDS`, or ``auto``: mamba-ssm on CUDA, kernel on a CPU, chunked where those
            do not run.

    Returns:
        ``y_BLD`` in x's dtype and ``h_last_BDN`` in the dtype computed in: float64 if an argument is float64, else
        float32. If any argument is complex, both are the complex sums; of y mamba-ssm gives the real part alone.

    Raises:
        ValueError: shapes or devices that do not fit, or a backend that cannot run this.
    """
    selected_C_BLN = C_BLN
    if C_BLN is None:
        C_BLN = x_BLD.new_ones(1).expand(*x_BLD.shape[:2], A_DN.shape[-1])
    _check(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, h0_BDN, W_DN)
    given = [t for t in (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, h0_BDN, W_DN) if t is not None]
    wide = functools.reduce(torch.promote_types, (t.dtype for t in given), torch.float32)
    weighted = W_DN is not None
    beside_C = weighted and selected_C_BLN is not None
    mixed = wide.is_complex and (x_BLD.is_complex() or dt_BLD.is_complex() or not A_DN.is_complex())
    name, note = _choose(backend, x_BLD, wide, has_h0=h0_BDN is not None, weighted=beside_C, mixed=mixed)
    if name == "mamba-ssm":
        y_BLD, h_last_BDN = _mamba_ssm(x_BLD, dt_BLD, A_DN, B_BLN, selected_C_BLN, W_DN)
    else:
        real = wide.to_real()
        x, dt, A, B, C = (_to(t, wide if t.is_complex() else real) for t in (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN))
        h0 = None if h0_BDN is None else _to(h0_BDN, wide)
        W = None if W_DN is None else _to(W_DN, wide if W_DN.is_complex() else real)
        if name == "sequential":
            y_BLD, h_last_BDN = sequential_scan(x, dt, _to(A, wide), B, C, h0, W)
        elif name == "chunked":
            if h0 is None:
                h0 = torch.zeros(x.shape[0], *A.shape, dtype=wide, device=x.device)
            y_BLD, h_last_BDN = chunked_scan(x, dt, A, B, C, h0, W)
        else:
            y_BLD, h_last_BDN = _kernel(x, dt, A, B, C, h0, W)
        if not wide.is_complex:
            y_BLD = y_BLD.to(x_BLD.dtype)
    # A complex product is four real ones.
    states = float(x_BLD.numel() * A_DN.shape[1]) * (4 if wide.is_complex else 1)
    observe(
        "selective_scan",
        name + note,
        forward_flops=(FORWARD_OPS + weighted * WEIGHTED_FORWARD_OPS) * states,
        backward_flops=(BACKWARD_OPS + weighted * WEIGHTED_BACKWARD_OPS) * states,
        check=None if is_fake(x_BLD) else lambda: slice_error(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, h0_BDN, W_DN, y_BLD),
    )
    return y_BLD, h_last_BDN


def available_backends(
    device: torch.device | str, dtype: torch.dtype = torch.float32, *, has_h0: bool = False, weighted: bool = False
) -> dict[str, str]:
    """Each backend and why it cannot run there, or "" if it can. Builds the kernel if asked about a CPU."""
    reason = functools.partial(_unavailable, device=torch.device(device), wide=dtype, has_h0=has_h0, weighted=weighted)
    return {name: reason(name) for name in BACKENDS}


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Let ``auto`` begin with this backend: to predict on one machine what another will run."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _choose(
    backend: str, x_BLD: Tensor, wide: torch.dtype, *, has_h0: bool, weighted: bool, mixed: bool
) -> tuple[str, str]:
    """The backend to run, and a note for the record where it is not the one meant for this device."""
    reason = functools.partial(
        _unavailable, device=x_BLD.device, wide=wide, has_h0=has_h0, weighted=weighted, mixed=mixed, fake=is_fake(x_BLD)
    )
    if backend == "auto":
        first = _forced.get() or ("mamba-ssm" if x_BLD.is_cuda else "kernel")
        why = reason(first)
        return ("chunked", f" (no {first}: {why})") if why else (first, "")
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of auto, {', '.join(BACKENDS)}")
    if why := reason(backend):
        raise ValueError(f"backend {backend!r} cannot run here: {why}; use backend='auto' or 'chunked'")
    return backend, ""


def _unavailable(
    name: str,
    device: torch.device,
    wide: torch.dtype,
    *,
    has_h0: bool,
    weighted: bool,
    mixed: bool = False,
    fake: bool = False,
) -> str:
    if name == "kernel":
        if device.type != "cpu":
            return f"it is for CPU tensors, these are on {device.type}"
        return f"it takes real tensors, not {wide}" if wide.is_complex else ensure_built()
    if name == "mamba-ssm":
        if device.type != "cuda" and not fake:
            return f"it is for CUDA tensors, these are on {device.type}"
        if wide not in (torch.float32, torch.complex64):
            return f"it computes in float32 or complex64, not {wide}"
        if mixed:
            return "its x and dt are real, and its B and C complex only where A is"
        if has_h0:
            return "it cannot start from a given h0"
        if weighted:
            return "it takes weights of the channels in place of C only, not beside it"
        # Without data nothing of the package is called, and it may be another machine's memory that is predicted,
        # with tensors said to be on a CPU: a PyTorch without CUDA aborts on the gradients of fake CUDA tensors.
        return "" if fake else why_missing("mamba_ssm.ops.selective_scan_interface")
    return ""


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, W: Tensor | None) -> None:
    if x.ndim != 3 or A.ndim != 2 or 0 in x.shape or 0 in A.shape:
        raise ValueError(f"x {tuple(x.shape)} must be (B, L, D) and A {tuple(A.shape)} (D, N), none of them empty")
    (batch, length, channels), states = x.shape, A.shape[1]
    sequence, state = (batch, length, states), (batch, channels, states)
    wanted = [("dt", dt, x.shape), ("A", A, (channels, states)), ("B", B, sequence), ("C", C, sequence)]
    for name, tensor, shape in [*wanted, ("h0", h0, state), ("W", W, A.shape)]:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, x and A ask for {tuple(shape)}; pass it so")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; move one of them")


def _dense(tensor: Tensor) -> Tensor:
    """The kernel takes any strides of batch and time, but channels side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _kernel(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, W: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, dt, B, C = map(_dense, (x, dt, B, C))
    A, h0, W = A.contiguous(), None if h0 is None else h0.contiguous(), None if W is None else W.contiguous()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, dt, A, B, C, h0, W)):
        return _KernelScan.apply(x, dt, A, B, C, h0, W)
    y_BLD, h_last_BDN, _ = scan_forward(x, dt, A, B, C, h0, W, keep_states=False)
    return y_BLD, h_last_BDN


class _KernelScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, W: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y_BLD, h_last_BDN, boundary = scan_forward(x, dt, A, B, C, h0, W, keep_states=True)
        ctx.save_for_backward(x, dt, A, B, C, W, boundary)
        ctx.set_materialize_grads(False)
        return y_BLD, h_last_BDN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, gh_last: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, W, boundary = ctx.saved_tensors
        gy = x.new_zeros(x.shape) if gy is None else _dense(gy)
        gh_last = None if gh_last is None else gh_last.contiguous()
        gradients = scan_backward(x, dt, A, B, C, boundary, gy, gh_last, W)
        return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True))


def _mamba_ssm(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor | None, W: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The package's layout is (B, D, L) and (B, N, L), in one dtype, float16 and bfloat16 included.

    Of a complex A it wants B and C with real and imaginary parts in turn, (B, N, 2 L), and returns twice the real part.
    A C of the channels' own is (D, N).
    """
    narrow = torch.promote_types(x.dtype, dt.dtype)
    if not A.is_complex():
        narrow = functools.reduce(torch.promote_types, (t.dtype for t in (B, C) if t is not None), narrow)
    u, delta = (_to(t, narrow).transpose(1, 2).contiguous() for t in (x, dt))
    A = _to(A, torch.complex64 if A.is_complex() else torch.float32).contiguous()

    def positions_last(t_BLN: Tensor) -> Tensor:
        if not A.is_complex():
            return _to(t_BLN, narrow).transpose(1, 2).contiguous()
        return _to(torch.view_as_real(_to(t_BLN, A.dtype)), narrow).transpose(1, 2).flatten(2)

    B_BNL = positions_last(B)
    own_C_DN = torch.ones_like(A) if W is None else _to(W, A.dtype).contiguous()
    C_read = own_C_DN if C is None else positions_last(C)
    if is_fake(x):
        y_BDL, h_last_BDN = _FakeMambaScan.apply(u, delta, A, B_BNL, C_read)
    else:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        y_BDL, h_last_BDN = selective_scan_fn(u, delta, A, B_BNL, C_read, return_last_state=True)
    if A.is_complex():
        y_BDL = 0.5 * y_BDL
    return _to(y_BDL.transpose(1, 2), x.dtype), _NoGradient.apply(h_last_BDN)


class _NoGradient(torch.autograd.Function):
    """The package drops the gradient of the last state: better an error than a wrong gradient."""

    @staticmethod
    def forward(ctx: Any, h_last_BDN: Tensor) -> Tensor:
        return h_last_BDN.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("mamba-ssm's last state has no gradient; pass backend='chunked' to differentiate through it")


class _FakeMambaScan(torch.autograd.Function):
    """Allocates what mamba_ssm's SelectiveScanFn does, for memory prediction."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        num_chunks, y_BDL = math.ceil(u.shape[2] / 2048), torch.empty_like(u)
        scanned = u.new_empty(*u.shape[:2], num_chunks, 2 * A.shape[1], dtype=A.dtype)
        ctx.save_for_backward(u, delta, A, B, C, scanned)
        return y_BDL, scanned[:, :, -1, 1::2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh_last: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, _ = ctx.saved_tensors
        _held = gy.contiguous()
        dB, dC = (torch.empty_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in (B, C))
        return (torch.empty_like(u), torch.empty_like(delta), torch.empty_like(A), _to(dB, B.dtype), _to(dC, C.dtype))


def slice_error(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, W: Tensor | None, y: Tensor
) -> float:
    """Relative error of a few channels of y at full length, for the first and last sequence, against float64."""
    batch, length, channels = x.shape
    d = torch.linspace(0, channels - 1, min(channels, CHECKED_CHANNELS)).round().long().to(x.device)
    b = torch.tensor(sorted({0, batch - 1}), device=x.device)

    def wide(t: Tensor) -> Tensor:
        return t.to(torch.complex128 if t.is_complex() else torch.float64)

    h = None if h0 is None else wide(h0[b][:, d])
    W_d = None if W is None else wide(W[d])
    if h is None and any(t is not None and t.is_complex() for t in (x, A, B, C, W)):
        h = torch.zeros(len(b), len(d), A.shape[1], dtype=torch.complex128, device=x.device)
    pieces: list[Tensor] = []
    for start in range(0, length, CHECKED_PIECE):
        part = slice(start, start + CHECKED_PIECE)
        x_d, dt_d = (wide(t[:, part].index_select(2, d)[b]) for t in (x, dt))
        y_d, h = chunked_scan(x_d, dt_d, wide(A[d]), wide(B[b, part]), wide(C[b, part]), h, W_d)
        pieces.append(y_d)
    actual, reference = wide(y.index_select(2, d)[b]), torch.cat(pieces, 1)
    if reference.is_complex() and not actual.is_complex():
        reference = reference.real
    if reference.is_complex():
        actual, reference = torch.view_as_real(actual), torch.view_as_real(reference)
    return relative_error(actual, reference)
