"""The tasks on real text, DNA and sound, where they lie beside the checkout."""

from pathlib import Path

import pytest
import torch

from tasks import SPLITS, CorpusTask, ExampleStream, Task, describe_source, make_task


@pytest.fixture(scope="module")
def real_tasks(real_data: Path) -> dict[str, CorpusTask]:
    made: dict[str, Task] = {
        name: make_task(name, data_root=real_data) for name in ("language", "dna", "audio", "speech")
    }
    found = {name: task for name, task in made.items() if isinstance(task, CorpusTask) and task.layout != "embedded"}
    if not found:
        pytest.skip("the data root holds none of the tasks' files")
    return found


def test_real_data_are_used_and_said_so(real_tasks: dict[str, CorpusTask], real_data: Path) -> None:
    for name, task in real_tasks.items():
        assert task.provenance.kind == "data root"
        assert task.provenance.sha256 == describe_source(name, data_root=real_data).sha256
        assert not any(Path(file).is_absolute() for file in task.provenance.files)


def test_groups_are_disjoint(real_tasks: dict[str, CorpusTask]) -> None:
    for task in real_tasks.values():
        groups = [{document.group for document in task.splits[split]} for split in SPLITS]
        assert all(groups)
        assert sum(map(len, groups)) == len(set().union(*groups))


def test_second_load_is_the_same_corpus(real_tasks: dict[str, CorpusTask], real_data: Path) -> None:
    for name, task in real_tasks.items():
        again = make_task(name, data_root=real_data)
        stream = ExampleStream(seed=1, split="test")
        assert torch.equal(task.sample(stream, 4, 1024).inputs_BL, again.sample(stream, 4, 1024).inputs_BL)
        assert again.provenance == task.provenance


def test_novels_are_split_by_author(real_tasks: dict[str, CorpusTask]) -> None:
    if "language" not in real_tasks or real_tasks["language"].layout != "english_novels":
        pytest.skip("no novels")
    task = real_tasks["language"]
    assert {"Austen", "Dickens"} & {document.group for document in task.corpus.documents}
    total = len(task.corpus.tokens)
    for split in ("validation", "test"):
        assert 0.1 <= sum(document.length for document in task.splits[split]) / total <= 0.15
    assert task.max_seq_len("test") == 2**20


def test_human_chromosomes_are_held_out(real_tasks: dict[str, CorpusTask]) -> None:
    if "dna" not in real_tasks or real_tasks["dna"].layout != "ENm001 + hg38":
        pytest.skip("no ENm001 with hg38")
    task = real_tasks["dna"]
    assert {document.group for document in task.splits["train"]} == {"ENm001"}
    assert {document.group for document in task.splits["validation"]} == {"chr22"}
    assert {document.group for document in task.splits["test"]} == {"chr2"}
    batch = task.sample(ExampleStream(split="test"), 64, 8192)
    assert int((batch.inputs_BL == 4).sum(dim=1).max()) <= 4097, "the telomere's N are left out"
    assert task.sample(ExampleStream(split="test"), 1, 2**20).inputs_BL.shape == (1, 2**20)


def test_sound_is_loud_and_speech_is_a_second_long(real_tasks: dict[str, CorpusTask]) -> None:
    if "audio" in real_tasks:
        assert real_tasks["audio"].max_seq_len("test") == 2**20
        assert real_tasks["audio"].corpus.tokens[::1000].std() > 10
    if "speech" in real_tasks:
        assert real_tasks["speech"].max_seq_len("test") == 15_999
