"""Blocks of the timing tier: which benchmarks a tree lists, and one fresh process a block that times them."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gate_trees import Tree, TreeError

GATE_SET = Path("benchmarks/gate_set.toml")
DRIVER = Path(__file__).with_name("gate_block.py")
SAMPLE_MS = 8.0
"""Over 10,000 times the clock's own cost, and short enough for ten samples of every benchmark in a second."""
NUM_SAMPLES = 10
ORDER = ("base", "candidate", "candidate", "base", "candidate", "base", "base", "candidate")
"""ABBA BAAB: a drift that is linear over a round, or quadratic, adds as much to either side."""
PAIRS_OF_ROUND = 4
FIRST_BLOCK_LIMIT_S = 300
"""A first block compiles byte code and kernels, and checks outputs."""
BLOCK_LIMIT_S = 90
_PROTOCOL = ("level", "width", "d_state", "head_dim")
_DEFAULTS = {
    "kind": "speed", "task": None, "batch": 1, "dtype": "float32", "direction": "forward", "device": "cpu", "seed": 0,
}  # fmt: skip

Samples = dict[str, dict[str, list[float]]]


@dataclass(kw_only=True)
class Side:
    """One tree's benchmarks, and what became of those that do not run."""

    tree: Tree
    trials: dict[str, dict[str, Any]]
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    """``name: (status, message)``."""


@dataclass(kw_only=True)
class BlockRunner:
    """Runs blocks on one core and remembers how many calls make a sample, so that both sides take the same."""

    core: int
    factors: Sequence[float] = (1.0,)
    num_samples: int = NUM_SAMPLES
    calls: dict[str, int] = field(default_factory=dict)

    def first_block(self, side: Side) -> None:
        """The block that is dropped: checks outputs, warms caches on disk, and finds what does not run here."""
        while names := [name for name in side.trials if name not in side.failed]:
            num_failed = len(side.failed)
            if self._run(side, names, verify=True, limit_s=FIRST_BLOCK_LIMIT_S) or len(side.failed) == num_failed:
                return

    def block(self, side: Side, names: Iterable[str]) -> Samples:
        """``{name: {factor: samples in ms}}`` of those that ran; the others are in ``side.failed`` afterwards."""
        asked = [name for name in names if name not in side.failed]
        if not asked:
            return {}
        samples = self._run(side, asked, verify=False, limit_s=BLOCK_LIMIT_S)
        # A process that is killed once may have met another's hunger for memory: a block may fail once.
        again = [name for name in asked if side.failed.get(name, ("",))[0] in ("killed", "timeout")]
        if samples or not again:
            return samples
        for name in again:
            del side.failed[name]
        return self._run(side, again, verify=False, limit_s=BLOCK_LIMIT_S)

    def _run(self, side: Side, names: Sequence[str], *, verify: bool, limit_s: float) -> Samples:
        with tempfile.TemporaryDirectory(prefix="seqbench-block-") as folder:
            plan_path, out, errors = (Path(folder, name) for name in ("plan.json", "out.jsonl", "stderr.txt"))
            plan = {
                "tree": str(side.tree.path), "out": str(out), "core": self.core, "verify": verify,
                "trials": {name: side.trials[name] for name in names}, "sample_ms": SAMPLE_MS,
                "calls": self.calls, "num_samples": self.num_samples, "factors": list(self.factors),
            }  # fmt: skip
            plan_path.write_text(json.dumps(plan))
            driver = Path(folder, DRIVER.name)
            driver.write_bytes(DRIVER.read_bytes())
            command = [str(side.tree.python), "-P", str(driver), str(plan_path)]
            end = run_limited(command, side.tree, limit_s=limit_s, stderr=errors)
            text = out.read_text() if out.exists() else ""
            tail = tail_of(errors)
        return self._read(side, names, text, end, tail)

    def _read(self, side: Side, names: Sequence[str], text: str, end: str, tail: str) -> Samples:
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        for line in lines:
            if "failed" in line:
                side.failed[line["failed"]] = (line["status"], line["message"])
        if lines and "samples" in lines[-1]:
            for name, calls in lines[-1]["calls"].items():
                self.calls.setdefault(name, calls)
            return lines[-1]["samples"]
        begun = [line["begin"] for line in lines if "begin" in line]
        last_words = f"its process ended ({end}); last words: {tail}"
        if not begun and side.tree.side == "base":
            raise TreeError(
                f"base {side.tree.label} runs no benchmark at all, and needs harness.Trial and "
                f"benchmarks.workloads.build_workload for that: {last_words}"
            )
        status = "timeout" if end == "timeout" else "killed" if end.startswith("signal") else "error"
        guilty = [begun[-1]] if begun and begun[-1] else [name for name in names if name not in side.failed]
        side.failed |= dict.fromkeys(guilty, (status, last_words))
        return {}


def run_limited(command: Sequence[str], tree: Tree, *, limit_s: float, stderr: Path, stdout: Path | None = None) -> str:
    """Run in a tree; how it ended in words, ``timeout`` after ``limit_s``. Nothing that it started is left."""
    with stderr.open("wb") as errors, (stdout or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tree.path, env=tree.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and left nobody behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"signal {-code}" if code < 0 else f"exit {code}"


def tail_of(path: Path) -> str:
    """The end of what a process said, on one line."""
    return " ".join(path.read_text(errors="replace").split())[-400:] or "it said nothing"


def gate_set(tree: Path) -> dict[str, dict[str, Any]] | None:
    """The benchmarks that a tree lists, as specifications of trials by name; None where it has no list.

    Raises:
        TreeError: a list that is none, or a benchmark that is not on the CPU.
    """
    path = tree / GATE_SET
    if not path.exists():
        return None
    try:
        entries = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise TreeError(f"{path}: {error}") from error
    return {name: _specification(path, name, entry) for name, entry in entries.items()}


def _specification(path: Path, name: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or "model" not in entry or "seq_len" not in entry:
        raise TreeError(f"{path}: [{name}] needs at least a model and a seq_len")
    protocol = {key: entry[key] for key in _PROTOCOL if key in entry}
    trial = _DEFAULTS | {key: value for key, value in entry.items() if key not in _PROTOCOL} | {"protocol": protocol}
    if trial["device"] != "cpu":
        raise TreeError(f"{path}: [{name}] is on {trial['device']}; the timing tier is for the CPU")
    return trial


def sides_of(base: Tree, candidate: Tree) -> tuple[Side, Side]:
    """Both sides with their own lists. A tree without one (older than the list) gets the other's, or the gate's own."""
    lists: Mapping[str, Any] = {tree.side: gate_set(tree.path) for tree in (base, candidate)}
    own = gate_set(DRIVER.parent.parent) or {}
    before = lists["base"] if lists["base"] is not None else lists["candidate"] or own
    after = lists["candidate"] if lists["candidate"] is not None else before if lists["base"] is None else {}
    return Side(tree=base, trials=dict(before)), Side(tree=candidate, trials=dict(after))


def timing_core() -> int:
    """The core that blocks are pinned to: the last one, since the first serves most interrupts."""
    return max(os.sched_getaffinity(0))
