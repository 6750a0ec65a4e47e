"""How positions enter attention: rotation (RoPE), decay with distance (xPos), linear biases (ALiBi), sinusoids.

Everything is computed so that it holds up to position 2^20: angles in float64, since a float32 product of a
position near 2^20 and a frequency is wrong by up to 0.06 rad; results in float32.

Symbols and shape suffixes: L positions, H heads, K head dimension, D model width. Pair i of a head turns by
theta_i = 10000^(-2 i / K) a position (Su et al., arXiv 2104.09864, section 3.2.2); zeta_i is xPos' decay (Sun et
al., arXiv 2212.10554, equation 15).
"""

import math

import torch
from torch import Tensor

BASE = 10_000.0
"""The slowest angle turns once in 2 pi times this many positions; of sinusoids and rotations alike."""

XPOS_GAMMA, XPOS_SCALE_BASE = 0.4, 512.0
"""Section 3.3 and the authors' configuration: the fastest decay's strength, and the positions that it takes."""


def _angles(positions_L: Tensor, width: int) -> Tensor:
    """``(L, width / 2)`` float64: each position times each frequency."""
    exponents = torch.arange(0, width, 2, device=positions_L.device, dtype=torch.float64) / width
    return positions_L.to(torch.float64)[:, None] * BASE**-exponents


def rotary_tables(positions_L: Tensor, head_dim: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, ``(L, K / 2)`` each, in ``dtype``."""
    angles = _angles(positions_L, head_dim)
    return angles.cos().to(dtype), angles.sin_().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K/2) of the last axis by the given angles; at least in float32, back in x's dtype."""
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def xpos_rates(head_dim: int, device: torch.device | str | None = None) -> Tensor:
    """``log(zeta) / 512`` of every head dimension, ``(K,)`` float32, none positive.

    A product of query i and key j along a dimension is scaled by ``exp(rate (i - j))``. The pairs are
    those of :func:`rotate`: dimension i and i + K/2 share a rate.
    """
    pair = torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim
    rates = ((pair + XPOS_GAMMA) / (1 + XPOS_GAMMA)).log() / XPOS_SCALE_BASE
    return rates.float().repeat(2)


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> Tensor:
    """``(H,)`` float32: the bias of a key ``d`` positions back is ``-slope d`` (Press et al., ICLR 2022, section 3).

    A geometric sequence from ``2^(-8/H)`` to ``2^-8`` for a power of two; for other numbers the sequence of the
    next smaller one, then every other slope of the next larger, as in the authors' code.
    """
    n = 2 ** int(math.log2(num_heads))
    # On the device from the start: a copy from the host could not be captured in a CUDA graph.
    whole = torch.arange(1, n + 1, device=device, dtype=torch.float64)
    between = torch.arange(1, num_heads - n + 1, device=device, dtype=torch.float64) - 0.5
    return torch.exp2(-8 / n * torch.cat([whole, between])).float()


def sinusoids(positions_L: Tensor, width: int) -> Tensor:
    """The absolute encoding of Vaswani et al. (2017, section 3.5) that a model adds to its embeddings.

    Returns:
        ``(L, width)`` float32, sine and cosine of pair i side by side; true to float32's own rounding up to
        position 2^20.

    Raises:
        ValueError: an odd width, which does not split into pairs.
    """
    if width % 2:
        raise ValueError(f"sinusoids come in pairs, width={width} is odd; make it even")
    angles = _angles(positions_L, width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()
