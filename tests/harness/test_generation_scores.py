"""FID, IS, mIS and AM: closed forms, limits, order, and input that has no score."""

import numpy as np
import pytest
from scipy import linalg

from harness.generation_scores import (
    Moments,
    am_score,
    frechet_distance,
    inception_score,
    modified_inception_score,
    moments,
)

NUM_CLASSES = 10


def answers(labels, sureness: float) -> np.ndarray:
    """Logarithms of answers that give the label that probability and the others the rest alike."""
    probs = np.full((len(labels), NUM_CLASSES), (1 - sureness) / (NUM_CLASSES - 1))
    probs[np.arange(len(labels)), labels] = sureness
    return np.log(probs)


def gaussian(seed: int, *, num_items: int = 4000, num_features: int = 8, scale=1.0, shift=0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_items, num_features)) * scale + shift


def of(features: np.ndarray) -> Moments:
    return moments(features, answers(np.arange(len(features)) % NUM_CLASSES, 0.9))


BALANCED = np.arange(1000) % NUM_CLASSES
UNIFORM = np.full(NUM_CLASSES, 1 / NUM_CLASSES)


# ---- FID


def test_fid_of_gaussians_is_the_closed_form():
    scale = np.array([1, 2, 0.5, 1, 3, 1, 1, 0.1])
    first, second = of(gaussian(0, num_items=200_000)), of(gaussian(1, num_items=200_000, scale=scale, shift=0.5))
    assert frechet_distance(first, second) == pytest.approx(8 * 0.25 + ((scale - 1) ** 2).sum(), rel=0.01)


def test_fid_agrees_with_the_matrix_square_root():
    mixing = np.random.default_rng(2).normal(size=(8, 8))
    first, second = of(gaussian(0)), of(gaussian(1) @ mixing)
    root = linalg.sqrtm(first.covariance_FF @ second.covariance_FF).real
    wanted = np.sum((first.mean_F - second.mean_F) ** 2)
    wanted += np.trace(first.covariance_FF + second.covariance_FF - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)


def test_fid_is_symmetric_zero_to_itself_and_does_not_change_under_rotation():
    first, second = of(gaussian(0)), of(gaussian(1, scale=2))
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
    rotated = frechet_distance(of(gaussian(0) @ rotation), of(gaussian(1, scale=2) @ rotation))
    assert rotated == pytest.approx(frechet_distance(first, second))


def test_fid_to_a_point_needs_no_perturbation():
    """Silence: all features alike, a covariance of zeros."""
    real = of(gaussian(0))
    point = of(np.ones((100, 8)))
    wanted = np.sum((real.mean_F - 1) ** 2) + np.trace(real.covariance_FF)
    assert frechet_distance(point, real) == pytest.approx(wanted)
    assert frechet_distance(real, point) == pytest.approx(wanted)


def test_fid_of_almost_dependent_features_stays_finite():
    base = gaussian(0, num_features=2)
    features = np.hstack([base, base + 1e-9 * gaussian(1, num_features=2), np.zeros((len(base), 2))])
    assert frechet_distance(of(features), of(features)) == pytest.approx(0, abs=1e-6)


def test_fid_of_two_halves_falls_with_their_size():
    distances = [frechet_distance(of(gaussian(0, num_items=n)), of(gaussian(1, num_items=n))) for n in (50, 500, 5000)]
    assert distances[0] > distances[1] > distances[2] > 0


# ---- IS, mIS, AM


def test_is_is_the_number_of_classes_at_best_and_one_at_worst():
    assert inception_score(answers(BALANCED, 1 - 1e-12)) == pytest.approx(NUM_CLASSES, rel=1e-6)
    assert inception_score(answers(BALANCED, 0.1)) == pytest.approx(1)
    assert inception_score(answers(np.zeros(1000, int), 0.99)) == pytest.approx(1), "one class alone"
    assert inception_score(answers(BALANCED % 5, 1 - 1e-12)) == pytest.approx(5, rel=1e-6)


def test_mis_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(NUM_CLASSES), size=30))
    pairs = [np.sum(np.exp(p) * (p - q)) for p in log_probs for q in log_probs]
    assert modified_inception_score(log_probs) == pytest.approx(np.exp(np.mean(pairs)))
    assert modified_inception_score(answers(np.zeros(50, int), 0.9)) == pytest.approx(1)


def test_mis_is_above_is_and_grows_with_sureness_where_is_is_at_its_limit():
    scores = [
        (inception_score(a), modified_inception_score(a)) for a in (answers(BALANCED, s) for s in (0.9, 0.99, 0.999))
    ]
    assert all(mis > is_ for is_, mis in scores)
    assert scores[0][1] < scores[1][1] < scores[2][1] and scores[2][1] > 100


def test_am_is_zero_for_sure_answers_as_frequent_as_the_real_ones():
    assert am_score(answers(BALANCED, 1 - 1e-13), UNIFORM) == pytest.approx(0, abs=1e-9)
    assert am_score(answers(BALANCED, 0.1), UNIFORM) == pytest.approx(np.log(NUM_CLASSES)), "unsure"
    # Sure, but half of the classes never come: KL of the real marginal to one without them.
    half = am_score(answers(BALANCED % 5, 0.9999), UNIFORM)
    assert half > 0.5 * np.log(1 / 0.0001 / 10)


def test_am_of_a_class_whose_probability_underflows_is_finite():
    log_probs = np.full((10, 3), -2000.0)
    log_probs[:, 0] = 0
    assert am_score(log_probs, np.full(3, 1 / 3)) == pytest.approx(2 / 3 * 2000 - np.log(3))


# ---- mistakes


def test_no_more_items_than_features():
    with pytest.raises(ValueError, match=r"8 item\(s\) are too few for the covariance of 8 features; give 9 or more"):
        of(gaussian(0, num_items=8))
    assert of(gaussian(0, num_items=9)).num_items == 9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_placed(bad):
    features = gaussian(0, num_items=20)
    features[3, 2] = bad
    with pytest.raises(ValueError, match=r"features: entry \[3, 2\] is not a finite number"):
        of(features)
    log_probs = answers(np.zeros(20, int), 0.5)
    log_probs[4, 1] = bad
    for score in (inception_score, modified_inception_score):
        with pytest.raises(ValueError, match=r"answers: entry \[4, 1\]"):
            score(log_probs)


@pytest.mark.parametrize("log_probs", [np.zeros((0, 10)), np.zeros(10), np.zeros((5, 10)), np.full((5, 10), 0.1)])
def test_answers_that_are_no_distributions(log_probs):
    with pytest.raises(ValueError, match=r"with at least one item|no logarithms of a distribution"):
        inception_score(log_probs)


def test_other_classes_and_other_items():
    with pytest.raises(ValueError, match="over 10 classes, the real items' over 3"):
        am_score(answers(BALANCED, 0.9), np.full(3, 1 / 3))
    with pytest.raises(ValueError, match="20 items have features and 19 have answers"):
        moments(gaussian(0, num_items=20), answers(np.zeros(19, int), 0.5))


def test_what_is_no_covariance():
    negative = Moments(mean_F=np.zeros(2), covariance_FF=np.diag([1.0, -0.5]), marginal_K=UNIFORM, num_items=10)
    with pytest.raises(ValueError, match=r"eigenvalue -0\.5"):
        frechet_distance(negative, negative)
