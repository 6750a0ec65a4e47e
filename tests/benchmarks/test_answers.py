"""``answers: labels``: a classification task's labels have the answer among themselves, as with a head of their own."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.answers import among, answers_of
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from benchmarks.training import run_training
from benchmarks.training_learner import loss_of
from harness import Trial, Unsupported
from models import build_model
from tasks import ExampleStream, TaskError, make_task
from tests.benchmarks.test_training import trial_of

LABELS = {"answers": "labels"}


def classifying(task: str = "species", **changes) -> Trial:
    protocol = {"steps": 2, "curve_every": 1, "validation_examples": 20, "score_lengths": [64], "score_tokens": 2**16}
    return trial_of(task=task, batch=16, **protocol, max_examples=200, **changes)


def metrics_of(trial: Trial) -> dict:
    return run_training(trial, {"trial_id": "a" * 64}, lambda _: None)["metrics"]


def test_the_loss_is_that_of_a_head_with_the_labels_alone():
    task = make_task("species")
    model = build_model("s4d-tiny", vocab_size=task.vocab_size, seed=0, device="cpu")
    batch, last = task.sample(ExampleStream(), 8, 64), slice(-1, None)
    logits_BV = model.lm_head(model.hidden(batch.inputs_BL)[:, -1])
    own = F.cross_entropy(logits_BV[:, task.answer_tokens.start :], batch.targets_BL[:, -1] - task.answer_tokens.start)
    labels = answers_of(task, LABELS)
    assert labels == task.answer_tokens
    loss = loss_of(model, batch.inputs_BL, batch.targets_BL, last, answers=labels)
    torch.testing.assert_close(loss, own)
    assert loss < loss_of(model, batch.inputs_BL, batch.targets_BL, last)


def test_what_may_not_answer_is_never_the_likeliest_and_gets_no_gradient():
    logits_BV = torch.randn(4, 9, requires_grad=True)
    with torch.no_grad():
        logits_BV[:, :3] += 100
    assert among(logits_BV, range(3, 8)).argmax(-1).min() >= 3
    assert among(logits_BV, range(3, 8)).argmax(-1).max() < 8
    F.cross_entropy(among(logits_BV, range(3, 8)), torch.full((4,), 5)).backward()
    gradient = logits_BV.grad
    assert gradient is not None and gradient.isfinite().all() and (gradient[:, [0, 1, 2, 8]] == 0).all()
    assert among(logits_BV, None) is logits_BV


def test_a_pretrained_head_begins_at_chance_instead_of_below(monkeypatch):
    """A head that would answer with a base: among all tokens nothing is right, among the labels a fifth is."""
    from benchmarks import training

    build = training.build_model

    def biased(*args, **kwargs):
        model = build(*args, **kwargs)
        head = model.lm_head.forward
        model.lm_head.forward = lambda hidden: head(hidden) + 50 * (torch.arange(model.vocab_size) < 5)
        return model

    monkeypatch.setattr(training, "build_model", biased)
    of_all, of_labels = metrics_of(classifying()), metrics_of(classifying(**LABELS))
    assert of_all["accuracy"]["value"] == 0 and of_all["loss_curve"][0][1] > 40
    assert of_labels["accuracy"]["value"] == pytest.approx(0.2, abs=0.1)
    assert of_labels["loss_curve"][0][1] == pytest.approx(math.log(5), abs=0.3)
    assert all(accuracy == 0 for _, accuracy in of_all["validation_curve"])
    assert all(accuracy > 0 for _, accuracy in of_labels["validation_curve"])


def test_a_task_without_labels_cannot_answer_with_them():
    with pytest.raises(TaskError, match="dna asks for no class, which answers: labels needs"):
        answers_of(make_task("dna"), LABELS)
    assert answers_of(make_task("dna"), {}) is None
    with pytest.raises(Unsupported, match="dna asks for no class"):
        metrics_of(classifying("dna", **LABELS))


@pytest.mark.parametrize("name", ["dna-species", "dna-downstream"])
def test_what_starts_from_a_checkpoint_answers_with_labels(name):
    trials = [item.trial for item in expand(load_suite(name), Selection(), device="cuda", source_of={})]
    assert {trial.protocol.get("answers") for trial in trials if "init_from" in trial.protocol} == {"labels"}
