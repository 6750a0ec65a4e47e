"""Samples drawn from logits on the device, by random numbers that are drawn beforehand.

That the numbers come first makes a captured step replayable without a generator in it, and lets any other loop be given
the same ones. Shape suffixes: B batch, N new samples, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from logits.

    Args:
        temperature: logits are divided by it; 1 is the model's own distribution.
        top_p: only the likeliest tokens are drawn from, as few as have this share together (Holtzman et al.,
            arXiv 1904.09751); 1 draws from all.

    Raises ValueError for values out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature:g} is not above 0; use 1 for the model's own distribution")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g} is not above 0 and at most 1; use 1 to draw from all tokens")


def draw_uniforms(batch: int, new_samples: int, seed: int) -> Tensor:
    """``(B, N)`` uniform numbers in [0, 1), float64, the same on every device: drawn on the CPU."""
    return torch.rand(batch, new_samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choose(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """``(B,)`` int64 tokens by the inverse of the distribution function; no value reaches the host.

    In float64, since in float32 the sum of 256 shares may end below 1 and a number above it would have no token.
    """
    shares_BV = torch.softmax(logits_BV.double() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        shares_BV = _nucleus(shares_BV, sampling.top_p)
    sums_BV = shares_BV.cumsum(dim=-1)
    # Shares that were cut to 0 are passed over: a token's sum must exceed the number.
    ids_B = (sums_BV <= uniforms_B[:, None] * sums_BV[:, -1:]).sum(dim=-1)
    return ids_B.clamp_max(logits_BV.shape[-1] - 1)


def _nucleus(shares_BV: Tensor, top_p: float) -> Tensor:
    """Without the tokens that the likelier ones make unnecessary; the likeliest always stays."""
    ordered_BV, order_BV = shares_BV.sort(dim=-1, descending=True)
    kept_BV = ordered_BV.cumsum(dim=-1) - ordered_BV < top_p
    return torch.zeros_like(shares_BV).scatter(-1, order_BV, ordered_BV * kept_BV)
