"""Scaling laws that are known are found again, and intervals cover them as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reports import fits

LENGTHS = [1024.0 * 2**power for power in range(8)]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_the_power_of_an_exact_law_is_found(power: float) -> None:
    slope = fits.fit_slope({x: 3e-4 * x**power for x in LENGTHS})
    assert slope is not None
    assert (slope.value, slope.low, slope.high) == pytest.approx((power,) * 3)
    assert (slope.num_points, slope.start, slope.stop) == (4, LENGTHS[-4], LENGTHS[-1])


def test_the_slope_is_of_the_asymptotic_part() -> None:
    slope = fits.fit_slope({x: 1e7 + x**2 for x in [2.0**power for power in range(4, 24)]})
    assert slope is not None
    assert slope.value == pytest.approx(2.0, abs=0.01)


def test_close_lengths_are_extended_until_they_span_a_factor_of_eight() -> None:
    slope = fits.fit_slope({1000 * 1.5**power: 1.5**power for power in range(12)})
    assert slope is not None
    assert slope.stop / slope.start >= fits.MIN_SPAN
    assert slope.num_points == 7


@pytest.mark.parametrize("lengths", [[], [1024.0], LENGTHS[:3], [1000.0, 1001.0, 1002.0, 1003.0]])
def test_too_short_a_part_has_no_slope(lengths: list[float]) -> None:
    assert fits.fit_slope({x: x for x in lengths}) is None


def test_absent_figures_do_not_count_as_points() -> None:
    points = {x: x for x in LENGTHS[:3]} | {LENGTHS[3]: math.nan, LENGTHS[4]: 0.0}
    assert fits.fit_slope(points) is None


def test_the_interval_of_the_slope_covers() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(600):
        slope = fits.fit_slope({x: x**1.3 * float(np.exp(0.05 * rng.standard_normal())) for x in LENGTHS})
        assert slope is not None
        covered += slope.low <= 1.3 <= slope.high
    assert 0.92 <= covered / 600 <= 0.98


def _noisy(rng: np.random.Generator, law: dict[float, float], spread: float = 0.02) -> fits.Samples:
    return {x: tuple(y * np.exp(spread * rng.standard_normal(9))) for x, y in law.items()}


def test_a_known_crossover_is_found_and_covered() -> None:
    rng = np.random.default_rng(4)
    found, covered = [], 0
    for seed in range(100):
        quadratic = _noisy(rng, {x: (x / 5000) ** 2 for x in LENGTHS})
        linear = _noisy(rng, {x: x / 5000 for x in LENGTHS})
        cross = fits.crossover(quadratic, linear, ("attention", "mamba"), seed)
        assert cross is not None
        assert cross.length is not None
        assert (cross.before, cross.after) == ("attention", "mamba")
        found.append(cross.length)
        covered += cross.low <= 5000 <= cross.high
    assert np.median(found) == pytest.approx(5000, rel=0.01)
    assert covered >= 85  # the percentile bootstrap of a median of nine samples is a little short


@pytest.mark.parametrize(("first", "second", "faster"), [(1.0, 2.0, "a"), (2.0, 1.0, "b")])
def test_without_a_crossing_the_faster_one_is_named(first: float, second: float, faster: str) -> None:
    curves = [{x: (scale * x,) * 5 for x in LENGTHS} for scale in (first, second)]
    cross = fits.crossover(curves[0], curves[1], ("a", "b"))
    assert cross is not None
    assert (cross.length, cross.after) == (None, faster)


def test_of_several_crossings_the_last_counts() -> None:
    a = dict(zip(LENGTHS, [(1.0,), (3.0,), (1.0,), (1.0,), (3.0,), (3.0,), (3.0,), (3.0,)], strict=True))
    cross = fits.crossover(a, dict.fromkeys(LENGTHS, (2.0,)), ("a", "b"))
    assert cross is not None
    assert cross.length is not None
    assert LENGTHS[3] < cross.length < LENGTHS[4]
    assert cross.after == "b"


def test_too_few_shared_lengths_have_no_crossover() -> None:
    assert fits.crossover({1.0: (1.0,), 2.0: ()}, {1.0: (2.0,), 2.0: (2.0,)}, ("a", "b")) is None


def test_the_mean_speedup_is_geometric_and_over_shared_lengths() -> None:
    mean, count = fits.geometric_mean_speedup({1.0: 4.0, 2.0: 1.0, 3.0: 9.0}, {1.0: 1.0, 2.0: 4.0})
    assert mean == pytest.approx(1.0)
    assert count == 2
    nothing, none = fits.geometric_mean_speedup({1.0: 1.0}, {2.0: 1.0})
    assert math.isnan(nothing)
    assert none == 0


def test_wilson_holds_the_share_and_stays_in_the_unit_interval() -> None:
    for value in (0.0, 0.3, 1.0):
        low, high = fits.wilson(value, 50)
        assert -1e-12 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1 + 1e-12
