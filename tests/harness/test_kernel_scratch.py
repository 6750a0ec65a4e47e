"""What kernels take beside their results: by device, by length, and against a GPU's allocator where there is one.

The last tests want CUDA: ``python -m pytest tests/harness/test_kernel_scratch.py``.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.kernel_scratch import column_sum_bytes, cufft_workspace_bytes
from harness.memory import memory_of
from harness.prediction import predict

MIB = 2**20


def peak(
    call: Callable[[Tensor], object], *shape: int, device: str = "cuda", dtype: torch.dtype = torch.float32
) -> int:
    def build() -> Callable[[], object]:
        x = torch.empty(*shape, dtype=dtype)
        return lambda: call(x)

    return predict(build, device=device).peak_bytes


def inverse(spectrum: Tensor) -> Tensor:
    return torch.fft.irfft(spectrum)


def test_the_inverse_transform_works_on_a_copy_on_cuda_alone():
    shape, spectrum = (256, 1025), 8 * 256 * 1025
    on_cpu, on_cuda = (peak(inverse, *shape, device=device, dtype=torch.complex64) for device in ("cpu", "cuda"))
    assert on_cpu == spectrum + 4 * 256 * 2048
    assert on_cuda == on_cpu + spectrum


@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("real", [False, True])
def test_a_workspace_is_the_transforms_data_once_more_or_nothing(batch, real):
    lengths = [2**n for n in range(8, 22)]
    taken = [cufft_workspace_bytes(length, batch, 8, real=real) for length in lengths]
    data = [8 * batch * length // (2 if real else 1) for length in lengths]
    begins = next(i for i, workspace in enumerate(taken) if workspace)
    assert taken[begins:] == data[begins:] and not any(taken[:begins])
    # Few transforms do not fill the device one by one, and are split sooner.
    assert lengths[begins] == (2**15 if batch < 132 else 2**17 if real else 2**16)


def test_a_long_transform_holds_its_workspace_beside_input_and_result():
    for transform, held in ((torch.fft.rfft, 4 + 4), (torch.fft.fft, 8 + 8)):
        dtype = torch.float32 if transform is torch.fft.rfft else torch.complex64
        n, batch = 2**17, 256
        expected = batch * n * held + cufft_workspace_bytes(n, batch, 8, real=transform is torch.fft.rfft)
        assert peak(transform, batch, n, dtype=dtype) == pytest.approx(expected, rel=1e-4)


def test_partial_sums_are_those_of_a_measured_sum():
    # 128 MiB of partial sums stood beside three segments of 2^24 states in a chunked scan's backward on an H200.
    assert column_sum_bytes(1024, 16384, 4) == 128 * MIB
    x_bytes, sums_bytes = 4 * 1024 * 16384, 4 * 16384
    assert peak(lambda x: x.sum(0), 1024, 16384) == x_bytes + sums_bytes + 128 * MIB
    assert peak(lambda x: x.sum(0), 1024, 16384, device="cpu") == x_bytes + sums_bytes


def test_sums_with_enough_results_or_along_adjacent_elements_need_no_partial_ones():
    assert column_sum_bytes(1024, 2**22, 4) == 0  # a block for each of the columns fills the device
    assert column_sum_bytes(64, 16384, 4) == 0  # too few rows to split
    assert peak(lambda x: x.sum(1), 1024, 16384) == 4 * 1024 * 16384 + 4 * 1024


def test_materialised_attention_holds_a_byte_a_score_while_it_looks_for_hidden_rows():
    rows, keys = 256, 2048
    hidden = peak(lambda x: torch._safe_softmax(x, -1), rows, keys) - 2 * 4 * rows * keys
    assert hidden == rows * keys + rows


# --- against the allocator of a GPU -------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CALLS: dict[str, tuple[Callable[[Tensor], object], tuple[int, ...], torch.dtype]] = {
    "rfft": (torch.fft.rfft, (1024, 2**15), torch.float32),
    "rfft, long": (torch.fft.rfft, (256, 2**18), torch.float32),
    "rfft, few": (torch.fft.rfft, (64, 2**16), torch.float32),
    "irfft": (inverse, (1024, 2**14 + 1), torch.complex64),
    "irfft, long": (inverse, (256, 2**17 + 1), torch.complex64),
    "fft": (torch.fft.fft, (1024, 2**14), torch.complex64),
    "fft, long": (torch.fft.fft, (256, 2**17), torch.complex64),
    "sum": (lambda x: x.sum(0), (2**16, 768), torch.bfloat16),
    "sum, wide": (lambda x: x.sum(0), (1024, 16384), torch.float32),
    "sum, adjacent": (lambda x: x.sum(1), (16384, 1024), torch.float32),
    "softmax": (lambda x: torch._safe_softmax(x, -1), (2**14, 2048), torch.float32),
}


@needs_cuda
@pytest.mark.parametrize("name", CALLS)
def test_the_predicted_peak_is_a_gpus(name):
    call, shape, dtype = CALLS[name]

    def work() -> None:
        x = torch.zeros(*shape, dtype=dtype, device="cuda")
        call(x)
        call(x)

    work()  # plans of transforms are made once
    measured = memory_of(work, torch.device("cuda"))["peak_alloc_bytes"]
    # Blocks are counted whole: up to 1 MiB of a large one is not split off.
    assert peak(call, *shape, dtype=dtype) == pytest.approx(measured, rel=0.02, abs=2 * MIB)
