"""Zero-shot evaluation as it runs: batch sizes, kept answers, a kill half-way, and what it relies on in lm-eval."""

import inspect
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from benchmarks.evaluation import lm_harness, run
from benchmarks.evaluation.adapter import EvalLM
from benchmarks.evaluation.batching import MAX_ROWS, TokenBudget
from benchmarks.evaluation.response_cache import ResponseCache
from benchmarks.evaluation.run import EvalOptions, run_evaluation
from benchmarks.evaluation.tokenizers import ByteTokenizer
from models import SequenceModel, build_model
from models.checkpoint import save_checkpoint
from tasks import TaskError

ROOT = Path(__file__).resolve().parents[2]


pytestmark = [pytest.mark.conformance, pytest.mark.usefixtures("isolated")]


# --------------------------------------------------------------------------------------------------
# Batch sizes


def batches(budget: TokenBudget, lengths: Sequence[int], fits: int) -> list[list[int]]:
    """The batches of requests of these lengths, on a machine that has room for ``fits`` padded tokens."""
    done: list[list[int]] = []

    def work(batch: Sequence[int]) -> None:
        if len(batch) * max(batch) > fits:
            raise torch.OutOfMemoryError("out of memory")
        done.append(list(batch))

    budget.run(lengths, lambda length: length, work)
    return done


def test_batches_hold_near_equal_lengths_within_the_budget():
    lengths = [7, 100, 1, 30, 31, 29, 100, 2] * 5
    done = batches(TokenBudget(tokens=200), lengths, fits=200)
    assert sorted(length for batch in done for length in batch) == sorted(lengths)
    flat = [length for batch in done for length in batch]
    assert flat == sorted(lengths, reverse=True)
    assert all(len(batch) * batch[0] <= 200 for batch in done)
    # No batch could have taken the first request of the next one.
    assert all((len(a) + 1) * a[0] > 200 for a, _ in pairwise(done))


def test_kernels_are_looked_at_as_they_run_without_gradients():
    model = build_model("mamba-tiny", vocab_size=256, seed=0)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    assert run._backend(model, "float32", torch.device("cpu"))["precision"] == "float32"
    assert seen == [False]


def test_out_of_memory_halves_the_budget_for_good_and_nothing_is_lost():
    budget = TokenBudget(tokens=10_000)
    lengths = [10] * 300
    done = batches(budget, lengths, fits=500)
    assert sum(map(len, done)) == 300 and 250 <= budget.tokens <= 500
    assert all(len(batch) <= 50 for batch in done)
    assert len(batches(budget, [10] * 20, fits=500)) == 1


def test_what_does_not_fit_alone_or_in_a_given_batch_size_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        batches(TokenBudget(tokens=10_000), [600], fits=500)
    with pytest.raises(torch.OutOfMemoryError):
        batches(TokenBudget(batch_size=16), [100] * 16, fits=500)
    assert [len(batch) for batch in batches(TokenBudget(batch_size=3), [1] * 7, fits=500)] == [3, 3, 1]
    assert TokenBudget(tokens=10**9).rows(1) == MAX_ROWS and TokenBudget(tokens=10).rows(1000) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def work(batch: Sequence[int]) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        TokenBudget().run([1, 2], lambda length: length, work)


# --------------------------------------------------------------------------------------------------
# Kept answers


def test_answers_are_there_after_reopening_and_belong_to_one_identity(tmp_path):
    first = ResponseCache(tmp_path, {"weights": "a"})
    first.add([(("loglikelihood", (1, 2), (3,)), [-1.25, True]), (("generate_until", (1,), 4, ("x",)), "text")])
    again = ResponseCache(tmp_path, {"weights": "a"})
    assert again.get(("loglikelihood", (1, 2), (3,))) == [-1.25, True]
    assert again.get(("generate_until", (1,), 4, ("x",))) == "text"
    assert again.get(("loglikelihood", (1,), (2, 3))) is None
    assert len(again) == 2 and len(ResponseCache(tmp_path, {"weights": "b"})) == 0


def test_a_log_likelihood_is_kept_to_the_last_bit(tmp_path):
    values = torch.randn(50, dtype=torch.float64).tolist()
    ResponseCache(tmp_path, {}).add([((i,), [value, False]) for i, value in enumerate(values)])
    again = ResponseCache(tmp_path, {})
    assert [again.get((i,))[0] for i in range(50)] == values


@pytest.mark.parametrize("cut", [1, 5, 30, 70])
def test_a_torn_line_costs_its_own_answer_alone(tmp_path, cut):
    cache = ResponseCache(tmp_path, {})
    cache.add([((i,), [float(i), True]) for i in range(3)])
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:-cut])
    again = ResponseCache(tmp_path, {})
    lost = 1 if cut < len(content.splitlines(keepends=True)[-1]) else 2
    # A line that lacks but its end is whole.
    assert len(again) == 3 - (lost if cut > 1 else 0)
    again.add([((9,), [9.0, True])])
    assert ResponseCache(tmp_path, {}).get((9,)) == [9.0, True]


def test_a_file_torn_within_its_first_line_begins_anew(tmp_path):
    path = ResponseCache(tmp_path, {"weights": "a"}).path
    path.write_bytes(path.read_bytes()[:9])
    cache = ResponseCache(tmp_path, {"weights": "a"})
    cache.add([((1,), "x")])
    assert ResponseCache(tmp_path, {"weights": "a"}).get((1,)) == "x"


def test_a_folder_that_cannot_be_made_names_the_ways_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match=r"--out.*--no-cache"):
        ResponseCache(tmp_path / "file" / "responses", {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(build_model("mamba-tiny", vocab_size=256, seed=5), folder, name="mamba-tiny")
    return folder


def options(checkpoint: Path, out: Path, **changes: Any) -> EvalOptions:
    chosen = {"tasks": ("piqa",), "device": "cpu", "batch_size": 1, **changes}
    return EvalOptions(model=str(checkpoint), out=out, **chosen)


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of all forward passes of the suite's models."""
    seen: list[int] = []
    hidden = SequenceModel.hidden

    def counted(self: SequenceModel, ids_BL: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids_BL))
        return hidden(self, ids_BL)

    monkeypatch.setattr(SequenceModel, "hidden", counted)
    return seen


KILLED = """
import os, signal, sys
from itertools import pairwise
from pathlib import Path
from benchmarks.evaluation.run import EvalOptions, run_evaluation
from models import SequenceModel
passes, hidden = 0, SequenceModel.hidden
def killed(self, ids_BL):
    global passes
    passes += 1
    if passes == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return hidden(self, ids_BL)
SequenceModel.hidden = killed
run_evaluation(EvalOptions(model=sys.argv[1], tasks=("piqa",), device="cpu", batch_size=1, out=Path(sys.argv[2])))
"""


def test_a_kill_half_way_loses_nothing_that_was_answered(checkpoint, tmp_path, forward_passes):
    words = [sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "out" / "records.jsonl").read_text()

    (resumed,) = run_evaluation(options(checkpoint, tmp_path / "out"))
    # One pass looks which kernels run; of the seven before the kill it was one too.
    assert resumed["metrics"]["answered_before"] == 6 and len(forward_passes) == 1 + 16 - 6
    forward_passes.clear()
    (whole,) = run_evaluation(options(checkpoint, tmp_path / "other"))
    assert len(forward_passes) == 1 + 16 and whole["metrics"]["answered_before"] == 0
    items = [(tmp_path / out / r["metrics"]["items"]).read_text() for out, r in (("out", resumed), ("other", whole))]
    assert items[0] == items[1]
    for key in ("accuracy", "acc_norm", "bits_per_byte", "truncated", "requests", "n"):
        assert resumed["metrics"][key] == whole["metrics"][key]


def test_a_limit_is_lifted_without_asking_again(checkpoint, tmp_path, forward_passes):
    run_evaluation(options(checkpoint, tmp_path, limit=3))
    forward_passes.clear()
    (record,) = run_evaluation(options(checkpoint, tmp_path))
    assert record["metrics"]["answered_before"] == 6 and sum(forward_passes) == 1 + 10
    (tmp_path / "records.jsonl").unlink()
    (record,) = run_evaluation(options(checkpoint, tmp_path))
    assert record["metrics"]["answered_before"] == 16 and "tokens_per_s" not in record["metrics"]


def test_no_cache_keeps_and_uses_nothing(checkpoint, tmp_path, forward_passes):
    run_evaluation(options(checkpoint, tmp_path))
    (tmp_path / "records.jsonl").unlink()
    forward_passes.clear()
    (record,) = run_evaluation(options(checkpoint, tmp_path, use_cache=False))
    assert record["metrics"]["answered_before"] == 0 and sum(forward_passes) == 1 + 16
    run_evaluation(options(checkpoint, tmp_path / "new", use_cache=False))
    assert not (tmp_path / "new" / "responses").exists()


def test_answers_of_other_weights_tasks_and_items_are_not_taken(checkpoint, tmp_path):
    run_evaluation(options(checkpoint, tmp_path))
    other = tmp_path / "other-weights"
    save_checkpoint(build_model("mamba-tiny", vocab_size=256, seed=6), other, name="mamba-tiny")
    lines = tmp_path / "piqa.jsonl"
    lines.write_text(json.dumps({"goal": "g", "sol1": "a", "sol2": "b", "label": 0}) + "\n")
    run_evaluation(options(other, tmp_path))
    run_evaluation(options(checkpoint, tmp_path, tasks=("arc_easy",)))
    (record,) = run_evaluation(options(checkpoint, tmp_path, sources={"piqa": lines}))
    assert record["metrics"]["answered_before"] == 0
    headers = [json.loads(path.open().readline()) for path in (tmp_path / "responses").glob("*.jsonl")]
    assert len(headers) == 4
    named = {json.dumps(h["responses_of"]["checkpoint"]) + json.dumps(h["responses_of"]["task"]) for h in headers}
    assert len(named) == 4 and all(h["responses_of"]["task"]["version"] for h in headers)


# --------------------------------------------------------------------------------------------------
# lm-eval


def test_the_installed_lm_eval_is_within_the_pinned_range():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = [r for r in map(Requirement, lines) if r.name == "lm-eval"]
    assert pinned.specifier.contains(lm_harness.LM_EVAL_VERSION)
    bounds = {s.operator: s.version for s in pinned.specifier}
    assert bounds[">="] == "0.4.13" and "<" in bounds


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lm_harness.evaluate, {"lm", "task_dict", "limit", "bootstrap_iters"}),
        (lm_harness.get_rolling_token_windows, {"token_list", "prefix_token", "max_seq_len", "context_len"}),
        (lm_harness.make_disjoint_window, {"pair"}),
        (lm_harness.TemplateLM.loglikelihood, {"requests", "disable_tqdm"}),
        (lm_harness.TemplateLM._encode_pair, {"context", "continuation"}),
        (lm_harness.TemplateLM.tok_encode, {"string", "add_special_tokens"}),
        (lm_harness.Instance, {"request_type", "doc", "arguments", "idx", "metadata"}),
        (lm_harness.ConfigurableTask, {"config"}),
        (lm_harness.ConfigurableTask.build_all_requests, {"limit"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_lm_eval_has_the_functions_that_are_called(function, names):
    assert names <= set(inspect.signature(function).parameters)


def test_lm_eval_asks_what_the_adapter_answers_and_nothing_more():
    """A new abstract method, or a new way from text to tokens, would pass the adapter by."""
    assert not getattr(EvalLM, "__abstractmethods__", None)
    assert {"loglikelihood", "loglikelihood_rolling", "generate_until"} <= set(lm_harness.TemplateLM.__dict__)
    assert lm_harness.TemplateLM.backend == "causal" and lm_harness.TemplateLM.tokenizer is None
    seen: list[Any] = []

    class Recorder(lm_harness.TemplateLM):
        eot_token_id = 10
        loglikelihood_rolling = generate_until = None

        def tok_encode(self, string, add_special_tokens=None, **_):
            return list(string.encode())

        def _loglikelihood_tokens(self, requests, **_):
            seen.extend(requests)
            return [(0.0, True)] * len(requests)

    pairs = [("ab ", "cd"), ("", "xy")]
    requests = [lm_harness.Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
    Recorder().loglikelihood(requests, disable_tqdm=True)
    assert seen == [(("ab ", "cd"), list(b"ab"), list(b" cd")), (("", "xy"), [10], list(b"xy"))]


def test_lm_evals_own_cache_is_off():
    lm = EvalLM(build_model("s4d-tiny", vocab_size=256), ByteTokenizer())
    assert lm.cache_hook.dbdict is None


def test_every_task_has_a_version_and_evaluate_gives_what_records_are_made_of(checkpoint):
    from benchmarks.evaluation.local_tasks import load_tasks

    (task,) = load_tasks(["piqa"])
    built = task.build()
    assert built.VERSION is not None and not built.multiple_input
    lm = EvalLM(build_model("s4d-tiny", vocab_size=256), ByteTokenizer())
    answer = lm_harness.evaluate(lm=lm, task_dict={"tasks": {"piqa": built}, "groups": {}}, limit=2, bootstrap_iters=0)
    assert {"acc,none", "acc_norm,none"} <= set(answer["results"]["piqa"])
    sample = answer["samples"]["piqa"][0]
    assert {"doc_id", "doc", "doc_hash", "arguments", "filtered_resps", "acc"} <= set(sample)
