"""What language pretraining comes to: groups of trainings that read the same tokens, a run for each model.

A trial belongs here if it was trained on text with the loss on a validation set along its way (the suites
``language-*``). Only runs of one group are compared: the same text, symbols, tokens and context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from reports import style
from reports.frames import TRAINING_GROUP, number

TASK = "language"
REFERENCE_FAMILY = "transformer"
"""What a loss at equal FLOPs is compared with, as the paper's Fig. 4 does."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of the test split at one length: bits per byte with its 95 % interval, bits per token."""

    bits_per_byte: float
    low: float
    high: float
    bits_per_token: float


@dataclass(frozen=True, kw_only=True)
class LanguageRun:
    """One trained model. Losses are bits per token of the validation split."""

    model: str
    seed: float
    status: str
    message: str
    params: float
    tokens_per_step: float
    flops_per_step: float
    steps_asked: float
    curve: Sequence[tuple[float, float]]
    """(step, loss)."""
    scores: Mapping[int, Score]
    absent: Mapping[int, str]
    """Why a length has no score."""
    train_s: float
    tokens_per_s: float

    @property
    def steps(self) -> float:
        return self.curve[-1][0] if self.curve else 0.0

    @property
    def finished(self) -> bool:
        """Only then is the learning rate at its end, and the loss what this budget gives."""
        return self.steps == self.steps_asked and bool(self.curve)

    @property
    def tokens(self) -> float:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        """Of the whole training: the model's own, forward and twice as much backward; nothing that is done again."""
        return self.steps * self.flops_per_step

    @property
    def loss(self) -> float:
        return self.curve[-1][1] if self.curve else math.nan

    def loss_at(self, flops: float) -> float:
        """Between two points of the curve, in the logarithm of the FLOPs; NaN outside it."""
        known = [(step * self.flops_per_step, loss) for step, loss in self.curve if step > 0]
        if not known or not known[0][0] <= flops <= known[-1][0] * (1 + 1e-9):
            return math.nan
        x, y = zip(*known, strict=True)
        return float(np.interp(math.log(flops), np.log(x), y))


@dataclass(frozen=True, kw_only=True)
class LanguageGroup:
    """Runs that can be compared."""

    about: Mapping[str, Any]
    symbols: str
    """bytes, or BPE of 4,096 tokens"""
    runs: Sequence[LanguageRun]

    @property
    def train_len(self) -> int:
        return int(self.about["train_len"])

    @cached_property
    def lengths(self) -> list[int]:
        return sorted({seq_len for run in self.runs for seq_len in [*run.scores, *run.absent]})

    def bytes_per_token(self) -> float:
        """Of the test text; 1 for bytes."""
        ratios = [
            score.bits_per_token / score.bits_per_byte
            for run in self.runs for seq_len, score in run.scores.items() if seq_len == self.train_len
        ]  # fmt: skip
        return float(np.median(ratios)) if ratios else math.nan

    def reference_line(self) -> list[tuple[float, float]]:
        """(FLOPs, loss) of the finished sizes of Transformer++, the mean over seeds of each."""
        flops = {run.model: run.flops for run in self.runs if run.finished}
        ours = [model for model in flops if style.family(model) == REFERENCE_FAMILY]
        return sorted((flops[model], self.mean_loss(model)) for model in ours)

    def mean_loss(self, model: str) -> float:
        """Over the seeds that were trained to the end; NaN where none was."""
        losses = [run.loss for run in self.runs if run.model == model and run.finished]
        return float(np.mean(losses)) if losses else math.nan

    def reference_loss(self, model: str) -> float:
        """The mean loss of Transformer++ at a model's size."""
        return self.mean_loss(f"{REFERENCE_FAMILY}-{style.size(model)}")

    def common_flops(self, size: str | None) -> float:
        """What every finished run of a size has spent at least."""
        return min((run.flops for run in self.runs if style.size(run.model) == size and run.finished), default=math.nan)


def language_groups(training: pd.DataFrame) -> list[LanguageGroup]:
    """The groups of a section's trainings, bytes first; none where no trial is of this kind."""
    wanted = training["protocol"].map(lambda protocol: bool(protocol.get("validation_loss")))
    mine = training[(training["task"] == TASK) & wanted]
    groups = []
    for key, rows in mine.groupby(TRAINING_GROUP, dropna=False, sort=True):
        about = dict(zip(TRAINING_GROUP, key, strict=True))
        trials = rows.to_dict("records")
        groups.append(
            LanguageGroup(
                about=about, symbols=symbols_of(trials[0]["protocol"]), runs=[_run(trial) for trial in trials]
            )
        )
    return sorted(groups, key=lambda group: (group.symbols != "bytes", group.symbols, group.train_len))


def symbols_of(protocol: Mapping[str, Any]) -> str:
    options = protocol.get("task_options") or {}
    if options.get("tokenizer") != "bpe":
        return "bytes"
    return f"BPE of {options.get('vocab_size') or 4096:,} tokens"


def _run(trial: Mapping[Any, Any]) -> LanguageRun:
    listed = {int(score["seq_len"]): score for score in trial["scores"] if isinstance(score, Mapping)}
    scores = {seq_len: found for seq_len, score in listed.items() if (found := _score(score))}
    curve = [(number(step), number(nats) / math.log(2)) for step, nats in trial["validation_loss_curve"]]
    return LanguageRun(
        model=str(trial["model"]),
        seed=trial["seed"],
        status=str(trial["status"]),
        message=str(trial["error_message"] or ""),
        params=trial["params"],
        tokens_per_step=trial["batch"] * trial["train_len"],
        flops_per_step=trial["model_flops_per_step"],
        steps_asked=number(trial["protocol"].get("steps")),
        curve=[point for point in curve if all(map(math.isfinite, point))],
        scores=scores,
        absent={n: str(score.get("reason") or score.get("status")) for n, score in listed.items() if n not in scores},
        train_s=trial["train_s"],
        tokens_per_s=trial["tokens_per_s"],
    )


def _score(score: Mapping[str, Any]) -> Score | None:
    """None where the length was not scored."""
    per_byte, per_token = score.get("bits_per_byte"), score.get("bits_per_token")
    if score.get("status", "ok") != "ok" or not isinstance(per_byte, Mapping) or not isinstance(per_token, Mapping):
        return None
    return Score(
        bits_per_byte=number(per_byte.get("value")),
        low=number(per_byte.get("low")),
        high=number(per_byte.get("high")),
        bits_per_token=number(per_token.get("value")),
    )
