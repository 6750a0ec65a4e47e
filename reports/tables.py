"""The tables of a report: each is a function of a data frame to a data frame of text, which a page then escapes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports import fits, style
from reports.comparisons import crossover_text, crossovers, curves, memory_points, reference_for, slope_points
from reports.contrasts import Contrast
from reports.frames import ALLOCATOR, RSS, length_groups


def contrasts_table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """Verdicts first."""
    rows = [{"Verdict": c.verdict, "Contrast": c.statement, "Evidence": c.evidence, "Rule": c.rule} for c in contrasts]
    return pd.DataFrame(rows, columns=["Verdict", "Contrast", "Evidence", "Rule"])


def models_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Per model: parameters, state, the kernels that ran, and how its trials ended."""
    rows = []
    for model, mine in trials.groupby("model", dropna=False, sort=True):
        backends = [backend for backend in mine["backend"] if backend]
        counts = mine["status"].value_counts().sort_index()
        rows.append(
            {
                "Model": text(model),
                "Parameters": _range(mine["params"], lambda v: f"{v:,.0f}"),
                "State": _range(mine["state_bytes"], style.num_bytes),
                "Kernels and settings that ran": "; ".join(_settings(backends)) or style.NONE,
                "Trials": ", ".join(f"{count} {status}" for status, count in counts.items()),
            }
        )
    return pd.DataFrame(rows, columns=["Model", "Parameters", "State", "Kernels and settings that ran", "Trials"])


def scaling_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Per measured curve: slopes of time and memory, speedup over attention, and where the two cross."""
    rows = []
    for group in length_groups(speed):
        by_model, memory = curves(group), memory_points(group)
        crossing = {model: crossover_text(cross, reference, model) for reference, model, cross in crossovers(group)}
        first = group.iloc[0]
        for model in sorted(set(by_model) | set(memory)):
            compared = reference_for(model, by_model)
            points = fits.medians(by_model.get(model, {}))
            mean, count = fits.geometric_mean_speedup(fits.medians(compared[1]), points) if compared else (math.nan, 0)
            rows.append(
                {
                    "Measured": measured_on(first),
                    "Model": model,
                    "Longest": style.length(max(points, default=math.nan)),
                    "Time slope": _slope(slope_points(group, model)),
                    "Memory slope": _slope(memory.get(model, {})),
                    "Speedup over attention": f"{style.figure(mean)}x over {count} lengths" if count else style.NONE,
                    "Crossover": crossing.get(model, style.NONE),
                }
            )
    return pd.DataFrame(
        rows,
        columns=["Measured", "Model", "Longest", "Time slope", "Memory slope", "Speedup over attention", "Crossover"],
    )


def trials_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Every trial of every status, with what was measured beside what was predicted."""
    columns = [
        "Trial",
        "Status",
        "Model",
        "Measured on",
        "Length",
        "Batch",
        "Seed",
        "Time (predicted)",
        "Memory (predicted)",
        "Tokens/s",
        "Result",
        "Message",
    ]
    rows = [
        {
            "Trial": row["trial_id"][:8] or style.NONE,
            "Status": row["status"],
            "Model": text(row["model"]),
            "Measured on": _what(row),
            "Length": style.length(row["seq_len"]),
            "Batch": style.figure(row["batch"]),
            "Seed": style.figure(row["seed"]),
            "Time (predicted)": _pair(row["latency_median_ms"], row["predicted_latency_ms"], style.milliseconds),
            "Memory (predicted)": _pair(_memory(row), row["predicted_peak_bytes"], style.num_bytes),
            "Tokens/s": style.figure(row["tokens_per_s"]),
            "Result": _result(row),
            "Message": _message(row),
        }
        for row in trials.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=columns)


def scores_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Every scored length of every trained model."""
    rows = [
        {
            "Trial": row["trial_id"][:8],
            "Task": text(row["task"]),
            "Data": text(row["source"]),
            "Model": row["model"],
            "Seed": style.figure(row["seed"]),
            "Trained at": style.length(row["train_len"]),
            "Scored at": style.length(row["scored_len"]),
            "Status": row["score_status"],
            "Accuracy": _interval(row, "accuracy"),
            "Bits per token": _interval(row, "bits_per_token"),
            "Why": text(row["reason"]),
        }
        for row in scores.to_dict("records")
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "Trial",
            "Task",
            "Data",
            "Model",
            "Seed",
            "Trained at",
            "Scored at",
            "Status",
            "Accuracy",
            "Bits per token",
            "Why",
        ],
    )


def skipped_table(trials: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """What has no figure, and why: trials that did not end well, and scored lengths of those that did."""
    rows = [
        {
            "Trial": row["trial_id"][:8],
            "Status": row["status"],
            "What": f"{text(row['model'])}, {_what(row)}",
            "Length": style.length(row["seq_len"]),
            "Predicted time": style.milliseconds(row["predicted_latency_ms"]),
            "Predicted memory": style.num_bytes(row["predicted_peak_bytes"]),
            "Why": _message(row),
            "Tail of its output": str(row["error_tail"] or ""),
        }
        for row in trials[trials["status"] != "ok"].to_dict("records")
    ]
    trained = set(trials.loc[trials["status"] == "ok", "trial_id"])
    unscored = scores[(scores["score_status"] != "ok") & scores["trial_id"].isin(trained)]
    rows += [
        {
            "Trial": row["trial_id"][:8],
            "Status": row["score_status"],
            "What": f"{row['model']}, {text(row['task'])} (scoring)",
            "Length": style.length(row["scored_len"]),
            "Predicted time": style.milliseconds(row["predicted_latency_ms"]),
            "Predicted memory": style.NONE,
            "Why": text(row["reason"]),
            "Tail of its output": "",
        }
        for row in unscored.to_dict("records")
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "Trial",
            "Status",
            "What",
            "Length",
            "Predicted time",
            "Predicted memory",
            "Why",
            "Tail of its output",
        ],
    )


def data_table(training: pd.DataFrame) -> pd.DataFrame:
    """What the tasks' data were: source, kind, checksum, note."""
    named = training[training["source"].notna()]
    rows = [
        {
            "Task": text(task),
            "Data": text(name),
            "Kind": text(kind),
            "sha256": text(sha)[:16],
            "Note": "; ".join(sorted({text(note) for note in mine["source_note"]})),
        }
        for (task, name, kind, sha), mine in named.groupby(
            ["task", "source", "source_kind", "source_sha256"], dropna=False
        )
    ]
    return pd.DataFrame(rows, columns=["Task", "Data", "Kind", "sha256", "Note"])


def text(value: Any) -> str:
    """Text, or a dash for what is absent."""
    absent = value is None or value == "" or (isinstance(value, float) and math.isnan(value)) or value is pd.NA
    return style.NONE if absent else str(value)


def measured_on(row: Any) -> str:
    """Level, direction, dtype, variant and batch of a group, from one of its rows; the probes' size unsaid."""
    scale = "" if row["scale"] == "tiny" else row["scale"]
    parts = [row["level"], row["direction"], scale, row["dtype"], row["variant"], row["mode"]]
    return ", ".join(text(part) for part in parts if part)


def _what(row: Any) -> str:
    kind = "generation" if row["kind"] == "generation" else None
    parts = [row["task"], kind, row["loop"], row["level"], row["direction"], row["dtype"], row["variant"]]
    return ", ".join(part for part in map(text, parts) if part != style.NONE)


def _memory(row: Any) -> float:
    if math.isfinite(row["peak_alloc_bytes"]):
        return float(row["peak_alloc_bytes"])
    above = row["peak_rss_bytes"] - row["baseline_rss_bytes"]
    return float(above) if above > 0 else math.nan


def _pair(measured: float, predicted: float, show: Any) -> str:
    shown: str = show(measured)
    return shown + (f" ({show(predicted)})" if math.isfinite(predicted) else "")


def _result(row: Any) -> str:
    parts = [("accuracy", _interval(row, "accuracy")), ("bits per token", _interval(row, "bits_per_token"))]
    shown = [f"{name} {value}" for name, value in parts if value != style.NONE]
    if math.isfinite(row["rate"]):
        shown.append(f"{style.rate(row['rate'])}{row['rate_unit'] or ''}")
    for name in ("prefill_ms", "decode_ms"):
        if row[name]:
            shown.append(f"{name[:-3]} {style.milliseconds(float(pd.Series(row[name]).median()))}")
    if math.isfinite(row["largest_batch"]):
        shown.append(f"largest batch {style.figure(row['largest_batch'])}")
    if math.isfinite(row["train_s"]):
        shown.append(f"trained in {style.milliseconds(1e3 * row['train_s'])}")
    return ", ".join(shown) + (f" ({style.STAMP.lower()})" if row["embedded"] and shown else "") or style.NONE


def _message(row: Any) -> str:
    if row["status"] == "ok":
        return ""
    return ": ".join(str(part) for part in (row["error_type"], row["error_message"]) if part) or "no message recorded"


def _interval(row: Any, name: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    form = "percent" if name == "accuracy" else "figure"
    show = style.percent if form == "percent" else style.figure
    if not math.isfinite(value):
        return style.NONE
    return show(value) + (f" {style.span(low, high, form)}" if math.isfinite(low) and math.isfinite(high) else "")


def _slope(points: dict[float, float]) -> str:
    slope = fits.fit_slope(points)
    return f"{slope} ({style.length(slope.start)}..{style.length(slope.stop)})" if slope else style.NONE


def _range(values: pd.Series, show: Any) -> str:
    known = values.dropna()
    if known.empty:
        return style.NONE
    low, high = show(known.min()), show(known.max())
    return low if low == high else f"{low} to {high}"


def _settings(backends: Sequence[dict[str, Any]]) -> list[str]:
    """key: the values that occurred, for each key of the backends."""
    seen: dict[str, set[str]] = {}
    for backend in backends:
        for key, value in backend.items():
            seen.setdefault(str(key), set()).add(value if isinstance(value, str) else json.dumps(value, default=str))
    return [f"{key} {' or '.join(sorted(values))}" for key, values in sorted(seen.items())]


MEMORY_NOTE = f"Memory is the {ALLOCATOR} where it was recorded, else the {RSS}."
