"""Mamba-3's fused operator: what it is not asked for, and what is compiled for it."""

import json
import math

import pytest
import torch

from models.mamba3 import Mamba3
from models.ops import mamba3_kernels
from models.ops.context import why_missing


@pytest.mark.parametrize(
    ("dtype", "shape", "options", "reason"),
    [
        (torch.float32, (1, 8), {}, "round float32 to bfloat16"),
        (torch.float64, (1, 8), {}, "round float64 to bfloat16"),
        (torch.bfloat16, (1, 8), {"d_state": 48}, "powers of two from 16, not d_state=48"),
        (torch.bfloat16, (1, 8), {"head_dim": 8}, "powers of two from 16, not head_dim=8"),
        (torch.bfloat16, (1, 2**20), {}, "32 bits, too few for 3,221,225,472"),
        (torch.bfloat16, (1, 2**19), {}, ""),
    ],
    ids=str,
)
def test_the_operator_is_not_asked_for_what_it_cannot_do(dtype, shape, options, reason):
    mixer = Mamba3(768, **options)
    projected = torch.empty(*shape, sum(mixer.widths), dtype=dtype, device="meta")
    why = mamba3_kernels.unavailable(projected, mixer.options, heads=mixer.num_heads)
    assert reason in why and bool(reason) == bool(why)


@pytest.mark.parametrize("length", [1, 16, 64, 65, 1000, 1024, 2047, 2048, 4096, 5000, 2**20, 2**20 - 1])
def test_what_is_compiled_is_specialised_as_what_runs(length, monkeypatch):
    """Triton's rule: a size or stride is 1, or a multiple of 16, or neither."""
    commands = []
    monkeypatch.setattr(mamba3_kernels, "is_fake", lambda tensor: False)
    monkeypatch.setattr(mamba3_kernels, "why_missing", lambda module: "")
    monkeypatch.setattr(mamba3_kernels, "version", lambda package: "1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(mamba3_kernels, "why_not_compiled", lambda command, key: commands.append(command) or "")
    mixer = Mamba3(64, d_state=32, head_dim=16)
    projected = torch.empty(3, length, sum(mixer.widths), dtype=torch.bfloat16, device="meta")
    assert mamba3_kernels.unavailable(projected, mixer.options, heads=8) == ""
    options, batch, compiled, trains = json.loads(commands[0][-1])
    assert (options, batch, trains) == (mixer.options, 2, True) and compiled <= min(length, 2047)

    def specialised(length: int) -> list[tuple[bool, bool]]:
        chunks = math.ceil(length / mamba3_kernels.CHUNK)
        sizes = [n * size for size in (length, chunks) for n in (1, 3, 8, 24)]
        return [(size == 1, size % 16 == 0) for size in sizes]

    assert specialised(compiled) == specialised(length)


@pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_missing("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")),
    reason="needs CUDA and mamba-ssm's Mamba-3",
)
def test_the_operators_kernels_are_all_found():
    assert [len(kernel.configs) > 1 for kernel in mamba3_kernels.autotuned_kernels()] == [True] * 7
