"""Scaling laws from samples: slope in log-log, crossover length, geometric-mean speedup. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The asymptotic part: the longest four measured lengths, extended downwards until they span a factor of eight. Fewer
# points leave a t interval of one degree of freedom (a factor 12.7); shorter spans are dominated by fixed costs.
MIN_POINTS, MIN_SPAN = 4, 8.0
SLOPE_RULE = (
    "least squares in log-log over the longest four measured lengths (more where these span less than a "
    "factor of 8), with the 95 % t interval over these points"
)
MIN_POINTS_SINCE = 3  # of a fit over every length from a stated one on: its interval has one degree of freedom at least
NUM_RESAMPLES = 2000
# Two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom; beyond, the error of 1.96 is below 4 %.
T_95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)

Samples = Mapping[float, tuple[float, ...]]  # length -> samples at it


@dataclass(frozen=True, kw_only=True)
class Slope:
    """value: the power of length; low, high: its 95 % interval; start, stop: the shortest and longest length used."""

    value: float
    low: float
    high: float
    num_points: int
    start: float
    stop: float

    def __str__(self) -> str:
        value = round(self.value, 2) + 0.0  # never -0.00
        return f"{value:.2f} ± {(self.high - self.low) / 2:.2f}"


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where the faster of two curves changes for the last time.

    length is None when the same one (`after`) is faster at every shared length. low, high: the 95 % bootstrap interval;
    0 or inf where it reaches beyond the shared lengths.
    """

    length: float | None
    low: float
    high: float
    before: str
    after: str
    start: float
    stop: float


def fit_slope(points: Mapping[float, float]) -> Slope | None:
    """The power of length by which a positive figure grows over its asymptotic part; None where that is too short."""
    usable = sorted((x, y) for x, y in points.items() if x > 0 and np.isfinite(y) and y > 0)
    for count in range(MIN_POINTS, len(usable) + 1):
        chosen = usable[-count:]
        if chosen[-1][0] / chosen[0][0] >= MIN_SPAN:
            return _least_squares(chosen)
    return None


def fit_slope_since(points: Mapping[float, float], since: float) -> Slope | None:
    """The power of length over every length from `since` on; None where these are too few or span too little."""
    chosen = sorted((x, y) for x, y in points.items() if x >= since and np.isfinite(y) and y > 0)
    wide = len(chosen) >= MIN_POINTS_SINCE and chosen[-1][0] / chosen[0][0] >= MIN_SPAN
    return _least_squares(chosen) if wide else None


def _least_squares(points: Sequence[tuple[float, float]]) -> Slope:
    """The line through at least three points in log-log, with the 95 % t interval of its slope."""
    count = len(points)
    x, y = np.log(np.array(points)).T
    centred = x - x.mean()
    value = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - value * centred
    error = float(np.sqrt(residual @ residual / (count - 2) / (centred @ centred)))
    half = (T_95[count - 3] if count - 3 < len(T_95) else 1.96) * error
    return Slope(
        value=value,
        low=value - half,
        high=value + half,
        num_points=count,
        start=points[0][0],
        stop=points[-1][0],
    )


def medians(curve: Samples) -> dict[float, float]:
    """Length to median, of the lengths that have samples."""
    return {length: float(np.median(values)) for length, values in sorted(curve.items()) if values}


def crossover(first: Samples, second: Samples, names: tuple[str, str], seed: int = 0) -> Crossover | None:
    """The length from which on the other curve is faster, between medians at shared lengths; None without two of them.

    Between two lengths the medians are interpolated in log-log. The interval resamples each length's samples.
    """
    lengths = np.array(sorted(x for x in set(first) & set(second) if first[x] and second[x]), dtype=float)
    if len(lengths) < 2:
        return None
    gap = np.array([np.log(np.median(first[x]) / np.median(second[x])) for x in lengths])
    point = _last_crossing(lengths, gap[None, :])[0]
    rng = np.random.default_rng(seed)
    draws = np.stack([np.log(_resampled(first[x], rng) / _resampled(second[x], rng)) for x in lengths], axis=1)
    # Which curve is faster at the end decides what "from here on" means; resamples are read with the measured ending.
    after = names[1] if gap[-1] > 0 else names[0]
    before = names[0] if after == names[1] else names[1]
    crossings = _last_crossing(lengths, draws)
    sign = np.where(gap[-1] > 0, 1.0, -1.0)
    crossings = np.where(np.sign(draws[:, -1]) == -sign, np.inf, crossings)
    low, high = np.percentile(crossings, [2.5, 97.5], method="nearest")
    measured = None if point in (0.0, np.inf) else float(point)
    return Crossover(
        length=measured,
        low=float(low),
        high=float(high),
        before=before if measured else after,
        after=after,
        start=float(lengths[0]),
        stop=float(lengths[-1]),
    )


def geometric_mean_speedup(slow: Mapping[float, float], fast: Mapping[float, float]) -> tuple[float, int]:
    """exp of the mean log ratio of medians over shared lengths, and how many these are; NaN and 0 without any."""
    shared = [x for x in slow if x in fast and slow[x] > 0 and fast[x] > 0]
    if not shared:
        return float("nan"), 0
    return float(np.exp(np.mean([np.log(slow[x] / fast[x]) for x in shared]))), len(shared)


def ratio_interval(slow: tuple[float, ...], fast: tuple[float, ...], seed: int = 0) -> tuple[float, float, float]:
    """The ratio of two medians with its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    low, high = np.percentile(_resampled(slow, rng) / _resampled(fast, rng), [2.5, 97.5])
    return float(np.median(slow) / np.median(fast)), float(low), float(high)


def wilson(value: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a share `value` of `n`."""
    z = 1.959964
    centre, spread = value + z * z / (2 * n), z * np.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return float((centre - spread) / scale), float((centre + spread) / scale)


def _resampled(values: tuple[float, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Medians of NUM_RESAMPLES bootstrap resamples."""
    array = np.asarray(values, dtype=float)
    return np.asarray(np.median(rng.choice(array, (NUM_RESAMPLES, len(array))), axis=1), dtype=float)


def _last_crossing(lengths: npt.NDArray[np.float64], gaps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Per row of log ratios, the last length at which the sign changes; 0 where it never does (settled before)."""
    left, right, x = gaps[:, :-1], gaps[:, 1:], np.log(lengths)
    changes = (left <= 0) != (right <= 0)
    last = changes.shape[1] - 1 - np.argmax(changes[:, ::-1], axis=1)
    rows = np.arange(len(gaps))
    a, b = left[rows, last], right[rows, last]
    share = np.clip(np.divide(a, a - b, out=np.zeros_like(a), where=a != b), 0.0, 1.0)
    return np.where(changes.any(axis=1), np.exp(x[last] + share * (x[last + 1] - x[last])), 0.0)
