"""Classify whole items of a data set: the item ends at the last position, where its label is asked.

Nothing here is particular to DNA: a subclass names the padding and reads the files.

Shape suffixes: B batch, L sequence length.
"""

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from tasks.base import IGNORE_INDEX, MAX_SEQ_LEN, SPLITS, Batch, ExampleStream, Split, TaskError, check_seq_len
from tasks.corpus import CorpusTask, EvaluationWindows
from tasks.prepared import Document, RawDocument, TokenArray
from tasks.random import derive_key, random_words
from tasks.splits import HELD_OUT, Splits, deal_groups

UNDEALT = "-"
"""Where a source prescribes no split."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a document's name says of it."""

    given: str
    """The split that the source prescribes, or :data:`UNDEALT`."""
    label: str


def item_document(tokens: TokenArray, *, given: str, label: str, place: str, group: str | None = None) -> RawDocument:
    """An item as a document; items of equal tokens are one group, unless another is given."""
    group = group or hashlib.sha256(tokens.tobytes()).hexdigest()[:16]
    return RawDocument(name=f"{given}/{label}/{place}", group=group, tokens=tokens)


def item_of(document: Document) -> Item:
    given, label, _ = document.name.split("/", 2)
    return Item(given=given, label=label)


class Classification(CorpusTask):
    """Base of the tasks that ask the label of a whole item.

    Labels are tokens after the alphabet's. An item shorter than ``seq_len`` is padded on its left; a longer one is an
    error, or for a circle (:attr:`circular`) cut to ``seq_len``. Training goes through its items in epochs, each in an
    order of its own; validation and test hold every item once.
    """

    metric = "accuracy"
    pad_token: ClassVar[int]
    first_label: ClassVar[int]
    """Its token; the alphabet's are those before it."""
    circular: ClassVar[bool] = False
    """Whether an item has no start: training reads it from drawn places, validation and test from a fixed one."""

    def __init__(self, *, data_root: Path | None = None, source: Path | None = None) -> None:
        super().__init__(data_root=data_root, source=source)
        self.vocab_size = self.first_label + len(self.classes)
        self.label_tokens = self.answer_tokens = range(self.first_label, self.vocab_size)

    @abstractmethod
    def describe_items(self) -> str:
        """What a message calls this data set."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """In the order of their labels: numbers by value, names by the alphabet."""
        found = {item_of(document).label for document in self.corpus.documents}
        if len(found) < 2:
            raise TaskError(f"{self.name}: {self.describe_items()} has only the class {', '.join(found)}; it needs two")
        return tuple(sorted(found, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label)))

    @cached_property
    def chance(self) -> float:
        """Share of the train split's majority class."""
        counts = Counter(item_of(document).label for document in self.splits["train"])
        return max(counts.values()) / counts.total()

    def scored_positions(self, split: Split) -> slice:  # noqa: ARG002 (of all splits alike)
        return slice(-1, None)

    def max_seq_len(self, split: Split = "test") -> int:  # noqa: ARG002 (shorter items are padded)
        return MAX_SEQ_LEN

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        """The source's splits, or groups dealt 80/10/10 within each class; in an order that knows no class."""
        given: dict[str, list[Document]] = {}
        for document in sorted(self.corpus.documents, key=_shuffled):
            given.setdefault(item_of(document).given, []).append(document)
        notes: list[str] = []
        splits = _deal_by_class(given[UNDEALT]) if UNDEALT in given else self._complete(given, notes)
        return {split: tuple(splits[split]) for split in SPLITS}, (*notes, *_leaks(splits))

    def _complete(self, given: dict[str, list[Document]], notes: list[str]) -> dict[Split, list[Document]]:
        """The source's train, validation and test; what lacks of them is carved from train."""
        train, validation, test = (given.get(split, []) for split in SPLITS)
        if not test or not (train or validation):
            raise TaskError(
                f"{self.name}: {self.describe_items()} has no {'test' if not test else 'train'} split, only "
                f"{', '.join(sorted(given))}; add its file"
            )
        if not train:
            train, validation = validation, []
            notes.append("no train split: trained on its dev split")
        if not validation:
            groups = sorted({document.group for document in train}, key=_digest)
            if len(groups) < 2:
                raise TaskError(f"{self.name}: {self.describe_items()} has one sequence to train on; it needs two")
            held = set(groups[: max(1, round(HELD_OUT * len(groups)))])
            validation = [document for document in train if document.group in held]
            train = [document for document in train if document.group not in held]
            notes.append(
                "validation carved from train: the tenth of its sequences with the lowest hashes, duplicates together"
            )
        return {"train": train, "validation": validation, "test": test}

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        """Items of ``rng.split`` in epochs: each item once, in an order drawn for the epoch."""
        self._check_lengths(seq_len)
        documents = self.splits[rng.split]
        key = derive_key(self.name, self.version, rng.seed, rng.split, seq_len)
        starts = []
        for example in range(rng.start, rng.start + batch):
            epoch, place = divmod(example, len(documents))
            document = documents[_order(key, epoch, len(documents))[place]]
            starts.append(self._start_of(document, key, example) if rng.split == "train" else self._fixed(document))
        return self.windows(starts, seq_len, device=device)

    def evaluation_windows(self, split: Split, seq_len: int, count: int) -> EvaluationWindows:
        """The items of a split, all of them or the first ``count`` of an order that knows no class."""
        self._check_lengths(seq_len)
        starts = tuple(self._fixed(document) for document in self.splits[split][:count])
        return EvaluationWindows(
            task=self, split=split, seq_len=seq_len, starts=starts, num_possible=len(self.splits[split])
        )

    def windows(self, starts: Sequence[int], seq_len: int, *, device: torch.device | str) -> Batch:
        """The items that the places lie in, each read from its place on."""
        inputs_BL = np.full((len(starts), seq_len), self.pad_token, np.int64)
        indices_B = np.searchsorted(self._document_starts, np.asarray(starts), side="right") - 1
        for row_L, start, index in zip(inputs_BL, starts, indices_B.tolist(), strict=True):
            document = self.corpus.documents[index]
            tokens = self.corpus.tokens_of(document)
            first = start - document.start
            tokens = np.concatenate([tokens[first:], tokens[:first]])[:seq_len] if first else tokens[:seq_len]
            row_L[seq_len - len(tokens) :] = tokens
        targets_BL = torch.full(inputs_BL.shape, IGNORE_INDEX, dtype=torch.int64)
        targets_BL[:, -1] = torch.from_numpy(self._labels[indices_B])
        return Batch(inputs_BL=torch.from_numpy(inputs_BL).to(device), targets_BL=targets_BL.to(device))

    @cached_property
    def _document_starts(self) -> npt.NDArray[np.int64]:
        return np.array([document.start for document in self.corpus.documents])

    @cached_property
    def _labels(self) -> npt.NDArray[np.int64]:
        """The label's token of every document."""
        tokens = {label: token for token, label in enumerate(self.classes, self.first_label)}
        return np.array([tokens[item_of(document).label] for document in self.corpus.documents])

    @cached_property
    def _longest(self) -> Document:
        return max(self.corpus.documents, key=lambda document: document.length)

    def _check_lengths(self, seq_len: int) -> None:
        check_seq_len(self.name, seq_len)
        if not self.circular and self._longest.length > seq_len:
            raise TaskError(
                f"{self.name}: {self.describe_items()} has items of up to {self._longest.length} tokens "
                f"({self._longest.name}), longer than seq_len={seq_len}; use seq_len >= {self._longest.length}"
            )

    def _start_of(self, document: Document, key: tuple[int, int], example: int) -> int:
        if not self.circular:
            return document.start
        word = int(random_words(key, torch.tensor([example]), 1, stream=1))
        return document.start + (word * document.length >> 32)

    def _fixed(self, document: Document) -> int:
        return document.start + (int(_digest(document.name)[:8], 16) % document.length if self.circular else 0)


@lru_cache(maxsize=4)
def _order(key: tuple[int, int], epoch: int, count: int) -> npt.NDArray[np.int64]:
    """A permutation of ``count`` items, drawn for the epoch."""
    epoch_key = derive_key(*key, epoch)
    words = random_words(epoch_key, torch.arange(count, dtype=torch.int64), 1)[:, 0]
    return np.argsort(words.numpy(), kind="stable")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shuffled(document: Document) -> str:
    return _digest(document.name)


def _deal_by_class(documents: list[Document]) -> dict[Split, list[Document]]:
    """Groups dealt to the splits, of every class apart, so that each has its share in each."""
    dealt: dict[str, Split] = {}
    for label in sorted({item_of(document).label for document in documents}):
        sizes: Counter[str] = Counter()
        for document in documents:
            if item_of(document).label == label:
                sizes[document.group] += 1
        if len(sizes) < len(SPLITS):
            raise TaskError(f"class {label!r} has {len(sizes)} groups of items that are alike; it needs {len(SPLITS)}")
        dealt |= deal_groups(sizes)
    return {split: [document for document in documents if dealt[document.group] == split] for split in SPLITS}


def _leaks(splits: dict[Split, list[Document]]) -> Iterator[str]:
    """What stands in more than one split, or twice in one, and which classes training does not see."""
    groups = {split: {document.group for document in documents} for split, documents in splits.items()}
    for split in ("validation", "test"):
        shared = sum(document.group in groups["train"] for document in splits[split])
        if shared:
            yield f"{shared} of {len(splits[split])} {split} items also stand in train"
    if both := len(groups["validation"] & groups["test"]):
        yield f"{both} sequences stand in validation and test"
    unseen = {item_of(d).label for d in splits["test"]} - {item_of(d).label for d in splits["train"]}
    if unseen:
        yield f"class {', '.join(sorted(unseen))} is tested, but not in train"
