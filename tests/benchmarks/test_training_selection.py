"""``select: validation``: what did best on the validation set is kept and scored, cut or not."""

import pytest
import torch

from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from benchmarks.training import run_training
from benchmarks.training_learner import Learner
from benchmarks.training_loop import train
from benchmarks.training_state import load_state, save_state
from harness import Trial
from models.checkpoint import load_checkpoint
from tests.benchmarks.test_training import learner_of, trial_of

ACCURACIES = {2: 0.1, 4: 0.5, 6: 0.5, 8: 0.2}
"""Of the points of the curve; the first of the best counts."""


def selecting(**changes) -> Trial:
    protocol = {"steps": 8, "curve_every": 2, "validation_examples": 4, "score_lengths": [64], "select": "validation"}
    return trial_of(**{"batch": 2, **protocol, **changes})


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.model.named_parameters()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def at_best(monkeypatch) -> dict[str, torch.Tensor]:
    """The weights at the step whose accuracy is highest: accuracies are given, whatever the model answers."""
    seen: dict[str, torch.Tensor] = {}

    def accuracy(learner: Learner) -> float:
        if learner.done == 4 and not seen:
            seen.update(weights_of(learner))
        return ACCURACIES[learner.done]

    monkeypatch.setattr(Learner, "_validation_accuracy", accuracy)
    return seen


def test_the_model_ends_with_the_weights_that_did_best(at_best):
    learner = learner_of(selecting())
    train([learner])
    last = weights_of(learner)
    learner.take_selected()
    assert learner.selected is not None and learner.selected.step == 4
    assert_equal(weights_of(learner), at_best)
    assert not all(torch.equal(tensor, last[name]) for name, tensor in at_best.items())


def test_a_record_names_the_step_and_the_checkpoint_holds_its_weights(at_best, tmp_path):
    context = {"trial_id": "t" * 64, "checkpoints": str(tmp_path)}
    metrics = run_training(selecting(), context, lambda part: None)["metrics"]
    assert metrics["selected_step"] == 4 and metrics["steps_done"] == 8
    (folder,) = tmp_path.iterdir()
    model, about = load_checkpoint(folder)
    assert_equal(dict(model.named_parameters()), at_best)
    assert about["selected_step"] == 4


def test_without_the_choice_the_last_step_counts(at_best, tmp_path):
    context = {"trial_id": "t" * 64, "checkpoints": str(tmp_path)}
    metrics = run_training(selecting(select="last"), context, lambda part: None)["metrics"]
    model, about = load_checkpoint(next(tmp_path.iterdir()))
    assert "selected_step" not in metrics and "selected_step" not in about
    last = learner_of(selecting(select="last"))
    train([last])
    assert_equal(dict(model.named_parameters()), weights_of(last))


def test_a_cut_training_keeps_what_did_best(at_best, tmp_path):
    cut = learner_of(selecting())
    while cut.done < 6:
        cut.prepare()
        cut.step()
        cut.done += 1
        if cut.is_finite() and cut.done % 2 == 0:
            cut.add_to_curves()
    save_state(cut, tmp_path / "state.pt", trial_id="t")
    resumed = learner_of(selecting())
    assert load_state(resumed, tmp_path / "state.pt", trial_id="t") == ""
    train([resumed])
    resumed.take_selected()
    assert_equal(weights_of(resumed), at_best)


def test_where_a_task_has_no_accuracy_the_loss_decides():
    learner = learner_of(selecting(task="language"))
    train([learner])
    curve = dict(learner.log.validation_loss_curve)
    assert learner.selected is not None
    assert curve[learner.selected.step] == -learner.selected.score == min(curve.values())


def test_suites_name_the_choice_where_it_is_made():
    digits = expand(load_suite("audio-digits"), Selection(), device="cuda", source_of={})
    assert {item.trial.protocol["select"] for item in digits} == {"validation"}
    context = expand(load_suite("dna-context"), Selection(), device="cuda", source_of={})
    assert not any("select" in item.trial.protocol for item in context)
