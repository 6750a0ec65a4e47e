"""What is compiled ahead of a run: one trial for each set of Triton kernels."""

import io
from dataclasses import replace

from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from benchmarks.tuning import CHUNK, TOKENS, run_kernels, tune_ahead, tuning_trials
from models import family
from models.ops.context import observing


def planned(device):
    return [item.trial for item in expand(load_suite("speed"), Selection(), device=device, source_of={})]


def test_each_set_of_kernels_is_tuned_once():
    trials = [t for t in tuning_trials(planned("cuda")) if (t.seq_len, t.batch) == (TOKENS, 1)]
    what = [(t.kind, t.protocol["level"], family(t.model), t.direction, t.protocol.get("d_state")) for t in trials]
    assert sorted(what, key=str) == [
        ("generation", "block", "mamba2", "forward", None),
        ("speed", "block", "mamba2", "forward", None),
        ("speed", "block", "mamba2", "train", None),
        ("speed", "operator", "ssd", "forward", 128),
        ("speed", "operator", "ssd", "forward", 16),
        ("speed", "operator", "ssd", "train", 16),
    ]


def test_each_kind_of_shape_that_trials_have_is_compiled():
    ssd = [t for t in planned("cuda") if (t.model, t.direction) == ("ssd", "forward") and t.protocol["d_state"] == 16]
    assert {(t.batch, t.seq_len) for t in ssd} > {(1, 512), (1, 2**20), (64, 1024), (8, 8192)}
    shapes = [(t.batch, t.seq_len // CHUNK) for t in tuning_trials(ssd)]
    assert sorted(shapes) == [(1, 8), (1, TOKENS // CHUNK), (8, 16), (16, 8)]


def test_they_run_the_operator_whose_kernels_are_wanted():
    for trial in tuning_trials(planned("cuda")):
        if (trial.seq_len, trial.batch) == (TOKENS, 1):
            with observing() as ran:
                run_kernels(replace(trial, device="cpu", seq_len=64, dtype="float32"))
            assert "ssd" in ran.backends


def test_a_run_without_such_kernels_compiles_nothing():
    log = io.StringIO()
    tune_ahead(planned("cpu"), log=log)
    assert tuning_trials(planned("cpu")) == []
    assert log.getvalue() == ""
