"""What length costs: time, peak memory and speedup over attention against sequence length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports import fits, style
from reports.comparisons import (
    BEST,
    Curves,
    best_attention,
    crossover_text,
    crossovers,
    curves,
    memory_points,
    reference_for,
    slope_points,
)
from reports.drawing import (
    GREY,
    INK,
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_flags,
    draw_published,
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
    value_axis,
)
from reports.frames import SPEED_GROUP
from reports.published import PublishedPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Of many curves only these have their crossover drawn; the table holds every pair.
HEADLINES = ("selective_scan", "ssd", "fft_conv", "mamba", "mamba2", "s4d")
MAX_CROSSINGS = 4
# Crossovers' names, in shares of the panel: a row of theirs is 11 pt high or more, where a name of 7 pt takes 9; and
# they point to the right up to where a name of 30 letters would no longer fit.
FLAG_HEIGHT, FLAG_TURN = 0.045, 0.75


def time_figure(
    frame: pd.DataFrame,
    styles: Styles | None = None,
    published: Sequence[PublishedPoint] = (),
    *,
    is_alone: bool = False,
) -> Drawing:
    """Median time of a call against length, with slopes, crossovers, predictions and failures.

    ``is_alone`` says that the frame is of :func:`reports.comparisons.device_alone`.
    """
    about, styles = one_group(frame), styles or style.model_styles(frame["model"])
    rows, labels = Rows(), {}
    by_model = curves(frame)
    for point in published:
        rows.add(None, "published", point.x, point.value, note=point.curve)
    for model, lengths in by_model.items():
        for seq_len, latency in sorted(lengths.items()):
            low, middle, high = pd.Series(latency).quantile([0.25, 0.5, 0.75])
            rows.add(model, "measured", seq_len, middle, low=low, high=high, n=len(latency), status="ok")
        labels[model] = _with_slope(rows, model, fits.fit_slope(slope_points(frame, model)))
    add_unmeasured(rows, frame, by_model, "predicted_latency_ms")
    add_flags(rows, frame)
    notes = []
    for reference, model, cross in _headlines(crossovers(frame)):
        text = crossover_text(cross, reference, model)
        if cross.length is None:
            notes.append(text)
        rows.add(
            model,
            "crossover",
            math.nan if cross.length is None else cross.length,
            low=cross.low,
            high=cross.high,
            note=text,
        )
    what = "Median time of one call"
    what += ", of a short one as CUDA graphs replay it, without the host's time for launching it" if is_alone else ""
    caption = (
        f"{what}; bands are the quartiles of the samples. Slopes: {fits.SLOPE_RULE}. "
        "Crossovers (dotted) are interpolated between medians in log-log; the shaded span is the 95 % bootstrap "
        "interval over each length's samples."
    ) + "".join(f" {note[0].upper()}{note[1:]}." for note in notes)
    if frame["launch_bound"].any():
        caption += " Slopes leave launch-bound points (ringed) out."
    caption += f" {published[0].caption}" if published else ""
    name, title = ("time-device", "The device's time against length") if is_alone else ("time", "Time against length")
    return draw_lengths(rows, styles, labels, about, name, title, "Median time per call", "ms", caption)


def memory_figure(frame: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Peak memory against length, measured and predicted."""
    about, styles = one_group(frame), styles or style.model_styles(frame["model"])
    basis = str(frame["memory_basis"].iloc[0])
    rows, labels = Rows(), {}
    by_model = memory_points(frame)
    for model, lengths in by_model.items():
        for seq_len, value in sorted(lengths.items()):
            rows.add(model, "measured", seq_len, value, status="ok", note=basis)
        labels[model] = _with_slope(rows, model, fits.fit_slope(lengths))
    add_unmeasured(rows, frame, by_model, "predicted_peak_bytes")
    caption = (
        f"Peak memory of one call: {basis}. Predictions are made without allocating anything and are drawn, "
        f"dashed and hollow, only where nothing was measured. Slopes: {fits.SLOPE_RULE}."
    )
    label = "Peak memory (allocator)" if basis.startswith("alloc") else "Peak memory (RSS above baseline)"
    return draw_lengths(rows, styles, labels, about, "memory", "Peak memory against length", label, "bytes", caption)


def speedup_figure(frame: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
    """How many times faster than attention each model is, against length; None where attention was not measured."""
    about, styles = one_group(frame), styles or style.model_styles(frame["model"])
    rows, labels = Rows(), {}
    by_model = curves(frame)
    for model in sorted(by_model):
        compared = reference_for(model, by_model)
        if compared is None:
            continue
        (reference, slow), fast = compared, by_model[model]
        for seq_len in sorted(set(slow) & set(fast)):
            value, low, high = fits.ratio_interval(slow[seq_len], fast[seq_len])
            rows.add(model, "measured", seq_len, value, low=low, high=high, status="ok", note=f"over {reference}")
        mean, count = fits.geometric_mean_speedup(fits.medians(slow), fits.medians(fast))
        if count:
            rows.add(model, "mean", value=mean, n=count, note=f"geometric mean over {count} shared lengths")
            labels[model] = f"{model} · geometric mean {style.figure(mean)}x over {count} lengths"
            if reference != BEST:
                labels[reference] = f"{reference} (what is compared with)"
        _add_predicted_speedup(rows, frame, model, reference, by_model)
    if not rows.rows:
        return None
    rows.add(None, "parity", value=1.0, note="as fast as attention")
    caption = (
        "Median time of attention over the model's, at the same length and in the same environment; above the "
        "line the model is faster. Bands: 95 % bootstrap interval of the ratio of medians. Hollow: attention's "
        "or the model's time is predicted, not measured. The means are geometric, over measured lengths."
    )
    if any(label_of == BEST for label_of in _references(by_model)):
        caption += " Attention is the kernel that is fastest at each length."
    add_failures(rows, frame)
    return draw_lengths(
        rows, styles, labels, about, "speedup", "Speedup over attention", "Speedup over attention", "ratio", caption
    )


def one_group(frame: pd.DataFrame) -> Mapping[str, object]:
    """What a group's trials share. Raises ValueError for trials of several groups."""
    groups = frame[SPEED_GROUP].drop_duplicates().to_dict("records")
    if len(groups) != 1:
        raise ValueError(f"a figure shows one group of comparable trials, not {len(groups)}: group by {SPEED_GROUP}")
    return {str(key): value for key, value in groups[0].items()}


def _with_slope(rows: Rows, model: str, slope: fits.Slope | None) -> str:
    if slope is None:
        return model
    note = f"slope {slope} over {style.length(slope.start)}..{style.length(slope.stop)}"
    rows.add(model, "slope", value=slope.value, low=slope.low, high=slope.high, n=slope.num_points, note=note)
    return f"{model} · {note}"


def _headlines(found: list[tuple[str, str, fits.Crossover]]) -> list[tuple[str, str, fits.Crossover]]:
    if len(found) <= MAX_CROSSINGS:
        return found
    return [item for item in found if item[1] in HEADLINES or style.family(item[1]) in HEADLINES]


def _references(by_model: Curves) -> list[str]:
    return [compared[0] for model in by_model if (compared := reference_for(model, by_model))]


def add_flags(rows: Rows, frame: pd.DataFrame) -> None:
    """Repeats measured points that are launch-bound or rest on few samples under the mark that says so."""
    ok = frame[frame["status"] == "ok"]
    flagged = {
        mark: {(row["model"], row["seq_len"]) for row in ok[ok[mark]].to_dict("records")}
        for mark in ("launch_bound", "few_samples")
    }
    for row in [row for row in rows.rows if row["mark"] == "measured"]:
        for mark, points in flagged.items():
            if (row["model"], row[rows.x]) in points:
                rows.add(row["model"], mark, row[rows.x], row["value"])


def add_unmeasured(
    rows: Rows,
    frame: pd.DataFrame,
    measured: Mapping[str, Mapping[float, object]],
    column: str,
) -> None:
    """Predictions where a model has no figure at a length, and every trial that has none on the rail."""
    for (model, seq_len), value in _predicted(frame, column).items():
        if seq_len not in measured.get(model, {}):
            rows.add(model, "predicted", seq_len, value, note="predicted, not measured")
    add_failures(rows, frame)


def _predicted(frame: pd.DataFrame, column: str) -> dict[tuple[str, float], float]:
    """(model, length) -> the median of what was predicted."""
    known = frame[frame[column] > 0].groupby(["model", "seq_len"])[column].median().reset_index()
    return {(str(row["model"]), float(row["seq_len"])): float(row[column]) for row in known.to_dict("records")}


def add_failures(rows: Rows, frame: pd.DataFrame) -> None:
    """Every trial without a figure, for the rail."""
    for row in frame[frame["status"] != "ok"].to_dict("records"):
        rows.add(
            row["model"],
            "failed",
            row["seq_len"],
            status=row["status"],
            note=f"{row['trial_id'][:8]}: {row['error_message'] or row['status']}",
        )


def _add_predicted_speedup(
    rows: Rows,
    frame: pd.DataFrame,
    model: str,
    reference: str,
    measured: Curves,
) -> None:
    """Ratios of which at least one side is a prediction; the other side is measured where it was."""
    predicted = _predicted(frame, "predicted_latency_ms")

    kernels = [name for name in frame["model"].unique() if name in style.OPERATORS and style.is_attention(name)]
    samples: dict[str, Mapping[float, tuple[float, ...]]] = {**measured, BEST: best_attention(measured)}

    def side(name: str, seq_len: float) -> float:
        known = fits.medians(samples[name])
        guesses = [predicted.get((one, seq_len), math.inf) for one in (kernels if name == BEST else [name])]
        guess = min(guesses, default=math.inf)
        return known.get(seq_len, guess if math.isfinite(guess) else math.nan)

    for seq_len in sorted(frame["seq_len"].unique()):
        ratio = side(reference, seq_len) / side(model, seq_len)
        both = seq_len in samples[reference] and seq_len in samples[model]
        if math.isfinite(ratio) and not both:
            rows.add(model, "predicted", seq_len, ratio, note="at least one of the two times is predicted")


def draw_lengths(
    rows: Rows,
    styles: Styles,
    labels: Mapping[str, str],
    about: Mapping[str, object],
    name: str,
    title: str,
    label: str,
    form: str,
    caption: str,
) -> Drawing:
    """A figure of these rows against length; `form` names the unit of the ticks (drawing.value_axis)."""
    data = rows.frame()
    what = f"{about['level']}, {about['direction']}"
    sheet, (axes,) = new_figure(f"{title}: {what}", subtitle(about))
    shown = data[data["mark"].isin(["measured", "predicted", "parity", "published"])]
    length_axis(axes, data.loc[data["mark"].isin(["measured", "predicted", "failed", "published"]), "seq_len"].tolist())
    value_axis(axes, label, form, pd.concat([shown["value"], shown["low"], shown["high"]]).tolist())
    parity, crossings = _draw_references(axes, data, styles, "100 %" if form == "share" else "1x")
    extra = [*parity, *draw_published(axes, data)]
    draw_curves(axes, data, styles)
    extra += draw_flags(axes, data)
    if not shown["mark"].isin(["measured", "predicted", "parity"]).any():
        nothing_measured(axes)
    draw_rail(axes, data, styles)
    add_legend(sheet, data, styles, labels, extra, crossings)
    words = caption + _marks_text(data, caption)
    return Drawing(name=slug(name, about), title=f"{title}: {what}", caption=words, figure=sheet, data=data)


def _marks_text(data: pd.DataFrame, caption: str) -> str:
    """What hollow marks and the strip above the panel mean, where a figure has them and its caption does not say."""
    words = ""
    if (data["mark"] == "predicted").any() and "hollow" not in caption.lower():
        words += " Dashed and hollow: predicted, not measured."
    if (data["mark"] == "failed").any():
        words += " The strip above the panel: trials without a figure, and how they ended."
    return words


def subtitle(about: Mapping[str, object]) -> str:
    """Where and how a group was measured; the probes' size goes without saying."""
    scale = "" if about["scale"] == "tiny" else about["scale"]
    parts = (about["section"], about["mode"], scale, about["dtype"], about["variant"])
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)


def slug(name: str, about: Mapping[str, object]) -> str:
    """A figure's name: batch 1 and the probes' size go without saying."""
    mode = "" if about["mode"] == "batch 1" else about["mode"]
    scale = "" if about["scale"] == "tiny" else str(about["scale"]).partition(", heads")[0]
    scale = scale.replace(", ", "-").replace(" ", "")
    return "-".join(str(part) for part in (name, about["level"], about["direction"], scale, mode) if part)


def _draw_references(axes: Axes, data: pd.DataFrame, styles: Styles, one: str) -> tuple[list[Line2D], list[Line2D]]:
    """The line at 1 (named `one`) and the crossovers; returns what the legend says of each."""
    from matplotlib.lines import Line2D

    parity: list[Line2D] = []
    for note in data.loc[data["mark"] == "parity", "note"]:
        axes.axhline(1.0, color=INK, linewidth=1.1)
        parity.append(Line2D([], [], color=INK, linewidth=1.1, label=f"{one}: {note}"))
    return parity, _draw_crossovers(axes, data, styles)


def _draw_crossovers(axes: Axes, data: pd.DataFrame, styles: Styles) -> list[Line2D]:
    """A dotted line, its interval and its name for each crossover; returns what the legend says of them.

    Names fly like flags, each in a row of its own so that none meets another: towards the turn, the farthest from it
    highest, so that those on one side of it meet no line either.
    """
    from matplotlib.lines import Line2D

    left, right = axes.get_xlim()
    crossed = data[(data["mark"] == "crossover") & data["seq_len"].notna()]
    offsets = (crossed["seq_len"] / left).map(math.log) / math.log(right / left) - FLAG_TURN
    tops = 1 - FLAG_HEIGHT * offsets.abs().rank(method="first", ascending=False)
    handles = []
    for row, offset, top in zip(crossed.to_dict("records"), offsets, tops, strict=True):
        color = styles[row["model"]].color if row["model"] in styles else GREY
        look: dict[str, Any] = {"color": color, "linewidth": 1.3, "linestyle": ":"}
        axes.axvspan(max(row["low"], left), min(row["high"], right), color=color, alpha=0.13, linewidth=0)
        axes.axvline(row["seq_len"], ymax=top, **look)
        axes.annotate(
            row["model"], (row["seq_len"], top), (3 if offset < 0 else -3, 0), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="left" if offset < 0 else "right", va="top", fontsize=7, color=color,
            parse_math=False,
        )  # fmt: skip
        handles.append(Line2D([], [], label=row["note"], **look))
    return handles
