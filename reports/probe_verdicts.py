"""Whether a row of the paper's tables of probes shows here: a rule with its limits, and the verdict with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from reports import style
from reports.contrasts import SOLVED
from reports.probe_reference import PaperRow
from reports.probe_rows import Point, ProbeRow

Verdict = Literal["reproduced", "differs", "not attempted"]

MARGIN = 0.10
"""How far the paper's figure may lie outside our interval. Seeds of one model lie as far apart: attention at twice
its training length in results/h200/quick has 66, 68 and 58 %."""
MIN_SHARE = 0.25
"""Of the paper's steps. A run that was cut earlier cannot tell a model that fails from one that had no time."""

RULE = (
    f"Solved is an accuracy of at least {SOLVED:.0%}, here the mean over seeds. A length agrees if the paper solves it "
    "and we do, or if the paper does not, and neither do we, and its figure is within "
    f"{100 * MARGIN:.0f} points of our interval (the mean of the ends of the seeds' 95 % intervals). reproduced: every "
    "length that the paper prints agrees; differs: one does not, the shortest is named; not attempted: no "
    f"score, lengths that were not scored while the others agree, or fewer than {MIN_SHARE:.0%} of the paper's steps, "
    "unless the paper solves every length it prints and we do too, which fewer steps only make harder. Runs that "
    "were cut are compared as they are, by their last validation at the training length, and say so."
).replace("%", "\N{NO-BREAK SPACE}%")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """None for a model that the paper does not have."""

    verdict: Verdict | None
    why: str


def agrees(published: float, ours: Point) -> bool:
    """Whether our accuracy at a length is the paper's (shares)."""
    if published >= SOLVED or ours.mean >= SOLVED:
        return published >= SOLVED and ours.mean >= SOLVED
    return ours.low - MARGIN <= published <= ours.high + MARGIN


def judge_row(row: ProbeRow) -> Judgement:
    """The verdict by :data:`RULE`."""
    notes = _notes(row)
    if row.paper is None:
        return Judgement(verdict=None, why="; ".join(["not in the paper", *notes]))
    verdict, why = _verdict(row, row.paper)
    return Judgement(verdict=verdict, why="; ".join([why, *notes]))


def _verdict(row: ProbeRow, paper: PaperRow) -> tuple[Verdict, str]:
    points, printed = row.points, paper.printed
    if not points:
        return "not attempted", "no record" if not row.runs else "no score"
    agreeing = [seq_len for seq_len in printed if seq_len in points and agrees(printed[seq_len], points[seq_len])]
    differing = [seq_len for seq_len in sorted(printed) if seq_len in points and seq_len not in agreeing]
    missing = [seq_len for seq_len in sorted(printed) if seq_len not in points]
    all_solved = not differing and not missing and min(printed.values()) >= SOLVED
    if row.steps < MIN_SHARE * paper.steps and not all_solved:
        done = f"{row.steps:,.0f} of the paper's {paper.steps:,} steps"
        return "not attempted", f"{done} are fewer than {100 * MIN_SHARE:.0f}\N{NO-BREAK SPACE}%"
    if differing:
        first = differing[0]
        ours = points[first]
        return "differs", (
            f"at {style.length(first)}: {style.percent(ours.mean)} {style.span(ours.low, ours.high, 'percent')} "
            f"beside {style.percent(printed[first])}; {len(agreeing)} of {len(printed)} lengths agree"
        )
    if missing:
        lengths = ", ".join(map(style.length, missing))
        return "not attempted", f"{len(agreeing)} of {len(printed)} lengths agree, not scored: {lengths}"
    return "reproduced", "the length agrees" if len(printed) == 1 else f"all {len(printed)} lengths agree"


def _notes(row: ProbeRow) -> list[str]:
    """What a reader of the verdict must know of the runs: cut ones, failed ones, another rate than the paper's."""
    notes = []
    wanted = row.paper.steps if row.paper else math.inf
    cut = [run for run in row.runs if run.steps < min(run.steps_asked, wanted) and run.scores]
    if cut:
        seeds = ", ".join(f"seed {style.figure(run.seed)} at {run.steps:,.0f}" for run in cut)
        split = ", asked on the validation split" if any(run.provisional for run in cut) else ""
        notes.append(f"cut before {cut[0].steps_asked:,.0f} steps{split}: {seeds}")
    elif row.paper and row.points and row.steps < row.paper.steps:
        notes.append(f"asked for {row.steps:,.0f} steps, the paper's are {row.paper.steps:,}")
    if row.paper and row.points and row.lr != row.paper.lr:
        notes.append(f"at a learning rate of {row.lr:g}, the paper's is {row.paper.lr:g}")
    failed = [run for run in row.runs if not run.scores]
    notes += [f"seed {style.figure(run.seed)} {run.status}: {run.message or 'no message'}" for run in failed]
    return notes
