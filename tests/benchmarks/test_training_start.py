"""Trainings that go on from a checkpoint: which one, in what identity, and across vocabularies."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.training import run_training
from benchmarks.training_start import identify, start_from_checkpoint
from harness import Trial, Unsupported
from models import build_model
from models.checkpoint import save_checkpoint
from tasks import Task, make_task
from tests.benchmarks.test_training import trial_of

NAMED = dict(model="s4d-tiny", seq_len=64, seed=0)


def checkpoint(folder: Path, *, model: str = "s4d-tiny", vocab_size: int = 5, drawn: int = 7, **about: Any) -> Path:
    config = {"task": "dna", "train_len": 64, "seed": 0, **about}
    save_checkpoint(build_model(model, vocab_size=vocab_size, seed=drawn), folder, name=model, about=config)
    return folder


def started(folder: Path, task: Task, **changes: Any) -> tuple[Any, Trial]:
    """A model of the trial's seed, after the checkpoint."""
    fields = NAMED | changes
    trial = trial_of(fields["model"], task=task.name, seed=fields["seed"], init_from=identify(folder, **fields))
    model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed)
    start_from_checkpoint(model, task, trial, folder)
    return model, trial


@pytest.mark.parametrize("family", ["mamba", "hyena", "s4d", "transformer"])
def test_weights_are_taken_over_and_new_labels_start_beside_the_mean(tmp_path, family):
    name = f"{family}-tiny"
    checkpoint(tmp_path / "one", model=name)
    model, _ = started(tmp_path, make_task("species"), model=name)
    saved, drawn = (build_model(name, vocab_size=v, seed=s) for v, s in ((5, 7), (10, 0)))
    own, given, fresh = (dict(m.named_parameters()) for m in (model, saved, drawn))
    for key, parameter in own.items():
        rows = given[key]
        torch.testing.assert_close(parameter[: len(rows)], rows, rtol=0, atol=0)
        if len(rows) < len(parameter):
            torch.testing.assert_close(parameter[5:], fresh[key][5:] + rows.mean(0))


def test_the_same_task_takes_its_own_checkpoint(tmp_path):
    checkpoint(tmp_path / "one", task="species", vocab_size=10)
    model, _ = started(tmp_path, make_task("species"))
    saved = build_model("s4d-tiny", vocab_size=10, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"task": "language", "vocab_size": 256}, r"vocabularies differ: one was trained on language with 256 tokens"),
        ({"vocab_size": 6}, r"dna with 6 tokens, species has 10, the first 5 of them those of dna"),
    ],
)
def test_other_vocabularies_are_refused(tmp_path, about, message):
    checkpoint(tmp_path / "one", **about)
    with pytest.raises(Unsupported, match=message):
        started(tmp_path, make_task("species"))


def test_the_checkpoint_of_model_length_and_seed_is_found_and_the_newest_of_equals(tmp_path):
    for index, about in enumerate(({"train_len": 128}, {"seed": 1}, {}, {})):
        folder = checkpoint(tmp_path / f"c{index}", **about)
        os.utime(folder / "model.pt", ns=(index, index))
    checkpoint(tmp_path / "other", model="mamba-tiny")
    (tmp_path / "no-checkpoint").mkdir()
    assert identify(tmp_path, **NAMED)["checkpoint"] == "c3"
    assert identify(tmp_path, **(NAMED | {"seed": 1}))["checkpoint"] == "c1"
    assert identify(tmp_path, **(NAMED | {"seq_len": 128}))["checkpoint"] == "c0"
    assert identify(tmp_path / "c2", **NAMED)["checkpoint"] == "c2", "a checkpoint itself"
    missing = identify(tmp_path, **(NAMED | {"seed": 2}))
    assert missing["sha256"] is None and "s4d-tiny, train_len 64, seed 2" in missing["missing"]


def test_without_a_checkpoint_the_trial_is_unsupported_and_another_trial_once_there_is_one(tmp_path):
    task = make_task("species")
    with pytest.raises(Unsupported, match=r"holds no checkpoint .*train it first"):
        started(tmp_path / "none", task)
    before = identify(tmp_path, **NAMED)
    checkpoint(tmp_path / "one")
    assert identify(tmp_path, **NAMED) != before


def test_weights_that_changed_since_the_plan_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "one")
    named = identify(tmp_path, **NAMED)
    checkpoint(folder, drawn=8)
    task, trial = make_task("species"), trial_of("s4d-tiny", task="species", init_from=named)
    with pytest.raises(Unsupported, match="has changed since"):
        start_from_checkpoint(build_model("s4d-tiny", vocab_size=10), task, trial, tmp_path)
    (folder / "model.pt").write_bytes(b"broken")
    with pytest.raises(Unsupported, match="corrupt"):
        started(tmp_path, task)
    (folder / "model.pt").unlink()
    with pytest.raises(Unsupported, match="No such file"):
        start_from_checkpoint(build_model("s4d-tiny", vocab_size=10), task, trial, tmp_path)


def test_pretrained_then_classified(tmp_path):
    """The whole way: what a training leaves behind is what the next one starts from."""
    first = trial_of("s4d-tiny", task="dna", steps=5, score_lengths=[64])
    run_training(first, {"trial_id": "a" * 64, "checkpoints": str(tmp_path)}, lambda _: None)
    named = identify(tmp_path, **NAMED)
    protocol: dict[str, Any] = {"task": "species", "steps": 3, "score_lengths": [64], "curve_every": 1}
    going_on = trial_of("s4d-tiny", **protocol, init_from=named)
    record = run_training(going_on, {"trial_id": "b" * 64, "init_from": str(tmp_path)}, lambda _: None)
    scratch = run_training(trial_of("s4d-tiny", **protocol), {"trial_id": "c" * 64}, lambda _: None)
    assert record["metrics"]["loss_curve"] != scratch["metrics"]["loss_curve"]
    assert record["metrics"]["accuracy"]["n"] >= 5 and record["metrics"]["chance"] == 0.2
    assert len(json.loads(json.dumps(going_on.as_dict()))["protocol"]["init_from"]["sha256"]) == 64
