"""The suite of downstream DNA, and what a training on items to classify leaves in its record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.plan import predicted_cost
from benchmarks.scoring import score_at
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from models import build_model
from models.checkpoint import save_checkpoint
from tasks import make_task

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data"
PROTOCOL = {"min_examples": 4, "max_examples": 10**6, "score_tokens": 2**26, "score_regions": 8, "score_lengths": [64]}


def items(device: str = "cuda", **selection: Any) -> list[Any]:
    return expand(load_suite("dna-downstream"), Selection(**selection), device=device, source_of={})


def test_every_point_is_trained_from_scratch_and_from_one_checkpoint_with_five_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no checkpoint lies
    trials = [item.trial for item in items()]

    def points(started: bool) -> set[Any]:
        return {
            (t.model, t.task, t.seq_len, t.protocol["task_options"].get("dataset"), t.seed)
            for t in trials
            if ("init_from" in t.protocol) == started
        }

    assert points(True) == points(False) and len(points(True)) == 9 * 3 * 5
    for trial in trials:
        if "init_from" in trial.protocol:
            wanted = "train_len 16384" if trial.task == "vertebrates" else "train_len 1024"
            assert (
                wanted in trial.protocol["init_from"]["missing"] and "seed 0" in trial.protocol["init_from"]["missing"]
            )
    # What starts from a checkpoint has a control from scratch that is the same otherwise.
    started = [replace(t, protocol={**t.protocol, "init_from": None}) for t in trials if "init_from" in t.protocol]
    others = [replace(t, protocol={**t.protocol, "init_from": None}) for t in trials if "init_from" not in t.protocol]
    assert all(trial in others for trial in started)
    short = {t.seq_len for t in trials if t.protocol.get("seeds_together", 1) == 5}
    assert short == {128, 512}  # the genomes fill a GPU each


def test_the_checkpoints_length_and_seed_may_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/runs/dna-context/checkpoints/one"
    model = build_model("mamba-dna1m", vocab_size=5, seed=0, device="cpu")
    save_checkpoint(model, folder, name="mamba-dna1m", about={"task": "dna", "train_len": 1024, "seed": 0})
    started = [i.trial for i in items(models=("mamba",), tasks=("gue",)) if "init_from" in i.trial.protocol]
    assert {trial.protocol["init_from"]["checkpoint"] for trial in started} == {"one"}
    assert {trial.seed for trial in started} == {0, 1, 2, 3, 4} and {trial.seq_len for trial in started} == {128, 512}
    unstarted = [i.trial for i in items(models=("s4d",), tasks=("gue",)) if "init_from" in i.trial.protocol]
    assert all(trial.protocol["init_from"]["sha256"] is None for trial in unstarted)


@pytest.mark.conformance
def test_the_cpu_form_is_small():
    trials = [item.trial for item in items("cpu")]
    assert {trial.task for trial in trials} == {"gue", "vertebrates"}
    assert all(trial.model.endswith("-tiny") and trial.batch * trial.seq_len <= 2**13 for trial in trials)
    assert all(predicted_cost(trial).peak_bytes < 2**28 for trial in trials)


def test_the_real_data_sets_fit_the_suites_lengths():
    if not ROOT.is_dir():
        pytest.skip(f"no real data in {ROOT}")
    chosen = {(i.trial.protocol["task_options"]["dataset"], i.trial.seq_len) for i in items(tasks=("gue",))}
    for dataset, seq_len in sorted(chosen):
        task = make_task("gue", data_root=ROOT, dataset=dataset)
        assert seq_len / 8 < max(d.length for d in task.corpus.documents) <= seq_len


@pytest.mark.parametrize("name", ["gue", "vertebrates"])
def test_scores_hold_every_item_once_and_the_figures_follow_from_the_answers(name, monkeypatch):
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)  # real data sets of GUE are several, and one must be chosen
    task = make_task(name)
    model = build_model("s4d-tiny", vocab_size=task.vocab_size, seed=0, device="cpu")
    score = score_at(model, task, 64, PROTOCOL, previous=[], deadline=float("inf"), device=torch.device("cpu"))
    (batch,) = task.evaluation_windows("test", 64, 10**6).batches(10**6)
    with torch.no_grad():
        answers = model(batch.inputs_BL)[:, -1].argmax(-1)
    labels = batch.targets_BL[:, -1]
    right = (answers == labels).float()
    assert score["examples"] == len(labels) == len(task.splits["test"]) == score["mcc"]["n"]
    assert score["accuracy"]["value"] == pytest.approx(float(right.mean()))
    balanced = np.mean([float(right[labels == label].mean()) for label in labels.unique()])
    assert score["balanced_accuracy"]["value"] == pytest.approx(balanced)
    assert score["mcc"]["low"] <= score["mcc"]["value"] <= score["mcc"]["high"]


def test_tasks_of_windows_have_no_such_figures(monkeypatch):
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)
    task = make_task("species")
    model = build_model("s4d-tiny", vocab_size=task.vocab_size, seed=0, device="cpu")
    protocol = PROTOCOL | {"max_examples": 8}
    score = score_at(model, task, 64, protocol, previous=[], deadline=float("inf"), device=torch.device("cpu"))
    assert "accuracy" in score and "mcc" not in score
