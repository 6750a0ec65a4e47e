"""The stand-in for attention kernels: what each holds, layouts of gradients, and a GPU's allocator where there is one.

The last test wants CUDA: ``python -m pytest tests/models/test_fused_attention.py``.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.memory import memory_of
from harness.prediction import predict
from models.ops.attention import causal_attention, force_kernel
from models.ops.context import observing, predicting
from models.ops.fused_attention import expected_kernel, fake_attention, flash_splits

KERNELS = ("flash", "cudnn", "efficient")
B, H, L, K = 2, 4, 1024, 64
T = 2 * B * H * L * K  # bytes of a bfloat16 query
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_direction = pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])


def build(kernel: str, *, train: bool, beside: bool = False, device: str = "cpu") -> Callable[[], object]:
    """Calls attention, and its gradient; ``beside``: heads lie beside each other, as projections give them."""

    def draw() -> Tensor:
        if beside:
            return torch.zeros(B, L, H, K, dtype=torch.bfloat16, device=device).transpose(1, 2)
        return torch.zeros(B, H, L, K, dtype=torch.bfloat16, device=device)

    inputs = [draw().requires_grad_(train) for _ in range(3)]
    with force_kernel(kernel), torch.no_grad():
        gradient = torch.ones_like(causal_attention(*inputs)) if train else None

    def call() -> None:
        for tensor in inputs:
            tensor.grad = None
        with force_kernel(kernel):
            out = causal_attention(*inputs)
        if train:
            out.backward(gradient)

    return call


def predicted(kernel: str, *, train: bool, beside: bool = False) -> int:
    with predicting("cuda"):
        return predict(lambda: build(kernel, train=train, beside=beside), device="cuda").peak_bytes


@every_kernel
def test_a_forward_holds_inputs_output_and_flashs_sums(kernel):
    # 128 blocks of 64 queries leave half of an H200 idle: flash splits the keys in two.
    splits = 2 * (2 * T + 4 * B * H * L)
    assert predicted(kernel, train=False) == 4 * T + (4 * B * H * L + splits if kernel == "flash" else 0)


@pytest.mark.parametrize(
    ("batch", "heads", "length", "splits"),
    [(2, 4, 1024, 2), (1, 16, 2048, 1), (1, 1, 64, 1), (1, 1, 2**14, 1), (1, 2, 4096, 2)],
)
def test_flash_splits_keys_where_queries_leave_the_gpu_idle(batch, heads, length, splits):
    query = torch.empty(batch, heads, length, 64, device="meta")
    assert flash_splits(query, query) == splits


@every_kernel
@pytest.mark.parametrize("beside", [False, True])
def test_a_train_step_holds_a_float32_gradient_and_two_floats_a_query(kernel, beside):
    copies = 2 * T if kernel == "flash" and not beside else 0
    # Inputs, output and their gradients 8 T, the query's again in float32 2 T.
    assert predicted(kernel, train=True, beside=beside) == 10 * T + copies + 2 * 4 * B * H * L


@every_kernel
@pytest.mark.parametrize("beside", [False, True])
def test_gradients_have_the_shapes_and_dtypes_of_their_inputs(kernel, beside):
    with FakeTensorMode():
        inputs = [torch.empty(B, L, H, K).transpose(1, 2) if beside else torch.empty(B, H, L, K) for _ in range(3)]
        leaves = [t.bfloat16().requires_grad_() for t in inputs]
        out = fake_attention(*leaves, kernel)
        assert (out.shape, out.dtype) == (leaves[0].shape, torch.bfloat16)
        gradients = torch.autograd.grad(out.sum(), leaves)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in leaves]


def test_the_kernel_that_is_expected_takes_the_dtype():
    assert expected_kernel(torch.empty(1, 1, 8, 8, dtype=torch.float16)) == "cudnn"
    assert expected_kernel(torch.empty(1, 1, 8, 8)) == "efficient"


def test_a_forced_math_kernel_is_predicted_with_its_scores_on_both_devices():
    scores = 4 * B * H * L * L
    for device in ("cpu", "cuda"):
        with predicting(device):
            peak = predict(lambda: build("math", train=False), device=device).peak_bytes
        assert peak > 2 * scores > predicted("flash", train=False)
    with FakeTensorMode(), predicting("cuda"), force_kernel("math"), observing() as report:
        causal_attention(*(torch.empty(B, H, L, K) for _ in range(3)))
    assert report.backends["attention"] == "sdpa-math" and report.forward_flops == 0  # PyTorch's counter sees them


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_kernel
@every_direction
@pytest.mark.parametrize("beside", [False, True])
def test_the_predicted_peak_is_a_gpus(kernel, train, beside):
    def work() -> None:
        call = build(kernel, train=train, beside=beside, device="cuda")
        call()
        call()

    work()
    measured = memory_of(work, torch.device("cuda"))["peak_alloc_bytes"]
    assert predicted(kernel, train=train, beside=beside) == pytest.approx(measured, rel=0.05)
