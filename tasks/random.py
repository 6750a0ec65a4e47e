"""Counter-based randomness: Philox4x32-10 in plain int64 tensor arithmetic.

The same words come out on every device and for every batch size, because a word is a pure function
of (key, counter): Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. No state
is kept and no global generator is touched.
"""

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MUL_0, _MUL_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def derive_key(*parts: str | int) -> tuple[int, int]:
    """Two 32-bit key words from a readable description of what the stream is for."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox(key: tuple[int, int], counter: tuple[Tensor | int, ...]) -> tuple[Tensor, ...]:
    """Four words in [0, 2^32) for every counter.

    Args:
        key: two 32-bit words.
        counter: four 32-bit words, each an int or an int64 tensor; they broadcast together.

    Returns:
        Four int64 tensors of the broadcast shape.
    """
    device = next((c.device for c in counter if isinstance(c, Tensor)), torch.device("cpu"))
    # Filled there, not copied: a copy from the host would make it wait for the device.
    words = (c if isinstance(c, Tensor) else torch.full((), c, dtype=torch.int64, device=device) for c in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products wrap like unsigned ones; masking after the shift drops the sign.
        product_0, product_1 = c0 * _MUL_0, c2 * _MUL_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _MASK) ^ c1 ^ k0,
            product_1 & _MASK,
            ((product_0 >> 32) & _MASK) ^ c3 ^ k1,
            product_0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def random_words(key: tuple[int, int], examples_B: Tensor, count: int, *, stream: int = 0) -> Tensor:
    """``count`` independent words in [0, 2^32) for every example: int64 ``(B, count)``.

    ``stream`` separates the uses that one example makes of its randomness.
    """
    device = examples_B.device
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    low, high = examples_B & _MASK, (examples_B >> 32) & _MASK
    words = philox(key, (blocks[None, :], stream, low[:, None], high[:, None]))
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def uniform_below(words: Tensor, bound: Tensor | int) -> Tensor:
    """Map words in [0, 2^32) to integers in [0, bound), bound <= 2^20.

    Multiply-and-shift: no value is favoured by more than bound / 2^32 (under 0.03 %).
    """
    return (words * bound) >> 32


def distinct_sorted(key: tuple[int, int], examples_B: Tensor, count: int, bound: int, *, stream: int) -> Tensor:
    """``count`` distinct integers below ``bound``, ascending, uniform over all subsets: ``(B, count)``.

    Floyd's algorithm over the batch: O(count^2) work whatever ``bound`` is, and exact.
    """
    words = random_words(key, examples_B, count, stream=stream)
    chosen = torch.full_like(words, -1)
    for i in range(count):
        last = bound - count + i
        draw_B = uniform_below(words[:, i], last + 1)
        taken_B = (chosen[:, :i] == draw_B[:, None]).any(dim=1)
        chosen[:, i] = torch.where(taken_B, last, draw_B)
    return chosen.sort(dim=1).values
