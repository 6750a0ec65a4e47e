"""Mitochondrial genomes: relatives stay together, circles are cut and padded, classes keep their shares."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from tasks import SPLITS, ExampleStream, TaskError, make_task
from tasks.dna.relatives import SIMILAR, clusters, sketch
from tasks.dna.vertebrates import Vertebrates

pytestmark = pytest.mark.usefixtures("fresh_cache")


def genome(seed: int, length: int = 1500) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, length).astype(np.uint8)


def mutated(tokens: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    changed = (tokens + rng.integers(1, 4, len(tokens))) % 4
    return np.where(rng.random(len(tokens)) < share, changed, tokens).astype(np.uint8)


def letters(tokens: np.ndarray) -> str:
    return "".join("ACGTN"[token] for token in tokens)


def vertebrates(source: Path) -> Vertebrates:
    task = make_task("vertebrates", source=source)
    assert isinstance(task, Vertebrates)
    return task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten unrelated genomes, each with a near-identical twin."""
    for label in (0, 1):
        (tmp_path / f"class{label}").mkdir()
        for number in range(10):
            own = genome(100 * label + number)
            for twin in (0, 1):
                body = letters(mutated(own, 0.01 * twin, number))
                (tmp_path / f"class{label}" / f"g{number}{twin}.txt").write_text(
                    f">NC_{label}{number}{twin}.1\n{body}\n"
                )
    return tmp_path


def test_sketches_estimate_the_share_of_common_16_mers() -> None:
    own = genome(1, 16000)
    agreement = [float((sketch(own) == sketch(mutated(own, share, 2))).mean()) for share in (0.0, 0.02, 0.05, 0.2)]
    expected = [1 / (2 / (1 - share) ** 16 - 1) for share in (0.0, 0.02, 0.05, 0.2)]
    assert agreement == pytest.approx(expected, abs=0.15)
    assert (sketch(own) == sketch(genome(3, 16000))).mean() < SIMILAR / 2


def test_a_sketch_knows_neither_strand_nor_start_nor_unknown_bases() -> None:
    own = genome(1)
    assert (sketch(own) == sketch(3 - own[::-1])).all()
    assert (sketch(own) == sketch(np.roll(own, 700))).mean() > 0.9
    unknown = own.copy()
    unknown[::10] = 4
    assert (sketch(unknown) == sketch(np.full(9, 1, np.uint8))).all(), "no 16-mer is known"
    assert clusters([sketch(unknown), sketch(unknown)]) == [0, 1], "nothing known is no likeness"


def test_clusters_join_along_chains() -> None:
    first = genome(1, 8000)
    second = mutated(first, 0.04, 2)
    third = mutated(second, 0.04, 3)
    assert (sketch(first) == sketch(third)).mean() < (sketch(first) == sketch(second)).mean()
    assert clusters(map(sketch, (first, genome(9, 8000), second, third))) == [0, 1, 0, 0]


def test_twins_stand_in_one_split_and_classes_keep_their_shares(folder: Path) -> None:
    task = vertebrates(folder)
    split_of: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        counts = Counter(document.name.split("/")[1] for document in task.splits[split])
        assert counts == {"class0": {"train": 16}.get(split, 2), "class1": {"train": 16}.get(split, 2)}
        for document in task.splits[split]:
            split_of[document.name.split(":NC_")[1][:2]].add(split)
    assert len(split_of) == 20 and all(len(splits) == 1 for splits in split_of.values())
    assert "40 genomes in 20 clusters" in task.provenance.note
    assert "by class: class0 20, class1 20" in task.provenance.note
    assert vertebrates(folder).splits == task.splits, "and the same from the cache"


def test_circles_are_read_from_drawn_places_and_cut_or_padded(folder: Path) -> None:
    task = vertebrates(folder)
    whole = {letters(task.corpus.tokens_of(d)) * 2 for d in task.splits["train"]}
    batch = task.sample(ExampleStream(), 32, 256)
    for row in batch.inputs_BL.numpy():
        assert any(letters(row) in circle for circle in whole)
    again = task.sample(ExampleStream(start=32), 32, 256)
    shared = {letters(row) for row in batch.inputs_BL.numpy()} & {letters(row) for row in again.inputs_BL.numpy()}
    assert not shared, "the next epoch reads every genome from another place"
    padded = task.sample(ExampleStream(), 4, 2000).inputs_BL
    assert (padded[:, :500] == 4).all() and (padded[:, 500:] < 4).all()
    fixed = [task.sample(ExampleStream(seed=seed, split="test"), 4, 256).inputs_BL for seed in (0, 1)]
    assert sorted(fixed[0].tolist()) == sorted(fixed[1].tolist()), "tests read every genome from one place"


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "flat.txt").write_text(">a\nACGT\n")
    with pytest.raises(TaskError, match=r"flat\.txt: lies in no folder; put each class"):
        vertebrates(tmp_path)
    (tmp_path / "flat.txt").unlink()
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "one.txt").write_text(f">x\n{letters(genome(ord(label)))}\n")
    with pytest.raises(TaskError, match="class 'a' has 1 groups of items that are alike; it needs 3"):
        vertebrates(tmp_path)
    (tmp_path / "a" / "two.txt").write_text(">x\nAC*GT\n")
    with pytest.raises(TaskError, match=r"a/two\.txt: line 2: '\*' is not a base"):
        vertebrates(tmp_path)


def test_the_real_genomes(real_data: Path) -> None:
    task = make_task("vertebrates", data_root=real_data)
    assert isinstance(task, Vertebrates)
    if task.layout == "embedded":
        pytest.skip("the data root holds no mitochondrial genomes")
    assert task.classes == ("Amphibians", "Birds", "Fish", "Mammals", "Reptiles")
    assert sum(len(task.splits[split]) for split in SPLITS) == 3487
    groups = [{document.group for document in task.splits[split]} for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) < 3487 * 0.7
    assert task.chance == pytest.approx(0.53, abs=0.01)
    assert "several classes" not in task.provenance.note
    for split in ("validation", "test"):
        counts = Counter(document.name.split("/")[1] for document in task.splits[split])
        assert min(counts.values()) >= 20 and len(counts) == 5
    assert task.sample(ExampleStream(), 2, 2**14).inputs_BL.shape == (2, 2**14)
