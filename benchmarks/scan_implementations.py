"""The selective scans that :mod:`benchmarks.scan_table` compares: this suite's own and what else there is.

All take the same x, dt, A, B, C in this suite's layout and return y. Shapes: B batch, L time, D channels, N states
(see :mod:`models.ops.selective_scan`).
"""

import contextlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ops.selective_scan import selective_scan
from tasks.audio.torchaudio_import import import_torchaudio
from tasks.base import TaskError

CHANNELS, STATES = 128, 16

Scan = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute the scan."""

    load: Callable[[], Scan]
    """Imports what it needs: only the process that measures it pays for that."""
    backward_growth: float = 1.0
    """Exponent of the length that the time of a backward grows with, until two lengths have told it."""
    compiled: bool = False
    """Whether the first call at a length compiles something for it."""


def _own(backend: str) -> Callable[[], Scan]:
    return lambda: lambda *inputs: selective_scan(*inputs, backend=backend)[0]


def _mambapy() -> Scan:
    """mambapy's parallel scan over materialised decays and inputs, as its Mamba block calls it."""
    pscan = importlib.import_module("mambapy.pscan").pscan

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return (pscan(*_materialised(x, dt, A, B)) @ C[..., None]).squeeze(3)

    return scan


def _transformers() -> Scan:
    """The library's own function for a MambaMixer without kernels; its layout has time last."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # The library imports torchaudio where it is installed, and fails with it beside a CPU build of torch.
    with contextlib.suppress(TaskError):  # not installed
        import_torchaudio()
    library_scan = importlib.import_module("transformers.models.mamba.modeling_mamba").mamba_selective_scan

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        x, dt, B, C = (t.transpose(1, 2) for t in (x, dt, B, C))
        return library_scan(x, dt, A, B, C).transpose(1, 2)

    return scan


def _associative(*, compiled: bool) -> Callable[[], Scan]:
    def load() -> Scan:
        from torch._higher_order_ops.associative_scan import associative_scan

        def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            _, h_BLDN = associative_scan(combine, _materialised(x, dt, A, B), dim=1, combine_mode="generic")
            return (h_BLDN @ C[..., None]).squeeze(3)

        if not compiled:
            return scan
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # no pool of compiling processes beside the one that is measured
        torch._inductor.config.cpp.dynamic_threads = True  # its cache then serves every number of threads
        return torch.compile(scan, dynamic=False)

    return load


def _materialised(x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and dt B x, both (B, L, D, N)."""
    return torch.exp(dt[..., None] * A), dt[..., None] * B[:, :, None] * x[..., None]


IMPLEMENTATIONS: dict[str, Implementation] = {
    "seqbench-kernel": Implementation(load=_own("kernel")),
    "seqbench-chunked": Implementation(load=_own("chunked")),
    "mambapy-pscan": Implementation(load=_mambapy),
    "torch-associative-scan": Implementation(load=_associative(compiled=False)),
    "torch-associative-scan-compiled": Implementation(load=_associative(compiled=True), compiled=True),
    # It indexes the materialised tensors at every step, and each index's gradient is of their full size.
    "transformers-slow": Implementation(load=_transformers, backward_growth=2.0),
    "sequential": Implementation(load=_own("sequential")),
}


def find_implementation(name: str) -> Implementation:
    """A registered one, or the function that ``package.module:function`` names; ValueError for neither."""
    if name in IMPLEMENTATIONS:
        return IMPLEMENTATIONS[name]
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"{name!r} is not one of {known}; name your own as package.module:function")
    return Implementation(load=lambda: getattr(importlib.import_module(module), function))


def scan_inputs(seq_len: int, channels: int = CHANNELS) -> list[Tensor]:
    """x, dt, A, B, C and a gradient of y; steps and decays where a fresh model has them."""
    generator = torch.Generator().manual_seed(seq_len)

    def normal(width: int) -> Tensor:
        return torch.randn(1, seq_len, width, generator=generator)

    dt_BLD = torch.rand(1, seq_len, channels, generator=generator) * 0.1
    A_DN = -torch.arange(1.0, STATES + 1).expand(channels, STATES).contiguous()
    return [normal(channels), dt_BLD, A_DN, normal(STATES), normal(STATES), normal(channels)]
