"""GUE's CSV files in all their forms, its splits, and the items that come of them."""

import gzip
import io
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tasks import IGNORE_INDEX, SPLITS, ExampleStream, TaskError, make_task
from tasks.dna.gue import Gue

pytestmark = pytest.mark.usefixtures("fresh_cache")

HEADER = "sequence,label\n"


def rows(split: str, count: int = 30) -> str:
    """Items that differ, of two classes: the class is the first base."""
    letters = "ACGT"
    middle = {"train": "A", "dev": "C", "test": "G"}[split]
    lines = []
    for i in range(count):
        body = "".join(letters[i // 4**k % 4] for k in range(4))
        lines.append(f"{'TG'[i % 2]}{middle}{body},{i % 2}")
    return HEADER + "\n".join(lines) + "\n"


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.csv").write_bytes(data)
    return folder


def gue(source: Path, **options: str) -> Gue:
    task = make_task("gue", source=source, **options)
    assert isinstance(task, Gue)
    return task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("EMP/H3", "tf/0", "mouse/0"):
        write(tmp_path / "GUE" / name, **{split: rows(split) for split in ("train", "dev", "test")})
    return tmp_path / "GUE"


def test_items_are_right_aligned_and_padded_with_n(folder: Path) -> None:
    task = gue(folder, dataset="tf/0")
    for split in SPLITS:
        batch = task.sample(ExampleStream(split=split), 30, 64)
        assert (batch.inputs_BL[:, :-6] == 4).all() and (batch.inputs_BL[:, -6:] < 4).all()
        first = batch.inputs_BL[:, -6]
        assert batch.targets_BL[:, -1].tolist() == [{3: 5, 2: 6}[base] for base in first.tolist()]
        assert (batch.targets_BL[:, :-1] == IGNORE_INDEX).all()
    assert task.classes == ("0", "1") and task.vocab_size == 7 and task.chance == 0.5
    assert task.label_tokens == range(5, 7)
    assert "data set tf/0" in task.provenance.note


def test_an_epoch_holds_every_item_once_and_the_next_in_another_order(folder: Path) -> None:
    task = gue(folder, dataset="tf/0")
    first, second = (task.sample(ExampleStream(start=start), 30, 64).inputs_BL.tolist() for start in (0, 30))
    assert len(set(map(tuple, first))) == 30 and sorted(first) == sorted(second) and first != second


def test_evaluation_takes_all_items_or_a_mixed_part(folder: Path) -> None:
    task = gue(folder, dataset="tf/0")
    assert len(task.evaluation_windows("test", 64, 10**6)) == 30
    part = task.evaluation_windows("test", 64, 12)
    assert (len(part), part.num_possible) == (12, 30)
    labels = [int(batch.targets_BL[0, -1]) for batch in part.batches(1)]
    assert len(set(labels)) == 2


def test_a_name_may_be_cut_where_it_is_clear(folder: Path) -> None:
    assert gue(folder, dataset="H3").provenance.note.endswith("data set EMP/H3")
    with pytest.raises(TaskError, match="dataset='0' may be mouse/0 or tf/0; give its whole name"):
        gue(folder, dataset="0")
    with pytest.raises(TaskError, match=r"unknown dataset='EMP/H4' \(did you mean 'EMP/H3'"):
        gue(folder, dataset="EMP/H4")
    with pytest.raises(TaskError, match="holds EMP/H3, mouse/0, tf/0; choose one"):
        gue(folder)
    assert len(gue(folder / "tf/0").splits["test"]) == 30, "one data set needs no name"


def test_without_a_dev_file_validation_is_carved_and_duplicates_stay_together(tmp_path: Path) -> None:
    doubled = rows("train", 40) + rows("train", 40).removeprefix(HEADER)
    task = gue(write(tmp_path / "x/y", train=doubled, test=rows("test")))
    held, kept = ({d.group for d in task.splits[split]} for split in ("validation", "train"))
    assert not held & kept and len(held) == 4
    assert [len(task.splits[split]) for split in SPLITS] == [72, 8, 30]
    assert "validation carved from train" in task.provenance.note
    again = gue(write(tmp_path / "x/y", train=doubled, test=rows("test")))
    assert again.splits == task.splits


def test_without_a_train_file_dev_is_trained_on(tmp_path: Path) -> None:
    task = gue(write(tmp_path / "x/y", dev=rows("dev"), test=rows("test")))
    assert [len(task.splits[split]) for split in SPLITS] == [27, 3, 30]
    assert "no train split" in task.provenance.note and "carved" in task.provenance.note


def test_duplicates_across_splits_are_counted(tmp_path: Path) -> None:
    shared = rows("train", 3).removeprefix(HEADER)
    task = gue(write(tmp_path / "x/y", train=rows("train"), dev=rows("dev"), test=rows("test") + shared.lower()))
    assert "3 of 33 test items also stand in train" in task.provenance.note


def test_windows_that_overlap_with_train_are_counted_by_class(tmp_path: Path) -> None:
    rng = random.Random(7)
    train = ["".join(rng.choices("ACGT", k=60)) for _ in range(20)]
    other_strand = str.maketrans("ACGT", "TGCA")
    sharing = [train[3][30:] + "A" * 9, "C" * 9 + train[5][:30].translate(other_strand)[::-1], "GT" + train[8][11:41]]
    not_sharing = [train[9][:29] + "N" + train[9][30:40], "".join(rng.choices("ACGT", k=60)), "ACG"]
    test = HEADER + "".join(f"{sequence},1\n" for sequence in sharing) + "".join(f"{s},0\n" for s in not_sharing)
    first = HEADER + "".join(f"{sequence},{number % 2}\n" for number, sequence in enumerate(train))
    task = gue(write(tmp_path / "x/y", train=first, dev=rows("dev"), test=test))
    assert "0 of 3 of class 0 and 3 of 3 of class 1 of test share 30 bases in a row with train" in task.provenance.note


def test_a_longer_sequence_is_an_error_with_both_lengths(tmp_path: Path) -> None:
    files = {split: rows(split) for split in ("train", "dev")}
    task = gue(write(tmp_path / "x/y", **files, test=rows("test") + f"{'ACGT' * 25},1\n"))
    with pytest.raises(TaskError, match=r"up to 100 tokens \(test/1/test.csv:32\), longer than seq_len=64"):
        task.sample(ExampleStream(), 1, 64)
    assert task.sample(ExampleStream(), 1, 100).inputs_BL.shape == (1, 100)


@pytest.mark.parametrize(
    "content",
    [
        "sequence,label\r\nacgtn,0\r\nRYA,1\r\n",
        "\ufeffsequence,label\nACGTN,0\nNNA,1\n",
        "\ufefflabel,sequence\n0,ACGUN\n1,nna\n\n",
        'Sequence, Label\n"ACGTN", 0\nWSA,1',
    ],
)
def test_forms_of_csv(tmp_path: Path, content: str) -> None:
    task = gue(write(tmp_path / "x/y", train=content, dev=rows("dev"), test=rows("test")))
    found = {tuple(task.corpus.tokens_of(d).tolist()) for d in task.splits["train"]}
    assert found == {(0, 1, 2, 3, 4), (4, 4, 0)}


def test_gzipped_files_and_archives(folder: Path, tmp_path: Path) -> None:
    plain = gue(folder, dataset="tf/0")
    zipped = tmp_path / "zipped/tf/0"
    zipped.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (zipped / f"{split}.csv.gz").write_bytes(gzip.compress(rows(split).encode()))
    with tarfile.open(tmp_path / "gue.tar.xz", "w:xz") as archive:
        for split in ("train", "dev", "test"):
            info = tarfile.TarInfo(f"GUE/tf/0/{split}.csv")
            info.size = len(rows(split).encode())
            archive.addfile(info, io.BytesIO(rows(split).encode()))
    for source in (tmp_path / "zipped", tmp_path / "gue.tar.xz"):
        batch = gue(source, dataset="tf/0").sample(ExampleStream(split="test"), 30, 64)
        assert batch.inputs_BL.equal(plain.sample(ExampleStream(split="test"), 30, 64).inputs_BL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.csv: line 1: no column sequence and label in 'nothing'"),
        ("sequence,class\nACGT,0\n", r"train\.csv: line 1: no column label in 'sequence,class'"),
        ("ACGT,0\nACGA,1\n", r"train\.csv: line 1: no column sequence and label"),
        (HEADER, r"train\.csv: line 2: a header and no sequences"),
        (HEADER + "ACGT,0\nACGA,yes\n", r"train\.csv: line 3: label 'yes' is no whole number"),
        (HEADER + "ACGT,0.5\n", r"train\.csv: line 2: label '0\.5' is no whole number"),
        (HEADER + "ACGT,\n", r"train\.csv: line 2: label '' is no whole number"),
        (HEADER + "ACGT,0\nACGA\n", r"train\.csv: line 3: 1 values where the header has 2"),
        (HEADER + "ACGT,0\nACE,1\n", r"train\.csv: line 3: 'E' is not a base"),
        (HEADER + "ACGT,0\n,1\n", r"train\.csv: line 3: the sequence is empty"),
        (HEADER.encode() + b"ACGT,0\n\xff\xfe,1\n", r"train\.csv: line 3: no UTF-8 text"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        gue(write(tmp_path / "x/y", train=content, dev=rows("dev"), test=rows("test")))


def test_missing_splits_and_classes(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="has no test split, only train; add its file"):
        gue(write(tmp_path / "a/b", train=rows("train")))
    with pytest.raises(TaskError, match="has no train split, only test"):
        gue(write(tmp_path / "c/d", test=rows("test")))
    one = HEADER + "ACGT,0\nACGA,0\n"
    with pytest.raises(TaskError, match="only the class 0; it needs two"):
        gue(write(tmp_path / "e/f", train=one, test=one))
    task = gue(write(tmp_path / "g/h", train=rows("train"), test=rows("test") + "AAA,10\nAAC,2\n"))
    assert task.classes == ("0", "1", "2", "10"), "by value"
    assert "class 10, 2 is tested, but not in train" in task.provenance.note


def test_no_data_set_in_the_source(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TaskError, match="holds no data set in the layout of gue"):
        gue(tmp_path, dataset="tf/0")


def test_the_embedded_sample_stands_in_for_any_data_set() -> None:
    task = make_task("gue", dataset="splice/reconstructed")
    assert task.provenance.kind == "embedded" and "not GUE" in task.provenance.note
    assert task.sample(ExampleStream(), 4, 64).inputs_BL.equal(
        make_task("gue").sample(ExampleStream(), 4, 64).inputs_BL
    )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("prom/prom_core_tata", [4904, 613, 613]),
        ("mouse/0", [6478, 810, 810]),
        ("EMP/H4", [1315, 146, 1461]),
    ],
)
def test_the_real_data_sets(real_data: Path, name: str, sizes: list[int]) -> None:
    task = make_task("gue", data_root=real_data, dataset=name)
    assert isinstance(task, Gue)
    if task.layout == "embedded":
        pytest.skip("the data root holds no GUE")
    assert [len(task.splits[split]) for split in SPLITS] == sizes
    assert task.classes == ("0", "1") and 0.5 <= task.chance < 0.57
    batch = task.sample(ExampleStream(), sizes[0], 512)
    assert Counter(batch.targets_BL[:, -1].tolist()).most_common(1)[0][1] / sizes[0] == pytest.approx(task.chance)
    if name == "prom/prom_core_tata":
        assert "16 of 613 test items also stand in train" in task.provenance.note
    if name == "EMP/H4":
        assert "no train split" in task.provenance.note
