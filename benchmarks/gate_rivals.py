"""What other rules say about the samples that the gate judges: threshold rules of ``pytest-benchmark compare``, and a
rank test. Each takes the pooled samples of both sides and says whether the candidate is slower."""

from collections.abc import Callable

import numpy as np

from harness.gate_statistics import mann_whitney, relative_change

Rule = Callable[[np.ndarray, np.ndarray], bool]
RANK_LEVEL = 0.025
"""One-sided, as the gate's own bounds."""


def _threshold(statistic: str, share: float) -> Rule:
    """``--benchmark-compare-fail=STATISTIC:SHARE``."""
    return lambda base, candidate: relative_change(base, candidate, statistic) > share


RIVALS: dict[str, Rule] = {
    "pytest-benchmark min:5%": _threshold("min", 0.05),
    "pytest-benchmark min:10%": _threshold("min", 0.10),
    "pytest-benchmark mean:5%": _threshold("mean", 0.05),
    "pytest-benchmark mean:10%": _threshold("mean", 0.10),
    f"Mann-Whitney, one-sided p < {RANK_LEVEL:g}": lambda base, candidate: (
        mann_whitney(base, candidate)[1] < RANK_LEVEL
    ),
}
