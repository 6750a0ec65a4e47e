"""Which sequences are near-identical: MinHash sketches of their 16-mers, joined where they agree.

Shape suffixes: N sequences, H bins of a sketch, L bases.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tasks.dna.fasta import UNKNOWN
from tasks.prepared import TokenArray

KMER, NUM_BINS = 16, 128
SIMILAR = 0.2
"""Estimated share of common 16-mers from which two sequences are relatives: about 7 % of substitutions between them.

Whole classes of vertebrates are not joined by it: of 3,487 mitochondrial genomes it makes 2,272 clusters, the
largest of 37, and none holds two classes.
"""
_EMPTY = np.uint32(0xFFFFFFFF)
_ROWS = 16

Sketch = npt.NDArray[np.uint32]


def sketch(tokens_L: TokenArray) -> Sketch:
    """The smallest hash in each of :data:`NUM_BINS` bins of the hashes of all 16-mers, either strand: ``(H,)``.

    One-permutation MinHash: the share of bins in which two sketches agree estimates the Jaccard index of the sets.
    """
    bases_L = tokens_L.astype(np.uint64)
    count = len(bases_L) - KMER + 1
    smallest_H = np.full(NUM_BINS, _EMPTY, np.uint32)
    if count < 1:
        return smallest_H
    forward, backward, unknown = np.zeros(count, np.uint64), np.zeros(count, np.uint64), np.zeros(count, bool)
    for place in range(KMER):
        base = bases_L[place : place + count]
        unknown |= base == UNKNOWN
        forward = forward << np.uint64(2) | base & np.uint64(3)
        backward |= (np.uint64(3) - (base & np.uint64(3))) << np.uint64(2 * place)
    hashes = _mix(np.minimum(forward, backward)[~unknown])
    bins = (hashes >> np.uint64(57)).astype(np.int64)  # the top 7 bits, for 128 bins
    np.minimum.at(smallest_H, bins, (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    return smallest_H


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64: every bit of a value moves all bits of its hash."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def clusters(sketches: Iterable[Sketch]) -> list[int]:
    """The cluster of each sequence, named by its first member's number: single linkage at :data:`SIMILAR`."""
    sketches_NH = np.stack(list(sketches))
    filled_NH = sketches_NH != _EMPTY
    first = list(range(len(sketches_NH)))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]
            number = first[number]
        return number

    for begin in range(0, len(sketches_NH), _ROWS):
        rows = slice(begin, begin + _ROWS)
        agreeing = ((sketches_NH[rows, None] == sketches_NH) & filled_NH[rows, None]).sum(-1)
        compared = (filled_NH[rows, None] | filled_NH).sum(-1)
        for row, other in np.argwhere(agreeing >= SIMILAR * np.maximum(compared, 1)).tolist():
            low, high = sorted((root(begin + row), root(other)))
            first[high] = low
    return [root(number) for number in range(len(first))]
