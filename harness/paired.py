"""Two models on the same items: whether they differ, and by how much. Arrays in, numbers out; no torch, no I/O.

Items are drawn once for both models, so that what makes an item hard falls out of the difference. Intervals are
two-sided 95 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
"""Fixes the ends of a 95 % percentile interval to a few per cent of its width."""
_CHUNK = 4_000_000
"""Draws held at a time: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's test on the items that exactly one of two models answers rightly."""

    only_a: int
    only_b: int
    p: float
    """Exact two-sided binomial test: under no difference each such item is either model's with probability 1/2."""
    mid_p: float
    """The same with half the weight on the observed split, which is less conservative for few items."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A statistic of model A minus that of model B, with its paired bootstrap interval."""

    value: float
    low: float
    high: float
    stderr: float
    n: int


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """The exact test on two series of 0 and 1 over the same items.

    >>> mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])
    McNemar(only_a=4, only_b=0, p=0.125, mid_p=0.0625)
    """
    a, b = _pair(correct_a, correct_b)
    if not np.isin(np.concatenate([a, b]), (0, 1)).all():
        raise ValueError("McNemar's test needs outcomes of 0 or 1")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    # Whole numbers throughout: the probabilities of thousands of items are far below what a float holds.
    total, observed = 2**n, math.comb(n, k)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    if only_a == only_b:
        return McNemar(only_a=only_a, only_b=only_b, p=1.0, mid_p=1 - observed / (2 * total) if n else 1.0)
    return McNemar(only_a=only_a, only_b=only_b, p=min(1.0, 2 * tail / total), mid_p=(2 * tail - observed) / total)


def paired_difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    *,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of a statistic of two models' means over the same items, A minus B.

    Args:
        statistic: of a mean, elementwise: perplexity is ``lambda nats: np.exp(-nats)``; the mean itself unless given.

    Raises:
        ValueError: the series differ in length, or hold no two items.
    """
    a, b = _pair(values_a, values_b)
    if a.size < 2:
        raise ValueError(f"n={a.size}: an interval needs at least two items")
    of = statistic or (lambda mean: mean)
    generator = np.random.default_rng(seed)
    found = []
    step = max(1, _CHUNK // a.size)
    for start in range(0, resamples, step):
        drawn = generator.integers(a.size, size=(min(step, resamples - start), a.size))
        found.append(of(a[drawn].mean(axis=1)) - of(b[drawn].mean(axis=1)))
    differences = np.concatenate(found)
    low, high = np.percentile(differences, [2.5, 97.5])
    value = float(of(a.mean(keepdims=True))[0] - of(b.mean(keepdims=True))[0])
    return Difference(
        value=value, low=float(low), high=float(high), stderr=float(differences.std(ddof=1)), n=int(a.size)
    )


def _pair(values_a: ArrayLike, values_b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(values_a, dtype=float), np.asarray(values_b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}: paired series hold the same items")
    return a, b
