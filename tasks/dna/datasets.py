"""Sources that hold several classification data sets, of which an option chooses one."""

import difflib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

from tasks.base import TaskError
from tasks.dna.classification import Classification, item_of
from tasks.dna.fasta import ALPHABET, UNKNOWN
from tasks.dna.relatives import STRETCH, overlapping
from tasks.prepared import Corpus
from tasks.sources import ResolvedSource
from tasks.splits import Splits


class DnaDataSets(Classification):
    """Base: DNA items of one data set of a source, ``task_options: {dataset: NAME}``.

    A name may be cut to its last part where that is clear. The embedded sample stands in for any of them.
    """

    modality = "dna"
    version = 1
    pad_token = UNKNOWN
    first_label = len(ALPHABET)
    extends_vocab = ("dna", len(ALPHABET))

    def __init__(
        self, *, dataset: str | None = None, data_root: Path | None = None, source: Path | None = None
    ) -> None:
        self.dataset = dataset
        self._found: dict[str, None] = {}
        super().__init__(data_root=data_root, source=source)

    @abstractmethod
    def dataset_of(self, name: str) -> str | None:
        """The data set that a file belongs to, empty where its path names none; None for other files."""

    def describe_items(self) -> str:
        return f"data set {self.dataset!r}" if self.dataset else "the data set"

    def preparation_options(self) -> dict[str, str | int | float | bool]:
        return {"dataset": self.dataset or ""}

    def reads(self, name: str) -> bool:
        found = self.dataset_of(name)
        if found is None:
            return False
        self._found[found] = None
        if self.dataset is None:
            return found == next(iter(self._found))
        return self._is_chosen(found)

    def _is_chosen(self, found: str) -> bool:
        return found in (self.dataset, "") or found.endswith(f"/{self.dataset}")

    def _build(self, resolved: ResolvedSource) -> Corpus:
        corpus = super()._build(resolved)
        if not resolved.files:
            return corpus
        name = self._check_choice()
        return Corpus(
            tokens=corpus.tokens,
            documents=corpus.documents,
            notes=corpus.notes + ((f"data set {name}",) if name else ()),
        )

    def _check_choice(self) -> str:
        """The chosen name in full. Raises :class:`TaskError` where it is none, or not one."""
        names = sorted(self._found)
        shown = ", ".join(names) or "none"
        chosen = names if self.dataset is None else [name for name in names if self._is_chosen(name)]
        if len(chosen) == 1:
            return chosen[0]
        if not names:
            raise TaskError(f"{self.name}: the source holds no data set in the layout of {self.name}; name another")
        if self.dataset is None:
            raise TaskError(f"{self.name}: the source holds {shown}; choose one, task_options: {{dataset: NAME}}")
        if chosen:
            raise TaskError(f"{self.name}: dataset={self.dataset!r} may be {' or '.join(chosen)}; give its whole name")
        raise TaskError(
            f"{self.name}: unknown dataset={self.dataset!r}{_near(self.dataset, names)}; the source holds {shown}"
        )

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        splits, notes = super().deal()
        return splits, (*notes, *self._overlaps(splits))

    def _overlaps(self, splits: Splits) -> Iterator[str]:
        """How many test items of each class share a stretch with train, whose windows may overlap with theirs."""
        train, test = ([self.corpus.tokens_of(item) for item in splits[split]] for split in ("train", "test"))
        labels = [item_of(item).label for item in splits["test"]]
        all_of, overlap_of = Counter(labels), Counter(compress(labels, overlapping(test, train)))
        if overlap_of:
            counts = " and ".join(f"{overlap_of[label]} of {all_of[label]} of class {label}" for label in self.classes)
            yield f"{counts} of test share {STRETCH} bases in a row with train"

    def identity_of(self, resolved: ResolvedSource) -> dict[str, Any]:
        """The embedded sample is the same whatever it stands in for."""
        identity = super().identity_of(resolved)
        return identity if resolved.files else identity | {"options": {}}


def _near(wanted: str, names: list[str]) -> str:
    by_tail = {name.rpartition("/")[2]: name for name in names} | {name: name for name in names}
    close = difflib.get_close_matches(wanted, list(by_tail), n=3, cutoff=0.5)
    matches = list(dict.fromkeys(by_tail[match] for match in close))
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""
