"""Segments of a genome with their splits: a BED file beside a FASTA file, as Enformer and HyenaDNA publish theirs.

A line is ``chrom start end split``, 0-based and without the end; HG38's are of 2^17 bases. A window longer than its
segment has the segment in its middle, as HyenaDNA reads it, and so reaches beyond it. At the ends of a chromosome it
is moved inwards, where HyenaDNA pads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.archive import Member, read_members
from tasks.base import Split, TaskError
from tasks.cache import cache_dir
from tasks.dna.fasta import encode_bases
from tasks.prepared import Corpus, Document, RawDocument
from tasks.sources import SourceFile
from tasks.windows import MAX_UNSCORED, WindowStarts

LEAK_NOTE = (
    "splits are the BED file's; a window longer than its segment reaches beyond it and may hold segments of other "
    "splits, as HyenaDNA's do"
)
BED = (".bed",)
_SPLITS: dict[str, Split] = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
_NOT_LINES = ("#", "track", "browser")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Bases ``start`` to ``end - 1`` of a chromosome."""

    place: str
    """File and line, for messages."""
    chromosome: str
    start: int
    end: int
    split: Split


def is_bed(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(BED)


def read_intervals(files: Sequence[SourceFile]) -> tuple[Interval, ...]:
    """The intervals of a source's BED file; none where it has none.

    Raises TaskError for two BED files, one without FASTA, and one without intervals.
    """
    beds = [file for file in files if is_bed(file.name)]
    if not beds:
        return ()
    if len(beds) > 1 or len(beds) == len(files):
        raise TaskError(
            f"{', '.join(file.name for file in beds)}: a genome with intervals is FASTA files and one BED file "
            f"(here {len(files) - len(beds)} and {len(beds)}); leave the others out"
        )
    members = read_members(beds[0].path, beds[0].name, BED)
    intervals = tuple(interval for member in members for interval in _parse(member))
    if not intervals:
        raise TaskError(
            f"{beds[0].path}: no interval in it, and a BED file beside FASTA prescribes the splits; it needs lines "
            "`chrom start end split` of train, valid and test; fetch it again, or remove it to split by record"
        )
    return intervals


def _parse(member: Member) -> Iterator[Interval]:
    """
    >>> member = Member(name="x", place="x.bed", data=b"chr1\\t0\\t8\\ttrain\\n")
    >>> [(i.chromosome, i.start, i.end, i.split) for i in _parse(member)]
    [('chr1', 0, 8, 'train')]
    """
    for number, line in enumerate(member.data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith(_NOT_LINES):
            continue
        place, words = f"{member.place}: line {number}", line.split()
        if len(words) < 4 or words[3].lower() not in _SPLITS:
            found = repr(words[3]) if len(words) > 3 else f"{len(words)} columns"
            raise TaskError(
                f"{place}: no split: the fourth column must be train, valid or test, not {found}; "
                "name a file of the form `chrom start end split`, or leave it out"
            )
        if not (words[1].isdigit() and words[2].isdigit() and int(words[1]) < int(words[2])):
            raise TaskError(f"{place}: {words[1]}..{words[2]} is no interval; write start < end as whole numbers")
        yield Interval(
            place=place, chromosome=words[0], start=int(words[1]), end=int(words[2]), split=_SPLITS[words[3].lower()]
        )


def check_intervals(intervals: Sequence[Interval], length_of: Mapping[str, int]) -> None:
    """Raises TaskError for a chromosome that the FASTA does not have, and for an end beyond it."""
    for interval in intervals:
        if interval.chromosome not in length_of:
            known = ", ".join(list(length_of)[:3]) or "none"
            raise TaskError(
                f"{interval.place}: chromosome {interval.chromosome!r} is not in the FASTA (it has {known}, …); "
                "use the assembly that the intervals were made for, and its names"
            )
        if interval.end > (length := length_of[interval.chromosome]):
            raise TaskError(
                f"{interval.place}: end {interval.end} lies beyond {interval.chromosome}, which has {length} bases; "
                "use the assembly that the intervals were made for"
            )


def read_chromosomes(files: Sequence[SourceFile], intervals: Sequence[Interval]) -> Iterator[RawDocument]:
    """The chromosomes that intervals name, whole, each read through pyfaidx when it is asked for.

    Raises TaskError where pyfaidx is missing or cannot read a file, where two files have one record, and as
    :func:`check_intervals`.
    """
    opened = [(file, _open(file)) for file in files if not is_bed(file.name)]
    holders: dict[str, tuple[SourceFile, Any]] = {}
    for file, records in opened:
        for name in records.keys():  # noqa: SIM118 (iterating it gives records)
            if name in holders:
                raise TaskError(
                    f"{holders[name][0].path} and {file.path} both have a record {name!r}, and intervals of it may "
                    "mean either; leave one of the files out, or rename the record"
                )
            holders[name] = (file, records)
    check_intervals(intervals, {name: len(records[name]) for name, (_, records) in holders.items()})
    for name in dict.fromkeys(interval.chromosome for interval in intervals):
        file, records = holders[name]
        sequence = str(records[name][:]).encode()

        def where(offset: int, file: SourceFile = file, name: str = name) -> str:
            return f"{file.path}: base {offset + 1} of {name}"

        yield RawDocument(name=name, group=name, tokens=encode_bases(sequence, where))


def _open(file: SourceFile) -> Any:
    try:
        import pyfaidx
    except ImportError as error:
        raise TaskError(
            f"{file.name}: a genome with a BED file is read through pyfaidx, which is not installed; "
            'pip install "seqbench[dna]"'
        ) from error
    index = cache_dir() / "fasta-index" / f"{file.sha256[:32]}.fai"  # data may lie where nobody may write
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        return pyfaidx.Fasta(str(file.path), indexname=str(index), as_raw=True)
    except (
        pyfaidx.FastaIndexingError, pyfaidx.UnsupportedCompressionFormat, ImportError, OSError, ValueError,
    ) as error:  # fmt: skip
        raise TaskError(
            f"{file.path}: pyfaidx cannot read it ({error}); give plain FASTA, not gzipped, with lines of one length"
        ) from error


def segments_of(corpus: Corpus, intervals: Sequence[Interval]) -> dict[Split, tuple[Document, ...]]:
    """Each split's segments as documents of a corpus of whole chromosomes."""
    chromosomes = {document.name: document for document in corpus.documents}
    check_intervals(intervals, {name: document.length for name, document in chromosomes.items()})
    found: dict[Split, list[Document]] = {"train": [], "validation": [], "test": []}
    for interval in intervals:
        name = f"{interval.chromosome}:{interval.start}-{interval.end}"
        start = chromosomes[interval.chromosome].start + interval.start
        length = interval.end - interval.start
        found[interval.split].append(Document(name=name, group=name, start=start, length=length))
    if empty := [split for split, segments in found.items() if not segments]:
        place = intervals[0].place.rpartition(": line")[0]
        raise TaskError(f"{place}: no interval is of split {empty[0]!r}; name a file that has all three")
    return {split: tuple(segments) for split, segments in found.items()}


def extended_starts(corpus: Corpus, segments: Sequence[Document], window_len: int, unscored_token: int) -> WindowStarts:
    """One window a segment, longer than it: the segment in its middle, moved inwards at a chromosome's ends.

    Windows of one chromosome count as one document's, so that evenly spaced ones never overlap.
    """
    runs: list[tuple[int, int]] = []
    for index, chromosome in enumerate(corpus.documents):
        inside = [s for s in segments if chromosome.start <= s.start < chromosome.end]
        if chromosome.length < window_len or not inside:
            continue
        counts = np.zeros(chromosome.length + 1, np.int32)
        np.cumsum(corpus.tokens_of(chromosome) == unscored_token, out=counts[1:])
        for segment in inside:
            wanted = segment.start - chromosome.start - (window_len - segment.length) // 2
            start = min(max(wanted, 0), chromosome.length - window_len)
            if counts[start + window_len] - counts[start] <= MAX_UNSCORED * window_len:
                runs.append((chromosome.start + start, index))
    table = np.array(sorted(runs), dtype=np.int64).reshape(-1, 2)
    return WindowStarts(
        window_len=window_len, firsts=table[:, 0], sizes=np.ones(len(table), np.int64), documents=table[:, 1]
    )
