"""What every registered task keeps, on embedded data."""

import hashlib
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from tasks import IGNORE_INDEX, SPLITS, TASKS, CorpusTask, ExampleStream, Task, TaskError

CORPORA = ["language", "dna", "audio", "speech", "digits"]

GOLDEN = {
    # (task, version): sha256 of 4 training examples of 256 tokens, seed 0, inputs then targets.
    # Change a line only together with the task's version. Language is missing: its embedded text is
    # CPython's own and varies with it.
    ("selective_copying", 1): "d4c059f301eadcb5216046085421b61adbaabb53391b565981107b6962fe8f10",
    ("induction_heads", 1): "5a8c044438c12cf3dd07820917d390e3756ed8a329ce0de0c81a9e74ca04239f",
    ("dna", 1): "d9732fb412fef774f248740bf5a96e97d23c52bf6d1201fab48ae82be8debbf4",
    ("audio", 1): "e641a64d491dcabef8e21d91d1c11e91dd8c14ea048b31d31b6c01f8eb6ba281",
    ("speech", 1): "7f13eff99ff2245050cf1cc77a362860db72d426198156c5f4a1c3b6a1cd3ffd",
    ("species", 1): "b4630aae0f70cb95fa143d561c89a49ea220e15dba480554f0aa10110aac9c64",
    ("digits", 1): "dd7331b56dd57537091e547ae8b1dc89dce6149ed89ba9abfb26008dca32c5e4",
    ("commands", 1): "0314e4e3297206edb7c49d8f02098b097ebf4ff7691bfe0f82856bb93d74e8ea",
    ("gue", 1): "8ab34404078aa5d5f29f776f9a69eafb47f911650ac1b80a32765484b147b5d5",
    ("vertebrates", 1): "e63b798f124ee0f4e6645b31330864f99bbb347478d674b5af9b48aff4d27ffd",
    ("genomic_benchmarks", 1): "339318e90ddfb9c3bd06183eefceb06d7e37296a880f6f7575ff55e5cebe1185",
}

GOLDEN_CORPORA = {
    # sha256 of all tokens of the embedded samples
    ("dna", 1): "76c706e83bd315066176bba7c933e936556ca44a5680eb15c4dfaa8c79456e6c",
    ("audio", 1): "4596d8e3a4277eed05e4810615a5dbc6acd6b17489013c3403f78ecdd63a8c59",
    ("species", 1): "654a9d74217765934dc874fe470818c6d5e54f8c7d6affdcfc797401c9209700",
    ("gue", 1): "703e5daee1e9eea81aac146077088dc5348ecfdc14c5e003aa5a2f1d436a5c58",
    ("vertebrates", 1): "d4b1253bb924822c2d0652692953d7889ba5efb726556256c69acc1f604fb7db",
    ("genomic_benchmarks", 1): "3472a214b3d124e053aed1e61cc1f0b440585a19cdb162a9386ccb22c79cd68f",
    ("digits", 1): "3ab817e7f523eeedd8e584bb1a5ba5ad40707c112bdbe4d5c617844a3577b8bd",
    ("commands", 1): "b1c441acd8249be3de4246d7ab0bcdadd8d9b438a057d457117d14dd4695dcf8",
    ("speech", 1): "d30ce60cbf1b3dc7497cf8fff591b26910b0d8fd324ade91803f28d0626840d0",
}


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest, embedded_tasks: dict[str, Task]) -> Task:
    return embedded_tasks[request.param]


@pytest.fixture(params=CORPORA)
def corpus_task(request: pytest.FixtureRequest, embedded_tasks: dict[str, Task]) -> CorpusTask:
    task = embedded_tasks[request.param]
    assert isinstance(task, CorpusTask)
    return task


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_ranges(task: Task, split: str) -> None:
    batch = task.sample(ExampleStream(split=split), 3, 128)  # type: ignore[arg-type]
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (3, 128)
    assert batch.inputs_BL.dtype == batch.targets_BL.dtype == torch.int64
    assert 0 <= int(batch.inputs_BL.min()) <= int(batch.inputs_BL.max()) < task.vocab_size
    scored = batch.targets_BL[batch.targets_BL != IGNORE_INDEX]
    assert len(scored) == batch.num_scored > 0
    assert 0 <= int(scored.min()) <= int(scored.max()) < task.vocab_size


@pytest.mark.parametrize("split", SPLITS)
def test_targets_lie_where_the_task_says(task: Task, split: str) -> None:
    targets_BL = task.sample(ExampleStream(split=split), 8, 128).targets_BL  # type: ignore[arg-type]
    outside_BL = targets_BL.clone()
    outside_BL[:, task.scored_positions(split)] = IGNORE_INDEX  # type: ignore[arg-type]
    assert (outside_BL == IGNORE_INDEX).all()
    # And every place that it names has a target in some example.
    assert (targets_BL[:, task.scored_positions(split)] != IGNORE_INDEX).any(dim=0).all()  # type: ignore[arg-type]


def test_example_i_is_the_same_however_it_is_drawn(task: Task) -> None:
    stream = ExampleStream(seed=7, split="test", start=5)
    whole = task.sample(stream, 8, 128)
    for i in reversed(range(8)):
        single = task.sample(stream.skip(i), 1, 128)
        assert torch.equal(single.inputs_BL[0], whole.inputs_BL[i])
        assert torch.equal(single.targets_BL[0], whole.targets_BL[i])


def test_no_global_random_state(task: Task) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = task.sample(ExampleStream(), 2, 64)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first.inputs_BL, task.sample(ExampleStream(), 2, 64).inputs_BL)


def test_seed_split_and_length_change_the_examples(task: Task) -> None:
    base = task.sample(ExampleStream(seed=0), 4, 128).inputs_BL
    assert not torch.equal(base, task.sample(ExampleStream(seed=1), 4, 128).inputs_BL)
    assert not torch.equal(base, task.sample(ExampleStream(seed=0, split="test"), 4, 128).inputs_BL)
    assert not torch.equal(base[:, :64], task.sample(ExampleStream(seed=0), 4, 64).inputs_BL)


@pytest.mark.parametrize("seq_len", [0, 63, 2**20 + 1])
def test_lengths_out_of_range(task: Task, seq_len: int) -> None:
    with pytest.raises(TaskError, match=rf"{task.name}: seq_len={seq_len} is outside"):
        task.sample(ExampleStream(), 1, seq_len)


@pytest.mark.parametrize(("name", "version"), list(GOLDEN))
def test_first_examples_are_fixed(name: str, version: int, embedded_tasks: dict[str, Task]) -> None:
    task = embedded_tasks[name]
    assert task.version == version, "the examples changed with the version: add a line to GOLDEN"
    batch = task.sample(ExampleStream(seed=0), 4, 256)
    digest = hashlib.sha256(batch.inputs_BL.numpy().tobytes() + batch.targets_BL.numpy().tobytes()).hexdigest()
    assert digest == GOLDEN[name, version], f"{name} gives other examples: raise its version"


@pytest.mark.parametrize(("name", "version"), list(GOLDEN_CORPORA))
def test_embedded_corpora_are_fixed(name: str, version: int, embedded_tasks: dict[str, Task]) -> None:
    task = embedded_tasks[name]
    assert isinstance(task, CorpusTask)
    digest = hashlib.sha256(task.corpus.tokens.tobytes()).hexdigest()
    assert digest == GOLDEN_CORPORA[name, version], f"{name}'s sample changed: raise its VERSION and the task's version"


def test_examples_survive_the_process() -> None:
    """Python's own hash is salted anew in each process; nothing may depend on it."""
    program = (
        "from tasks import make_task, ExampleStream\n"
        "for name in ('induction_heads', 'language', 'speech'):\n"
        "    print(make_task(name).sample(ExampleStream(), 2, 64).inputs_BL.tolist())"
    )
    command = [sys.executable, "-c", program]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second != ""


def test_provenance_says_embedded(corpus_task: CorpusTask) -> None:
    provenance = corpus_task.provenance
    assert provenance.kind == "embedded"
    assert "embedded" in provenance.note
    assert provenance.sha256 is not None
    assert len(provenance.sha256) == 64


def test_targets_are_the_next_token(corpus_task: CorpusTask) -> None:
    batch = corpus_task.sample(ExampleStream(), 4, 512)
    following = batch.inputs_BL[:, 1:]
    scored = batch.targets_BL[:, :-1] != IGNORE_INDEX
    assert torch.equal(batch.targets_BL[:, :-1][scored], following[scored])
    assert bool((following[~scored] == (corpus_task.unscored_token or 0)).all())


def test_splits_share_no_group_and_no_place(corpus_task: CorpusTask) -> None:
    groups = [{document.group for document in corpus_task.splits[split]} for split in SPLITS]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups))
    spans = sorted((d.start, d.end) for split in SPLITS for d in corpus_task.splits[split])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_windows_stay_inside_one_document_of_their_split(corpus_task: CorpusTask) -> None:
    for split in SPLITS:
        windows = corpus_task.evaluation_windows(split, 1024, 1000)
        for start in windows.starts:
            assert any(d.start <= start and start + 1025 <= d.end for d in corpus_task.splits[split])


def test_best_constant_guess_scores_chance(corpus_task: CorpusTask) -> None:
    counts = torch.zeros(256, dtype=torch.int64)
    for document in corpus_task.splits["train"]:
        tokens = torch.from_numpy(corpus_task.corpus.tokens_of(document).copy()).long()
        counts += torch.bincount(tokens, minlength=256)
    assert corpus_task.chance == pytest.approx(int(counts.max()) / int(counts.sum()))
    # Neighbouring tokens depend on each other, so one position of each window is looked at.
    targets = corpus_task.sample(ExampleStream(), 4096, 64).targets_BL[:, 32]
    accuracy = float((targets == int(counts.argmax())).double().mean())
    sigma = (corpus_task.chance * (1 - corpus_task.chance) / 4096) ** 0.5
    assert abs(accuracy - corpus_task.chance) < 5 * sigma


def test_longest_length_works_and_one_more_names_the_document(corpus_task: CorpusTask) -> None:
    for split in SPLITS:
        longest = corpus_task.max_seq_len(split)
        assert corpus_task.sample(ExampleStream(split=split), 1, longest).inputs_BL.shape == (1, longest)
        if longest < 2**20:
            document = max(corpus_task.splits[split], key=lambda document: document.length)
            with pytest.raises(TaskError, match="the longest of split") as error:
                corpus_task.sample(ExampleStream(split=split), 1, longest + 1)
            assert repr(document.name) in str(error.value)
            assert str(document.length) in str(error.value)


@pytest.mark.parametrize("name", ["dna", "audio"])
def test_embedded_test_split_reaches_a_million(name: str, embedded_tasks: dict[str, Task]) -> None:
    task = embedded_tasks[name]
    assert task.max_seq_len("test") == 2**20
    assert task.sample(ExampleStream(split="test"), 1, 2**20).inputs_BL.shape == (1, 2**20)


def test_evaluation_windows_are_fixed_spread_and_apart(corpus_task: CorpusTask) -> None:
    windows = corpus_task.evaluation_windows("test", 512, 20)
    assert windows.starts == corpus_task.evaluation_windows("test", 512, 20).starts
    assert len(windows) == 20 <= windows.num_possible
    gaps = [b - a for a, b in pairwise(windows.starts)]
    assert min(gaps) >= 512
    document_at = [next(d.name for d in corpus_task.splits["test"] if d.start <= s < d.end) for s in windows.starts]
    assert len(set(document_at)) == min(20, len(corpus_task.splits["test"]))
    batches = list(windows.batches(8))
    assert [len(batch.inputs_BL) for batch in batches] == [8, 8, 4]


def test_fewer_evaluation_windows_than_asked_for_is_visible(corpus_task: CorpusTask) -> None:
    windows = corpus_task.evaluation_windows("validation", 8192, 10**6)
    assert len(windows) == windows.num_possible < 10**6
