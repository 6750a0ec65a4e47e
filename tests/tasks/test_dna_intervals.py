"""A genome as FASTA with a BED file of intervals: splits, windows longer than their segments, and mistakes."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import CorpusTask, ExampleStream, TaskError, make_task
from tasks.dna.fasta import ALPHABET

pytestmark = pytest.mark.usefixtures("fresh_cache")

BED = """# chrom start end split
chr1 0 200 train
chr1 200 400 train
chr1 1000 1200 test
chr2 100 300 valid
chr2 1800 2000 test
"""


def genome(folder: Path, bed: str = BED, lengths: tuple[int, ...] = (2000, 2000), line: int = 60) -> dict[str, str]:
    """Writes genome.fa and intervals.bed; returns the chromosomes."""
    pytest.importorskip("pyfaidx")
    generator = np.random.default_rng(0)
    bases = {f"chr{i + 1}": "".join(generator.choice(list("ACGT"), size)) for i, size in enumerate(lengths)}
    folder.mkdir(parents=True, exist_ok=True)
    text = ""
    for name, sequence in bases.items():
        rows = [sequence[i : i + line] for i in range(0, len(sequence), line)]
        text += f">{name} made up\n" + "\n".join(rows) + "\n"
    (folder / "genome.fa").write_text(text)
    (folder / "intervals.bed").write_text(bed.replace(" ", "\t"))
    return bases


def dna(source: Path, **options: Any) -> CorpusTask:
    task = make_task("dna", source=source, **options)
    assert isinstance(task, CorpusTask)
    return task


def text_of(tokens: Any) -> str:
    return "".join(ALPHABET[token] for token in tokens)


def test_segments_hold_the_bases_and_splits_of_the_bed_file(tmp_path: Path) -> None:
    bases = genome(tmp_path / "data")
    task = dna(tmp_path / "data")
    found = {
        split: [(d.name, text_of(task.corpus.tokens_of(d))) for d in documents]
        for split, documents in task.splits.items()
    }
    assert found == {
        "train": [("chr1:0-200", bases["chr1"][:200]), ("chr1:200-400", bases["chr1"][200:400])],
        "validation": [("chr2:100-300", bases["chr2"][100:300])],
        "test": [("chr1:1000-1200", bases["chr1"][1000:1200]), ("chr2:1800-2000", bases["chr2"][1800:])],
    }
    assert "other splits" in task.provenance.note
    assert sorted(task.provenance.files) == ["genome.fa", "intervals.bed"]
    assert not list((tmp_path / "data").glob("*.fai")), "the data may lie where nobody may write"


def test_short_windows_stay_inside_their_segments(tmp_path: Path) -> None:
    genome(tmp_path)
    task = dna(tmp_path)
    for split, documents in task.splits.items():
        for start in task.evaluation_windows(split, 64, 1000).starts:
            assert any(d.start <= start and start + 65 <= d.end for d in documents)


@pytest.mark.parametrize("seq_len", [255, 999, 1999])
def test_long_windows_have_their_segment_in_the_middle_but_at_the_ends(tmp_path: Path, seq_len: int) -> None:
    bases = genome(tmp_path)
    task = dna(tmp_path)
    windows = task.evaluation_windows("train", seq_len, 10)
    batch = next(windows.batches(10))
    extra = seq_len + 1 - 200
    expected = [min(max(start - extra // 2, 0), 1999 - seq_len) for start in (0, 200)]
    seen = [text_of(row.tolist()) for row in batch.inputs_BL]
    # Windows that overlap are one: the second segment's is left out where the first's reaches into it.
    kept = expected if expected[1] - expected[0] >= seq_len else expected[:1]
    assert seen == [bases["chr1"][start : start + seq_len] for start in kept]
    drawn = {text_of(row.tolist()) for row in task.sample(ExampleStream(), 50, seq_len).inputs_BL}
    assert drawn == {bases["chr1"][start : start + seq_len] for start in expected}


def test_the_longest_length_is_a_chromosomes_and_one_more_is_an_error(tmp_path: Path) -> None:
    genome(tmp_path, lengths=(1500, 2000))
    task = dna(tmp_path)
    assert (task.max_seq_len("train"), task.max_seq_len("test")) == (1499, 1999)
    task.sample(ExampleStream(), 1, 1499)
    with pytest.raises(TaskError, match=r"seq_len=1500 .* use seq_len <= 1499"):
        task.sample(ExampleStream(), 1, 1500)


def test_a_segment_amid_unknown_bases_is_not_extended_into_them(tmp_path: Path) -> None:
    genome(tmp_path)
    path = tmp_path / "genome.fa"
    sequence = "N" * 900 + "ACGT" * 100 + "N" * 700
    path.write_text(f">chr1\n{sequence}\n" + path.read_text()[path.read_text().index(">chr2") :])
    task = dna(tmp_path)
    assert task.evaluation_windows("test", 255, 10).num_possible == 2
    assert task.evaluation_windows("test", 1900, 10).num_possible == 1, "chr1's is mostly N"


@pytest.mark.parametrize(
    ("bed", "message"),
    [
        (BED + "chr9 0 10 train\n", r"s\.bed: line 7: chromosome 'chr9' is not in the FASTA \(it has chr1, chr2"),
        (BED + "chr2 1900 2001 test\n", r"line 7: end 2001 lies beyond chr2, which has 2000 bases"),
        ("chr1 0 10\n", r"line 1: no split: the fourth column must be train, valid or test, not 3 columns"),
        ("chr1 0 10 gene\n", r"line 1: no split: .* not 'gene'"),
        ("chr1 10 10 train\n", r"line 1: 10\.\.10 is no interval"),
        ("chr1 -5 10 train\n", r"line 1: -5\.\.10 is no interval"),
        ("chr1 0 10 train\nchr1 10 20 test\n", r"intervals\.bed: no interval is of split 'validation'"),
    ],
)
def test_mistakes_in_the_intervals(tmp_path: Path, bed: str, message: str) -> None:
    genome(tmp_path, bed)
    with pytest.raises(TaskError, match=message):
        dna(tmp_path)
    with pytest.raises(TaskError, match=message):  # also of a genome that is in the cache by now
        dna(tmp_path)


def test_files_that_make_no_genome(tmp_path: Path) -> None:
    genome(tmp_path)
    (tmp_path / "more.bed").write_text(BED)
    with pytest.raises(TaskError, match=r"one BED file \(here 1 and 2\)"):
        dna(tmp_path)
    (tmp_path / "more.bed").unlink()
    with pytest.raises(TaskError, match="the BED file prescribes the splits"):
        dna(tmp_path, split_by="species")
    (tmp_path / "genome.fa").write_text(">chr1\nACGT\nAC\nACGT\n")
    with pytest.raises(TaskError, match=r"genome\.fa: pyfaidx cannot read it"):
        dna(tmp_path)


@pytest.mark.parametrize("bed", ["", "\n \n", "# chrom start end split\n"])
def test_a_bed_file_without_intervals_is_no_missing_one(tmp_path: Path, bed: str) -> None:
    genome(tmp_path, bed)
    with pytest.raises(TaskError, match=r"/intervals\.bed: no interval in it.*`chrom start end split`.*or remove it"):
        dna(tmp_path)
    (tmp_path / "dna").mkdir()
    genome(tmp_path / "dna" / "hg38", bed)
    with pytest.raises(TaskError, match=r"dna/hg38/intervals\.bed: no interval in it"):
        make_task("dna", data_root=tmp_path)


def test_a_chromosome_that_two_files_have(tmp_path: Path) -> None:
    genome(tmp_path)
    (tmp_path / "other.fa").write_text(">chr3\nACGT\n>chr2\n" + "A" * 2000 + "\n")
    with pytest.raises(TaskError, match=r"/genome\.fa and .*/other\.fa both have a record 'chr2'.* leave one"):
        dna(tmp_path)
    (tmp_path / "other.fa").write_text(">chr3\nACGT\n")
    assert {document.name for document in dna(tmp_path).corpus.documents} == {"chr1", "chr2"}


def test_a_base_that_is_none_is_named_with_its_place(tmp_path: Path) -> None:
    genome(tmp_path)
    path = tmp_path / "genome.fa"
    path.write_text(path.read_text()[:100] + "!" + path.read_text()[101:])
    with pytest.raises(TaskError, match=r"genome\.fa: base \d+ of chr1: '!' is not a base"):
        dna(tmp_path)


def test_without_pyfaidx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genome(tmp_path)
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pyfaidx":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TaskError, match=r'pip install "seqbench\[dna\]"'):
        dna(tmp_path)
