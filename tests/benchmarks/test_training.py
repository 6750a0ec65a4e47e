"""The training loop: cut and continued, alone and together, captured and eager, it trains the same model."""

import itertools
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import training, training_loop
from benchmarks.training import run_training
from benchmarks.training_learner import Learner, loss_of
from benchmarks.training_loop import Lockstep, train
from benchmarks.training_state import load_state, save_state
from harness import CutShort, NonFiniteLoss, RecordWriter, Trial
from harness.runner import CostModel, run_trials
from harness.supervisor import Supervisor
from harness.units import PlannedTrial
from models import build_model
from models.ops.context import why_missing
from models.presets import FAMILIES
from tasks import ExampleStream, Task, make_task
from tasks.base import IGNORE_INDEX

STEPS = 23
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trial_of(model: str = "s4d-tiny", *, seed: int = 0, device: str = "cpu", **changes: Any) -> Trial:
    protocol = {
        "steps": STEPS, "lr": 3e-3, "optimizer": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1,
        "warmup_steps": 5, "schedule": "cosine", "grad_clip": 1.0, "curve_every": 4, "validation_examples": 8,
        "score_lengths": [64, 128], "score_tokens": 512, "score_regions": 4, "min_examples": 2, "max_examples": 8,
        "score_budget_s": 60.0,
    }  # fmt: skip
    fields: dict[str, Any] = dict(
        kind="training", model=model, task="selective_copying", seq_len=64, batch=4, dtype="float32",
        direction="train", device=device, seed=seed,
    )  # fmt: skip
    fields |= {key: changes.pop(key) for key in list(changes) if key in fields}
    return Trial(**fields, protocol=protocol | changes)


def learner_of(trial: Trial, **options: Any) -> Learner:
    assert trial.task is not None
    task = make_task(trial.task, **trial.protocol.get("task_options", {}))
    model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed, device=trial.device)
    return Learner(model, task, trial, **options)


def trained(trial: Trial, **options: Any) -> Learner:
    learner = learner_of(trial, **options)
    train([learner])
    return learner


def assert_same(one: Learner, other: Learner, **tolerance: float) -> None:
    """Weights, optimizer, losses and curves; bit for bit unless a tolerance is given."""
    tensors, others = one.tensors(), other.tensors()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)
    if not tolerance:
        assert one.log.loss_curve == other.log.loss_curve
        assert one.log.validation_curve == other.log.validation_curve


def clock_of_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later, so that a deadline cuts at the same step on every machine."""
    ticks = itertools.count()
    real = training_loop.time
    fake = SimpleNamespace(monotonic=lambda: float(next(ticks)), perf_counter_ns=real.perf_counter_ns)
    monkeypatch.setattr(training_loop, "time", fake)


def train_in_pieces(trial: Trial, tmp_path, monkeypatch, seconds: float) -> tuple[Learner, list[int]]:
    """In processes that each end after so many looks at the clock: here, with a new learner each."""
    cuts, path = [], tmp_path / "state.pt"
    while True:
        learner = learner_of(trial)
        assert load_state(learner, path, trial_id="t") == ""
        clock_of_looks(monkeypatch)
        try:
            train([learner], deadline=seconds, save=lambda own: save_state(own, path, trial_id="t"))
        except CutShort as cut:
            message = str(cut)
        else:
            return learner, cuts
        assert f"step {learner.done} of {STEPS}" in message
        assert not cuts or learner.done > cuts[-1]
        cuts.append(learner.done)


@pytest.mark.parametrize("seconds", [6, 9, 17])
@pytest.mark.parametrize("model", ["mamba-tiny", "transformer-tiny"])
def test_cut_anywhere_and_continued_is_bit_for_bit_the_uncut_training(model, seconds, tmp_path, monkeypatch):
    trial = trial_of(model)
    learner, cuts = train_in_pieces(trial, tmp_path, monkeypatch, seconds)
    assert cuts and learner.log.resumed_at == cuts
    assert_same(learner, trained(trial))
    assert [step for step, _ in learner.log.loss_curve] == [4, 8, 12, 16, 20, STEPS]


def test_a_record_of_a_cut_training_is_that_of_the_uncut_one(tmp_path, monkeypatch):
    trial, real = trial_of(), training_loop.train
    context = {"trial_id": "a" * 64, "states": str(tmp_path / "states")}

    def measured(folder: str, **more: Any) -> dict[str, Any]:
        return run_training(trial, {"trial_id": "a" * 64, "checkpoints": str(tmp_path / folder), **more}, print)

    whole = measured("whole")
    clock_of_looks(monkeypatch)
    monkeypatch.setattr(training, "train", lambda learners, save, **_: real(learners, deadline=9.0, save=save))
    partial: dict[str, Any] = {}
    with pytest.raises(CutShort, match="run the same command again"):
        run_training(trial, context, partial.update)
    assert 0 < partial["steps_done"] < STEPS
    assert partial["loss_curve"] and "scores" not in partial
    monkeypatch.undo()
    continued = measured("cut", states=context["states"])
    assert continued["metrics"]["resumed_at"] == [partial["steps_done"]]
    for name in ("loss_curve", "validation_curve", "accuracy", "train_tokens", "steps_done"):
        assert continued["metrics"][name] == whole["metrics"][name], name
    accuracies = [[s["accuracy"] for s in m["metrics"]["scores"]] for m in (whole, continued)]
    assert accuracies[0] == accuracies[1]
    weights = [torch.load(next((tmp_path / f).rglob("model.pt")), weights_only=True) for f in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert whole["backend"]["cuda_graph"] is False and whole["backend"]["eager_because"]
    json.dumps(continued, allow_nan=False)


def test_a_trained_model_is_scored_by_the_next_run_where_time_is_up(tmp_path, monkeypatch):
    trial, context = trial_of(), {"trial_id": "a" * 64, "states": str(tmp_path)}
    monkeypatch.setattr(training, "_SCORING_SHARE", 1.0)
    limited = context | {"deadline": training.time.monotonic() + 30.0}
    with pytest.raises(CutShort, match="no time is left to score"):
        run_training(trial, limited, lambda _: None)
    metrics = run_training(trial, limited, lambda _: None)["metrics"]
    assert metrics["resumed_at"] == [STEPS] and metrics["accuracy"]
    assert "latency_ms" not in metrics, "no step was taken in this process"


def test_a_training_that_is_killed_goes_on_from_its_last_saved_state(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    trial, path, saved = trial_of(), tmp_path / "state.pt", []

    def save(learner: Learner) -> None:
        if len(saved) == 2:
            raise Killed
        save_state(learner, path, trial_id="t")
        saved.append(learner.done)

    clock_of_looks(monkeypatch)
    with pytest.raises(Killed):
        train([learner_of(trial)], save=save, save_every_s=4.0)
    assert len(saved) == 2 and 0 < saved[0] < saved[1] < STEPS
    learner = learner_of(trial)
    assert load_state(learner, path, trial_id="t") == ""
    assert learner.done == saved[1]
    train([learner])
    assert_same(learner, trained(trial))


@pytest.mark.parametrize("damage", ["corrupt", "empty", "another trial", "another model"])
def test_a_state_that_does_not_fit_is_named_and_training_starts_anew(damage, tmp_path):
    trial, path = trial_of(steps=3), tmp_path / f"{'a' * 64}.pt"
    if damage in ("corrupt", "empty"):
        path.write_bytes(b"not a state" if damage == "corrupt" else b"")
    else:
        other = trained(trial if damage == "another trial" else trial_of("transformer-tiny", steps=3))
        save_state(other, path, trial_id="b" * 64 if damage == "another trial" else "a" * 64)
    metrics = run_training(trial, {"trial_id": "a" * 64, "states": str(tmp_path)}, lambda _: None)["metrics"]
    assert path.name in metrics["state_ignored"] and "anew" in metrics["state_ignored"]
    assert "resumed_at" not in metrics
    assert metrics["loss_curve"] == trained(trial).log.loss_curve


@pytest.mark.parametrize("block_steps", [1, 5, 64])
def test_examples_do_not_depend_on_how_many_steps_are_drawn_together(block_steps):
    assert_same(trained(trial_of(), block_steps=block_steps), trained(trial_of()))


def test_seeds_together_train_as_each_alone():
    trials = [trial_of("mamba-tiny", seed=seed) for seed in range(3)]
    learners = [learner_of(trial) for trial in trials]
    ahead = Lockstep(learners[:1])
    ahead.run(7, training_loop._Watch(deadline=float("inf"), save=None, save_every_s=1e9))
    train(learners)  # the others catch up first
    for learner, trial in zip(learners[1:], trials[1:], strict=True):
        assert_same(learner, trained(trial))
    for name, tensor in trained(trials[0]).tensors().items():
        assert torch.equal(learners[0].tensors()[name], tensor), name


def test_companions_get_metrics_of_their_own_and_no_speed():
    trials = {f"{seed}" * 64: trial_of(seed=seed) for seed in range(2)}
    (first_id, first), *others = trials.items()
    companions = [{"trial": trial.as_dict(), "trial_id": trial_id} for trial_id, trial in others]
    shares = run_training(first, {"trial_id": first_id, "companions": companions}, lambda _: None)["metrics"][
        "by_trial"
    ]
    assert shares.keys() == trials.keys()
    for trial_id, trial in trials.items():
        alone, share = run_training(trial, {"trial_id": trial_id}, lambda _: None)["metrics"], shares[trial_id]
        assert share["status"] == "ok"
        assert share["metrics"]["seeds_together"] == 2
        assert not {"latency_ms", "tokens_per_s"} & share["metrics"].keys()
        for name in ("loss_curve", "validation_curve", "accuracy"):
            assert share["metrics"][name] == alone[name]


def test_seeds_of_one_process_get_records_of_their_own(tmp_path):
    planned = [
        PlannedTrial(trial=trial_of(seed=seed), trial_id=f"{seed}" * 64, time_limit_s=100, together="k", max_together=2)
        for seed in range(3)
    ]
    with RecordWriter(tmp_path) as writer:
        records = list(
            run_trials(
                planned, executor=Supervisor("benchmarks.worker:execute"), writer=writer, env_id="e",
                costs=CostModel(1e9), memory_bytes=2**40, cores=sorted(os.sched_getaffinity(0))[:1],
            )
        )  # fmt: skip
    assert [record.status for record in records] == ["ok"] * 3, [record.error for record in records]
    assert [record.metrics.get("seeds_together") for record in records] == [2, 2, None]
    assert ["latency_ms" in record.metrics for record in records] == [False, False, True]
    for record in records:
        assert record.metrics["loss_curve"] == trained(record.trial).log.loss_curve
        assert record.backend["cuda_graph"] is False


def test_one_seed_that_diverges_leaves_the_others_alone():
    learners = [learner_of(trial_of(seed=seed)) for seed in range(2)]
    with torch.no_grad():
        learners[0].model.get_parameter("backbone.embedding.weight").fill_(float("nan"))
    train(learners)
    assert isinstance(learners[0].failure, NonFiniteLoss) and learners[1].failure is None
    assert f"nan at step 1 of {STEPS}" in str(learners[0].failure)
    assert_same(learners[1], trained(trial_of(seed=1)))


def test_the_first_step_that_is_not_finite_is_named():
    learner = learner_of(trial_of(curve_every=STEPS))
    step, poisoned = learner.step, 9

    def step_that_fails() -> None:
        if learner.done == poisoned:
            with torch.no_grad():
                learner.model.get_parameter("backbone.embedding.weight").fill_(float("inf"))
        step()

    learner.step = step_that_fails  # type: ignore[method-assign]
    train([learner])
    assert f"at step {poisoned + 1} of {STEPS}" in str(learner.failure)
    assert "lr=" in str(learner.failure)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_model_trains(family):
    learner = learner_of(trial_of(f"{family}-tiny", steps=3, curve_every=1))
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    train([learner])
    assert learner.failure is None and len(learner.log.loss_curve) == 3
    changed = [name for name, tensor in learner.tensors().items() if not torch.equal(tensor, before[name])]
    assert len([name for name in changed if name.startswith("model.")]) > 1


def test_half_precision_is_autocast_and_learns_nearly_the_same():
    narrow, wide = trained(trial_of("transformer-tiny", dtype="bfloat16")), trained(trial_of("transformer-tiny"))
    assert all(p.dtype == torch.float32 for p in narrow.model.parameters())
    assert narrow.log.loss_curve != wide.log.loss_curve
    assert narrow.log.loss_curve[-1][1] == pytest.approx(wide.log.loss_curve[-1][1], rel=0.05)


@pytest.mark.parametrize("name", ["induction_heads", "selective_copying", "dna"])
@pytest.mark.parametrize("loss", ["answer", "every"])
def test_the_loss_is_the_mean_over_the_targets_and_no_others(name, loss):
    task: Task = make_task(name, **({} if name == "dna" else {"loss": loss}))
    batch = task.sample(ExampleStream(seed=1), 3, 64)
    model = build_model("s4d-tiny", vocab_size=task.vocab_size)
    mask = batch.targets_BL != IGNORE_INDEX
    expected = torch.nn.functional.cross_entropy(model(batch.inputs_BL)[mask], batch.targets_BL[mask])
    actual = loss_of(model, batch.inputs_BL, batch.targets_BL, task.scored_positions("train"))
    torch.testing.assert_close(actual, expected)


@pytest.mark.conformance
@pytest.mark.parametrize("parts", [2, 3, 4, 7])
@pytest.mark.parametrize("options", [{"loss": "answer"}, {"loss": "every"}])
def test_microbatches_are_the_whole_step_up_to_rounding(parts, options):
    whole = trained(trial_of(grad_clip=0.1, task_options=options))
    split = trained(trial_of(grad_clip=0.1, task_options=options, microbatches=parts))
    # Adam divides by the root of squared gradients, so that a rounding of 1e-7 can grow; a wrong weight shows as 1e-1.
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(split.tensors()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_microbatch_counts_by_its_targets_and_may_have_none():
    trial = trial_of(microbatches=2, batch=2)
    learner, whole = learner_of(trial), learner_of(trial_of(batch=2))
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(learner.task.vocab_size, (2, 64), generator=generator)
    for kept in (slice(0, 64), slice(60, 64), slice(0, 0)):  # of the second sequence
        targets_BL = torch.full_like(ids_BL, IGNORE_INDEX)
        targets_BL[0, -8:], targets_BL[1, kept] = 1, 2
        losses = []
        for one in (learner, whole):
            one._scored = slice(None)
            one.drop_gradients()
            losses.append(one._backward(ids_BL, targets_BL))
        torch.testing.assert_close(*losses)
        for mine, other in zip(learner.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_adam_and_adamw_differ_in_decay_alone():
    assert_same(trained(trial_of(optimizer="adam", weight_decay=0.0)), trained(trial_of(weight_decay=0.0)))


@cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_training_is_eager_training(family, dtype, monkeypatch, request):
    if family == "mamba3" and not why_missing("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined"):
        request.getfixturevalue("one_mamba3_configuration")
    trial = trial_of(f"{family}-tiny", device="cuda", dtype=dtype)
    captured = trained(trial)
    assert captured.log.captured == {"cuda_graph": True}, captured.log.captured
    monkeypatch.setattr(Lockstep, "_capture", lambda self: None)
    eager = trained(trial)
    assert eager.log.captured["cuda_graph"] is False
    # Some kernels add in any order, and Adam makes much of small gradients.
    torch.testing.assert_close(captured._losses_S, eager._losses_S, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(captured._losses_S[:2], eager._losses_S[:2], rtol=2e-3, atol=2e-3)


@cuda
@pytest.mark.parametrize("model", ["mamba-tiny", "transformer-tiny", "s4d-tiny"])
def test_three_seeds_in_one_graph_are_three_alone(model):
    trials = [trial_of(model, seed=seed, device="cuda") for seed in range(3)]
    learners = [learner_of(trial) for trial in trials]
    train(learners)
    assert all(learner.log.captured == {"cuda_graph": True} for learner in learners)
    for learner, trial in zip(learners, trials, strict=True):
        alone = trained(trial)
        torch.testing.assert_close(learner._losses_S, alone._losses_S, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(learner._losses_S[:2], alone._losses_S[:2], rtol=2e-3, atol=2e-3)


@cuda
def test_cut_and_continued_on_cuda(tmp_path, monkeypatch):
    trial = trial_of("transformer-tiny", device="cuda")
    learner, cuts = train_in_pieces(trial, tmp_path, monkeypatch, 12)
    assert cuts
    torch.testing.assert_close(learner._losses_S, trained(trial)._losses_S, rtol=2e-2, atol=2e-2)


@cuda
def test_the_gpu_trains_on_the_examples_of_the_cpu():
    on_cpu, on_gpu = (learner_of(trial_of(device=device)) for device in ("cpu", "cuda"))
    for learner in (on_cpu, on_gpu):
        learner.prepare()
    assert torch.equal(on_cpu._inputs_NBL[:STEPS], on_gpu._inputs_NBL[:STEPS].cpu())
    assert torch.equal(on_cpu._targets_NBL[:STEPS], on_gpu._targets_NBL[:STEPS].cpu())


@cuda
@pytest.mark.parametrize("model", ["mamba_complex-unet1x4", "s6_complex_lti.mamba+mamba-unet1x4"])
def test_a_captured_step_in_parts_is_the_eager_one(model, monkeypatch):
    trial = trial_of(model, device="cuda", microbatches=2)
    captured = trained(trial)
    assert captured.log.captured == {"cuda_graph": True}, captured.log.captured
    monkeypatch.setattr(Lockstep, "_capture", lambda self: None)
    eager = trained(trial)
    torch.testing.assert_close(captured._losses_S, eager._losses_S, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(captured._losses_S[:2], eager._losses_S[:2], rtol=2e-3, atol=2e-3)
