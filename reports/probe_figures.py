"""The paper's probes as figures: accuracy against length with the published curve behind it, a panel a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from reports import style
from reports.drawing import (
    AROUND_IN,
    GREY,
    INK,
    PUBLISHED,
    WIDTH_IN,
    Drawing,
    Rows,
    add_legend,
    draw_curves,
    draw_flags,
    draw_published,
    length_axis,
    new_figure,
)
from reports.probe_reference import SOURCE, PaperTable, paper_tables
from reports.probe_rows import ProbeRow, probe_rows
from reports.probe_verdicts import judge_row
from reports.quality import task_title

COLUMNS, PANEL_IN, LINE_IN = 3, 2.35, 0.34
BESIDE = 0.7
"""Octaves beside the outermost lengths: room for half of the paper's marker."""
PAPER = f"published ({SOURCE})"
CAPTION = (
    "Lines are means over seeds, hollow marks the seeds; bands reach from the mean of the lower to the mean of the "
    f"upper ends of the seeds' 95 % intervals. Grey: {SOURCE}"
)


def probe_jobs(training: pd.DataFrame) -> Iterator[Callable[[], Drawing]]:
    """What draws a figure for each of the paper's tables that a section's trials follow and have scores for."""
    for table in paper_tables():
        rows = probe_rows(training, table)
        if not any(row.points for row in rows):
            continue
        about = training[(training["task"] == table.task) & training["chance"].notna()]
        chance = float(about["chance"].iloc[0]) if len(about) else math.nan
        section = str(training["section"].iloc[0])
        several = len({seq_len for row in rows for seq_len in row.points}) > 1
        draw = curves_figure if several else column_figure
        yield partial(draw, table, rows, chance, section)


def _marks(rows: Sequence[ProbeRow]) -> pd.DataFrame:
    """Measured means, seeds and published figures of all rows."""
    marks = Rows()
    for row in rows:
        for seq_len, point in row.points.items():
            ends: dict[str, Any] = {"low": point.low, "high": point.high, "n": point.num_seeds, "status": "ok"}
            marks.add(row.model, "measured", seq_len, point.mean, **ends, note=row.choices)
            for run in row.runs if point.num_seeds > 1 else ():
                if seq_len in run.scores:
                    marks.add(row.model, "seed", seq_len, run.scores[seq_len][0])
            if point.few:
                note = f"{point.examples:.0f} of {point.wanted:.0f} examples, of the seed that has fewest"
                marks.add(row.model, "few_examples", seq_len, point.mean, note=note)
        for seq_len, value in (row.paper.printed if row.paper else {}).items():
            marks.add(row.model, "published", seq_len, value, note=PAPER)
    return marks.frame()


def curves_figure(table: PaperTable, rows: Sequence[ProbeRow], chance: float, section: str) -> Drawing:
    """Panels in the table's order; models without a score show the paper's curve alone."""
    data = _marks(rows)
    models = list(dict.fromkeys(row.model for row in rows if row.points or row.paper))
    styles = style.model_styles(models)
    lines = -(-len(models) // COLUMNS)
    title = f"{task_title(table.task)}: {table.name} of the paper, and here"
    sheet, panels = new_figure(title, f"trained at {style.length(table.train_len)} · {section}", "", lines, COLUMNS)
    sheet.set_size_inches(WIDTH_IN, lines * PANEL_IN + AROUND_IN)
    lengths = data["seq_len"].tolist()
    paper: list[Any] = []
    flags: list[Any] = []
    for index, (axes, model) in enumerate(zip(panels, models, strict=False)):
        mine = data[data["model"] == model]
        length_axis(axes, lengths, "")
        axes.set_xlim(min(lengths) / 2**BESIDE, max(lengths) * 2**BESIDE)
        _share_axis(axes.yaxis)
        axes.set_ylim(-0.06, 1.1)
        axes.tick_params(labelsize=8)
        axes.set_title(_panel_title(model, rows, "\n"), loc="left", fontsize=9, color=INK)
        axes.axvline(table.train_len, color=INK, linewidth=0.9, linestyle="--")
        axes.axhline(chance, color=GREY, linewidth=0.9, linestyle=":")
        # Larger than ours and below them, the seeds too, so that all are seen where they agree.
        paper = draw_published(axes, mine, markersize=8, zorder=0.9) or paper
        draw_curves(axes, mine, styles)
        flags = draw_flags(axes, mine) or flags
        if index // COLUMNS == lines - 1 or index + COLUMNS >= len(models):
            axes.set_xlabel("Sequence length (1K = 1,024)", fontsize=9, color=INK)
        else:
            axes.tick_params(labelbottom=False)
        axes.tick_params(labelleft=index % COLUMNS == 0)
    for axes in panels[len(models) :]:
        axes.remove()
    add_legend(sheet, data.iloc[:0], styles, {}, [*paper, *_lines(table, chance), *flags])
    return Drawing(
        name=f"paper-{table.task}", title=title, figure=sheet, data=data,
        caption=f"Accuracy against length (dashed: the training length; dotted: chance), a panel a model. {CAPTION}, "
        f"{table.name}, which has no figures where attention ran out of memory.",
    )  # fmt: skip


def column_figure(table: PaperTable, rows: Sequence[ProbeRow], chance: float, section: str) -> Drawing:
    """A table of one length: a line a model, our mean with its interval, the seeds, and the paper's figure."""
    data = _marks(rows)
    models = list(dict.fromkeys(row.model for row in rows if row.points or row.paper))
    styles = style.model_styles(models)
    title = f"{task_title(table.task)}: {table.name} of the paper, and here"
    sheet, (axes,) = new_figure(title, f"trained at {style.length(table.train_len)} · {section}")
    sheet.set_size_inches(WIDTH_IN, len(models) * LINE_IN + AROUND_IN)
    for line, model in enumerate(models):
        mine, look = data[data["model"] == model], styles[model]
        for mark in mine.to_dict("records"):
            if mark["mark"] == "published":
                axes.plot(mark["value"], line, "D", color=PUBLISHED, markerfacecolor="white", markersize=8, zorder=1.5)
            elif mark["mark"] == "seed":
                axes.plot(mark["value"], line, look.marker, color=look.color, markerfacecolor="none", markersize=5)
            elif mark["mark"] == "measured":
                axes.plot([mark["low"], mark["high"]], [line, line], color=look.color, linewidth=2.2)
                axes.plot(mark["value"], line, look.marker, color=look.color, markersize=6)
    where = data["model"].map({model: line for line, model in enumerate(models)})
    flags = draw_flags(axes, data.assign(accuracy=data["value"], value=where), "accuracy")
    axes.set_yticks(range(len(models)), [_panel_title(model, rows) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    _share_axis(axes.xaxis)
    axes.set_xlabel("Accuracy", fontsize=10, color=INK)
    axes.axvline(chance, color=GREY, linewidth=0.9, linestyle=":")
    add_legend(sheet, data.iloc[:0], styles, {}, [*_own_marks(data), _paper_mark(), *_lines(table, chance)[1:], *flags])
    return Drawing(
        name=f"paper-{table.task}", title=title, figure=sheet, data=data,
        caption=f"Accuracy at {style.length(table.train_len)}, a line a model (dotted: chance). {CAPTION}, "
        f"{table.name}.",
    )  # fmt: skip


def _share_axis(axis: Any) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axis.set_major_locator(MultipleLocator(0.25))
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _panel_title(model: str, rows: Sequence[ProbeRow], between: str = ": ") -> str:
    """The model and its verdict."""
    mine = [row for row in rows if row.model == model]
    verdicts = [judge_row(row).verdict or "not in the paper" for row in mine]
    return between.join([model, ", ".join(dict.fromkeys(verdicts))])


def _lines(table: PaperTable, chance: float) -> list[Any]:
    from matplotlib.lines import Line2D

    length = f"training length ({style.length(table.train_len)})"
    return [
        Line2D([], [], color=INK, linewidth=0.9, linestyle="--", label=length),
        Line2D([], [], color=GREY, linewidth=0.9, linestyle=":", label=f"chance ({style.percent(chance)})"),
    ]  # fmt: skip


def _own_marks(data: pd.DataFrame) -> list[Any]:
    """What the legend says of the filled and hollow marks of a table of one length."""
    from matplotlib.lines import Line2D

    said = {"measured": ("mean over seeds", GREY), "seed": ("one seed", "none")}
    return [
        Line2D([], [], linestyle="", marker="o", color=GREY, markerfacecolor=face, label=label)
        for mark, (label, face) in said.items()
        if (data["mark"] == mark).any()
    ]


def _paper_mark() -> Any:
    from matplotlib.lines import Line2D

    looks: dict[str, Any] = {"color": PUBLISHED, "marker": "D", "markerfacecolor": "white", "markersize": 8}
    return Line2D([], [], linestyle="", label=PAPER, **looks)
