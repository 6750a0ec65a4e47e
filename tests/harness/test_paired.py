"""Paired comparison: against scipy, by coverage, and by what pairing is for."""

import doctest

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from harness import paired
from harness.paired import mcnemar, paired_difference


def outcomes(only_a: int, only_b: int, both: int, neither: int) -> tuple[list[int], list[int]]:
    pairs = [(1, 0)] * only_a + [(0, 1)] * only_b + [(1, 1)] * both + [(0, 0)] * neither
    a, b = zip(*pairs, strict=True)
    return list(a), list(b)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 3), (1, 9), (12, 4), (60, 41), (900, 1011)])
def test_mcnemar_is_scipys_exact_binomial_test(only_a, only_b):
    found = mcnemar(*outcomes(only_a, only_b, both=7, neither=5))
    n = only_a + only_b
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p == pytest.approx(binomtest(only_a, n, 0.5).pvalue)
    low = min(only_a, only_b)
    literal = 2 * (binom.cdf(low, n, 0.5) - binom.pmf(low, n, 0.5) / 2)
    assert found.mid_p == pytest.approx(literal if only_a != only_b else 1 - binom.pmf(low, n, 0.5) / 2)
    assert found.mid_p <= found.p


def test_items_on_which_both_agree_do_not_matter():
    assert mcnemar(*outcomes(4, 1, both=0, neither=1)) == mcnemar(*outcomes(4, 1, both=5000, neither=900))
    same = mcnemar([1, 0, 1], [1, 0, 1])
    assert (same.p, same.mid_p) == (1.0, 1.0)
    swapped = mcnemar([0, 0, 0, 1], [1, 1, 0, 1])
    assert swapped.p == mcnemar([1, 1, 0, 1], [0, 0, 0, 1]).p


def test_the_exact_test_keeps_its_level():
    generator = np.random.default_rng(5)
    rejected, trials = {"p": 0, "mid_p": 0}, 1000
    for _ in range(trials):
        found = mcnemar(generator.integers(2, size=60), generator.integers(2, size=60))
        rejected["p"] += found.p < 0.05
        rejected["mid_p"] += found.mid_p < 0.05
    assert rejected["p"] <= rejected["mid_p"] <= 0.075 * trials
    assert rejected["mid_p"] >= 0.02 * trials


@pytest.mark.parametrize("statistic", [None, lambda mean: np.exp(-mean)])
def test_the_bootstrap_interval_covers(statistic):
    generator = np.random.default_rng(2)
    covered = 0
    truth = 0.3 if statistic is None else np.exp(1.7) - np.exp(2.0)
    for seed in range(200):
        hard = generator.normal(size=80)
        a, b = -1.7 + hard, -2.0 + hard + 0.5 * generator.normal(size=80)
        found = paired_difference(a, b, statistic=statistic, resamples=400, seed=seed)
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_pairing_takes_the_items_difficulty_out():
    generator = np.random.default_rng(3)
    hard = 3 * generator.normal(size=200)
    a, b = hard + 0.1, hard + 0.05 * generator.normal(size=200)
    assert paired_difference(a, b).stderr < 0.01
    assert paired_difference(a, generator.permutation(b)).stderr > 0.1


def test_the_same_seed_gives_the_same_interval_and_the_chunks_do_not_matter(monkeypatch):
    a, b = [1, 0, 1, 1, 0], [0, 0, 1, 0, 1]
    whole = paired_difference(a, b)
    assert paired_difference(a, b) == whole and whole.value == pytest.approx(0.2)
    monkeypatch.setattr(paired, "_CHUNK", 25)
    assert paired_difference(a, b) == whole


def test_wrong_input_is_said():
    with pytest.raises(ValueError, match="same items"):
        mcnemar([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([1, 2], [1, 0])
    with pytest.raises(ValueError, match="at least two"):
        paired_difference([1.0], [0.0])


def test_doctests():
    assert doctest.testmod(paired).failed == 0
