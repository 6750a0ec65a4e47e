"""FASTA in all its forms, and the windows drawn from it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import IGNORE_INDEX, CorpusTask, ExampleStream, TaskError, make_task
from tasks.archive import Member
from tasks.dna.fasta import parse_fasta

pytestmark = pytest.mark.usefixtures("fresh_cache")


def parse(data: bytes) -> list[tuple[str, list[int]]]:
    member = Member(name="x.fa", place="x.fa", data=data)
    return [(record.id, record.tokens_L.tolist()) for record in parse_fasta(member)]


def dna(source: Path) -> CorpusTask:
    task = make_task("dna", source=source)
    assert isinstance(task, CorpusTask)
    return task


@pytest.mark.parametrize(
    ("data", "records"),
    [
        (b">a desc\nACGT\nN\n", [("a", [0, 1, 2, 3, 4])]),
        (b">a\nacgtn", [("a", [0, 1, 2, 3, 4])]),
        (b">a\nUu\n", [("a", [3, 3])]),
        (b">a\nRYSWKMBDHVryswkmbdhv\n", [("a", [4] * 20)]),
        (b">a\r\nAC\r\nGT\r\n>b\r\nA\r\n", [("a", [0, 1, 2, 3]), ("b", [0])]),
        (b">a\rAC\r>b\rGT\r", [("a", [0, 1]), ("b", [2, 3])]),
        (b"\n\n>a\nA C\tG\n\nT\n", [("a", [0, 1, 2, 3])]),
        (b">a\n>b\nA\n", [("a", []), ("b", [0])]),
        (b">\nA\n>\nC\n", [("record 1", [0]), ("record 2", [1])]),
        (b"\xef\xbb\xbf>a\nA", [("a", [0])]),
        (b">a", [("a", [])]),
        (b"", []),
        (b"\n \n", []),
    ],
)
def test_forms_of_fasta(data: bytes, records: list[tuple[str, list[int]]]) -> None:
    assert parse(data) == records


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ACGT\n", r"x\.fa: line 1: FASTA starts with '>', not 'ACGT'"),
        (b"\n\nsequence,label\n", r"x\.fa: line 3: FASTA starts with '>', not 'sequence,label'"),
        (b">a\nACGT\nAC*T\n", r"x\.fa: line 3: '\*' is not a base"),
        (b">a\r\nACGT\r\n>b\r\nAC-T\r\n", r"x\.fa: line 4: '-' is not a base"),
        (b">a\nAC>GT\n", r"x\.fa: line 2: '>' is not a base"),
        (b">a\nACE\n", r"x\.fa: line 2: 'E' is not a base"),
        (">a\nACé\n".encode(), r"x\.fa: line 2: 'é' is not a base"),
    ],
)
def test_what_is_not_fasta(data: bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        parse(data)


def write_random(path: Path, records: dict[str, int], seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    text = "".join(f">{name}\n{''.join(generator.choice(list('ACGT'), size))}\n" for name, size in records.items())
    path.write_text(text)
    return path


def test_records_are_groups_and_never_joined(tmp_path: Path) -> None:
    task = dna(write_random(tmp_path / "x.fa", {f"chr{i}": 1000 for i in range(10)}))
    assert {document.group for split in task.splits.values() for document in split} == {f"chr{i}" for i in range(10)}
    assert task.max_seq_len("train") == 999


def test_gzipped_and_truncated(tmp_path: Path) -> None:
    plain = write_random(tmp_path / "x.fa", {"a": 5000, "b": 3000, "c": 3000})
    packed = tmp_path / "y.fa.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert np.array_equal(dna(packed).corpus.tokens, dna(plain).corpus.tokens)
    packed.write_bytes(packed.read_bytes()[:-500])
    with pytest.raises(TaskError, match=r"y\.fa\.gz: the compressed file is damaged or truncated near line \d"):
        dna(packed)


def test_empty_records_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">nothing\n\n>a\n" + "ACGT" * 500 + "\n")
    assert "skipped the empty record 'nothing' of x.fa" in dna(path).provenance.note
    path.write_text(">nothing\n")
    with pytest.raises(TaskError, match=r"nothing to read in x\.fa.*empty"):
        dna(path)


def test_unknown_bases_are_read_but_not_scored(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text("".join(f">c{i}\n" + "ACGTN" * 400 + "\n" for i in range(3)))
    task = dna(path)
    batch = task.sample(ExampleStream(), 8, 100)
    assert int((batch.inputs_BL == 4).sum()) == 8 * 20
    assert batch.num_scored == 8 * 80
    assert torch.equal(batch.targets_BL[:, :-1] == IGNORE_INDEX, batch.inputs_BL[:, 1:] == 4)
    assert task.chance == pytest.approx(0.25)


def test_mostly_unknown_windows_are_never_drawn(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text("".join(f">c{i}\n" + ("N" * 3000 + "ACGT" * 250) * 3 + "\n" for i in range(3)))
    task = dna(path)
    batch = task.sample(ExampleStream(split="test"), 300, 128)
    num_unknown_B = (batch.inputs_BL == 4).sum(dim=1) + (batch.targets_BL[:, -1] == IGNORE_INDEX)
    assert int(num_unknown_B.max()) <= 129 // 2
    for windows in task.evaluation_windows("test", 128, 50).batches(50):
        assert int((windows.inputs_BL == 4).sum(dim=1).max()) <= 64
    alone = task.sample(ExampleStream(split="test", start=17), 1, 128)
    assert torch.equal(alone.inputs_BL[0], batch.inputs_BL[17])
    with pytest.raises(TaskError, match=r"mostly known ones; .*'x\.fa:c\d'\) is more than 50% N; use a shorter"):
        task.sample(ExampleStream(split="test"), 1, 11_000)


def test_n_alone_is_no_matter_of_the_length(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text("".join(f">c{i}\n{'N' * 3000}\n" for i in range(3)))
    with pytest.raises(TaskError, match=r"no base but N in .*/x\.fa \(9000 of them\).*name a file") as caught:
        dna(path)
    assert "seq_len <=" not in str(caught.value)


def test_n_alone_in_a_split_is_no_matter_of_the_length(tmp_path: Path) -> None:
    path = write_random(tmp_path / "x.fa", {f"c{i}": 3000 for i in range(3)})
    held = dna(path).splits["test"][0].group
    lines = path.read_text().splitlines()
    lines[lines.index(f">{held}") + 1] = "N" * 3000
    path.write_text("\n".join(lines) + "\n")
    task = dna(path)
    task.sample(ExampleStream(), 1, 128)
    with pytest.raises(TaskError, match=rf"split 'test' has no base but N .*'x\.fa:{held}'.* at any seq_len"):
        task.sample(ExampleStream(split="test"), 1, 128)


def test_species_of_one_encode_region_are_one_group(tmp_path: Path) -> None:
    records = {f"{species}|ENm001|May-2005": 2000 for species in ("human", "chimp", "cow", "dog")}
    task = dna(write_random(tmp_path / "x.fa", records))
    assert {document.group for document in task.corpus.documents} == {"ENm001"}
    assert "contiguous split" in task.provenance.note


def test_default_layout_prescribes_its_split(tmp_path: Path) -> None:
    import io
    import tarfile

    for folder in ("encode_msa_multispecies", "human_1mb"):
        (tmp_path / "dna" / folder).mkdir(parents=True)
    with tarfile.open(tmp_path / "dna/encode_msa_multispecies/ENm001_dev.tar.xz", "w:xz") as archive:
        for species in ("human", "cow"):
            data = f">{species}|ENm001|x\n".encode() + b"ACGT" * 100
            info = tarfile.TarInfo(f"ENm001/{species}.ENm001.fa")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    for name, header in (("hg38_chr2_1.fa.gz", "chr2"), ("hg_chr22.fa.gz", "22:20000001-21000000")):
        (tmp_path / "dna/human_1mb" / name).write_bytes(gzip.compress(f">{header}\n{'acgt' * 100}\n".encode()))
    task = make_task("dna", data_root=tmp_path)
    assert isinstance(task, CorpusTask)
    groups = {split: {document.group for document in documents} for split, documents in task.splits.items()}
    assert groups == {"train": {"ENm001"}, "validation": {"chr22"}, "test": {"chr2"}}


def test_embedded_dna_looks_like_dna() -> None:
    task = make_task("dna")
    assert isinstance(task, CorpusTask)
    tokens = torch.from_numpy(task.corpus.tokens.copy()).long()
    assert 1.5e6 < len(tokens) < 3e6
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    assert shares[4] == 0
    assert all(0.15 < float(share) < 0.35 for share in shares[:4])
    pairs = torch.bincount(tokens[:-1] * 5 + tokens[1:], minlength=25) / len(tokens)
    assert float(pairs[1 * 5 + 2]) < 0.7 * float(shares[1] * shares[2]), "CG is rare"


def reverse_complement(tokens_L: torch.Tensor) -> torch.Tensor:
    return torch.tensor([3, 2, 1, 0, 4])[tokens_L].flip(-1)


def test_half_of_the_training_windows_are_of_the_other_strand(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    generator = np.random.default_rng(1)
    path.write_text("".join(f">c{i}\n{''.join(generator.choice(list('ACGTN'), 3000))}\n" for i in range(3)))
    plain, augmented = make_task("dna", source=path), make_task("dna", source=path, reverse_complement=True)
    one, other = (task.sample(ExampleStream(seed=3), 400, 80) for task in (plain, augmented))
    last_B1 = one.targets_BL[:, -1:].clone()
    windows_BL = torch.cat([one.inputs_BL, torch.where(last_B1 == IGNORE_INDEX, 4, last_B1)], dim=1)
    same_B = (other.inputs_BL == one.inputs_BL).all(dim=1)
    flipped_BL = reverse_complement(windows_BL)[~same_B]
    assert torch.equal(other.inputs_BL[~same_B], flipped_BL[:, :-1])
    expected_BL = torch.where(flipped_BL[:, 1:] == 4, IGNORE_INDEX, flipped_BL[:, 1:])
    assert torch.equal(other.targets_BL[~same_B], expected_BL)
    assert 150 < int(same_B.sum()) < 250
    alone = augmented.sample(ExampleStream(seed=3, start=17), 1, 80)
    assert torch.equal(alone.inputs_BL[0], other.inputs_BL[17])
    for split in ("validation", "test"):
        stream = ExampleStream(split=split)  # type: ignore[arg-type]
        assert torch.equal(plain.sample(stream, 8, 80).inputs_BL, augmented.sample(stream, 8, 80).inputs_BL)


def test_split_by_species_keeps_a_species_together_and_names_the_leak(tmp_path: Path) -> None:
    records = {f"{name}|ENm001|piece{i}": 1500 for name in ("human", "chimp", "cow", "dog") for i in range(2)}
    path = write_random(tmp_path / "x.fa", records)
    task = make_task("dna", source=path, split_by="species")
    assert isinstance(task, CorpusTask)
    groups = {split: {document.group for document in documents} for split, documents in task.splits.items()}
    assert set.union(*groups.values()) == {"human", "chimp", "cow", "dog"}
    assert sum(map(len, groups.values())) == 4 and all(groups.values())
    assert "relative in train" in task.provenance.note
    assert "contiguous" in dna(path).provenance.note, "by region they are one group"


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ({"human|ENm001|x": 900, "cow|ENm001|x": 900}, {"split_by": "species"}, "three species, here cow, human"),
        ({"a": 900}, {"split_by": "kingdom"}, "split_by='kingdom' is neither"),
    ],
)
def test_species_that_cannot_be_split(tmp_path: Path, records, options, message) -> None:
    with pytest.raises(TaskError, match=message):
        make_task("dna", source=write_random(tmp_path / "x.fa", records), **options)
