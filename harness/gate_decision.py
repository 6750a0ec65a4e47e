"""The timing tier's way to a verdict on one benchmark: pairs of blocks are added until it is decided.

First stage: pairs are added while the bounds allow more than one verdict. What looks slower or faster then goes on to a
second stage on fresh pairs alone, with the same rule, and counts only if it holds there again: looking several times,
or one long disturbance, raises one false alarm but hardly the same one twice.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from harness.gate_statistics import QUARTILE, quartile_ratio_of_pairs, smallest_effect
from harness.statistics import Estimate

MIN_PAIRS = 12
"""Of a stage. Fewer widen the interval by more than a tenth (:func:`~harness.gate_statistics.expanded_level`)."""
MAX_PAIRS = 24
"""Of a stage. Twice the fewest: what these cannot tell would take several times the time."""
PairedVerdict = Literal["regressed", "improved", "pass", "inconclusive"]


def judge_ratio(ratio: Estimate, tolerance: float) -> PairedVerdict:
    """What bounds of a ratio say of a change beyond ``tolerance``."""
    if ratio.low > 1 + tolerance:
        return "regressed"
    if ratio.high < 1 - tolerance:
        return "improved"
    return "pass" if ratio.high < 1 + tolerance else "inconclusive"


@dataclass
class _Stage:
    base: list[np.ndarray] = field(default_factory=list)
    candidate: list[np.ndarray] = field(default_factory=list)
    ratio: Estimate | None = None
    verdict: PairedVerdict = "inconclusive"

    @property
    def num_pairs(self) -> int:
        return len(self.base)

    @property
    def is_open(self) -> bool:
        return self.num_pairs < MIN_PAIRS or (self.verdict == "inconclusive" and self.num_pairs < MAX_PAIRS)

    def add(self, base_PS: ArrayLike, candidate_PS: ArrayLike, tolerance: float, seed: int) -> None:
        self.base += list(np.asarray(base_PS, dtype=float))
        self.candidate += list(np.asarray(candidate_PS, dtype=float))
        if self.num_pairs >= MIN_PAIRS:
            self.ratio = quartile_ratio_of_pairs(self.base, self.candidate, seed=seed + self.num_pairs)
            self.verdict = judge_ratio(self.ratio, tolerance)

    def quartile_ms(self, side: list[np.ndarray]) -> float | None:
        return float(np.quantile(np.concatenate(side), QUARTILE)) if side else None


class TimingDecision:
    """One benchmark: give it pairs by :meth:`add` while it ``is_open``, or stop earlier and take what stands."""

    def __init__(self, tolerance: float, *, seed: int) -> None:
        self.tolerance = tolerance
        self._seed = seed
        self._first, self._fresh = _Stage(), _Stage()

    @property
    def _needs_fresh(self) -> bool:
        return not self._first.is_open and self._first.verdict in ("regressed", "improved")

    @property
    def is_open(self) -> bool:
        """Whether more pairs could change the verdict."""
        return self._fresh.is_open if self._needs_fresh else self._first.is_open

    @property
    def num_pairs(self) -> int:
        return self._first.num_pairs + self._fresh.num_pairs

    def add(self, base_PS: ArrayLike, candidate_PS: ArrayLike) -> None:
        """Pairs of blocks in ms, in their order: row i of both sides ran next to each other."""
        if self._needs_fresh:
            self._fresh.add(base_PS, candidate_PS, self.tolerance, self._seed + MAX_PAIRS)
        else:
            self._first.add(base_PS, candidate_PS, self.tolerance, self._seed)

    @property
    def verdict(self) -> PairedVerdict:
        """As it stands: an alarm that fresh pairs have not repeated is none."""
        first, fresh = self._first.verdict, self._fresh.verdict
        if not self._needs_fresh or fresh == first:
            return first
        return "pass" if fresh == "pass" else "inconclusive"

    @property
    def ratio(self) -> Estimate | None:
        """Of the stage that decides; None before there are enough pairs."""
        return self._fresh.ratio or self._first.ratio

    @property
    def smallest_effect(self) -> float | None:
        """The slowdown that these pairs would have shown four times in five; None before there are enough."""
        return smallest_effect(self.ratio, self.tolerance) if self.ratio else None

    @property
    def quartiles_ms(self) -> tuple[float | None, float | None]:
        """Lower quartiles of base and candidate in the stage that decides."""
        stage = self._fresh if self._fresh.ratio else self._first
        return stage.quartile_ms(stage.base), stage.quartile_ms(stage.candidate)

    @property
    def detail(self) -> str:
        """The verdict's grounds in one sentence."""
        first, fresh = self._first.ratio, self._fresh.ratio
        if first is None:
            return f"{self.num_pairs} pairs of blocks, {MIN_PAIRS} are needed: no time was left; raise --budget"
        seen = f"{_in_words(first)}, allowed {self.tolerance:+.0%}"
        sight = f"the smallest slowdown it could have seen: {self.smallest_effect:+.1%}"
        if not self._needs_fresh:
            return f"{seen}; {sight}" if self.verdict == "inconclusive" else seen
        if fresh is None:
            return f"{seen}; not tried again on fresh pairs: no time was left; raise --budget"
        if self.verdict == self._first.verdict:
            return f"{seen}; again on fresh pairs: {_in_words(fresh)}"
        unlike = f"{seen}; did not repeat on fresh pairs: {_in_words(fresh)}"
        return f"{unlike}; {sight}" if self.verdict == "inconclusive" else unlike


def _in_words(ratio: Estimate) -> str:
    word = "slower" if ratio.value >= 1 else "faster"
    return (
        f"{abs(ratio.value - 1):.1%} {word} "
        f"(97.5 % bounds {ratio.low - 1:+.1%} and {ratio.high - 1:+.1%}, {ratio.n} pairs of blocks)"
    )
