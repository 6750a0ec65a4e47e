"""Scores over paired seeds: is the candidate's accuracy no worse, beyond the luck of a seed?

Trials that differ in their seed alone are one group. The difference of each seed that both sides trained is one
number, and Student's t over these gives the interval: what a change does to the mean of trainings, where the interval
of one training covers its test examples only.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.gate_rules import SCORES, Comparison, Record, Tolerance, Verdict, scores_of
from harness.statistics import Estimate, mean_estimate
from harness.trials import canonical_json, format_length

MIN_SEEDS = 3
"""The t of two differences is 12.7: their interval decides nothing."""


def judge_difference(difference: Estimate, tolerance: float, good: int) -> Verdict:
    """Non-inferiority by interval; ``difference`` is candidate minus base, ``good`` 1 where more is better, else -1."""
    low, high = sorted((good * difference.low, good * difference.high))
    if high < -tolerance:
        return "regressed"
    if low > tolerance:
        return "improved"
    return "pass" if low >= -tolerance else "inconclusive"


def seed_group(trial: Mapping[str, Any]) -> str:
    """The specification without its seed: equal for trials that are repetitions of each other."""
    return canonical_json({key: value for key, value in trial.items() if key != "seed"})


def paired_groups(pairs: Iterable[tuple[Record, Record]]) -> dict[str, list[tuple[Record, Record]]]:
    """Pairs of records (base, candidate) by :func:`seed_group`, where enough seeds are scored on both sides."""
    groups: dict[str, list[tuple[Record, Record]]] = defaultdict(list)
    for before, after in pairs:
        if scores_of(before) and scores_of(after):
            groups[seed_group(before["trial"])].append((before, after))
    return {key: group for key, group in groups.items() if len(group) >= MIN_SEEDS}


def compare_over_seeds(
    group: Sequence[tuple[Record, Record]], names: Mapping[str, str], tolerances: Mapping[str, Tolerance]
) -> list[Comparison]:
    """One comparison for each score and length that :data:`MIN_SEEDS` or more seeds have on both sides."""
    differences: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for before, after in group:
        olds, news = scores_of(before), scores_of(after)
        for what in olds.keys() & news.keys():
            differences[what].append((float(olds[what]["value"]), float(news[what]["value"])))
    found = []
    for (metric, seq_len), values in sorted(differences.items()):
        if len(values) < MIN_SEEDS:
            continue
        base, candidate = (sum(side) / len(values) for side in zip(*values, strict=True))
        row = Comparison(
            metric=f"{metric} at {format_length(seq_len)}", verdict="pass", base=base, candidate=candidate, **names
        )
        found.append(_judged(row, [new - old for old, new in values], SCORES[metric], tolerances[metric].limit))
    return found


def _judged(row: Comparison, differences: list[float], good: int, tolerance: float) -> Comparison:
    estimate = mean_estimate(differences)
    verdict = judge_difference(estimate, tolerance, good)
    detail = (
        f"over {estimate.n} paired seeds {estimate.value:+.4g} "
        f"(97.5 % bounds {estimate.low:+.4g} and {estimate.high:+.4g}), allowed {-good * tolerance:+g}"
    )
    if verdict == "inconclusive":
        half = (estimate.high - estimate.low) / 2
        detail += f"; the smallest loss it could have seen: {tolerance + half:.3g}; add seeds"
    return row if verdict == "pass" else replace(row, verdict=verdict, detail=detail)
