"""What kernels take for the time of a call, in bytes: memory that no operator returns and no tracker sees.

Only what PyTorch takes from its own allocator counts, as the measured peak does. Read off PyTorch's sources (2.11 to
2.13) and held by what an H200 allocated (results/h200).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

NUM_SMS, THREADS_A_SM = 132, 2048
"""Multiprocessors of an H100 or H200. Asking the device would start CUDA in the planning process."""
CUFFT_WHOLE_POINTS, CUFFT_SPLIT_LEN = 2**15, 2**15
"""In single precision cuFFT splits a transform of more complex points than the first (a multiprocessor's registers hold
no more) into kernels that hand over by way of a workspace; and, of fewer transforms than multiprocessors, those of the
second's length on. Measured: 1,024 real transforms of length 2^16 without and of 2^17 with one, 64 of 2^14 without and
of 2^15 with one; complex ones of 2^15 without at 1,024 and with one at 64, where 2^14 had none."""


def cufft_workspace_bytes(length: int, batch: int, element_bytes: int, *, real: bool = False) -> int:
    """cuFFT's work area: the transform's data once more, where a transform is split. A real one has half the points.

    PyTorch hands it over from its caching allocator. Lengths with large prime factors would take more; ours have none.
    """
    points = length // 2 if real else length
    split = points > CUFFT_WHOLE_POINTS or (length >= CUFFT_SPLIT_LEN and batch < NUM_SMS)
    return points * batch * element_bytes if split else 0


def _real_to_complex(args: tuple[Any, ...], result: Tensor) -> int:
    real, length = args[0], args[0].shape[args[1][-1]]
    return cufft_workspace_bytes(length, real.numel() // length, result.element_size(), real=True)


def _complex_to_real(args: tuple[Any, ...], result: Tensor) -> int:
    """Such a transform may overwrite its input, so that PyTorch always gives it a copy."""
    spectrum, length = args[0], result.shape[args[1][-1]]
    batch = result.numel() // length
    return spectrum.nbytes + cufft_workspace_bytes(length, batch, spectrum.element_size(), real=True)


def _complex_to_complex(args: tuple[Any, ...], result: Tensor) -> int:
    length = result.shape[args[1][-1]]
    return cufft_workspace_bytes(length, result.numel() // length, result.element_size())


def _safe_softmax(args: tuple[Any, ...], _result: Tensor) -> int:
    """Which scores are minus infinity, and which rows have no other: a byte each."""
    return args[0].numel() + args[0].numel() // args[0].shape[args[1]]


def _softmax_backward(_args: tuple[Any, ...], result: Tensor) -> int:
    """The product of gradient and output, which the kernel is given beside both."""
    return result.nbytes


_SUM_THREADS, _SUM_VECTOR, _WARP = 512, 4, 32
_LEAST_VALUES, _MOST_VALUES = 16, 256


def column_sum_bytes(rows: int, columns: int, element_bytes: int) -> int:
    """Partial sums of all threads where few columns and many rows have to fill the device.

    As ``setReduceConfig`` and ``global_memory_size`` of PyTorch's ``Reduce.cuh`` find them, for sums down the columns:
    32 lanes take four columns each, and rows are split over a block's warps first, over blocks next.
    """
    vector = _SUM_VECTOR if columns % _SUM_VECTOR == 0 else 1
    lanes = min(_power_of_two_below(columns // vector), _WARP)
    warps = min(_power_of_two_below(rows), _SUM_THREADS // vector // lanes)
    values = math.ceil(rows / warps)  # of a thread
    blocks = math.ceil(columns / vector / lanes)
    wanted = NUM_SMS * THREADS_A_SM // (lanes * warps)
    if rows < min(warps * _LEAST_VALUES, _MOST_VALUES) or values < _MOST_VALUES or blocks > wanted:
        return 0
    splits = max(min(math.ceil(wanted / blocks), math.ceil(values / _LEAST_VALUES)), math.ceil(values / _MOST_VALUES))
    return element_bytes * columns * splits * lanes * vector if splits > 1 else 0


def _power_of_two_below(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)


def _sum(args: tuple[Any, ...], result: Tensor) -> int:
    """Of sums that leave the dimension whose elements are adjacent; others have few results to keep."""
    summed, dims = args[0], args[1] or range(args[0].ndim)
    reduced = {dim % summed.ndim for dim in dims}
    columns = result.numel()
    if not columns or any(summed.stride(dim) == 1 and summed.shape[dim] > 1 for dim in reduced):
        return 0
    wide = 4 if summed.dtype in (torch.bfloat16, torch.float16) else summed.element_size()  # summed in float32
    return column_sum_bytes(summed.numel() // columns, columns, wide)


_Scratch = Callable[[tuple[Any, ...], Tensor], int]
_EVERYWHERE: dict[Any, _Scratch] = {_aten._safe_softmax.default: _safe_softmax}
SCRATCH: Mapping[str, Mapping[Any, _Scratch]] = {
    "cpu": _EVERYWHERE,
    "cuda": _EVERYWHERE
    | {
        _aten._fft_r2c.default: _real_to_complex,
        _aten._fft_c2r.default: _complex_to_real,
        _aten._fft_c2c.default: _complex_to_complex,
        _aten.sum.dim_IntList: _sum,
        _aten._softmax_backward_data.default: _softmax_backward,
    },
}
"""Device type to operator to bytes, from its arguments and its result; transforms along one dimension."""
