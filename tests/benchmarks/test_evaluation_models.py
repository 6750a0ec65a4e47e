"""Zero-shot evaluation of published checkpoints: the same answers as lm-eval's own adapter, and what is refused."""

import dataclasses
import json
import shutil
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation.agreement import TRAINING_STEPS, small_subjects
from benchmarks.evaluation.agreement_rows import Settings, Subject, compare, hflm, our_lm
from benchmarks.evaluation.batching import TokenBudget
from benchmarks.evaluation.checkpoints import MAMBA_SSM_TOKENIZER, find_checkpoint
from benchmarks.evaluation.lm_harness import Instance
from benchmarks.evaluation.local_tasks import LocalTask, load_tasks
from benchmarks.evaluation.run import EvalOptions, run_evaluation
from benchmarks.evaluation.small_checkpoints import embedded_text, make_tokenizer
from benchmarks.evaluation.summary import table
from benchmarks.evaluation.tokenizers import check_vocabulary
from models import build_model
from models.checkpoint import CheckpointError, save_checkpoint
from tasks import TaskError

TASKS = ("lambada_openai", "hellaswag", "piqa", "arc_easy", "winogrande")
SUBJECTS = ("gpt_neox", "gpt_neox-trained", "llama", "mamba", "mamba-ssm")
NATS = 1e-4
PAIRS = [
    ("The cat sat on the", " mat"),
    ("Größe", " ist relativ"),
    ("", "an empty context"),
    ("<s>a text with its own first token", " and an answer"),
    ("spaces move over   ", "to the answer"),
    ("A long context. " * 12, "end"),
    ("one context", " two"),
    ("one context", " three answers"),
]


pytestmark = [pytest.mark.conformance, pytest.mark.usefixtures("isolated")]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no way to ask the hub; the cache's folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def tasks(isolated: None) -> list[LocalTask]:
    return load_tasks(TASKS)


@pytest.fixture(scope="module")
def subjects(tasks: list[LocalTask], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    made = small_subjects(tmp_path_factory.mktemp("checkpoints"), tasks, size="tiny", steps=TRAINING_STEPS)
    return {subject.ours.name: subject for subject in made}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


@pytest.fixture
def mamba_folder(subjects: dict[str, Subject], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(subjects["mamba"].ours, tmp_path / "mamba")


def requests_of(pairs: list[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=0) for pair in pairs]


def nats_of(lm: Any, pairs: list[tuple[str, str]] = PAIRS) -> list[float]:
    return [nats for nats, _ in lm.loglikelihood(requests_of(pairs), disable_tqdm=True)]


# --------------------------------------------------------------------------------------------------
# lm-eval's own adapter


def test_items_metrics_whole_texts_and_greedy_texts_are_those_of_lm_eval(subject, tasks):
    rows = list(compare(subject, tasks, Settings(repeats=1, batch_size=5)))
    assert [row.task for row in rows] == [*TASKS, "whole texts", "greedy texts"]
    for row in rows:
        assert row.agrees, row
        assert row.requests >= 4 and row.tokens > 100
    assert all(row.tolerance == NATS for row in rows[: len(TASKS)])


def test_other_weights_do_not_agree(subjects, tasks):
    other = dataclasses.replace(subjects["gpt_neox"], ours=subjects["gpt_neox-trained"].ours)
    rows = {row.task: row for row in compare(other, tasks[:1], Settings(repeats=1))}
    assert not any(row.agrees for row in rows.values()), rows


def test_the_trained_model_is_away_from_chance(subjects, tasks):
    """Without this, agreement might only be that of two near-uniform distributions."""
    hellaswag = [task for task in tasks if task.name == "hellaswag"]
    found = []
    for name in ("gpt_neox", "gpt_neox-trained"):
        row = next(compare(subjects[name], hellaswag, Settings(repeats=1)))
        found.append(dict(part.split("=") for part in row.metrics.split()))
    assert float(found[0]["acc"]) <= 0.5 and float(found[1]["acc"]) >= 0.6  # chance is a quarter


def test_answers_flags_and_tokens_of_odd_requests_are_those_of_lm_eval(subject):
    ours, theirs = our_lm(subject, "cpu", 3), hflm(subject, "cpu", 3)
    texts = [context + answer for context, answer in PAIRS]
    assert [ours.tok_encode(text) for text in texts] == [theirs.tok_encode(text) for text in texts]
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
    assert ours.max_length == theirs.max_length
    for a, b in zip(
        ours.loglikelihood(requests_of(PAIRS), disable_tqdm=True),
        theirs.loglikelihood(requests_of(PAIRS), disable_tqdm=True),
        strict=True,
    ):
        assert a[0] == pytest.approx(b[0], abs=NATS) and a[1] == b[1]
    assert ours.take_counts().truncated == 0


def test_a_context_that_is_too_long_is_cut_as_lm_eval_cuts_it_and_counted(subject):
    ours, theirs = our_lm(subject, "cpu", 4, max_length=24), hflm(subject, "cpu", 4, max_length=24)
    assert nats_of(ours) == pytest.approx(nats_of(theirs), abs=NATS)
    counts = ours.take_counts()
    too_long = sum(len(theirs.tok_encode(c.rstrip() + a)) - 1 > 24 for c, a in PAIRS)
    assert 1 <= too_long < len(PAIRS) and (counts.truncated, counts.requests) == (too_long, len(PAIRS))


def test_a_tokenizer_that_adds_a_first_token_adds_it_once(subjects):
    lm = our_lm(subjects["llama"], "cpu", 1)
    first = lm.prefix_token_id
    assert lm.tok_encode("a text")[0] == first != lm.tok_encode("a text", add_special_tokens=False)[0]
    assert lm.tok_encode("<s>a text") == lm.tok_encode("a text")
    assert first != lm.eot_token_id


def test_mamba_in_both_formats_gives_the_same_scores(subjects):
    assert nats_of(our_lm(subjects["mamba-ssm"], "cpu", 4)) == nats_of(our_lm(subjects["mamba"], "cpu", 4))


# --------------------------------------------------------------------------------------------------
# Batches


def test_answers_depend_neither_on_batch_size_nor_on_order(subject):
    lm = our_lm(subject, "cpu", 1)
    reference = nats_of(lm)
    for budget in (TokenBudget(batch_size=3), TokenBudget(batch_size=64), TokenBudget(tokens=100), TokenBudget()):
        lm._budget = budget
        assert nats_of(lm) == pytest.approx(reference, abs=2e-4)
        assert nats_of(lm, PAIRS[::-1])[::-1] == nats_of(lm)  # to the last bit: the batches are the same


def test_generation_does_not_depend_on_its_neighbours(subject):
    lm = our_lm(subject, "cpu", 16)
    prompts = ["To be, or", "not to be", "", "Once upon a time", "To be, or"]
    requests = requests_of([(p, {"until": ["\n"], "max_gen_toks": 16}) for p in prompts], "generate_until")
    together = lm.generate_until(requests)
    assert together == [lm.generate_until([request])[0] for request in requests]
    assert together[0] == together[-1] and lm.take_counts().requests == 2 * len(prompts)


def test_an_answer_without_tokens_and_a_context_of_spaces(subjects):
    lm = our_lm(subjects["gpt_neox"], "cpu", 2)
    with pytest.raises(TaskError, match="no token of its own"):
        lm.loglikelihood(requests_of([("context", "")]), disable_tqdm=True)
    assert nats_of(lm, [("  ", "word")]) == pytest.approx(nats_of(lm, [("", "  word")]), abs=NATS)


# --------------------------------------------------------------------------------------------------
# Which checkpoint, which tokenizer


def run(folder: Path | str, out: Path, **options: Any) -> list[dict[str, Any]]:
    chosen = {"tasks": ("piqa", "lambada_openai"), "device": "cpu", **options}
    return run_evaluation(EvalOptions(model=str(folder), out=out, **chosen))


def test_a_record_says_what_was_scored(subject, tmp_path):
    records = run(subject.ours, tmp_path, tokenizer=subject.tokenizer, max_length=48)
    trial, metrics = records[0]["trial"], records[0]["metrics"]
    assert records[0]["status"] == "ok", records[0]["error"]
    assert (trial["model"], trial["seq_len"], trial["batch"], trial["dtype"]) == (subject.ours.name, 48, 0, "float32")
    assert len(trial["protocol"]["checkpoint"]["sha256"]) == len(trial["protocol"]["tokenizer"]["sha256"]) == 64
    about = metrics["checkpoint"]
    assert about["format"] == ("mamba-ssm" if subject.ours.name == "mamba-ssm" else "transformers")
    assert about["tokenizer"] == Path(subject.tokenizer).name
    assert 0 < metrics["truncated"] <= metrics["requests"] == 16
    assert f"{metrics['truncated']}/16" in table(records)


def test_a_name_on_the_hub_is_read_from_its_cache_and_without_one_the_way_out_is_named(offline, mamba_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"owner/small: .*HF_HUB_OFFLINE.*pass the folder"):
        find_checkpoint("owner/small", tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = offline / "models--owner--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(mamba_folder, repo / "snapshots" / commit)
    checkpoint = find_checkpoint("owner/small", tmp_path)
    assert checkpoint.model == "owner/small" and not checkpoint.own
    assert checkpoint.sha256 == find_checkpoint(str(mamba_folder), tmp_path).sha256
    assert checkpoint.load_tokenizer().size <= checkpoint.load("cpu")[0].vocab_size


def test_mamba_ssm_needs_the_authors_tokenizer_and_says_so(offline, subjects, tmp_path):
    folder = subjects["mamba-ssm"].ours
    assert find_checkpoint(str(folder), tmp_path).tokenizer == MAMBA_SSM_TOKENIZER
    with pytest.raises(CheckpointError, match=MAMBA_SSM_TOKENIZER + ".*--tokenizer FOLDER"):
        run(folder, tmp_path)
    assert not (tmp_path / "records.jsonl").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_before_anything_runs(subject, tmp_path):
    large = make_tokenizer([embedded_text()], vocab_size=700)
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"700 tokens, but the model knows 512.*--tokenizer"):
        run(subject.ours, tmp_path / "out", tokenizer=str(tmp_path / "large"))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_far_fewer_tokens_is_refused_too(subjects, tmp_path):
    small = make_tokenizer([embedded_text()], vocab_size=300)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"300 tokens, but the model knows 512.*--tokenizer"):
        run(subjects["mamba"].ours, tmp_path / "out", tokenizer=str(tmp_path / "small"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("tokens", "vocab_size"), [(12, 16), (50_277, 50_280), (50_295, 51_200), (259, 320)])
def test_a_padded_vocabulary_fits(tokens, vocab_size):
    check_vocabulary(types.SimpleNamespace(name="some", size=tokens), vocab_size)


def test_absent_and_damaged_tokenizers_are_named(mamba_folder, tmp_path):
    (mamba_folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no tokenizer can be read from .*mamba.*--tokenizer"):
        run(mamba_folder, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mamba_folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"mamba has no tokenizer.*--tokenizer"):
        run(mamba_folder, tmp_path)
    with pytest.raises(CheckpointError, match=r"/nowhere/at/all: no such folder"):
        run(mamba_folder, tmp_path, tokenizer="/nowhere/at/all")


def test_a_tokenizer_without_special_tokens_is_refused(mamba_folder, tmp_path):
    path = mamba_folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in ("bos_token", "eos_token")}))
    with pytest.raises(CheckpointError, match=r"names no eos_token and no bos_token"):
        run(mamba_folder, tmp_path)


def test_code_of_a_checkpoint_is_not_run_unasked(mamba_folder, tmp_path):
    path = mamba_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    (mamba_folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        run(mamba_folder, tmp_path)


def test_a_byte_model_takes_no_tokenizer(tmp_path):
    save_checkpoint(build_model("mamba-tiny", vocab_size=256), tmp_path / "own", name="mamba-tiny")
    with pytest.raises(CheckpointError, match=r"--tokenizer x/y.*bytes"):
        find_checkpoint(str(tmp_path / "own"), tmp_path, tokenizer="x/y")


def test_every_shard_and_the_configuration_are_part_of_a_checkpoints_identity(mamba_folder, tmp_path):
    before = find_checkpoint(str(mamba_folder), tmp_path).sha256
    path = mamba_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_epsilon": 1e-3}))
    after = find_checkpoint(str(mamba_folder), tmp_path).sha256
    weights = mamba_folder / "model.safetensors"
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name in shards.values():
        shutil.copy(weights, mamba_folder / name)
    weights.unlink()
    (mamba_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    sharded = find_checkpoint(str(mamba_folder), tmp_path).sha256
    second = mamba_folder / shards["b"]
    second.write_bytes(second.read_bytes() + b"x")
    assert len({before, after, sharded, find_checkpoint(str(mamba_folder), tmp_path).sha256}) == 4


def test_bfloat16_is_another_result_near_the_first(subjects, tmp_path):
    folder = subjects["gpt_neox-trained"].ours
    wide, half = (run(folder, tmp_path, tasks=("piqa",), dtype=dtype)[0] for dtype in ("float32", "bfloat16"))
    assert wide["trial_id"] != half["trial_id"] and half["trial"]["dtype"] == "bfloat16"
    assert half["metrics"]["answered_before"] == 0  # answers of another dtype are not taken
    bits = [record["metrics"]["bits_per_byte"]["value"] for record in (wide, half)]
    assert bits[0] != bits[1] and bits[1] == pytest.approx(bits[0], rel=0.05)
