"""What a longer context is worth: models that were trained at several lengths, each scored at its own.

The published curves (results/reference/dna.csv, audio.csv) were measured on other data. Bits are therefore compared as
the change since the shortest length, and a published accuracy of a task alike in its number of classes stands behind
the measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
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
    draw_published,
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
)
from reports.frames import TRAINING_GROUP
from reports.quality import UNITS, is_probe, task_title

FOLDER = Path(__file__).parent.parent / "results" / "reference"
SOURCE = "Gu and Dao, arXiv 2312.00752v2"
# task -> file, parameters of the models, which claims, how a value is read, and what the published data are.
PUBLISHED: dict[str, tuple[str, str, str, Callable[[float], float], str]] = {
    "dna": ("dna", "1.4M", "M1-fig5R-", math.log2, "Fig 5 right, digitised; HG38"),
    "species": ("dna", "1.4M", "M1-T13-", lambda percent: percent / 100, "Table 13; five great apes"),
    "audio": ("audio", "~3.5M", "M1-fig7-", float, "Fig 7, digitised; YouTubeMix"),
}
CONTEXT_GROUP = [column for column in TRAINING_GROUP if column not in ("train_len", "batch")]
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, 97.5 % quantile, of 2 to 10 seeds; more seeds take the last, which is wide for them."""
SEEDS = "Lines are means over seeds, hollow marks the seeds, bands Student's 95 % intervals over seeds"


def context_jobs(scores: pd.DataFrame, styles: Styles) -> Iterator[Callable[[], Drawing]]:
    """What draws a figure for every group of trials that differ in the training length."""
    own = scores[scores["scored_len"] == scores["train_len"]]
    for _, rows in own.groupby(CONTEXT_GROUP, dropna=False):
        if rows["train_len"].nunique() > 1:
            yield partial(context_figure, rows, styles)


def is_swept(rows: pd.DataFrame, scores: pd.DataFrame) -> bool:
    """Whether a group of one training length is part of a sweep of them, which has a figure of its own."""
    about, alike = rows.iloc[0], pd.Series(True, index=scores.index)
    for column in CONTEXT_GROUP:
        alike &= scores[column].isna() if pd.isna(about[column]) else scores[column] == about[column]
    return scores.loc[alike, "train_len"].nunique() > 1


def context_figure(own: pd.DataFrame, styles: Styles | None = None) -> Drawing:
    """Figures of one group's trials at their own training lengths, against that length."""
    styles = styles or style.model_styles(own["model"])
    about, accuracy = own.iloc[0], is_probe(own)
    metric = "accuracy" if accuracy else "bits_per_token"
    levels = _levels(own, metric)
    published = published_points(str(about["task"]))
    title = f"{task_title(str(about['task']))}: what a longer context is worth"
    parts = [about["source"] and f"data: {about['source']}", about["dtype"], about["section"], about["variant"]]
    stamp = style.STAMP if own["embedded"].any() else ""
    sheet, panels = new_figure(title, " · ".join(str(part) for part in parts if part), stamp, 1, 1 if accuracy else 2)
    if accuracy:
        data = _with_published(levels, published).assign(panel="accuracy")
        frames = [data]
    else:
        changes = _with_published(_changes(own, metric), _changes_of(published))
        frames = [levels.assign(panel="bits"), changes.assign(panel="change")]
        data = pd.concat(frames, ignore_index=True)
    handles = []
    for axes, frame in zip(panels, frames, strict=True):
        length_axis(axes, data["seq_len"].tolist(), "Context trained and scored at (1K = 1,024)")
        axes.tick_params(axis="x", labelsize=9 if accuracy else 7.5)
        handles += draw_published(axes, frame)
        draw_curves(axes, frame[frame["mark"] != "published"], styles)
        draw_rail(axes, frame, styles)
        if not accuracy:
            axes.set_ylim(*_limits(frame))
    if not (levels["mark"] == "measured").any():
        nothing_measured(panels[0])
    handles += _dress(panels, own, accuracy)
    add_legend(sheet, data, styles, {}, handles)
    shown = "Accuracy" if accuracy else f"Bits per {UNITS.get(str(about['task']), 'token')}"
    caption = f"{shown} of models that were trained at each length with the same number of steps, scored there. "
    if not accuracy:
        caption += "Right: the change since the model's own shortest length, of each seed; lower is better. "
    caption += f"{SEEDS}; of a model with one seed alone, the 95 % interval over windows, and none of a change."
    if not accuracy:
        caption += " A wide band runs off its panel."
    if published:
        caption += (
            f" Grey: published ({SOURCE}, {PUBLISHED[str(about['task'])][-1]}), other data: compare the shape, not the "
            "level."
        )
    caption = f"{style.STAMP}: the project's own stand-in. {caption}" if stamp else caption
    return Drawing(name=f"context-{about['task']}", title=title, caption=caption, figure=sheet, data=data)


def _limits(frame: pd.DataFrame) -> tuple[float, float]:
    """Of an axis, by its marks: of two seeds Student's band is so wide that it would flatten every line."""
    single = frame[frame["n"] == 1]
    values = pd.concat([frame["value"], single["low"], single["high"]]).dropna()
    if values.empty:
        return 0.0, 1.0
    around = 0.12 * (values.max() - values.min()) or 0.1
    return float(values.min()) - around, float(values.max()) + around


def _dress(panels: Sequence[Any], own: pd.DataFrame, accuracy: bool) -> list[Any]:
    """Labels and limits; returns what the legend says of the lines."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    if not accuracy:
        unit = UNITS.get(str(own.iloc[0]["task"]), "token")
        for axes, label in zip(panels, (f"Bits per {unit}", f"Change in bits per {unit}"), strict=True):
            axes.set_ylabel(label, fontsize=10, color=INK)
        panels[1].axhline(0, color=GREY, linewidth=1.1, linestyle=":")
        return []
    panels[0].set_ylabel("Accuracy", fontsize=10, color=INK)
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    chance = own["chance"].dropna()
    if chance.empty:
        return []
    value = float(chance.iloc[0])
    panels[0].axhline(value, color=GREY, linewidth=1.1, linestyle=":")
    return [Line2D([], [], color=GREY, linewidth=1.1, linestyle=":", label=f"chance ({style.percent(value)})")]


def _levels(own: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = Rows()
    good = own[(own["score_status"] == "ok") & own[metric].notna()]
    several = set(good.loc[good.duplicated(["model", "train_len"]), "model"])
    for (model, seq_len), seeds in good.groupby(["model", "train_len"]):
        low, high = seed_interval(seeds[metric].tolist())
        if model not in several:  # else the narrower interval over windows would pass for one over seeds
            low, high = float(seeds[f"{metric}_low"].iloc[0]), float(seeds[f"{metric}_high"].iloc[0])
        _add(rows, str(model), float(seq_len), seeds[metric].tolist(), low, high)  # type: ignore[arg-type]
    for row in own[own["score_status"] != "ok"].to_dict("records"):
        note = f"{row['trial_id'][:8]}: {row['reason'] or row['score_status']}"
        rows.add(row["model"], "failed", row["train_len"], status=row["score_status"], note=note)
    return rows.frame()


def _changes(own: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Each seed's figure less its own at the shortest length at which the model has any."""
    rows = Rows()
    good = own[(own["score_status"] == "ok") & own[metric].notna()]
    for model, mine in good.groupby("model"):
        table = mine.pivot_table(index="seed", columns="train_len", values=metric, dropna=False)
        shortest = table.columns.min()
        for seq_len in table.columns:
            changes = (table[seq_len] - table[shortest]).dropna().tolist()
            if not changes:
                continue
            low, high = (0.0, 0.0) if seq_len == shortest else seed_interval(changes)
            _add(rows, str(model), float(seq_len), changes, low, high)
    return rows.frame()


def _add(rows: Rows, model: str, seq_len: float, values: Sequence[float], low: float, high: float) -> None:
    note = "n is the number of seeds"
    mean = float(np.mean(values))
    rows.add(model, "measured", seq_len, mean, low=low, high=high, n=len(values), status="ok", note=note)
    for value in values if len(values) > 1 else ():
        rows.add(model, "seed", seq_len, value)


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN where there is one value."""
    if len(values) < 2:
        return math.nan, math.nan
    half = T_95[min(len(values) - 2, len(T_95) - 1)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


Points = dict[str, dict[int, float]]
"""Of every published curve, its values by length."""


@cache
def published_points(task: str) -> Points:
    """The paper's curves of about the size that is trained here, in our units; none where the file is not installed."""
    if task not in PUBLISHED:
        return {}
    file, params, prefix, read, data = PUBLISHED[task]
    path = FOLDER / f"{file}.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    mine = table[table["claim_id"].str.startswith(prefix) & (table["params"] == params)]
    points: Points = {}
    for row in mine.to_dict("records"):
        curve = points.setdefault(f"published: {row['model']} {row['params']} ({data.rpartition('; ')[2]})", {})
        curve[int(row["seq_len"])] = read(float(row["value"]))
    return points


def _changes_of(points: Points) -> Points:
    return {name: {x: y - curve[min(curve)] for x, y in curve.items()} for name, curve in points.items()}


def _with_published(frame: pd.DataFrame, points: Points) -> pd.DataFrame:
    rows = Rows()
    for name, curve in points.items():
        for seq_len, value in curve.items():
            rows.add(None, "published", seq_len, value, note=name)
    return pd.concat([frame, rows.frame()], ignore_index=True) if points else frame
