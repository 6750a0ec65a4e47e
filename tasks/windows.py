"""Where windows may start: inside one document, and not mostly on tokens that are not scored.

A run of allowed starts is an interval; all runs of a split together are numbered 0 … num_starts - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tasks.prepared import Corpus, Document

MAX_UNSCORED = 0.5
"""A window with a larger share of unscored tokens (N in DNA) is never drawn."""

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WindowStarts:
    """All allowed starts of windows of one length, as runs ``[first, first + size)`` in the token array."""

    window_len: int
    firsts: Int64Array
    """Ascending."""
    sizes: Int64Array
    documents: Int64Array
    """Index of the run's document in the split."""

    @cached_property
    def _ends(self) -> Int64Array:
        """Number of starts up to the end of every run."""
        return self.sizes.cumsum()

    @property
    def num_starts(self) -> int:
        return int(self.sizes.sum())

    def start_at(self, index: int) -> int:
        """The start with a number in [0, num_starts)."""
        run = int(np.searchsorted(self._ends, index, side="right"))
        return int(self.firsts[run] + index - (self._ends[run] - self.sizes[run]))

    def spaced(self, stride: int) -> Int64Array:
        """Starts at least ``stride`` apart within a document, packed from its beginning."""
        starts: list[Int64Array] = []
        previous_document, free = -1, 0
        for first, size, document in np.stack([self.firsts, self.sizes, self.documents], axis=1).tolist():
            begin = first if document != previous_document else max(first, free)
            previous_document = document
            if begin < first + size:
                run = np.arange(begin, first + size, stride, dtype=np.int64)
                starts.append(run)
                free = int(run[-1]) + stride
        return np.concatenate(starts) if starts else np.zeros(0, np.int64)


def find_starts(
    corpus: Corpus, documents: Sequence[Document], window_len: int, unscored_token: int | None
) -> WindowStarts:
    """Allowed starts in O(longest document) memory."""
    runs: list[tuple[int, int, int]] = []
    for index, document in enumerate(documents):
        num_starts = document.length - window_len + 1
        if num_starts <= 0:
            continue
        unscored = corpus.tokens_of(document) == unscored_token if unscored_token is not None else np.zeros(0, bool)
        limit = int(MAX_UNSCORED * window_len)
        if np.count_nonzero(unscored) <= limit:
            runs.append((document.start, num_starts, index))
            continue
        counts = np.zeros(document.length + 1, np.int32)
        np.cumsum(unscored, out=counts[1:])
        allowed = counts[window_len:] - counts[:-window_len] <= limit
        edges = np.flatnonzero(np.diff(np.concatenate(([False], allowed, [False])).astype(np.int8)))
        runs += [(document.start + a, b - a, index) for a, b in edges.reshape(-1, 2).tolist()]
    table = np.array(runs, dtype=np.int64).reshape(-1, 3)
    table = table[np.argsort(table[:, 0])]
    return WindowStarts(window_len=window_len, firsts=table[:, 0], sizes=table[:, 1], documents=table[:, 2])
