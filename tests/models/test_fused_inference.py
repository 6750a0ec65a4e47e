"""Stand-ins for the packages' kernels of generation: what they give and count, and their peaks against a GPU's.

The last tests want CUDA, mamba-ssm and causal-conv1d: ``python -m pytest tests/models/test_fused_inference.py``.
"""

import functools
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.memory import memory_of
from harness.prediction import predict
from models import mamba2
from models.mamba2 import Mamba2
from models.ops.context import OpReport, observing, predicting
from models.ops.inference_kernels import InferenceKernels, inference_kernels
from models.s6 import S6
from models.wirings import Mamba
from tests.models.test_fused_blocks import default_dtype
from tests.models.test_inference_kernels import (
    BATCH,
    BLOCKS,
    D_MODEL,
    MIXERS,
    PROMPT,
    STAND_INS,
    STEPS,
    every_mixer,
    needs_kernels,
    outputs,
    use,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def noting(kernels: InferenceKernels, noted: list[tuple]) -> InferenceKernels:
    """The same kernels; name, shapes and dtypes of what each call gives are noted."""

    def wrap(name: str, kernel: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            given = kernel(*args, **kwargs)
            tensors = given if isinstance(given, tuple) else (given,)
            noted.append((name, *((tuple(t.shape), t.dtype) for t in tensors)))
            return given

        return call

    return InferenceKernels(**{f.name: wrap(f.name, getattr(kernels, f.name)) for f in fields(kernels)})


@every_mixer
def test_they_give_the_shapes_and_dtypes_that_the_kernels_give(name, monkeypatch):
    wanted: list[tuple] = []
    use(monkeypatch, noting(STAND_INS, wanted))
    outputs(MIXERS[name](), torch.zeros(BATCH, PROMPT + STEPS, D_MODEL), PROMPT)
    given: list[tuple] = []
    with FakeTensorMode(), predicting("cuda"):
        x = torch.zeros(BATCH, PROMPT + STEPS, D_MODEL)
        use(monkeypatch, noting(inference_kernels(x), given))
        outputs(MIXERS[name](), x, PROMPT)
    assert given == wanted and len({call[0] for call in given}) == 4  # one of scan and dual


def planned(
    name: str, *, batch: int, seq_len: int, device: str = "cuda", dtype: torch.dtype = torch.float32
) -> tuple[int, float, OpReport]:
    """Of a prompt and a step: peak bytes, FLOPs of PyTorch's count and the closed forms together, and what ran."""
    reports: list[OpReport] = []

    def build() -> Callable[[], object]:
        with default_dtype(dtype):  # fake parameters cannot be cast
            mixer, x = MIXERS[name](), torch.zeros(batch, seq_len, D_MODEL)
        state = mixer.init_state(batch, seq_len + 1, device=x.device, dtype=dtype)

        @torch.no_grad()
        def call() -> None:
            with observing() as report:
                mixer.prefill(x, state)
                mixer.step(x[:, 0], state)
            reports.append(report)

        return call

    with predicting(device):
        prediction = predict(build, device=device)
    return prediction.peak_bytes, prediction.flops + reports[-1].forward_flops, reports[-1]


@every_mixer
def test_flops_are_those_of_products_mixing_and_convolution(name):
    B, L = 3, 16  # within one chunk of either form
    mixer = MIXERS[name]()
    weights = sum(m.weight.numel() for m in mixer.modules() if isinstance(m, nn.Linear))
    by_hand = B * (2.0 * (L + 1) * weights + mixer.op_flops(L) + mixer.op_flops(1))
    assert planned(name, batch=B, seq_len=L)[1] == pytest.approx(by_hand)


@every_mixer
def test_bytes_are_linear_in_the_batch(name):
    two, three, four = (planned(name, batch=batch, seq_len=2048)[0] for batch in (2, 3, 4))
    assert four - three == three - two > 0


def test_parts_of_a_batch_hold_less_and_count_the_same(monkeypatch):
    sizes = {"batch": 8, "seq_len": 256}
    whole_peak, whole_flops, _ = planned("mamba2", **sizes)
    elements = 8 * 256 * MIXERS["mamba2"]().in_proj.out_features
    monkeypatch.setattr(mamba2, "MAX_OFFSET", elements // 4)
    peak, flops, report = planned("mamba2", **sizes)
    assert report.backends.keys() == {"mamba2_block"}
    assert peak < 0.5 * whole_peak and flops == whole_flops


@every_mixer
@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": torch.float64}])
def test_what_the_kernels_do_not_run_is_not_predicted_as_theirs(name, options):
    assert BLOCKS[name] in planned(name, batch=2, seq_len=16)[2].backends
    assert BLOCKS[name] not in planned(name, batch=2, seq_len=16, **options)[2].backends


LARGE = {
    "mamba": lambda: Mamba(768, S6(1536, d_state=16, dt_rank=48), d_inner=1536),
    "mamba2": lambda: Mamba2(768),
    "mamba2, rows not aligned": lambda: Mamba2(768, expand=1),  # 12 heads
}


@needs_kernels
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize(("batch", "seq_len"), [(1, 4096), (8, 1000)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_predicted_peak_of_a_prompt_is_the_gpus(name, batch, seq_len, dtype):
    def build(device: str) -> Callable[[], Tensor]:
        with default_dtype(dtype), torch.device(device):
            mixer, x = LARGE[name](), torch.zeros(batch, seq_len, 768)
        state = mixer.init_state(batch, seq_len, device=x.device, dtype=dtype)
        return torch.no_grad()(functools.partial(mixer.prefill, x, state))

    def work() -> object:
        read = build("cuda")
        read()
        read()
        return read

    device = torch.device("cuda")
    memory_of(work, device)  # Triton times its kernels on a first call, and cuBLAS takes its workspaces
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    memory_of(work, device)
    requested = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with predicting("cuda"):
        predicted = predict(lambda: build("cpu"), device="cuda").peak_bytes
    assert predicted == pytest.approx(requested, rel=0.02)
