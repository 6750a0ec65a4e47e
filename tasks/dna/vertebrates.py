"""Which class of vertebrates a mitochondrial genome is from (the data of MLDSP, Randhawa et al., PLoS ONE 2020)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from tasks.archive import Member
from tasks.base import TaskError
from tasks.dna import embedded_classes
from tasks.dna.classification import UNDEALT, Classification, item_document, item_of
from tasks.dna.fasta import ALPHABET, UNKNOWN, parse_fasta
from tasks.dna.relatives import KMER, SIMILAR, clusters, sketch
from tasks.prepared import Corpus, RawDocument
from tasks.sources import Layout, ResolvedSource, SourceSpec


class Vertebrates(Classification):
    """Tell the class of vertebrates (fish, bird, …) from a mitochondrial genome.

    A source holds a folder a class, of FASTA files. Genomes that are near-identical (:mod:`tasks.dna.relatives`) stand
    in one split; of each class about 80 % of the genomes train, 10 % validate and 10 % test. A genome is a circle: it
    is read from a drawn place on, in validation and test from a fixed one, and cut at ``seq_len``, or padded with N.

    >>> from tasks import ExampleStream
    >>> task = Vertebrates()
    >>> batch = task.sample(ExampleStream(), 3, 128)
    >>> int(batch.inputs_BL.max()) < 4, set(batch.targets_BL[:, -1].tolist()) <= set(range(5, 10))
    (True, True)
    >>> len({document.group for document in task.corpus.documents}), len(task.corpus.documents)
    (60, 120)
    """

    name = "vertebrates"
    version = 1
    modality = "dna"
    pad_token = UNKNOWN
    first_label = len(ALPHABET)
    circular = True
    extends_vocab = ("dna", len(ALPHABET))
    embedded_note = "embedded synthetic genomes of five made-up classes; not mitochondrial"
    spec = SourceSpec(
        task="vertebrates",
        suffixes=(".txt", ".fa", ".fasta", ".fna"),
        layouts=(Layout(name="MLDSP", globs=("dna/mldsp_mtdna/vertebrates*.tar.xz",)),),
    )

    def describe_items(self) -> str:
        return "the source"

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        path = PurePosixPath(member.name)
        if len(path.parts) < 2:
            raise TaskError(f"{member.place}: lies in no folder; put each class's files into a folder of its name")
        for record in parse_fasta(member):
            if not (record.tokens_L != UNKNOWN).any():
                notes.add(f"skipped record {record.id!r} of {member.name}, which has no known base")
                continue
            place = f"{path.name}:{record.id}"
            yield item_document(record.tokens_L, given=UNDEALT, label=path.parts[-2], place=place)

    def _build(self, resolved: ResolvedSource) -> Corpus:
        """Groups are clusters of relatives, found once and cached with the tokens."""
        corpus = super()._build(resolved)
        if not corpus.documents:
            return corpus
        found = clusters(sketch(corpus.tokens_of(document)) for document in corpus.documents)
        # With the class in its name: classes are dealt apart, so that a cluster of two would be in two places.
        groups = [
            f"{item_of(document).label} {corpus.documents[number].name}"
            for document, number in zip(corpus.documents, found, strict=True)
        ]
        documents = tuple(replace(d, group=group) for d, group in zip(corpus.documents, groups, strict=True))
        notes = list(_describe(found, [item_of(document).label for document in documents], set(groups)))
        return Corpus(tokens=corpus.tokens, documents=documents, notes=(*corpus.notes, *notes))

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded_classes.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded_classes.genome_documents()


def _describe(found: list[int], labels: list[str], groups: set[str]) -> Iterator[str]:
    """How redundant the genomes are, for the record."""
    sizes = Counter(found)
    yield (
        f"{len(found)} genomes in {len(sizes)} clusters of near-identical ones (single linkage at {SIMILAR:g} of the "
        f"{KMER}-mers in common), none of them split; the largest holds {max(sizes.values())}"
    )
    yield "by class: " + ", ".join(f"{label} {count}" for label, count in sorted(Counter(labels).items()))
    if mixed := len(groups) - len(sizes):
        yield f"{mixed} clusters hold genomes of several classes, which may stand in several splits"
