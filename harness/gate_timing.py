"""The gate's timing rule: two series of samples in, a verdict out.

Noise of a shared machine only ever adds time, in bursts. The lower quartile stays on the quiet floor until three
quarters of the samples are disturbed, where a mean or a median does not.

The limit: a burst as long as the whole series looks like a slowdown. On simulated noise (a 2x burst a tenth of the
time, five samples long on average) series of 30 raise fewer than 1 % false alarms, series of 9 about 2 %, series of
5 about 4 %.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from harness.gate_statistics import QUARTILE
from harness.statistics import Estimate

MIN_SAMPLES = 5
"""Fewer have no lower quartile apart from their minimum."""
ONE_SIDED_LEVEL = 0.025
_NUM_RESAMPLES = 2000
"""The 2.5 % tail then rests on 50 resamples."""
TimingVerdict = Literal["regressed", "improved", "pass", "inconclusive"]


def samples_of(record: Mapping[str, Any]) -> list[float]:
    """The finite positive latency samples of a record."""
    values = record["metrics"].get("latency_ms") or []
    values = values if isinstance(values, list | tuple) else [values]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return [v for v in numbers if 0 < v < float("inf")]


def quartile_ratio(base: ArrayLike, candidate: ArrayLike, *, seed: int) -> Estimate:
    """Candidate's lower quartile over the base's; each bound is one-sided 97.5 %, by a seeded bootstrap."""
    rng = np.random.default_rng(seed)
    series = [np.asarray(side, dtype=float) for side in (base, candidate)]
    resampled = [np.quantile(s[_indices(rng, s.size)], QUARTILE, axis=1) for s in series]
    low, high = np.quantile(resampled[1] / resampled[0], [ONE_SIDED_LEVEL, 1 - ONE_SIDED_LEVEL])
    value = np.quantile(series[1], QUARTILE) / np.quantile(series[0], QUARTILE)
    return Estimate(value=float(value), low=float(low), high=float(high), n=min(s.size for s in series))


def _indices(rng: np.random.Generator, size: int) -> np.ndarray:
    """Resamples in circular blocks of about the cube root: samples next to each other share a burst."""
    block = max(1, round(size ** (1 / 3)))
    starts = rng.integers(0, size, (_NUM_RESAMPLES, -(-size // block)))
    indices = (starts[:, :, None] + np.arange(block)) % size
    return indices.reshape(_NUM_RESAMPLES, -1)[:, :size]


def judge_timing(
    base: Sequence[float], candidate: Sequence[float], tolerance: float, *, seed: int
) -> tuple[TimingVerdict, dict[str, Any]]:
    """The verdict, and ``base``, ``candidate`` (lower quartiles, ms) and ``detail`` of its row."""
    quartiles = {"base": float(np.quantile(base, QUARTILE)), "candidate": float(np.quantile(candidate, QUARTILE))}
    if list(base) == list(candidate):  # one measurement read twice: there is nothing to estimate
        return "pass", quartiles
    ratio = quartile_ratio(base, candidate, seed=seed)
    detail = f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], allowed {1 + tolerance:.2f}"
    if ratio.low > 1 + tolerance:
        return "regressed", quartiles | {"detail": detail}
    if ratio.high < 1 - tolerance:
        return "improved", quartiles | {"detail": detail}
    if ratio.high < 1 + tolerance:
        return "pass", quartiles | {"detail": detail}
    visible = (1 + tolerance) * ratio.value / ratio.low - 1
    return "inconclusive", quartiles | {"detail": f"{detail}; the smallest slowdown it could have seen: {visible:+.0%}"}


def timing_notes(num_timed: int, timing_fails: bool) -> list[str]:
    """What a reader must know about timing verdicts; nothing where no time was compared."""
    if not num_timed:
        return []
    level = (
        f"timing: {num_timed} trial{'s' * (num_timed > 1)}, each judged by itself at a one-sided level of "
        f"{ONE_SIDED_LEVEL:.1%} (bootstrap bounds of the ratio of lower quartiles), with no correction for their number"
    )
    drift = (
        "timing: each side is a single run, and records of two single runs cannot separate drift of the machine "
        "between them from a change of the code; "
    )
    consequence = (
        "--timing-fails lets it fail the gate all the same"
        if timing_fails
        else ("a slowdown is therefore `suspect` and does not fail the gate (--timing-fails lets it)")
    )
    return [level, drift + consequence]
