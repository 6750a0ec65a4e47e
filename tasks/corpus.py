"""Data-set tasks: predict the next token of real sequences, in windows that lie inside one document.

Shape suffixes: B batch, L sequence length.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.archive import Member, read_members
from tasks.base import (
    IGNORE_INDEX,
    MAX_SEQ_LEN,
    Batch,
    ExampleStream,
    Provenance,
    Split,
    Task,
    TaskError,
    check_seq_len,
)
from tasks.prepared import Corpus, RawDocument, build_corpus, load_or_build
from tasks.random import derive_key, random_words
from tasks.sources import ResolvedSource, SourceSpec, resolve_source
from tasks.splits import Splits, split_documents
from tasks.windows import WindowStarts, find_starts

_COUNT_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class EvaluationWindows:
    """A fixed set of windows of one split: the same in every run, whatever the seed."""

    task: "CorpusTask"
    split: Split
    seq_len: int
    starts: tuple[int, ...]
    num_possible: int
    """How many windows that share no target the split holds at this length."""

    def __len__(self) -> int:
        return len(self.starts)

    def batches(self, batch: int, *, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All windows in order; the last batch may be smaller."""
        for first in range(0, len(self.starts), batch):
            yield self.task.windows(self.starts[first : first + batch], self.seq_len, device=device)


class CorpusTask(Task):
    """Base of the data-set tasks. A subclass says where its files lie and turns them into documents."""

    metric: ClassVar[Literal["accuracy", "bits_per_token"]] = "bits_per_token"
    spec: ClassVar[SourceSpec]
    embedded_note: ClassVar[str]
    unscored_token: ClassVar[int | None] = None
    """A token that stands for an unknown symbol: read by the model, never a target."""
    label_tokens: range | None = None
    """Where documents are items to classify: the labels, one of which is asked at an item's last position."""
    answer_tokens: range | None = None
    """Where a class is asked for, of an item or a window: the tokens of all classes."""
    token_bytes: "npt.NDArray[np.int64] | None" = None
    """Of text, how many bytes each token stands for: what bits per byte are counted with."""

    def __init__(self, *, data_root: Path | None = None, source: Path | None = None) -> None:
        resolved = resolve_source(self.spec, data_root=data_root, source=source)
        self.layout = resolved.layout
        self.corpus = self._load(resolved)
        self.splits, split_notes = self.deal()
        self.provenance = self.describe_source(resolved, notes=self.corpus.notes + split_notes)
        self._starts: dict[tuple[Split, int], WindowStarts] = {}

    @classmethod
    def describe_source(cls, resolved: ResolvedSource, *, notes: tuple[str, ...] = ()) -> Provenance:
        """What is read, without reading it."""
        note = () if resolved.files else (cls.embedded_note,)
        return resolved.provenance(
            name=f"{cls.name} v{cls.version}", embedded_sha256=cls.embedded_sha256(), notes=note + notes
        )

    @classmethod
    @abstractmethod
    def embedded_sha256(cls) -> str:
        """Identity of the embedded sample, cheap to compute."""

    @abstractmethod
    def embedded_documents(self) -> Iterator[RawDocument]:
        """The suite's own stand-in, for a machine that has no data."""

    @abstractmethod
    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        """Documents of one file. Adds to ``notes`` what a reader of the record should know."""

    def reads(self, name: str) -> bool:  # noqa: ARG002 (options of a task may choose)
        """Whether the file of this name is among those that the task's options choose."""
        return True

    def fixed_splits(self) -> Mapping[str, Split] | None:
        """The split of every group, where the source prescribes it."""
        return None

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        """The documents of each split, and what a reader of the record should know of them."""
        return split_documents(self.corpus.documents, self.fixed_splits())

    def preparation_options(self) -> dict[str, str | int | float | bool]:
        """Options that change the tokens: part of the cache's key."""
        return {}

    @cached_property
    def chance(self) -> float:
        """Share of the most frequent token in the train split: the best guesser that does not look."""
        counts = np.zeros(self.vocab_size, np.int64)
        for document in self.splits["train"]:
            tokens = self.corpus.tokens_of(document)
            for first in range(0, len(tokens), _COUNT_CHUNK):
                counts += np.bincount(tokens[first : first + _COUNT_CHUNK], minlength=self.vocab_size)
        if self.unscored_token is not None:
            counts[self.unscored_token] = 0
        return float(counts.max() / max(counts.sum(), 1))

    def max_seq_len(self, split: Split = "test") -> int:
        """One token less than the longest document: the last token of a window is a target only."""
        longest = max(document.length for document in self.splits[split])
        return min(MAX_SEQ_LEN, longest - 1)

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        """Windows at uniformly drawn places of ``rng.split``: the targets are the inputs one token on."""
        starts = self._starts_of(rng.split, seq_len)
        key = derive_key(self.name, self.version, rng.seed, rng.split, seq_len)
        examples_B = torch.arange(rng.start, rng.start + batch, dtype=torch.int64)
        words = random_words(key, examples_B, 2).tolist()
        # 63 bits, because there may be more than 2^32 places; the bias of the modulo is under 2^-20.
        numbers = [((high << 32 | low) & (2**63 - 1)) % starts.num_starts for high, low in words]
        return self.windows([starts.start_at(number) for number in numbers], seq_len, device=device)

    def evaluation_windows(self, split: Split, seq_len: int, count: int) -> EvaluationWindows:
        """Up to ``count`` windows, evenly spaced over all documents of ``split``, that share no target.

        Fewer than ``count`` where the split holds no more (``num_possible``).
        Raises :class:`TaskError` where it holds none.
        """
        assert count > 0, count
        possible = self._starts_of(split, seq_len).spaced(stride=seq_len)
        if len(possible) > count:
            places = ((2 * np.arange(count) + 1) * len(possible)) // (2 * count)
            chosen = possible[places]
        else:
            chosen = possible
        return EvaluationWindows(
            task=self, split=split, seq_len=seq_len, starts=tuple(chosen.tolist()), num_possible=len(possible)
        )

    def windows(self, starts: "list[int] | tuple[int, ...]", seq_len: int, *, device: torch.device | str) -> Batch:
        """Windows at given places of the token array."""
        tokens_BL = np.stack([self.corpus.tokens[start : start + seq_len + 1] for start in starts])
        if tokens_BL.dtype != np.uint8:  # PyTorch can do little with uint16
            tokens_BL = tokens_BL.astype(np.int32)
        return self.batch_of(torch.from_numpy(tokens_BL).to(device).long())

    def batch_of(self, window_BL: Tensor) -> Batch:
        """Windows of one token more than their length as inputs and targets."""
        targets_BL = window_BL[:, 1:].clone()
        if self.unscored_token is not None:
            targets_BL[targets_BL == self.unscored_token] = IGNORE_INDEX
        return Batch(inputs_BL=window_BL[:, :-1].contiguous(), targets_BL=targets_BL)

    def find_window_starts(self, split: Split, window_len: int) -> WindowStarts:
        """All places of ``split`` at which a window of so many tokens may start."""
        return find_starts(self.corpus, self.splits[split], window_len, self.unscored_token)

    def _starts_of(self, split: Split, seq_len: int) -> WindowStarts:
        check_seq_len(self.name, seq_len)
        if (split, seq_len) not in self._starts:
            starts = self.find_window_starts(split, seq_len + 1)
            if not starts.num_starts:
                longest = max(self.splits[split], key=lambda document: document.length)
                raise TaskError(
                    f"{self.name}: seq_len={seq_len} needs a document of {seq_len + 1} tokens, mostly known ones; "
                    f"the longest of split {split!r} is {longest.name!r} with {longest.length}; "
                    f"use seq_len <= {self.max_seq_len(split)}, or other data (--source {self.name}=PATH)"
                )
            self._starts[split, seq_len] = starts
        return self._starts[split, seq_len]

    def identity_of(self, resolved: ResolvedSource) -> dict[str, Any]:
        """Everything that the prepared tokens depend on, as JSON values."""
        return {
            "task": self.name,
            "version": self.version,
            "layout": resolved.layout,
            "options": self.preparation_options(),
            "files": [[file.name, file.sha256] for file in resolved.files] or self.embedded_sha256(),
        }

    def _load(self, resolved: ResolvedSource) -> Corpus:
        corpus = load_or_build(
            f"{self.name}-v{self.version}", self.identity_of(resolved), lambda: self._build(resolved)
        )
        if not len(corpus.tokens):
            names = ", ".join(file.name for file in resolved.files[:3])
            reason = "; ".join(corpus.notes) or f"no file in it ends in {' '.join(self.spec.suffixes)}"
            raise TaskError(f"{self.name}: nothing to read in {names} ({reason}); name another source")
        return corpus

    def _build(self, resolved: ResolvedSource) -> Corpus:
        if not resolved.files:
            return build_corpus(self.embedded_documents())
        notes: set[str] = set()
        skipped: list[str] = []

        def documents() -> Iterator[RawDocument]:
            for file in resolved.files:
                members = read_members(file.path, file.name, self.spec.suffixes)
                for member in (member for member in members if self.reads(member.name)):
                    found = [document for document in self.documents_of(member, notes) if len(document.tokens)]
                    if not found:
                        skipped.append(member.name)
                    yield from found

        def all_notes() -> tuple[str, ...]:
            empty = (f"skipped {len(skipped)} empty file(s): {', '.join(sorted(skipped)[:3])}",) if skipped else ()
            return tuple(sorted(notes)) + empty

        return build_corpus(documents(), all_notes)
