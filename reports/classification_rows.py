"""What the trials that classify whole DNA sequences come to: the figures of each, and what it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from reports import style
from reports.frames import START, interval, number

TITLES = {
    "gue": "GUE",
    "genomic_benchmarks": "GenomicBenchmarks",
    "vertebrates": "Vertebrate class from mitochondrial genomes",
}
PRETRAINED = "pretrained"
FIGURES = ("mcc", "balanced_accuracy", "accuracy")


class Place(NamedTuple):
    """What a line of the table is of, but for the seed."""

    dataset: str
    model: str
    start: str
    rate: float
    answers: str
    seq_len: float


def way_order(place: Place) -> tuple[bool, float, str]:
    """From scratch first, higher rates first."""
    return place.start == PRETRAINED, -place.rate, place.answers


def choices_of(trial: Mapping[Any, Any]) -> str:
    """What all lines of a table share, in words; rates and lengths are the lines' own."""
    protocol = trial["protocol"]
    parts = [
        f"{number(protocol.get('steps')):,.0f} steps",
        f"batch {style.figure(trial['batch'])}",
        str(trial["dtype"]),
    ]
    return ", ".join([*parts, f"data: {trial['source']}"])


def place_of(trial: Mapping[Any, Any]) -> Place:
    protocol = trial["protocol"]
    dataset = str((protocol.get("task_options") or {}).get("dataset", style.NONE))
    start = PRETRAINED if protocol.get(START) else "scratch"
    answers = "labels" if protocol.get("answers") == "labels" else "all tokens"
    return Place(dataset, str(trial["model"]), start, number(protocol.get("lr")), answers, float(trial["train_len"]))


def scored_at_training_length(trial: Mapping[Any, Any]) -> dict[str, dict[str, float]]:
    """The figures at the training length; empty where there is no correlation."""
    for score in trial["scores"]:
        if score.get("seq_len") == trial["train_len"] and score.get("status") == "ok":
            found = {name: interval(score.get(name), name) for name in FIGURES}
            return found if np.isfinite(found["mcc"]["mcc"]) else {}
    return {}


def why_not(trials: pd.DataFrame) -> str:
    """The statuses of trials of which none has a score."""
    statuses = sorted(set(trials["status"]))
    return ", ".join("no score" if status == "ok" else str(status) for status in statuses)
