"""DNA, one token a base."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, NoReturn

import torch

from tasks.archive import Member
from tasks.base import MAX_SEQ_LEN, Batch, ExampleStream, Split, TaskError
from tasks.corpus import CorpusTask
from tasks.dna import embedded
from tasks.dna.fasta import ALPHABET, UNKNOWN, Record, parse_fasta
from tasks.dna.intervals import LEAK_NOTE, extended_starts, read_chromosomes, read_intervals, segments_of
from tasks.download import PinnedFile
from tasks.prepared import Corpus, RawDocument, TokenArray, build_corpus
from tasks.random import derive_key, random_words
from tasks.sources import Layout, ResolvedSource, SourceSpec
from tasks.splits import Splits
from tasks.windows import MAX_UNSCORED, WindowStarts

_ENCODE_REGION = re.compile(r"(?P<species>[^|]+)\|(?P<region>EN[mr]\d{3})\|")
"""Header of the ENCODE alignments' sequences: ``species|region|…``."""

_CHROMOSOME = re.compile(r"(?:chr)?(\d+|[XYM]|MT)\b", re.IGNORECASE)

_LOOK_CHUNK = 1 << 20

_COMPLEMENT = [ALPHABET.index(letter) for letter in "TGCAN"]

SPECIES_NOTE = (
    "split by species: sequences of one region are each other's relatives (human and chimpanzee differ in about one "
    "base in a hundred), so that a low loss on test can be copied from a relative in train; compare with region"
)

_HUMAN_SPLIT: dict[str, Split] = {"chr2": "test", "chr22": "validation"}
_FASTA_GLOBS = tuple(
    f"dna/**/*{suffix}{packed}" for suffix in (".fa", ".fasta", ".fna", ".fas") for packed in ("", ".gz")
)


class Dna(CorpusTask):
    """Predict the next base of DNA.

    Tokens 0 1 2 3 4 are A C G T N. N (unknown) is read but never a target, and windows that are
    mostly N are never drawn. Splits are by record (chromosome). The default data train on one region
    of human chromosome 7 with its orthologues in 22 vertebrates, validate on human chromosome 22 and
    test on human chromosome 2: a split by species would leak, because the species' sequences are
    copies of each other. For the same reason all sequences of one ENCODE region are one group.
    ``split_by="species"`` splits so all the same, and the record's note names the leak. A BED file
    beside the FASTA prescribes the splits of a genome (:mod:`tasks.dna.intervals`).

    ``reverse_complement=True`` reads half of the training windows, drawn at random, from the other
    strand: backwards, with A and T, C and G exchanged. N stays N. The other splits are as they are.

    >>> from tasks.base import ExampleStream
    >>> task = Dna()
    >>> batch = task.sample(ExampleStream(seed=0), 2, 64)
    >>> tuple(batch.inputs_BL.shape), bool(batch.inputs_BL.max() < task.vocab_size)
    ((2, 64), True)
    >>> bool((batch.inputs_BL[:, 1:] == batch.targets_BL[:, :-1]).all())
    True
    """

    name = "dna"
    version = 1
    modality = "dna"
    vocab_size = len(ALPHABET)
    unscored_token = UNKNOWN
    embedded_note = embedded.NOTE
    spec = SourceSpec(
        task="dna",
        suffixes=(".fa", ".fasta", ".fna", ".fas", ".ffn", ".txt", ".bed"),
        layouts=(
            Layout(name="hg38", globs=("dna/hg38/*.fa", "dna/hg38/*.bed"), needs_all=True),
            Layout(
                name="ENm001 + hg38",
                globs=("dna/encode_msa_multispecies/*.tar.xz", "dna/human_1mb/*.fa.gz"),
                needs_all=True,
            ),
            Layout(name="fasta", globs=_FASTA_GLOBS),
            Layout(name="ENm001", globs=("dna/encode_msa_multispecies/*.tar.xz",)),
        ),
        downloads=(
            PinnedFile(
                name="ecoli_k12_mg1655.fna.gz",
                url="https://raw.githubusercontent.com/iankorf/MCB185/"
                "fc3c33ed5dacad55e15ba971178b42b08bff2825/data/GCF_000005845.2_ASM584v2_genomic.fna.gz",
                sha256="254606e2722f64ca0906dfc1d41bceac41be72c335627c23f831b007939c8a48",
            ),
            PinnedFile(
                name="lambda_virus.fa",
                url="https://raw.githubusercontent.com/BenLangmead/bowtie2/"
                "f99fd24a21afdeced587e036e81ca51ac6d8e7ed/example/reference/lambda_virus.fa",
                sha256="0a04f81952deb68c204e8ae67e0573cb97d348f18ab1b527630d57c294028cf5",
            ),
        ),
    )

    def __init__(
        self,
        *,
        data_root: Path | None = None,
        source: Path | None = None,
        reverse_complement: bool = False,
        split_by: Literal["region", "species"] = "region",
    ) -> None:
        if split_by not in ("region", "species"):
            raise TaskError(f"dna: split_by={split_by!r} is neither 'region' nor 'species'")
        self.reverse_complement, self.split_by = reverse_complement, split_by
        super().__init__(data_root=data_root, source=source)

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        drawn = super().sample(rng, batch, seq_len, device=device)
        if not self.reverse_complement or rng.split != "train":
            return drawn
        last_B1 = drawn.targets_BL[:, -1:]
        window_BL = torch.cat([drawn.inputs_BL, torch.where(last_B1 < 0, UNKNOWN, last_B1)], dim=1)
        key = derive_key(self.name, self.version, rng.seed, rng.split, seq_len)
        examples_B = torch.arange(rng.start, rng.start + batch, dtype=torch.int64)
        is_flipped_B1 = (random_words(key, examples_B, 1, stream=1) >> 31).bool().to(window_BL.device)
        complement = torch.tensor(_COMPLEMENT, device=window_BL.device)
        return self.batch_of(torch.where(is_flipped_B1, complement[window_BL].flip(1), window_BL))

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        for record in parse_fasta(member):
            if not len(record.tokens_L):
                notes.add(f"skipped the empty record {record.id!r} of {member.name}")
                continue
            yield RawDocument(
                name=f"{member.name}:{record.id}", group=self._group_of(member, record), tokens=record.tokens_L
            )

    def _group_of(self, member: Member, record: Record) -> str:
        match = _ENCODE_REGION.match(record.id)
        if self.split_by == "species":
            if match:
                return match["species"]
            return "human" if self.layout == "ENm001 + hg38" else species_of(member.name)
        if match:
            return match["region"]
        return chromosome_of(record.id) if self.layout == "ENm001 + hg38" else record.id

    def preparation_options(self) -> dict[str, str | int | float | bool]:
        return {"split_by": "species"} if self.split_by == "species" else {}

    def fixed_splits(self) -> Mapping[str, Split] | None:
        if self.split_by == "species":
            return None
        if self.layout == "embedded":
            return embedded.SPLIT_OF_GROUP
        if self.layout == "ENm001 + hg38":
            groups = {document.group for document in self.corpus.documents}
            return {group: _HUMAN_SPLIT.get(group, "train") for group in groups}
        return None

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        if self._intervals:
            return segments_of(self.corpus, self._intervals), (LEAK_NOTE,)
        splits, notes = super().deal()
        if self.split_by == "region":
            return splits, notes
        species = sorted({document.group for document in self.corpus.documents})
        if self.layout == "embedded" or len(species) < len(splits):
            held = "synthetic ones" if self.layout == "embedded" else ", ".join(species)
            raise TaskError(
                f"dna: split_by=species needs sequences of three species, here {held}; use --data or region"
            )
        return splits, (*notes, SPECIES_NOTE)

    def max_seq_len(self, split: Split = "test") -> int:
        if not self._intervals:
            return super().max_seq_len(split)
        used = {interval.chromosome for interval in self._intervals if interval.split == split}
        return min(MAX_SEQ_LEN, max(d.length for d in self.corpus.documents if d.name in used) - 1)

    def find_window_starts(self, split: Split, window_len: int) -> WindowStarts:
        segments = self.splits[split]
        if self._intervals and max(segment.length for segment in segments) < window_len:
            starts = extended_starts(self.corpus, segments, window_len, UNKNOWN)
        else:
            starts = super().find_window_starts(split, window_len)
        if not starts.num_starts and window_len <= self.max_seq_len(split) + 1:
            self._raise_unknown(split, window_len)
        return starts

    def _raise_unknown(self, split: Split, window_len: int) -> NoReturn:
        """Of a split whose documents are long enough, but N."""
        longest = max(self.splits[split], key=lambda document: document.length).name
        if not any(_has_known(self.corpus.tokens_of(document)) for document in self.splits[split]):
            raise TaskError(
                f"dna: split {split!r} has no base but N (its longest document is {longest!r}), so that no window can "
                "be drawn at any seq_len; leave those records out, or name other data (--source dna=PATH)"
            )
        raise TaskError(
            f"dna: seq_len={window_len - 1} needs {window_len} bases in a row, mostly known ones; every such window "
            f"of split {split!r} (its longest document is {longest!r}) is more than {MAX_UNSCORED:.0%} N; "
            "use a shorter seq_len, or data with fewer N (--source dna=PATH)"
        )

    def _load(self, resolved: ResolvedSource) -> Corpus:
        self._intervals = read_intervals(resolved.files)
        if self._intervals and self.split_by == "species":
            raise TaskError("dna: split_by=species, but the BED file prescribes the splits; leave one out")
        corpus = super()._load(resolved)
        if not _has_known(corpus.tokens):
            names = ", ".join(str(file.path) for file in resolved.files[:3])
            raise TaskError(
                f"dna: no base but N in {names} ({len(corpus.tokens)} of them), so that no window can be drawn; "
                "name a file with known bases (--source dna=PATH)"
            )
        return corpus

    def _build(self, resolved: ResolvedSource) -> Corpus:
        if self._intervals:
            return build_corpus(read_chromosomes(resolved.files, self._intervals))
        return super()._build(resolved)

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded.documents()


def _has_known(tokens_L: TokenArray) -> bool:
    """Looks no further than to the first known base, since a genome is gigabytes."""
    chunks = (tokens_L[first : first + _LOOK_CHUNK] for first in range(0, len(tokens_L), _LOOK_CHUNK))
    return any(bool((chunk != UNKNOWN).any()) for chunk in chunks)


def species_of(file_name: str) -> str:
    """
    >>> species_of("apes/gorilla.chr1.fa"), species_of("human.fa")
    ('gorilla', 'human')
    """
    return PurePosixPath(file_name).name.split(".")[0]


def chromosome_of(record_id: str) -> str:
    """
    >>> chromosome_of("22:20000001-21000000"), chromosome_of("chr2"), chromosome_of("NC_1")
    ('chr22', 'chr2', 'NC_1')
    """
    match = _CHROMOSOME.match(record_id)
    return f"chr{match[1].upper()}" if match else record_id
