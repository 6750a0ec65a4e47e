"""What a task is: a generator or a data set, its scoring, and its chance level.

Shape suffixes: B batch, L sequence length.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Modality = Literal["synthetic", "language", "dna", "audio"]

IGNORE_INDEX = -100
"""Target of a position that is not scored (the default ``ignore_index`` of PyTorch's losses)."""

MIN_SEQ_LEN, MAX_SEQ_LEN = 64, 2**20


class TaskError(ValueError):
    """A task cannot do what was asked (a length, a file, an option). The message names the fix."""


@dataclass(frozen=True, kw_only=True)
class ExampleStream:
    """A place in the endless, counter-based sequence of a task's examples.

    Example ``i`` of a (task, version, seed, split, seq_len) is a pure function of those five: it
    does not depend on the batch it is drawn in, on the worker, or on the device.
    """

    seed: int = 0
    split: Split = "train"
    start: int = 0

    def skip(self, num_examples: int) -> "ExampleStream":
        """The stream ``num_examples`` further on."""
        return replace(self, start=self.start + num_examples)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids and what should be predicted at every position (``IGNORE_INDEX``: not scored)."""

    inputs_BL: Tensor
    targets_BL: Tensor

    @property
    def num_scored(self) -> int:
        return int((self.targets_BL != IGNORE_INDEX).sum())


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a task's data come from. ``embedded`` data are the suite's own small stand-in."""

    name: str
    kind: Literal["generator", "embedded", "data root", "cache", "download", "user"]
    sha256: str | None = None
    note: str = ""
    files: tuple[str, ...] = field(default=())
    tokenizer_sha256: str | None = None
    """Of the tokenizer's file, where the task trained one on these data."""


class Task(ABC):
    """Base of all tasks. A subclass states the class variables and writes :meth:`sample`."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the examples change; part of every example's key and of every trial id."""
    modality: ClassVar[Modality]
    metric: ClassVar[Literal["accuracy", "bits_per_token"]]
    """The headline figure: what plots draw and gates compare."""

    extends_vocab: ClassVar[tuple[str, int] | None] = None
    """Another task and its vocabulary size, where this one's first tokens are those: a model of that one can go on."""

    vocab_size: int
    provenance: Provenance

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of the best guesser that does not look at the input."""

    @abstractmethod
    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        """Draw examples ``rng.start … rng.start + batch - 1``.

        Returns int64 tensors of shape ``(batch, seq_len)`` in O(batch * seq_len) memory.
        Raises :class:`TaskError` where ``seq_len`` cannot be served.
        """

    def scored_positions(self, split: Split) -> slice:  # noqa: ARG002 (probes depend on it)
        """Where an example of ``split`` can have targets, whatever its length; elsewhere it has none."""
        return slice(None)

    def max_seq_len(self, split: Split = "test") -> int:  # noqa: ARG002 (data sets depend on it)
        """The longest example that ``split`` can give."""
        return MAX_SEQ_LEN

    def checkpoint_files(self) -> Mapping[str, str]:
        """What a model trained on this task cannot be used without, beside its weights: file name to content."""
        return {}

    def describe(self) -> str:
        """One line for ``seqbench list tasks``."""
        doc = (type(self).__doc__ or self.name).strip().splitlines()[0]
        return doc.rstrip(".")


def check_seq_len(task: str, seq_len: int, *, minimum: int = MIN_SEQ_LEN, maximum: int = MAX_SEQ_LEN) -> None:
    """Raise :class:`TaskError` unless ``minimum <= seq_len <= maximum``."""
    if not minimum <= seq_len <= maximum:
        raise TaskError(f"{task}: seq_len={seq_len} is outside {minimum}..{maximum}; choose a length in that range")
