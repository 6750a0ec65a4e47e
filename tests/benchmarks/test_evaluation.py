"""Zero-shot evaluation: the adapter against direct computation, the tasks' prompts, and the command.

Shape suffixes: L sequence length, V vocabulary.
"""

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cli import main
from benchmarks.evaluation import formats, summary
from benchmarks.evaluation.adapter import EvalLM
from benchmarks.evaluation.batching import TokenBudget
from benchmarks.evaluation.checkpoints import find_checkpoint
from benchmarks.evaluation.formats import to_document
from benchmarks.evaluation.lines import Line
from benchmarks.evaluation.lm_harness import Instance
from benchmarks.evaluation.local_tasks import LocalTask, load_tasks
from benchmarks.evaluation.run import EvalOptions, run_evaluation
from benchmarks.evaluation.tokenizers import NEWLINE, ByteTokenizer
from models import SequenceModel, build_model
from models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tasks import Provenance, TaskError

NAMES = ("mamba-tiny", "transformer-tiny", "s4d-tiny")
TOLERANCE = dict(rel=1e-5, abs=2e-3)
PAIRS = [
    ("The cat sat on the", " mat"),
    ("Größe", " ist relativ"),
    ("", "an empty context"),
    ("spaces move over   ", "to the answer"),
    ("x", "y"),
    ("A long context. " * 12, "end"),
    ("The cat sat on the", " sofa, and stayed"),
]
_ROOT = Path(__file__).resolve().parents[2]
_NAMED = os.environ.get("SEQBENCH_DATA")
DATA = Path(_NAMED) if _NAMED else _ROOT.parent / "shared" / "data"


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``results/runs`` with a checkpoint of every tiny model: random weights, spread so that answers differ."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        model = build_model(name, vocab_size=256, seed=3)
        with torch.no_grad():
            model.backbone.embedding.weight.mul_(10)
            for key, parameter in model.named_parameters():
                if key.endswith(("out_proj.weight", "fc2.weight")):
                    parameter.mul_(8)
        save_checkpoint(model, checkpoint_of(folder, name), name=name, about={"task": "language", "steps": 0})
    return folder


def checkpoint_of(runs: Path, name: str) -> Path:
    return runs / "quick" / "checkpoints" / f"{name}-language-0123456789ab"


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, runs: Path) -> SequenceModel:
    return load_checkpoint(checkpoint_of(runs, request.param))[0]


@pytest.fixture
def mamba(runs: Path) -> SequenceModel:
    return load_checkpoint(checkpoint_of(runs, "mamba-tiny"))[0]


@pytest.fixture(scope="module")
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no real data: neither SEQBENCH_DATA nor {DATA}")
    return DATA


def byte_lm(model: SequenceModel, *, batch_size: int = 16, **options: Any) -> EvalLM:
    return EvalLM(model, ByteTokenizer(), budget=TokenBudget(batch_size=batch_size), **options)


def requests_of(pairs: list[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=0) for pair in pairs]


@torch.no_grad()
def direct(model: SequenceModel, context: bytes, continuation: bytes) -> tuple[float, bool]:
    """One item alone, every logit made, nothing padded."""
    ids_L = torch.tensor(list(context + continuation))
    logp_LV = model(ids_L[None, :-1])[0].double().log_softmax(-1)
    chosen = range(len(context) - 1, len(ids_L) - 1)
    nats = sum(float(logp_LV[i, ids_L[i + 1]]) for i in chosen)
    return nats, all(int(logp_LV[i].argmax()) == int(ids_L[i + 1]) for i in chosen)


def test_loglikelihood_is_that_of_a_direct_forward_pass(model):
    lm = byte_lm(model, batch_size=4)
    for (context, continuation), (nats, greedy) in zip(PAIRS, lm.loglikelihood(requests_of(PAIRS)), strict=True):
        expected = direct(model, context.encode() or bytes([NEWLINE]), continuation.encode())
        if context.endswith(" "):  # lm-eval scores the context's last spaces as part of the answer
            stripped = context.rstrip()
            expected = direct(model, stripped.encode(), (context[len(stripped) :] + continuation).encode())
        assert nats == pytest.approx(expected[0], **TOLERANCE)
        assert greedy == expected[1]
    assert lm.take_counts().truncated == 0


def test_these_models_listen_to_their_context(model):
    """Without this, the other tests would show little."""
    one, other = (direct(model, context, b"!")[0] for context in (b"a word, then 12345", b"a word, then 72345"))
    assert abs(one - other) > 0.01


def test_the_greedy_flag_is_set_by_a_greedy_continuation(model):
    lm = byte_lm(model)
    (first,) = _greedy(model, b"Once upon a time", 1)
    context = "Once upon a time"
    scores = lm._loglikelihood_tokens(
        [((context, ""), list(context.encode()), [token]) for token in (first, first ^ 1)]
    )
    assert [greedy for _, greedy in scores] == [True, False]


def test_results_depend_neither_on_batch_size_nor_on_order(model):
    reference = byte_lm(model, batch_size=1).loglikelihood(requests_of(PAIRS))
    for batch_size in (2, 3, 64):
        answers = byte_lm(model, batch_size=batch_size).loglikelihood(requests_of(PAIRS))
        assert [a for a, _ in answers] == pytest.approx([a for a, _ in reference], **TOLERANCE)
        assert [g for _, g in answers] == [g for _, g in reference]
        backwards = byte_lm(model, batch_size=batch_size).loglikelihood(requests_of(PAIRS[::-1]))
        assert backwards[::-1] == answers  # to the last bit: the batches are the same


def test_a_context_that_is_too_long_loses_its_beginning_and_is_counted(model):
    lm = byte_lm(model, max_length=40)
    context, continuation = "0123456789" * 7, " end"
    answers = lm.loglikelihood(requests_of([(context, continuation), ("short", continuation)]))
    kept = (context + continuation).encode()[-41:]
    assert answers[0][0] == pytest.approx(direct(model, kept[:-4], kept[-4:])[0], **TOLERANCE)
    counts = lm.take_counts()
    assert (counts.requests, counts.truncated) == (2, 1)
    assert lm.take_counts().requests == 0
    with pytest.raises(TaskError, match=r"60 bytes.*max length 40.*--max-length"):
        lm.loglikelihood(requests_of([("c", "x" * 60)]))


def test_a_context_that_just_fits_is_not_counted(mamba):
    lm = byte_lm(mamba, max_length=10)
    lm.loglikelihood(requests_of([("1234567", "8901"), ("12345678", "9012")]))
    assert lm.take_counts().truncated == 1


@pytest.mark.parametrize("num_bytes", [1, 31, 32, 33, 150])
def test_rolling_scores_every_byte_once_in_disjoint_windows(model, num_bytes):
    text = ("All happy families are alike. " * 6)[:num_bytes].encode()
    lm = byte_lm(model, max_length=32)
    (nats,) = lm.loglikelihood_rolling(requests_of([(text.decode(),)], "loglikelihood_rolling"))
    behind = bytes([NEWLINE]) + text
    expected = 0.0
    for start in range(0, num_bytes, 32):
        stretch = text[start : start + 32]
        num_context = 1 if start == 0 else 33 - len(stretch)
        expected += direct(model, behind[start + 1 - num_context : start + 1], stretch)[0]
    assert nats == pytest.approx(expected, **TOLERANCE)
    assert lm.take_counts().truncated == 0


@torch.no_grad()
def _greedy(model: SequenceModel, prompt: bytes, num_new: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_new):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_generation_from_the_state_is_greedy_decoding(model):
    prompts = ["To be, or", "not to be", "a longer prompt than those"]
    lm = byte_lm(model, batch_size=2)
    options = {"until": [], "max_gen_toks": 24, "do_sample": False}
    texts = lm.generate_until(requests_of([(p, options) for p in prompts], "generate_until"))
    expected = [bytes(_greedy(model, p.encode(), 24)) for p in prompts]
    assert texts == [e.decode(errors="replace") for e in expected]


def test_generation_stops_before_the_first_stop_string(mamba, monkeypatch):
    bigram = {ord("a"): ord("b"), ord("b"): ord("c"), ord("c"): ord("d"), ord("d"): ord("a")}

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([bigram[int(i)] for i in ids]), 256).float()

    monkeypatch.setattr(mamba, "prefill", lambda ids, states: logits(ids[:, -1]))
    monkeypatch.setattr(mamba, "step", lambda ids, states: logits(ids))
    cases = [({"until": ["da", "cda"]}, "b"), ({"until": "d"}, "bc"), ({"until": ["zz"], "max_gen_toks": 5}, "bcdab")]
    answers = byte_lm(mamba).generate_until(requests_of([("xa", o) for o, _ in cases], "generate_until"))
    assert answers == [text for _, text in cases]
    with pytest.raises(TaskError, match="do_sample"):
        byte_lm(mamba).generate_until(requests_of([("a", {"do_sample": True})], "generate_until"))


def test_a_long_prompt_of_a_generation_is_cut_and_counted(model):
    lm = byte_lm(model, max_length=20)
    prompt = "0123456789" * 4
    (text,) = lm.generate_until(requests_of([(prompt, {"max_gen_toks": 8})], "generate_until"))
    assert text == bytes(_greedy(model, prompt.encode()[-12:], 8)).decode(errors="replace")
    assert lm.take_counts().truncated == 1


def test_a_model_of_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"bytes has 256 tokens, but the model knows 5.*--tokenizer"):
        byte_lm(build_model("mamba-tiny", vocab_size=5))
    save_checkpoint(build_model("mamba-tiny", vocab_size=5), tmp_path / "dna", name="mamba-tiny", about={"task": "dna"})
    with pytest.raises(CheckpointError, match=r"5 symbols trained on dna.*256"):
        find_checkpoint(str(tmp_path / "dna"), tmp_path)
    audio = build_model("mamba-tiny", vocab_size=256)
    save_checkpoint(audio, tmp_path / "audio", name="mamba-tiny", about={"task": "audio"})
    with pytest.raises(CheckpointError, match="trained on audio"):
        find_checkpoint(str(tmp_path / "audio"), tmp_path)


def prompts_of(task: str, *items: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """lm-eval's requests for items given as lines of a file."""
    documents = tuple(to_document(task, Line(place="here", fields=item)) for item in items)
    built = LocalTask(name=task, documents=documents, provenance=Provenance(name="x", kind="user")).build()
    built.build_all_requests()
    grouped: dict[int, list[tuple[str, str]]] = {}
    for instance in built.instances:
        grouped.setdefault(instance.doc_id, []).append(instance.args)
    return list(grouped.values())


QUESTION = {"query": "Question: Why?\n", "choices": ["Because.", "Never."], "gold": 1}
HUB_CHOICES = {"choices": {"text": ["Because.", "Never."], "label": ["1", "2"]}, "answerKey": "2"}
PROMPTS = {
    "lambada_openai": (
        [{"context": "He rang the", "continuation": "bell"}, {"text": "He rang the bell"}],
        [("He rang the", " bell")],
    ),
    "hellaswag": (
        [
            {"activity_label": "Sport", "ctx_a": "A man runs.", "ctx_b": "he", "endings": ["wins.", "eats [step] it."],
             "label": 0},
            {"query": "Sport: A man runs. He", "choices": ["wins.", "eats it."], "gold": 0},
        ],
        [("Sport: A man runs. He", " wins."), ("Sport: A man runs. He", " eats it.")],
    ),
    "piqa": (
        [{"goal": "Why?", "sol1": "Because.", "sol2": "Never.", "label": "1"}, QUESTION],
        [("Question: Why?\nAnswer:", " Because."), ("Question: Why?\nAnswer:", " Never.")],
    ),
    "arc_easy": (
        [QUESTION, {"question": "Why?", **HUB_CHOICES}],
        [("Question: Why?\nAnswer:", " Because."), ("Question: Why?\nAnswer:", " Never.")],
    ),
    "arc_challenge": (
        [QUESTION],
        [("Question: Why?\nAnswer:", " Because."), ("Question: Why?\nAnswer:", " Never.")],
    ),
    "openbookqa": (
        [{**QUESTION, "query": "The sun is"}, {"question_stem": "The sun is", **HUB_CHOICES}],
        [("The sun is", " Because."), ("The sun is", " Never.")],
    ),
    "winogrande": (
        [
            {"sentence": "The cat, not the _ , slept.", "option1": "rat", "option2": "robin", "answer": "2"},
            {"context_options": ["The cat, not the rat", "The cat, not the robin"], "continuation": ", slept.",
             "gold": 1},
        ],
        [("The cat, not the rat", " , slept."), ("The cat, not the robin", " , slept.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", PROMPTS)
def test_every_form_of_a_line_gives_the_harness_its_own_prompt(task):
    items, expected = PROMPTS[task]
    for prompts in prompts_of(task, *items):
        assert prompts == expected


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("piqa", '{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}\n{"goal": "g"\n', r"line 2: not a JSON object"),
        ("piqa", '{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}\n', r"line 1: 'label' is 2.*0\.\.1"),
        ("piqa", '\n{"goal": "g", "sol1": "", "sol2": "b", "label": 0}\n', r"line 2: 'sol1' is ''"),
        ("piqa", '{"goal": "g", "sol1": "a", "sol2": "b"}\n', r"line 1: has the keys.*needs.*labels\.lst"),
        ("piqa", "[1, 2]\n", r"line 1: a JSON list"),
        ("piqa", "\n\n", r"no items"),
        ("arc_easy", '{"query": "q", "choices": ["a"], "gold": 0}\n', r"line 1: 'choices'.*two or more"),
        ("lambada_openai", '{"text": "alone"}\n', r"line 1: 'alone' is not one last word"),
        ("lambada_openai", '{"context": "a b", "continuation": "c d"}\n', r"line 1: 'c d' is not one"),
        ("lambada_openai", '{"text": "a \\ud800"}\n', r"line 1: 'text' holds half of a surrogate pair"),
        ("winogrande", '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}\n', r"line 1: .*no '_'"),
    ],
)
def test_a_malformed_line_names_file_and_line_before_any_model_is_loaded(runs, tmp_path, task, content, message):
    path = tmp_path / f"{task}.jsonl"
    path.write_text(content)
    folder = checkpoint_of(tmp_path, "mamba-tiny")
    save_checkpoint(build_model("mamba-tiny", vocab_size=256), folder, name="mamba-tiny")
    (folder / "model.pt").write_bytes(b"corrupt: loading it would be another error")
    options = EvalOptions(model=str(folder), tasks=(task,), device="cpu", out=tmp_path / "out", sources={task: path})
    with pytest.raises(TaskError, match=message) as error:
        run_evaluation(options)
    assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_labels_beside_the_items_are_read_and_must_fit(tmp_path):
    item = {"goal": "g", "sol1": "a", "sol2": "b"}
    (tmp_path / "valid.jsonl").write_text(f"{json.dumps(item)}\n" * 2)
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    (tmp_path / "tests.jsonl").write_text(json.dumps(item))
    (task,) = load_tasks(["piqa"], sources={"piqa": tmp_path})
    assert [document["label"] for document in task.documents] == [1, 0]
    (tmp_path / "valid-labels.lst").write_text("1\n")
    with pytest.raises(TaskError, match="1 labels for 2 items"):
        load_tasks(["piqa"], sources={"piqa": tmp_path})


def test_unknown_and_absent_tasks_say_what_to_do(tmp_path):
    with pytest.raises(TaskError, match=r"'helaswag'.*did you mean hellaswag"):
        load_tasks(["helaswag"])
    with pytest.raises(TaskError, match="not among --tasks piqa"):
        load_tasks(["piqa"], sources={"hellaswag": tmp_path})


def test_a_model_is_found_by_name_or_folder(runs, tmp_path):
    assert find_checkpoint("s4d-tiny", runs).folder == checkpoint_of(runs, "s4d-tiny")
    newer = checkpoint_of(tmp_path, "s4d-tiny").with_name("s4d-tiny-language-ffff")
    for folder, age in ((checkpoint_of(tmp_path, "s4d-tiny"), 1e6), (newer, 2e6)):
        save_checkpoint(build_model("s4d-tiny", vocab_size=256), folder, name="s4d-tiny")
        os.utime(folder / "model.pt", (age, age))
    assert find_checkpoint("s4d-tiny", tmp_path).folder == newer
    with pytest.raises(CheckpointError, match="seqbench run quick --tasks language --models transformer"):
        find_checkpoint("transformer-tiny", tmp_path)
    with pytest.raises(ValueError, match="did you mean mamba-tiny"):
        find_checkpoint("mamba-tny", tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        find_checkpoint(str(tmp_path), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_four_tasks_on_real_items(runs, tmp_path, real_data, name):
    tasks = ("lambada_openai", "hellaswag", "piqa", "arc_easy")
    options = EvalOptions(model=name, tasks=tasks, device="cpu", out=tmp_path, runs=runs, data_root=real_data, limit=5)
    records = run_evaluation(options)
    assert [r["trial"]["task"] for r in records] == list(tasks)
    for record in records:
        check_record(record, tmp_path, n=5)
        assert record["trial"]["protocol"]["source"]["kind"] == "files"
    assert {"perplexity"} <= set(records[0]["metrics"]) and "acc_norm" not in records[0]["metrics"]
    assert all("acc_norm" in r["metrics"] for r in records[1:])
    assert [r["metrics"]["requests"] for r in records] == [5, 20, 10, 20]


def check_record(record: dict[str, Any], out: Path, *, n: int) -> None:
    trial, metrics = record["trial"], record["metrics"]
    assert record["status"] == "ok", record.get("error")
    assert (trial["kind"], trial["direction"], trial["seed"]) == ("eval", "forward", 0)
    assert {"checkpoint", "source", "limit", "lm_eval"} <= set(trial["protocol"])
    assert len(trial["protocol"]["checkpoint"]["sha256"]) == len(trial["protocol"]["source"]["sha256"]) == 64
    accuracy = metrics["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1 and accuracy["n"] == metrics["n"] == n
    assert metrics["tokens_per_s"] > 0 and metrics["peak_rss_bytes"] > 0 and metrics["params"] > 0
    items = [json.loads(line) for line in (out / metrics["items"]).read_text().splitlines()]
    assert sum(item["acc"] for item in items) == round(accuracy["value"] * n)
    if "acc_norm" in metrics:
        best = [item["loglikelihood"].index(max(item["loglikelihood"])) for item in items]
        assert [item["acc"] for item in items] == [int(b == item["gold"]) for b, item in zip(best, items, strict=True)]


def test_embedded_items_one_record_a_task_and_resume(runs, tmp_path, monkeypatch):
    options = EvalOptions(model="mamba-tiny", tasks=("piqa", "lambada_openai"), device="cpu", out=tmp_path, runs=runs)
    records = run_evaluation(options)
    for record in records:
        check_record(record, tmp_path, n=8)
        assert record["trial"]["protocol"]["source"]["kind"] == "embedded"
    lambada = records[1]["metrics"]
    items = [json.loads(line) for line in (tmp_path / lambada["items"]).read_text().splitlines()]
    nats = [item["loglikelihood"][0] for item in items]
    assert lambada["perplexity"]["value"] == pytest.approx(float(torch.tensor(nats).double().mean().neg().exp()))
    assert lambada["perplexity"]["stderr"] > 0

    path = tmp_path / "records.jsonl"
    written = path.read_text()
    assert len(written.splitlines()) == 2
    path.write_text(written.splitlines()[0] + '\n{"torn')  # a kill in the second task
    again = run_evaluation(options)
    assert [r["trial_id"] for r in again] == [r["trial_id"] for r in records]
    assert again[1]["metrics"]["perplexity"] == lambada["perplexity"]
    assert len(path.read_text().splitlines()) == 2
    monkeypatch.setattr("benchmarks.evaluation.checkpoints.load_pretrained", None)  # nothing is left to do
    assert [r["metrics"] for r in run_evaluation(options)] == [r["metrics"] for r in again]
    assert summary.table(again).splitlines()[1].startswith("piqa")


def test_a_task_that_cannot_be_scored_is_recorded_and_the_others_go_on(runs, tmp_path):
    lines = tmp_path / "items.jsonl"
    item = {"goal": "g", "sol1": "a", "sol2": "b" * 200, "label": 0}
    lines.write_text(json.dumps(item) + "\n")
    options = EvalOptions(
        model="s4d-tiny", tasks=("piqa", "lambada_openai"), device="cpu", out=tmp_path / "out", runs=runs,
        sources={"piqa": lines}, max_length=100,
    )  # fmt: skip
    records = run_evaluation(options)
    assert [r["status"] for r in records] == ["unsupported", "ok"]
    assert "--max-length" in records[0]["error"]["message"] and "accuracy" not in records[0]["metrics"]
    assert records[1]["metrics"]["truncated"] == 8
    assert "piqa: unsupported: " in summary.table(records)


def test_weights_that_have_diverged_are_an_error_and_no_score(tmp_path):
    model = build_model("s4d-tiny", vocab_size=256)
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(float("nan"))
    save_checkpoint(model, tmp_path / "checkpoint", name="s4d-tiny")
    options = EvalOptions(model=str(tmp_path / "checkpoint"), tasks=("piqa",), device="cpu", out=tmp_path / "out")
    (record,) = run_evaluation(options)
    assert record["status"] == "error" and record["error"]["type"] == "NonFiniteScore"
    assert "accuracy" not in record["metrics"]


def test_winogrande_takes_its_answer_from_the_document(runs, tmp_path):
    path = tmp_path / "items.jsonl"
    item = {"context_options": ["I saw the cat because it", "I saw the dog because it"], "continuation": "3", "gold": 1}
    path.write_text(json.dumps(item) + "\n")
    options = EvalOptions(
        model="mamba-tiny", tasks=("winogrande",), device="cpu", out=tmp_path / "out", runs=runs,
        sources={"winogrande": path},
    )  # fmt: skip
    (record,) = run_evaluation(options)
    assert record["status"] == "ok", record.get("error")
    (line,) = (tmp_path / "out" / record["metrics"]["items"]).read_text().splitlines()
    outcome = json.loads(line)
    assert outcome["gold"] == 1
    assert outcome["acc"] == int(outcome["loglikelihood"][1] > outcome["loglikelihood"][0])
    # One item has no interval: an absent figure is absent.
    assert set(record["metrics"]["bits_per_byte"]) == {"value", "n"}


def test_the_ratios_interval_covers():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        num_bytes = torch.randint(2, 12, (60,), generator=generator)
        noise = torch.randn(60, generator=generator)
        nats = -(num_bytes * 1.5 + noise)  # 1.5 nats a byte, and noise that is shared within an answer
        estimate = summary.bits_per_byte(list(zip(nats.tolist(), num_bytes.tolist(), strict=True)))
        covered += estimate.low <= 1.5 / 0.6931471805599453 <= estimate.high
    assert 0.91 <= covered / 300 <= 0.985


def test_doctests():
    for module in (summary, formats):
        assert doctest.testmod(module).failed == 0


def test_the_command_prints_a_table_and_reports_take_no_notice(
    seqbench: Callable[..., subprocess.CompletedProcess[str]], runs: Path, tmp_path: Path, monkeypatch, capsys
):
    folder = checkpoint_of(runs, "mamba-tiny")
    result = seqbench("eval", "--model", folder, "--tasks", "piqa,lambada_openai", "--limit", 4, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split()[:3] == ["task", "data", "n"]
    assert [row.split()[:3] for row in rows] == [["piqa", "embedded", "4"], ["lambada_openai", "embedded", "4"]]
    assert (tmp_path / "results/runs/eval/records.jsonl").is_file()
    report = seqbench("report", "results/runs", "--out", "report")
    assert report.returncode == 0, report.stderr

    monkeypatch.chdir(tmp_path / "report")  # where no checkpoint lies
    for words, message in (
        (("--model", str(folder), "--tasks", "piqaa"), "did you mean piqa"),
        (("--model", "mamba-tiny", "--tasks", "piqa"), "seqbench run quick --tasks language --models mamba"),
    ):
        assert main(["eval", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_help_of_eval_is_without_torch(environment):
    code = (
        "import sys, benchmarks.cli\n"
        "try: benchmarks.cli.main(['eval', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'lm_eval', 'datasets'}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "--model" in result.stdout and "--max-length" in result.stdout
    assert result.stderr.strip() == "[]"
