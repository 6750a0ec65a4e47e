"""The whole way, through the real command: plan, run, kill, resume, shard, report."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.plan import RunSettings
from benchmarks.run import RunOptions, planned_suite, run_suite
from benchmarks.suite_trials import Selection
from benchmarks.suites import load_suite
from harness import STATUSES, read_records
from harness.supervisor import Outcome

NUM_TRIALS = 14


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for path in folder.rglob("records.jsonl") for line in path.read_text().splitlines()]


def test_help_is_quick_and_imports_nothing_heavy(environment):
    code = (
        "import sys, benchmarks.cli\n"
        "try: benchmarks.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'pandas', 'matplotlib', 'numpy', 'pydantic'}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "usage: seqbench" in result.stdout
    assert result.stderr.strip() == "[]"


def test_run_measures_everything_once_and_resumes_to_nothing(seqbench, small_suite, tmp_path):
    out = tmp_path / "out"
    first = seqbench("run", small_suite, "--device", "cpu", "--out", out)
    assert first.returncode == 0, first.stderr
    records = lines_of(out)
    assert len(records) == NUM_TRIALS
    assert {r["status"] for r in records} == {"ok"}, [r.get("error") for r in records]
    for record in records:
        _check_record(record, out)

    again = seqbench("run", small_suite, "--device", "cpu", "--out", out)
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials are recorded already" in again.stderr
    assert lines_of(out) == records

    report = seqbench("report", out, "--out", tmp_path / "report")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(model in page for model in ("mamba-tiny", "transformer-tiny", "s4d-tiny"))
    assert seqbench("claims", out).returncode == 0


class Timed:
    """An executor whose every trial takes a millisecond a call."""

    def run(self, _payload: object, _limits: object) -> Outcome:
        return Outcome(status="ok", wall_s=0.1, metrics={"latency_ms": [1.0]})

    def cancel(self) -> None: ...


def test_a_run_that_goes_on_predicts_from_what_it_has_measured(small_suite, tmp_path):
    options = RunOptions(device="cpu", out=tmp_path / "out", settings=RunSettings(cores=(0,)))
    selection = Selection(models=("s4d",), lengths=(1024, 2048))
    planned = [p for p in planned_suite(load_suite(str(small_suite)), selection, options) if p.trial.kind == "speed"]
    short = [plan for plan in planned if plan.trial.seq_len == 1024]
    for plans in (short, planned):
        run_suite(plans, options, executor=Timed())
    rates = {(r["trial"]["seq_len"], r["metrics"]["predicted_from"]) for r in lines_of(tmp_path / "out")}
    assert rates == {(1024, "default rate"), (2048, "measured rate")}


def _check_record(record: dict, out: Path) -> None:
    """The record's contract."""
    assert {"schema", "trial_id", "trial", "status", "env_id", "started_at", "wall_s", "metrics", "backend"} <= set(
        record
    )
    assert record["status"] in STATUSES
    assert len(record["trial_id"]) == 64
    assert set(record["trial"]) == {
        "kind", "model", "task", "seq_len", "batch", "dtype", "direction", "device", "seed", "protocol",
    }  # fmt: skip
    metrics = record["metrics"]
    assert min(metrics["latency_ms"]) > 0
    for name in ("tokens_per_s", "peak_alloc_bytes", "peak_rss_bytes", "flops", "predicted_peak_bytes"):
        assert metrics[name] > 0, name
    environment = json.loads((out / "env" / f"{record['env_id']}.json").read_text())
    assert environment["packages"]["torch"] and environment["cpu"]["cores"] >= 1
    if record["trial"]["kind"] == "speed":
        assert metrics["max_relative_error"] < 1e-3
        return
    assert [score["seq_len"] for score in metrics["scores"]] == [64, 256]
    for score in metrics["scores"]:
        accuracy = score["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert score["latency_ms"] and score["peak_rss_bytes"] > 0
    assert metrics["accuracy"] == metrics["scores"][0]["accuracy"]


@pytest.mark.conformance
def test_killed_half_way_and_run_again_gives_every_trial_exactly_once(small_suite, environment, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks", "run", str(small_suite), "--device", "cpu", "--out", str(out)]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(lines_of(out)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = lines_of(out)
    assert 3 <= len(before) < NUM_TRIALS

    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{len(before)} of {NUM_TRIALS}" in result.stderr
    counts = Counter(record["trial_id"] for record in lines_of(out))
    assert len(counts) == NUM_TRIALS
    assert set(counts.values()) == {1}


@pytest.mark.conformance
def test_a_supervisor_that_is_killed_leaves_no_process_behind(small_suite, environment, tmp_path):
    marker = str(tmp_path / "out")
    command = [sys.executable, "-m", "benchmarks", "run", str(small_suite), "--device", "cpu", "--out", marker]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not lines_of(tmp_path / "out"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    family = _descendants(process.pid)
    assert family
    process.kill()
    process.wait()
    for _ in range(200):
        if not [pid for pid in family if Path(f"/proc/{pid}").exists()]:
            return
        time.sleep(0.05)
    pytest.fail(f"still running: {[pid for pid in family if Path(f'/proc/{pid}').exists()]}")


def _descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


@pytest.mark.conformance
def test_shards_share_the_work_and_write_apart(seqbench, small_suite, tmp_path):
    out = tmp_path / "out"
    for shard in ("1/2", "2/2"):
        result = seqbench("run", small_suite, "--device", "cpu", "--out", out, "--shard", shard, "--models", "s4d")
        assert result.returncode == 0, result.stderr
    files = sorted(path.parent.name for path in out.rglob("records.jsonl"))
    assert files == ["shard-1-of-2", "shard-2-of-2"]
    counts = Counter(record["trial_id"] for record in lines_of(out))
    assert len(counts) == 5 and set(counts.values()) == {1}


def test_plan_runs_nothing_and_shows_costs(seqbench, small_suite, tmp_path):
    result = seqbench("plan", small_suite, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == NUM_TRIALS + 2
    assert "MiB" in result.stdout and "in all" in result.stdout
    assert "embedded" not in result.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.conformance
def test_a_memory_limit_skips_what_cannot_fit_and_the_sweep_goes_on(seqbench, small_suite, tmp_path):
    out = tmp_path / "out"
    result = seqbench("run", small_suite, "--device", "cpu", "--out", out, "--lengths", "1K,1M", "--models", "s4d",
                      "--memory-limit", "1.5")  # fmt: skip
    assert result.returncode == 0, result.stderr
    skipped = [r for r in lines_of(out) if r["status"] == "skipped"]
    assert skipped and len(skipped) < len(lines_of(out))
    for record in skipped:
        assert record["metrics"]["predicted_peak_bytes"] > 1.5 * 2**30
        assert "latency_ms" not in record["metrics"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "quik"], "did you mean quick"),
        (["run", "nothing-like-it"], "there are audio-ablation"),
        (["run", "quick", "--models", "mambo"], "mamba"),
        (["run", "quick", "--lengths", "8K..1K"], "backwards"),
        (["run", "quick", "--seeds", "x"], "--seeds"),
        (["run", "quick", "--shard", "3/2"], "--shard"),
        (["run", "quick", "--data", "nowhere"], "nowhere"),
        (["run", "quick", "--source", "language"], "TASK=PATH"),
        (["run", "quick", "--source", "language=nowhere.txt"], "nowhere.txt"),
        (["run", "quick", "--out", "/proc/nothing"], "--out"),
        (["report", "nowhere"], "nowhere"),
        (["claims", "nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_2(words, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)
    try:
        code = main([*words, "--device", "cpu"] if words[0] == "run" else words)
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code == 2
    assert part in capsys.readouterr().err


def test_wrong_usage_shows_no_traceback(seqbench):
    result = seqbench("run", "quik")
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_cuda_where_there_is_none_is_a_clear_error(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert main(["run", "quick", "--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


LONG_TRAINING = """
name: long
description: a training that no test waits for
trials:
  - {kind: training, tasks: [induction_heads], models: [s4d-tiny], seq_len: 64, batch: 4, steps: 10000000,
     curve_every: 100, lr: 1.0e-3, score_lengths: "64", score_tokens: 256, min_examples: 2, time_limit_s: 1.0e+6}
"""


@pytest.mark.conformance
def test_a_training_that_is_stopped_goes_on_in_the_next_run(tmp_path, monkeypatch):
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)
    suite, out = tmp_path / "long.yaml", tmp_path / "out"
    suite.write_text(LONG_TRAINING)
    command = ["run", str(suite), "--device", "cpu", "--out", str(out), "--stop-after"]
    records, minutes = [], 0.15
    while len(records) < 2:
        assert main([*command, str(minutes)]) == 0
        found, _ = read_records([out])
        assert [(r["status"], r["error"]["type"]) for r in found] == [("timeout", "CutShort")] * len(found)
        steps = [r["metrics"].get("steps_done", 0) for r in found]
        if steps > [records[-1]["metrics"]["steps_done"] if records else 0]:
            records += found
        else:  # a slow machine: the time was up before the trial began, or before a step was taken
            minutes *= 2
            assert minutes < 5, found
    first, second = (record["metrics"] for record in records)
    assert 0 < first["steps_done"] < second["steps_done"] < 10_000_000
    assert f"step {second['steps_done']} of 10000000" in records[1]["error"]["message"]
    assert "resumed_at" not in first and second["resumed_at"] == [first["steps_done"]]
    assert second["loss_curve"][: len(first["loss_curve"])] == first["loss_curve"]
    assert len(list((out / "training").iterdir())) == 1
    assert main([*command, str(minutes), "--fresh"]) == 0
    (record,), _ = read_records([out])
    assert "resumed_at" not in record["metrics"]


def test_a_time_to_stop_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["run", "quick", "--stop-after", "-1"])
    assert exit.value.code == 2
    assert "minutes" in capsys.readouterr().err


TRAINING = """
name: data
description: one trial a data set
trials:
  - {kind: training, tasks: [TASKS], models: [s4d-tiny], seq_len: 64, batch: 2, steps: 2, lr: LR,
     score_lengths: "64,1K", score_tokens: 256, min_examples: 2, time_limit_s: 60}
"""


def run_tasks(seqbench_here, tmp_path, tasks, *words, lr="1.0e-3"):
    suite = tmp_path / "data.yaml"
    suite.write_text(TRAINING.replace("TASKS", tasks).replace("LR", lr))
    result = seqbench_here("run", suite, "--device", "cpu", "--out", tmp_path / "out", *words)
    return result, lines_of(tmp_path / "out")


def test_without_data_the_record_says_that_the_sample_is_embedded(seqbench_here, tmp_path):
    result, records = run_tasks(seqbench_here, tmp_path, "language, dna, audio, speech")
    assert result.returncode == 0, result.stderr
    assert {record["trial"]["task"] for record in records} == {"language", "dna", "audio", "speech"}
    for record in records:
        assert record["status"] == "ok", record["error"]
        assert record["trial"]["protocol"]["source"]["kind"] == "embedded"
        assert record["metrics"]["bits_per_token"]["value"] > 0
    said = [line for line in result.stderr.splitlines() if "is asked on embedded data" in line]
    assert [line.split()[1] for line in said] == ["audio", "dna", "language", "speech"], "and the run says it first"
    plan = seqbench_here("plan", tmp_path / "data.yaml", "--device", "cpu")
    assert plan.stderr.count("is asked on embedded data") == 4, "as does the plan"


def test_a_users_own_text_is_identified_by_its_sha256(seqbench_here, tmp_path):
    import hashlib

    text = tmp_path / "mine.txt"
    text.write_text("It was a bright cold day in April. " * 400)
    result, (record,) = run_tasks(seqbench_here, tmp_path, "language", "--source", f"language={text}")
    assert record["status"] == "ok", result.stderr
    source = record["trial"]["protocol"]["source"]
    assert source["kind"] == "files"
    assert source["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert "embedded" not in result.stderr


def test_data_that_are_too_short_are_unsupported_at_that_length_only(seqbench_here, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("abcdefghij" * 300)  # contiguous split: 300 bytes of test text
    _, (record,) = run_tasks(seqbench_here, tmp_path, "language", "--source", f"language={text}")
    assert record["status"] == "ok"
    assert [s["status"] for s in record["metrics"]["scores"]] == ["ok", "unsupported"]
    assert "longest" in record["metrics"]["scores"][1]["reason"]


BROKEN = {
    "dna": ("cut.fa.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut"),
    "species": ("odd.fa", b">one\nACGTACGT!ACGT\n"),
    "audio": ("cut.wav", b"RIFF\x00\x10\x00\x00WAVEfmt "),
    "language": ("binary.txt", b"\x00\x01\x02" * 100),
}


def test_broken_data_are_errors_that_name_the_file(seqbench_here, tmp_path):
    sources = []
    for task, (name, content) in BROKEN.items():
        (tmp_path / name).write_bytes(content)
        sources += ["--source", f"{task}={tmp_path / name}"]
    _, records = run_tasks(seqbench_here, tmp_path, ", ".join(BROKEN), *sources)
    assert {record["trial"]["task"] for record in records} == set(BROKEN)
    for record in records:
        assert record["status"] == "error"
        assert BROKEN[record["trial"]["task"]][0] in record["error"]["message"]


def test_a_loss_that_is_not_finite_is_a_typed_error(seqbench_here, tmp_path):
    _, (record,) = run_tasks(seqbench_here, tmp_path, "language", lr="1.0e+38")
    assert record["status"] == "error"
    assert record["error"]["type"] == "NonFiniteLoss"
    assert "lr" in record["error"]["message"]


def test_a_model_of_ones_own_from_a_file(seqbench_here, small_suite, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from models.model import SequenceModel\nfrom models.s4d import S4D\nfrom models.wirings import Plain\n\n\n"
        "def build(vocab_size):\n"
        "    mixers = [Plain(16, S4D(16))]\n"
        "    return SequenceModel(vocab_size=vocab_size, d_model=16, mixers=mixers, d_mlp=16)\n"
    )
    out = tmp_path / "out"
    result = seqbench_here(
        "run", small_suite, "--device", "cpu", "--out", out, "--models", "mine.py:build", "--lengths", "1K"
    )
    assert result.returncode == 0, result.stderr
    records = lines_of(out)
    assert records and {r["trial"]["model"] for r in records} == {"mine.py:build"}
    assert {r["status"] for r in records} == {"ok"}, [r.get("error") for r in records]


def test_a_kernel_that_computes_wrongly_gets_no_speed(seqbench_here, small_suite, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from models.model import SequenceModel\nfrom models.lstm import LSTM\n"
        "from models.ops.context import observe, relative_error\n\n\n"
        "class Broken(LSTM):\n    def forward(self, x):\n        out = super().forward(x)\n"
        "        observe('lstm', 'broken', check=lambda: relative_error(out * 1.1, out))\n        return out\n\n\n"
        "def build(vocab_size):\n"
        "    return SequenceModel(vocab_size=vocab_size, d_model=16, mixers=[Broken(16)])\n"
    )
    suite = tmp_path / "model.yaml"
    suite.write_text(
        "name: m\ndescription: d\ntrials:\n  - {kind: speed, level: model, directions: [forward], models: [s4d-tiny], "
        "lengths: 1K, sample_budget_s: 0.05}\n"
    )
    out = tmp_path / "out"
    seqbench_here("run", suite, "--device", "cpu", "--out", out, "--models", "wrong.py:build")
    (record,) = lines_of(out)
    assert record["status"] == "wrong", record
    assert "latency_ms" not in record["metrics"]
    assert "no speed is given" in record["error"]["message"]
