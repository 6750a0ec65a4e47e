"""GenomicBenchmarks: promoters, enhancers, regulatory and coding DNA (Gresova et al., BMC Genomic Data 24:25, 2023)."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.archive import Member
from tasks.base import TaskError
from tasks.dna import embedded_classes
from tasks.dna.classification import item_document
from tasks.dna.datasets import DnaDataSets
from tasks.dna.fasta import encode_bases
from tasks.prepared import RawDocument
from tasks.sources import Layout, SourceSpec

_SPLITS = ("train", "test")


class GenomicBenchmarks(DnaDataSets):
    """Classify DNA: promoters, enhancers, regulatory and coding regions (GenomicBenchmarks).

    Files lie as the package ``genomic-benchmarks`` leaves them: ``<dataset>/{train,test}/<class>/<n>.txt``, a sequence
    each. It writes to ``~/.genomic_benchmarks``: name a data set's folder there as the source. Validation is carved
    from train.

    >>> from tasks import ExampleStream
    >>> task = GenomicBenchmarks()
    >>> batch = task.sample(ExampleStream(), 2, 100)
    >>> batch.inputs_BL[:, :40].unique().tolist(), task.classes
    ([4], ('0', '1'))
    >>> {split: len(documents) for split, documents in task.splits.items()}
    {'train': 216, 'validation': 24, 'test': 120}
    """

    name = "genomic_benchmarks"
    spec = SourceSpec(
        task="genomic_benchmarks",
        suffixes=(".txt",),
        layouts=(
            Layout(name="archive", globs=("dna/genomic_benchmarks/*.tar.xz",)),
            Layout(name="folder", globs=("dna/genomic_benchmarks/**/*.txt",)),
        ),
    )
    embedded_note = "embedded synthetic sequences of two classes with planted motifs; not GenomicBenchmarks"

    def dataset_of(self, name: str) -> str | None:
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[-3] not in _SPLITS:
            return None
        return parts[-4] if len(parts) > 3 else ""

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:  # noqa: ARG002
        split, label, file = PurePosixPath(member.name).parts[-3:]
        data = member.data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")

        def where(offset: int) -> str:
            line = data.count(b"\n", 0, offset) + 1
            return f"{member.place}: line {line}"

        tokens_L = encode_bases(data, where)
        if not len(tokens_L):
            raise TaskError(f"{member.place}: line 1: the file is empty; fetch it again, or remove it")
        yield item_document(tokens_L, given=split, label=label, place=file)

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded_classes.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded_classes.motif_documents(splits={"train": 240, "test": 120})
