"""GenomicBenchmarks' folders: a data set's name, its classes, a carved validation split, and bad files."""

from pathlib import Path

import pytest

from tasks import SPLITS, ExampleStream, TaskError, make_task
from tasks.dna.genomic_benchmarks import GenomicBenchmarks

pytestmark = pytest.mark.usefixtures("fresh_cache")


def benchmarks(source: Path, **options: str) -> GenomicBenchmarks:
    task = make_task("genomic_benchmarks", source=source, **options)
    assert isinstance(task, GenomicBenchmarks)
    return task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for dataset in ("human_nontata_promoters", "demo_coding_vs_intergenomic_seqs"):
        for split, count in (("train", 20), ("test", 8)):
            for label, base in (("negative", "A"), ("positive", "C")):
                path = tmp_path / dataset / split / label
                path.mkdir(parents=True)
                for number in range(count):
                    body = "".join("ACGT"[number // 4**k % 4] for k in range(3))
                    (path / f"{number}.txt").write_text(f"{base}{'gT'[split == 'test']}{body}N")
    return tmp_path


def test_classes_are_folders_and_validation_is_carved(folder: Path) -> None:
    task = benchmarks(folder, dataset="human_nontata_promoters")
    assert task.classes == ("negative", "positive") and task.chance == pytest.approx(0.5, abs=0.06)
    assert [len(task.splits[split]) for split in SPLITS] == [36, 4, 16]
    assert "data set human_nontata_promoters" in task.provenance.note and "carved" in task.provenance.note
    batch = task.sample(ExampleStream(split="test"), 16, 64)
    assert batch.targets_BL[:, -1].tolist() == [5 + base for base in batch.inputs_BL[:, -6].tolist()]
    assert (batch.inputs_BL[:, -1] == 4).all() and (batch.inputs_BL[:, :-6] == 4).all()


def test_the_packages_folder_of_one_data_set_needs_no_name(folder: Path) -> None:
    whole = benchmarks(folder, dataset="human_nontata_promoters")
    for options in ({}, {"dataset": "human_nontata_promoters"}):
        alone = benchmarks(folder / "human_nontata_promoters", **options)
        found, expected = (t.sample(ExampleStream(split="test"), 16, 64).inputs_BL for t in (alone, whole))
        assert found.equal(expected)


def test_names(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"unknown dataset='human_nontata_promoter' \(did you mean 'human_nontata"):
        benchmarks(folder, dataset="human_nontata_promoter")
    with pytest.raises(TaskError, match="demo_coding_vs_intergenomic_seqs, human_nontata_promoters; choose one"):
        benchmarks(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train/negative/3\.txt: line 1: the file is empty"),
        (b"\r\n \n", r"train/negative/3\.txt: line 1: the file is empty"),
        (b"ACGT\r\nAC*T", r"train/negative/3\.txt: line 2: '\*' is not a base"),
    ],
)
def test_bad_files_name_file_and_line(folder: Path, content: bytes, message: str) -> None:
    source = folder / "human_nontata_promoters"
    (source / "train/negative/3.txt").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        benchmarks(source)


def test_forms_of_text(folder: Path) -> None:
    source = folder / "human_nontata_promoters"
    (source / "train/negative/3.txt").write_bytes(b"\xef\xbb\xbfacg\r\nTUr\r\n")
    task = benchmarks(source)
    (found,) = [d for d in task.corpus.documents if d.name == "train/negative/3.txt"]
    assert task.corpus.tokens_of(found).tolist() == [0, 1, 2, 3, 3, 4]


def test_data_root_and_gue_beside_it(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dna").mkdir(parents=True)
    (root / "dna" / "genomic_benchmarks").symlink_to(folder)
    task = make_task("genomic_benchmarks", data_root=root, dataset="human_nontata_promoters")
    assert task.provenance.kind == "data root"
