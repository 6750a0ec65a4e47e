"""Throughput against length, predicted beside measured peaks, and training memory against batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from reports import style
from reports.batch_figures import add_failed, draw_batches
from reports.comparisons import curves
from reports.drawing import (
    INK,
    Drawing,
    Rows,
    Styles,
    add_legend,
    new_figure,
    value_axis,
)
from reports.published import TRAIN_LEN, PublishedPoint
from reports.scaling import add_failures, add_flags, draw_lengths, one_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED_SIZES = ("125m", "130m")


def throughput_figure(frame: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Tokens a second against length: median with quartiles, predictions, failures."""
    about, styles = one_group(frame), styles or style.model_styles(frame["model"])
    rows = Rows()
    tokens = {
        (row["model"], row["seq_len"]): row["batch"] * row["seq_len"]
        for row in frame.to_dict("records")
        if row["batch"] > 0
    }
    by_model = curves(frame)
    for model, lengths in by_model.items():
        for seq_len, latency in sorted(lengths.items()):
            slow, middle, fast = pd.Series(latency).quantile([0.75, 0.5, 0.25])
            rate = 1e3 * tokens.get((model, seq_len), math.nan)
            rows.add(
                model,
                "measured",
                seq_len,
                rate / middle,
                low=rate / slow,
                high=rate / fast,
                n=len(latency),
                status="ok",
            )
    predicted = frame[frame["predicted_latency_ms"] > 0].groupby(["model", "seq_len"])["predicted_latency_ms"].median()
    for key, count in tokens.items():
        model, seq_len = key
        if key in predicted.index and seq_len not in by_model.get(model, {}):
            rate = 1e3 * count / predicted[key]
            rows.add(model, "predicted", seq_len, rate, note="predicted, not measured")
    add_flags(rows, frame)
    add_failures(rows, frame)
    caption = (
        "Tokens a second: batch times length over the median time of a call; bands are the quartiles. A level line "
        "is linear time; one that falls by half where the length doubles is quadratic time."
    )
    return draw_lengths(
        rows, styles, {}, about, "throughput", "Throughput against length", "Tokens/s (K = 1,000)", "rate", caption
    )


def peak_ratios(speed: pd.DataFrame) -> pd.DataFrame:
    """The trials that have both a measured and a predicted peak, with `peak_ratio`: predicted over measured."""
    both = speed[(speed["status"] == "ok") & (speed["memory_bytes"] > 0) & (speed["predicted_peak_bytes"] > 0)].copy()
    both["peak_ratio"] = both["predicted_peak_bytes"] / both["memory_bytes"]
    return both


def prediction_figure(speed: pd.DataFrame, level: str) -> Drawing | None:
    """Predicted over measured peak memory against the measured peak, a panel a direction; None without both."""
    both = peak_ratios(speed[speed["level"] == level])
    if both.empty:
        return None
    styles = style.model_styles(both["model"])
    directions = sorted(both["direction"].dropna().unique())
    title = f"Predicted over measured peak memory: {level}"
    sheet, panels = new_figure(title, str(both["section"].iloc[0]), columns=len(directions))
    drawn = []
    for axes, direction in zip(panels, directions, strict=True):
        rows = Rows(x="measured_bytes")
        for row in both[both["direction"] == direction].to_dict("records"):
            note = f"{direction}, length {style.length(row['seq_len'])}, {row['mode']}"
            rows.add(row["model"], "point", row["memory_bytes"], row["peak_ratio"], status="ok", note=note)
        data = rows.frame()
        for model, points in data.groupby("model"):
            look = styles[str(model)]
            axes.scatter(
                points["measured_bytes"], points["value"], color=look.color, marker=look.marker, s=22, alpha=0.75
            )
        axes.axhline(1.0, color=INK, linewidth=1.1)
        bytes_axis(axes, data["measured_bytes"].tolist(), "Measured peak")
        ratio_axis(axes, both["peak_ratio"].tolist(), "Predicted / measured")
        axes.set_title(str(direction), loc="left", fontsize=10, color=INK)
        drawn.append(data)
    data = pd.concat(drawn, ignore_index=True)
    add_legend(sheet, data, styles, {}, [_line("1x: as predicted")])
    basis = ", ".join(sorted(map(str, both["memory_basis"].unique())))
    caption = (
        f"The peak that was predicted without allocating anything over the peak that was measured ({basis}), a mark "
        "a trial. Above the line the prediction is too high, which skips a trial that would have fitted; below it, "
        "too low."
    )
    return Drawing(name=f"predicted-peak-{level}", title=title, caption=caption, figure=sheet, data=data)


def ratio_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """An axis of ratios around 1: linear where they are near it, else logarithmic."""
    from matplotlib.ticker import FuncFormatter

    low, high = min(0.9, *values), max(1.1, *values)
    if low < 0.3 or high > 3:
        value_axis(axes, label, "ratio", [low, high])
        return
    room = 0.05 * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{style.figure(value, 4)}x"))
    axes.set_ylabel(label, fontsize=10, color=INK)


def bytes_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """A base-2 log axis of bytes along x, with at most five ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    stride = max(1, math.ceil((high - low) / 5))
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(values) / 1.5, max(values) * 1.5)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + 1, stride)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.num_bytes(value)))
    axes.set_xlabel(label, fontsize=10, color=INK)


def batch_memory_figure(frame: pd.DataFrame, published: Sequence[PublishedPoint] = ()) -> Drawing:
    """Peak memory of a training step against batch, at one length, beside the published figures."""
    styles = style.model_styles(frame["model"])
    rows = Rows(x="batch")
    for _, mine in frame.groupby(["model", "batch"]):
        model, batch = str(mine["model"].iloc[0]), float(mine["batch"].iloc[0])
        peak, guess = mine["memory_bytes"].max(), mine["predicted_peak_bytes"].median()
        if math.isfinite(peak):
            rows.add(model, "measured", batch, peak, status="ok", note=mine["memory_basis"].iloc[0])
        elif guess > 0:
            rows.add(model, "predicted", batch, guess, note="predicted, not measured")
    add_failed(rows, frame, "batch")
    for point in published:
        rows.add(None, "published", point.x, point.value, note=point.curve)
    first = frame.iloc[0]
    caption = f"Peak memory of one training step ({first['memory_basis']}), parameters and optimizer state included."
    caption += f" {published[0].caption}" if published else ""
    return draw_batches(
        [("Peak memory", rows)], styles, {}, first, unit="bytes", what="",
        name=f"batch-memory-{first['scale']}-{first['seq_len']:.0f}",
        title=f"Peak memory of training against batch, length {style.length(first['seq_len'])}", caption=caption,
    )  # fmt: skip


def compares_with_published_memory(frame: pd.DataFrame) -> bool:
    """Whether these trials follow the published protocol of training memory: size and length."""
    first = frame.iloc[0]
    return str(first["scale"]).lower() in PUBLISHED_SIZES and first["seq_len"] == TRAIN_LEN


def _line(label: str) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, linewidth=1.1, label=label)
