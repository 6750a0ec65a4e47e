"""Clocks of a GPU, and why they are below their maximum: what a time on it was measured at."""

import contextlib
import functools
import importlib
import os
import subprocess
from typing import Any

from harness.environment import nvidia_smi

CLOCK_QUERIES = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
REASON_QUERIES = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""One thing, renamed by drivers of 2023."""
CLOCK_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
"""What the bits mean (NVML's ``nvmlClocksEventReason…``): why clocks are below their maximum at this moment."""


class ClockReading:
    """Clocks and active throttle reasons of the first GPU.

    NVML gives them in a millisecond, where its bindings (nvidia-ml-py) are installed. nvidia-smi takes a tenth of a
    second or more, so it is asked in the background: what a trial has to do anyway covers that.
    """

    def __init__(self) -> None:
        self._asked = None if connect() else self._ask(REASON_QUERIES[0])

    def _ask(self, *reasons: str) -> "subprocess.Popen[str] | None":
        command = nvidia_smi(*CLOCK_QUERIES, *reasons)
        try:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return None

    def read(self) -> dict[str, Any]:
        """What NVML says now, or nvidia-smi said; without the reasons where a driver does not know them, empty where
        there is neither."""
        if (nvml := connect()) is not None:
            with contextlib.suppress(nvml[0].NVMLError):  # no measurement ends because its clocks were not told
                return parse_clocks(_line(*nvml))
            return {}
        answer = self._wait(self._asked)
        for reasons in (REASON_QUERIES[1:], ()):
            if not answer and self._asked is not None:
                answer = self._wait(self._ask(*reasons))
        return parse_clocks(answer)

    @staticmethod
    def _wait(asked: "subprocess.Popen[str] | None") -> str:
        if asked is None:
            return ""
        try:
            answer, _ = asked.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            asked.kill()
            asked.communicate()
            return ""
        return answer if asked.returncode == 0 else ""


def gpu_clocks() -> dict[str, Any]:
    """Clocks and throttle reasons at this moment; empty without NVML and nvidia-smi."""
    return ClockReading().read()


@functools.cache
def connect() -> tuple[Any, Any] | None:
    """NVML's bindings and the handle of the GPU that CUDA calls its first; None where they do not tell its clocks.

    As :func:`harness.environment.nvidia_smi`, of a part of a GPU (MIG) it asks the first GPU.
    """
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    # Its errors share a class; one that a driver's library lacks a function for is an AttributeError.
    with contextlib.suppress(pynvml.NVMLError, AttributeError, ValueError):
        pynvml.nvmlInit()
        if first.startswith("GPU"):
            handle = pynvml.nvmlDeviceGetHandleByUUID(first)
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(0 if first.startswith("MIG") else int(first or 0))
        _line(pynvml, handle)
        return pynvml, handle
    return None


def _line(pynvml: Any, handle: Any) -> str:
    """What nvidia-smi would print of :data:`CLOCK_QUERIES` and the reasons. Raises what NVML raises."""
    sm, mem = (pynvml.nvmlDeviceGetClockInfo(handle, kind) for kind in (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM))
    temperature = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    power_mw = pynvml.nvmlDeviceGetPowerUsage(handle)
    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return f"{sm} MHz, {mem} MHz, {temperature}, {power_mw / 1e3:.2f} W, {reasons:#018x}\n"


def parse_clocks(answer: str) -> dict[str, Any]:
    """nvidia-smi's line of :data:`CLOCK_QUERIES` and, where known, the reasons as a list of words."""
    if not answer.strip():
        return {}
    values = answer.splitlines()[0].split(", ")
    reading: dict[str, Any] = dict(zip(CLOCK_QUERIES, values, strict=False))
    if len(values) > len(CLOCK_QUERIES):
        try:
            bits = int(values[len(CLOCK_QUERIES)], 16)
        except ValueError:  # [N/A]: a virtual GPU, say
            return reading
        names = [name for bit, name in CLOCK_REASONS.items() if bits & bit]
        unknown = bits & ~sum(CLOCK_REASONS)
        reading["throttle_reasons"] = names + ([f"{unknown:#x}"] if unknown else [])
    return reading
