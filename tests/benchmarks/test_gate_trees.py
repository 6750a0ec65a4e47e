"""The gate between two commits, on a small repository of its own whose benchmarks take microseconds.

Times are too short and the machine too busy for verdicts on real slowdowns here: what is tested is which blocks run
where, what becomes of benchmarks that end otherwise, and that a slowdown in the samples arrives in the verdict.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import gate_blocks, gate_compare, gate_trees
from benchmarks.cli import main
from benchmarks.gate_block import calibrate, sample_ms
from benchmarks.gate_blocks import BlockRunner, Side, gate_set, sides_of
from benchmarks.gate_trees import TreeError, dependencies, two_trees
from harness.gate_decision import MIN_PAIRS

pytestmark = pytest.mark.conformance

HARNESS = """
from dataclasses import dataclass

@dataclass(kw_only=True)
class Trial:
    kind: str; model: str; task: object; seq_len: int; batch: int; dtype: str
    direction: str; device: str; seed: int; protocol: dict
"""
WORKLOADS = """
import os, signal, time
from types import SimpleNamespace

def build_workload(trial):
    return SimpleNamespace(call=CALLS[trial.model])

def nothing():
    return sum(range(trial_size))

trial_size = 50
CALLS = {"one": nothing, "two": nothing}
"""
FILES = {
    "harness": "harness/__init__.py", "benchmarks": "benchmarks/__init__.py", "ignored": ".gitignore",
    "workloads": "benchmarks/workloads.py", "speed": "benchmarks/speed.py", "gate_set": "benchmarks/gate_set.toml",
}  # fmt: skip
GATE_SET = '[one]\nmodel = "one"\nseq_len = 64\n\n[two]\nmodel = "two"\nseq_len = 64\n'


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder of files under git, and a function that commits changes to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setattr(gate_blocks, "SAMPLE_MS", 0.05)

    def commit(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / FILES[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "add", "--all"], check=True)
        subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "change"], check=True)

    subprocess.run(["git", "init", "-q", "-b", "main"], check=True)
    commit(harness=HARNESS, benchmarks="", workloads=WORKLOADS, ignored="__pycache__\n")
    commit(gate_set=GATE_SET)
    return commit


@pytest.fixture
def steady(monkeypatch):
    """Replace the clock's samples (not the processes) by steady ones; returns the factor of the candidate by name."""
    factors: dict[str, float] = {}
    really = BlockRunner.block

    def block(self, side, names):
        if self.num_samples < 10:
            return really(self, side, names)
        slow = factors if side.tree.side == "candidate" else {}
        running = [name for name in names if name not in side.failed]
        return {name: {"1.0": [slow.get(name, 1.0) * (1 + i / 1000) for i in range(10)]} for name in running}

    monkeypatch.setattr(BlockRunner, "block", block)
    return factors


def gate(*words: str, base: str = "HEAD~1") -> int:
    return main(["gate", "--base", base, "--no-accuracy", *words])


def test_a_change_of_a_comment_passes(repository, steady, capsys):
    repository(workloads=WORKLOADS + "# a comment\n")
    assert gate("--candidate", "HEAD") == 0
    out = capsys.readouterr().out
    assert "pass (trials on both sides: 2" in out
    assert "both sides run in" in out
    assert len(subprocess.run(["git", "worktree", "list"], capture_output=True).stdout.splitlines()) == 1


def test_a_slowdown_fails_on_two_sets_of_pairs_and_every_form_says_so(repository, steady, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    steady["one"] = 1.1
    assert gate("--candidate", "HEAD", "--markdown", "gate.md", "--junit", "gate.xml") == 1
    out = capsys.readouterr().out
    assert "10.0% slower" in out
    assert "again on fresh pairs: 10.0% slower" in out
    assert "::error title=seqbench gate::regressed: one (one forward L=64)" in out
    assert "| regressed | one" in Path("gate.md").read_text()
    assert ET.parse("gate.xml").getroot().find("testsuite").get("failures") == "1"


def test_the_working_tree_is_the_default_candidate_with_files_that_git_does_not_know(repository, steady, capsys):
    Path("benchmarks/gate_set.toml").write_text(GATE_SET + '[three]\nmodel = "three"\nseq_len = 64\n')
    Path("benchmarks/workloads.py").write_text(WORKLOADS + "from benchmarks.more import nothing as more\n"
                                               'CALLS["three"] = more\n')  # fmt: skip
    Path("benchmarks/more.py").write_text("def nothing():\n    pass\n")
    before = subprocess.run(["git", "status", "--porcelain"], capture_output=True).stdout
    assert gate(base="main") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("new")]
    assert "three" in line
    assert subprocess.run(["git", "status", "--porcelain"], capture_output=True).stdout == before


def test_a_deleted_benchmark_fails(repository, steady, capsys):
    repository(gate_set=GATE_SET.split("[two]")[0])
    assert gate("--candidate", "HEAD") == 1
    assert "vanished: the candidate's benchmarks/gate_set.toml does not list it any more" in capsys.readouterr().out


def test_a_benchmark_made_easier_under_its_name_has_vanished(repository, steady, capsys):
    repository(gate_set=GATE_SET.replace("seq_len = 64", "seq_len = 32", 1))
    assert gate("--candidate", "HEAD") == 1
    assert "its specification" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("def broken():\n    raise MemoryError('no room for 7 GiB')\n", "oom", "no room for 7 GiB"),
        ("def broken():\n    os.kill(os.getpid(), signal.SIGKILL)\n", "killed", "signal 9"),
        (
            "class Wrong(Exception):\n    status = 'wrong'\n\ndef broken():\n    raise Wrong('off by 3')\n",
            "wrong",
            "off by",
        ),
    ],
)
def test_a_new_end_fails_with_its_reason(repository, steady, capsys, code, status, words):
    repository(workloads=WORKLOADS + code + "CALLS['two'] = broken\n")
    assert gate("--candidate", "HEAD") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("regressed")]
    assert status in line.split()
    assert words in line
    assert "ran on the base and does not on the candidate" in line
    assert gate("--candidate", "HEAD~1", base="HEAD") == 0  # the other way round it is an improvement


def test_what_runs_too_long_is_a_timeout(repository, steady, capsys, monkeypatch):
    monkeypatch.setattr(gate_blocks, "FIRST_BLOCK_LIMIT_S", 15)  # a busy machine takes seconds to import PyTorch
    repository(workloads=WORKLOADS + "CALLS['two'] = lambda: time.sleep(600)\n")
    assert gate("--candidate", "HEAD") == 1
    assert "timeout" in capsys.readouterr().out


def test_a_candidate_that_cannot_be_imported_fails_and_such_a_base_is_wrong_usage(repository, steady, capsys):
    repository(workloads="import nowhere_to_be_found\n")
    assert gate("--candidate", "HEAD") == 1
    assert "nowhere_to_be_found" in capsys.readouterr().out
    assert gate("--candidate", "HEAD~1", base="HEAD") == 2
    assert "base HEAD" in capsys.readouterr().err


def test_where_nothing_runs_on_either_side_nothing_has_passed(repository, steady, capsys):
    repository(harness="# no trials\n")
    assert gate("--candidate", "HEAD", base="HEAD") == 2
    assert "no attribute 'Trial'" in capsys.readouterr().err


def test_a_candidate_that_lists_nothing_has_lost_everything(repository, steady, capsys):
    repository(gate_set="")
    assert gate("--candidate", "HEAD") == 1
    assert capsys.readouterr().out.count("vanished") == 2


def test_lost_correctness_fails(repository, steady, capsys):
    speed = "class Wrong(Exception):\n    status = 'wrong'\n\ndef verify(trial, workload):\n"
    repository(speed=speed + "    pass\n")
    repository(speed=speed + "    raise Wrong(f'{trial.model} differs by 3')\n")
    assert gate("--candidate", "HEAD") == 1
    assert "one differs by 3" in capsys.readouterr().out


def test_a_base_older_than_the_list_runs_the_candidates(repository, steady, capsys):
    assert gate("--candidate", "HEAD", base="HEAD~1") == 0
    assert "trials on both sides: 2" in capsys.readouterr().out


def test_real_blocks_run_the_trees_own_code_on_the_pinned_core(repository, monkeypatch):
    repository(workloads=WORKLOADS + "CALLS['two'] = lambda: time.sleep(0.003)\n")
    with two_trees("HEAD~1", "HEAD") as (base, candidate, _):
        before, after = sides_of(base, candidate)
        runner = BlockRunner(core=max(os.sched_getaffinity(0)), num_samples=3, factors=(1.0, 1.5))
        runner.first_block(before)
        found = {side.tree.side: runner.block(side, ["one", "two"]) for side in (before, after)}
    assert not before.failed
    assert not after.failed
    assert all(len(found[side][name][f]) == 3 for side in found for name in found[side] for f in ("1.0", "1.5"))
    assert min(found["candidate"]["two"]["1.0"]) >= 3.0  # ms that the candidate sleeps, and only it
    assert min(found["base"]["two"]["1.0"]) < 3.0
    assert min(found["candidate"]["two"]["1.5"]) >= 4.5


def test_a_round_is_abba_baab_and_its_rows_are_neighbours(repository, monkeypatch):
    order = []

    def block(self, side, names):
        order.append(side.tree.side[0])
        return {"one": {"1.0": [float(len(order))] * 2}}

    monkeypatch.setattr(BlockRunner, "block", block)
    with two_trees("HEAD", "HEAD") as (base, candidate, _):
        sides = sides_of(base, candidate)
        found = gate_compare.run_round(BlockRunner(core=0), *sides, ["one"])
    assert "".join(order) == "bccbcbbc"
    base_rows, candidate_rows = found["one"]
    assert [row[0] for row in base_rows] == [1, 4, 6, 7]
    assert [row[0] for row in candidate_rows] == [2, 3, 5, 8]


def test_without_time_all_is_inconclusive_and_nothing_is_claimed(repository, steady, capsys):
    assert gate("--candidate", "HEAD", "--budget", "0.00001") == 0
    assert f"0 pairs of blocks, {MIN_PAIRS} are needed" in capsys.readouterr().out


def test_other_dependencies_get_environments_of_their_own(repository, monkeypatch, tmp_path):
    project = '[project]\nname = "x"\ndescription = "{}"\ndependencies = ["{}"]\n'
    for text in (project.format("a", "numpy"), project.format("b", "numpy"), project.format("b", "numpy>=2")):
        (tmp_path / "pyproject.toml").write_text(text)
        repository()
    installed = []
    monkeypatch.setattr(gate_trees, "_install", lambda tree, venv: installed.append(tree.name) or Path(sys.executable))
    with two_trees("HEAD~2", "HEAD~1") as (base, _, notes):
        assert base.python == Path(sys.executable)
        assert not installed
        assert "same dependencies" in notes[0]
        assert dependencies(base.path)["dependencies"] == ["numpy"]
    with two_trees("HEAD~1", "HEAD") as (_, _, notes):
        assert installed == ["a", "b"]
        assert "installed anew" in notes[0]


def test_trees_are_removed_also_after_an_error(repository):
    paths = []

    def stop() -> None:
        with two_trees("HEAD", "HEAD") as (base, candidate, _):
            paths.extend([base.path, candidate.path])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert not any(path.exists() for path in paths)
    assert len({len(str(path)) for path in paths}) == 1
    with pytest.raises(TreeError, match="no git ref"), two_trees("HEAD", "nowhere"):
        pass


def test_lists_that_make_no_sense_are_named(tmp_path):
    path = tmp_path / "benchmarks" / "gate_set.toml"
    path.parent.mkdir()
    for text, message in (
        ("[one", "gate_set.toml"),
        ("[one]\nseq_len = 1\n", "needs at least a model"),
        ('[one]\nmodel = "m"\nseq_len = 1\ndevice = "cuda"\n', "for the CPU"),
    ):
        path.write_text(text)
        with pytest.raises(TreeError, match=message):
            gate_set(tmp_path)


def test_injected_slowdowns_are_work_that_is_done():
    """Calls are counted, not timed: whole calls are repeated, and what is left of them is no call."""
    calls = []
    sample_ms(lambda: calls.append(0), 20, 1.0)
    assert len(calls) == 21  # one before the clock starts
    calls.clear()
    sample_ms(lambda: calls.append(0), 20, 1.1)
    assert len(calls) == 23
    assert calibrate(lambda: None, 0.0) == 1


def test_the_shipped_set_is_of_trials_that_can_be_built():
    from benchmarks.workloads import build_workload
    from harness import Trial

    trials = gate_set(Path(gate_blocks.__file__).parent.parent)
    assert {"scan", "scan-train"} <= trials.keys()
    for spec in trials.values():
        assert json.loads(json.dumps(spec)) == spec
        build_workload(Trial(**spec)).call()


def test_a_killed_block_is_tried_once_more(repository, tmp_path):
    flag = tmp_path / "flag"
    once = f"import pathlib\n\ndef once():\n    f = pathlib.Path({str(flag)!r})\n    if not f.exists():\n"
    once += "        f.touch()\n        os.kill(os.getpid(), signal.SIGKILL)\n\nCALLS['two'] = once\n"
    repository(workloads=WORKLOADS + once)
    with two_trees("HEAD", "HEAD") as (base, _, _):
        side = Side(tree=base, trials=gate_set(base.path))
        found = BlockRunner(core=max(os.sched_getaffinity(0)), num_samples=2).block(side, ["two"])
    assert not side.failed
    assert found["two"]["1.0"]
