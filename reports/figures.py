"""Every figure of a report, in the order in which it is read, each with a name that is a file name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from reports import generation, style
from reports.drawing import Drawing, Styles
from reports.frames import (
    BATCH_GROUP,
    TRAINING_GROUP,
    batch_sweeps,
    ceilings_frame,
    generation_frame,
    has_speed_suite,
    length_groups,
    losses_frame,
    positions_frame,
)
from reports.generation import GENERATION_GROUP, follows_published, phases_figure, state_figure
from reports.published import operator_times, throughputs, training_memory
from reports.quality import accuracy_figure, bits_figure, is_probe, losses_figure, positions_figure
from reports.roofline import Ceilings, ceilings_of, limits_frame, roofline_figure, share_figure
from reports.scaling import memory_figure, speedup_figure, time_figure
from reports.speed_figures import (
    batch_memory_figure,
    compares_with_published_memory,
    prediction_figure,
    throughput_figure,
)

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
LEVELS = ("operator", "block", "model")


def all_figures(
    speed: pd.DataFrame, training: pd.DataFrame, scores: pd.DataFrame, trials: pd.DataFrame | None = None
) -> list[Drawing]:
    """The figures of one section (one environment and device), named without repeats.

    With all of its trials, also what only a run that measures speed for its own sake has: throughput, shares of limits,
    predicted peaks, memory against batch, generation.
    """
    suite = trials is not None and has_speed_suite(trials)
    styles = style.model_styles([*speed["model"].dropna(), *training["model"].dropna()])
    drawings = [*_quality(training, scores, styles), *_scaling(speed, suite)]
    if suite and trials is not None:
        drawings += [*_limits(speed, ceilings_of(ceilings_frame(trials))), *_batches(speed), *_generation(trials)]
        drawings += [drawing for level in LEVELS if (drawing := prediction_figure(speed, level))]
    seen: dict[str, int] = {}
    named = []
    for drawing in drawings:
        name = re.sub(r"[^a-z0-9]+", "-", drawing.name.lower()).strip("-")
        seen[name] = seen.get(name, 0) + 1
        named.append(replace(drawing, name=name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named


def _scaling(speed: pd.DataFrame, suite: bool) -> Iterator[Drawing]:
    for rows in length_groups(speed):
        styles = style.model_styles(rows["model"].dropna())
        constant_tokens = bool(rows["tokens"].notna().any())
        if not constant_tokens:  # else time is throughput upside down
            yield time_figure(rows, styles, operator_times(rows))
        yield memory_figure(rows, styles)
        if drawing := speedup_figure(rows, styles):
            yield drawing
        if suite:
            yield throughput_figure(rows, styles)


def _limits(speed: pd.DataFrame, ceilings: Ceilings) -> Iterator[Drawing]:
    for rows in length_groups(speed[speed["level"] == "operator"]):
        styles, limits = style.model_styles(rows["model"].dropna()), limits_frame(rows, ceilings)
        if drawing := share_figure(rows, limits, styles):
            yield drawing
        constant_batch = bool(rows["tokens"].isna().all())
        if constant_batch and (drawing := roofline_figure(limits, ceilings, styles)):
            yield drawing


def _batches(speed: pd.DataFrame) -> Iterator[Drawing]:
    for _, rows in batch_sweeps(speed).groupby(BATCH_GROUP, dropna=False, sort=True):
        yield batch_memory_figure(rows, training_memory() if compares_with_published_memory(rows) else ())


def _generation(trials: pd.DataFrame) -> Iterator[Drawing]:
    generated = generation_frame(trials)
    for _, rows in generated.groupby(GENERATION_GROUP, dropna=False, sort=True):
        scale = str(rows["scale"].iloc[0])
        yield generation.throughput_figure(rows, throughputs(scale) if follows_published(rows) else ())
        yield phases_figure(rows)
    for scale in sorted(set(trials.loc[trials["kind"].isin(["generation"]) | (trials["level"] == "model"), "scale"])):
        if drawing := state_figure(trials, scale):
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
