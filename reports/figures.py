"""Every figure of a report, in the order in which it is read, each with a name that is a file name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from reports import style
from reports.drawing import Drawing, Styles
from reports.frames import SPEED_GROUP, TRAINING_GROUP, losses_frame, positions_frame
from reports.quality import accuracy_figure, bits_figure, is_probe, losses_figure, positions_figure
from reports.scaling import memory_figure, speedup_figure, time_figure

__all__ = [
    "accuracy_figure",
    "all_figures",
    "bits_figure",
    "losses_figure",
    "memory_figure",
    "positions_figure",
    "speedup_figure",
    "time_figure",
]


def all_figures(speed: pd.DataFrame, training: pd.DataFrame, scores: pd.DataFrame) -> list[Drawing]:
    """The figures of one section (one environment and device), named without repeats."""
    styles = style.model_styles([*speed["model"].dropna(), *training["model"].dropna()])
    drawings = [*_quality(training, scores, styles), *_scaling(speed, styles)]
    seen: dict[str, int] = {}
    named = []
    for drawing in drawings:
        name = re.sub(r"[^a-z0-9]+", "-", drawing.name.lower()).strip("-")
        seen[name] = seen.get(name, 0) + 1
        named.append(replace(drawing, name=name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named


def _scaling(speed: pd.DataFrame, styles: Styles) -> Iterator[Drawing]:
    for _, rows in speed.groupby(SPEED_GROUP, dropna=False, sort=True):
        yield time_figure(rows, styles)
        yield memory_figure(rows, styles)
        if drawing := speedup_figure(rows, styles):
            yield drawing


def _quality(training: pd.DataFrame, scores: pd.DataFrame, styles: Styles) -> Iterator[Drawing]:
    positions = positions_frame(scores)
    groups = sorted(scores.groupby(TRAINING_GROUP, dropna=False), key=lambda group: not is_probe(group[1]))
    for key, rows in groups:
        yield accuracy_figure(rows, styles) if is_probe(rows) else bits_figure(rows, styles)
        same = pd.Series(True, index=positions.index)
        for column, value in zip(TRAINING_GROUP, key, strict=True):
            # A column without a value (a probe has no source) equals nothing, itself included.
            same &= positions[column].isna() if value != value or value is None else positions[column] == value
        if drawing := positions_figure(positions[same], styles):
            yield drawing
    if drawing := losses_figure(losses_frame(training), styles):
        yield drawing
