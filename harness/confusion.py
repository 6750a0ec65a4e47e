"""Agreement of answers with classes: Matthews correlation and balanced accuracy. Arrays in, numbers out.

Shape suffixes: K classes, A answers (the classes, and last whatever is none of them).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from harness.statistics import Estimate

RESAMPLES = 2000
"""Of the bootstrap: the ends of its interval then vary by about a fiftieth of the interval's width."""

Counts = npt.NDArray[np.int64]


def confusion(true: ArrayLike, answered: ArrayLike, num_classes: int) -> Counts:
    """How often each class was answered with what: ``(K, A)``, A = K + 1.

    Args:
        true: classes, 0 … K - 1.
        answered: the same; any other number is an answer that names no class, which is wrong for every class.

    Raises:
        ValueError: no answers, different numbers of both, or a true class out of range.
    """
    true_N, answered_N = np.asarray(true, dtype=np.int64), np.asarray(answered, dtype=np.int64)
    if not true_N.size or true_N.shape != answered_N.shape:
        raise ValueError(f"{true_N.size} classes and {answered_N.size} answers; give one answer a class, at least one")
    if true_N.min() < 0 or true_N.max() >= num_classes:
        raise ValueError(f"true classes {true_N.min()} to {true_N.max()} are not within 0..{num_classes - 1}")
    answered_N = np.where((answered_N >= 0) & (answered_N < num_classes), answered_N, num_classes)
    cells = np.bincount(true_N * (num_classes + 1) + answered_N, minlength=num_classes * (num_classes + 1))
    return cells.reshape(num_classes, num_classes + 1)


def matthews(counts_KA: ArrayLike) -> npt.NDArray[np.float64]:
    """Matthews correlation of one confusion matrix or of many (leading axes): 1 all right, 0 no better than chance.

    With more than two classes Gorodkin's R_K (Comput. Biol. Chem. 28, 2004), with two the phi coefficient. It is 0
    where all items are of one class or all answers are alike, for which it is not defined.
    """
    counts = np.asarray(counts_KA, dtype=np.float64)
    classes = counts.shape[-2]
    true_K, answered_A = counts.sum(-1), counts.sum(-2)
    total = counts.sum((-2, -1))
    correct = np.trace(counts[..., :classes], axis1=-2, axis2=-1)
    covariance = correct * total - (true_K * answered_A[..., :classes]).sum(-1)
    spread = (total**2 - (true_K**2).sum(-1)) * (total**2 - (answered_A**2).sum(-1))
    root = np.sqrt(np.maximum(spread, 0))
    return np.divide(covariance, root, out=np.zeros_like(root), where=root > 0)


def balanced_accuracy(counts_KA: ArrayLike) -> npt.NDArray[np.float64]:
    """Mean of the classes' own accuracies, of the classes that have items."""
    counts = np.asarray(counts_KA, dtype=np.float64)
    true_K = counts.sum(-1)
    correct_K = np.diagonal(counts[..., : counts.shape[-2]], axis1=-2, axis2=-1)
    own_K = np.divide(correct_K, true_K, out=np.zeros_like(true_K), where=true_K > 0)
    return np.asarray(own_K.sum(-1) / np.maximum((true_K > 0).sum(-1), 1))


def bootstrap(counts_KA: ArrayLike, statistic: Callable[[ArrayLike], npt.NDArray[np.float64]]) -> Estimate:
    """The statistic with its percentile interval over resampled items; seeded, so that it is the same every time.

    Drawing items with replacement is drawing cells of the matrix. Where every item is answered alike the interval has
    no width: no resample differs. ``n`` counts items.
    """
    counts = np.asarray(counts_KA, dtype=np.int64)
    items = int(counts.sum())
    drawn = np.random.default_rng(0).multinomial(items, counts.ravel() / items, size=RESAMPLES)
    low, high = np.percentile(statistic(drawn.reshape(-1, *counts.shape)), (2.5, 97.5))
    return Estimate(value=float(statistic(counts)), low=float(low), high=float(high), n=items)
