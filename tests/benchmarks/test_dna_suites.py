"""The suites of DNA ask for what the paper says, at lengths and sizes that exist, and say where they start from."""

from pathlib import Path

import pytest

from benchmarks.plan import predicted_cost
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from models import family
from tasks import make_task

GIB = 2**30


def trials_of(name, **selection):
    return [t.trial for t in expand(load_suite(name), Selection(**selection), device="cuda", source_of={})]


def test_context_is_a_constant_number_of_tokens_a_step_after_the_warm_up_of_the_length():
    trials = trials_of("dna-context")
    assert {t.seq_len for t in trials} == {2**power for power in (10, 12, 14, 16, 18, 20)}
    for trial in trials:
        assert trial.batch * trial.seq_len == 2**20
        stages = trial.protocol.get("length_warmup", [])
        assert [seq_len for seq_len, _ in stages] == [2**p for p in range(10, trial.seq_len.bit_length() - 1)]
        assert sum(steps for _, steps in stages) < trial.protocol["steps"] / 2
        assert {"optimizer": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1, "schedule": "cosine"}.items() <= (
            trial.protocol.items()
        )
        assert trial.protocol["warmup_steps"] == 0.1 * trial.protocol["steps"]
        assert trial.protocol["task_options"] == {"reverse_complement": True}
        assert len(trial.protocol["score_lengths"]) == 6, "all lengths are scored on the same bases"
    rates = {family(t.model): t.protocol["lr"] for t in trials}
    assert (rates["mamba"], rates["hyena"], rates["transformer"]) == (8e-3, 1e-3, 2e-3)


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["mamba-dna1m", "hyena-dna1m", "s4d-dna1m"])
def test_the_longest_context_is_predicted_to_fit_the_gpu_that_it_is_made_for(name):
    (trial,) = trials_of("dna-context", models=(name,), lengths=(2**20,), seeds=(0,))
    assert predicted_cost(trial).peak_bytes < 115 * GIB


def test_species_start_from_scratch_and_from_the_context_suites_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no checkpoint lies
    trials = trials_of("dna-species", seeds=(0,))
    scratch = [t for t in trials if "init_from" not in t.protocol]
    pretrained = [t for t in trials if "init_from" in t.protocol]
    points = {(t.model, t.seq_len, t.batch) for t in scratch}
    assert points == {(t.model, t.seq_len, t.batch) for t in pretrained}
    assert {t.seq_len for t in trials} <= {t.seq_len for t in trials_of("dna-context")}
    for trial in pretrained:
        assert trial.protocol["init_from"]["sha256"] is None
        assert "results/runs/dna-context/checkpoints" in trial.protocol["init_from"]["missing"]
        assert trial.protocol["lr"] == {"hyena": 4e-5}.get(family(trial.model), 1e-4)
    for trial in trials:
        assert [seq_len for seq_len, _ in trial.protocol.get("length_warmup", [])] == [
            2**p for p in range(14, trial.seq_len.bit_length() - 1)
        ]


def test_all_splits_of_the_real_primates_serve_the_suites_lengths():
    root = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no real data in {root}")
    task = make_task("species", data_root=root)
    longest = max(t.seq_len for t in trials_of("dna-species"))
    assert min(task.max_seq_len(split) for split in ("train", "validation", "test")) >= longest
