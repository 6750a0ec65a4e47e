"""DNA, one token a base."""

import re
from collections.abc import Iterator, Mapping

from tasks.archive import Member
from tasks.base import Split
from tasks.corpus import CorpusTask
from tasks.dna import embedded
from tasks.dna.fasta import ALPHABET, UNKNOWN, parse_fasta
from tasks.download import PinnedFile
from tasks.prepared import RawDocument
from tasks.sources import Layout, SourceSpec

_ENCODE_REGION = re.compile(r"[^|]+\|(EN[mr]\d{3})\|")
"""Header of the ENCODE alignments' sequences: ``species|region|…``."""

_CHROMOSOME = re.compile(r"(?:chr)?(\d+|[XYM]|MT)\b", re.IGNORECASE)

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
        suffixes=(".fa", ".fasta", ".fna", ".fas", ".ffn", ".txt"),
        layouts=(
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

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        for record in parse_fasta(member):
            if not len(record.tokens_L):
                notes.add(f"skipped the empty record {record.id!r} of {member.name}")
                continue
            yield RawDocument(
                name=f"{member.name}:{record.id}", group=self._group_of(record.id), tokens=record.tokens_L
            )

    def _group_of(self, record_id: str) -> str:
        if match := _ENCODE_REGION.match(record_id):
            return match[1]
        return chromosome_of(record_id) if self.layout == "ENm001 + hg38" else record_id

    def fixed_splits(self) -> Mapping[str, Split] | None:
        if self.layout == "embedded":
            return embedded.SPLIT_OF_GROUP
        if self.layout == "ENm001 + hg38":
            groups = {document.group for document in self.corpus.documents}
            return {group: _HUMAN_SPLIT.get(group, "train") for group in groups}
        return None

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded.documents()


def chromosome_of(record_id: str) -> str:
    """
    >>> chromosome_of("22:20000001-21000000"), chromosome_of("chr2"), chromosome_of("NC_1")
    ('chr22', 'chr2', 'NC_1')
    """
    match = _CHROMOSOME.match(record_id)
    return f"chr{match[1].upper()}" if match else record_id
