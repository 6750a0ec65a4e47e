"""Scores over paired seeds: what is a loss, what is luck, and which trials belong together."""

import numpy as np
import pytest

from harness.gate import compare
from harness.gate_accuracy import MIN_SEEDS, judge_difference
from harness.gate_rules import METRICS, Tolerance
from harness.statistics import Estimate

TOLERANCES = {m: Tolerance(limit=0.02, reason="a test") for m in METRICS}


def record(seed: int, value: float, metric: str = "accuracy", **trial) -> dict:
    spec = {
        "kind": "training", "model": "mamba-tiny", "task": "copying", "seq_len": 64, "batch": 1, "dtype": "float32",
        "direction": "train", "device": "cpu", "seed": seed, "protocol": {"steps": 9}, **trial,
    }  # fmt: skip
    score = {"value": value, "low": value - 0.001, "high": value + 0.001, "n": 10**6}
    return {"trial": spec, "status": "ok", "env_id": "e", "metrics": {metric: score}, "backend": {}}


def rows(before: list[float], after: list[float], metric: str = "accuracy") -> list:
    sides = [[record(seed, value, metric) for seed, value in enumerate(side)] for side in (before, after)]
    found = compare(*sides, {}, TOLERANCES, exact_only=True).comparisons
    return [row for row in found if row.metric.startswith(metric)]


def test_seeds_that_move_both_ways_are_luck_not_loss():
    """Each seed's own interval is narrow and disjoint; the mean has not moved beyond the tolerance."""
    (row,) = rows([0.90, 0.80, 0.85, 0.88, 0.82], [0.895, 0.803, 0.853, 0.875, 0.824])
    assert row.verdict == "pass"
    (row,) = rows([0.90, 0.80, 0.85, 0.88, 0.82], [0.80, 0.90, 0.80, 0.93, 0.82])
    assert row.verdict == "inconclusive"
    assert "smallest loss it could have seen" in row.detail
    assert "seeds=0,1,2,3,4" in row.trial


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("bits_per_token", -1)])
def test_a_loss_over_all_seeds_is_a_regression_and_a_gain_none(metric, sign):
    base = [0.90, 0.70, 0.85, 0.88]
    worse, better = ([value + sign * move for value in base] for move in (-0.06, 0.06))
    worse[0] += 0.005
    assert [row.verdict for row in rows(base, worse, metric)] == ["regressed"]
    assert [row.verdict for row in rows(base, better, metric)] == ["improved"]
    assert "paired seeds" in rows(base, worse, metric)[0].detail


def test_fewer_seeds_are_judged_one_by_one():
    found = rows([0.9] * (MIN_SEEDS - 1), [0.8] * (MIN_SEEDS - 1))
    assert [row.verdict for row in found] == ["regressed"] * (MIN_SEEDS - 1)


def test_only_trials_that_differ_in_nothing_but_the_seed_are_paired():
    before = [record(seed, 0.9, batch=1 + seed) for seed in range(4)]
    after = [record(seed, 0.8, batch=1 + seed) for seed in range(4)]
    found = compare(before, after, {}, TOLERANCES, exact_only=True).comparisons
    assert sum(row.verdict == "regressed" for row in found) == 4


def test_a_score_that_a_seed_lost_is_still_said():
    before, after = ([record(seed, 0.9) for seed in range(4)] for _ in range(2))
    after[3]["metrics"] = {}
    found = compare(before, after, {}, TOLERANCES, exact_only=True).comparisons
    assert [row.detail for row in found if row.verdict == "regressed"] == ["no longer scored"]


def test_false_alarms_and_power_of_non_inferiority():
    """Five seeds whose differences scatter by 0.01: no loss is called one hardly ever, twice the tolerance often."""
    rng = np.random.default_rng(0)

    def share(loss: float) -> float:
        calls = 0
        for _ in range(300):
            differences = rng.normal(-loss, 0.01, 5)
            half = 2.776 * differences.std(ddof=1) / np.sqrt(5)
            mean = differences.mean()
            estimate = Estimate(value=mean, low=mean - half, high=mean + half, n=5)
            calls += judge_difference(estimate, 0.02, 1) == "regressed"
        return calls / 300

    assert share(0.0) == 0
    assert share(0.02) <= 0.05
    assert share(0.06) >= 0.9
