"""What is compiled ahead of a run: one trial for each set of Triton kernels."""

import io
from dataclasses import replace

from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from benchmarks.tuning import TOKENS, tune_ahead, tuning_trials
from benchmarks.workloads import build_workload
from models.ops.context import observing


def planned(device):
    return [item.trial for item in expand(load_suite("speed"), Selection(), device=device, source_of={})]


def test_each_set_of_kernels_is_tuned_once():
    trials = tuning_trials(planned("cuda"))
    assert {(t.seq_len, t.batch, t.kind) for t in trials} == {(TOKENS, 1, "speed")}
    what = [(t.protocol["level"], t.model.partition("-")[0], t.direction, t.protocol.get("d_state")) for t in trials]
    assert sorted(what, key=str) == [
        ("block", "mamba2", "forward", None),
        ("block", "mamba2", "train", None),
        ("operator", "ssd", "forward", 128),
        ("operator", "ssd", "forward", 16),
        ("operator", "ssd", "train", 16),
    ]


def test_they_run_the_operator_whose_kernels_are_wanted():
    for trial in tuning_trials(planned("cuda")):
        workload = build_workload(replace(trial, device="cpu", seq_len=64, dtype="float32"))
        with observing() as ran:
            workload.call()
        assert "ssd" in ran.backends


def test_a_run_without_such_kernels_compiles_nothing():
    log = io.StringIO()
    tune_ahead(planned("cpu"), gpu="", log=log)
    assert tuning_trials(planned("cpu")) == []
    assert log.getvalue() == ""
