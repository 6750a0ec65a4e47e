"""The gate between two commits: accuracy and exact figures of both, then timed blocks until every benchmark is decided.

Everything runs the trees' own code in the trees' own processes; only the comparing is done by the checkout that the
gate was started from.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gate_blocks import (
    GATE_SET,
    ORDER,
    PAIRS_OF_ROUND,
    BlockRunner,
    Samples,
    Side,
    run_limited,
    sides_of,
    tail_of,
    timing_core,
)
from benchmarks.gate_exact import compare_exact_figures, has_exact_tier
from benchmarks.gate_trees import Tree, TreeError
from harness.gate import GateResult, compare
from harness.gate_decision import TimingDecision
from harness.gate_rules import PAIRED_LATENCY, Comparison, Tolerance, Verdict
from harness.records import RECORDS_FILE, read_records

ACCURACY_SUITE = Path(__file__).with_name("suites") / "gate.yaml"
_ACCURACY_LIMIT_S = 600

Say = Callable[[str], None]


def compare_trees(
    base: Tree,
    candidate: Tree,
    tolerances: Mapping[str, Tolerance],
    *,
    budget_s: float,
    with_accuracy: bool = True,
    exact_only: bool = False,
    notes: Sequence[str] = (),
    say: Say = lambda text: print(text, file=sys.stderr),
) -> GateResult:
    """All tiers that were asked for.

    Args:
        budget_s: wall time of the timed blocks; what is undecided then is inconclusive.
        notes: what the result's notes begin with.
        say: told what happens, a line at a time.
    """
    results: list[GateResult] = []
    parts = (
        ("exact figures", has_exact_tier(base, candidate), lambda: compare_exact_figures(base, candidate)),
        ("accuracy over paired seeds", with_accuracy, lambda: compare_accuracy(base, candidate, tolerances)),
    )
    for name, is_asked, run in parts:
        if is_asked:
            began = time.monotonic()
            results.append(run())
            say(f"{name}: {time.monotonic() - began:.0f} s")
    if not exact_only:
        results.append(compare_times(base, candidate, tolerances[PAIRED_LATENCY], budget_s=budget_s, say=say))
    return GateResult(
        comparisons=tuple(row for result in results for row in result.comparisons),
        notes=(*notes, *dict.fromkeys(note for result in results for note in result.notes)),
        num_matched=sum(result.num_matched for result in results),
    )


_ONE_MACHINE: dict[str, dict[str, Any]] = {"here": {"cpu": {"model": "this machine"}}}


def compare_accuracy(base: Tree, candidate: Tree, tolerances: Mapping[str, Tolerance]) -> GateResult:
    """The gate's short trainings in both trees: their ends, counts and peaks, and their scores over the seeds."""
    # One tree after the other: each runs its trainings side by side, a core each.
    (before, base_notes), (after, candidate_notes) = accuracy_records(base), accuracy_records(candidate)
    found = compare(before, after, _ONE_MACHINE, tolerances, exact_only=True)
    return replace(found, notes=(*base_notes, *candidate_notes, *found.notes))


def accuracy_records(tree: Tree) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of the gate's trainings by a tree's own command, and notes. The suite is the gate's, for both sides."""
    folder = tree.path.with_name(f"accuracy-{tree.path.name}")
    folder.mkdir()
    suite = folder / ACCURACY_SUITE.name
    suite.write_bytes(ACCURACY_SUITE.read_bytes())
    out = folder / "records"
    command = [str(tree.python), "-m", "benchmarks", "run", str(suite), "--device", "cpu", "--out", str(out)]
    errors = folder / "stderr.txt"
    end = run_limited(command, tree, limit_s=_ACCURACY_LIMIT_S, stderr=errors)
    if not list(out.rglob(RECORDS_FILE)):
        return [], [f"accuracy of the {tree.side}: its command ended ({end}) without records. {tail_of(errors)}"]
    records, warnings = read_records([out])
    return [{**record, "env_id": "here"} for record in records], warnings


def compare_times(
    base: Tree, candidate: Tree, tolerance: Tolerance, *, budget_s: float, say: Say = lambda _: None
) -> GateResult:
    """The timing tier: the ends of all benchmarks, and a verdict on the time of each that runs on both sides."""
    began = time.monotonic()
    before, after = sides_of(base, candidate)
    runner = BlockRunner(core=timing_core())
    runner.first_block(before)
    runner.first_block(after)
    shared = [name for name in before.trials if before.trials[name] == after.trials.get(name)]
    decisions = {
        name: TimingDecision(tolerance.limit, seed=index)
        for index, name in enumerate(shared)
        if name not in before.failed and name not in after.failed
    }
    num_blocks = 2
    longest_s = 0.0
    while names := [name for name, decision in decisions.items() if decision.is_open]:
        if time.monotonic() - began + longest_s > budget_s:
            break
        started = time.monotonic()
        for name, (base_blocks, candidate_blocks) in run_round(runner, before, after, names).items():
            decisions[name].add(base_blocks, candidate_blocks)
        decisions = {name: d for name, d in decisions.items() if name not in before.failed and name not in after.failed}
        longest_s = max(longest_s, time.monotonic() - started)
        num_blocks += len(ORDER)
        say(f"timing: {num_blocks} blocks in {time.monotonic() - began:.0f} s; open: {_open(decisions) or 'none'}")
    rows = list(_status_rows(before, after))
    rows += [_timing_row(name, decision, before.trials[name]) for name, decision in decisions.items()]
    notes = (
        f"timing: {num_blocks} blocks of {runner.num_samples} samples in {time.monotonic() - began:.0f} s, in the "
        f"order ABBA BAAB on core {runner.core}, each a fresh process, the first of each side dropped; a change counts "
        "if it holds again on fresh pairs",
        f"tolerance of a paired time, {tolerance.limit:g}: {tolerance.reason}",
    )
    return GateResult(comparisons=tuple(rows), notes=notes, num_matched=_num_judged(before, after))


def _num_judged(before: Side, after: Side) -> int:
    """How many of the base's benchmarks ran on either side. Raises TreeError where none did."""
    ran = [{name for name in side.trials if name not in side.failed} for side in (before, after)]
    if judged := [name for name in before.trials if name in ran[0] | ran[1]]:
        return len(judged)
    ends = "; ".join(f"{name}: {status}: {message}" for name, (status, message) in before.failed.items())
    raise TreeError(f"no benchmark of {before.tree.label} runs on either side ({ends or 'its list is empty'})")


def run_round(
    runner: BlockRunner, before: Side, after: Side, names: list[str]
) -> dict[str, tuple[list[list[float]], list[list[float]]]]:
    """Eight blocks: by benchmark the samples of four base and four candidate blocks, row i of both a pair."""
    sides = {"base": before, "candidate": after}
    blocks: dict[str, list[Samples]] = {"base": [], "candidate": []}
    for side in ORDER:
        blocks[side].append(runner.block(sides[side], names))
    factor = str(float(runner.factors[0]))
    found = {}
    for name in names:
        series = {side: [block[name][factor] for block in blocks[side] if name in block] for side in sides}
        if all(len(rows) == PAIRS_OF_ROUND for rows in series.values()):
            found[name] = (series["base"], series["candidate"])
    return found


def _open(decisions: Mapping[str, TimingDecision]) -> str:
    return ", ".join(name for name, decision in decisions.items() if decision.is_open)


def _status_rows(before: Side, after: Side) -> Iterator[Comparison]:
    for name in dict.fromkeys((*before.trials, *after.trials)):
        old, new = (side.failed.get(name, ("ok", "")) if name in side.trials else None for side in (before, after))
        trial = after.trials.get(name) or before.trials[name]
        row = Comparison(
            key=name, trial=_label(name, trial), metric="status", verdict="pass",
            base=old and old[0], candidate=new and new[0],
        )  # fmt: skip
        verdict, detail = _judge_ends(old, new)
        if old and new and before.trials[name] != after.trials[name]:
            verdict = "regressed"
            detail = (
                f"its specification in {GATE_SET} is another one, so that the base's benchmark has vanished; "
                "keep it, and add the new one under another name"
            )
        yield replace(row, verdict=verdict, detail=detail)


def _judge_ends(old: tuple[str, str] | None, new: tuple[str, str] | None) -> tuple[Verdict, str]:
    if old is None:
        return "new", "the base does not list it"
    if new is None:
        return "regressed", f"vanished: the candidate's {GATE_SET} does not list it any more; put it back"
    if old[0] == new[0]:
        return "pass", ""
    if old[0] == "ok":
        return "regressed", f"it ran on the base and does not on the candidate: {new[1]}"
    return ("improved", f"the base's end: {old[1]}") if new[0] == "ok" else ("changed", new[1])


def _timing_row(name: str, decision: TimingDecision, trial: Mapping[str, Any]) -> Comparison:
    base_ms, candidate_ms = decision.quartiles_ms
    return Comparison(
        key=name, trial=_label(name, trial), metric=PAIRED_LATENCY, verdict=decision.verdict, base=base_ms,
        candidate=candidate_ms, detail=decision.detail,
    )  # fmt: skip


def _label(name: str, trial: Mapping[str, Any]) -> str:
    return f"{name} ({trial['model']} {trial['direction']} L={trial['seq_len']})"
