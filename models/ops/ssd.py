"""The state space dual: a linear recurrence whose state decays by one number a head and step.

``h_t = exp(log_decay_t) h_{t-1} + x_t B_t^T`` and ``y_t = h_t C_t`` (Dao & Gu, arXiv 2405.21060, section 6). Mamba-2
is this with ``log_decay = dt A`` and x times dt; retention has a constant decay a head, linear attention none, and in
both C, B and x are query, key and value.

Shape suffixes: B batch, L time, H heads, P head width, N states, G groups (each shares its B and C among H / G heads).

==============  ==========================================================================================
``mamba-ssm``   the released Triton kernels, where the package is installed; CUDA, log_decay <= 0
``chunked``     PyTorch, any device and real dtype (:mod:`models.ops.ssd_chunked`)
``sequential``  the recurrence as written, for tests
==============  ==========================================================================================
"""

import functools

import torch
from torch import Tensor

from models.ops.context import is_fake, observe, relative_error, stands_for, why_missing
from models.ops.fused_ssd import FakeMambaSSD
from models.ops.inference_kernels import outgrows_32_bits
from models.ops.ssd_chunked import CHUNK, ChunkedSSD, chunked_forward, split_segments

BACKENDS = ("mamba-ssm", "chunked", "sequential")

FORWARD_ELEMENTWISE, BACKWARD_ELEMENTWISE = 3.0, 8.0
"""Passes over the Q x Q decays of a chunk that are no matrix products: difference, exp, product; again, and five."""

LEAST_DT = 1e-10
"""mamba-ssm's x is ours divided by dt, which must not be 0; 2^20 such steps decay by 1e-4."""

CHECKED_PIECE = 2**14  # tokens at a time, so that a check takes little memory


def ssd(
    x_BLHP: Tensor,
    log_decay_BLH: Tensor | None,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    h0_BHPN: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs and last state; differentiable once, in all tensors and through both results.

    Args:
        x_BLHP: inputs.
        log_decay_BLH: logarithms of the decays, at most 0; of shape ``(H,)`` where they do not change, None for none.
        B_BLGN, C_BLGN: what enters the state and what is read from it; G divides H.
        h0_BHPN: state before the first step; zeros if not given.
        backend: one of :data:`BACKENDS`, or ``auto``: mamba-ssm on CUDA where it runs, else chunked.

    Returns:
        ``y_BLHP`` in x's dtype and ``h_last_BHPN`` in the dtype computed in: float64 if an argument is, else float32.

    Raises:
        ValueError: shapes or devices that do not fit, or a backend that cannot run this.
    """
    _check(x_BLHP, log_decay_BLH, B_BLGN, C_BLGN, h0_BHPN)
    given = [t for t in (x_BLHP, log_decay_BLH, B_BLGN, C_BLGN, h0_BHPN) if t is not None]
    wide = functools.reduce(torch.promote_types, (t.dtype for t in given), torch.float32)
    name, note = _choose(backend, x_BLHP, wide, too_large=outgrows_32_bits(*given))
    arguments = (x_BLHP, log_decay_BLH, B_BLGN, C_BLGN, h0_BHPN)
    if name == "mamba-ssm":
        y_BLHP, h_last_BHPN = _mamba_ssm(*arguments)
    elif name == "chunked":
        y_BLHP, h_last_BHPN = _chunked(*arguments, wide)
    else:
        y_BLHP, h_last_BHPN = _sequential(*arguments, wide)
    forward_flops, backward_flops = _unseen_flops(name, x_BLHP, log_decay_BLH, B_BLGN)
    observe(
        "ssd",
        name + note,
        forward_flops=forward_flops,
        backward_flops=backward_flops,
        check=None if is_fake(x_BLHP) else lambda: _slice_error(*arguments, y_BLHP),
    )
    return y_BLHP, h_last_BHPN


def ssd_flops(
    *,
    seq_len: int,
    heads: int,
    head_dim: int,
    d_state: int,
    groups: int = 1,
    chunk: int = CHUNK["chunked"],
    trains_decay: bool = True,
) -> tuple[float, float]:
    """Forward and backward operations of the matrix products for one sequence.

    A step costs ``2 Q N G`` for its scores ``C B^T``, ``2 Q P H`` for what they give, and ``2 P N H`` each for writing
    the chunk's state and reading it; the whole square of a chunk is computed. The backward takes the first three times
    (again, and for B and C), the second twice, the third six times (states again, their gradients, two each for dx, dB
    and dC, and the decay's, if it has a gradient).
    """
    forward = backward = 0.0
    for steps in (chunk,) * (seq_len // chunk) + ((seq_len % chunk,) if seq_len % chunk else ()):
        scores, values = 2.0 * steps * d_state * groups, 2.0 * steps * head_dim * heads
        states = 2.0 * head_dim * d_state * heads
        forward += steps * (scores + values + 2 * states)
        backward += steps * (3 * scores + 2 * values + (6 if trains_decay else 5) * states)
    return forward, backward


def available_backends(device: torch.device | str, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Each backend and why it cannot run there, or "" if it can."""
    return {name: _unavailable(name, torch.device(device), dtype) for name in BACKENDS}


def _choose(backend: str, x: Tensor, wide: torch.dtype, *, too_large: bool) -> tuple[str, str]:
    """The backend to run, and a note for the record where it is not the one meant for this device."""
    fake = is_fake(x)
    if backend == "auto":
        # Without data it may be another machine's memory that is predicted, with tensors said to be on a CPU.
        if not (stands_for(x) == "cuda" if fake else x.is_cuda):
            return "chunked", ""
        why = _unavailable("mamba-ssm", torch.device("cuda"), wide, fake=fake)
        if too_large:
            why = why or "its indices have 32 bits"
        return ("chunked", f" (no mamba-ssm: {why})") if why else ("mamba-ssm", "")
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of auto, {', '.join(BACKENDS)}")
    if why := _unavailable(backend, x.device, wide, fake=fake):
        raise ValueError(f"backend {backend!r} cannot run here: {why}; use backend='auto' or 'chunked'")
    return backend, ""


def _unavailable(name: str, device: torch.device, wide: torch.dtype, *, fake: bool = False) -> str:
    if name != "mamba-ssm":
        return ""
    if device.type != "cuda" and not fake:
        return f"it is for CUDA tensors, these are on {device.type}"
    if wide != torch.float32:
        return f"it computes in float32, not {wide}"
    return "" if fake else why_missing("mamba_ssm.ops.triton.ssd_combined")


def _check(x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor | None) -> None:
    if x.ndim != 4 or B.ndim != 4 or 0 in x.shape or 0 in B.shape:
        raise ValueError(f"x {tuple(x.shape)} must be (B, L, H, P) and B {tuple(B.shape)} (B, L, G, N), none empty")
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    if heads % groups:
        raise ValueError(f"{heads} heads of x do not split into the {groups} groups of B; change one of the two")
    wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("log_decay", log_decay, (heads,) if log_decay is not None and log_decay.ndim == 1 else (batch, length, heads)),
        ("B", B, (batch, length, groups, states)),
        ("C", C, (batch, length, groups, states)),
        ("h0", h0, (batch, heads, width, states)),
    ]
    for name, tensor, shape in wanted:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, x and B ask for {shape}; pass it so")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; move one of them")
        if tensor.is_complex() or x.is_complex():
            raise ValueError(f"x and {name} are {x.dtype} and {tensor.dtype}; pass real tensors")


def _sequential(
    x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One step after the other. O(L H P N) memory under autograd: for tests and short sequences."""
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    h_BHPN = x.new_zeros(batch, heads, width, states, dtype=wide) if h0 is None else h0.to(wide)
    log_decay_1 = x.new_zeros(heads, dtype=wide) if log_decay is None else log_decay.to(wide)
    B_BLHN, C_BLHN = (t.to(wide).repeat_interleave(heads // groups, 2) for t in (B, C))
    ys: list[Tensor] = []
    steps = (x.to(wide), log_decay_1.exp().expand(batch, length, heads), B_BLHN, C_BLHN)
    for x_BHP, decay_BH, B_BHN, C_BHN in zip(*(s.unbind(1) for s in steps), strict=True):
        h_BHPN = decay_BH[..., None, None] * h_BHPN + x_BHP[..., None] * B_BHN[:, :, None]
        ys.append((h_BHPN * C_BHN[:, :, None]).sum(-1))
    return torch.stack(ys, 1).to(x.dtype), h_BHPN


def _chunked(
    x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    if h0 is None:
        h0 = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=wide)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, log_decay, B, C, h0)):
        return ChunkedSSD.apply(x, log_decay, B, C, h0, wide)
    y_BLHP, h_last_BHPN, _ = chunked_forward(x, log_decay, B, C, h0, wide, keep_starts=False)
    return y_BLHP, h_last_BHPN


def _mamba_ssm(x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """The package multiplies both A and x by dt. A constant decay is its A; otherwise dt is the decay and x divided."""
    narrow = functools.reduce(torch.promote_types, (t.dtype for t in (B, C)), x.dtype)
    inputs_BLHP = x
    if log_decay is None or log_decay.ndim == 1:
        A_H = x.new_zeros(x.shape[2], dtype=torch.float32) if log_decay is None else log_decay.float()
        dt_BLH = x.new_ones(x.shape[:3], dtype=torch.float32)
    else:
        if narrow == torch.float16:
            narrow = torch.float32  # the quotient may leave float16's range
        A_H = x.new_full(x.shape[2:3], -1.0, dtype=torch.float32)
        dt_BLH = (-log_decay.float()).clamp_min(LEAST_DT)
        inputs_BLHP = inputs_BLHP / dt_BLH[..., None]
    inputs_BLHP, B, C = (t.to(narrow) for t in (inputs_BLHP, B, C))
    h0 = None if h0 is None else h0.float()
    if is_fake(x):
        y_BLHP, h_last_BHPN = FakeMambaSSD.apply(inputs_BLHP, dt_BLH, A_H, B, C, h0)
    else:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        y_BLHP, h_last_BHPN = mamba_chunk_scan_combined(
            inputs_BLHP, dt_BLH, A_H, B, C, CHUNK["mamba-ssm"], initial_states=h0, return_final_states=True
        )
    return y_BLHP.to(x.dtype), h_last_BHPN


def _unseen_flops(name: str, x: Tensor, log_decay: Tensor | None, B: Tensor) -> tuple[float, float]:
    """Operations of a call that PyTorch's counter does not see: all of a kernel's, and what is no matrix product."""
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    count = functools.partial(ssd_flops, heads=heads, head_dim=width, d_state=states, groups=groups)
    trains_decay = name == "mamba-ssm" or (log_decay is not None and log_decay.requires_grad)
    if name == "sequential":
        recurrence = 5.0 * x.numel() * states  # exp left out: one a head
        return recurrence, 2 * recurrence
    steps = min(CHUNK[name], length)
    elementwise = float(steps * x.shape[:3].numel())
    products = count(seq_len=length, chunk=CHUNK[name], trains_decay=trains_decay)
    if name == "chunked":
        seen = length
        if is_fake(x):  # only its first segment runs
            part, _ = next(split_segments(x, B))
            seen = part.stop
        products_seen = count(seq_len=seen, chunk=steps, trains_decay=trains_decay)
        products = (products[0] - products_seen[0], products[1] - products_seen[1])
    return (
        batch * products[0] + FORWARD_ELEMENTWISE * elementwise,
        batch * products[1] + BACKWARD_ELEMENTWISE * elementwise,
    )


def _slice_error(x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, h0: Tensor | None, y_BLHP: Tensor) -> float:
    """Relative error of the first and last head and sequence at full length, against float64."""
    batch, length, heads, width = x.shape
    b = torch.tensor(sorted({0, batch - 1}), device=x.device)
    h = torch.tensor(sorted({0, heads - 1}), device=x.device)
    g = h // (heads // B.shape[2])  # one group a checked head
    state = x.new_zeros(len(b), len(h), width, B.shape[3], dtype=torch.float64)
    if h0 is not None:
        state = h0[b][:, h].double()
    pieces: list[Tensor] = []
    for start in range(0, length, CHECKED_PIECE):
        part = slice(start, start + CHECKED_PIECE)
        x_h, B_g, C_g = (t[:, part].index_select(2, i)[b].double() for t, i in ((x, h), (B, g), (C, g)))
        decay_h = log_decay
        if log_decay is not None:
            decay_h = (log_decay[h] if log_decay.ndim == 1 else log_decay[:, part].index_select(2, h)[b]).double()
        y_h, state, _ = chunked_forward(x_h, decay_h, B_g, C_g, state, torch.float64, keep_starts=False)
        pieces.append(y_h)
    return relative_error(y_BLHP.index_select(2, h)[b], torch.cat(pieces, 1))
