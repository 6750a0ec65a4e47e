"""How near an operator comes to its own limit: the least it must move and compute, at the ceilings of the same device.

limit = max(bytes / copy rate, flops / matmul rate, exponentials / exp rate); share = limit / measured median. The
counts are the least that any implementation needs (inputs read once, outputs written once), so the limit is a lower
bound of the time and the share an honest one of the device, not of the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports import style
from reports.drawing import (
    FLAGS,
    INK,
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_flags,
    new_figure,
    value_axis,
)
from reports.scaling import add_failures, add_flags, draw_lengths, one_group, slug, subtitle

CEILINGS = {"copy": "bytes", "matmul": "flops", "exp": "exps"}
LIMIT_NOTE = (
    "The limit of a call is the longest of: counted bytes at the copy ceiling, counted flops at the matmul ceiling, "
    "counted exponentials at the exponential ceiling, all measured in the same run. Above 100 % the data stay in a "
    "cache that is faster than the memory the copy ceiling measures."
)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Rates of one device: bytes (read plus written), flops (per dtype where measured) and exponentials a second."""

    rates: Mapping[tuple[str, str], float]

    def rate(self, cost: str, dtype: str) -> float:
        """The best measured rate; matmul only of the same dtype, because tensor cores differ by it. NaN if absent."""
        exact = self.rates.get((cost, dtype), math.nan)
        if math.isfinite(exact) or cost == "flops":
            return exact
        return max((rate for (name, _), rate in self.rates.items() if name == cost), default=math.nan)


def ceilings_of(frame: pd.DataFrame) -> Ceilings:
    """The best rate of each ceiling trial of a section, by what it counts and dtype."""
    rates: dict[tuple[str, str], float] = {}
    for row in frame[(frame["status"] == "ok") & (frame["rate"] > 0)].to_dict("records"):
        if row["model"] in CEILINGS:
            key = (CEILINGS[row["model"]], str(row["dtype"]))
            rates[key] = max(row["rate"], rates.get(key, 0.0))
    return Ceilings(rates=rates)


def limits_frame(speed: pd.DataFrame, ceilings: Ceilings) -> pd.DataFrame:
    """The measured trials with counted costs: limit_ms, binds (bytes, flops or exps) and share of the limit."""
    rows = []
    for row in speed[(speed["status"] == "ok") & (speed["latency_median_ms"] > 0)].to_dict("records"):
        times = {}
        for cost in CEILINGS.values():
            count, rate = row[f"cost_{cost}"], ceilings.rate(cost, str(row["dtype"]))
            if count > 0 and rate > 0:
                times[cost] = 1e3 * count / rate
        counted = {cost for cost in CEILINGS.values() if row[f"cost_{cost}"] > 0}
        if not times or counted - set(times):
            continue  # without one of its ceilings a limit would be too low
        binds = max(times, key=lambda cost: times[cost])
        rows.append(row | {"limit_ms": times[binds], "binds": binds, "share": times[binds] / row["latency_median_ms"]})
    return pd.DataFrame(rows, columns=[*speed.columns, "limit_ms", "binds", "share"])


def share_figure(frame: pd.DataFrame, limits: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
    """Share of its own limit that each operator reaches, against length; limits are limits_frame's of the group."""
    if limits.empty:
        return None
    about, styles = one_group(frame), styles or style.model_styles(frame["model"])
    rows, labels = Rows(), {}
    for model, mine in limits.groupby("model"):
        for row in mine.sort_values("seq_len").to_dict("records"):
            ends = sorted(row["limit_ms"] / row[f"latency_{name}_ms"] for name in ("q1", "q3"))
            note = f"{row['binds']} bind"
            rows.add(
                str(model), "measured", row["seq_len"], row["share"], low=ends[0], high=ends[1],
                n=row["latency_n"], status="ok", note=note,
            )  # fmt: skip
        labels[str(model)] = f"{model} \N{MIDDLE DOT} {binding_text(mine)}"
    rows.add(None, "parity", value=1.0, note="at its limit")
    add_flags(rows, frame)
    add_failures(rows, frame)
    caption = f"Limit over median time. {LIMIT_NOTE} The legend says what binds."
    return draw_lengths(
        rows, styles, labels, about, "share", "Share of its own limit", "Share of the limit", "share", caption
    )


def binding_text(limits: pd.DataFrame) -> str:
    """Which cost binds, by length: bytes bind, or bytes to 4K, then flops."""
    ordered = limits.sort_values("seq_len")
    runs: list[tuple[str, float]] = []
    for row in ordered.to_dict("records"):
        if runs and runs[-1][0] == row["binds"]:
            runs[-1] = (row["binds"], row["seq_len"])
        else:
            runs.append((row["binds"], row["seq_len"]))
    if len(runs) == 1:
        return f"{runs[0][0]} bind"
    return ", then ".join([*(f"{cost} to {style.length(until)}" for cost, until in runs[:-1]), runs[-1][0]])


def roofline_figure(limits: pd.DataFrame, ceilings: Ceilings, styles: Styles | None = None) -> Drawing | None:
    """Flop/s against intensity (flop per byte) under the copy and matmul ceilings; a line an operator."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    counted = limits[(limits["cost_bytes"] > 0) & (limits["cost_flops"] > 0)]
    if counted.empty:
        return None
    about, styles = one_group(counted), styles or style.model_styles(counted["model"])
    copy, matmul = (ceilings.rate(cost, str(about["dtype"])) for cost in ("bytes", "flops"))
    if not (copy > 0 and matmul > 0):
        return None
    rows = Rows(x="flop_per_byte")
    for row in counted.sort_values(["model", "seq_len"]).to_dict("records"):
        rate = 1e3 * row["cost_flops"] / row["latency_median_ms"]
        where = row["cost_flops"] / row["cost_bytes"]
        rows.add(row["model"], "measured", where, rate, status="ok", note=f"length {style.length(row['seq_len'])}")
        for flag in FLAGS:
            if row[flag]:
                rows.add(row["model"], flag, where, rate)
    data = rows.frame()
    spans = counted.groupby("model")["seq_len"].agg(["min", "max"])
    labels = {
        str(model): f"{model} \N{MIDDLE DOT} {style.length(low)}..{style.length(high)}"
        for model, low, high in spans.itertuples()
    }
    title = f"Roofline: {about['level']}, {about['direction']}"
    sheet, (axes,) = new_figure(title, subtitle(about))
    ridge = matmul / copy
    low, high = min(data["flop_per_byte"].min(), ridge) / 2, max(data["flop_per_byte"].max(), ridge) * 2
    x = np.array([low, ridge, high])
    axes.plot(x, np.minimum(copy * x, matmul), color=INK, linewidth=1.3)
    value_axis(axes, "Counted flop/s (T = 10\N{SUPERSCRIPT ONE}\N{SUPERSCRIPT TWO})", "rate", [*data["value"], matmul])
    axes.set_xscale("log", base=10)
    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.figure(value)))
    axes.set_xlabel("Intensity (counted flops per counted byte)", fontsize=10, color=INK)
    draw_curves(axes, data, styles, "flop_per_byte")
    roof = f"ceilings: copy {style.rate(copy)}B/s, matmul {style.rate(matmul)}flop/s"
    flags = draw_flags(axes, data, "flop_per_byte")
    add_legend(sheet, data, styles, labels, [Line2D([], [], color=INK, linewidth=1.3, label=roof), *flags])
    caption = (
        "Counted flops over median time against counted flops per counted byte, each operator from its shortest to "
        "its longest length (in the legend), under the ceilings of the same run. An operator that computes "
        "exponentials or elementwise recurrences cannot reach the matmul ceiling: see its share of its own limit."
    )
    return Drawing(name=slug("roofline", about), title=title, caption=caption, figure=sheet, data=data)
