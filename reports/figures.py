"""Every figure of a report, in the order in which it is read, each with a name that is a file name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from reports import generation, style
from reports.audio_figures import audio_jobs
from reports.audio_reference import row_labels
from reports.audio_rows import TASK as AUDIO
from reports.classification_figures import classification_jobs, classifies
from reports.comparisons import device_alone
from reports.context_figures import context_jobs, is_swept
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
    validation_frame,
    validation_losses_frame,
)
from reports.generation import GENERATION_GROUP, follows_published, phases_figure, state_figure
from reports.language_figures import language_jobs
from reports.language_rows import TASK as LANGUAGE
from reports.logged_figures import losses_figure, validation_figure, validation_losses_figure
from reports.probe_figures import probe_jobs
from reports.published import operator_times, throughputs, training_memory
from reports.quality import accuracy_figure, bits_figure, is_probe, positions_figure
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
Job = Callable[[], Drawing | None]
"""Draws one figure; None where there is nothing to draw. Jobs share nothing, so they may run in any process."""


def all_figures(
    speed: pd.DataFrame, training: pd.DataFrame, scores: pd.DataFrame, trials: pd.DataFrame | None = None
) -> list[Drawing]:
    """The figures of :func:`figure_jobs`, drawn one after the other, named without repeats."""
    drawings = [drawing for job in figure_jobs(speed, training, scores, trials) if (drawing := job())]
    names = unique_names([drawing.name for drawing in drawings])
    return [replace(drawing, name=name) for drawing, name in zip(drawings, names, strict=True)]


def figure_jobs(
    speed: pd.DataFrame, training: pd.DataFrame, scores: pd.DataFrame, trials: pd.DataFrame | None = None
) -> list[Job]:
    """What draws the figures of one section (one environment and device), in the order in which they are read.

    With all of its trials, also what only a run that measures speed for its own sake has: throughput, shares of limits,
    predicted peaks, memory against batch, generation.
    """
    suite = trials is not None and has_speed_suite(trials)
    styles = style.model_styles([*speed["model"].dropna(), *training["model"].dropna()])
    jobs = [*_quality(training, scores, styles), *_scaling(speed, suite)]
    if suite and trials is not None:
        jobs += [*_limits(speed, ceilings_of(ceilings_frame(trials))), *_batches(speed), *_generation(trials)]
        jobs += [partial(prediction_figure, speed, level) for level in LEVELS]
    return jobs


def unique_names(names: Sequence[str]) -> list[str]:
    """Names that are file names: small letters, digits and dashes; a repeated one gets a number."""
    seen: dict[str, int] = {}
    found = []
    for name in (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names):
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def _scaling(speed: pd.DataFrame, suite: bool) -> Iterator[Job]:
    for rows in length_groups(speed):
        styles = style.model_styles(rows["model"].dropna())
        constant_tokens = bool(rows["tokens"].notna().any())
        if not constant_tokens:  # else time is throughput upside down
            yield partial(time_figure, rows, styles, operator_times(rows))
            if len(alone := device_alone(rows)):
                yield partial(time_figure, alone, styles, operator_times(rows), is_alone=True)
        yield partial(memory_figure, rows, styles)
        yield partial(speedup_figure, rows, styles)
        if suite:
            yield partial(throughput_figure, rows, styles)


def _limits(speed: pd.DataFrame, ceilings: Ceilings) -> Iterator[Job]:
    for rows in length_groups(speed[speed["level"] == "operator"]):
        styles, limits = style.model_styles(rows["model"].dropna()), limits_frame(rows, ceilings)
        yield partial(share_figure, rows, limits, styles)
        if rows["tokens"].isna().all():
            yield partial(roofline_figure, limits, ceilings, styles)


def _batches(speed: pd.DataFrame) -> Iterator[Job]:
    for _, rows in batch_sweeps(speed).groupby(BATCH_GROUP, dropna=False, sort=True):
        yield partial(batch_memory_figure, rows, training_memory() if compares_with_published_memory(rows) else ())


def _generation(trials: pd.DataFrame) -> Iterator[Job]:
    generated = generation_frame(trials)
    for _, rows in generated.groupby(GENERATION_GROUP, dropna=False, sort=True):
        scale = str(rows["scale"].iloc[0])
        yield partial(generation.throughput_figure, rows, throughputs(scale) if follows_published(rows) else ())
        yield partial(phases_figure, rows)
    for scale in sorted(set(trials.loc[trials["kind"].isin(["generation"]) | (trials["level"] == "model"), "scale"])):
        yield partial(state_figure, trials, scale)


def _quality(training: pd.DataFrame, scores: pd.DataFrame, styles: Styles) -> Iterator[Job]:
    yield from context_jobs(scores, styles)
    labels = row_labels(training.loc[training["task"] == AUDIO, "model"])
    positions = positions_frame(scores)
    groups = sorted(scores.groupby(TRAINING_GROUP, dropna=False), key=lambda group: not is_probe(group[1]))
    for key, rows in groups:
        several = rows["scored_len"].nunique() > 1
        if several or not (is_swept(rows, scores) or classifies(rows)):
            if is_probe(rows):
                yield partial(accuracy_figure, rows, styles)
            else:
                yield partial(bits_figure, rows, styles, labels)
        same = pd.Series(True, index=positions.index)
        for column, value in zip(TRAINING_GROUP, key, strict=True):
            # A column without a value (a probe has no source) equals nothing, itself included.
            same &= positions[column].isna() if value != value or value is None else positions[column] == value
        yield partial(positions_figure, positions[same], styles, labels)
    yield partial(losses_figure, losses_frame(training), styles, labels)
    # Language has it against tokens and FLOPs, see below.
    others = training[training["task"] != LANGUAGE]
    yield partial(validation_losses_figure, validation_losses_frame(others), styles, labels)
    yield partial(validation_figure, validation_frame(training), styles)
    yield from classification_jobs(training)
    yield from probe_jobs(training)
    yield from language_jobs(training)
    yield from audio_jobs(training, scores)
