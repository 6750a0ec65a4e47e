"""The largest batch that fits, found by trying: arithmetic alone, what a try is comes from outside."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRECISION = 16
"""The search ends when the smallest batch that failed is within 1/16 of the largest that fitted."""
MAX_PROBES = 32
_FIRST_EXTRAPOLATION = 8
"""Below this batch weights and workspaces hide what a sequence takes."""
_LONGEST_JUMP = 128
_MARGIN = 32  # an extrapolated batch is tried 1/32 below, since the allocator loses some of the memory


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


def search_largest(
    probe: Callable[[int], Probe],
    *,
    capacity_bytes: int,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Probe]:
    """Try batches from 1 up until the largest that fits is known to 1/16, or time or probes run out.

    Doubles first; memory grows by the same for every sequence, so from a batch of 8 up the next try is where
    two measured peaks say that ``capacity_bytes`` ends. Large batches, which take long, are tried few times so.
    Then bisects.

    Returns:
        the probes in order; the largest that fits is :func:`largest_fitting` of them.
    """
    probes: list[Probe] = []
    began = clock()
    while len(probes) < MAX_PROBES and (not probes or clock() - began < budget_s):
        batch = _next_batch(probes, capacity_bytes)
        if batch is None:
            break
        probes.append(probe(batch))
    return probes


def largest_fitting(probes: list[Probe]) -> int:
    """0 where none fits."""
    return max((p.batch for p in probes if p.fits), default=0)


def is_bracketed(probes: list[Probe]) -> bool:
    """Whether the search came to its end: a batch within 1/16 above the largest that fits is known to fail."""
    return _next_batch(probes, 0) is None


def _next_batch(probes: list[Probe], capacity_bytes: int) -> int | None:
    """None where the largest batch is known well enough."""
    low = largest_fitting(probes)
    high = min((p.batch for p in probes if not p.fits), default=None)
    step = max(1, low // PRECISION)
    if low == 0:
        return 1 if high is None else None
    if high is not None and high - low <= step:
        return None
    guess = _extrapolated(probes, capacity_bytes)
    if high is None:
        if guess is None:
            return 2 * low
        # Where more fits than there should be room for, the distance from the guess doubles.
        return min(max(guess, low + step, 2 * low - guess), _LONGEST_JUMP * low)
    if guess is not None and low < guess < high:
        # Near the end of the memory; never so close to a bound that the other would stay far away.
        return min(max(guess, low + step), high - 1)
    if high > 2 * low and guess is not None:  # the jump went too far, but hardly by half
        return high - max(1, high // 8)
    return (low + high) // 2


def _extrapolated(probes: list[Probe], capacity_bytes: int) -> int | None:
    """Where the line through the two largest fitting probes meets the capacity, less a margin."""
    known = sorted((p.batch, p.peak_bytes) for p in probes if p.fits and p.peak_bytes is not None)
    if len(known) < 2 or known[-1][0] < _FIRST_EXTRAPOLATION:
        return None
    (batch_0, peak_0), (batch_1, peak_1) = known[-2:]
    if peak_1 <= peak_0:
        return None
    a_sequence = (peak_1 - peak_0) / (batch_1 - batch_0)
    room = batch_1 + int((capacity_bytes - peak_1) / a_sequence)
    return room - room // _MARGIN
