"""The suites of the paper's tables ask for what the paper says, for every row, and record what it leaves open."""

import pytest

from benchmarks.plan import RunSettings, plan_trials
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from models import family
from reports.probe_reference import paper_tables

SUITES = {"paper-induction-heads": "induction_heads", "paper-selective-copying": "selective_copying"}


def trials_of(name, device="cuda", **selection):
    expanded = expand(load_suite(name), Selection(**selection), device=device, source_of={})
    return [item.trial for item in expanded]


def table_of(task):
    return next(table for table in paper_tables() if table.task == task)


@pytest.mark.parametrize(("suite", "task"), SUITES.items())
def test_every_row_is_trained_by_the_papers_protocol(suite, task):
    table, trials = table_of(task), trials_of(suite)
    assert {trial.model for trial in trials} == set(table.models)
    for trial in trials:
        assert (trial.task, trial.seq_len, trial.batch) == (task, table.train_len, table.batch)
        assert (trial.protocol["optimizer"], trial.protocol["weight_decay"]) == ("adam", 0.0)
        assert (trial.protocol["schedule"], trial.protocol["warmup_steps"]) == ("constant", 0)
        if paper := table.rows.get(trial.model):
            assert (trial.protocol["steps"], trial.protocol["lr"]) == (paper.steps, paper.lr)
            assert set(paper.printed) <= set(trial.protocol["score_lengths"])


@pytest.mark.parametrize(("suite", "task"), SUITES.items())
def test_open_choices_are_in_every_record(suite, task):
    for trial in trials_of(suite):
        assert {"vocab_size": 16, "loss": "answer"}.items() <= trial.protocol["task_options"].items()
        assert {"betas", "grad_clip", "validation_examples"} <= set(trial.protocol)
        # A fixed number of examples, whatever the length; of RoPE, whose calls grow with the square, as far as the
        # table has it.
        protocol = trial.protocol
        longest = 2**14 if trial.model == "transformer-probe128" else max(protocol["score_lengths"])
        counted = min(protocol["max_examples"], protocol["score_tokens"] // longest)
        assert max(protocol["min_examples"], counted) == protocol["max_examples"]


@pytest.mark.parametrize("suite", SUITES)
def test_mamba_and_s4d_have_three_seeds(suite):
    for name in ("mamba", "s4d"):
        assert {trial.seed for trial in trials_of(suite, models=(name,))} == {0, 1, 2}


def test_the_other_suite_holds_the_rest_of_the_learning_rates():
    table = table_of("induction_heads")
    rates = {(t.model, t.protocol["lr"]) for name in ("", "-lr") for t in trials_of(f"paper-induction-heads{name}")}
    assert rates == {(model, lr) for model in table.models for lr in (2e-4, 1e-3)}
    # Otherwise the same protocol: the report must be able to set the two side by side.
    for trial in trials_of("paper-induction-heads-lr"):
        (same, *_) = trials_of("paper-induction-heads", models=(family(trial.model),))
        assert {k for k in trial.protocol if trial.protocol[k] != same.protocol.get(k)} <= {"lr", "score_budget_s"}


def test_the_short_form_of_table_1_differs_by_rate_and_steps_alone():
    for trial in trials_of("paper-selective-copying-lr"):
        (same, *_) = trials_of("paper-selective-copying", models=(family(trial.model),))
        assert (trial.model, trial.protocol["lr"]) == (same.model, 10 * same.protocol["lr"])
        assert {k for k in trial.protocol if trial.protocol[k] != same.protocol.get(k)} == {"lr", "steps"}


def test_a_cpu_plans_the_full_protocol(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    suite = load_suite("paper-induction-heads")
    (mamba,) = expand(suite, Selection(models=("mamba",), seeds=(0,)), device="cpu", source_of={})
    (plan,) = plan_trials([mamba], RunSettings(cores=(0,)))
    assert plan.unsupported is None or plan.unsupported == ""
    assert plan.calls >= 204_800 and plan.flops > 1e8
