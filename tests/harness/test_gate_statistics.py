"""The timing tier's statistics: coverage, false alarms and power on bursty series; vectorised against literal forms."""

import math

import numpy as np
import pytest

from harness.gate_decision import MAX_PAIRS, MIN_PAIRS, TimingDecision
from harness.gate_statistics import (
    QUARTILE,
    expanded_level,
    mann_whitney,
    quartile_ratio_of_pairs,
    relative_change,
    smallest_effect,
)
from harness.statistics import Estimate

TOLERANCE = 0.03
NUM_SAMPLES = 10


class BurstyMachine:
    """Blocks one after another on a quiet floor with 2 % of jitter; a tenth of the time, in bursts, all lasts twice as
    long. Every process has a level of its own (where its memory happens to lie)."""

    def __init__(self, seed: int, *, mean_burst: float = 8.0, spread: float = 0.005, jitter: float = 0.02) -> None:
        self.rng = np.random.default_rng(seed)
        self.leave, self.enter = 1 / mean_burst, 1 / mean_burst / 9
        self.disturbed = self.rng.random() < 0.1
        self.spread, self.jitter = spread, jitter

    def block(self, factor: float) -> list[float]:
        level = factor * math.exp(self.spread * self.rng.standard_normal())
        samples = []
        for _ in range(NUM_SAMPLES):
            burst = 2 if self.disturbed else 1
            samples.append(level * (1 + self.jitter * abs(self.rng.standard_normal())) * burst)
            self.disturbed = self.rng.random() >= self.leave if self.disturbed else self.rng.random() < self.enter
        return samples

    def round(self, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Eight blocks in the order ABBA BAAB: (base, candidate), four rows each."""
        sides: dict[str, list[list[float]]] = {"A": [], "B": []}
        for side in "ABBABAAB":
            sides[side].append(self.block(factor if side == "B" else 1.0))
        return np.array(sides["A"]), np.array(sides["B"])


def decide(seed: int, factor: float, **machine) -> TimingDecision:
    decision, source = TimingDecision(TOLERANCE, seed=seed), BurstyMachine(seed, **machine)
    while decision.is_open:
        decision.add(*source.round(factor))
    return decision


def share_regressed(factor: float, count: int, first_seed: int = 0, **machine) -> float:
    return sum(decide(first_seed + i, factor, **machine).verdict == "regressed" for i in range(count)) / count


@pytest.mark.parametrize("mean_burst", [3.0, 8.0, 30.0])
def test_false_alarms_are_at_most_one_in_a_hundred(mean_burst):
    assert share_regressed(1.0, 200, mean_burst=mean_burst) <= 0.01


@pytest.mark.parametrize("mean_burst", [3.0, 30.0])
def test_a_tenth_slower_is_found_at_least_95_times_in_a_hundred(mean_burst):
    assert share_regressed(1.10, 100, mean_burst=mean_burst) >= 0.95


@pytest.mark.parametrize(("spread", "jitter"), [(0.005, 0.02), (0.02, 0.05)])
def test_1_3_times_the_stated_smallest_effect_is_found_nine_times_in_ten(spread, jitter):
    noise = {"spread": spread, "jitter": jitter}
    stated = np.median([decide(seed, 1.0, **noise).smallest_effect for seed in range(40)])
    assert share_regressed(1 + 1.3 * stated, 120, first_seed=1000, **noise) >= 0.90


def test_what_lies_within_the_tolerance_is_no_regression():
    assert share_regressed(1.01, 100) <= 0.01
    assert decide(3, 1.0).verdict == "pass"


def test_faster_is_improved_as_slower_is_regressed():
    assert sum(decide(seed, 1 / 1.10).verdict == "improved" for seed in range(40)) >= 38


def test_each_bound_covers_the_truth_at_its_level():
    """One-sided 97.5 % each; three standard errors of 400 series below that, and not far above."""
    above = below = 0
    for seed in range(400):
        source = BurstyMachine(seed, spread=0.02)
        rounds = [source.round(1.0) for _ in range(MIN_PAIRS // 4)]
        base, candidate = (np.concatenate(side) for side in zip(*rounds, strict=True))
        ratio = quartile_ratio_of_pairs(base, candidate, seed=seed, num_resamples=1000)
        above += ratio.low > 1
        below += ratio.high < 1
    for misses in (above, below):
        assert misses / 400 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)
    assert above + below >= 2


def test_the_vectorised_bootstrap_is_the_literal_one():
    rng = np.random.default_rng(0)
    base, candidate = rng.lognormal(0, 0.2, (2, 12, NUM_SAMPLES))
    indices = np.random.default_rng(7).integers(0, 12, (50, 12))
    ratios = []
    for row in indices:
        pooled = [np.concatenate([side[pair] for pair in row]) for side in (base, candidate)]
        ratios.append(np.quantile(pooled[1], QUARTILE) / np.quantile(pooled[0], QUARTILE))
    ratio = quartile_ratio_of_pairs(base, candidate, seed=7, num_resamples=50)
    level = expanded_level(12)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.quantile(ratios, [level, 1 - level])))
    assert ratio.value == pytest.approx(np.quantile(candidate, QUARTILE) / np.quantile(base, QUARTILE))


def test_resamples_in_parts_are_the_same_as_at_once(monkeypatch):
    base, candidate = np.random.default_rng(1).lognormal(0, 0.2, (2, 12, NUM_SAMPLES))
    whole = quartile_ratio_of_pairs(base, candidate, seed=1)
    monkeypatch.setattr("harness.gate_statistics._VALUES_AT_ONCE", 1000)
    assert quartile_ratio_of_pairs(base, candidate, seed=1) == whole


def test_few_pairs_reach_further():
    levels = [expanded_level(n) for n in (3, 6, 12, 24, 1000)]
    assert levels == sorted(levels)
    assert levels[-1] == pytest.approx(0.025, rel=0.02)
    assert levels[2] < 0.012


@pytest.mark.parametrize(
    ("base", "candidate", "message"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], "2 or more"),
        ([[1.0], [1.0]], [[1.0]], "shapes"),
        ([[1.0], [0.0]], [[1.0], [1.0]], "zero"),
        ([[1.0], [math.nan]], [[1.0], [1.0]], "not finite"),
    ],
)
def test_bad_blocks_are_refused(base, candidate, message):
    with pytest.raises(ValueError, match=message):
        quartile_ratio_of_pairs(base, candidate, seed=0)


def test_the_smallest_effect_grows_with_the_spread_and_is_never_below_the_tolerance():
    def effect(low: float) -> float:
        return smallest_effect(Estimate(value=1.0, low=low, high=2.0, n=12), TOLERANCE)

    assert effect(1.0) == pytest.approx(TOLERANCE)
    assert TOLERANCE < effect(0.99) < effect(0.95)


def test_an_alarm_that_fresh_pairs_do_not_repeat_is_none():
    decision, quiet, slow = TimingDecision(TOLERANCE, seed=0), BurstyMachine(0), BurstyMachine(1)
    for _ in range(MIN_PAIRS // 4):
        decision.add(*slow.round(1.2))
    assert decision.is_open  # an alarm alone decides nothing
    assert decision.verdict == "inconclusive"
    assert "no time was left" in decision.detail
    while decision.is_open:
        decision.add(*quiet.round(1.0))
    assert decision.verdict == "pass"
    assert "did not repeat" in decision.detail


def test_noise_ends_inconclusive_and_says_what_could_have_been_seen():
    decision = decide(0, 1.0, spread=0.3)
    assert decision.verdict == "inconclusive"
    assert decision.num_pairs == MAX_PAIRS
    assert "smallest slowdown it could have seen" in decision.detail
    assert decision.smallest_effect > 0.1


def test_without_pairs_there_is_no_verdict():
    decision = TimingDecision(TOLERANCE, seed=0)
    assert (decision.verdict, decision.ratio, decision.smallest_effect) == ("inconclusive", None, None)
    assert decision.quartiles_ms == (None, None)


def literal_u(base, candidate) -> float:
    return sum((y > x) + 0.5 * (y == x) for x in base for y in candidate)


@pytest.mark.parametrize("seed", range(5))
def test_mann_whitney_is_the_literal_count_and_the_known_p(seed):
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    base, candidate = rng.integers(0, 12, 30), rng.integers(2, 14, 25)  # many ties
    u, p = mann_whitney(base, candidate)
    assert u == literal_u(base, candidate)
    known = scipy_stats.mannwhitneyu(candidate, base, alternative="greater", method="asymptotic")
    assert (u, p) == pytest.approx((known.statistic, known.pvalue))


def test_mann_whitney_at_its_ends():
    assert mann_whitney([1, 1, 1], [1, 1]) == (3.0, 1.0)
    assert mann_whitney(range(20), range(100, 120))[1] < 1e-6
    assert mann_whitney(range(100, 120), range(20))[1] > 0.999
    with pytest.raises(ValueError, match="some on both sides"):
        mann_whitney([], [1.0])


def test_threshold_rules_read_the_statistic_they_name():
    base, candidate = [1.0, 2.0, 6.0], [1.5, 2.0, 3.0]
    assert relative_change(base, candidate, "min") == pytest.approx(0.5)
    assert relative_change(base, candidate, "median") == 0
    assert relative_change(base, candidate, "mean") == pytest.approx(6.5 / 9 - 1)
    with pytest.raises(ValueError, match="statistic='max'"):
        relative_change(base, candidate, "max")
