"""The exact tier in the gate between two commits: the candidate computes, the base's golden file says what was.

A figure that moved is a regression, unless the candidate's own golden file holds the new value: then it was accepted in
a commit, with its reason, and is shown as a change.
"""

from pathlib import Path

from benchmarks.exact_compare import ExactRecord, Finding, compare_exact
from benchmarks.exact_tier import GOLDEN, read_golden
from benchmarks.gate_blocks import run_limited, tail_of
from benchmarks.gate_trees import Tree
from harness.gate import GateResult
from harness.gate_rules import Comparison, Verdict

_TIER = Path("benchmarks/exact_tier.py")
_GOLDEN = Path("results/baselines") / GOLDEN.name
_LIMIT_S = 600


def has_exact_tier(*trees: Tree) -> bool:
    """Whether any of the trees computes exact figures, or states them."""
    return any((tree.path / part).exists() for tree in trees for part in (_TIER, _GOLDEN))


def compare_exact_figures(base: Tree, candidate: Tree) -> GateResult:
    """All figures that moved, with what the reader must know. A candidate that computes none has lost them all."""
    golden = base.path / _GOLDEN
    before, base_note = (read_golden(golden), "") if golden.exists() else _computed(base)
    if not before:  # then every figure is new, which fails nothing
        return GateResult(comparisons=(), notes=(base_note,), num_matched=0)
    after, candidate_note = _computed(candidate)
    accepted_path = candidate.path / _GOLDEN
    accepted = {record.key: record.value for record in read_golden(accepted_path)} if accepted_path.exists() else {}
    found = compare_exact(before, after)
    rows = [_row(finding, accepted.get((finding.subject, finding.metric, finding.at))) for finding in found]
    if not after:  # one sentence in place of hundreds of vanished figures
        rows = [
            Comparison(
                key="exact", trial="exact figures", metric="status", verdict="regressed", base="ok", candidate="error",
                detail=candidate_note,
            )
        ]  # fmt: skip
    notes = (f"exact figures: {found.num_compared} compared", *found.notes, base_note, candidate_note)
    return GateResult(comparisons=tuple(rows), notes=tuple(note for note in notes if note), num_matched=1)


def _row(finding: Finding, accepted: int | float | str | None) -> Comparison:
    verdict: Verdict = "new" if finding.change == "new" else "regressed"
    detail = finding.message
    if verdict == "regressed" and accepted == finding.candidate:
        verdict, detail = "changed", f"{detail} Accepted in the candidate's {_GOLDEN}"
    elif verdict == "regressed":
        detail = f"{detail} If it is meant: python -m benchmarks.exact_tier --write, and commit the file"
    return Comparison(
        key="/".join((finding.subject, finding.metric, finding.at)), trial=finding.subject,
        metric=f"{finding.metric} ({finding.at})", verdict=verdict, base=finding.base, candidate=finding.candidate,
        detail=detail,
    )  # fmt: skip


def _computed(tree: Tree) -> tuple[list[ExactRecord], str]:
    """A tree's figures by its own tier, or none and why."""
    if not (tree.path / _TIER).exists():
        return [], f"exact figures of the {tree.side}: it has no {_TIER}"
    out, errors = (tree.path.with_name(f"exact-{tree.path.name}.{kind}") for kind in ("json", "txt"))
    command = [str(tree.python), "-m", "benchmarks.exact_tier", "--write", str(out)]
    end = run_limited(command, tree, limit_s=_LIMIT_S, stderr=errors)
    if out.exists():
        return read_golden(out), ""
    return [], f"exact figures of the {tree.side}: its exact tier ended ({end}) without any; {tail_of(errors)}"
