"""Under which conditions times were measured: device, timer, clocks and throttling, caches, warm-up, samples.

All of it is read from the records and their environment; what they do not hold is said to be missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports import style

ENOUGH_SAMPLES = 5
NOT_RECORDED = "not in these records"
# nvidia-smi's name, what it is, and the unit where the reading itself names none.
READINGS = (
    ("clocks.sm", "SM clock", ""),
    ("clocks.mem", "Memory clock", ""),
    ("temperature.gpu", "Temperature", "°C"),
    ("power.draw", "Power", ""),
)
READING_NOTE = (
    "once before and once after a trial's samples; what happens between the two is not seen. Idle is the state of a "
    "device without work, not a slowdown"
)


def conditions_table(trials: pd.DataFrame, environment: Mapping[str, Any]) -> pd.DataFrame:
    """Of one section: a row a condition. Empty without a timed trial."""
    timed = trials[(trials["status"] == "ok") & trials["kind"].isin(["speed", "generation"])]
    timed = timed[[bool(row["latency_ms"] or row["decode_ms"]) for row in timed.to_dict("records")]]
    if timed.empty:
        return pd.DataFrame(columns=["Condition", "In this run"])
    rows = [
        ("Device", _device(environment, str(timed["device"].iloc[0]))),
        ("Timer", _counted(backend.get("clock") for backend in timed["backend"])),
        *_clocks(timed, environment),
        ("Last-level cache (L2)", _counted(timed["l2_policy"])),
        ("Warm-up", _warm_up(timed)),
        ("Samples of a trial", _samples(timed)),
        ("Launch-bound", _launch_bound(timed)),
        ("Harness overhead of a trial", _overhead(timed["overhead_s"].dropna())),
        ("Largest error against the reference", style.figure(timed["max_relative_error"].max())),
    ]
    return pd.DataFrame(rows, columns=["Condition", "In this run"])


def _device(environment: Mapping[str, Any], device: str) -> str:
    gpu, cpu = environment.get("gpu"), environment.get("cpu")
    if device == "cuda" and isinstance(gpu, Mapping):
        names = (("driver", "driver_version"), ("memory", "memory.total"), ("power limit", "power.limit"))
        parts = [str(gpu.get("name", "GPU")), *(f"{word} {gpu[key]}" for word, key in names if gpu.get(key))]
        return ", ".join(parts)
    name = cpu.get("model") if isinstance(cpu, Mapping) else cpu
    return f"{name or 'CPU'}, {environment.get('threads', 'unknown')} threads"


def _clocks(timed: pd.DataFrame, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Ranges of each reading before and after, and the reasons for lower clocks; one row where nothing was read."""
    readings: dict[str, list[Mapping[str, Any]]] = {
        when: [
            reading[when]
            for reading in timed["gpu_clocks"]
            if isinstance(reading, Mapping) and isinstance(reading.get(when), Mapping) and reading[when]
        ]
        for when in ("before", "after")
    }
    if not any(readings.values()):
        return [("Clocks and throttling", NOT_RECORDED)]
    gpu = environment.get("gpu")
    limits = gpu if isinstance(gpu, Mapping) else {}
    most = {"clocks.sm": limits.get("clocks.max.sm"), "clocks.mem": limits.get("clocks.max.memory")}
    rows = []
    for key, name, unit in READINGS:
        parts = [f"{when} {_span((one.get(key) for one in readings[when]), unit)}" for when in readings]
        rows.append((name, "; ".join(parts) + (f"; device maximum {most[key]}" if most.get(key) else "")))
    parts = [f"{when}: {_reasons(readings[when])}" for when in readings]
    return [*rows, ("Reasons for lower clocks", "; ".join(parts)), ("How clocks were read", READING_NOTE)]


def _span(values: Iterable[Any], named: str = "") -> str:
    """1,755 to 1,980 MHz of the readings that hold a number."""
    found = [(float(match[1]), match[2]) for v in values if (match := re.match(r"\s*([\d.]+)\s*(.*)", str(v)))]
    if not found:
        return "not known"
    low, high, unit = min(found)[0], max(found)[0], found[0][1].strip() or named
    figures = f"{low:,.4g}" if low == high else f"{low:,.4g} to {high:,.4g}"
    return f"{figures} {unit}".strip()


def _reasons(readings: Sequence[Mapping[str, Any]]) -> str:
    """How many of the readings gave each reason, none included."""
    known = [reading["throttle_reasons"] for reading in readings if isinstance(reading.get("throttle_reasons"), list)]
    if not known:
        return "not known to the driver"
    counts = Counter(str(reason) for reasons in known for reason in reasons or ["none"])
    return ", ".join(f"{reason} in {count} of {len(known)}" for reason, count in counts.most_common())


def _counted(values: Iterable[Any]) -> str:
    """Each text with the number of trials that say it; the number is left out where all say the same."""
    texts = [str(value) if isinstance(value, str) and value else NOT_RECORDED for value in values]
    counts = Counter(texts)
    if len(counts) == 1:
        return texts[0]
    return "; ".join(f"{text} ({count} of {len(texts)} trials)" for text, count in counts.most_common())


def _warm_up(timed: pd.DataFrame) -> str:
    """What the records say of the calls before the samples: the first is timed apart."""
    first, captured = int(timed["first_call_ms"].notna().sum()), int(timed["capture_ms"].notna().sum())
    calls = timed["warm_up_calls"].dropna()
    text = f"{calls.min():.0f} to {calls.max():.0f} untimed calls before the first sample; " if len(calls) else ""
    text += f"first call timed apart, compilation included, in {first} of {len(timed)} trials"
    return text + (f"; capture of the CUDA graph apart in {captured}" if captured else "")


def _samples(timed: pd.DataFrame) -> str:
    counts = [len(row["latency_ms"] or row["decode_ms"]) for row in timed.to_dict("records")]
    few = [count for count in counts if count < ENOUGH_SAMPLES]
    text = f"{min(counts)} to {max(counts)}, median {pd.Series(counts).median():g}, of {len(counts)} timed trials"
    flagged = int(timed["few_samples"].sum())
    return f"{text}; {len(few)} with fewer than {ENOUGH_SAMPLES} ({flagged} flagged by their record)"


def _launch_bound(timed: pd.DataFrame) -> str:
    measured = int(sum(bool(samples) for samples in timed["host_ms"]))
    if not measured:
        on_gpu = timed["device"].iloc[0] == "cuda"
        return NOT_RECORDED if on_gpu else "not applicable: the host does the work itself"
    bound = int(timed["launch_bound"].sum())
    return (
        f"{bound} of {measured} trials with the host's time: the host takes as long to issue a call as the device to "
        "work it off; ringed in the figures and left out of slopes"
    )


def _overhead(seconds: pd.Series) -> str:
    """What a speed trial took beside building, calling, checking and timing."""
    if seconds.empty:
        return NOT_RECORDED
    low, middle, high = (style.figure(end) for end in seconds.quantile([0.25, 0.5, 0.75]))
    return (
        f"median {middle} s, quartiles {low} to {high} s, of {len(seconds)} trials: the trial's wall time less its "
        "phases; process, start of the device, clocks"
    )
