"""Files that are consecutive pieces of one long recording, as SaShiMi's YouTubeMix is cut into minutes."""

import re
from collections.abc import Sequence
from itertools import pairwise

from tasks.base import SPLITS, TaskError
from tasks.prepared import Document
from tasks.splits import Splits

SHARES = {"train": 0.88, "validation": 0.06, "test": 0.06}
"""Of the pieces, in this order: SaShiMi's."""


def split_pieces(documents: Sequence[Document]) -> tuple[Splits, tuple[str, ...]]:
    """Each split as one document, since its pieces follow one another; and a note that says so.

    Raises:
        TaskError: fewer than three pieces, or names that do not sort as their numbers do.
    """
    if len(documents) < len(SPLITS):
        raise TaskError(
            f"audio: files=pieces needs at least {len(SPLITS)} pieces, one a split; {len(documents)} are there: "
            "cut the recording, or use files=tracks"
        )
    names = [document.name for document in documents]
    for earlier, later in pairwise(names):
        if _numbers(earlier) >= _numbers(later):
            raise TaskError(
                f"audio: files=pieces are read in the order of their names, and {earlier!r} comes before {later!r}; "
                "pad the numbers in the names with zeros"
            )
    held_out = max(1, round(SHARES["test"] * len(documents)))
    first_held_out = len(documents) - 2 * held_out
    ends = (0, first_held_out, first_held_out + held_out, len(documents))
    splits: Splits = {
        split: (_joined(documents[start:end]),) for split, (start, end) in zip(SPLITS, pairwise(ends), strict=True)
    }
    counts = " / ".join(str(end - start) for start, end in pairwise(ends))
    return splits, (f"{counts} pieces in the order of their names for {' / '.join(SPLITS)}, each split read as one",)


def _numbers(name: str) -> list[tuple[int, str]]:
    """Sorts ``out9`` before ``out10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _joined(pieces: Sequence[Document]) -> Document:
    """Documents lie in the array one after the other."""
    first, last = pieces[0], pieces[-1]
    length = last.start + last.length - first.start
    assert length == sum(piece.length for piece in pieces)
    return Document(name=f"{first.name} to {last.name}", group=first.group, start=first.start, length=length)
