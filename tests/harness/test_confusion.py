"""Matthews correlation and balanced accuracy: by hand, at their limits, and how often their intervals hold."""

import math

import numpy as np
import pytest

from harness.confusion import balanced_accuracy, bootstrap, confusion, matthews


def test_two_classes_by_hand() -> None:
    # 6 true negatives, 1 false positive, 2 false negatives, 3 true positives
    true = [0] * 7 + [1] * 5
    answered = [0] * 6 + [1] + [0] * 2 + [1] * 3
    counts = confusion(true, answered, 2)
    assert counts.tolist() == [[6, 1, 0], [2, 3, 0]]
    expected = (3 * 6 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (6 + 1) * (6 + 2))
    assert matthews(counts) == pytest.approx(expected)
    assert balanced_accuracy(counts) == pytest.approx((6 / 7 + 3 / 5) / 2)


def test_three_classes_by_hand() -> None:
    counts = np.array([[5, 1, 0, 0], [2, 4, 0, 0], [0, 1, 3, 0]])
    # Gorodkin: (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), c = 12, s = 16, t = 6 6 4, p = 7 6 3
    expected = (12 * 16 - (7 * 6 + 6 * 6 + 3 * 4)) / math.sqrt((256 - 94) * (256 - 88))
    assert matthews(counts) == pytest.approx(expected)


def test_it_is_the_correlation_of_the_indicators() -> None:
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 400)
    answered = np.where(rng.random(400) < 0.7, true, 1 - true)
    assert matthews(confusion(true, answered, 2)) == pytest.approx(np.corrcoef(true, answered)[0, 1])


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_limits(classes: int) -> None:
    true = np.arange(60) % classes
    assert matthews(confusion(true, true, classes)) == pytest.approx(1)
    assert matthews(confusion(true, np.zeros(60), classes)) == 0, "one answer to all is worth nothing"
    assert balanced_accuracy(confusion(true, np.zeros(60), classes)) == pytest.approx(1 / classes)
    assert matthews(confusion(np.zeros(60), true, classes)) == 0, "one class has no correlation"
    assert matthews(confusion([0, 1] * 30, [1, 0] * 30, 2)) == pytest.approx(-1)


def test_an_answer_that_names_no_class_is_wrong_for_all() -> None:
    counts = confusion([0, 0, 1, 1], [0, -4, 1, 9], 2)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert balanced_accuracy(counts) == pytest.approx(0.5)
    assert 0 < matthews(counts) < 1


def test_a_frequent_class_carries_accuracy_and_not_these() -> None:
    counts = confusion([0] * 95 + [1] * 5, [0] * 100, 2)
    assert (matthews(counts), balanced_accuracy(counts)) == (0, 0.5)


def test_interval_is_the_same_every_time_and_covers_the_truth() -> None:
    right = 0.8  # of both classes, half of the items each: the correlation is 0.6
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        true = rng.integers(0, 2, 150)
        answered = np.where(rng.random(150) < right, true, 1 - true)
        estimate = bootstrap(confusion(true, answered, 2), matthews)
        held += estimate.low <= 2 * right - 1 <= estimate.high
    assert 180 <= held <= 199
    assert estimate.low < estimate.value < estimate.high and estimate.n == 150
    assert bootstrap(confusion(true, answered, 2), matthews) == estimate


@pytest.mark.parametrize(
    ("true", "answered", "message"),
    [([], [], "at least one"), ([0], [0, 1], "1 classes and 2 answers"), ([2], [0], r"not within 0\.\.1")],
)
def test_what_cannot_be_counted(true: list[int], answered: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(true, answered, 2)
