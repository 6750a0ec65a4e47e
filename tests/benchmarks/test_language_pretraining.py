"""Language pretraining: the recipe, losses on the way, bits per byte, and a BPE model that is evaluated as trained."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import scoring, training_learner
from benchmarks.evaluation.adapter import EvalLM
from benchmarks.evaluation.checkpoints import find_checkpoint
from benchmarks.evaluation.lm_harness import Instance
from benchmarks.evaluation.run import EvalOptions, run_evaluation
from benchmarks.plan import predicted_cost
from benchmarks.scoring import ratio_estimate, score_at
from benchmarks.suite_entries import TrainingEntry
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import SuiteError, load_suite
from benchmarks.training import run_training
from benchmarks.training_learner import Learner, loss_of
from benchmarks.training_loop import train
from benchmarks.training_optimizer import learning_rate
from benchmarks.training_state import load_state, save_state
from harness import Trial
from models import build_model
from models.checkpoint import CheckpointError
from tasks import CorpusTask, make_task

pytestmark = pytest.mark.usefixtures("isolated")
VOCAB, STEPS, SUITES = 320, 6, ("language-pretraining", "language-pretraining-bpe")
BPE = {"tokenizer": "bpe", "vocab_size": VOCAB}


def trial_of(options: dict[str, Any] | None = None, **changes: Any) -> Trial:
    protocol = {
        "steps": STEPS, "lr": 3e-3, "final_lr": 1e-5, "optimizer": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1,
        "warmup_steps": 1, "schedule": "cosine", "grad_clip": 1.0, "curve_every": 2, "validation_examples": 6,
        "validation_loss": True, "task_options": options or {}, "score_lengths": [64, 128], "score_tokens": 4096,
        "score_regions": 4, "min_examples": 8, "max_examples": 32, "score_budget_s": 60.0,
    }  # fmt: skip
    return Trial(
        kind="training", model="mamba-tiny", task="language", seq_len=64, batch=4, dtype="float32", direction="train",
        device="cpu", seed=0, protocol=protocol | changes,
    )  # fmt: skip


def learner_of(trial: Trial) -> Learner:
    task = make_task("language", **trial.protocol["task_options"])
    model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed)
    return Learner(model, task, trial)


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def trained(
    request: pytest.FixtureRequest, isolated: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trial, Path, dict[str, Any]]:
    """A trial, its checkpoint and its metrics."""
    trial, folder = trial_of(BPE if request.param == "bpe" else {}), tmp_path_factory.mktemp("runs")
    result = run_training(trial, {"trial_id": "a" * 64, "checkpoints": str(folder)}, lambda _: None)
    (checkpoint,) = folder.iterdir()
    return trial, checkpoint, result["metrics"]


# ---- the recipe


@pytest.mark.parametrize("final", [1e-5, 0.0, None])
def test_the_cosine_ends_where_it_is_told(final: float | None) -> None:
    protocol = {"lr": 3e-3, "steps": 1000, "warmup_steps": 100, "schedule": "cosine", "final_lr": final}
    rates = [learning_rate(step, protocol) for step in range(1000)]
    end = 3e-4 if final is None else final
    assert rates[0] == pytest.approx(3e-5, rel=0.01)
    assert max(rates) < 3e-3 and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(end, abs=1e-7)
    assert rates[500] == pytest.approx((3e-3 + end) / 2)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_suites_follow_the_papers_recipe_with_equal_tokens(name: str, device: str) -> None:
    trials = [item.trial for item in expand(load_suite(name), Selection(), device=device, source_of={})]
    assert len({trial.batch * trial.seq_len * trial.protocol["steps"] for trial in trials}) == 1
    assert len({json.dumps(trial.protocol["task_options"]) for trial in trials}) == 1
    for trial in trials:
        stated = {"optimizer": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1, "grad_clip": 1.0}
        stated |= {"schedule": "cosine", "final_lr": 1e-5, "lr": 3e-3, "validation_loss": True}
        assert stated.items() <= trial.protocol.items()
        assert trial.protocol["warmup_steps"] == trial.protocol["steps"] // 10
        assert trial.protocol["steps"] % trial.protocol["curve_every"] == 0
        assert max(trial.protocol["score_lengths"]) > 8 * trial.seq_len
        assert trial.dtype == ("bfloat16" if device == "cuda" else "float32")
    if device == "cuda":
        assert {"mamba-10m", "transformer-10m", "mamba2-10m", "transformer-25m"} <= {trial.model for trial in trials}


def test_a_final_rate_without_a_cosine_makes_no_sense(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: x\ndescription: x\ntrials:\n  - {kind: training, tasks: [language], models: [mamba-tiny], seq_len: 64, "
        "steps: 3, lr: 1.0e-3, score_lengths: '64', final_lr: 1.0e-5}\n"
    )
    with pytest.raises(SuiteError, match="belongs to schedule: cosine"):
        load_suite(str(suite))


def test_old_protocols_are_named_as_before() -> None:
    """Names of a choice that nobody made would part every trial from its baseline."""
    for item in expand(load_suite("quick"), Selection(), device="cpu", source_of={}):
        assert not {"final_lr", "validation_loss"} & item.trial.protocol.keys()
    assert TrainingEntry.model_fields["validation_loss"].default is False


def test_costs_are_predicted_with_the_tokenizers_vocabulary() -> None:
    small, large = (predicted_cost(trial_of({"tokenizer": "bpe", "vocab_size": size})) for size in (512, 8192))
    tokens, width = 4 * 64, 64
    assert large.flops - small.flops == pytest.approx(6 * tokens * width * (8192 - 512), rel=0.01)


# ---- losses on the way


@pytest.mark.parametrize("options", [{}, BPE], ids=["bytes", "bpe"])
def test_the_validation_loss_is_that_of_the_validation_split(options: dict[str, Any], monkeypatch: Any) -> None:
    learner = learner_of(trial_of(options))
    train([learner])
    curve = learner.log.validation_loss_curve
    assert [step for step, _ in curve] == [2, 4, 6]
    assert curve[-1][1] < curve[0][1] < math.log(learner.task.vocab_size) + 0.5
    batch = learner._validation_set
    with torch.no_grad():
        whole = float(loss_of(learner.model, batch.inputs_BL, batch.targets_BL, slice(None)))
    assert curve[-1][1] == pytest.approx(whole, abs=2e-5)
    monkeypatch.setattr(training_learner, "_VALIDATION_TOKENS", 4 * 64)  # pieces of unequal size
    assert learner._validation_loss() == pytest.approx(whole, abs=2e-5)


def test_a_cut_training_keeps_its_validation_losses(tmp_path: Path) -> None:
    whole, cut = learner_of(trial_of()), learner_of(trial_of())
    train([whole])
    for _ in range(2):
        cut.prepare()
        cut.step()
        cut.done += 1
    cut.is_finite()
    cut.add_to_curves()
    save_state(cut, tmp_path / "state.pt", trial_id="t")
    resumed = learner_of(trial_of())
    assert load_state(resumed, tmp_path / "state.pt", trial_id="t") == ""
    train([resumed])
    assert resumed.log.validation_loss_curve == whole.log.validation_loss_curve


# ---- bits per byte


def test_a_ratio_of_sums_with_an_honest_interval() -> None:
    rng = np.random.default_rng(0)
    truth, hits = 0.5, 0
    for _ in range(400):
        sizes = rng.uniform(50, 150, 30)  # bytes of a unit; dense ones are the shorter ones
        bits = truth * sizes + rng.normal(0, 5, 30)
        estimate = ratio_estimate(bits, sizes)
        assert estimate.value == pytest.approx(bits.sum() / sizes.sum())
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_bits_per_byte_count_the_bytes_of_the_targets(trained: Any) -> None:
    trial, _, metrics = trained
    task = make_task("language", **trial.protocol["task_options"])
    assert isinstance(task, CorpusTask)
    for score in metrics["scores"]:
        per_token, per_byte = score["bits_per_token"], score["bits_per_byte"]
        if task.vocab_size == 256:
            for key in ("value", "low", "high"):
                assert per_byte[key] == pytest.approx(per_token[key])
        else:
            assert 1.2 < per_token["value"] / per_byte["value"] < 4, "bytes a token"
        assert per_byte["low"] < per_byte["value"] < per_byte["high"]
        bins = [part["bits_per_byte"] for part in score["bits_by_position"]]
        assert min(bins) - 1e-6 <= per_byte["value"] <= max(bins) + 1e-6


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary() -> None:
    """Of every token; a byte then costs the fewer bits, the more bytes a token holds."""
    task = make_task("language", **BPE)
    assert isinstance(task, CorpusTask)
    model = build_model("mamba-tiny", vocab_size=VOCAB)
    torch.nn.init.zeros_(model.lm_head.weight)
    trial = trial_of(BPE)
    score = score_at(model, task, 64, trial.protocol, previous=(), deadline=math.inf, device=torch.device("cpu"))
    assert score["bits_per_token"]["value"] == pytest.approx(math.log2(VOCAB), abs=1e-4)
    documents = task.splits["test"]
    per_token = np.concatenate([task.token_bytes[task.corpus.tokens_of(d)] for d in documents]).mean()
    assert score["bits_per_byte"]["value"] == pytest.approx(math.log2(VOCAB) / per_token, rel=0.1)


def test_records_say_what_a_step_costs_and_which_tokenizer_it_was(trained: Any) -> None:
    trial, checkpoint, metrics = trained
    model = build_model(trial.model, vocab_size=make_task("language", **trial.protocol["task_options"]).vocab_size)
    assert metrics["model_flops_per_step"] == 3 * 4 * model.describe(64).forward_flops
    assert ("tokenizer_sha256" in metrics["source"]) == ("tokenizer" in trial.protocol["task_options"])
    config = json.loads((checkpoint / "config.json").read_text())
    assert config.get("tokenizer_sha256") == metrics["source"].get("tokenizer_sha256")


# ---- evaluation of what was trained


def test_zero_shot_tasks_end_to_end(trained: Any, tmp_path: Path) -> None:
    _, checkpoint, metrics = trained
    options = EvalOptions(
        model=str(checkpoint), tasks=("lambada_openai", "piqa"), device="cpu", out=tmp_path, runs=tmp_path, limit=4
    )
    records = run_evaluation(options, log=open("/dev/null", "w"))  # noqa: SIM115
    assert [record["status"] for record in records] == ["ok", "ok"]
    name = f"bpe-{VOCAB}" if "tokenizer_sha256" in metrics["source"] else "bytes"
    assert {record["metrics"]["checkpoint"]["tokenizer"] for record in records} == {name}


def test_the_evaluation_reads_the_ids_that_were_trained_on(trained: Any) -> None:
    """The likelihood of a stretch of test text, through lm-eval's interface, is that of the task's own window."""
    trial, checkpoint, _ = trained
    task = make_task("language", **trial.protocol["task_options"])
    assert isinstance(task, CorpusTask)
    found = find_checkpoint(str(checkpoint), checkpoint.parent)
    tokenizer = found.load_tokenizer()
    model, _ = found.load("cpu")
    ids = task.corpus.tokens_of(task.splits["test"][0])[:200].tolist()
    text = tokenizer.decode(ids)
    again = tokenizer.encode(text)  # the same, but for a merge across the end of the stretch
    assert sum(a == b for a, b in zip(ids, again, strict=False)) >= 198
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (nats,) = EvalLM(model, tokenizer).loglikelihood_rolling([request])
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.prefix_id, *again]]))[0, :-1].log_softmax(-1)
    assert nats == pytest.approx(float(logits.gather(1, torch.tensor(again)[:, None]).sum()), rel=1e-5)
    assert tokenizer.decode([tokenizer.prefix_id]) == "\n"


@pytest.fixture
def bpe_folder(isolated: None, tmp_path: Path) -> Path:
    run_training(trial_of(BPE, steps=1), {"trial_id": "b" * 64, "checkpoints": str(tmp_path)}, lambda _: None)
    (checkpoint,) = tmp_path.iterdir()
    return checkpoint


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), r"tokenizer\.json.*copy the folder again"),
        (lambda file: file.write_text(file.read_text()[:-50]), r"tokenizer\.json.*not a tokenizer.*copy the folder"),
        (lambda file: file.write_text(file.read_text() + "\n"), r"its sha256 is .* but the model was trained with"),
    ],
    ids=["missing", "truncated", "another"],
)
def test_a_spoiled_tokenizer_stops_before_the_model_is_loaded(spoil: Any, message: str, bpe_folder: Path) -> None:
    spoil(bpe_folder / "tokenizer.json")
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(str(bpe_folder), bpe_folder.parent).load_tokenizer()


def test_another_tokenizer_is_refused(bpe_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"with its own tokenizer\.json; leave it out"):
        find_checkpoint(str(bpe_folder), bpe_folder.parent, tokenizer="x")


@pytest.mark.parametrize("examples", [4, 100])
def test_a_window_in_whose_bin_nothing_is_scored_counts_there_as_none(examples):
    rng = np.random.default_rng(0)
    nats_EL = rng.random((examples, 256))
    nats_EL[0, :64] = np.nan  # a run of N as long as the first bin
    nats_EL[1, 100:] = np.nan
    found = scoring._bits(nats_EL, correct=1, scored=2)
    bins = found["bits_by_position"]
    assert [(part["start"], part["stop"]) for part in bins] == [(0, 64), (64, 128), (128, 256)]
    for part in bins:
        mine = nats_EL[:, part["start"] : part["stop"]] / np.log(2)
        whole = mine[~np.isnan(mine).any(axis=1)]
        assert part["low"] < part["value"] < part["high"] and part["value"] == pytest.approx(whole.mean(), abs=0.02)
    if examples == 100:
        assert [part["n"] for part in bins] == [99, 100, 99]


def test_a_bin_or_a_window_without_a_scored_token_has_no_figure():
    nats_EL = np.random.default_rng(0).random((20, 128))
    nats_EL[:, :64] = np.nan
    nats_EL[3] = np.nan
    found = scoring._bits(nats_EL, correct=1, scored=2)
    empty, full = found["bits_by_position"]
    assert empty == {"start": 0, "stop": 64} and full["n"] == found["bits_per_token"]["n"] == 19
    assert found["bits_per_token"]["value"] == pytest.approx(full["value"])
