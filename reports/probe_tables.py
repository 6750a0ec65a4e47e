"""The paper's tables of probes beside what was trained here: verdicts, figures by length, and what it took."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from reports import fits, style
from reports.document import Block, Heading, Paragraph, Table
from reports.probe_reference import SOURCE, PaperTable, paper_tables
from reports.probe_rows import Point, ProbeRow, probe_rows, share_text
from reports.probe_verdicts import RULE, agrees, judge_row
from reports.quality import task_title

FEW = "*"
FEW_TEXT = f"{FEW} at least one seed was asked fewer examples than the suite wants: the time for scoring was up."


def probe_blocks(training: pd.DataFrame) -> list[Block]:
    """Per table of the paper that a section's trials follow: words, verdicts, both tables' figures, every length."""
    blocks: list[Block] = []
    for table in paper_tables():
        if rows := probe_rows(training, table):
            every = lengths_table(rows)
            few = any(point.few for row in rows for point in row.points.values())
            blocks += [
                Heading(text=f"{table.name} of the paper: {task_title(table.task).lower()}", level=3),
                Paragraph(text=_words(training, table, rows)),
                Table(frame=verdicts_table(rows, table)),
                Paragraph(
                    text=f"Accuracy in percent by length: the paper's ({SOURCE}) and the mean over our seeds."
                    + (f" {FEW_TEXT}" if few else "")
                ),
                Table(frame=beside_table(rows)),
                Table(frame=every, folded=f"All {len(every)} lengths with intervals and seeds"),
                Paragraph(text=f"Rule: {RULE}"),
            ]
    return blocks


def _words(training: pd.DataFrame, table: PaperTable, rows: Sequence[ProbeRow]) -> str:
    chosen = sorted({row.choices for row in rows if row.choices})
    unit = "GPU minutes" if (training["device"] == "cuda").any() else "CPU minutes"
    resumed = any(row.resumed for row in rows)
    spent = minutes(sum(row.device_s for row in rows), resumed)
    least = "; of a resumed training, which took at least that, the longer of its last process and all of its steps"
    lrs = "the learning rate is the better one on the validation split of those that were run"
    return (
        f"Trained at {style.length(table.train_len)}, batch {table.batch}; {lrs}. Chosen where the paper is silent: "
        f"{'; or: '.join(chosen)}. {spent[0].upper()}{spent[1:]} {unit} in all: the times of the trials' "
        "processes, divided among the seeds of each, added up, also where processes shared the device"
        f"{least if resumed else ''}."
    )


def minutes(seconds: float, resumed: bool) -> str:
    return ("at least " if resumed else "") + style.figure(seconds / 60)


def verdicts_table(rows: Sequence[ProbeRow], table: PaperTable) -> pd.DataFrame:
    """A row a model: the verdict and its reason, parameters and steps beside the paper's, seeds, minutes."""
    length = style.length(table.train_len)
    lines = []
    for row in rows:
        judged = judge_row(row)
        params = {run.params for run in row.runs if math.isfinite(run.params)}
        lines.append(
            {
                "Verdict": judged.verdict or style.NONE,
                "Model": row.model,
                "In the paper": row.paper.label if row.paper else style.NONE,
                "Parameters (paper's)": _pair(_range(params), row.paper.params if row.paper else ""),
                f"Seeds that solve {length}": _success(row, table.train_len),
                "Solved up to": ", ".join(style.length(run.solved_up_to(table.train_len)) for run in row.runs)
                or style.NONE,
                "Steps (paper's)": _pair(
                    _range({run.steps for run in row.runs}), f"{row.paper.steps:,}" if row.paper else ""
                ),
                "Learning rate": _learning_rate(row),
                "Minutes": minutes(row.device_s, row.resumed) if row.runs else style.NONE,
                "Why": judged.why,
            }
        )
    return pd.DataFrame(lines)


def beside_table(rows: Sequence[ProbeRow]) -> pd.DataFrame:
    """Two lines a model, the paper's and ours, a column a length."""
    lengths = sorted({seq_len for row in rows for seq_len in [*row.points, *(row.paper.accuracy if row.paper else ())]})
    lines = []
    for row in rows:
        ours = {n: share_text(point.mean) + (FEW if point.few else "") for n, point in row.points.items()}
        printed = row.paper.accuracy if row.paper else {}
        theirs = {seq_len: share_text(value) if math.isfinite(value) else "oom" for seq_len, value in printed.items()}
        for whose, figures in (("paper", theirs), (f"here ({len(row.runs)})", ours)):
            if figures or whose != "paper":
                cells = {style.length(seq_len): figures.get(seq_len, style.NONE) for seq_len in lengths}
                lines.append({"Model": row.model, "Whose (seeds)": whose, **cells})
    return pd.DataFrame(lines)


def lengths_table(rows: Sequence[ProbeRow]) -> pd.DataFrame:
    """Every model and length: the paper's figure, the mean, its interval, the seeds' range, and whether they agree."""
    lines = []
    for row in rows:
        printed = row.paper.printed if row.paper else {}
        reasons = {seq_len: reason for run in row.runs for seq_len, reason in run.absent.items()}
        for seq_len in sorted({*row.points, *printed, *reasons}):
            point, published = row.points.get(seq_len), printed.get(seq_len)
            verdict = style.NONE
            if point is not None and published is not None:
                verdict = "yes" if agrees(published, point) else "no"
            lines.append(
                {
                    "Model": row.model,
                    "Length": style.length(seq_len),
                    "Paper": style.NONE if published is None else style.percent(published),
                    "Mean over seeds": style.percent(point.mean) if point else style.NONE,
                    "95 % interval": style.span(point.low, point.high, "percent") if point else style.NONE,
                    "Lowest to highest seed": style.span(point.lowest, point.highest, "percent")
                    if point and point.num_seeds > 1
                    else style.NONE,
                    "Seeds": f"{point.num_seeds}" if point else "0",
                    "Examples": _examples(point) if point else style.NONE,
                    "Agrees": verdict,
                    "Why": "" if point else reasons.get(seq_len, "no record"),
                }
            )
    return pd.DataFrame(lines)


def _examples(point: Point) -> str:
    known = style.figure(point.examples, 4)
    return f"{known} of {style.figure(point.wanted, 4)}" if point.few else known


def _success(row: ProbeRow, train_len: int) -> str:
    """3 of 3 [43.9 %, 100.0 %]: the share of the seeds, with its Wilson interval; failed seeds count."""
    count = len(row.runs)
    if not count:
        return style.NONE
    solving = row.num_solving(train_len)
    return f"{solving} of {count} {style.span(*fits.wilson(solving / count, count), 'percent')}"


def _learning_rate(row: ProbeRow) -> str:
    if not row.lrs:
        return style.NONE
    others = [f"{lr:g}" for lr in row.lrs if lr != row.lr]
    return f"{row.lr:g}" + (f" (chosen over {', '.join(others)})" if others else "")


def _pair(ours: str, theirs: str) -> str:
    return f"{ours} ({theirs or style.NONE})"


def _range(values: set[float]) -> str:
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return style.NONE
    low, high = f"{known[0]:,.0f}", f"{known[-1]:,.0f}"
    return low if low == high else f"{low} to {high}"
