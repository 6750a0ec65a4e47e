"""The gate's rules for one trial on both sides: are its machines alike, and what became of each metric.

Peaks of memory depend on threads and kernels (scratch buffers are one a thread), so between unlike machines they
are compared only where these agree. A kernel that was lost on the same machine is a regression like any other.
One training's interval covers the choice of test examples, not the luck of training: one seed that trains differently
after a harmless change of arithmetic can still be called regressed. From three seeds on, :mod:`harness.gate_accuracy`
judges their differences instead.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.gate_timing import MIN_SAMPLES, samples_of
from harness.trials import format_length

Verdict = Literal["regressed", "not comparable", "suspect", "inconclusive", "changed", "improved", "new", "pass"]
Record = Mapping[str, Any]
Environments = Mapping[str, Mapping[str, Any]]

COUNTS = ("params", "state_bytes", "flops")
PEAKS = ("predicted_peak_bytes", "peak_alloc_bytes")
SCORES = {"accuracy": 1, "bits_per_token": -1}
"""Metrics that have an interval, with the sign of the good direction."""
LATENCY = "latency_ms"
PAIRED_LATENCY = "paired_latency_ms"
"""The timing tier's own tolerance of a latency: both sides' blocks ran next to each other."""
METRICS = (*COUNTS, *PEAKS, *SCORES, LATENCY, PAIRED_LATENCY)
_SETTINGS = frozenset(
    {"precision", "compiled", "cuda_graph", "tf32", "threads", "host_allocator", "clock", "side_by_side"}
)
"""Entries of ``backend`` that are no kernel's name."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a metric may move, and why so far."""

    limit: float
    reason: str
    both_ways: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one trial on both sides; ``base`` or ``candidate`` is None where that side has none."""

    key: str
    trial: str
    metric: str
    verdict: Verdict
    base: float | str | None = None
    candidate: float | str | None = None
    detail: str = ""


def unlike_machines(before: Record, after: Record, environments: Environments) -> dict[str, str]:
    """In what the machines of two records differ, in words by name; empty where they are alike."""
    left, right = (_machine(environments.get(str(r.get("env_id")), {})) for r in (before, after))
    if not left or not right:
        return {"environment": "unknown on one side (no env file beside its records)"}
    return {name: f"{left[name]} against {right[name]}" for name in left if left[name] != right[name]}


def in_words(unlike: Mapping[str, str]) -> str:
    """What :func:`unlike_machines` found, as part of a sentence."""
    return "machines differ: " + ", ".join(f"{name} {what}" for name, what in unlike.items()) if unlike else ""


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    if not environment:
        return {}
    parts = (environment.get(name) for name in ("cpu", "gpu", "packages"))
    cpu, gpu, packages = (part if isinstance(part, Mapping) else {} for part in parts)
    return {
        "cpu": cpu.get("model"),
        "cores": cpu.get("cores"),
        "threads": environment.get("threads"),
        "gpu": gpu.get("name"),
        "torch": packages.get("torch"),
    }


_PREDICTED = ("PredictedTime", "PredictedMemory")
"""Types of a skip's error: it was not run because a prediction said so."""


def compare_status(
    before: Record | None, after: Record | None, names: Mapping[str, str], environments: Environments
) -> Comparison:
    old, new = (str(record["status"]) if record else None for record in (before, after))
    row = Comparison(metric="status", verdict="pass", base=old, candidate=new, **names)
    if before is None:
        return replace(row, verdict="new", detail="the base has no record of it")
    if after is None:
        return replace(row, verdict="regressed", detail="vanished: the candidate has no record of it")
    if old == new:
        return row
    error, unlike = after.get("error") or {}, unlike_machines(before, after, environments)
    detail = "; ".join(reason for reason in (error.get("message", ""), in_words(unlike)) if reason)
    verdict: Verdict = "regressed" if old == "ok" else "improved" if new == "ok" else "changed"
    if old == "ok" and (new == "timeout" or error.get("type") in _PREDICTED):
        # Limits of time and memory are the machine's: another one says nothing of the code, and a
        # prediction near the limit goes either way on the same one.
        verdict = "inconclusive" if unlike else "suspect" if error.get("type") in _PREDICTED else "regressed"
    return replace(row, verdict=verdict, detail=detail)


def _kernels(record: Record) -> dict[str, Any]:
    return {k: v for k, v in (record.get("backend") or {}).items() if k not in _SETTINGS}


def compare_kernels(before: Record, after: Record, names: Mapping[str, str]) -> Iterator[Comparison]:
    """Says that other kernels ran: the usual reason for other peaks and times."""
    old, new = _kernels(before), _kernels(after)
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            fields = {"base": str(old[name]), "candidate": str(new[name]), "detail": "another kernel ran"}
            yield Comparison(metric=f"kernel {name}", verdict="changed", **names, **fields)


def _both_ok(before: Record, after: Record) -> bool:
    return bool(before["status"] == after["status"] == "ok")


def compare_numbers(
    before: Record,
    after: Record,
    names: Mapping[str, str],
    tolerances: Mapping[str, Tolerance],
    unlike: Mapping[str, str],
    left_out: Counter[str],
) -> Iterator[Comparison]:
    for metric in (*COUNTS, *PEAKS):
        old, new = (number(record["metrics"].get(metric)) for record in (before, after))
        if old is None or (new is None and not _both_ok(before, after)):
            continue
        row = Comparison(metric=metric, verdict="pass", base=old, candidate=new, **names)
        if new is None:
            yield replace(row, verdict="regressed", detail="no longer recorded")
        elif metric in PEAKS and unlike and (why := _unlike_peaks(before, after, unlike)):
            left_out[f"{metric} not compared: {why}"] += 1
        else:
            yield judge_number(row, old, new, tolerances[metric])


def _unlike_peaks(before: Record, after: Record, unlike: Mapping[str, str]) -> str:
    """Why peaks of two unlike machines do not compare; empty where they do."""
    if "threads" in unlike:
        return f"buffers grow with threads ({unlike['threads']}); run both with the same --threads N"
    threads = [record["backend"].get("threads") for record in (before, after)]
    if None not in threads and threads[0] != threads[1]:
        return f"buffers grow with threads ({threads[0]} against {threads[1]}); run both with the same --threads N"
    if "gpu" in unlike:
        return f"workspaces depend on the GPU ({unlike['gpu']})"
    if before["backend"] and after["backend"] and _kernels(before) != _kernels(after):
        return f"other kernels ran, and {in_words(unlike)}"
    return ""


def judge_number(row: Comparison, old: float, new: float, tolerance: Tolerance) -> Comparison:
    """``row`` with the verdict on a figure of which less is better, or none but the same is right."""
    change = (new - old) / abs(old) if old else math.copysign(math.inf, new - old) if new != old else 0.0
    if abs(change) <= tolerance.limit:
        return row
    detail = f"{change:+.2%}, allowed {tolerance.limit:.0%}"
    worse = change > 0 or tolerance.both_ways
    return replace(row, verdict="regressed" if worse else "improved", detail=detail)


def compare_scores(
    before: Record, after: Record, names: Mapping[str, str], tolerances: Mapping[str, Tolerance]
) -> Iterator[Comparison]:
    olds, news = scores_of(before), scores_of(after)
    skipped = {s.get("seq_len"): str(s.get("reason")) for s in _entries(after) if s.get("status") == "skipped"}
    for (metric, seq_len), old in olds.items():
        new = news.get((metric, seq_len))
        row = Comparison(metric=f"{metric} at {format_length(seq_len)}", verdict="pass", base=old["value"], **names)
        if new is not None:
            yield judge_score(replace(row, candidate=new["value"]), old, new, SCORES[metric], tolerances[metric].limit)
        elif seq_len in skipped:
            # Skipped for lack of time or memory, which is the machine's state as often as the code's.
            yield replace(row, verdict="inconclusive", detail=f"not scored: {skipped[seq_len]}")
        elif _both_ok(before, after):
            yield replace(row, verdict="regressed", detail="no longer scored")


def _entries(record: Record) -> list[Mapping[str, Any]]:
    entries = record["metrics"].get("scores") or []
    return [entry for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("seq_len"), int)]


def scores_of(record: Record) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Scores by metric and length; the trial's own score counts at its own length."""
    own = {**record["metrics"], "seq_len": record["trial"].get("seq_len")}
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for entry in [own, *_entries(record)]:
        for metric in SCORES:
            score = entry.get(metric)
            if isinstance(score, Mapping) and number(score.get("value")) is not None:
                found[metric, int(entry["seq_len"])] = score
    return found


def judge_score(
    row: Comparison, old: Mapping[str, Any], new: Mapping[str, Any], good: int, tolerance: float
) -> Comparison:
    """``row`` with the verdict on two intervals; ``good`` is 1 where more is better, else -1."""
    if old["value"] == new["value"]:
        return row
    ends = [number(side.get(end)) for side in (old, new) for end in ("low", "high")]
    old_low, old_high, new_low, new_high = ends
    if old_low is None or old_high is None or new_low is None or new_high is None:
        return replace(row, verdict="inconclusive", detail="a side has no interval: it was scored on one example")
    detail = f"[{old_low:.4g}, {old_high:.4g}] against [{new_low:.4g}, {new_high:.4g}], allowed {tolerance:g} apart"
    if new_high < old_low - tolerance:
        return replace(row, verdict="regressed" if good > 0 else "improved", detail=detail)
    if new_low > old_high + tolerance:
        return replace(row, verdict="improved" if good > 0 else "regressed", detail=detail)
    return row


def no_timing(before: Record, after: Record, unlike: Mapping[str, str]) -> str:
    """Why the times of two records are not compared; empty where they are."""
    if unlike:
        return in_words(unlike)
    if any(record["backend"].get("side_by_side") for record in (before, after)):
        return "trials ran side by side"
    fewest = min(len(samples_of(before)), len(samples_of(after)))
    return f"fewer than {MIN_SAMPLES} samples on a side" if fewest < MIN_SAMPLES else ""


def number(value: Any) -> float | None:
    """A finite number, or None for what is absent or none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
