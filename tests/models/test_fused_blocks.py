"""Stand-ins for fused blocks: their FLOPs, what they keep, and their peaks against an H200's allocator.

The last tests want CUDA, mamba-ssm and causal-conv1d: ``python -m pytest tests/models/test_fused_blocks.py``.
"""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.memory import memory_of
from harness.prediction import StorageTracker, predict
from models import wirings
from models.base import RMS_NORM_EPS, Mixer
from models.mamba2 import Mamba2
from models.mamba2 import import_fused_block as import_mamba2
from models.model import SequenceModel
from models.ops import fused_blocks
from models.ops.context import observing, predicting
from models.presets import FAMILIES, Size, build
from models.s4d import S4D
from models.s6 import S6
from models.wirings import Mamba

RECORDS = Path(__file__).parents[2] / "results/h200/speed/records.jsonl"
MIXERS: dict[str, Callable[[], Mixer]] = {
    "mamba": lambda: Mamba(32, S6(64, d_state=8, dt_rank=3), d_inner=64),
    "mamba2": lambda: Mamba2(32, d_state=16, head_dim=16),
    "mamba2, groups": lambda: Mamba2(32, d_state=16, head_dim=16, num_groups=2),
}
TINY = Size(d_model=64, num_layers=2)
every_mixer = pytest.mark.parametrize("name", MIXERS)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Of new parameters; fake ones cannot be cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def planned(name: str, seq_len: int, *, batch: int = 1, device: str = "cuda", train: bool = True) -> tuple[int, float]:
    """Peak bytes and FLOPs of a mixer as the plan finds them: PyTorch's count and the closed forms together."""
    closed_forms: list[float] = []

    def build_call() -> Callable[[], object]:
        mixer, x = MIXERS[name](), torch.empty(batch, seq_len, 32, requires_grad=train)

        def call() -> None:
            with observing() as report, torch.set_grad_enabled(train):
                y = mixer(x)
                if train:
                    y.sum().backward()
            closed_forms.append(report.forward_flops + train * report.backward_flops)

        return call

    with predicting(device):
        prediction = predict(build_call)
    return prediction.peak_bytes, prediction.flops + closed_forms[-1]


@pytest.mark.parametrize("train", [False, True])
def test_flops_of_mamba_are_those_of_its_parts(train):
    B, L, D, E, N, R, W = 2, 300, 32, 64, 8, 3, 4
    linear = 2 * B * L * D * 2 * E  # the projection in, PyTorch's own
    block = 2 * B * L * (E * (R + 2 * N) + R * E + E * D + W * E) + 9 * B * L * E * N
    _, flops = planned("mamba", L, batch=B, train=train)
    assert flops == pytest.approx(3 * linear + 4 * block if train else linear + block, rel=1e-12)


def test_forward_flops_are_those_of_the_portable_form():
    assert planned("mamba", 512, train=False)[1] == pytest.approx(planned("mamba", 512, device="cpu", train=False)[1])


OTHER_PRODUCTS = ("inner.x_proj.weight", "inner.dt_proj.weight", "out_proj.weight")


@every_mixer
def test_flops_are_those_that_the_kernels_caller_reports(name, monkeypatch):
    """The real block's path, with a function in the kernel's place that computes nothing on real tensors."""
    mixer, x = MIXERS[name](), torch.zeros(2, 128, 32)
    for parameter in mixer.parameters():
        torch.nn.init.zeros_(parameter)
    monkeypatch.setattr(type(mixer), "_fused_block", lambda self, x: lambda *args, **options: torch.zeros(2, 128, 32))
    with observing() as real:
        mixer(x)
    monkeypatch.undo()
    with FakeTensorMode(), predicting("cuda"), observing(verify=True) as fake:
        MIXERS[name]()(torch.empty(2, 128, 32))
    # The real Mamba block's other products are PyTorch's, and its counter's to count; the stand-in has none.
    weights = [p.numel() for n, p in mixer.named_parameters() if n in OTHER_PRODUCTS and name == "mamba"]
    products = 2.0 * 2 * 128 * sum(weights)
    assert fake.forward_flops == real.forward_flops + products
    assert fake.backward_flops == real.backward_flops + 3 * products
    assert fake.backends == real.backends and not fake.errors


@pytest.mark.parametrize("train", [False, True])
@every_mixer
def test_predicted_bytes_are_linear_in_length(name, train):
    # Whole chunks, and enough of them that heads are not split.
    first, second, third = (planned(name, n * 2**14, batch=2, train=train)[0] for n in (4, 8, 12))
    assert third - second == second - first > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_mamba_saves(batch, autocast):
    B, L, D, E, N, R = batch, 4096, 32, 64, 8, 3
    narrow = 2 if autocast else 4
    with FakeTensorMode(), predicting("cuda"), StorageTracker() as storages:
        mixer, x = MIXERS["mamba"](), torch.empty(B, L, D)
        before = storages.held_bytes
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = mixer(x)
        kept = storages.held_bytes - before
        # xz, the scan's output, x_proj's output, B and C; the scan's states every 2048 steps; y; A and exp(A_log).
        saved = narrow * B * L * (2 * E + E + (R + 2 * N) + 2 * N) + 4 * B * E * 2 * (2 * N)
        saved += narrow * B * L * D + 2 * 4 * E * N
        if autocast:  # copies of the projections' weights, and of x for the first one
            saved += 2 * (E * (R + 2 * N) + E * R + E * D) + 2 * B * L * D
        assert kept == saved
        y.float().sum().backward()


@pytest.mark.parametrize("autocast", [False, True])
@every_mixer
def test_every_parameter_gets_a_gradient_of_its_own_kind(name, autocast):
    with FakeTensorMode(), predicting("cuda"):
        mixer, x = MIXERS[name](), torch.empty(2, 100, 32, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = mixer(x)
        assert y.shape == x.shape and y.dtype == (torch.bfloat16 if autocast else torch.float32)
        y.float().sum().backward()
        for parameter in [x, *mixer.parameters()]:
            assert parameter.grad is not None
            assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, parameter.dtype)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (MIXERS["mamba"], torch.float64),
        (MIXERS["mamba2"], torch.float64),
        (lambda: Mamba(32, S6(64, select=("B", "C")), d_inner=64), torch.float32),
        (lambda: Mamba(32, S4D(64, d_state=8), d_inner=64), torch.float32),
        (lambda: Mamba(32, S6(64), d_inner=64, fused=False), torch.float32),
        (lambda: Mamba2(32, d_state=16, head_dim=16, fused=False), torch.float32),
    ],
)
def test_what_the_kernels_do_not_run_is_not_predicted_as_theirs(make, dtype):
    with FakeTensorMode(), predicting("cuda"), observing() as report, default_dtype(dtype):
        make()(torch.empty(1, 64, 32))
    assert not report.backends.keys() & {"mamba_block", "mamba2_block"}


def test_nothing_is_fused_in_a_cpus_prediction():
    with FakeTensorMode(), predicting("cpu"), observing() as report:
        MIXERS["mamba"]()(torch.empty(1, 64, 32))
    assert "mamba_block" not in report.backends


# --- against the allocator of a GPU -------------------------------------------------------------------------------


def steps(model: SequenceModel, ids_BL: Tensor, dtype: torch.dtype, *, train: bool) -> Callable[[], object]:
    """What a ``speed`` trial at level ``model`` calls."""
    if not train:
        return torch.no_grad()(functools.partial(model, ids_BL))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(ids_BL.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits_BLV = model(ids_BL)
        F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def build_step(
    mixer: str, size: Size, batch: int, seq_len: int, dtype: torch.dtype, *, train: bool, device: str
) -> Callable[[], object]:
    with default_dtype(torch.float32 if train else dtype):
        model = build(*FAMILIES[mixer], size, vocab_size=16)
    if device == "cuda":
        model.init_weights(torch.Generator().manual_seed(0))
        model.to(device)
    ids_BL = torch.zeros(batch, seq_len, dtype=torch.int64, device=device)
    return steps(model, ids_BL, dtype, train=train)


def predicted_peak(*trial: object, **options: object) -> int:
    with predicting("cuda"):
        return predict(lambda: build_step(*trial, device="cpu", **options)).peak_bytes  # type: ignore[arg-type]


def recorded() -> list[dict]:
    """Trials of the Mamba block that an H200 ran, up to lengths that are quickly predicted."""
    if not RECORDS.exists():
        return []
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    return [
        r
        for r in records
        if r["trial"]["kind"] == "speed" and r["trial"]["model"] == "mamba-tiny" and r["status"] == "ok"
        if r["trial"]["protocol"]["level"] == "model" and "mamba_block" in r.get("backend", {})
    ]


@pytest.mark.skipif(not recorded(), reason="no records of an H200")
def test_predicted_peaks_are_those_that_an_h200_measured():
    for record in recorded():
        trial, measured = record["trial"], record["metrics"]["peak_alloc_bytes"]
        options = {"train": trial["direction"] == "train"}
        where = ("mamba", TINY, trial["batch"], trial["seq_len"])
        peak = predicted_peak(*where, getattr(torch, trial["dtype"]), **options)
        # The allocator counts whole blocks: up to 1 MiB of a large one is not split off.
        assert peak == pytest.approx(measured, rel=0.02, abs=3 * 2**20 if measured > 64 * 2**20 else 0), trial


needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() or wirings.import_fused_block() is None or import_mamba2() is None,
    reason="needs CUDA, mamba-ssm and causal-conv1d",
)


@needs_kernels
@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("batch", "seq_len"), [(1, 1024), (1, 4096), (1, 16384), (4, 2048)])
@pytest.mark.parametrize("size", [TINY, Size(d_model=768, num_layers=1)], ids=["tiny", "130m, one block"])
@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_predicted_peak_is_the_gpus(mixer, size, batch, seq_len, dtype, train):
    device, trial = torch.device("cuda"), (mixer, size, batch, seq_len, dtype)

    def work() -> object:
        step = build_step(*trial, train=train, device="cuda")
        step()
        step()
        return step

    memory_of(work, device)  # Triton times its kernels on a first call (256 MiB), and cuBLAS takes its workspaces
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    measured = memory_of(work, device)["peak_alloc_bytes"]
    requested = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    predicted = predicted_peak(*trial, train=train)
    assert predicted == pytest.approx(requested, rel=0.02)
    # Blocks are counted whole: up to 1 MiB of a large one is not split off, and small tensors fill 512 bytes. On an
    # H200 that made 3.7 MiB of a train step's 136.
    assert predicted == pytest.approx(measured, rel=0.02, abs=4 * 2**20)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_norms_peak_is_the_gpus(dtype):
    def train(device: str) -> Callable[[], object]:
        x = torch.empty(1, 2**14, 256, device=device, dtype=dtype, requires_grad=True)
        weight = torch.ones(256, device=device, dtype=dtype, requires_grad=True)
        if device == "cpu":
            return lambda: fused_blocks.rms_norm(x, weight).sum().backward()
        return lambda: F.rms_norm(x, (256,), weight, RMS_NORM_EPS).sum().backward()

    def work() -> None:
        call = train("cuda")
        call()
        call()

    measured = memory_of(work, torch.device("cuda"))["peak_alloc_bytes"]
    with predicting("cuda"):
        predicted = predict(lambda: train("cpu")).peak_bytes
    assert predicted == pytest.approx(measured, rel=0.02, abs=2**20)
