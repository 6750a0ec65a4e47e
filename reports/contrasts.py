"""The known contrasts between these models, each judged from records by a rule that is stated beside its verdict.

A contrast is "shown" only if every model of the family and every seed and protocol that was measured shows it: nothing
is selected. Where a rule cannot be applied, because what it needs was not measured, the verdict says that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from reports import fits, style
from reports.comparisons import curves, memory_points, slope_points
from reports.frames import SPEED_GROUP, TRAINING_GROUP
from reports.quality import task_title

Verdict = Literal["shown", "not shown", "not measured"]
Finding = tuple[bool, str]  # whether it shows, and the numbers that say so

SOLVED, SOLVED_LOW = 0.95, 0.90
EXTRAPOLATED, EXTRAPOLATION = 0.90, 16
FAILURE_FACTOR = 4
LINEAR, QUADRATIC = (0.85, 1.2), (1.8, 2.2)
NOT_LINEAR, NOT_QUADRATIC = (0, 2), (1,)
"""Slopes that an interval must leave out: no growth at all, and the other power."""
MODALITIES = ("language", "dna", "audio", "speech")
NAMES = {"mamba": "Mamba", "transformer": "attention", "s4d": "the LTI SSM (S4D)"}
POINTS = (("operator", "forward"), ("model", "train"))


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One known contrast, how it is decided, and what the records say."""

    id: str
    statement: str
    rule: str
    verdict: Verdict
    evidence: str


def judge_contrasts(speed: pd.DataFrame, scores: pd.DataFrame) -> list[Contrast]:
    """Every known contrast, judged within one section (one environment and device)."""
    found = [_solves(scores, probe) for probe in ("selective_copying", "induction_heads")]
    found += [_extrapolates(scores, probe) for probe in ("selective_copying", "induction_heads")]
    found += [_attention_fails(scores), _lti_fails(scores)]
    for level, direction in POINTS:
        found += [_time_grows(speed, name, level, direction) for name in ("transformer", "mamba", "s4d")]
    found += [_memory_linear(speed, name) for name in ("transformer", "mamba", "s4d")]
    return found + [_context_helps(scores, task) for task in MODALITIES]


def _decide(
    id: str, statement: str, rule: str, findings: Iterable[Finding], missing: str, failed: Sequence[str] = ()
) -> Contrast:
    """A verdict from findings; runs that gave none are named, because a verdict over the others is worth less."""
    known = list(findings)
    verdict: Verdict = "not measured" if not known else "shown" if all(ok for ok, _ in known) else "not shown"
    evidence = "; ".join([*(text for _, text in known), *failed] if known else [f"needs {missing}", *failed])
    return Contrast(id=id, statement=statement, rule=rule, verdict=verdict, evidence=evidence)


def _share(value: float) -> str:
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def _slug(text: str) -> str:
    return text.replace("_", "-")


def _mine(scores: pd.DataFrame, name: str, task: str) -> pd.DataFrame:
    """A family's scores on a task."""
    return scores[(scores["task"] == task) & (scores["model"].map(style.family) == name)]


def _failed(scores: pd.DataFrame, name: str, task: str) -> list[str]:
    """A phrase for every training trial of a family on a task that gave no score at all."""
    gone = _mine(scores, name, task).groupby("trial_id").filter(lambda rows: bool((rows["score_status"] != "ok").all()))
    return [
        f"without a score: {row['model']} seed {style.figure(row['seed'])} ({row['score_status']})"
        for row in gone.drop_duplicates("trial_id").to_dict("records")
    ]


def _runs(scores: pd.DataFrame, name: str, task: str) -> list[tuple[str, pd.DataFrame]]:
    """(label, scored rows) of every training trial of a family on a task, by scored length."""
    runs = []
    for _, rows in _mine(scores, name, task).groupby(["model", "seed", "trial_id"], sort=True, dropna=False):
        first = rows.iloc[0]
        stamp = ", embedded sample data" if first["embedded"] else ""
        seed = f" seed {first['seed']:.0f}" if math.isfinite(first["seed"]) else ""
        label = f"{first['model']}{seed} (trained at {style.length(first['train_len'])}{stamp})"
        runs.append((label, rows[rows["score_status"] == "ok"].sort_values("scored_len")))
    return runs


def _accuracy(row: Any) -> tuple[float, float, float]:
    """Value and 95 % interval; the Wilson interval of value and n where the record gives no interval."""
    value, low, high, n = (row[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "accuracy_n"))
    if not (math.isfinite(low) and math.isfinite(high)) and n > 0:
        low, high = fits.wilson(value, n)
    return value, low, high


def _shown(value: float, low: float, high: float) -> str:
    return f"{style.percent(value)} {style.span(low, high, 'percent')}"


def _trained(rows: pd.DataFrame) -> tuple[float, float, float] | None:
    """Accuracy at the training length, with an interval; None where either is absent."""
    at = rows[(rows["scored_len"] == rows["train_len"]) & rows["accuracy"].notna()]
    found = _accuracy(at.iloc[0]) if len(at) else None
    return found if found and all(map(math.isfinite, found)) else None


def _is_solved(value: float, low: float) -> bool:
    return value >= SOLVED and low >= SOLVED_LOW


def _solves(scores: pd.DataFrame, probe: str) -> Contrast:
    findings = [
        (_is_solved(*at[:2]), f"{label}: {_shown(*at)}")
        for label, rows in _runs(scores, "mamba", probe)
        if (at := _trained(rows))
    ]
    return _decide(
        f"mamba-solves-{_slug(probe)}",
        f"Mamba solves {task_title(probe).lower()} at its training length.",
        f"accuracy at the training length at least {_share(SOLVED)}, lower end of its 95 % interval at "
        f"least {_share(SOLVED_LOW)}, in every seed",
        findings,
        f"mamba trained and scored on {probe}",
        _failed(scores, "mamba", probe),
    )


def _extrapolates(scores: pd.DataFrame, probe: str) -> Contrast:
    findings = []
    for label, rows in _runs(scores, "mamba", probe):
        longer = rows[(rows["scored_len"] >= rows["train_len"]) & rows["accuracy"].notna()]
        good = (longer["accuracy"] >= EXTRAPOLATED).cummin()
        if longer.empty:
            continue
        factors = longer["scored_len"] / longer["train_len"]
        reach = float(factors[good].max()) if good.any() else 0.0
        if good.all() and reach < EXTRAPOLATION:
            continue  # it held as far as it was scored, which is not far enough to tell
        until = style.length(reach * longer.iloc[0]["train_len"])
        text = (
            f"{label}: at least {_share(EXTRAPOLATED)} up to {reach:.0f}x ({until})"
            if reach
            else f"{label}: below {_share(EXTRAPOLATED)} at the training length already"
        )
        if not good.all():
            fails = longer[~good].iloc[0]
            text += f", {style.percent(fails['accuracy'])} at {style.length(fails['scored_len'])}"
        findings.append((reach >= EXTRAPOLATION, text))
    return _decide(
        f"mamba-extrapolates-{_slug(probe)}",
        f"Mamba keeps solving {task_title(probe).lower()} far beyond its training length.",
        f"accuracy at least {_share(EXTRAPOLATED)} at every scored length from the training length up to "
        f"{EXTRAPOLATION}x it or more, in every seed",
        findings,
        f"mamba trained on {probe} and scored at {EXTRAPOLATION}x its training length or more",
        _failed(scores, "mamba", probe),
    )


def _attention_fails(scores: pd.DataFrame) -> Contrast:
    findings = []
    for label, rows in _runs(scores, "transformer", "induction_heads"):
        at, chance = _trained(rows), float(rows["chance"].max())
        far = rows[(rows["scored_len"] >= FAILURE_FACTOR * rows["train_len"]) & rows["accuracy"].notna()]
        if at is None or far.empty or not math.isfinite(chance):
            continue
        beyond, halfway = _accuracy(far.iloc[0]), (1 + chance) / 2
        text = (
            f"{label}: {_shown(*at)} at its training length, {_shown(*beyond)} at "
            f"{style.length(far.iloc[0]['scored_len'])} (halfway: {style.percent(halfway)})"
        )
        findings.append((_is_solved(*at[:2]) and beyond[2] < halfway, text))
    return _decide(
        "attention-fails-beyond-training-length",
        "Attention solves induction heads at its training length, and fails well beyond it.",
        f"solved at the training length (at least {_share(SOLVED)}, lower end at least "
        f"{_share(SOLVED_LOW)}), and at the shortest scored length of at least {FAILURE_FACTOR}x it the "
        "upper end of the interval is below halfway between chance and 1, in every seed",
        findings,
        f"attention trained on induction_heads and scored at {FAILURE_FACTOR}x its training length, "
        "with the task's chance",
        _failed(scores, "transformer", "induction_heads"),
    )


def _lti_fails(scores: pd.DataFrame) -> Contrast:
    findings = []
    here = scores[scores["task"] == "selective_copying"]
    for _, group in here.groupby(TRAINING_GROUP, dropna=False):
        selective = [at for _, rows in _runs(group, "mamba", "selective_copying") if (at := _trained(rows))]
        for label, rows in _runs(group, "s4d", "selective_copying"):
            at = _trained(rows)
            if at is None or not selective:
                continue
            solved = all(_is_solved(*mamba[:2]) for mamba in selective)
            text = f"{label}: {_shown(*at)}; Mamba's lowest {_shown(*min(selective))}"
            findings.append((at[2] < SOLVED_LOW and solved, text))
    return _decide(
        "lti-fails-selective-copying",
        "A time-invariant SSM fails selective copying, which Mamba solves.",
        f"at the training length the upper end of S4D's 95 % interval is below {_share(SOLVED_LOW)}, and Mamba has at "
        f"least {_share(SOLVED)} under the same protocol, lower end at least {_share(SOLVED_LOW)}, in every seed",
        findings,
        "s4d and mamba trained and scored on selective_copying under one protocol",
        _failed(here, "s4d", "selective_copying") + _failed(here, "mamba", "selective_copying"),
    )


def _time_grows(speed: pd.DataFrame, name: str, level: str, direction: str) -> Contrast:
    power, wanted, excluded = (
        ("quadratic", QUADRATIC, NOT_QUADRATIC) if name == "transformer" else ("linear", LINEAR, NOT_LINEAR)
    )
    adverb = "quadratically" if power == "quadratic" else "linearly"
    findings = [
        finding
        for rows in _groups(speed, level, direction)
        for model in curves(rows)
        if style.family(model) == name
        for finding in _slope(_label(model, rows), slope_points(rows, model), wanted, excluded)
    ]
    return _decide(
        f"{name}-time-{power}-{level}-{direction}",
        f"The time of {NAMES[name]} grows {adverb} with length ({level}, {direction}).",
        _slope_rule("median time", wanted, excluded),
        findings,
        f"{name} timed ({level}, {direction}) at four lengths or more that span a factor of 8",
    )


def _memory_linear(speed: pd.DataFrame, name: str) -> Contrast:
    findings = [
        finding
        for level, direction in POINTS
        for rows in _groups(speed, level, direction)
        for model, lengths in memory_points(rows).items()
        if style.family(model) == name
        for finding in _slope(f"{_label(model, rows)} {level} {direction}", lengths, LINEAR, NOT_LINEAR)
    ]
    return _decide(
        f"{name}-memory-linear",
        f"The peak memory of {NAMES[name]} grows linearly with length.",
        _slope_rule("peak memory", LINEAR, NOT_LINEAR) + ", for the operator's forward pass and the model's training",
        findings,
        f"{name}'s peak memory at four lengths or more that span a factor of 8",
    )


def _groups(speed: pd.DataFrame, level: str, direction: str) -> list[pd.DataFrame]:
    # At a constant number of tokens a batch, time and memory of a linear model do not grow with length at all.
    mine = speed[(speed["level"] == level) & (speed["direction"] == direction) & speed["tokens"].isna()]
    return [rows for _, rows in mine.groupby(SPEED_GROUP, dropna=False)]


def _label(model: str, rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    parts = [f"batch {style.figure(first['batch'])}", first["dtype"], first["variant"]]
    return f"{model} ({', '.join(str(part) for part in parts if part)})"


def _slope_rule(what: str, wanted: tuple[float, float], excluded: Sequence[int]) -> str:
    return (
        f"the slope of {what} (log-log, the longest four measured lengths, 95 % t interval) has an interval that "
        f"meets {wanted[0]}..{wanted[1]} and excludes {' and '.join(map(str, excluded))}"
    )


def _slope(
    label: str, points: dict[float, float], wanted: tuple[float, float], excluded: Sequence[int]
) -> list[Finding]:
    slope = fits.fit_slope(points)
    if slope is None:
        return []
    meets, tells = meets_slope(slope, wanted), not any(meets_slope(slope, (other, other)) for other in excluded)
    why = ", too wide to tell" if meets and not tells else ""
    where = f"{style.length(slope.start)}..{style.length(slope.stop)}"
    return [(meets and tells, f"{label}: slope {slope} over {where}{why}")]


def meets_slope(slope: fits.Slope, wanted: tuple[float, float]) -> bool:
    """Whether the slope's interval and the wanted one have something in common."""
    return slope.low <= wanted[1] and slope.high >= wanted[0]


def _context_helps(scores: pd.DataFrame, task: str) -> Contrast:
    findings = []
    for label, rows in _runs(scores, "mamba", task):
        known = rows[rows["bits_per_token_low"].notna() & rows["bits_per_token_high"].notna()]
        at_1k = known[known["scored_len"] == 1024]
        if at_1k.empty or known.iloc[-1]["scored_len"] < 2 * 1024:
            continue
        short, long = at_1k.iloc[0], known.iloc[-1]
        texts = [
            f"{style.figure(row['bits_per_token'], 4)} "
            f"[{style.figure(row['bits_per_token_low'], 4)}, {style.figure(row['bits_per_token_high'], 4)}] at "
            f"{style.length(row['scored_len'])}"
            for row in (short, long)
        ]
        findings.append((long["bits_per_token_high"] < short["bits_per_token_low"], f"{label}: {' and '.join(texts)}"))
    return _decide(
        f"context-helps-{task}",
        f"Longer context helps Mamba on {_modality(task)}.",
        "bits per token at the longest scored length below those at 1K, with 95 % intervals that do not "
        "overlap, in every seed",
        findings,
        f"mamba trained on {task} and scored at 1K and beyond",
        _failed(scores, "mamba", task),
    )


def _modality(task: str) -> str:
    return "DNA" if task == "dna" else task
