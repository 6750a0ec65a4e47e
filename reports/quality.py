"""What a model gets right as the sequence grows: accuracy, bits per token, bits by position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports import style
from reports.drawing import (
    GREY,
    INK,
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_flags,
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
)
from reports.frames import TRAINING_GROUP

Labels = Mapping[str, str]
"""What a legend says of a model, where that is more than its name."""
PROBES = ("selective_copying", "induction_heads")
CLASSIFIED = ("species", "gue", "vertebrates", "genomic_benchmarks")
"""Data sets that are judged by accuracy, as the probes are."""
UNITS = {"dna": "base", "audio": "sample", "digits": "sample", "speech": "sample", "language": "token"}
TITLES = {"selective_copying": "Selective copying", "induction_heads": "Induction heads", "dna": "DNA", "gue": "GUE"}
BAND = (
    "Lines are means over seeds, hollow marks the seeds; bands reach from the lowest to the highest end of the "
    "seeds' 95 % intervals."
)
FEWEST_UNITS = 3
"""Of an interval that is drawn: Student's t with a single degree of freedom makes of two windows a band of thirteen
times their spread, which reaches below zero bits."""


def task_title(task: str) -> str:
    return TITLES.get(task, str(task).replace("_", " ").capitalize())


def is_probe(scores: pd.DataFrame) -> bool:
    """Whether a group is judged by accuracy; a data set's is by bits per token."""
    if scores["bits_per_token"].notna().any():
        return False
    return bool(scores["accuracy"].notna().any()) or str(scores["task"].iloc[0]) in PROBES + CLASSIFIED


def accuracy_figure(scores: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Accuracy against scored length, with chance and the training length."""
    rows = _length_rows(scores, "accuracy")
    chance = scores["chance"].dropna()
    if len(chance):
        rows.add(None, "chance", value=float(chance.iloc[0]), note="accuracy of a guesser")
    caption = f"Accuracy against length after training at one length (dashed line). {BAND}"
    return _draw_lengths(rows, scores, styles, "accuracy", "accuracy against length", "Accuracy", caption)


def bits_figure(scores: pd.DataFrame, styles: Styles | None = None, labels: Labels | None = None) -> Drawing:
    """Bits per token against scored length: lower is better."""
    rows = _length_rows(scores, "bits_per_token")
    unit = UNITS.get(str(scores["task"].iloc[0]), "token")
    caption = f"Bits per {unit} against the length of the context it is scored on; lower is better. {BAND}"
    what = f"bits per {unit} against length"
    return _draw_lengths(rows, scores, styles, "bits", what, f"Bits per {unit}", caption, labels)


def positions_figure(
    positions: pd.DataFrame, styles: Styles | None = None, labels: Labels | None = None
) -> Drawing | None:
    """Bits per token by position in the context, at the longest length that was scored; None where there is none."""
    if positions.empty:
        return None
    about, styles = _one_group(positions), styles or style.model_styles(positions["model"])
    longest = float(positions["scored_len"].max())
    rows = Rows(x="position")
    for (model, start, stop), bins in positions[positions["scored_len"] == longest].groupby(["model", "start", "stop"]):
        # A mean over seeds is as uncertain as its least known.
        known = bins["n"].isna().any() or bins["n"].min() >= FEWEST_UNITS
        where = float(np.sqrt(max(float(start), 1.0) * float(stop)))  # type: ignore[arg-type]
        rows.add(
            str(model),
            "measured",
            where,
            bins["value"].mean(),
            low=bins["low"].min() if known else np.nan,
            high=bins["high"].max() if known else np.nan,
            n=len(bins),
            status="ok",
            note=f"positions {start:.0f} to {stop:.0f}",
        )
        if len(bins) > 1:
            for value in bins["value"]:
                rows.add(str(model), "seed", where, value)
    data = rows.frame()
    title = f"{task_title(str(about['task']))}: bits by position in a context of {style.length(longest)}"
    sheet, (axes,) = new_figure(title, _subtitle(about), stamp_of(positions))
    unit = UNITS.get(str(about["task"]), "token")
    length_axis(axes, data["position"].tolist(), f"Position in the context ({unit}s; 1K = 1,024)")
    axes.set_ylabel(f"Bits per {unit}", fontsize=10, color=INK)
    draw_curves(axes, data, styles, "position")
    add_legend(sheet, data, styles, labels or {})
    absent = sorted(set(positions["model"]) - set(data["model"]))
    caption = (
        f"Bits per {unit} by position, at the longest scored length ({style.length(longest)}); a point stands at "
        f"the geometric middle of its bin; lower is better. {BAND} Where a bin holds fewer than {FEWEST_UNITS} "
        "windows there is none."
    )
    caption += f" Not scored at this length: {', '.join(absent)}." if absent else ""
    return Drawing(
        name=f"positions-{about['task']}", title=title, caption=stamped(caption, positions), figure=sheet, data=data
    )


def _length_rows(scores: pd.DataFrame, metric: str) -> Rows:
    rows = Rows()
    good = scores[(scores["score_status"] == "ok") & scores[metric].notna()]
    for (model, seq_len), seeds in good.groupby(["model", "scored_len"]):
        where = float(seq_len)  # type: ignore[arg-type]
        rows.add(
            str(model),
            "measured",
            where,
            seeds[metric].mean(),
            low=seeds[f"{metric}_low"].min(),
            high=seeds[f"{metric}_high"].max(),
            n=len(seeds),
            status="ok",
            note="n is the number of seeds",
        )
        if len(seeds) > 1:
            for value in seeds[metric]:
                rows.add(str(model), "seed", where, value)
        # Of generated tasks: of the others there may be no more examples.
        if seeds["few_examples"].any() and seeds["task"].iloc[0] in PROBES:
            rows.add(str(model), "few_examples", where, seeds[metric].mean(), note="of one of the seeds at least")
    for row in scores[scores["score_status"] != "ok"].to_dict("records"):
        rows.add(
            row["model"],
            "failed",
            row["scored_len"],
            status=row["score_status"],
            note=f"{row['trial_id'][:8]}: {row['reason'] or row['score_status']}",
        )
    rows.add(None, "train_len", float(scores["train_len"].iloc[0]), note="training length")
    return rows


def _draw_lengths(
    rows: Rows,
    scores: pd.DataFrame,
    styles: Styles | None,
    metric: str,
    what: str,
    label: str,
    caption: str,
    labels: Labels | None = None,
) -> Drawing:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    about, styles = _one_group(scores), styles or style.model_styles(scores["model"])
    data = rows.frame()
    title = f"{task_title(str(about['task']))}: {what}"
    sheet, (axes,) = new_figure(title, _subtitle(about), stamp_of(scores))
    length_axis(axes, data["seq_len"].tolist())
    axes.set_ylabel(label, fontsize=10, color=INK)
    if metric == "accuracy":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    extra = []
    for row in data[data["mark"] == "train_len"].to_dict("records"):
        axes.axvline(row["seq_len"], color=INK, linewidth=1.1, linestyle="--")
        extra.append(
            Line2D(
                [],
                [],
                color=INK,
                linewidth=1.1,
                linestyle="--",
                label=f"training length ({style.length(row['seq_len'])})",
            )
        )
    for row in data[data["mark"] == "chance"].to_dict("records"):
        axes.axhline(row["value"], color=GREY, linewidth=1.1, linestyle=":")
        extra.append(
            Line2D([], [], color=GREY, linewidth=1.1, linestyle=":", label=f"chance ({style.percent(row['value'])})")
        )
    draw_curves(axes, data, styles)
    extra += draw_flags(axes, data)
    if not (data["mark"] == "measured").any():
        nothing_measured(axes)
    draw_rail(axes, data, styles)
    add_legend(sheet, data, styles, labels or {}, extra)
    return Drawing(
        name=f"{metric}-{about['task']}", title=title, caption=stamped(caption, scores), figure=sheet, data=data
    )


def _one_group(frame: pd.DataFrame) -> dict[str, Any]:
    groups = frame[TRAINING_GROUP].drop_duplicates().to_dict("records")
    if len(groups) != 1:
        raise ValueError(f"a figure shows one group of comparable trials, not {len(groups)}: group by {TRAINING_GROUP}")
    return {str(key): value for key, value in groups[0].items()}


def _subtitle(about: Mapping[str, Any]) -> str:
    source = about["source"] if isinstance(about["source"], str) else None
    parts = [
        f"trained at {style.length(about['train_len'])}",
        f"data: {source}" if source else None,
        about["dtype"],
        about["section"],
        about["variant"],
    ]
    return " · ".join(str(part) for part in parts if part)


def is_embedded(frame: pd.DataFrame) -> bool:
    return bool(frame["embedded"].any())


def stamp_of(frame: pd.DataFrame) -> str:
    """What a figure of these trials is stamped with, if any are on embedded data."""
    if not is_embedded(frame):
        return ""
    return style.STAMP if frame["embedded"].all() else f"CONTAINS {style.STAMP}"


def stamped(caption: str, frame: pd.DataFrame) -> str:
    return (
        f"{style.STAMP}: the project's own stand-in, not the published data set. {caption}"
        if is_embedded(frame)
        else caption
    )
