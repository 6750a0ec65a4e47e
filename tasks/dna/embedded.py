"""The embedded DNA: three made-up chromosomes, for machines that have no data.

A background with the short-range statistics of a Markov chain, and what makes long context help in
real genomes: microsatellites, families of dispersed repeats, and long duplications with mutations.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from tasks.base import Split
from tasks.prepared import RawDocument, TokenArray
from tasks.random import derive_key, philox

NOTE = "embedded synthetic DNA: Markov background, tandem repeats, mutated copies; not a real genome"

VERSION = 1
"""Raised whenever the sequences change."""

SPLIT_OF_GROUP: dict[str, Split] = {"synthetic 1": "train", "synthetic 2": "validation", "synthetic 3": "test"}
_LENGTHS = {"synthetic 1": 1_200_000, "synthetic 2": 500_000, "synthetic 3": 1_100_000}
"""Train and test hold windows of 2^20 tokens."""

NUM_SPECIES, _ANCESTOR_LEN = 5, 200_000

_ORDER = 4
_NUM_CHAINS = 2048
"""The background is made of this many chains side by side, so that numpy advances them together."""
_NUM_FAMILIES = 6

Int64Array = npt.NDArray[np.int64]


def sha256() -> str:
    """Of the recipe's version: the sequences are a pure function of it (a test keeps their own sha256)."""
    return hashlib.sha256(f"seqbench embedded dna v{VERSION}".encode()).hexdigest()


def documents() -> Iterator[RawDocument]:
    """The three chromosomes; O(length) work, well under a second in all."""
    table = _background_table()
    families = [_background(table, f"family {i}", 280 + 20 * i) for i in range(_NUM_FAMILIES)]
    for name, length in _LENGTHS.items():
        tokens_L = _background(table, name, length)
        _add_dispersed_repeats(tokens_L, families, name)
        _add_duplications(tokens_L, name)
        _add_tandem_repeats(tokens_L, name)
        yield RawDocument(name=name, group=name, tokens=tokens_L)


def species_documents() -> Iterator[RawDocument]:
    """Five relatives: one ancestor with so many substitutions, 2 % to 26 %, that its statistics fade."""
    ancestor = made_up_dna("ancestor", _ANCESTOR_LEN)
    for index in range(NUM_SPECIES):
        name = f"relative {index + 1}"
        tokens_L = mutate(ancestor, name, 0.02 + 0.06 * index)
        yield RawDocument(name=f"{name.replace(' ', '')}.fa:region", group=name, tokens=tokens_L)


def draw_words(purpose: str, count: int) -> Int64Array:
    """``count`` words in [0, 2^32) for a named purpose."""
    counters = torch.arange((count + 3) // 4, dtype=torch.int64)
    words = philox(derive_key("embedded dna", VERSION, purpose), (counters, 0, 0, 0))
    flat: Int64Array = torch.stack(words, dim=-1).flatten()[:count].numpy()
    return flat


def made_up_dna(purpose: str, length: int) -> TokenArray:
    """A stretch of the background for a named purpose."""
    return _background(_background_table(), purpose, length)


def _background_table() -> Int64Array:
    """For each context of four bases, the cumulated chances of A, C, G, T in units of 2^-32: ``(256, 4)``."""
    weights = 0.4 + (draw_words("table", 4**_ORDER * 4) / 2**32).reshape(-1, 4) ** 2 * np.array([1.3, 0.9, 0.9, 1.3])
    # After C, a G is rare, as methylation makes it in vertebrates.
    weights[1::4, 2] *= 0.25
    cumulated = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    return (cumulated * 2**32).astype(np.int64)


def _background(table: Int64Array, purpose: str, length: int) -> TokenArray:
    num_chains = min(_NUM_CHAINS, max(1, length // 64))
    num_steps = -(-length // num_chains)
    words_SC = draw_words(f"background {purpose}", num_steps * num_chains).reshape(num_steps, num_chains)
    tokens_CS = np.empty((num_chains, num_steps), np.uint8)
    context_C = np.arange(num_chains, dtype=np.int64) % 4**_ORDER
    for step in range(num_steps):
        base_C = (words_SC[step][:, None] >= table[context_C, :3]).sum(axis=1)
        tokens_CS[:, step] = base_C
        context_C = (context_C * 4 + base_C) % 4**_ORDER
    return tokens_CS.reshape(-1)[:length]


def mutate(tokens_L: TokenArray, purpose: str, rate: float) -> TokenArray:
    """A copy with substitutions at a share ``rate`` of its places."""
    words = draw_words(f"mutations {purpose}", 2 * len(tokens_L))
    shift = 1 + (words[1::2] * 3 >> 32)
    mutated = np.where(words[::2] < int(rate * 2**32), (tokens_L + shift) % 4, tokens_L)
    return mutated.astype(np.uint8)


def _add_dispersed_repeats(tokens_L: TokenArray, families: list[TokenArray], name: str) -> None:
    """Copies of some families, 12 % mutated, half of them reverse complements: about a fifth of the sequence."""
    num_copies = len(tokens_L) // 1650
    words = draw_words(f"repeats {name}", 3 * num_copies).reshape(-1, 3)
    for copy, (word_place, word_family, word_strand) in enumerate(words.tolist()):
        family = families[word_family % len(families)]
        place = word_place * (len(tokens_L) - len(family)) >> 32
        if word_strand & 1:
            family = (3 - family)[::-1]
        tokens_L[place : place + len(family)] = mutate(family, f"{name} repeat {copy}", 0.12)


def _add_duplications(tokens_L: TokenArray, name: str) -> None:
    """Stretches of 5-20 kb copied to anywhere in the chromosome, 3 % mutated."""
    num_copies = len(tokens_L) // 60_000
    for copy, words in enumerate(draw_words(f"duplications {name}", 3 * num_copies).reshape(-1, 3).tolist()):
        length = 5000 + (words[0] * 15_000 >> 32)
        origin, place = (word * (len(tokens_L) - length) >> 32 for word in words[1:])
        tokens_L[place : place + length] = mutate(
            tokens_L[origin : origin + length].copy(), f"{name} duplication {copy}", 0.03
        )


def _add_tandem_repeats(tokens_L: TokenArray, name: str) -> None:
    """Units of 1-6 bases repeated over 20-120 bases."""
    num_runs = len(tokens_L) // 2500
    for words in draw_words(f"tandem {name}", 4 * num_runs).reshape(-1, 4).tolist():
        unit_len, run_len = 1 + (words[0] * 6 >> 32), 20 + (words[1] * 101 >> 32)
        unit = np.array([words[2] >> 2 * i & 3 for i in range(unit_len)], np.uint8)
        place = words[3] * (len(tokens_L) - run_len) >> 32
        tokens_L[place : place + run_len] = np.resize(unit, run_len)
