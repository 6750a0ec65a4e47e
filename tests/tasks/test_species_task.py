"""Species: labels, disjoint stretches, balance, and what lengths the splits can serve."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tasks import SPLITS, ExampleStream, TaskError, make_task
from tasks.dna.species import PRIMATES, SHARES, Species

BASES = 5


def species(**options: Path) -> Species:
    task = make_task("species", **options)  # type: ignore[arg-type]
    assert isinstance(task, Species)
    return task


def genomes(folder: Path, lengths: dict[str, list[int]]) -> Path:
    """A FASTA a species, of one letter each, so that a window's species is plain."""
    folder.mkdir(exist_ok=True)
    for letter, (name, sizes) in zip("ACGT", lengths.items(), strict=False):
        records = [f">r{i}\n{letter * size}\n" for i, size in enumerate(sizes)]
        (folder / f"{name}.genome.fa").write_text("".join(records))
    return folder


@pytest.fixture
def letters(tmp_path: Path, fresh_cache: Path) -> Species:
    return species(source=genomes(tmp_path / "apes", {"bonobo": [6000], "gorilla": [900, 5000], "orang": [7000]}))


@pytest.mark.parametrize("split", SPLITS)
def test_labels_name_the_species_of_the_window(letters: Species, split: str) -> None:
    batch = letters.sample(ExampleStream(split=split), 60, 200)  # type: ignore[arg-type]
    assert letters.species == ("bonobo", "gorilla", "orang") and letters.vocab_size == BASES + 3
    assert (batch.inputs_BL == batch.inputs_BL[:, :1]).all(), "a window never leaves its document"
    assert batch.targets_BL[:, -1].tolist() == (batch.inputs_BL[:, 0] + BASES).tolist()
    assert set(batch.targets_BL[:, -1].tolist()) == {BASES, BASES + 1, BASES + 2}
    assert letters.chance == pytest.approx(1 / 3)


def test_stretches_are_disjoint_and_of_the_stated_shares(letters: Species) -> None:
    taken = np.zeros(len(letters.corpus.tokens), int)
    for split, documents in letters.splits.items():
        for document in documents:
            taken[document.start : document.end] += 1
        for name in letters.species:
            total = sum(d.length for d in letters.corpus.documents if d.group == name)
            held = sum(d.length for d in documents if d.group == name)
            assert held == pytest.approx(SHARES[split] * total, abs=2)
    assert (taken == 1).all()
    assert sum(SHARES.values()) == pytest.approx(1)


def test_test_windows_are_balanced_and_apart(letters: Species) -> None:
    windows = letters.evaluation_windows("test", 100, 1000)
    labels = [int(batch.targets_BL[0, -1]) for batch in windows.batches(1)]
    assert len(set(Counter(labels).values())) == 1 and len(set(labels)) == 3
    assert windows.num_possible == len(windows)
    starts = sorted(windows.starts)
    assert min(b - a for a, b in pairwise(starts)) >= 100
    assert len(letters.evaluation_windows("test", 100, 6)) == 6
    assert len(letters.evaluation_windows("test", 100, 1)) == 3, "one of each at least"


def test_unknown_bases_are_cut_out(tmp_path: Path, fresh_cache: Path) -> None:
    for name, body in (("a", "ACGN" * 500), ("b", "ACG" * 500 + "N" * 2000)):
        (tmp_path / f"{name}.fa").write_text(f">x\n{body}\n")
    task = species(source=tmp_path)
    assert [d.length for d in task.corpus.documents] == [1500, 1500]
    assert not (task.corpus.tokens == 4).any()
    assert "cut out" in task.provenance.note


def test_lengths_that_a_split_cannot_serve_say_what_all_can(letters: Species) -> None:
    longest = {split: letters.max_seq_len(split) for split in SPLITS}
    for split in SPLITS:
        letters.sample(ExampleStream(split=split), 1, longest[split])
        with pytest.raises(TaskError, match=f"split '{split}'.*validation {longest['validation']}, test"):
            letters.sample(ExampleStream(split=split), 1, longest[split] + 1)


def test_one_species_is_no_question(tmp_path: Path, fresh_cache: Path) -> None:
    with pytest.raises(TaskError, match="only human found; a source needs two species"):
        species(source=genomes(tmp_path / "one", {"human": [5000]}))


def test_the_real_primates(real_data: Path, fresh_cache: Path) -> None:
    task = species(data_root=real_data)
    assert task.species == PRIMATES and task.chance == 0.2 and task.vocab_size == BASES + 5
    assert min(task.max_seq_len(split) for split in SPLITS) >= 2**18
    assert task.evaluation_windows("test", 2**18, 100).num_possible >= 10
    assert task.sample(ExampleStream(split="validation"), 5, 2**18).inputs_BL.shape == (5, 2**18)
    with pytest.raises(TaskError, match="splits serve up to train"):
        task.sample(ExampleStream(split="test"), 1, 2**20)
