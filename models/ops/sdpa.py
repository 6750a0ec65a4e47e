"""One call of causal ``scaled_dot_product_attention``, and the choice of its kernel by measurement.

Shape suffixes: B batch, H heads, L sequence length, K head dimension.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.ops.context import is_fake, stands_for
from models.ops.fused_attention import expected_kernel, fake_attention

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


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, str]:
    """The output, and the name of the kernel for the record."""
    if is_fake(q):
        kernel_asked = _forced.get() or "auto"
        if kernel_asked == "math":  # PyTorch's own operators, which a prediction sees
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), "sdpa-math"
        if stands_for(q) == "cuda":
            return fake_attention(q, k, v, kernel_asked if kernel_asked in KERNELS else expected_kernel(q)), "predicted"
        # Held while the prediction's fake kernel "runs"; the real one allocates it out of our sight.
        scratch = cpu_scratch(q, k.shape[2]) if stands_for(q) == "cpu" else None
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        del scratch
        return out, "predicted"
    kernel = choose_kernel(q, k, v)
    with sdpa_kernel(kernel) if kernel != _default(q, k, v) else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out, f"sdpa-{kernel_name(kernel)}"


def kernel_name(kernel: SDPBackend) -> str:
    """As :data:`KERNELS` calls it; PyTorch's own name for any other."""
    return _NAMES.get(kernel, str(kernel))


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


def cpu_scratch(q_BHLK: Tensor, keys: int) -> Tensor:
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
