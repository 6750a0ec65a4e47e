"""The stand-in for Mamba-3's fused operator: what it keeps, its FLOPs, and its peak against a GPU's allocator.

The last test wants CUDA and mamba-ssm: ``python -m pytest tests/models/test_fused_mamba3.py``.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.memory import memory_of
from harness.prediction import StorageTracker, predict
from models.mamba3 import Mamba3
from models.ops import fused_mamba3
from models.ops.context import observing, predicting, why_missing
from models.presets import Size
from tests.models.test_fused_blocks import TINY, build_step, default_dtype, predicted_peak

D_MODEL, H, P, N, S = 32, 4, 16, 32, 8


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make(**options: object) -> Mamba3:
    """In bfloat16; fake tensors cannot be cast."""
    with default_dtype(torch.bfloat16):
        return Mamba3(D_MODEL, **({"d_state": N, "head_dim": P} | options))


def inputs(batch: int, seq_len: int) -> Tensor:
    return torch.empty(batch, seq_len, D_MODEL, dtype=torch.bfloat16, requires_grad=True)


def planned_bytes(seq_len: int, *, train: bool) -> int:
    def build() -> Callable[[], object]:
        mixer, x = make(), inputs(2, seq_len)

        def call() -> None:
            with torch.set_grad_enabled(train):
                y = mixer(x)
                if train:
                    y.sum().backward()

        return call

    with predicting("cuda"):
        return predict(build).peak_bytes


@pytest.mark.parametrize("train", [False, True])
def test_predicted_bytes_are_linear_in_length(train):
    first, second, third = (planned_bytes(n * 2**12, train=train) for n in (4, 8, 12))
    assert third - second == second - first > 0


@pytest.mark.parametrize("train", [False, True])
def test_what_the_operator_keeps(train):
    B, L, K = 2, 1000, 16
    shapes = {
        "Q": (B, L, 1, N), "K": (B, L, 1, N), "V": (B, L, H, P), "ADT": (B, H, L), "DT": (B, H, L), "Trap": (B, H, L),
        "Q_bias": (H, N), "K_bias": (H, N), "Angles": (B, L, H, S), "D": (H,), "Z": (B, L, H, P),
    }  # fmt: skip
    narrow = {"Q", "K", "V", "Trap", "Angles", "Z"}
    with FakeTensorMode(), StorageTracker() as storages:
        given = {
            name: torch.empty(
                shape, dtype=torch.bfloat16 if name in narrow else torch.float32, requires_grad=train
            )
            for name, shape in shapes.items()
        }  # fmt: skip
        before = storages.held_bytes
        y = fused_mamba3.mamba3_siso_combined(**given, chunk_size=64)
        kept = storages.held_bytes - before
        assert (y.shape, y.dtype) == ((B, L, H, P), torch.bfloat16)
        output = 2 * B * L * H * P
        # Output before the gate, Q and K of each head, angles, states of chunks; floats a step, and a chunk's decay.
        saved = output + 2 * B * L * H * (2 * N + S) + 2 * B * H * P * K * N + 4 * B * H * (4 * L + K)
        assert kept == output + train * saved


def test_every_parameter_gets_a_gradient_of_its_own_kind():
    with FakeTensorMode(), predicting("cuda"), observing() as report:
        mixer, x = make(), inputs(2, 100)
        y = mixer(x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        y.sum().backward()
        for parameter in [x, *mixer.parameters()]:
            assert parameter.grad is not None
            assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, parameter.dtype)
    assert report.backends == {"mamba3_block": "mamba-ssm mamba3_siso_combined"}
    assert report.forward_flops == 2 * make().op_flops(100) < report.backward_flops


@pytest.mark.parametrize(
    ("options", "dtype"), [({}, torch.float32), ({"fused": False}, torch.bfloat16), ({"d_state": 48}, torch.bfloat16)]
)
def test_what_the_operator_does_not_run_is_not_predicted_as_its(options, dtype):
    with FakeTensorMode(), predicting("cuda"), observing() as report, default_dtype(dtype):
        Mamba3(D_MODEL, **({"d_state": N, "head_dim": P} | options))(torch.empty(1, 64, D_MODEL))
    assert not report.backends.get("mamba3_block", "").startswith("mamba-ssm")
    assert report.backends["ssd"] == "mamba-ssm"


@pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_missing("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")),
    reason="needs CUDA and mamba-ssm's Mamba-3",
)
@pytest.mark.usefixtures("one_mamba3_configuration")
@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize(("batch", "seq_len"), [(1, 1024), (1, 4096), (1, 16384), (4, 2048)])
@pytest.mark.parametrize("size", [TINY, Size(d_model=768, num_layers=1)], ids=["tiny", "130m, one block"])
def test_predicted_peak_is_the_gpus(size, batch, seq_len, train):
    trial = ("mamba3", size, batch, seq_len, torch.bfloat16)

    def work() -> object:
        step = build_step(*trial, train=train, device="cuda")
        step()
        step()
        return step

    with observing() as report:
        memory_of(work, torch.device("cuda"))  # Triton may time its kernels (256 MiB), and cuBLAS takes its workspaces
    assert report.backends["mamba3_block"].startswith("mamba-ssm")
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    measured = memory_of(work, torch.device("cuda"))["peak_alloc_bytes"]
    requested = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    predicted = predicted_peak(*trial, train=train)
    assert predicted == pytest.approx(requested, rel=0.02, abs=4 * 2**20)
    # Blocks are counted whole: up to 1 MiB of a large one is not split off, and small tensors fill 512 bytes. On an
    # H200 that made 3.6 MiB of a train step's 128.
    assert predicted == pytest.approx(measured, rel=0.02, abs=4 * 2**20)
