"""Warm-up of the length: stages at one number of tokens a step, cut and continued like any training."""

import pytest
import torch
from pydantic import ValidationError

from benchmarks.suite_entries import TrainingEntry
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import Suite
from benchmarks.training_learner import Learner, training_facts
from benchmarks.training_loop import Lockstep, train
from benchmarks.training_stages import stages_of
from harness import Trial
from tasks import ExampleStream, make_task
from tests.benchmarks.test_training import STEPS, assert_same, cuda, learner_of, train_in_pieces, trained, trial_of

STAGES = [[64, 5], [128, 6]]


def warmed_up(**changes) -> Trial:
    return trial_of(**{"seq_len": 256, "batch": 2, "length_warmup": STAGES, **changes})


def seen_by(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape of every step's inputs."""
    shapes: list[tuple[int, int]] = []
    real = learner.model.hidden

    def hidden(ids_BL: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            shapes.append(tuple(ids_BL.shape))  # type: ignore[arg-type]
        return real(ids_BL)

    monkeypatch.setattr(learner.model, "hidden", hidden)
    return shapes


def test_every_step_has_the_length_of_its_stage_and_the_same_tokens(monkeypatch):
    learner = learner_of(warmed_up())
    shapes = seen_by(learner, monkeypatch)
    train([learner])
    assert shapes == [(8, 64)] * 5 + [(4, 128)] * 6 + [(2, 256)] * (STEPS - 11)
    assert training_facts(learner)["train_tokens"] == STEPS * 512
    assert len(learner.log.step_ms) == STEPS - 11, "a speed is that of the trial's own length"


@pytest.mark.parametrize("block_steps", [1, 2, 4, 64])
def test_a_stages_examples_are_its_own_stream_from_the_start(block_steps):
    trial = warmed_up()
    learner, task = learner_of(trial, block_steps=block_steps), make_task("selective_copying")
    for stage in stages_of(trial):
        for step in range(stage.first, stage.end):
            learner.done = step
            learner.prepare()
            batch = 512 // stage.seq_len
            stream = ExampleStream(seed=0, start=(step - stage.first) * batch)
            expected = task.sample(stream, batch, stage.seq_len).inputs_BL
            assert torch.equal(learner._inputs_NBL[(step - stage.first) % learner._block_steps], expected), step


@pytest.mark.parametrize("seconds", [6, 9, 17])
def test_cut_in_any_stage_and_continued_is_bit_for_bit_the_uncut_training(seconds, tmp_path, monkeypatch):
    trial = warmed_up()
    learner, cuts = train_in_pieces(trial, tmp_path, monkeypatch, seconds)
    assert cuts
    assert_same(learner, trained(trial))


def test_cuts_fall_into_the_warm_up_as_well(tmp_path, monkeypatch):
    _, cuts = train_in_pieces(warmed_up(), tmp_path, monkeypatch, 4)
    assert cuts[0] < 11 <= cuts[-1]


def test_no_warm_up_is_what_it_was():
    assert_same(trained(trial_of(length_warmup=[])), trained(trial_of()))


def test_stages_join_end_to_end():
    stages = stages_of(warmed_up())
    assert [(s.seq_len, s.first, s.end) for s in stages] == [(64, 0, 5), (128, 5, 11), (256, 11, STEPS)]


# ---- what a suite says of it


def entry(**changes) -> TrainingEntry:
    fields = {
        "kind": "training", "tasks": ["dna"], "models": ["s4d-tiny"], "lengths": "1K,4K", "tokens": "8K", "steps": 100,
        "lr": 1e-3, "length_warmup": "512,1K,2K", "length_warmup_steps": 10,
    }  # fmt: skip
    return TrainingEntry.model_validate({k: v for k, v in (fields | changes).items() if v is not None})


def trials_of(one: TrainingEntry, **selection) -> list[Trial]:
    suite = Suite(name="x", description="", trials=[one])
    return [t.trial for t in expand(suite, Selection(**selection), device="cpu", source_of={})]


def test_a_trial_a_length_at_one_number_of_tokens():
    short, long = trials_of(entry())
    assert [(t.seq_len, t.batch, t.protocol["train_len"]) for t in (short, long)] == [(1024, 8, 1024), (4096, 2, 4096)]
    assert short.protocol["length_warmup"] == [[512, 10]]
    assert long.protocol["length_warmup"] == [[512, 10], [1024, 10], [2048, 10]]
    assert [t.protocol["score_lengths"] for t in (short, long)] == [[1024], [4096]]


def test_lengths_pick_trials_and_not_scores():
    (only,) = trials_of(entry(score_lengths="1K..8K"), lengths=(4096,))
    assert only.seq_len == 4096 and only.protocol["score_lengths"] == [1024, 2048, 4096, 8192]
    (fixed,) = trials_of(entry(lengths=None, tokens=None, seq_len="1K", score_lengths="1K..8K"), lengths=(2048,))
    assert fixed.seq_len == 1024 and fixed.protocol["score_lengths"] == [1024, 2048]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 1024}, "either seq_len or lengths"),
        ({"lengths": None}, "either seq_len or lengths"),
        ({"batch": 4}, "batch and tokens exclude each other"),
        ({"tokens": 6000}, "tokens=6000 is no multiple of the length 1024"),
        ({"length_warmup": [600]}, "a step of 8192 tokens does not split into sequences of 600"),
        ({"length_warmup": [1024, 512]}, "must rise"),
        ({"length_warmup_steps": None}, "go together"),
        ({"length_warmup_steps": 40}, "length_warmup takes all of steps=100 before the length 4096"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValidationError, match=message):
        entry(**changes)


# ---- on a GPU


@cuda
@pytest.mark.parametrize("model", ["mamba-tiny", "s4d-tiny", "hyena-tiny", "transformer-tiny"])
def test_every_stage_is_captured_and_trains_as_it_does_eagerly(model, monkeypatch):
    trial = warmed_up(model=model, device="cuda")
    captured = trained(trial)
    assert captured.log.captured == {"cuda_graph": True}, captured.log.captured
    monkeypatch.setattr(Lockstep, "_capture", lambda self: None)
    eager = trained(trial)
    torch.testing.assert_close(captured._losses_S, eager._losses_S, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(captured._losses_S[:2], eager._losses_S[:2], rtol=2e-3, atol=2e-3)
