"""The embedded items to classify, for machines that have no data: planted motifs, and relatives of five ancestors."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from tasks.dna.classification import UNDEALT, item_document
from tasks.dna.embedded import draw_words, made_up_dna, mutate
from tasks.prepared import RawDocument

VERSION = 1
"""Raised whenever the items change."""

_ITEM_LEN, _SHORTEST = 60, 40
_MOTIF = np.array([3, 0, 3, 0, 0, 0, 0, 2], np.uint8)
"""TATAAAAG, the TATA box: class 1 has it, at some place and with a tenth of its bases changed."""

_GENOME_LEN, _NUM_RELATIVES, _TWINS = 2000, 12, 2


def sha256() -> str:
    """Of the recipe's version: the items are a pure function of it (a test keeps their own sha256)."""
    return hashlib.sha256(f"seqbench embedded dna classes v{VERSION}".encode()).hexdigest()


def motif_documents(*, splits: Mapping[str, int]) -> Iterator[RawDocument]:
    """So many sequences of 40 to 60 bases a split, every other one with the motif."""
    for split, count in splits.items():
        background_NL = made_up_dna(f"classes {split}", count * _ITEM_LEN).reshape(count, _ITEM_LEN)
        drawn_N2 = draw_words(f"classes {split} places", 2 * count).reshape(count, 2)
        for index in range(count):
            word_length, word_place = map(int, drawn_N2[index])
            length = _SHORTEST + (word_length * (_ITEM_LEN - _SHORTEST + 1) >> 32)
            tokens_L = background_NL[index, :length].copy()
            if index % 2:
                place = word_place * (length - len(_MOTIF)) >> 32
                tokens_L[place : place + len(_MOTIF)] = mutate(_MOTIF, f"motif {split} {index}", 0.1)
            yield item_document(tokens_L, given=split, label=str(index % 2), place=f"made-up:{index}")


def genome_documents() -> Iterator[RawDocument]:
    """Five classes of genomes: relatives 15 % from their class's ancestor, each with a twin 1 % from it."""
    for number in range(1, 6):
        ancestor = made_up_dna(f"class ancestor {number}", _GENOME_LEN)
        for relative in range(_NUM_RELATIVES):
            own = mutate(ancestor, f"class {number} relative {relative}", 0.15)
            for twin in range(_TWINS):
                name = f"{relative}.{twin}"
                tokens_L = mutate(own, f"class {number} twin {name}", 0.01)
                yield item_document(tokens_L, given=UNDEALT, label=f"class {number}", place=name)
