"""Which species a stretch of DNA is from (Mamba, Sec. 4.3.3, with the data that are at hand)."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from tasks.archive import Member
from tasks.base import IGNORE_INDEX, MAX_SEQ_LEN, SPLITS, Batch, ExampleStream, Split, TaskError, check_seq_len
from tasks.corpus import CorpusTask, EvaluationWindows
from tasks.dna import embedded
from tasks.dna.fasta import ALPHABET, UNKNOWN, parse_fasta
from tasks.dna.genome import Dna, species_of
from tasks.prepared import Document, RawDocument
from tasks.random import derive_key, random_words, uniform_below
from tasks.sources import Layout, SourceSpec
from tasks.splits import Splits
from tasks.windows import WindowStarts, find_starts

PRIMATES = ("baboon", "chimp", "galago", "human", "marmoset")
"""The primates whose ENm001 is in one piece; the macaque's is in twenty."""

SHARES: dict[Split, float] = {"train": 0.48, "validation": 0.16, "test": 0.36}
"""Of every species' bases, from its first on: each holds windows of 2^18 bases of ENm001, test two a species."""

NOTE = (
    "N and other unknown bases are cut out, since runs of them tell assemblies apart; splits are stretches of every "
    "species' sequence from its start, so that the same places of related genomes lie in the same split but for "
    "insertions and deletions"
)


class Species(CorpusTask):
    """Tell from which species a window of DNA is.

    The label is asked at the last position alone. Labels are tokens after the bases' (5, 6, … in alphabetical order
    of the species), so that a model of task ``dna`` can go on with this one. A species is drawn, then a place in it;
    the splits' stretches are disjoint (:data:`SHARES`). The default species are five primates of ENm001; a user's
    own (``--source species=DIR``) are a FASTA file each, named ``species.fa`` or ``species.anything.fa``.

    Assemblies of one species come from one laboratory: what a model tells apart may be that. Unknown bases are cut
    out, because their runs alone would do.

    >>> task = Species()
    >>> batch = task.sample(ExampleStream(seed=0), 3, 64)
    >>> int((batch.targets_BL != IGNORE_INDEX).sum()), int(batch.inputs_BL.max()) < 4
    (3, True)
    >>> set((batch.targets_BL[:, -1] - 5).tolist()) <= set(range(5))
    True
    """

    name = "species"
    version = 1
    modality = "dna"
    metric = "accuracy"
    extends_vocab = ("dna", len(ALPHABET))
    embedded_note = "embedded synthetic DNA: five relatives that differ in substitutions alone; not real species"
    spec = SourceSpec(
        task="species",
        suffixes=tuple(suffix for suffix in Dna.spec.suffixes if suffix != ".bed"),
        layouts=(Layout(name="ENm001", globs=("dna/encode_msa_multispecies/*.tar.xz",)),),
    )

    def __init__(self, *, data_root: Path | None = None, source: Path | None = None) -> None:
        super().__init__(data_root=data_root, source=source)
        self.vocab_size = len(ALPHABET) + len(self.species)
        self.answer_tokens = range(len(ALPHABET), self.vocab_size)
        self._starts_by_species: dict[tuple[Split, int], list[WindowStarts]] = {}

    @cached_property
    def species(self) -> tuple[str, ...]:
        """In the order of their labels."""
        found = sorted({document.group for document in self.corpus.documents})
        if self.layout == "ENm001":
            if missing := sorted(set(PRIMATES) - set(found)):
                raise TaskError(f"species: ENm001 has no {', '.join(missing)}; name another source")
            return PRIMATES
        if len(found) < 2:
            raise TaskError(
                f"species: only {', '.join(found)} found; a source needs two species at least, a FASTA file each"
            )
        return tuple(found)

    @cached_property
    def chance(self) -> float:
        return 1 / len(self.species)

    def scored_positions(self, split: Split) -> slice:  # noqa: ARG002 (of all splits alike)
        return slice(-1, None)

    def max_seq_len(self, split: Split = "test") -> int:
        """What every species can serve."""
        longest = min(max(d.length for d in documents) for documents in self._documents_by_species(split))
        return min(MAX_SEQ_LEN, longest - 1)

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        """Windows of uniformly drawn species, at uniformly drawn places of ``rng.split``."""
        starts = self._starts_of_species(rng.split, seq_len)
        key = derive_key(self.name, self.version, rng.seed, rng.split, seq_len)
        examples_B = torch.arange(rng.start, rng.start + batch, dtype=torch.int64)
        words_B3 = random_words(key, examples_B, 3)
        places = []
        for label, high, low in zip(
            uniform_below(words_B3[:, 0], len(starts)).tolist(), *words_B3[:, 1:].T.tolist(), strict=True
        ):
            number = ((high << 32 | low) & (2**63 - 1)) % starts[label].num_starts
            places.append(starts[label].start_at(number))
        return self.windows(places, seq_len, device=device)

    def windows(self, starts: list[int] | tuple[int, ...], seq_len: int, *, device: torch.device | str) -> Batch:
        """The label of each is the species that the place belongs to."""
        inputs_BL = super().windows(starts, seq_len, device=device).inputs_BL
        labels = [self._label_at(start) for start in starts]
        targets_BL = torch.full_like(inputs_BL, IGNORE_INDEX)
        targets_BL[:, -1] = torch.tensor(labels, device=inputs_BL.device) + len(ALPHABET)
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL)

    def evaluation_windows(self, split: Split, seq_len: int, count: int) -> EvaluationWindows:
        """As many windows of every species, evenly spaced and apart: up to ``count``, at least one of each."""
        spaced = [starts.spaced(stride=seq_len) for starts in self._starts_of_species(split, seq_len)]
        possible = min(map(len, spaced))
        each = max(1, min(count // len(spaced), possible))
        chosen = [starts[((2 * np.arange(each) + 1) * len(starts)) // (2 * each)] for starts in spaced]
        return EvaluationWindows(
            task=self,
            split=split,
            seq_len=seq_len,
            starts=tuple(np.concatenate(chosen).tolist()),
            num_possible=possible * len(spaced),
        )

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        for record in parse_fasta(member):
            known_L = record.tokens_L[record.tokens_L != UNKNOWN]
            if not len(known_L):
                notes.add(f"skipped record {record.id!r} of {member.name}, which has no known base")
                continue
            yield RawDocument(name=f"{member.name}:{record.id}", group=species_of(member.name), tokens=known_L)

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        """Stretches of every species' sequence, in the order of its file."""
        pieces: dict[Split, list[Document]] = {split: [] for split in SPLITS}
        for name in self.species:
            documents = [document for document in self.corpus.documents if document.group == name]
            for split, piece in _stretches(documents):
                pieces[split].append(piece)
        return {split: tuple(found) for split, found in pieces.items()}, (NOTE,)

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded.species_documents()

    def _label_at(self, start: int) -> int:
        index = int(np.searchsorted(self._document_starts, start, side="right")) - 1
        return self.species.index(self.corpus.documents[index].group)

    @cached_property
    def _document_starts(self) -> np.ndarray:
        return np.array([document.start for document in self.corpus.documents])

    def _documents_by_species(self, split: Split) -> list[list[Document]]:
        return [[d for d in self.splits[split] if d.group == name] for name in self.species]

    def _starts_of_species(self, split: Split, seq_len: int) -> list[WindowStarts]:
        check_seq_len(self.name, seq_len)
        if (split, seq_len) not in self._starts_by_species:
            if seq_len > self.max_seq_len(split):
                limits = ", ".join(f"{name} {self.max_seq_len(name)}" for name in SPLITS)
                raise TaskError(
                    f"species: seq_len={seq_len} is longer than some species' stretch of split {split!r}; the splits "
                    f"serve up to {limits}; use a shorter length, or longer genomes (--source species=DIR)"
                )
            found = [
                find_starts(self.corpus, documents, seq_len + 1, None)
                for documents in self._documents_by_species(split)
            ]
            self._starts_by_species[split, seq_len] = found
        return self._starts_by_species[split, seq_len]


def _stretches(documents: list[Document]) -> Iterator[tuple[Split, Document]]:
    """Cut a species' documents, laid end to end, at the splits' shares."""
    total = sum(document.length for document in documents)
    ends = [int(total * share) for share in np.cumsum(list(SHARES.values()))[:-1]] + [total]
    offset = 0
    for document in documents:
        begin = 0
        for split, end in zip(SHARES, ends, strict=True):
            stop = min(max(end - offset, begin), document.length)
            if stop > begin:
                name = f"{document.name}[{begin}:{stop}]"
                yield (
                    split,
                    Document(name=name, group=document.group, start=document.start + begin, length=stop - begin),
                )
            begin = stop
        offset += document.length
