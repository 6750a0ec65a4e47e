"""Operators against references: scans, state space duals and attention kernels, outputs and all gradients.

Shape suffixes: B batch, L sequence length, D channels, N states, H heads, P head width, K head dimension.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.parity_rows import Row, compared, dtype_name
from models.ops.selective_scan import available_backends, selective_scan
from models.ops.ssd import ssd

# Of the results' norm. bfloat16 keeps eight bits (4e-3), and gradients pass through two roundings.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}
SCAN_NAMES = ("x", "dt", "A", "B", "C")
# The package multiplies in TF32 where inputs are float32, and takes the decays' gradient as a difference of sums of
# outputs that it has rounded to the inputs' type.
SSD_TOLERANCE = {
    torch.float32: dict.fromkeys(("output", "dx", "dB", "dC", "dlog_decay"), 5e-3),
    torch.bfloat16: {"dlog_decay": 1e-1},
}
CHANNELS_AT_ONCE = 256
WIDE = 2048
"""Channels of the fused operators' comparison: with 2^20 positions one tensor has 2^31 elements, more than an int32
index reaches."""
MOST_WIDE_ELEMENTS = 2**29
"""Of a float32 tensor: a dozen of 2^31 would not fit, so that there are fewer channels at the longest lengths."""


def scan_inputs(seq_len: int, channels: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, A, B, C with steps and decays as a fresh Mamba has them."""
    generator = torch.Generator(device).manual_seed(seq_len)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    dt = torch.rand(1, seq_len, channels, generator=generator, device=device, dtype=dtype) * 0.1
    A = -torch.arange(1.0, 17.0, device=device).expand(channels, 16).contiguous()
    A = A.double() if dtype == torch.float64 else A
    return [normal(1, seq_len, channels), dt, A, normal(1, seq_len, 16), normal(1, seq_len, 16)]


def with_gradients(
    operator: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """The output, and the gradient of every input."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = operator(*leaves)
    gradients = torch.autograd.grad(output, leaves, gradient)
    return {"output": output.detach(), **{f"d{name}": g for name, g in zip(names, gradients, strict=True)}}


def selective_scans(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """Our own scans against the recurrence as written, in float64."""
    del lengths  # the recurrence keeps every state for its gradient: one length is enough
    seq_len, channels = 1000, 40
    inputs = scan_inputs(seq_len, channels, device, torch.float64)
    gradient = torch.ones(1, seq_len, channels, device=device, dtype=torch.float64).cumsum(1).cos()

    def run(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        cast = [tensor.to(dtype) for tensor in inputs]
        return with_gradients(lambda *a: selective_scan(*a, backend=backend)[0], cast, gradient.to(dtype), SCAN_NAMES)

    wanted = run("sequential", torch.float64)
    for dtype in (torch.float64, torch.float32):
        for backend, reason in available_backends(device, dtype).items():
            if not reason and backend in ("kernel", "chunked"):
                actual = run(backend, dtype)
                yield from compared(
                    f"selective_scan {backend}", "recurrence in float64",
                    {name: (actual[name], wanted[name]) for name in wanted},
                    seq_len=seq_len, tolerance=TOLERANCE[dtype],
                )  # fmt: skip


def _width(seq_len: int, dtype: torch.dtype) -> int:
    return WIDE if dtype != torch.float32 else min(WIDE, MOST_WIDE_ELEMENTS // seq_len)


def _subject(operator: str, width: int) -> str:
    return f"mamba-ssm {operator}" if width == WIDE else f"mamba-ssm {operator}, {width} channels"


def fused_selective_scan(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """mamba-ssm's kernel against our chunked form in float32, a block of channels at a time."""
    for seq_len, dtype in itertools.product(lengths, (torch.float32, torch.bfloat16)):
        width = _width(seq_len, dtype)
        x, dt, A, B, C = scan_inputs(seq_len, width, device, dtype)
        gradient = torch.randn(x.shape, generator=torch.Generator(device).manual_seed(1), device=device, dtype=dtype)
        actual = with_gradients(
            lambda *a: selective_scan(*a, backend="mamba-ssm")[0], (x, dt, A, B, C), gradient, SCAN_NAMES
        )
        errors = _SquaredErrors()
        sums = {"dB": torch.zeros_like(B, dtype=torch.float32), "dC": torch.zeros_like(C, dtype=torch.float32)}
        for start in range(0, width, CHANNELS_AT_ONCE):
            part = slice(start, start + CHANNELS_AT_ONCE)
            inputs = [t.float() for t in (x[..., part], dt[..., part], A[part], B, C)]
            wanted = with_gradients(
                lambda *a: selective_scan(*a, backend="chunked")[0], inputs, gradient[..., part].float(), SCAN_NAMES
            )
            for name in ("output", "dx", "ddt"):
                errors.add(name, actual[name][..., part], wanted[name])
            errors.add("dA", actual["dA"][part], wanted["dA"])
            for name in sums:
                sums[name] += wanted[name]
        for name in sums:
            errors.add(name, actual[name], sums[name])
        yield from errors.rows(_subject("selective_scan", width), "chunked in float32", seq_len, dtype, {})
        del actual, gradient, x, dt


def fused_ssd(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """mamba-ssm's state space dual against our chunked form in float32, a few heads at a time."""
    P, N, at_once = 64, 128, 4
    names = ("x", "log_decay", "B", "C")
    for seq_len, dtype in itertools.product(lengths, (torch.float32, torch.bfloat16)):
        width = _width(seq_len, dtype)
        H = width // P
        generator = torch.Generator(device).manual_seed(seq_len)
        shapes = [(1, seq_len, H, P), (1, seq_len, H), (1, seq_len, 1, N), (1, seq_len, 1, N)]
        x, log_decay, B, C = (torch.randn(s, generator=generator, device=device, dtype=dtype) for s in shapes)
        # Decays as a fresh Mamba-2 has them, e^-0.001 to e^-1.6.
        log_decay = -(log_decay.float() - 3).exp()
        B, C = B / N**0.5, C / N**0.5
        gradient = torch.randn(x.shape, generator=generator, device=device, dtype=dtype)
        actual = with_gradients(lambda *a: ssd(*a, backend="mamba-ssm")[0], (x, log_decay, B, C), gradient, names)
        errors = _SquaredErrors()
        sums = {"dB": torch.zeros_like(B, dtype=torch.float32), "dC": torch.zeros_like(C, dtype=torch.float32)}
        for start in range(0, H, at_once):
            part = slice(start, start + at_once)
            inputs = [t.float() for t in (x[:, :, part], log_decay[:, :, part], B, C)]
            wanted = with_gradients(
                lambda *a: ssd(*a, backend="chunked")[0], inputs, gradient[:, :, part].float(), names
            )
            for name in ("output", "dx", "dlog_decay"):
                errors.add(name, actual[name][:, :, part], wanted[name])
            for name in sums:
                sums[name] += wanted[name]
        for name in sums:
            errors.add(name, actual[name], sums[name])
        yield from errors.rows(_subject("ssd", width), "chunked in float32", seq_len, dtype, SSD_TOLERANCE[dtype])
        del actual, gradient, x


def attention_kernels(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """Every SDPA kernel that runs here: sampled queries against a softmax in float64."""
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for seq_len in (n for n in lengths if n <= 2**17):
        generator = torch.Generator(device).manual_seed(seq_len)
        q, k, v = (
            torch.randn(1, 4, seq_len, 64, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(3)
        )
        for kernel in kernels:
            try:
                with sdpa_kernel(kernel):
                    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            except RuntimeError:
                continue  # not built for this GPU
            places = torch.linspace(0, seq_len - 1, 16).long().tolist()
            pairs = {"output": (output[0, :, places], _attended(q[0], k[0], v[0], places))}
            yield from compared(
                f"SDPA {kernel.name.lower()}", "softmax in float64", pairs,
                seq_len=seq_len, tolerance=TOLERANCE[torch.bfloat16],
            )  # fmt: skip


def _attended(q_HLK: Tensor, k_HLK: Tensor, v_HLK: Tensor, places: Sequence[int]) -> Tensor:
    """Causal attention of a few queries in float64: ``(H, places, K)``."""
    outputs = []
    for place in places:
        k_HSK, v_HSK = k_HLK[:, : place + 1].double(), v_HLK[:, : place + 1].double()
        scores_HS = torch.einsum("hk,hsk->hs", q_HLK[:, place].double(), k_HSK) / q_HLK.shape[-1] ** 0.5
        outputs.append(torch.einsum("hs,hsk->hk", scores_HS.softmax(-1), v_HSK))
    return torch.stack(outputs, 1)


class _SquaredErrors:
    """Relative errors of tensors that are compared piece by piece."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, actual: Tensor, wanted: Tensor) -> None:
        error, norm = self._sums.get(name, (0.0, 0.0))
        # In float32 pieces: a float64 copy of 2^29 elements is 4 GB.
        difference = (actual.float() - wanted.float()).norm(dtype=torch.float32).item()
        self._sums[name] = (error + difference**2, norm + wanted.float().norm(dtype=torch.float32).item() ** 2)

    def rows(
        self, subject: str, reference: str, seq_len: int, dtype: torch.dtype, tolerances: dict[str, float]
    ) -> Iterator[Row]:
        for quantity, (error, norm) in self._sums.items():
            yield Row(
                subject=subject, reference=reference, quantity=quantity, seq_len=seq_len, dtype=dtype_name(dtype),
                error=(error / max(norm, 1e-30)) ** 0.5, tolerance=tolerances.get(quantity, TOLERANCE[dtype]),
            )  # fmt: skip
