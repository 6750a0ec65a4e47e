"""Intervals: arrays in, numbers out. No policy, no torch, no I/O.

All intervals are two-sided 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t, 97.5 % quantile, for 1 … 30 degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval, and how many independent units it rests on."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; the normal one with a first-order correction beyond 30."""
    if degrees < 1:
        raise ValueError(f"degrees={degrees}: an interval of a mean needs at least two values")
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    return Z_95 * (1 + (Z_95**2 + 1) / (4 * degrees))


def wilson(successes: int, n: float, *, num_units: int | None = None) -> Estimate:
    """Wilson's score interval of a proportion: honest at 0 and 1, where accuracies live."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n} is no proportion")
    return _wilson(successes / n, n, int(n) if num_units is None else num_units)


def _wilson(p: float, n: float, num_units: int) -> Estimate:
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    # At the ends the score interval touches 0 or 1 exactly; rounding must not move it off.
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return Estimate(value=p, low=low, high=high, n=num_units)


def clustered_proportion(correct: Sequence[int] | ArrayLike, per_cluster: int) -> Estimate:
    """Proportion over clusters of ``per_cluster`` dependent answers (the tokens of one sequence).

    Answers of one sequence fail together, so that the answers are worth fewer than their number:
    Wilson's interval at the effective size n / deff, with the design effect estimated from the
    spread between clusters (never below 1, at most the cluster's size). ``n`` counts clusters.
    """
    counts = np.asarray(correct, dtype=float)
    if counts.size == 0 or per_cluster < 1 or counts.min() < 0 or counts.max() > per_cluster:
        raise ValueError(f"correct={counts.tolist()[:5]}… are no counts out of per_cluster={per_cluster}")
    answers = counts.size * per_cluster
    p = float(counts.sum() / answers)
    design_effect = 1.0
    if counts.size > 1 and 0 < p < 1:
        between = float(np.var(counts / per_cluster, ddof=1))
        design_effect = min(max(1.0, between * per_cluster / (p * (1 - p))), float(per_cluster))
    elif counts.size == 1:
        design_effect = float(per_cluster)
    return _wilson(p, answers / design_effect, counts.size)


def mean_estimate(values: ArrayLike) -> Estimate:
    """Mean of independent units with Student's t interval; infinite where there is only one."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values to average")
    mean = float(array.mean())
    if array.size == 1:
        return Estimate(value=mean, low=-math.inf, high=math.inf, n=1)
    half = student_t(array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Estimate(value=mean, low=mean - half, high=mean + half, n=int(array.size))


def batch_means(series: ArrayLike, num_batches: int) -> np.ndarray:
    """Means of consecutive stretches of one dependent series (its tail beyond equal stretches dropped)."""
    array = np.asarray(series, dtype=float)
    size = array.size // num_batches
    if size == 0:
        raise ValueError(f"a series of {array.size} has no {num_batches} stretches")
    return array[: size * num_batches].reshape(num_batches, size).mean(axis=1)
