"""GUE, the Genome Understanding Evaluation: short DNA sequences with a label (Zhou et al., DNABERT-2, ICLR 2024)."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from tasks.archive import Member
from tasks.base import TaskError
from tasks.dna import embedded_classes
from tasks.dna.classification import item_document
from tasks.dna.datasets import DnaDataSets
from tasks.dna.fasta import encode_bases
from tasks.prepared import RawDocument
from tasks.sources import Layout, SourceSpec

_SPLIT_OF_FILE = {"train.csv": "train", "dev.csv": "validation", "test.csv": "test"}
_COLUMNS = ("sequence", "label")


class Gue(DnaDataSets):
    """Classify short DNA: promoters, transcription factors, histone marks or splice sites (GUE).

    Files lie as published: ``<group>/<dataset>/{train,dev,test}.csv`` with the header ``sequence,label``. The label, a
    whole number, is asked at the last position; shorter sequences have N on their left.

    >>> from tasks import IGNORE_INDEX, ExampleStream
    >>> task = Gue()
    >>> batch = task.sample(ExampleStream(), 2, 100)
    >>> batch.inputs_BL[:, :40].unique().tolist(), (batch.targets_BL != IGNORE_INDEX).sum(1).tolist()
    ([4], [1, 1])
    >>> set(batch.targets_BL[:, -1].tolist()) <= {5, 6}, task.classes
    (True, ('0', '1'))
    """

    name = "gue"
    spec = SourceSpec(
        task="gue",
        suffixes=(".csv",),
        layouts=(
            Layout(name="archive", globs=("dna/gue/*.tar.xz",)),
            Layout(name="folder", globs=("dna/gue/**/*.csv",)),
        ),
    )
    embedded_note = "embedded synthetic sequences of two classes with planted motifs; not GUE"

    def dataset_of(self, name: str) -> str | None:
        path = PurePosixPath(name)
        return "/".join(path.parts[:-1][-2:]) if path.name in _SPLIT_OF_FILE else None

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:  # noqa: ARG002
        file = PurePosixPath(member.name).name
        for line, sequence, label in _read_rows(member):
            where = f"{member.place}: line {line}"
            tokens_L = encode_bases(sequence.encode(), partial(_at, where))
            if not len(tokens_L):
                raise TaskError(f"{where}: the sequence is empty; remove the line")
            yield item_document(tokens_L, given=_SPLIT_OF_FILE[file], label=label, place=f"{file}:{line}")

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded_classes.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded_classes.motif_documents(splits={"train": 240, "validation": 60, "test": 120})


def _at(where: str, offset: int) -> str:  # noqa: ARG001 (a row is one line)
    return where


def _read_rows(member: Member) -> Iterator[tuple[int, str, str]]:
    """Line, sequence and label of every row. Raises :class:`TaskError`, which names file and line."""
    try:
        text = member.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = member.data.count(b"\n", 0, error.start) + 1
        raise TaskError(f"{member.place}: line {line}: no UTF-8 text; save the file as UTF-8") from error
    rows = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(rows, [])]
    if missing := [name for name in _COLUMNS if name not in header]:
        shown = ",".join(header)[:60] or "nothing"
        raise TaskError(
            f"{member.place}: line 1: no column {' and '.join(missing)} in {shown!r}; "
            f"the header is {','.join(_COLUMNS)}"
        )
    places = [header.index(name) for name in _COLUMNS]
    empty = True
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise TaskError(
                f"{member.place}: line {rows.line_num}: {len(row)} values where the header has {len(header)}; mend it"
            )
        sequence, label = (row[place].strip() for place in places)
        try:
            label = str(int(label))
        except ValueError:
            raise TaskError(
                f"{member.place}: line {rows.line_num}: label {label[:20]!r} is no whole number; number the classes"
            ) from None
        empty = False
        yield rows.line_num, sequence, label
    if empty:
        raise TaskError(f"{member.place}: line 2: a header and no sequences; fetch the file again")
