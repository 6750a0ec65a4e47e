"""Scan, dual, FFT convolution and attention, forward and backward; each output is checked before it is timed."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.pieces import measure, micro_trial, operator_call
from harness import Direction

SIZES = {"width": 128, "d_state": 16, "head_dim": 64}


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("seq_len", [1024, 4096])
@pytest.mark.parametrize("operator", ["selective_scan", "selective_scan_torch", "ssd", "fft_conv", "attention"])
def test_operator(benchmark: BenchmarkFixture, operator: str, seq_len: int, direction: Direction) -> None:
    trial = micro_trial(operator, seq_len=seq_len, direction=direction, protocol=SIZES)
    call, backend = operator_call(trial)
    measure(benchmark, trial, call, backend)
