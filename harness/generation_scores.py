"""Scores of generated items by a classifier that saw real ones: FID, IS, mIS and AM. Arrays in, numbers out.

Definitions are those of DiffWave (Kong et al., arXiv 2009.09761, Sec. 5.3), which SaShiMi and Mamba follow, with
p(y|x) the classifier's answer for item x:

* FID (Heusel et al. 2017), lower is better: the Fréchet distance of two Gaussians fitted to the classifier's features.
* IS (Salimans et al. 2016), higher is better, at most the number of classes: exp E_x KL(p(y|x) || E_x p(y|x)).
* mIS (Gurumurthy et al. 2017), higher is better: exp E_x E_x' KL(p(y|x) || p(y|x')).
* AM (Zhou et al. 2018), lower is better: KL(E_real p(y|x) || E_x p(y|x)) + E_x H(p(y|x)).

Expectations are taken over all items and all pairs; SaShiMi's script splits the items in two halves for IS and draws
10,000 pairs for mIS. Natural logarithms. Shape suffixes: N items, F features, K classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_NEGATIVE_SHARE = 1e-6
"""A covariance's eigenvalues may be negative by rounding, up to this share of the largest one."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is kept of real items: their features' mean ``(F,)`` and covariance ``(F, F)``, and mean answer ``(K,)``."""

    mean_F: Float64Array
    covariance_FF: Float64Array
    marginal_K: Float64Array
    num_items: int


def moments(features_NF: npt.ArrayLike, log_probs_NK: npt.ArrayLike) -> Moments:
    """Of a set of items, real or generated.

    Raises:
        ValueError: values that are not finite, answers that are no distributions, or no more items than features,
            whose covariance would be singular.
    """
    features = _finite("features", features_NF)
    probs = np.exp(_log_probs(log_probs_NK))
    num_items, num_features = features.shape
    if len(probs) != num_items:
        raise ValueError(f"{num_items} items have features and {len(probs)} have answers; give those of the same items")
    if num_items <= num_features:
        raise ValueError(
            f"{num_items} item(s) are too few for the covariance of {num_features} features; "
            f"give {num_features + 1} or more"
        )
    return Moments(
        mean_F=features.mean(0),
        covariance_FF=np.cov(features, rowvar=False),
        marginal_K=probs.mean(0),
        num_items=num_items,
    )


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    The root's trace is that of (C1^½ C2 C1^½)^½, which is symmetric: its eigenvalues are real and not negative, also
    where a covariance is singular (silence has one of zeros), so that nothing is perturbed.
    """
    root_FF = _symmetric_root(first.covariance_FF)
    eigenvalues_F = _eigenvalues(root_FF @ second.covariance_FF @ root_FF)
    traces = np.trace(first.covariance_FF) + np.trace(second.covariance_FF)
    distance = np.sum((first.mean_F - second.mean_F) ** 2) + traces - 2 * np.sqrt(eigenvalues_F).sum()
    return float(max(distance, 0.0))


def inception_score(log_probs_NK: npt.ArrayLike) -> float:
    """IS: 1 where all answers are alike, the number of classes where they are sure and balanced."""
    log_probs = _log_probs(log_probs_NK)
    probs = np.exp(log_probs)
    marginal_K = probs.mean(0)
    return float(np.exp(_entropy(marginal_K) - _entropy(probs).mean()))


def modified_inception_score(log_probs_NK: npt.ArrayLike) -> float:
    """mIS, over all ordered pairs, an item with itself among them. It has no upper limit: sureness alone raises it."""
    log_probs = _log_probs(log_probs_NK)
    probs = np.exp(log_probs)
    # The mean over pairs separates: E_x Σ p log p - Σ E_x p · E_x' log p'.
    divergence = -_entropy(probs).mean() - probs.mean(0) @ log_probs.mean(0)
    return float(np.exp(divergence))


def am_score(log_probs_NK: npt.ArrayLike, real_marginal_K: npt.ArrayLike) -> float:
    """AM: 0 where the answers are sure and as frequent as those for real items.

    Raises:
        ValueError: as :func:`moments`, or other classes than the real items'.
    """
    log_probs = _log_probs(log_probs_NK)
    real_K = _finite("marginal of the real items", real_marginal_K)
    if real_K.shape != log_probs.shape[1:]:
        raise ValueError(f"answers are over {log_probs.shape[1]} classes, the real items' over {len(real_K)}")
    # In logarithms, since a class that never comes has a probability that rounds to 0.
    log_marginal_K = np.logaddexp.reduce(log_probs, axis=0) - np.log(len(log_probs))
    divergence = -_entropy(real_K) - real_K @ log_marginal_K
    return float(divergence + _entropy(np.exp(log_probs)).mean())


def _entropy(probs: Float64Array) -> Float64Array:
    """Over the last axis; 0 log 0 is 0."""
    terms = np.zeros_like(probs)
    np.log(probs, out=terms, where=probs > 0)
    entropies: Float64Array = -(probs * terms).sum(-1)
    return entropies


def _symmetric_root(covariance_FF: Float64Array) -> Float64Array:
    values_F, vectors_FF = np.linalg.eigh(covariance_FF)
    root_FF: Float64Array = (vectors_FF * np.sqrt(_not_negative(values_F))) @ vectors_FF.T
    return root_FF


def _eigenvalues(matrix_FF: Float64Array) -> Float64Array:
    return _not_negative(np.linalg.eigvalsh((matrix_FF + matrix_FF.T) / 2))


def _not_negative(values_F: npt.NDArray[Any]) -> Float64Array:
    least = -_NEGATIVE_SHARE * max(float(values_F.max(initial=0.0)), np.finfo(np.float64).tiny)
    if values_F.min(initial=0.0) < least:
        raise ValueError(f"a covariance has the eigenvalue {values_F.min():.3g}; it is not one")
    return np.clip(values_F, 0, None)


def _log_probs(values_NK: npt.ArrayLike) -> Float64Array:
    values = _finite("answers", values_NK)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"answers of shape {values.shape} are not (items, classes) with at least one item")
    totals_N = np.exp(values).sum(1)
    if np.abs(totals_N - 1).max() > 1e-4:
        raise ValueError(f"item {np.abs(totals_N - 1).argmax()}'s answers are no logarithms of a distribution")
    return values


def _finite(what: str, values: npt.ArrayLike) -> Float64Array:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: entry {np.argwhere(~np.isfinite(array))[0].tolist()} is not a finite number")
    return array
