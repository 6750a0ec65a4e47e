"""Statistics of two series of timed blocks: arrays in, numbers out. No policy, no torch, no I/O.

Shape suffixes: P pairs of blocks, S samples of a block, R resamples. Each pair is one block of the base and one of the
candidate, run next to each other. Samples are positive times; a larger ratio is a slower candidate.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics import Z_95, Estimate, student_t

QUARTILE = 0.25
"""Noise of a shared machine only adds time: the lower quartile stays on the quiet floor until three quarters of the
samples are disturbed, where a mean or a median does not."""
NUM_RESAMPLES = 2000
"""At 12 pairs each tail then rests on about 20 resamples."""
_Z_FOUR_IN_FIVE = 0.8416212335729143
_VALUES_AT_ONCE = 4_000_000
"""Numbers of resamples held at once: 32 MB."""


def quartile_ratio_of_pairs(
    base_PS: ArrayLike, candidate_PS: ArrayLike, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Candidate's lower quartile over the base's, all blocks pooled; each bound is one-sided 97.5 %.

    A bootstrap over pairs of blocks: what disturbs a block disturbs its samples together and its neighbour with them,
    so that a pair is the unit that repeats. The percentiles are widened for few pairs (:func:`expanded_level`).

    Raises:
        ValueError: fewer than two pairs, unlike shapes, or times that are not positive.
    """
    base, candidate = (np.asarray(side, dtype=float) for side in (base_PS, candidate_PS))
    if base.ndim != 2 or base.shape[0] < 2 or base.shape[1] < 1 or base.shape[0] != candidate.shape[0]:
        raise ValueError(f"blocks of shapes {base.shape} and {candidate.shape}: needed are (pairs, samples), 2 or more")
    if not (base.min() > 0 and candidate.min() > 0 and np.isfinite(base).all() and np.isfinite(candidate).all()):
        raise ValueError("a time is zero, negative or not finite")
    num_pairs = base.shape[0]
    indices_RP = np.random.default_rng(seed).integers(0, num_pairs, (num_resamples, num_pairs))
    ratios_R = _pooled_quartiles(candidate, indices_RP) / _pooled_quartiles(base, indices_RP)
    level = expanded_level(num_pairs)
    low, high = np.quantile(ratios_R, [level, 1 - level])
    value = np.quantile(candidate, QUARTILE) / np.quantile(base, QUARTILE)
    return Estimate(value=float(value), low=float(low), high=float(high), n=num_pairs)


def _pooled_quartiles(blocks_PS: np.ndarray, indices_RP: np.ndarray) -> np.ndarray:
    """The lower quartile of every resample's pooled samples, (R,)."""
    num_resamples, num_pairs = indices_RP.shape
    size = num_pairs * blocks_PS.shape[1]
    step = max(1, _VALUES_AT_ONCE // size)
    parts = [
        np.quantile(blocks_PS[indices_RP[start : start + step]].reshape(-1, size), QUARTILE, axis=1)
        for start in range(0, num_resamples, step)
    ]
    return np.concatenate(parts)


def expanded_level(num_pairs: int) -> float:
    """The percentile that gives a bootstrap over few units the reach of Student's t.

    A plain percentile interval of n units is narrow by about sqrt((n - 1) / n) and takes normal quantiles where the
    spread is itself estimated (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3).
    """
    reach = student_t(num_pairs - 1) * math.sqrt(num_pairs / (num_pairs - 1))
    return 0.5 * math.erfc(reach / math.sqrt(2))


def smallest_effect(ratio: Estimate, tolerance: float) -> float:
    """The slowdown, as a share, that pairs as noisy as these show beyond ``tolerance`` four times in five.

    The lower bound lies a factor ``value / low`` below the ratio, and moves by about 1 / 1.96 of that from one set of
    pairs to the next: it passes the tolerance four times in five where the effect is 0.84 of such moves beyond it.
    """
    reach = ratio.value / ratio.low
    return float((1 + tolerance) * reach ** (1 + _Z_FOUR_IN_FIVE / Z_95) - 1)


def mann_whitney(base: ArrayLike, candidate: ArrayLike) -> tuple[float, float]:
    """``(U, p)`` of the one-sided test that the candidate's samples are the larger ones.

    U counts the pairs of samples in which the candidate's is larger, ties for a half. p by the normal approximation
    with corrections for ties and for continuity: good from about eight samples a side.
    """
    first, second = (np.asarray(side, dtype=float).ravel() for side in (base, candidate))
    if not first.size or not second.size:
        raise ValueError(f"{first.size} and {second.size} samples: a rank test needs some on both sides")
    _, inverse, counts = np.unique(np.concatenate([first, second]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = float(ranks[first.size :].sum() - second.size * (second.size + 1) / 2)
    total = first.size + second.size
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1)) if total > 1 else 0.0
    spread = math.sqrt(max(0.0, first.size * second.size / 12 * (total + 1 - ties)))
    if spread == 0:
        return u, 1.0
    z = (u - first.size * second.size / 2 - 0.5) / spread
    return u, 0.5 * math.erfc(z / math.sqrt(2))


def relative_change(base: ArrayLike, candidate: ArrayLike, statistic: str) -> float:
    """How much larger the candidate's ``min``, ``mean`` or ``median`` is, as a share of the base's."""
    functions: dict[str, Callable[[np.ndarray], np.floating]] = {"min": np.min, "mean": np.mean, "median": np.median}
    if statistic not in functions:
        raise ValueError(f"statistic={statistic!r} is none of {', '.join(functions)}")
    before, after = (float(functions[statistic](np.asarray(side, dtype=float))) for side in (base, candidate))
    return after / before - 1
