"""The gate as a command: where records come from, what it writes, and its exit codes."""

import json
import os
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.gate_forms import MAX_ROWS
from benchmarks.gating import load_tolerances
from harness.gate_rules import METRICS

ENVIRONMENT = {"cpu": {"model": "EPYC", "cores": 2}, "threads": 2, "gpu": None, "packages": {"torch": "2.13.0"}}
SAMPLES = [10.0, 10.1, 10.2, 10.0, 10.3, 10.1]


def record(seed: int = 0, status: str = "ok", message: str = "", **metrics) -> dict:
    trial = {
        "kind": "speed", "model": "mamba-tiny", "task": None, "seq_len": 1024, "batch": 1, "dtype": "float32",
        "direction": "forward", "device": "cpu", "seed": seed, "protocol": {"level": "model"},
    }  # fmt: skip
    return {
        "schema": 1, "trial_id": f"{seed:064x}", "trial": trial, "status": status, "env_id": "e1", "started_at": "t",
        "wall_s": 1.0, "metrics": {"params": 100, "latency_ms": SAMPLES, **metrics},
        "backend": {"scan": "kernel"}, **({"error": {"type": "E", "message": message, "tail": "1"}} if message else {}),
    }  # fmt: skip


def write(folder: Path, *records: dict) -> Path:
    (folder / "env").mkdir(parents=True, exist_ok=True)
    (folder / "env" / "e1.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Run git in the empty folder, which becomes a repository that no configuration of the user reaches."""
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *words], check=True, capture_output=True, cwd=tmp_path)

    run("init", "-b", "main")
    return run


def commit(git) -> None:
    git("add", "-f", "results/baselines")
    git("commit", "-m", "baselines")


def gate(base: object, candidate: object, *words: object) -> int:
    return main(["gate", "--base", str(base), "--candidate", str(candidate), *map(str, words)])


def test_exit_codes(tmp_path, capsys):
    base = write(tmp_path / "base", record(0), record(1))
    assert gate(base, base) == 0
    assert gate(base / "records.jsonl", base) == 0
    assert gate(base, write(tmp_path / "worse", record(0, params=101), record(1))) == 1
    out = capsys.readouterr().out
    assert "REGRESSED" in out
    assert "+1.00%" in out
    assert gate(base, write(tmp_path / "lost", record(0))) == 1
    assert "vanished" in capsys.readouterr().out
    assert gate(base, write(tmp_path / "other", record(7))) == 2
    assert "NOTHING COMPARABLE" in capsys.readouterr().out
    assert gate(base, write(tmp_path / "empty")) == 2


@pytest.mark.parametrize("side", ["nowhere", "--help-me", "refs/heads/none", ""])
def test_a_side_that_is_neither_path_nor_ref_is_wrong_usage(tmp_path, capsys, side):
    base = write(tmp_path / "base", record())
    assert main(["gate", f"--base={side}", "--candidate", str(base)]) == 2
    assert "neither a file or folder of records nor a git ref" in capsys.readouterr().err


def test_a_base_is_needed_unless_one_is_made(tmp_path, capsys):
    assert main(["gate", "--candidate", str(write(tmp_path / "c", record()))]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["gate", "--base", "nowhere"]) == 2
    assert "'nowhere' is neither" in capsys.readouterr().err
    assert main(["gate", "--base", str(tmp_path / "c")]) == 2
    assert "--base names records, and so must --candidate" in capsys.readouterr().err


def test_times_warn_unless_they_may_fail(tmp_path, capsys):
    base = write(tmp_path / "base", record())
    slow = write(tmp_path / "slow", record(latency_ms=[2 * x for x in SAMPLES]))
    assert gate(base, slow) == 0
    assert "suspect" in capsys.readouterr().out
    assert gate(base, slow, "--timing-fails") == 1
    assert gate(base, slow, "--timing-fails", "--exact-only") == 0


def test_a_ref_names_its_committed_baselines(tmp_path, git, capsys):
    write(tmp_path / "results/baselines/quick", record(0), record(1))
    commit(git)
    write(tmp_path / "results/baselines/quick", record(0, params=1))  # not committed, so of no account
    same, worse = write(tmp_path / "same", record(0), record(1)), write(tmp_path / "worse", record(0, params=2))
    assert gate("main", same) == 0
    assert "machines differ" not in capsys.readouterr().out  # the environment was read from the ref too
    assert gate("HEAD", worse) == 1
    assert gate("main", "HEAD", "--exact-only") == 0  # committed baselines, where no tree has exact figures
    assert gate("HEAD~1", same) == 2


def test_a_folder_without_records_does_not_hide_a_ref_of_its_name(tmp_path, git):
    write(tmp_path / "results/baselines/quick", record())
    commit(git)
    git("branch", "reports")
    (tmp_path / "reports").mkdir()
    assert gate("reports", write(tmp_path / "c", record())) == 0


def test_a_ref_without_baselines_says_how_to_make_one(tmp_path, git, capsys):
    git("commit", "--allow-empty", "-m", "nothing")
    assert gate("main", write(tmp_path / "c", record())) == 2
    assert "--accept" in capsys.readouterr().err


def test_a_run_of_one_suite_has_not_lost_the_trials_of_another(tmp_path, git):
    write(tmp_path / "results/baselines/quick", record(0))
    write(tmp_path / "results/baselines/full", record(0, params=5), record(8))
    write(tmp_path / "results/baselines/paper", record(9))
    commit(git)
    assert gate("main", write(tmp_path / "results/runs/quick", record(0))) == 0
    assert gate("main", write(tmp_path / "results/runs/paper", record(9))) == 0
    assert gate("main", write(tmp_path / "results/runs/mine", record(8), record(9))) == 1


def test_accepting_is_deterministic_and_keeps_what_any_machine_can_check(tmp_path):
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    scores = [{"seq_len": 64, "status": "ok", "accuracy": score, "latency_ms": [3.0]}]
    records = [record(1, "oom", "no memory"), record(0, accuracy=score, scores=scores, peak_rss_bytes=3)]
    run = write(tmp_path / "results/runs/quick", *records)
    stale = write(tmp_path / "results/baselines/quick") / "env/old.json"
    stale.write_text("{}")
    assert main(["gate", "--candidate", str(run), "--accept"]) == 0
    path = tmp_path / "results/baselines/quick/records.jsonl"
    first = path.read_bytes()
    kept = [json.loads(line) for line in first.splitlines()]
    assert [r["trial"]["seed"] for r in kept] == [0, 1]
    assert kept[0]["metrics"] == {
        "params": 100, "accuracy": score, "scores": [{"seq_len": 64, "status": "ok", "accuracy": score}],
    }  # fmt: skip
    assert json.loads((path.parent / "env/e1.json").read_text()) == ENVIRONMENT
    assert not stale.exists()

    write(run, *reversed(records))
    assert gate(path, run, "--accept") == 0
    assert path.read_bytes() == first
    assert gate(path, run) == 0
    assert main(["gate", "--candidate", str(run), "--accept", "a/../b"]) == 2


def test_accepting_a_regression_is_a_pass(tmp_path):
    base = write(tmp_path / "base", record())
    worse = write(tmp_path / "worse", record(params=9))
    assert gate(base, worse, "--accept", "mine") == 0
    assert gate("results/baselines/mine", worse) == 0


def test_junit_parses_and_counts(tmp_path):
    base = write(tmp_path / "base", record(0), record(1), record(2))
    worse = record(0, "error", "a < b & \x1b[31m\ud800 | c")
    slow = record(1, latency_ms=[2 * x for x in SAMPLES])
    candidate = write(tmp_path / "c", worse, slow, record(2))
    assert gate(base, candidate, "--junit", "out/gate.xml", "--markdown", "out/gate.md") == 1
    suite = ET.parse("out/gate.xml").getroot().find("testsuite")
    cases = suite.findall("testcase")
    assert suite.get("tests") == str(len(cases))
    assert (suite.get("failures"), suite.get("skipped"), suite.get("errors")) == ("1", "1", "0")
    assert len({(c.get("classname"), c.get("name")) for c in cases}) == len(cases)
    assert "a < b &" in suite.find("testcase/failure").get("message")
    assert gate(base, write(tmp_path / "other", record(9)), "--junit", "out/gate.xml") == 2
    assert ET.parse("out/gate.xml").getroot().find("testsuite").get("errors") == "1"


def test_markdown_has_the_rows_that_are_not_pass(tmp_path):
    base = write(tmp_path / "base", record(0), record(1))
    worse = write(tmp_path / "worse", record(0, "error", "a | b\n<c>"), record(1))
    assert gate(base, worse, "--markdown", "gate.md") == 1
    page = Path("gate.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| regressed")]
    assert len(rows) == 1
    assert "a \\| b &lt;c>" in rows[0]
    assert "| pass" not in page


def test_what_fails_nothing_does_not_bury_what_fails(tmp_path, capsys):
    base = write(tmp_path / "base", record(0))
    many = write(tmp_path / "many", record(0, params=1), *(record(seed) for seed in range(1, MAX_ROWS + 20)))
    assert gate(base, many) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("regressed")
    assert any(line.startswith("... and ") for line in lines)


def test_annotations_on_github_only(tmp_path, monkeypatch, capsys):
    base = write(tmp_path / "base", *(record(seed) for seed in range(20)))
    slow = [record(seed, latency_ms=[2 * x for x in SAMPLES]) for seed in range(2)]
    worse = [record(seed, "error", "100 %\nlost") for seed in range(2, 20)]
    candidate = write(tmp_path / "c", *slow, *worse)
    assert gate(base, candidate) == 1
    assert "::error" not in capsys.readouterr().out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert gate(base, candidate) == 1
    lines = capsys.readouterr().out.splitlines()
    errors = [line for line in lines if line.startswith("::error title=seqbench gate::")]
    assert len(errors) == 10
    assert "100 %25%0Alost" in errors[0]
    assert "and 9 more" in errors[-1]
    assert len([line for line in lines if line.startswith("::warning ")]) == 2


def test_records_that_are_none_are_left_out_with_a_note(tmp_path, capsys):
    base = write(tmp_path / "base", record(0), record(1, params=None), record(2) | {"metrics": None})
    (base / "env/e1.json").write_text("{torn")
    assert gate(base, base) == 2  # times of an unknown machine were asked for
    assert gate(base, base, "--exact-only") == 0
    err = capsys.readouterr().err
    assert "1 records lack" in err
    assert "its machine is unknown" in err


def test_every_metric_has_a_tolerance_with_a_reason(tmp_path):
    assert load_tolerances().keys() == set(METRICS)
    path = tmp_path / "tolerances.toml"
    path.write_text('[params]\nlimit = 2\nreason = "no"\n')
    with pytest.raises(ValueError, match="limit=2"):
        load_tolerances(path)


def test_the_tolerances_are_installed_with_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "tolerances.toml" in project["tool"]["setuptools"]["package-data"]["benchmarks"]
