"""Train, validation and test by whole groups, so that no author, chromosome or speaker stands in two of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tasks.base import SPLITS, Split
from tasks.prepared import Document

Splits = dict[Split, tuple[Document, ...]]

HELD_OUT = 0.1
"""Share of the tokens that validation and test should get each."""

_MAX_OVERSHOOT = 1.5
"""A group that would bring a held-out split above this multiple of its share is passed over."""


def split_documents(
    documents: Sequence[Document], fixed: Mapping[str, Split] | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Deal out documents, and say in notes what is out of the ordinary.

    Args:
        documents: in any order; the result depends on their groups' names and sizes alone.
        fixed: the split of every group, where the source prescribes it. Not followed if it leaves a
            split empty.

    With fewer than three groups each document is cut 80 / 10 / 10 instead ("contiguous split").
    """
    tokens_of_group: dict[str, int] = {}
    for document in documents:
        tokens_of_group[document.group] = tokens_of_group.get(document.group, 0) + document.length
    if fixed is not None and {fixed[group] for group in tokens_of_group} == set(SPLITS):
        return _gather(documents, fixed), ()
    if len(tokens_of_group) < len(SPLITS):
        return _cut(documents), (f"contiguous split of each document 80/10/10: only {len(tokens_of_group)} group(s)",)
    return _gather(documents, deal_groups(tokens_of_group)), ()


def deal_groups(tokens_of_group: Mapping[str, int]) -> dict[str, Split]:
    """The split of every group: ordered by the sha256 of their names, about 10 % of tokens to test and validation.

    >>> sorted(deal_groups({"a": 6, "b": 5, "c": 89}).items())
    [('a', 'validation'), ('b', 'test'), ('c', 'train')]
    """
    assert len(tokens_of_group) >= len(SPLITS)
    waiting = sorted(tokens_of_group, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    goal = HELD_OUT * sum(tokens_of_group.values())
    dealt: dict[str, Split] = {}
    held_out: tuple[Split, ...] = ("test", "validation")
    for num_done, split in enumerate(held_out):
        num_to_leave = len(held_out) - num_done
        taken: list[str] = []
        for group in waiting:
            size = sum(tokens_of_group[other] for other in taken)
            if size >= goal or len(waiting) - len(taken) <= num_to_leave:
                break
            if size + tokens_of_group[group] <= _MAX_OVERSHOOT * goal:
                taken.append(group)
        # Where every group is too large, the smallest comes nearest.
        taken = taken or [min(waiting, key=lambda group: tokens_of_group[group])]
        dealt |= dict.fromkeys(taken, split)
        waiting = [group for group in waiting if group not in taken]
    return dealt | dict.fromkeys(waiting, "train")


def _gather(documents: Sequence[Document], split_of_group: Mapping[str, Split]) -> Splits:
    return {
        split: tuple(document for document in documents if split_of_group[document.group] == split) for split in SPLITS
    }


def _cut(documents: Sequence[Document]) -> Splits:
    pieces: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        first, second = int(document.length * (1 - 2 * HELD_OUT)), int(document.length * (1 - HELD_OUT))
        bounds = (0, first, second, document.length)
        for split, start, end in zip(SPLITS, bounds, bounds[1:], strict=False):
            name = f"{document.name}[{start}:{end}]"
            pieces[split].append(replace(document, name=name, start=document.start + start, length=end - start))
    return {split: tuple(cut) for split, cut in pieces.items()}
