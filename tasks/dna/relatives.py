"""Which sequences are near-identical: MinHash sketches of their 16-mers, joined where they agree; and which overlap.

Shape suffixes: N sequences, H bins of a sketch, L bases.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tasks.dna.fasta import UNKNOWN
from tasks.prepared import TokenArray

KMER, NUM_BINS = 16, 128
STRETCH = 30
"""Bases in a row that two windows of one genome share where they overlap, and that hardly any two share by chance."""
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
    smallest_H = np.full(NUM_BINS, _EMPTY, np.uint32)
    kmers, known = _kmers(tokens_L, KMER)
    hashes = _mix(kmers[known])
    bins = (hashes >> np.uint64(57)).astype(np.int64)  # the top 7 bits, for 128 bins
    np.minimum.at(smallest_H, bins, (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    return smallest_H


def overlapping(items: Sequence[TokenArray], others: Sequence[TokenArray]) -> npt.NDArray[np.bool_]:
    """Which items have :data:`STRETCH` bases in a row, on either strand, that one of the others has too: ``(N,)``.

    Exact: the bases of a stretch fit into 60 bits. Stretches with unknown bases do not count, simple repeats do.

    >>> long = np.random.default_rng(0).integers(0, 4, 60)
    >>> overlapping([long[:40], long[35:]], [3 - long[5:50][::-1]]).tolist()
    [True, False]
    """
    if not items or not others:
        return np.zeros(len(items), bool)
    kmers, known = _kmers(_apart(items), STRETCH)
    other_kmers, other_known = _kmers(_apart(others), STRETCH)
    distinct, which = np.unique(kmers[known], return_inverse=True)
    shared = np.zeros(len(distinct), bool)
    if len(distinct):
        places = np.minimum(np.searchsorted(distinct, other_kmers[other_known]), len(distinct) - 1)
        shared[places[distinct[places] == other_kmers[other_known]]] = True
    owners = np.repeat(np.arange(len(items)), [len(item) + 1 for item in items])[: len(kmers)][known]
    found = np.zeros(len(items), bool)
    found[owners[shared[which]]] = True
    return found


def _apart(items: Sequence[TokenArray]) -> TokenArray:
    """All items one after the other, an unknown base behind each."""
    gap = np.full(1, UNKNOWN, items[0].dtype)
    return np.concatenate([part for item in items for part in (item, gap)])


def _kmers(tokens_L: TokenArray, length: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Every k-mer of up to 32 bases as the smaller of its strands' numbers, two bits a base; and if all are known."""
    forward_L, backward_L, known_L = _strands(tokens_L, length)
    return np.minimum(forward_L, backward_L), known_L


def _strands(
    tokens_L: TokenArray, length: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Both strands' numbers, from those of the k-mers' halves."""
    if length == 1:
        bases_L = tokens_L.astype(np.uint64) & np.uint64(3)
        return bases_L, np.uint64(3) - bases_L, tokens_L != UNKNOWN
    half = length // 2
    first = _strands(tokens_L, half)
    second = first if length == 2 * half else _strands(tokens_L, length - half)
    here, there = slice(max(len(tokens_L) - length + 1, 0)), slice(half, half + max(len(tokens_L) - length + 1, 0))
    return (
        first[0][here] << np.uint64(2 * (length - half)) | second[0][there],
        first[1][here] | second[1][there] << np.uint64(2 * half),
        first[2][here] & second[2][there],
    )


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
