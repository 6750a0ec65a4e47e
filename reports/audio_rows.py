"""What the trials of raw audio come to: bits per sample of each model at the length that it was trained at.

Trials of one protocol stand together: the same steps, samples a step, learning rate, precision and data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import style
from reports.audio_reference import is_ablation
from reports.context_figures import seed_interval
from reports.frames import number

TASK = "audio"


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Of one model at one length: the mean over seeds; the interval is over seeds, with one seed over windows."""

    mean: float
    low: float
    high: float
    seeds: Mapping[float, float]


@dataclass(frozen=True, kw_only=True)
class AudioGroup:
    """Trials that differ in model, length and seed alone."""

    choices: str
    section: str
    embedded: bool
    bits: Mapping[str, Mapping[int, Bits]]
    """By model and length."""
    absent: Mapping[str, Mapping[int, str]]
    """Why a model has none at a length: a status and a reason."""
    params: Mapping[str, float]

    @property
    def lengths(self) -> list[int]:
        return sorted({n for known in (*self.bits.values(), *self.absent.values()) for n in known})


def audio_groups(training: pd.DataFrame, scores: pd.DataFrame) -> list[AudioGroup]:
    """The groups of a section's trials that were trained on audio at two lengths or more; at one, of the ablation."""
    trials = training[training["task"] == TASK]
    if trials.empty:
        return []
    kinds = trials.apply(_choices, axis=1)
    own = scores[scores["scored_len"] == scores["train_len"]]
    groups = []
    for choices, mine in trials.groupby(kinds, sort=True):
        if mine["train_len"].nunique() > 1 or is_ablation(mine["model"]):
            groups.append(_group(str(choices), mine, own[own["trial_id"].isin(mine["trial_id"])]))
    return groups


def _choices(trial: Mapping[Any, Any]) -> str:
    """The protocol in words."""
    protocol, samples = trial["protocol"], trial["batch"] * trial["train_len"]
    steps = f"{number(protocol.get('steps')):,.0f} steps of {style.length(samples)} samples"
    parts = [steps, f"learning rate {number(protocol.get('lr')):g}", str(trial["dtype"]), f"data: {trial['source']}"]
    options = protocol.get("task_options") or {}
    return ", ".join([*parts, *(f"{key} {value}" for key, value in sorted(options.items()))])


def _group(choices: str, trials: pd.DataFrame, own: pd.DataFrame) -> AudioGroup:
    bits: dict[str, dict[int, Bits]] = {}
    absent: dict[str, dict[int, str]] = {}
    for (model, seq_len), scores in own.groupby(["model", "train_len"]):
        good = scores[(scores["score_status"] == "ok") & scores["bits_per_token"].notna()]
        if len(good):
            bits.setdefault(str(model), {})[int(seq_len)] = _bits(good)  # type: ignore[call-overload]
        else:
            first = scores.iloc[0]
            reason = f"{first['score_status']}: {first['reason'] or 'no score'}"
            absent.setdefault(str(model), {})[int(seq_len)] = reason  # type: ignore[call-overload]
    params = trials.dropna(subset=["params"]).groupby("model")["params"].first()
    return AudioGroup(
        choices=choices,
        section=str(trials["section"].iloc[0]),
        embedded=bool(trials["embedded"].any()),
        bits=bits,
        absent=absent,
        params={str(model): float(count) for model, count in params.items()},
    )


def _bits(scores: pd.DataFrame) -> Bits:
    seeds = dict(zip(scores["seed"], scores["bits_per_token"], strict=True))
    low, high = seed_interval(list(seeds.values()))
    if math.isnan(low):
        low, high = float(scores["bits_per_token_low"].iloc[0]), float(scores["bits_per_token_high"].iloc[0])
    return Bits(mean=sum(seeds.values()) / len(seeds), low=low, high=high, seeds=seeds)


def difference(one: Bits, other: Bits) -> tuple[float, float, float]:
    """``one`` less ``other``, and its interval over the seeds that both have; NaN where that is one seed."""
    shared = sorted(one.seeds.keys() & other.seeds.keys())
    if not shared:
        return one.mean - other.mean, math.nan, math.nan
    changes = [one.seeds[seed] - other.seeds[seed] for seed in shared]
    return (sum(changes) / len(changes), *seed_interval(changes))
