"""The suites of raw audio ask for what the paper says, for every curve of its figures."""

import pytest

from benchmarks.plan import predicted_cost
from benchmarks.suite_entries import TrainingEntry
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from harness import Trial
from reports.audio_reference import ablation_panels, context_curves


def trials_of(name: str, *, device: str = "cuda", **selection) -> list[Trial]:
    expanded = expand(load_suite(name), Selection(**selection), device=device, source_of={})
    return [item.trial for item in expanded]


def test_every_curve_of_figure_7_is_trained_by_its_protocol():
    trials = trials_of("audio-context")
    assert set(context_curves()) <= {trial.model for trial in trials}
    for trial in trials:
        protocol = trial.protocol
        assert trial.batch * trial.seq_len == 2**20, "about a million samples a step"
        assert (protocol["lr"], protocol["weight_decay"], protocol["betas"]) == (2e-3, 0.1, [0.9, 0.95])
        assert protocol["warmup_steps"] * 10 == protocol["steps"]
        assert protocol["score_lengths"] == [trial.seq_len] and protocol["tf32"] is False
    for model in context_curves():
        mine = [trial for trial in trials if trial.model == model]
        assert {trial.seq_len for trial in mine} == {2**power for power in range(13, 21)}
        assert len({trial.seed for trial in mine}) >= 2


def test_every_curve_of_figure_10_is_trained_at_every_length():
    trials = trials_of("audio-ablation")
    for panel in ablation_panels():
        for model, curve in panel.rows.values():
            assert {trial.seq_len for trial in trials if trial.model == model} == set(curve)
    assert {trial.batch * trial.seq_len for trial in trials} == {2**18}
    assert {trial.protocol["lr"] for trial in trials} == {1e-3}


@pytest.mark.parametrize("name", ["audio-context", "audio-ablation"])
def test_every_length_is_scored_on_as_many_samples(name):
    for trial in trials_of(name):
        windows = trial.protocol["score_tokens"] // trial.seq_len
        assert windows <= trial.protocol["max_examples"] and windows * trial.seq_len == trial.protocol["score_tokens"]


def test_a_part_is_picked_by_model_and_length():
    (trial,) = trials_of("audio-context", models=("s4d-unet3x16",), lengths=(2**14,), seeds=(0,))
    assert (trial.seq_len, trial.batch) == (2**14, 64)


def entry(**changes) -> dict:
    fixed = {"kind": "training", "tasks": ["audio"], "models": ["s4d-unet1x4"], "steps": 3, "lr": 1e-3}
    return fixed | {"tokens": 2048} | changes


def test_parts_of_a_step_are_at_most_its_sequences(tmp_path):
    path = tmp_path / "s.yaml"
    parts = {}
    for microbatches in (1, 4):
        lengths = [256, 1024, 2048]
        path.write_text(
            str({"name": "s", "description": "d", "trials": [entry(lengths=lengths, microbatches=microbatches)]})
        )
        for trial in trials_of(str(path)):
            parts[microbatches, trial.batch] = trial.protocol.get("microbatches")
    # A step that is not split says nothing of it: its identity is what it was.
    assert parts == {(1, 8): None, (1, 2): None, (1, 1): None, (4, 8): 4, (4, 2): 2, (4, 1): None}


@pytest.mark.conformance
def test_parts_lower_the_predicted_memory_and_leave_the_work():
    costs = []
    for microbatches in (1, 4):
        made = TrainingEntry.model_validate(entry(lengths=[512], tokens=4096, microbatches=microbatches))
        protocol = {"steps": 3, "task_options": {}, "microbatches": made.microbatches}
        costs.append(
            predicted_cost(
                Trial(
                    kind="training", model="s4d-unet1x4", task="audio", seq_len=512, batch=8, dtype="float32",
                    direction="train", device="cpu", seed=0, protocol=protocol,
                )
            )
        )  # fmt: skip
    whole, split = costs
    # Each part makes the kernels of its convolutions anew.
    assert split.flops == pytest.approx(whole.flops, rel=0.1)
    assert split.peak_bytes < 0.5 * whole.peak_bytes


# ---- which word is spoken


def test_commands_are_classified_from_a_whole_second_by_three_seeds_of_both_models():
    trials = [trial for trial in trials_of("audio-commands") if trial.model.endswith("unet8x4")]
    assert {trial.seq_len for trial in trials} == {16_000}
    assert {(trial.model, trial.seed) for trial in trials} == {
        (model, seed) for model in ("mamba_complex-unet8x4", "s4d-unet8x4") for seed in range(3)
    }
    for trial in trials:
        protocol = trial.protocol
        assert (trial.batch, protocol["weight_decay"], protocol["betas"]) == (16, 0.1, [0.9, 0.95])
        assert protocol["warmup_steps"] * 10 == protocol["steps"] and protocol["grad_clip"] == 0.1
        # Every clip of a test split as large as Speech Commands' own is scored.
        assert min(protocol["max_examples"], protocol["score_tokens"] // trial.seq_len) == 4096
    plain, moved = (
        [trial for trial in trials if ("shift" in trial.protocol["task_options"]) is it] for it in (False, True)
    )
    assert len(plain) == len(moved) == 6
    for group in (plain, moved):
        assert all(trial.protocol == group[0].protocol for trial in group), "the same for both models"
    assert moved[0].protocol["answers"] == "labels" and "answers" not in plain[0].protocol


@pytest.mark.conformance
def test_commands_for_a_cpu_are_small_and_fit_the_gpu_otherwise():
    on_cpu = {trial.model: trial for trial in trials_of("audio-commands", device="cpu")}
    assert on_cpu.keys() == {"mamba-unet1x4", "s4d-unet1x4"}
    assert predicted_cost(on_cpu["s4d-unet1x4"]).peak_bytes < 2**30
    on_gpu = {trial.model: trial for trial in trials_of("audio-commands", seeds=(0,))}
    assert predicted_cost(on_gpu["mamba_complex-unet8x4"]).peak_bytes < 75 * 2**30


# ---- digits


def test_digits_are_trained_by_the_papers_protocol_and_may_then_speak():
    trials = trials_of("audio-digits")
    assert {trial.seed for trial in trials} == {0} and len(trials) == 3
    for trial in trials:
        protocol = trial.protocol
        assert (trial.task, trial.seq_len, trial.batch) == ("digits", 16_000, 16)
        assert (protocol["lr"], protocol["weight_decay"], protocol["betas"]) == (2e-3, 0.1, [0.9, 0.95])
        assert protocol["warmup_steps"] * 10 == protocol["steps"] and protocol["grad_clip"] == 0.1
    spoken = [trial for trial in trials_of("audio-generation") if trial.task == "digits"]
    assert {trial.model for trial in spoken} == {trial.model for trial in trials}
    for trial in spoken:
        # What its classifier's scores are of: a second from silence, of more clips than FID's features.
        assert (trial.protocol["start"], trial.protocol["new_samples"]) == ("silence", 16_000)
        assert trial.batch > 32


def test_digits_for_a_cpu_are_small():
    for trial in trials_of("audio-digits", device="cpu"):
        assert predicted_cost(trial).peak_bytes < 2**30
