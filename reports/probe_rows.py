"""What the trials of the paper's probes come to, a row a model: seeds together, the learning rate chosen.

The learning rate is chosen among those that were run by accuracy on the validation split alone; test scores do not
enter. Trials that differ in what the paper leaves open (a loss, an optimizer) are rows of their own. A training that
was cut before its last step has no test score: its last validation accuracy stands in at the training length, marked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports import fits, style
from reports.contrasts import SOLVED
from reports.frames import interval, number, wanted_examples
from reports.probe_reference import PaperRow, PaperTable

OPEN = ("optimizer", "betas", "grad_clip", "warmup_steps", "schedule", "loss", "task_options")
"""What the paper leaves unsaid for at least one of the tables, and a record says."""
STATED = {"weight_decay": 0.0}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained seed. ``scores``: accuracy, its interval's ends and its examples by length; ``absent``: why not.

    ``provisional``: the only score is on the validation split, because training was cut.
    """

    seed: float
    lr: float
    status: str
    message: str
    params: float
    steps: float
    steps_asked: float
    device_s: float
    """Its share of the time that the device was given to it; at least so much, where training was resumed."""
    resumed: bool
    validation: float
    provisional: bool
    scores: Mapping[int, tuple[float, float, float, float]]
    wanted: Mapping[int, float]
    """The examples that the suite asks for at each length of ``scores``; NaN where it does not say."""
    absent: Mapping[int, str]

    def solves(self, seq_len: int) -> bool:
        return seq_len in self.scores and self.scores[seq_len][0] >= SOLVED

    def solved_up_to(self, train_len: int) -> int | None:
        """The longest length up to which every scored one from the training length on is solved."""
        reached = None
        for seq_len in sorted(length for length in self.scores if length >= train_len):
            if not self.solves(seq_len):
                break
            reached = seq_len
        return reached


@dataclass(frozen=True, kw_only=True)
class Point:
    """Accuracy at a length over the seeds: mean, mean of the ends of the seeds' 95 % intervals, range."""

    mean: float
    low: float
    high: float
    lowest: float
    highest: float
    num_seeds: int
    examples: float
    """Of the seed that has fewest."""
    wanted: float = math.nan

    @property
    def few(self) -> bool:
        """Whether fewer examples were scored than the suite asks for: the time for it was up."""
        return self.examples < self.wanted


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """A model of a table: the paper's row, where it has one, and the runs at the chosen learning rate."""

    model: str
    paper: PaperRow | None
    choices: str
    lr: float
    lrs: tuple[float, ...]
    """All that were run; ``lr`` is one of them."""
    runs: Sequence[Run]
    device_s: float
    """Of all runs, those at other learning rates too."""
    resumed: bool
    """Any of them, so that ``device_s`` is what they took at least."""

    @property
    def points(self) -> dict[int, Point]:
        lengths = sorted({seq_len for run in self.runs for seq_len in run.scores})
        return {
            seq_len: _point(
                [run.scores[seq_len] for run in self.runs if seq_len in run.scores],
                max(run.wanted[seq_len] for run in self.runs if seq_len in run.scores),
            )
            for seq_len in lengths
        }

    @property
    def steps(self) -> float:
        """Of the seed that was trained least; NaN where none was."""
        return min((run.steps for run in self.runs), default=math.nan)

    def num_solving(self, seq_len: int) -> int:
        return sum(run.solves(seq_len) for run in self.runs)


def probe_rows(training: pd.DataFrame, table: PaperTable) -> list[ProbeRow]:
    """The table's rows in its order, those without a record too; none where no trial follows the table's protocol."""
    trials = [trial for trial in training.to_dict("records") if _follows(trial, table)]
    rows = []
    for model in table.models if trials else []:
        mine = [trial for trial in trials if trial["model"] == model]
        paper = table.rows.get(model)
        kinds = sorted({_kind(trial) for trial in mine})
        rows += [_row(model, paper, kind[-1], [t for t in mine if _kind(t) == kind]) for kind in kinds]
        if not kinds and paper:
            rows.append(_row(model, paper, "", []))
    return rows


def _follows(trial: Mapping[Any, Any], table: PaperTable) -> bool:
    """Whether a trial was trained as the table says, but for what is open, the learning rate and the steps."""
    protocol = trial["protocol"]
    return (
        (trial["task"], trial["train_len"], trial["batch"]) == (table.task, table.train_len, table.batch)
        and trial["model"] in table.models
        and all(protocol.get(key, value) == value for key, value in STATED.items())
    )


def _kind(trial: Mapping[Any, Any]) -> tuple[float, str]:
    """Steps asked for, and the choices in words: what tells the rows of one model apart."""
    return number(trial["protocol"].get("steps")), choices(trial)


def choices(trial: Mapping[Any, Any]) -> str:
    """What the paper leaves open and this trial had, as text."""
    protocol = trial["protocol"]
    parts = [f"{key} {_plain(protocol[key])}" for key in OPEN if protocol.get(key) not in (None, {})]
    return ", ".join([*parts, str(trial["dtype"])])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {part}" for key, part in sorted(value.items())) + ")"
    return value if isinstance(value, str) else json.dumps(value)


def _row(model: str, paper: PaperRow | None, chosen: str, trials: Sequence[Mapping[Any, Any]]) -> ProbeRow:
    runs = sorted((_run(trial) for trial in trials), key=lambda run: run.seed)
    lrs = sorted({run.lr for run in runs})
    lr = choose_lr(runs, paper.lr if paper else math.nan)
    return ProbeRow(
        model=model,
        paper=paper,
        choices=chosen,
        lr=lr,
        lrs=tuple(lrs),
        runs=[run for run in runs if run.lr == lr],
        device_s=sum(run.device_s for run in runs if math.isfinite(run.device_s)),
        resumed=any(run.resumed for run in runs),
    )


def choose_lr(runs: Sequence[Run], published: float = math.nan) -> float:
    """Best mean validation accuracy; of equals the one with more seeds, then the paper's, then the smaller."""

    def merit(lr: float) -> tuple[float, int, bool, float]:
        known = [run.validation for run in runs if run.lr == lr and math.isfinite(run.validation)]
        return (float(np.mean(known)) if known else -1.0, len(known), lr == published, -lr)

    return max({run.lr for run in runs}, key=merit, default=math.nan)


def _run(trial: Mapping[Any, Any]) -> Run:
    protocol = trial["protocol"]
    curve = [(number(step), number(value)) for step, value in trial["validation_curve"]]
    steps = trial["train_tokens"] / (trial["batch"] * trial["train_len"])
    listed = {int(score["seq_len"]): score for score in trial["scores"] if isinstance(score, Mapping)}
    scores = {seq_len: found for seq_len, score in listed.items() if (found := _score(score))}
    provisional = trial["status"] == "timeout" and not listed and bool(curve)
    if provisional:
        scores = {int(trial["train_len"]): _validated(curve[-1][1], number(protocol.get("validation_examples", 64)))}
    return Run(
        seed=trial["seed"],
        lr=number(protocol.get("lr")),
        status=trial["status"],
        message=trial["error_message"] or "",
        params=trial["params"],
        steps=steps if math.isfinite(steps) else max((step for step, _ in curve), default=0.0),
        steps_asked=number(protocol.get("steps")),
        device_s=_device_s(trial),
        resumed=trial["resumed"],
        validation=curve[-1][1] if curve else math.nan,
        provisional=provisional,
        scores=scores,
        wanted={n: math.nan if provisional else wanted_examples(protocol, n) for n in scores},
        absent={n: str(score.get("reason") or score.get("status")) for n, score in listed.items() if n not in scores},
    )


def _device_s(trial: Mapping[Any, Any]) -> float:
    """Seconds of the process, divided among the seeds that shared it.

    Of a resumed training the longer of its last process and all of its steps: no record says what earlier processes
    took beside steps.
    """
    together = trial["seeds_together"] if trial["seeds_together"] >= 1 else 1.0
    return float(np.fmax(trial["wall_s"], trial["train_s"])) / together


def _validated(accuracy: float, examples: float) -> tuple[float, float, float, float]:
    """As a score; an example counts once, however many answers it has, which makes the interval wide rather than
    narrow."""
    return (accuracy, *fits.wilson(accuracy, examples), examples)


def _score(score: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """Accuracy, low, high, examples; None where the length was not scored."""
    found = interval(score.get("accuracy"), "accuracy")
    if score.get("status", "ok") != "ok" or not math.isfinite(found["accuracy"]):
        return None
    examples = number(score.get("examples"))
    n = examples if math.isfinite(examples) else found["accuracy_n"]
    return found["accuracy"], found["accuracy_low"], found["accuracy_high"], n


def _point(scores: Sequence[tuple[float, float, float, float]], wanted: float) -> Point:
    values, lows, highs, examples = zip(*scores, strict=True)
    return Point(
        mean=float(np.mean(values)),
        low=float(np.mean(lows)),
        high=float(np.mean(highs)),
        lowest=min(values),
        highest=max(values),
        num_seeds=len(values),
        examples=min(examples),
        wanted=wanted,
    )


def share_text(value: float) -> str:
    """As the paper prints shares, without the sign: 58.6; 100 for all."""
    return style.NONE if not math.isfinite(value) else "100" if value >= 0.9995 else f"{100 * value:.1f}"
