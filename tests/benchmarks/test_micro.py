"""pytest-benchmark's JSON as records; the micro benchmarks themselves; and that CI's commands exist."""

import copy
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.cli import build_parser
from benchmarks.micro.import_json import MAX_SAMPLES, import_json, records_of
from benchmarks.micro.pieces import micro_trial
from harness import RecordsError, read_records
from harness.records import read_environment

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "benchmarks" / "micro"


def content_of(*seconds: float, iterations: int = 1, **extra: Any) -> dict[str, Any]:
    """What pytest-benchmark writes, in the parts that are read."""
    trial = micro_trial("selective_scan", seq_len=1024, protocol={"width": 128})
    info = {"trial": trial.as_dict(), "trial_id": trial.trial_id("c0de"), "backend": {"threads": 1}} | extra
    return {
        "datetime": "2026-01-01T00:00:00+00:00",
        "machine_info": {"seqbench": {"env_id": "e" * 16, "environment": {"threads": 1, "cpu": {"model": "x"}}}},
        "benchmarks": [
            {"fullname": "t", "extra_info": info, "stats": {"data": list(seconds), "iterations": iterations}}
        ],
    }


def test_samples_are_milliseconds_of_one_call_and_the_trial_is_the_benchmark_s_own(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", content_of(0.001, 0.002, 0.004, iterations=7)
    path.write_text(json.dumps(content))
    assert import_json(path, tmp_path / "records") == 1
    (record,), warnings = read_records([tmp_path / "records"])
    assert not warnings
    assert record["metrics"] == {"latency_ms": [1.0, 2.0, 4.0], "calls_per_sample": 7}
    assert record["trial"] == content["benchmarks"][0]["extra_info"]["trial"]
    assert (record["trial"]["kind"], record["status"]) == ("speed", "ok")
    assert read_environment(Path(record["records_path"]), record["env_id"])["cpu"] == {"model": "x"}


def test_of_many_rounds_evenly_spaced_ones_are_kept() -> None:
    (record,), _, _ = records_of(content_of(*(1e-3 * (1 + i) for i in range(1000))))
    samples = record.metrics["latency_ms"]
    assert 100 <= len(samples) <= MAX_SAMPLES
    assert samples[0] == 1.0
    assert samples[-1] > 990  # a drift over the run stays visible


def test_what_carries_no_trial_is_named_and_left_out() -> None:
    content = content_of(0.001)
    stranger = copy.deepcopy(content["benchmarks"][0]) | {"fullname": "tests/test_other.py::test_x", "extra_info": {}}
    records, _, warnings = records_of(content | {"benchmarks": [*content["benchmarks"], stranger]})
    assert len(records) == 1
    assert "test_other.py::test_x" in warnings[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"commit_info": {}}, "--benchmark-json"),
        (content_of(0.001) | {"machine_info": {}}, "make micro"),
        (content_of(), "no samples"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(content: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordsError, match=said):
        records_of(content, "some.json")


@pytest.mark.conformance
def test_a_real_run_becomes_records_that_the_gate_compares(tmp_path: Path) -> None:
    """Two tests of a few milliseconds; the gate must find each trial on both sides and lose none."""
    # Within a worker of xdist pytest-benchmark would measure nothing.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=env, timeout=240, check=False)

    for side in ("a", "b"):
        options = [f"--benchmark-json={tmp_path / side}.json", "--benchmark-max-time=0.01", "--benchmark-min-rounds=5"]
        done = command("pytest", MICRO, "-p", "no:xdist", "-k", "append or fft_conv-1024-forward", *options)
        assert done.returncode == 0, done.stdout
        done = command("benchmarks.micro.import_json", tmp_path / f"{side}.json", "--out", tmp_path / side)
        assert done.returncode == 0, done.stderr
    gated = command("benchmarks", "gate", "--base", tmp_path / "a", "--candidate", tmp_path / "b")
    assert gated.returncode in (0, 1), gated.stderr  # 2 would be: nothing comparable
    records, _ = read_records([tmp_path / "a"])
    assert {r["trial"]["model"] for r in records} == {"record_append", "fft_conv"}
    assert all(len(r["metrics"]["latency_ms"]) >= 5 for r in records)
    assert next(r for r in records if r["trial"]["model"] == "fft_conv")["backend"]["fft_conv"]


# --- CI --------------------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
PLAIN = {"cat", "echo", "git", "nvidia-smi", "test", "mkdir"}
"""Programs of the shell, which no file here defines."""


def loaded(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def commands_of(path: Path) -> list[str]:
    """Every command of every ``run:``, continued lines joined, lists and redirections taken apart."""
    scripts = [s["run"] for job in loaded(path)["jobs"].values() for s in job["steps"] if "run" in s]
    lines = [line for script in scripts for line in script.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split(r"\|\||&&|;", line.split(" #")[0])]
    return [part.strip() for part in parts if part.strip()]


def is_known(command: str) -> bool:
    """Whether a command is a make target, a module, or a command of seqbench, that is there."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    program, rest = Path(words[0]).name, words[1:]
    if program == "make":
        targets = [word for word in rest if "=" not in word]
        return bool(targets) and set(targets) <= TARGETS
    if program.startswith("python"):
        if rest[:2] == ["-m", "pip"]:
            return True
        return rest[0] == "-m" and importlib.util.find_spec(rest[1]) is not None
    if program == "pip":
        return True
    if program == "seqbench":
        (commands,) = (a for a in build_parser()._actions if a.dest == "command" or a.metavar == "COMMAND")
        return rest[0] in (commands.choices or {})
    return program in PLAIN


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_every_command_of_a_workflow_exists(path: Path) -> None:
    commands = commands_of(path)
    assert commands
    assert not [command for command in commands if not is_known(command)]


def test_a_command_that_does_not_exist_would_be_found() -> None:
    for command in ("make nothing", "python -m benchmarks.nothing", ".venv/bin/seqbench nothing", "rm -rf x"):
        assert not is_known(command), command


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_is_bounded_and_pinned(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["concurrency"]["group"]
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step["uses"]


def test_every_pull_request_gets_lint_tests_and_the_exact_tier() -> None:
    assert WORKFLOWS
    # YAML reads the key `on` as the boolean.
    jobs = {name for path in WORKFLOWS if "pull_request" in loaded(path)[True] for name in loaded(path)["jobs"]}
    assert {"lint", "tests", "exact"} <= jobs


def test_plain_pytest_does_not_collect_the_micro_benchmarks(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert not MICRO.is_relative_to(ROOT / "tests")
