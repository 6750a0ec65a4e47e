"""The meters measure what is known beforehand."""

import subprocess
import sys
import time
import types
from collections.abc import Iterator

import pytest
import torch

from harness.clocks import (
    MAX_SAMPLES,
    MIN_SAMPLES,
    Timing,
    _Run,
    calls_per_sample,
    issue_times_ms,
    replayed_calls,
    time_calls,
    time_replays,
)
from harness.environment import nvidia_smi
from harness.gpu_clocks import ClockReading, connect, gpu_clocks, parse_clocks
from harness.memory import _left_by_control_groups, host_available_bytes, host_peak, memory_of, touch_memory
from harness.outcomes import Unpredictable
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


FAULTS = """
import resource, sys, torch
from harness.memory import keep_freed_memory, touch_memory
keep_freed_memory()
touch_memory(int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held = [torch.ones(2**24) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_was_touched_meets_no_fresh_pages_afterwards():
    def faults(touched: int) -> int:  # the allocator's settings are the process's own
        return int(subprocess.run([sys.executable, "-c", FAULTS, str(touched)], capture_output=True, check=True).stdout)

    untouched = faults(0)
    assert untouched >= 128  # 256 MiB in pages of 2 MiB
    assert faults(320 * MIB) < untouched / 2


def test_what_is_available_is_positive_and_less_than_the_machine_has():
    assert 0 < host_available_bytes() < 2**50


def test_touching_more_than_there_is_touches_what_there_is_or_nothing(monkeypatch):
    monkeypatch.setattr("harness.memory.host_available_bytes", lambda: 2 * MIB)
    with host_peak() as peak:
        touch_memory(2**60)
    assert peak.peak_rss_bytes - peak.baseline_rss_bytes < 8 * MIB
    monkeypatch.setattr("harness.memory.host_available_bytes", lambda: 2**62)
    touch_memory(2**60)  # refused, and no error


def control_group(folder, limit, used, inactive, *, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{content}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {inactive}\n")


def test_a_containers_limit_counts_as_what_is_left_of_the_machine(tmp_path):
    membership = tmp_path / "membership"
    assert _left_by_control_groups(tmp_path, membership) == 2**62  # a kernel without control groups
    membership.write_text("0::/user.slice/job\n")
    assert _left_by_control_groups(tmp_path / "none", membership) == 2**62
    root = tmp_path / "v2"
    control_group(root / "user.slice/job", "max", 10, 0)
    assert _left_by_control_groups(root, membership) == 2**62
    control_group(root / "user.slice", 1000, 400, 50)
    control_group(root, 5000, 400, 0)
    assert _left_by_control_groups(root, membership) == 650
    control_group(root / "user.slice/job", 300, 310, 0)
    assert _left_by_control_groups(root, membership) == 0
    membership.write_text("5:cpu:/a\n4:memory:/box\n0::/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    control_group(tmp_path / "v1/memory", 900, 100, 25, names=names)  # /box lies outside the container
    assert _left_by_control_groups(tmp_path / "v1", membership) == 825


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


def test_code_that_looks_at_values_cannot_be_predicted():
    with pytest.raises(Unpredictable, match="unknown before the run"):
        predict(lambda: lambda: torch.ones(3).sum().item())
    with pytest.raises(ZeroDivisionError):
        predict(lambda: lambda: 1 / 0)


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
    assert slow.warm_up_calls == 1
    fast = time_calls(lambda: None, CPU, budget_s=0.5)
    assert len(fast.samples_ms) == MAX_SAMPLES
    assert fast.calls_per_sample > 100
    assert not fast.few_samples


@pytest.mark.parametrize(("call_ms", "warmed_up", "calls", "warm_up_calls"), [
    (30, True, 1, 0),  # outlasts the budget, and was warmed up before: the call itself is the sample
    (30, False, 2, 1),
    (1, True, None, 3),  # a short one is warmed up again
])  # fmt: skip
def test_a_call_that_outlasts_the_budget_is_its_own_sample_if_it_ran_before(
    monkeypatch, call_ms, warmed_up, calls, warm_up_calls
):
    made = []

    def run(_call, calls: int) -> _Run:  # as if it had taken so long: the machine's load is no part of this
        made.append(calls)
        return _Run(float(call_ms * calls), None)

    monkeypatch.setattr("harness.clocks._cpu_run", run)
    timing = time_calls(lambda: None, CPU, budget_s=0.02, warmed_up=warmed_up)
    assert timing.warm_up_calls == warm_up_calls
    assert set(timing.samples_ms) == {call_ms}
    assert calls is None or sum(made) == calls
    assert timing.host_ms is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU is its own host")
def test_a_sample_of_one_call_tells_the_hosts_time():
    a = torch.randn(4096, 4096, device="cuda")

    def call() -> None:
        for _ in range(20):
            a @ a

    timing = time_calls(call, torch.device("cuda"), budget_s=0.0, warmed_up=True)
    assert timing.warm_up_calls == 0 and timing.calls_per_sample == 1
    assert timing.host_ms is not None and len(timing.host_ms) == len(timing.samples_ms) == 1
    assert 0 < timing.host_ms[0] < timing.samples_ms[0]


def test_one_sample_is_taken_however_small_the_budget():
    timing = time_calls(lambda: time.sleep(0.01), CPU, budget_s=0.0)
    assert len(timing.samples_ms) == 1


def test_the_hosts_time_ends_before_the_device_does():
    """A device that works behind the host: issuing is quick, waiting is not part of it."""
    pending = []

    def synchronize() -> None:
        time.sleep(0.01 * len(pending))
        pending.clear()

    samples = issue_times_ms(lambda: pending.append(1), synchronize, budget_s=10)
    assert len(samples) == MIN_SAMPLES
    assert max(samples) < 5  # ms, where the device takes 10
    assert not pending  # it is left idle
    assert len(issue_times_ms(lambda: pending.append(1), synchronize, budget_s=0)) == 1


def test_launch_bound_is_where_the_host_takes_as_long_as_the_device():
    def timing(device_ms: float, host_ms: list[float] | None) -> Timing:
        return Timing(
            samples_ms=[device_ms] * 5, calls_per_sample=1, warm_up_calls=1, clock="cuda_events", host_ms=host_ms
        )

    assert timing(1.0, [0.95] * 5).launch_bound is True
    assert timing(1.0, [0.5, 0.5, 0.5, 9.0, 9.0]).launch_bound is False
    assert timing(1.0, None).launch_bound is None
    assert time_calls(lambda: None, CPU, budget_s=0.01).launch_bound is None
    assert timing(1.0, [0.5] * 5).near_launch_bound is True
    assert timing(1.0, [0.4] * 5).near_launch_bound is False
    assert timing(1.0, None).near_launch_bound is False


def test_a_graph_holds_so_many_calls_that_its_own_launch_cannot_show():
    assert [replayed_calls(ms) for ms in (0.0, 0.005, 0.02, 1.0, 3.9, 900.0)] == [128, 128, 100, 2, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replays_take_the_devices_time_and_not_the_hosts():
    device = torch.device("cuda")
    x = torch.ones(2**20, device=device)

    def call() -> None:
        time.sleep(0.002)  # the host's
        x.mul_(1.0)

    call()
    replays = time_replays(call, device, per_call_ms=2.0, budget_s=0.1)
    assert replays.calls == 1 and len(replays.samples_ms) >= MIN_SAMPLES
    assert 0 < max(replays.samples_ms) < 1
    with pytest.raises(RuntimeError):
        time_replays(lambda: x.sum().item(), device, per_call_ms=2.0, budget_s=0.1)


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    connect.cache_clear()
    yield
    connect.cache_clear()


def test_clock_reasons_are_words():
    reading = parse_clocks("1980 MHz, 3201 MHz, 41, 612.30 W, 0x0000000000000024\n")
    assert reading["clocks.sm"] == "1980 MHz"
    assert reading["throttle_reasons"] == ["software power cap", "software thermal slowdown"]
    assert parse_clocks("1980 MHz, 3201 MHz, 41, 612.30 W, 0x0\n")["throttle_reasons"] == []
    assert parse_clocks("1 MHz, 2 MHz, 3, 4 W, 0x8000\n")["throttle_reasons"] == ["0x8000"]
    assert "throttle_reasons" not in parse_clocks("1 MHz, 2 MHz, 3, 4 W, [N/A]\n")
    assert parse_clocks("") == {}


@pytest.mark.parametrize("known", ["clocks_event_reasons.active", "clocks_throttle_reasons.active", "neither"])
def test_drivers_of_either_name_and_of_none_are_understood(no_nvml, tmp_path, monkeypatch, known):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        f'case "$1" in *{known}*) echo "1 MHz, 2 MHz, 3, 4 W, 0x4";; *reasons*) exit 2;; '
        '*) echo "1 MHz, 2 MHz, 3, 4 W";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    reading = ClockReading().read()
    assert reading["clocks.mem"] == "2 MHz"
    assert reading.get("throttle_reasons") == (None if known == "neither" else ["software power cap"])


class _Nvml(types.ModuleType):
    """What the bindings of NVML give, of two GPUs; a driver without reasons lacks the function for them."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *, is_broken: bool = False) -> None:
        super().__init__("pynvml")
        self.is_broken = is_broken

    def nvmlInit(self):
        if self.is_broken:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return {0: 41, 1: 42, "GPU-b": 43}[handle]

    def nvmlDeviceGetPowerUsage(self, handle):
        return 612_300

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x24


@pytest.mark.parametrize(("visible", "temperature"), [("", "41"), ("1,0", "42"), ("GPU-b", "43"), ("MIG-a", "41")])
def test_nvml_is_read_like_nvidia_smi(no_nvml, tmp_path, monkeypatch, visible, temperature):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml())
    assert ClockReading().read() == {
        "clocks.sm": "1980 MHz",
        "clocks.mem": "3201 MHz",
        "temperature.gpu": temperature,
        "power.draw": "612.30 W",
        "throttle_reasons": ["software power cap", "software thermal slowdown"],
    }


def test_a_reading_that_fails_later_is_empty_and_ends_nothing(no_nvml, monkeypatch):
    nvml = _Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert ClockReading().read()

    def lost(handle):
        raise _Nvml.NVMLError("GPU is lost")

    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", lost)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert ClockReading().read() == {}


@pytest.mark.parametrize("fault", ["no driver", "no such function", "no such GPU"])
def test_where_nvml_does_not_work_nvidia_smi_is_asked(no_nvml, tmp_path, monkeypatch, fault):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "1 MHz, 2 MHz, 3, 4 W, 0x4"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    nvml = _Nvml(is_broken=fault == "no driver")
    if fault == "no such function":
        monkeypatch.delattr(_Nvml, "nvmlDeviceGetPowerUsage")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "nonsense" if fault == "no such GPU" else "")
    assert ClockReading().read()["clocks.sm"] == "1 MHz"


def test_without_nvidia_smi_there_is_no_reading(no_nvml, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_clocks() == {}


@pytest.mark.parametrize(
    ("visible", "asked"), [(None, []), ("", []), ("1", ["-i", "1"]), ("1,0", ["-i", "1"]), ("MIG-a", [])]
)
def test_the_first_visible_gpu_is_asked(visible, asked, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvidia_smi("name") == ["nvidia-smi", *asked, "--query-gpu=name", "--format=csv,noheader"]


@pytest.mark.parametrize(
    ("per_call_ms", "device", "budget_s", "calls"),
    [
        (0.5, "cpu", 0.3, 4),
        (0.5, "cuda", 0.3, 40),
        (2.4, "cuda", 0.2, 8),
        (50.0, "cuda", 0.2, 1),
        (1.0, "cuda", 0.07, 10),
    ],
)
def test_a_sample_is_long_enough_for_its_clock_and_short_enough_for_five(per_call_ms, device, budget_s, calls):
    assert calls_per_sample(per_call_ms, device, budget_s=budget_s) == calls


def test_segments_that_grow_are_asked_for_without_starting_cuda():
    """In a process of its own: the setting holds for all that follows."""
    code = "import torch, harness.memory as m; print(m.let_segments_grow()); assert not torch.cuda.is_initialized()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expandable_segments" in ended.stdout
