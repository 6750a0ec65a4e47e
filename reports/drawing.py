"""The parts that all figures share: a sheet with title and legend, a log axis of lengths, curves, the rail of failures.

A figure's rows are made first and drawn from alone, so its CSV holds exactly what is seen. Columns: model, mark, the
x column, value, low, high, n, status, note. Marks: measured, predicted, seed, failed, slope, crossover, chance,
train_len, parity, mean, published, launch_bound, few_samples, few_examples (the last three repeat the point that they
flag).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GRID, ALERT = "#222222", "#6B6B6B", "#E3E3E3", "#A61B1B"
PUBLISHED = "#8C8C8C"
# As the families that they are of; the first word that a curve's name holds counts.
PUBLISHED_MARKERS = {
    "PyTorch": "v",
    "Scan": "o",
    "Mamba": "o",
    "Convolution": "^",
    "Attention": "s",
    "Transformer": "s",
}
MANY_LABELS = 10  # from more on a legend is set smaller
# mark -> (marker size, face, what the legend says), of what was timed and of what was scored
FLAGS = {
    "launch_bound": (11.0, "none", "launch-bound: the host takes as long as the device"),
    "few_samples": (2.2, INK, "few samples (fewer than 5)"),
}
SCORE_FLAGS = {"few_examples": (3.4, "white", "fewer examples than the suite asks for")}
COLUMNS = ["model", "mark", "seq_len", "value", "low", "high", "n", "status", "note"]
# 900 px wide at 100 dpi is what the text sizes are meant for; the height grows with the legend and the rail, so that
# the panel keeps its own.
WIDTH_IN, PANEL_IN, AROUND_IN, LEGEND_LINE_IN, RAIL_LINE_IN = 9.0, 3.5, 1.65, 0.19, 0.17
Styles = Mapping[str, style.ModelStyle]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, the data that it shows, and the words that go with it."""

    name: str
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame


@dataclass(kw_only=True)
class Rows:
    """Collects the rows that a figure draws."""

    x: str = "seq_len"
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, model: str | None, mark: str, x: float = math.nan, value: float = math.nan, **rest: Any) -> None:
        self.rows.append({"model": model, "mark": mark, self.x: x, "value": value, **rest})

    def frame(self) -> pd.DataFrame:
        columns = [self.x if name == "seq_len" else name for name in COLUMNS]
        return pd.DataFrame(self.rows, columns=columns)


def new_figure(
    title: str,
    subtitle: str,
    stamp: str = "",
    rows: int = 1,
    columns: int = 1,
) -> tuple[Figure, list[Axes]]:
    """A sheet of panels with its title; a stamp stands in the corner (data that are the project's own stand-in)."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.transforms import ScaledTranslation

    sheet = Figure(
        figsize=(WIDTH_IN, rows * PANEL_IN + AROUND_IN),
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    sheet.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK, linespacing=1.25)

    def below_top(inches: float) -> Any:
        return sheet.transFigure + ScaledTranslation(0, -inches, sheet.dpi_scale_trans)

    sheet.text(0.012, 1, subtitle, fontsize=9, color=GREY, va="center", transform=below_top(0.44))
    if stamp:
        sheet.text(
            0.988,
            1,
            stamp,
            ha="right",
            va="center",
            fontsize=10,
            fontweight="bold",
            color=ALERT,
            transform=below_top(0.19),
            bbox={"boxstyle": "round,pad=0.3", "facecolor": "#FDF1F0", "edgecolor": ALERT},
        )
    panels = sheet.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(labelsize=9, color=GREY, labelcolor=INK)
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return sheet, panels


def length_axis(axes: Axes, values: Sequence[float], label: str = "Sequence length (tokens; 1K = 1,024)") -> None:
    """A base-2 log axis whose ticks read 1K, 4K, …, 1M."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    known = [value for value in values if math.isfinite(value) and value > 0] or [1024.0]
    low, high = math.floor(math.log2(min(known)) + 1e-9), math.ceil(math.log2(max(known)) - 1e-9)
    step = 1 if high - low <= 10 else 2
    start = low + (low % 2 if step == 2 else 0)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(known) / 2**0.4, max(known) * 2**0.4)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(start, high + 1, step)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.length(value)))
    axes.set_xlabel(label, fontsize=10, color=INK)


def value_axis(axes: Axes, label: str, form: str, values: Sequence[float]) -> None:
    """A log axis of times, bytes or ratios, with the unit on each tick and limits that hold every value."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    known = [value for value in values if math.isfinite(value) and value > 0]
    base = 2 if form == "bytes" else 10
    axes.set_yscale("log", base=base)
    forms = {
        "bytes": style.num_bytes,
        "ms": style.tick_milliseconds,
        "ratio": style.times,
        "rate": style.rate,
        "share": style.share,
    }
    show = forms[form]
    if known:
        low, high = min(known) / 1.4, max(known) * 1.4
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high, base)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.set_ylabel(label, fontsize=10, color=INK)


def _ticks(low: float, high: float, base: int) -> list[float]:
    """At most about eight powers of the base; where fewer than three fit, ones between them."""
    powers = list(range(math.ceil(math.log(low, base)), math.floor(math.log(high, base)) + 1))
    stride = max(1, math.ceil(len(powers) / 8))
    ticks = [float(base) ** power for power in powers if power % stride == 0]
    if len(ticks) < 3:
        parts = (1, 2, 5) if base == 10 else (1, 1.25, 1.5, 1.75)
        start, stop = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
        ticks = [part * float(base) ** power for power in range(start, stop + 1) for part in parts]
    return [tick for tick in ticks if low <= tick <= high] or [float(f"{math.sqrt(low * high):.2g}")]


def draw_curves(axes: Axes, data: pd.DataFrame, styles: Styles, x: str = "seq_len") -> None:
    """Measured: line, markers and band. Predicted: dashed with hollow markers. Seeds: small dots.

    Each curve is thinner than the one under it, so that curves that coincide are all seen.
    """
    count = data["model"].nunique()
    for order, (model, rows) in enumerate(data.groupby("model", sort=True)):
        look, weight = styles[str(model)], 1.0 - order / max(count, 2)
        measured = rows[rows["mark"] == "measured"].sort_values(x)
        predicted = rows[rows["mark"] == "predicted"].sort_values(x)
        dots = rows[rows["mark"] == "seed"]
        if measured["low"].notna().any():
            axes.fill_between(measured[x], measured["low"], measured["high"], color=look.color, alpha=0.13, linewidth=0)
            lone = measured[_stands_alone(measured["low"].notna())]
            if len(lone):
                axes.vlines(lone[x], lone["low"], lone["high"], color=look.color, alpha=0.35, linewidth=3)
        axes.plot(
            measured[x],
            measured["value"],
            color=look.color,
            marker=look.marker,
            linestyle=look.line,
            markersize=4.5 + 2.5 * weight,
            linewidth=1.5 + 1.2 * weight,
        )
        axes.scatter(
            dots[x],
            dots["value"],
            facecolor="none",
            edgecolor=look.color,
            marker=look.marker,
            s=10 + 16 * weight,
            linewidth=0.9,
        )
        line = predicted
        if len(measured) and len(predicted) and measured[x].max() < predicted[x].min():
            line = pd.concat([measured.tail(1), predicted])  # the dashes continue the measured curve
        axes.plot(line[x], line["value"], color=look.color, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.plot(
            predicted[x],
            predicted["value"],
            color=look.color,
            marker=look.marker,
            markersize=5,
            linestyle="",
            markerfacecolor="white",
        )


def _stands_alone(has_band: pd.Series) -> pd.Series:
    """Where a band would be of no width, since neither neighbour has one, though others have."""
    beside = has_band.shift(1, fill_value=False) | has_band.shift(-1, fill_value=False)
    return has_band & ~beside


def draw_flags(axes: Axes, data: pd.DataFrame, x: str = "seq_len") -> list[Any]:
    """Rings around launch-bound points, dots in those of few samples or examples; returns their part of the legend."""
    from matplotlib.lines import Line2D

    handles = []
    for mark, (size, face, label) in (FLAGS | SCORE_FLAGS).items():
        rows = data[data["mark"] == mark]
        if rows.empty:
            continue
        looks: dict[str, Any] = {"marker": "o", "markersize": size, "markerfacecolor": face, "markeredgewidth": 0.9}
        axes.plot(rows[x], rows["value"], linestyle="", color=INK, zorder=4, **looks)
        handles.append(Line2D([], [], linestyle="", color=INK, label=label, **looks))
    return handles


def draw_published(
    axes: Axes, data: pd.DataFrame, x: str = "seq_len", markersize: float = 4, zorder: float = 1.5
) -> list[Any]:
    """Published curves, thin and grey with hollow markers; returns what the legend says of them."""
    from matplotlib.lines import Line2D

    handles = []
    curves = data[data["mark"] == "published"].groupby("note", sort=True)
    for note, rows in curves:
        looks: dict[str, Any] = {
            "color": PUBLISHED,
            "marker": next((sign for word, sign in PUBLISHED_MARKERS.items() if word in str(note)), "D"),
            "markerfacecolor": "white",
            "markersize": markersize,
            "linewidth": 0.9,
        }
        axes.plot(rows.sort_values(x)[x], rows.sort_values(x)["value"], zorder=zorder, **looks)
        handles.append(Line2D([], [], label=str(note), **looks))
    return handles


def draw_rail(axes: Axes, data: pd.DataFrame, styles: Styles, x: str = "seq_len") -> None:
    """A strip above the axes with one line a model: a marker where a trial has no figure, by its status."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    failed = data[data["mark"] == "failed"]
    models = sorted(failed["model"].unique())
    if not models:
        return
    # Measured in inches above the panel: a share of the panel's height would not settle while the sheet is laid out.
    sheet = axes.get_figure(root=True)
    assert sheet is not None
    inches = sheet.dpi_scale_trans + ScaledTranslation(0, 1, axes.transAxes)  # type: ignore[arg-type]
    rail = axes.inset_axes(
        (0, 0.07, 1, RAIL_LINE_IN * len(models) + 0.06),
        transform=blended_transform_factory(axes.transAxes, inches),
    )
    rail.set_xscale("log", base=2)
    rail.set_xlim(axes.get_xlim())
    rail.set_ylim(len(models) - 0.5, -0.5)
    rail.set_facecolor("#F6F4F1")
    rail.spines[:].set_visible(False)
    rail.tick_params(bottom=False, labelbottom=False, left=False, which="both", labelsize=8, pad=3)
    rail.set_yticks(range(len(models)), [str(model) for model in models])
    for line, (model, label) in enumerate(zip(models, rail.get_yticklabels(), strict=True)):
        label.set_color(styles[model].color)
        for status, rows in failed[failed["model"] == model].groupby("status"):
            color, sign = styles[model].color, style.STATUSES.get(str(status), "*")
            glyph = sign.startswith("$")  # a character is as small as its ink, and an outline would blur it
            rail.scatter(
                rows[x],
                [line] * len(rows),
                marker=sign,
                s=64 if glyph else 36,
                facecolor="white" if status in style.HOLLOW else color,
                edgecolor=color,
                linewidth=0 if glyph else 1.1,
                clip_on=False,
                zorder=3,
            )


def add_legend(
    sheet: Figure,
    data: pd.DataFrame,
    styles: Styles,
    labels: Mapping[str, str],
    extra: Sequence[Any] = (),
    last: Sequence[Any] = (),
) -> None:
    """One legend below the panels: models with their figures, then what the marks mean, then the last."""
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    present = sorted(data["model"].dropna().unique())
    curves = data[data["mark"].isin(["measured", "predicted", "loss", "accuracy"])]
    handles = [
        Line2D(
            [],
            [],
            color=styles[model].color,
            marker=styles[model].marker,
            markersize=5,
            linewidth=1.8,
            linestyle=styles[model].line if model in set(curves["model"]) else "",
            label=labels.get(model, model),
        )
        for model in present
    ] + list(extra)
    if (data["mark"] == "predicted").any():
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker="o",
                markerfacecolor="white",
                markersize=5,
                linewidth=1.2,
                linestyle=(0, (4, 3)),
                label="predicted, not measured (dashed, hollow)",
            )
        )
    for status in [s for s in style.STATUSES if s in set(data.loc[data["mark"] == "failed", "status"])]:
        sign = style.STATUSES[status]
        glyph = sign.startswith("$")
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker=sign,
                markersize=8 if glyph else 6,
                linestyle="",
                markeredgewidth=0 if glyph else 1,
                label=f"{status} (no figure)",
                markerfacecolor="white" if status in style.HOLLOW else GREY,
            )
        )
    handles += last
    size = 9 if len(handles) <= MANY_LABELS else 8
    columns = _columns([str(handle.get_label()) for handle in handles], size)
    sheet.legend(
        handles=handles,
        loc="outside lower left",
        ncols=columns,
        fontsize=size,
        frameon=False,
        handlelength=2.4,
        columnspacing=1.6,
        labelcolor=INK,
    )
    rail_lines = data.loc[data["mark"] == "failed", "model"].nunique()
    width, height = sheet.get_size_inches()
    lines = -(-len(handles) // columns)
    sheet.set_size_inches(width, height + lines * LEGEND_LINE_IN + rail_lines * RAIL_LINE_IN)
    for text in sheet.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # a name is text, also where it holds dollar signs


def _columns(labels: Sequence[str], font_size: float = 9) -> int:
    """The most columns in which these labels fit the width; they are filled downwards, as evenly as can be."""
    for count in range(min(5, len(labels)), 1, -1):
        size, more = divmod(len(labels), count)
        stops = [size * (index + 1) + min(index + 1, more) for index in range(count)]
        parts = [labels[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
        # A character of 9 pt text is up to 0.067 in wide, less on average in a long label; a handle and the space
        # around it take 0.75 in.
        wide = 0.067 if font_size == 9 else 0.0575
        if sum(max(map(len, part)) * wide + 0.75 for part in parts) <= WIDTH_IN - 0.2:
            return count
    return 1


def nothing_measured(axes: Axes) -> None:
    """Says in the panel that it is empty on purpose."""
    axes.text(
        0.5,
        0.5,
        "nothing measured here; the rail above says why",
        transform=axes.transAxes,
        ha="center",
        color=GREY,
        fontsize=10,
        bbox={"facecolor": "white", "edgecolor": "none"},
    )
    axes.set_yticks([])
