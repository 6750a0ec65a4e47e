"""What length costs: time, peak memory and speedup over attention against sequence length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pandas as pd

from reports import fits, style
from reports.drawing import (
    GREY,
    INK,
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
    value_axis,
)
from reports.frames import SPEED_GROUP

ATTENTION = "transformer"


def curves(frame: pd.DataFrame) -> dict[str, dict[float, tuple[float, ...]]]:
    """model -> length -> latency samples of all seeds, of the trials that ended well."""
    found: dict[str, dict[float, tuple[float, ...]]] = {}
    for row in frame[frame["status"] == "ok"].to_dict("records"):
        if row["latency_ms"]:
            lengths = found.setdefault(row["model"], {})
            lengths[row["seq_len"]] = lengths.get(row["seq_len"], ()) + row["latency_ms"]
    return found


def memory_points(frame: pd.DataFrame) -> dict[str, dict[float, float]]:
    """model -> length -> peak bytes, the largest of the seeds'."""
    known = frame[(frame["status"] == "ok") & frame["memory_bytes"].notna()]
    found: dict[str, dict[float, float]] = {}
    for row in known.to_dict("records"):
        lengths = found.setdefault(row["model"], {})
        lengths[row["seq_len"]] = max(row["memory_bytes"], lengths.get(row["seq_len"], 0.0))
    return found


def attention_for(model: str, models: list[str]) -> str | None:
    """The attention model that a model is compared with: the one of its size, else the only one."""
    attention = [name for name in models if style.family(name) == ATTENTION]
    if style.family(model) == ATTENTION:
        return None
    same = [name for name in attention if style.size(name) == style.size(model)]
    return same[0] if same else attention[0] if len(attention) == 1 else None


def crossovers(frame: pd.DataFrame) -> list[tuple[str, str, fits.Crossover]]:
    """(attention, model, crossover) of each model that shares at least two lengths with its attention model."""
    by_model = curves(frame)
    found = []
    for model in sorted(by_model):
        reference = attention_for(model, sorted(by_model))
        if reference and (cross := fits.crossover(by_model[reference], by_model[model], (reference, model))):
            found.append((reference, model, cross))
    return found


def crossover_text(cross: fits.Crossover, reference: str, model: str) -> str:
    """In words; with its interval, or who is always faster."""
    if cross.length is None:
        other = model if cross.after == reference else reference
        return (
            f"{cross.after} faster than {other} at every shared length "
            f"({style.length(cross.start)}..{style.length(cross.stop)})"
        )
    return (
        f"{cross.after} faster than {cross.before} from {style.length(cross.length)} "
        f"{style.span(cross.low, cross.high)}"
    )


def time_figure(frame: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Median time of a call against length, with slopes, crossovers, predictions and failures."""
    about, styles = _one_group(frame), styles or style.model_styles(frame["model"])
    rows, labels = Rows(), {}
    by_model = curves(frame)
    for model, lengths in by_model.items():
        for seq_len, latency in sorted(lengths.items()):
            low, middle, high = pd.Series(latency).quantile([0.25, 0.5, 0.75])
            rows.add(model, "measured", seq_len, middle, low=low, high=high, n=len(latency), status="ok")
        labels[model] = _with_slope(rows, model, fits.fit_slope(fits.medians(lengths)))
    _add_unmeasured(rows, frame, by_model, "predicted_latency_ms")
    notes = []
    for reference, model, cross in crossovers(frame):
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
    caption = (
        f"Median time of one call; bands are the quartiles of the samples. Slopes: {fits.SLOPE_RULE}. "
        "Crossovers (dotted) are interpolated between medians in log-log; the shaded span is the 95 % bootstrap "
        "interval over each length's samples."
    ) + "".join(f" {note[0].upper()}{note[1:]}." for note in notes)
    return _draw(rows, styles, labels, about, "time", "Time against length", "Median time per call", "ms", caption)


def memory_figure(frame: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Peak memory against length, measured and predicted."""
    about, styles = _one_group(frame), styles or style.model_styles(frame["model"])
    basis = str(frame["memory_basis"].iloc[0])
    rows, labels = Rows(), {}
    by_model = memory_points(frame)
    for model, lengths in by_model.items():
        for seq_len, value in sorted(lengths.items()):
            rows.add(model, "measured", seq_len, value, status="ok", note=basis)
        labels[model] = _with_slope(rows, model, fits.fit_slope(lengths))
    _add_unmeasured(rows, frame, by_model, "predicted_peak_bytes")
    caption = (
        f"Peak memory of one call: {basis}. Predictions are made without allocating anything and are drawn, "
        f"dashed and hollow, only where nothing was measured. Slopes: {fits.SLOPE_RULE}."
    )
    label = "Peak memory (allocator)" if basis.startswith("alloc") else "Peak memory (RSS above baseline)"
    return _draw(rows, styles, labels, about, "memory", "Peak memory against length", label, "bytes", caption)


def speedup_figure(frame: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
    """How many times faster than attention each model is, against length; None where attention was not measured."""
    about, styles = _one_group(frame), styles or style.model_styles(frame["model"])
    rows, labels = Rows(), {}
    by_model = curves(frame)
    for model in sorted(by_model):
        reference = attention_for(model, sorted(by_model))
        if reference is None:
            continue
        slow, fast = by_model[reference], by_model[model]
        for seq_len in sorted(set(slow) & set(fast)):
            value, low, high = fits.ratio_interval(slow[seq_len], fast[seq_len])
            rows.add(model, "measured", seq_len, value, low=low, high=high, status="ok", note=f"over {reference}")
        mean, count = fits.geometric_mean_speedup(fits.medians(slow), fits.medians(fast))
        if count:
            rows.add(model, "mean", value=mean, n=count, note=f"geometric mean over {count} shared lengths")
            labels[model] = f"{model} · geometric mean {style.figure(mean)}x over {count} lengths"
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
    _add_failures(rows, frame)
    return _draw(
        rows, styles, labels, about, "speedup", "Speedup over attention", "Speedup over attention", "ratio", caption
    )


def _one_group(frame: pd.DataFrame) -> Mapping[str, object]:
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


def _add_unmeasured(
    rows: Rows,
    frame: pd.DataFrame,
    measured: Mapping[str, Mapping[float, object]],
    column: str,
) -> None:
    """Predictions where a model has no figure at a length, and every trial that has none on the rail."""
    for (model, seq_len), value in _predicted(frame, column).items():
        if seq_len not in measured.get(model, {}):
            rows.add(model, "predicted", seq_len, value, note="predicted, not measured")
    _add_failures(rows, frame)


def _predicted(frame: pd.DataFrame, column: str) -> dict[tuple[str, float], float]:
    """(model, length) -> the median of what was predicted."""
    known = frame[frame[column] > 0]
    return {
        (str(rows["model"].iloc[0]), float(rows["seq_len"].iloc[0])): float(rows[column].median())
        for _, rows in known.groupby(["model", "seq_len"])
    }


def _add_failures(rows: Rows, frame: pd.DataFrame) -> None:
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
    measured: Mapping[str, Mapping[float, tuple[float, ...]]],
) -> None:
    """Ratios of which at least one side is a prediction; the other side is measured where it was."""
    predicted = _predicted(frame, "predicted_latency_ms")

    def side(name: str, seq_len: float) -> float:
        known = fits.medians(measured[name])
        return known.get(seq_len, predicted.get((name, seq_len), math.nan))

    for seq_len in sorted(frame["seq_len"].unique()):
        ratio = side(reference, seq_len) / side(model, seq_len)
        both = seq_len in measured[reference] and seq_len in measured[model]
        if math.isfinite(ratio) and not both:
            rows.add(model, "predicted", seq_len, ratio, note="at least one of the two times is predicted")


def _draw(
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
    data = rows.frame()
    what = f"{about['level']}, {about['direction']}"
    batch = style.figure(float(str(about["batch"])))
    subtitle = " · ".join(
        str(part) for part in (about["section"], f"batch {batch}", about["dtype"], about["variant"]) if part
    )
    sheet, (axes,) = new_figure(f"{title}: {what}", subtitle)
    shown = data[data["mark"].isin(["measured", "predicted", "parity"])]
    length_axis(axes, data.loc[data["mark"].isin(["measured", "predicted", "failed"]), "seq_len"].tolist())
    value_axis(axes, label, form, pd.concat([shown["value"], shown["low"], shown["high"]]).tolist())
    extra = _draw_references(axes, data, styles)
    draw_curves(axes, data, styles)
    if shown.empty:
        nothing_measured(axes)
    draw_rail(axes, data, styles)
    add_legend(sheet, data, styles, labels, extra)
    slug = f"{name}-{about['level']}-{about['direction']}"
    return Drawing(name=slug, title=f"{title}: {what}", caption=caption, figure=sheet, data=data)


def _draw_references(axes: object, data: pd.DataFrame, styles: Styles) -> list[object]:
    """The 1x line and the crossovers; returns what the legend says of them."""
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    assert isinstance(axes, Axes)
    handles: list[object] = []
    inside: Callable[[float], float] = lambda x: min(max(x, axes.get_xlim()[0]), axes.get_xlim()[1])  # noqa: E731
    for _ in range(int((data["mark"] == "parity").sum())):
        axes.axhline(1.0, color=INK, linewidth=1.1)
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="1x: as fast as attention"))
    for row in data[(data["mark"] == "crossover") & data["seq_len"].notna()].to_dict("records"):
        color = styles[row["model"]].color if row["model"] in styles else GREY
        axes.axvspan(inside(row["low"]), inside(row["high"]), color=color, alpha=0.13, linewidth=0)
        axes.axvline(row["seq_len"], color=color, linewidth=1.3, linestyle=":")
        handles.append(Line2D([], [], color=color, linewidth=1.3, linestyle=":", label=row["note"]))
    return handles
