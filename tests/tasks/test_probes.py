"""Both synthetic probes against what their protocol promises."""

from typing import Any

import pytest
import torch

from tasks import IGNORE_INDEX, ExampleStream, Probe, TaskError, make_task

PROBES = ["selective_copying", "induction_heads"]
BOTH_LOSSES = ["answer", "every"]


def make_probe(name: str, **options: Any) -> Probe:
    task = make_task(name, **options)
    assert isinstance(task, Probe)
    return task


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("seq_len", [64, 1024, 65536])
@pytest.mark.parametrize("split", ["train", "test"])
def test_oracle_scores_everything(name: str, seq_len: int, split: str) -> None:
    probe = make_probe(name)
    batch = probe.sample(ExampleStream(seed=3, split=split), 4, seq_len)  # type: ignore[arg-type]
    answers = probe.solve(batch.inputs_BL)
    assert torch.equal(answers, batch.targets_BL[:, -answers.shape[1] :])
    assert batch.num_scored == answers.numel()


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("seq_len", [2**power for power in range(6, 21)])
def test_length_sweep(name: str, seq_len: int) -> None:
    probe = make_probe(name)
    batch = probe.sample(ExampleStream(split="test"), 1, seq_len)
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (1, seq_len)
    assert 0 <= int(batch.inputs_BL.min()) <= int(batch.inputs_BL.max()) < probe.vocab_size
    answers = probe.solve(batch.inputs_BL)
    assert torch.equal(answers, batch.targets_BL[:, -answers.shape[1] :])


@pytest.mark.parametrize("name", PROBES)
def test_guesser_scores_chance(name: str) -> None:
    probe = make_probe(name)
    targets = probe.sample(ExampleStream(split="test"), 4096, 64).targets_BL
    scored = targets[targets != IGNORE_INDEX]
    guess = scored.mode().values
    # The best constant guess after the fact is a little better than chance; five sigma allow for it.
    accuracy = float((scored == guess).double().mean())
    sigma = (probe.chance * (1 - probe.chance) / len(scored)) ** 0.5
    assert abs(accuracy - probe.chance) < 5 * sigma


@pytest.mark.parametrize("name", PROBES)
def test_splits_and_seeds_share_no_example(name: str) -> None:
    probe = make_probe(name)
    streams = [ExampleStream(seed=seed, split=split) for seed in (0, 1) for split in ("train", "validation", "test")]
    drawn = [probe.sample(stream, 1000, 64).inputs_BL for stream in streams]
    examples = [{bytes(row.tolist()) for row in inputs} for inputs in drawn]
    assert len(set().union(*examples)) == sum(map(len, examples)) == 6000


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("loss", BOTH_LOSSES)
def test_loss_conventions(name: str, loss: str) -> None:
    probe = make_probe(name, loss=loss)
    train = probe.sample(ExampleStream(), 3, 128)
    test = probe.sample(ExampleStream(split="test"), 3, 128)
    num_answers = probe.solve(test.inputs_BL).shape[1]
    assert test.num_scored == 3 * num_answers, "evaluation scores the answers alone"
    assert probe.num_answers == num_answers
    assert probe.scored_positions("test") == slice(-num_answers, None)
    assert probe.scored_positions("train") == (slice(None) if loss == "every" else slice(-num_answers, None))
    body = train.targets_BL[:, :-num_answers]
    if loss == "every":
        assert torch.equal(body, train.inputs_BL[:, 1 : 128 - num_answers + 1])
    else:
        assert bool((body == IGNORE_INDEX).all())


def test_selective_copying_length_of_noise_counts_noise() -> None:
    probe = make_probe("selective_copying", length_of="noise")
    batch = probe.sample(ExampleStream(), 2, 256)
    assert batch.inputs_BL.shape == (2, 256 + 2 * 16)
    assert (batch.inputs_BL == 0).sum(dim=1).tolist() == [256, 256]
    assert torch.equal(probe.solve(batch.inputs_BL), batch.targets_BL[:, -16:])


def test_selective_copying_needs_room() -> None:
    with pytest.raises(TaskError, match=r"seq_len=64 is outside 80\.\."):
        make_probe("selective_copying", num_data=40).sample(ExampleStream(), 1, 64)


@pytest.mark.parametrize("place", ["early", "anywhere"])
def test_induction_heads_holds_two_special_tokens(place: str) -> None:
    probe = make_probe("induction_heads", place=place)
    inputs = probe.sample(ExampleStream(), 256, 64).inputs_BL
    special = probe.vocab_size - 1
    assert (inputs == special).sum(dim=1).eq(2).all()
    assert inputs[:, -1].eq(special).all()
    first = (inputs == special).int().argmax(dim=1)
    assert int(first.max()) <= (31 if place == "early" else 61)
    assert int(first.max()) > (20 if place == "early" else 50)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("selective_copying", {"vocab_size": 3}, "vocab_size=3"),
        ("selective_copying", {"num_data": 0}, "num_data=0"),
        ("selective_copying", {"length_of": "output"}, "length_of='output'"),
        ("induction_heads", {"vocab_size": 2}, "vocab_size=2"),
        ("induction_heads", {"place": "late"}, "place='late'"),
        ("induction_heads", {"loss": "all"}, "loss='all'"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_probe(name, **options)
