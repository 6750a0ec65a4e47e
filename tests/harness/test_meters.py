"""The meters measure what is known beforehand."""

import time

import pytest
import torch

from harness.clocks import MAX_SAMPLES, time_calls
from harness.memory import host_peak, memory_of
from harness.prediction import StorageTracker, predict

CPU = torch.device("cpu")
MIB = 2**20


def test_host_peak_sees_a_burst_that_is_gone_when_it_reads():
    with host_peak() as peak:
        torch.ones(64 * MIB // 4)
    grown = peak.peak_rss_bytes - peak.baseline_rss_bytes
    assert grown == pytest.approx(64 * MIB, rel=0.1)


def test_host_peak_does_not_inherit_an_earlier_peak():
    torch.ones(256 * MIB // 4)
    with host_peak() as peak:
        torch.ones(16 * MIB // 4)
    assert peak.peak_rss_bytes - peak.baseline_rss_bytes < 64 * MIB


def test_a_kernel_that_resets_no_peak_gives_no_figure(monkeypatch):
    monkeypatch.setattr("harness.memory._reset_peak", lambda: False)
    with host_peak() as peak:
        torch.ones(16 * MIB // 4)
    assert peak.as_dict() == {}


def test_allocator_peak_is_exact():
    def work() -> torch.Tensor:
        a = torch.ones(MIB)  # 4 MiB
        b = a + a  # 8 MiB held
        del a
        return b + b  # 8 MiB held again

    assert memory_of(work, CPU)["peak_alloc_bytes"] == 8 * MIB


def test_prediction_equals_the_allocator_and_counts_flops():
    def build():
        weight = torch.ones(256, 512, requires_grad=True)
        x = torch.ones(64, 512)

        def call() -> None:
            weight.grad = None
            (x @ weight.T).square().sum().backward()

        return call

    prediction = predict(build)

    def work() -> object:
        call = build()
        call()
        call()
        return call

    assert prediction.peak_bytes == memory_of(work, CPU)["peak_alloc_bytes"]
    assert prediction.flops == 2 * (2 * 64 * 256 * 512)  # the product, and its gradient for the weight


def test_storage_tracker_counts_views_once_and_releases():
    with StorageTracker() as tracker:
        a = torch.zeros(MIB)
        b = a.view(2, -1)[0]
        assert tracker.held_bytes == 4 * MIB
        del a
        assert tracker.held_bytes == 4 * MIB  # the view keeps the storage
        del b
    assert tracker.held_bytes == 0
    assert tracker.peak_bytes == 4 * MIB


def test_samples_stay_within_the_budget_and_are_flagged_when_few():
    slow = time_calls(lambda: time.sleep(0.05), CPU, budget_s=0.12)
    assert 1 <= len(slow.samples_ms) < 5
    assert slow.few_samples
    fast = time_calls(lambda: None, CPU, budget_s=0.5)
    assert len(fast.samples_ms) == MAX_SAMPLES
    assert fast.calls_per_sample > 100
    assert not fast.few_samples


def test_one_sample_is_taken_however_small_the_budget():
    timing = time_calls(lambda: time.sleep(0.01), CPU, budget_s=0.0)
    assert len(timing.samples_ms) == 1
