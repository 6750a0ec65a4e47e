"""The largest batch that fits, found by trying: arithmetic alone, what a try is comes from outside."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRECISION = 16
"""The search ends when the smallest batch that failed is within 1/16 of the largest that fitted."""
MAX_PROBES = 32
_CLOSE_TRIES = 4
"""So many failures in 1/16 steps, which reach 22 % below what was expected; then it was no guide, and halves follow."""
_NEAR_BATCH = 128
"""Where a prediction begins: large enough that what a sequence takes is not lost in the weights."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One batch that was tried."""

    batch: int
    fits: bool
    peak_bytes: int | None = None
    """What it took, weights included, where that is known."""
    why: str = ""
    """Why it does not fit."""

    def as_dict(self) -> dict[str, Any]:
        return {"batch": self.batch, "fits": self.fits} | ({"why": self.why} if self.why else {})


@dataclass(frozen=True, kw_only=True)
class PeakLine:
    """Peak bytes by batch, as the line through two known ones: a sequence more adds as much again."""

    batches: tuple[int, int]
    peaks_bytes: tuple[int, int]

    @property
    def _a_sequence(self) -> float:
        (batch_0, batch_1), (peak_0, peak_1) = self.batches, self.peaks_bytes
        return max(1.0, (peak_1 - peak_0) / (batch_1 - batch_0))

    def peak_bytes(self, batch: int) -> int:
        return round(self.peaks_bytes[1] + (batch - self.batches[1]) * self._a_sequence)

    def batch_that_fills(self, capacity_bytes: int) -> int:
        """At least 1."""
        return max(1, self.batches[1] + int((capacity_bytes - self.peaks_bytes[1]) / self._a_sequence))


def line_to_capacity(peak_of: Callable[[int], int], *, empty_bytes: int, capacity_bytes: int) -> PeakLine:
    """The line that holds where the memory ends, from two predictions.

    The second is made where a line through the first and ``empty_bytes``, what no sequence at all takes, fills the
    capacity: kernels that cut large batches into parts bend the line below.
    """
    near = PeakLine(batches=(0, _NEAR_BATCH), peaks_bytes=(empty_bytes, peak_of(_NEAR_BATCH)))
    end = near.batch_that_fills(capacity_bytes)
    if end == _NEAR_BATCH:
        return near
    return PeakLine(batches=(_NEAR_BATCH, end), peaks_bytes=(near.peaks_bytes[1], peak_of(end)))


def search_largest(
    probe: Callable[[int], Probe],
    *,
    expected: int,
    capacity_bytes: int,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Probe]:
    """Try batches until the largest that fits is known to 1/16, or until one fits and time is up.

    The first is the one that is ``expected`` to fill ``capacity_bytes``: no less, since a try too high runs out of
    memory early, and one too low costs a whole generation more. From one that fits the next is 1/16 up, or where its
    measured peak says that the capacity ends; from one that fails 1/16 down. So a good prediction costs one probe that
    fits, which takes long, and failing ones, which end early.

    Returns:
        the probes in order; the largest that fits is :func:`largest_fitting` of them.
    """
    probes: list[Probe] = []
    began = clock()
    while len(probes) < MAX_PROBES and (not largest_fitting(probes) or clock() - began < budget_s):
        batch = _next_batch(probes, expected, capacity_bytes)
        if batch is None:
            break
        probes.append(probe(batch))
    return probes


def largest_fitting(probes: list[Probe]) -> int:
    """0 where none fits."""
    return max((p.batch for p in probes if p.fits), default=0)


def is_bracketed(probes: list[Probe]) -> bool:
    """Whether the search came to its end: a batch within 1/16 above the largest that fits is known to fail."""
    low, high = largest_fitting(probes), _smallest_failing(probes)
    return high is not None and high - low <= max(1, low // PRECISION)


def _smallest_failing(probes: list[Probe]) -> int | None:
    return min((p.batch for p in probes if not p.fits), default=None)


def _next_batch(probes: list[Probe], expected: int, capacity_bytes: int) -> int | None:
    """None where the largest batch is known well enough."""
    low, high = largest_fitting(probes), _smallest_failing(probes)
    if not probes:
        return max(1, expected)
    if is_bracketed(probes):
        return None
    if high is None:
        (best,) = (p for p in probes if p.batch == low)
        measured = low * capacity_bytes // best.peak_bytes if best.peak_bytes else 0
        # Where more and more fit, the prediction was no guide: the distance doubles.
        up = max(1, low // PRECISION) << max(0, len(probes) - 2)
        return max(low + min(up, low), measured)
    if low == 0:
        # The largest whose 1/16 reaches back to the one that failed.
        close = min(high - 1, -(-high * PRECISION // (PRECISION + 1)))
        return close if len(probes) <= _CLOSE_TRIES else high // 2
    return (low + high) // 2
