"""The short convolution: what runs where, what a plan expects of causal-conv1d's kernel, and that kernel on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.memory import memory_of
from harness.prediction import predict
from models.ops import causal_conv1d as module
from models.ops.causal_conv1d import causal_conv1d, shifted_multiply_adds
from models.ops.context import observing, predicting, relative_error

WIDTH = 4


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def inputs(seq_len: int, channels: int, *, batch: int = 2, beside: int = 0, **options: object) -> list[Tensor]:
    """A sequence, which may be the first channels of a wider tensor, with weight and bias; all want gradients."""
    wide = torch.randn(batch, seq_len, channels + beside, **options)  # type: ignore[call-overload]
    device = options.get("device", "cpu")
    weight, bias = torch.randn(channels, 1, WIDTH, device=device), torch.randn(channels, device=device)  # type: ignore[call-overload]
    return [wide[..., :channels].detach().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]


def with_gradients(conv: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = conv(*leaves)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    return [y.detach(), *(t.grad for t in leaves)]  # type: ignore[list-item]


def planned_kernel(device: str, **options: object) -> str:
    tensors = inputs(64, **{"channels": 32, "device": "meta", **options})  # type: ignore[arg-type]
    with predicting(device), observing() as report:
        causal_conv1d(*tensors)
    return report.backends["causal_conv1d"]


def test_the_kernel_is_expected_on_cuda_alone():
    assert planned_kernel("cuda") == "causal-conv1d"
    assert planned_kernel("cpu") == "torch"


@pytest.mark.parametrize(
    "options", [{"channels": 36}, {"beside": 4}, {"dtype": torch.float64}], ids=["channels", "stride", "float64"]
)
def test_what_the_kernel_cannot_read_is_left_to_pytorch(options):
    assert planned_kernel("cuda", **options) == "torch"


def test_a_position_sees_itself_and_the_three_before():
    x, weight, bias = inputs(16, 8)
    changed = x.detach().clone()
    changed[:, 7] += 1.0
    moved = (causal_conv1d(changed, weight, bias) - causal_conv1d(x, weight, bias)).abs().amax(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [7, 8, 9, 10]


def train_or_call(tensors: list[Tensor], *, train: bool) -> Tensor:
    x, *weights = tensors
    y = causal_conv1d(x.detach(), *weights)  # no leaf: in a model none keeps the input's gradient
    if train:
        y.backward(torch.ones_like(y))
    return y


def predicted_peak(seq_len: int, device: str, *, train: bool) -> int:
    def build() -> Callable[[], object]:
        tensors = inputs(seq_len, 64)
        return lambda: train_or_call(tensors, train=train)

    with predicting(device), torch.set_grad_enabled(train):
        return predict(build).peak_bytes


def test_the_kernel_holds_its_output_and_a_gradient_like_it():
    x_bytes = 2 * 4096 * 64 * 4
    small = 4096  # weight, bias, their gradients, the sum
    assert predicted_peak(4096, "cuda", train=False) == pytest.approx(2 * x_bytes, abs=small)
    # Input, output, and their gradients.
    assert predicted_peak(4096, "cuda", train=True) == pytest.approx(4 * x_bytes, abs=small)
    assert predicted_peak(4096, "cuda", train=True) < predicted_peak(4096, "cpu", train=True)


def test_the_check_compares_the_last_positions(monkeypatch):
    def wrong_at_the_end(x_BEL: Tensor, weight_EW: Tensor, bias_E: Tensor) -> Tensor:
        y_BLE = shifted_multiply_adds(x_BEL.transpose(1, 2), weight_EW[:, None], bias_E)
        y_BLE[:, -1] += 1.0
        return y_BLE.transpose(1, 2)

    monkeypatch.setattr(module, "_kernel_for", lambda *_: wrong_at_the_end)
    with torch.no_grad(), observing(verify=True) as report:
        causal_conv1d(*inputs(64, 8))
    assert report.errors["causal_conv1d"] > 1e-2


needs_kernel = pytest.mark.skipif(
    not torch.cuda.is_available() or module._package() is None, reason="needs CUDA and causal-conv1d"
)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "seq_len", "channels", "beside"), [(2, 1000, 64, 0), (1, 4096, 128, 256), (3, 257, 24, 48)]
)
def test_the_kernel_agrees_with_pytorch(batch, seq_len, channels, beside, dtype):
    tensors = inputs(seq_len, channels, batch=batch, beside=beside, dtype=dtype, device="cuda")
    pairs = zip(with_gradients(causal_conv1d, tensors), with_gradients(shifted_multiply_adds, tensors), strict=True)
    assert max(relative_error(*pair) for pair in pairs) < (1e-5 if dtype == torch.float32 else 2e-2)


@needs_kernel
def test_the_kernel_agrees_at_a_million_positions():
    with torch.no_grad(), observing(verify=True) as report:
        causal_conv1d(*inputs(2**20, 64, batch=1, device="cuda"))
    assert report.backends["causal_conv1d"] == "causal-conv1d"
    assert report.errors["causal_conv1d"] < 1e-6


@needs_kernel
@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
def test_the_predicted_peak_is_the_gpus(train):
    def work() -> object:
        tensors = inputs(2**16, 64, device="cuda")
        with torch.set_grad_enabled(train):
            train_or_call(tensors, train=train)
        return tensors

    memory_of(work, torch.device("cuda"))
    measured = memory_of(work, torch.device("cuda"))["peak_alloc_bytes"]
    assert predicted_peak(2**16, "cuda", train=train) == pytest.approx(measured, rel=0.02, abs=2**20)
