"""Intervals cover what they promise to cover; closed forms agree with scipy."""

import numpy as np
import pytest
import scipy.stats

from harness.statistics import batch_means, clustered_proportion, mean_estimate, student_t, wilson


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [20, 200])
def test_wilson_covers(p, n):
    rng = np.random.default_rng(7)
    estimates = [wilson(int(k), n) for k in rng.binomial(n, p, 4000)]
    coverage = np.mean([e.low <= p <= e.high for e in estimates])
    assert coverage > 0.92


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 8), (997, 1000)])
def test_wilson_agrees_with_scipy(k, n):
    ours = wilson(k, n)
    theirs = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.value <= ours.high


def test_student_t_agrees_with_scipy():
    for degrees in [*range(1, 40), 100, 1000]:
        assert student_t(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=2e-3)


def test_mean_covers():
    rng = np.random.default_rng(8)
    hits = [(e := mean_estimate(rng.normal(3, 2, 6))).low <= 3 <= e.high for _ in range(4000)]
    assert 0.935 < np.mean(hits) < 0.965


def test_one_value_has_no_interval():
    estimate = mean_estimate([4.0])
    assert estimate.value == 4.0
    assert estimate.low == -np.inf and estimate.high == np.inf


def test_clusters_that_fail_together_widen_the_interval():
    together = clustered_proportion([16, 0, 16, 16, 0, 16, 16, 16], 16)
    apart = clustered_proportion([12, 12, 12, 12, 12, 12, 12, 12], 16)
    assert together.value == apart.value == 0.75
    assert together.high - together.low > 2 * (apart.high - apart.low)
    # Fully dependent answers are worth one a cluster.
    assert (together.low, together.high) == pytest.approx((wilson(6, 8).low, wilson(6, 8).high), abs=0.05)


def test_clustered_interval_covers():
    rng = np.random.default_rng(9)
    hits = []
    for _ in range(2000):
        skill = rng.beta(2, 2, 40)  # every sequence has a difficulty of its own
        estimate = clustered_proportion(rng.binomial(8, skill), 8)
        hits.append(estimate.low <= 0.5 <= estimate.high)
    assert np.mean(hits) > 0.93


def test_batch_means_of_equal_stretches():
    assert batch_means([1, 1, 3, 3, 9], 2).tolist() == [1, 3]
    with pytest.raises(ValueError, match="stretches"):
        batch_means([1.0], 2)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_nonsense_is_refused(k, n):
    with pytest.raises(ValueError, match="proportion"):
        wilson(k, n)
