"""Classified DNA, paired by seed: what another start, rate or kind of answers changes, and how far models lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations, pairwise

import pandas as pd

from reports import style
from reports.classification_rows import Place, place_of, scored_at_training_length, way_order
from reports.context_figures import seed_interval

PAIRED = (
    "Differences of the Matthews correlation, paired by seed on the same test items, with Student's 95 % interval over "
    "the seeds that both have. Of many differences one in twenty leaves out zero by chance, and an interval over seeds "
    "says nothing of other items."
)
Seeds = Mapping[float, float]
"""The correlation of each seed."""


def ways_table(trials: pd.DataFrame) -> pd.DataFrame:
    """A line from each of a model's ways (start, rate, answers) to the next, on each data set."""
    lines = []
    known = _by_place(trials)
    for place in sorted({one._replace(start="", rate=0.0, answers="") for one in known}):
        ways = sorted((one for one in known if _is_of(one, place)), key=way_order)
        for before, after in pairwise(ways):
            change = _difference(known[after], known[before])
            lines.append(_about(place) | {"Model": place.model, "From": _way(before), "To": _way(after)} | change)
    return pd.DataFrame(lines)


def models_table(trials: pd.DataFrame) -> pd.DataFrame:
    """A line a pair of models that were trained alike but for the rate, on each data set."""
    alike: dict[Place, dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    known = _by_place(trials)
    for place in known:
        alike[place._replace(model="", rate=0.0)][place.model].append(place)
    lines = []
    for way in sorted(alike, key=lambda way: (way.dataset, way.seq_len, way_order(way))):
        alone = {model: places[0] for model, places in sorted(alike[way].items()) if len(places) == 1}
        for one, other in combinations(alone, 2):
            change = _difference(known[alone[one]], known[alone[other]])
            about = {"Start": way.start, "Answers among": way.answers, "Model": one, "Less": other}
            lines.append(_about(way) | about | change)
    return pd.DataFrame(lines)


def _by_place(trials: pd.DataFrame) -> dict[Place, Seeds]:
    known: dict[Place, dict[float, float]] = defaultdict(dict)
    for trial in trials.to_dict("records"):
        if figures := scored_at_training_length(trial):
            known[place_of(trial)][float(trial["seed"])] = figures["mcc"]["mcc"]
    return dict(known)


def _is_of(one: Place, place: Place) -> bool:
    return (one.dataset, one.model, one.seq_len) == (place.dataset, place.model, place.seq_len)


def _about(place: Place) -> dict[str, str]:
    return {"Data set": place.dataset, "Length": style.length(place.seq_len)}


def _way(place: Place) -> str:
    return f"{place.start}, {style.figure(place.rate)}, {place.answers}"


def _difference(one: Seeds, other: Seeds) -> dict[str, str]:
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return {"Difference": style.NONE, "Seeds": "0"}
    changes = [one[seed] - other[seed] for seed in shared]
    low, high = seed_interval(changes)
    text = f"{sum(changes) / len(changes):+.3f}"
    return {"Difference": text if low != low else f"{text} [{low:+.3f}, {high:+.3f}]", "Seeds": str(len(shared))}
