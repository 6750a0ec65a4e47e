"""Classified DNA as a figure: Matthews correlation of each model, start and rate, a panel a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reports import style
from reports.classification_rows import (
    TITLES,
    Place,
    choices_of,
    place_of,
    scored_at_training_length,
    way_order,
    why_not,
)
from reports.drawing import AROUND_IN, GREY, INK, WIDTH_IN, Drawing, Rows, Styles, add_legend, new_figure
from reports.quality import stamp_of, stamped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_IN, PANEL_IN = 0.36, 0.7
"""The height of a line, and what a panel takes beside its lines."""
COLUMNS = 4
TITLE = "Classified DNA: Matthews correlation on the test split"
MEAN, SEED = "mean", "seed"


def classification_jobs(training: pd.DataFrame) -> Iterator[Callable[[], Drawing]]:
    """What draws the tasks that classify whole sequences; nothing where no trial of them has a score."""
    trials = training[training["task"].isin(TITLES)]
    if any(scored_at_training_length(trial) for trial in trials.to_dict("records")):
        yield partial(classification_figure, trials)


def classifies(scores: pd.DataFrame) -> bool:
    """Whether all of these scores are among what :func:`classification_jobs` draws."""
    return bool(scores["task"].isin(TITLES).all())


def classification_figure(trials: pd.DataFrame) -> Drawing:
    """A panel a data set and protocol, a line a model, start, rate and kind of answers, alike in all panels."""
    places = {index: place_of(trial) for index, trial in trials.to_dict("index").items()}
    lines = sorted({_line(place) for place in places.values()}, key=lambda line: (line.model, way_order(line)))
    panels = _panels(trials, places)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet, axes = new_figure(TITLE, str(trials["section"].iloc[0]), stamp_of(trials), rows, columns)
    sheet.set_size_inches(WIDTH_IN, rows * (len(lines) * LINE_IN + PANEL_IN) + AROUND_IN)
    styles, drawn = style.model_styles(trials["model"]), []
    for number, (axis, (title, mine)) in enumerate(zip(axes, panels, strict=False)):
        data = _rows(mine, [_line(places[index]) for index in mine.index], lines)
        _draw(axis, data, styles)
        axis.set_title(title, loc="left", fontsize=8, color=INK)
        axis.set_yticks(range(len(lines)), [_words(line) for line in lines] if number % columns == 0 else [])
        axis.tick_params(axis="y", labelsize=7)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        if number + columns >= len(panels):
            axis.set_xlabel("Matthews correlation", fontsize=9, color=INK)
        drawn.append(data.assign(note=title.replace("\n", ", ") + ": " + data["note"]))
    for axis in axes[len(panels) :]:
        axis.remove()
    every = pd.concat(drawn, ignore_index=True).drop(columns="line")
    low = min(0.0, float(every["value"].min()))
    for axis in axes[: len(panels)]:
        axis.set_xlim(low - 0.05, 1.05)
        axis.set_xticks([0, 0.5, 1])
    add_legend(sheet, every, styles, {}, _handles(every))
    return Drawing(
        name="classification", title=TITLE, figure=sheet, data=every,
        caption=stamped(
            "1 is all right, 0 (dotted) no better than chance. A line a model, its start, its learning rate and which "
            "tokens may answer. Filled: the mean over seeds, or one seed with the bootstrap's 95 % interval over "
            "items; hollow: each of several seeds. The spread over seeds says nothing of other items.",
            trials,
        ),
    )  # fmt: skip


def _panels(trials: pd.DataFrame, places: dict[Any, Place]) -> list[tuple[str, pd.DataFrame]]:
    """A title and the trials of each data set, length and protocol."""
    keys = pd.Series(
        [
            (str(trial["task"]), places[index].dataset, places[index].seq_len, choices_of(trial))
            for index, trial in trials.to_dict("index").items()
        ],
        index=trials.index,
    )
    panels = []
    for key in sorted(set(keys)):
        task, dataset, seq_len, choices = key
        about = f"{style.length(seq_len)} bases, {choices.partition(', ')[0]}"
        whole = dataset == style.NONE
        title = f"{TITLES[task].partition(' from')[0]}\n{about}" if whole else f"{dataset}\n{TITLES[task]}, {about}"
        panels.append((title, trials[keys == key]))
    return panels


def _line(place: Place) -> Place:
    """What a line is of in every panel."""
    return place._replace(dataset="", seq_len=0.0)


def _words(line: Place) -> str:
    return f"{line.model}, {line.start}\n{style.figure(line.rate)}, {line.answers}"


def _rows(trials: pd.DataFrame, own: Sequence[Place], lines: Sequence[Place]) -> pd.DataFrame:
    """What a panel shows; ``line`` is the place from above."""
    rows, at = Rows(x="line"), pd.Series(lines.index(line) for line in own)
    for number, line in enumerate(lines):
        mine, note = trials[(at == number).to_numpy()], ", ".join(_words(line).splitlines())
        found = [figures["mcc"] for trial in mine.to_dict("records") if (figures := scored_at_training_length(trial))]
        values = [figure["mcc"] for figure in found]
        if len(values) == 1:
            ends = {"low": found[0]["mcc_low"], "high": found[0]["mcc_high"]}
            rows.add(line.model, MEAN, number, values[0], **ends, n=1, status="ok", note=note)
        elif values:
            rows.add(line.model, MEAN, number, float(np.mean(values)), n=len(values), status="ok", note=note)
            for value in values:
                rows.add(line.model, SEED, number, value, n=1, status="ok", note=note)
        elif len(mine):
            rows.add(line.model, "failed", number, status=why_not(mine).partition(",")[0], note=note)
    return rows.frame()


def _draw(axis: Axes, data: pd.DataFrame, styles: Styles) -> None:
    axis.axvline(0, color=GREY, linewidth=0.9, linestyle=":")
    for mark in data.to_dict("records"):
        look, line = styles[mark["model"]], mark["line"]
        if mark["mark"] == "failed":
            axis.text(0.05, line, mark["status"], va="center", fontsize=7, color=GREY)
        elif mark["mark"] == SEED:
            axis.plot(mark["value"], line, look.marker, color=look.color, markerfacecolor="none", markersize=5)
        else:
            if np.isfinite(mark["low"]):
                axis.plot([mark["low"], mark["high"]], [line, line], color=look.color, linewidth=1.8)
            axis.plot(mark["value"], line, look.marker, color=look.color, markersize=6)


def _handles(every: pd.DataFrame) -> list[Any]:
    from matplotlib.lines import Line2D

    if not (every["mark"] == SEED).any():
        return []
    point: dict[str, Any] = {"linestyle": "", "color": GREY, "marker": "o", "markersize": 5}
    return [Line2D([], [], label="a seed (hollow)", markerfacecolor="none", **point)]
