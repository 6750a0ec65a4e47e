"""What a model gets right as the sequence grows: accuracy, bits per token, bits by position, training loss."""

from __future__ import annotations

import textwrap
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
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
)
from reports.frames import TRAINING_GROUP

PROBES = ("selective_copying", "induction_heads")
CLASSIFIED = ("species", "gue", "vertebrates", "genomic_benchmarks")
"""Data sets that are judged by accuracy, as the probes are."""
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


def bits_figure(scores: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Bits per token against scored length: lower is better."""
    rows = _length_rows(scores, "bits_per_token")
    caption = f"Bits per token against the length of the context it is scored on; lower is better. {BAND}"
    return _draw_lengths(rows, scores, styles, "bits", "bits per token against length", "Bits per token", caption)


def positions_figure(positions: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
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
    sheet, (axes,) = new_figure(title, _subtitle(about), _stamp(positions))
    length_axis(axes, data["position"].tolist(), "Position in the context (tokens; 1K = 1,024)")
    axes.set_ylabel("Bits per token", fontsize=10, color=INK)
    draw_curves(axes, data, styles, "position")
    add_legend(sheet, data, styles, {})
    absent = sorted(set(positions["model"]) - set(data["model"]))
    caption = (
        f"Bits per token by position, at the longest scored length ({style.length(longest)}); a point stands at "
        f"the geometric middle of its bin; lower is better. {BAND} Where a bin holds fewer than {FEWEST_UNITS} "
        "windows there is none."
    )
    caption += f" Not scored at this length: {', '.join(absent)}." if absent else ""
    return Drawing(
        name=f"positions-{about['task']}", title=title, caption=_stamped(caption, positions), figure=sheet, data=data
    )


def losses_figure(losses: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
    """Training loss against step: a panel a task and protocol, a line a seed; None where none was logged."""
    caption = "Training loss as logged, one line a seed, in the unit of the task's own loss."
    return _logged_figure(losses, "loss", "losses", "Training loss", "Loss", caption, styles)


def validation_figure(validation: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
    """Accuracy on the validation split against step, as :func:`losses_figure`; None where none was logged."""
    caption = "Accuracy on the validation split at the training length as training goes on, one line a seed."
    title = "Accuracy on the validation split as training goes on"
    return _logged_figure(validation, "accuracy", "validation", title, "Accuracy", caption, styles)


def _logged_figure(
    logged: pd.DataFrame, column: str, name: str, title: str, label: str, caption: str, styles: Styles | None
) -> Drawing | None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    if logged.empty:
        return None
    styles = styles or style.model_styles(logged["model"])
    groups = [
        (dict(zip(TRAINING_GROUP, key, strict=True)), rows)
        for key, rows in logged.groupby(TRAINING_GROUP, dropna=False)
    ]
    groups.sort(key=lambda group: group[0]["task"] not in PROBES)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    stamp = _stamp(logged) if logged["embedded"].all() else "CONTAINS " + _stamp(logged) if _embedded(logged) else ""
    sheet, panels = new_figure(title, str(groups[0][0]["section"]), stamp, lines, columns)
    drawn = []
    for axes, (about, rows) in zip(panels, groups, strict=False):
        models = sorted(rows["model"].unique())
        for (model, _), line in rows.groupby(["model", "trial_id"]):
            line = line.sort_values("step")
            look = styles[str(model)]
            width = 2.4 - 1.4 * models.index(model) / max(len(models) - 1, 1)  # coincident curves stay visible
            axes.plot(line["step"], line[column], color=look.color, linestyle=look.line, linewidth=width)
        mark = f" · {style.STAMP.lower()}" if _embedded(rows) else ""
        axes.set_title(f"{_panel_title(about, groups)}{mark}", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("Step", fontsize=10, color=INK)
        axes.set_ylabel(label, fontsize=10, color=INK)
        if column == "accuracy":
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        elif (low := float(rows[column].min())) < rows[column].max() / 2:
            axes.set_ylim(bottom=min(0.0, low))  # else the curves would lie flat at the top
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        drawn.append(rows.assign(mark=column, status="ok"))
    for axes in panels[len(groups) :]:
        axes.remove()
    about_run = ["section", "task", "train_len", "source", "variant", "model", "seed", "trial_id"]
    data = pd.concat(drawn)[[*about_run, "mark", "status", "step", column]].reset_index(drop=True)
    add_legend(sheet, data, styles, {})
    return Drawing(name=name, title=title, caption=_stamped(caption, logged), figure=sheet, data=data)


def _panel_title(about: Mapping[str, Any], groups: list[tuple[dict[str, Any], pd.DataFrame]]) -> str:
    """The task and its training length; what else tells it from panels that would read alike."""
    title = f"{task_title(str(about['task']))} at {style.length(about['train_len'])}"
    alike = [other for other, _ in groups if (other["task"], other["train_len"]) == (about["task"], about["train_len"])]
    varied = [key for key in TRAINING_GROUP if len({str(other[key]) for other in alike}) > 1]
    # A panel holds so many characters, and a protocol that differs in much is longer.
    return "\n".join(textwrap.wrap(", ".join([title, *(str(about[key]) for key in varied)]), 60, max_lines=2))


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
    rows: Rows, scores: pd.DataFrame, styles: Styles | None, metric: str, what: str, label: str, caption: str
) -> Drawing:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    about, styles = _one_group(scores), styles or style.model_styles(scores["model"])
    data = rows.frame()
    title = f"{task_title(str(about['task']))}: {what}"
    sheet, (axes,) = new_figure(title, _subtitle(about), _stamp(scores))
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
    if not (data["mark"] == "measured").any():
        nothing_measured(axes)
    draw_rail(axes, data, styles)
    add_legend(sheet, data, styles, {}, extra)
    return Drawing(
        name=f"{metric}-{about['task']}", title=title, caption=_stamped(caption, scores), figure=sheet, data=data
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


def _embedded(frame: pd.DataFrame) -> bool:
    return bool(frame["embedded"].any())


def _stamp(frame: pd.DataFrame) -> str:
    return style.STAMP if _embedded(frame) else ""


def _stamped(caption: str, frame: pd.DataFrame) -> str:
    return (
        f"{style.STAMP}: the project's own stand-in, not the published data set. {caption}"
        if _embedded(frame)
        else caption
    )
