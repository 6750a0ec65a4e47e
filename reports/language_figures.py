"""Language pretraining as figures: loss against tokens and against FLOPs, bits per byte against length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from reports import style
from reports.drawing import (
    INK,
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
)
from reports.language_rows import LanguageGroup, LanguageRun, language_groups

PANELS = {"tokens": "Tokens read", "flops": "FLOPs spent (the model's own, forward and backward)"}
FIRST_SHARE = 0.1
"""Of a training is left out: its first losses would press the others together."""
_PRESSED = 2.0
"""A second row of panels shows what is as good as the models at their training length, where the whole range is so many
times as wide as theirs."""


def language_jobs(training: pd.DataFrame) -> Iterator[Callable[[], Drawing]]:
    """What draws the figures of each group of a section's language trainings."""
    groups = language_groups(training)
    for group in groups:
        if any(run.curve for run in group.runs):
            yield partial(loss_figure, group)
    if any(run.scores for group in groups for run in group.runs):
        yield partial(context_figure, groups)


def loss_figure(group: LanguageGroup) -> Drawing:
    """Validation loss of every run, on the left against what it read, on the right against what it cost."""
    styles = style.model_styles([run.model for run in group.runs])
    rows = Rows(x="x")
    for run in group.runs:
        for mark, per_step in (("tokens", run.tokens_per_step), ("flops", run.flops_per_step)):
            for step, loss in run.curve:
                if step >= FIRST_SHARE * run.steps_asked:
                    note = f"seed {style.figure(run.seed)}, step {step:.0f}"
                    rows.add(run.model, mark, step * per_step, loss, status="ok" if run.finished else "cut", note=note)
    data = rows.frame()
    title = f"Language: validation loss, {group.symbols}"
    stamp = style.STAMP if "embedded" in str(group.about["source"]) else ""
    sheet, panels = new_figure(title, _subtitle(group), stamp, 1, 2)
    for axes, (mark, label) in zip(panels, PANELS.items(), strict=True):
        _draw_losses(axes, data[data["mark"] == mark], styles, style.rate if mark == "tokens" else "{:.0e}".format)
        axes.set_xlabel(label, fontsize=10, color=INK)
    unit = "byte" if group.symbols == "bytes" else "token"
    panels[0].set_ylabel(f"Bits per {unit}", fontsize=10, color=INK)
    add_legend(sheet, data.assign(mark=data["mark"].map(lambda _: "loss")), styles, {}, last=_cut_handle(data))
    return Drawing(
        name=f"language-loss-{group.symbols}", title=title, figure=sheet, data=data,
        caption="Loss on a fixed set of windows of the validation split while training goes on, without the first "
        "tenth; a line a seed, its end marked, hollow where the training was cut. "
        f"Symbols: {group.symbols}. The learning rate falls to its end at the full marks, so that a point before them "
        "is not what a training of that budget gives. Both axes are logarithmic.",
    )  # fmt: skip


def _cut_handle(data: pd.DataFrame) -> list[Any]:
    """What a hollow end means, where there is one."""
    from matplotlib.lines import Line2D

    if not (data["status"] == "cut").any():
        return []
    label = "cut before its last step"
    return [Line2D([], [], color=INK, marker="o", markerfacecolor="white", markersize=6, linestyle="", label=label)]


def _draw_losses(axes: Any, data: pd.DataFrame, styles: Styles, show: Callable[[float], str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for (model, _), line in data.groupby(["model", data["note"].str.partition(",")[0]]):
        look, ordered = styles[str(model)], line.sort_values("x")
        axes.plot(ordered["x"], ordered["value"], color=look.color, linestyle=look.line, linewidth=1.6)
        filling = "white" if (ordered["status"] == "cut").any() else look.color
        axes.plot(
            *(ordered[name].iloc[-1:] for name in ("x", "value")),
            look.marker,
            color=look.color,
            markerfacecolor=filling,
            markersize=6,
        )
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))


def context_figure(groups: Sequence[LanguageGroup]) -> Drawing:
    """Bits per byte of the test text against the length of the context in bytes, a panel for each kind of symbols.

    Where a model falls apart beyond its training length, a second row shows the others nearer.
    """
    models = sorted({run.model for group in groups for run in group.runs})
    styles = style.model_styles(models)
    title = "Language: bits per byte against length"
    embedded = any("embedded" in str(group.about["source"]) for group in groups)
    drawn = [_length_rows(group) for group in groups]
    near = _near_limits(groups, drawn)
    num_rows = 1 if near is None else 2
    sheet, panels = new_figure(title, _subtitle(groups[0]), style.STAMP if embedded else "", num_rows, len(groups))
    for axes, group, data in zip(panels, [*groups] * num_rows, drawn * num_rows, strict=True):
        if (data["mark"] == "measured").any():
            length_axis(axes, data["seq_len"].tolist(), "Length in bytes (1K = 1,024)")
        else:
            nothing_measured(axes)
        axes.axvline(group.train_len * _bytes(group), color=INK, linewidth=1.1, linestyle="--")
        draw_curves(axes, data, styles)
        draw_rail(axes, data, styles)
        axes.set_title(f"{group.symbols}, trained at {style.length(group.train_len)}", loc="left", fontsize=10)
    for axes in panels[:: len(groups)]:
        axes.set_ylabel("Bits per byte", fontsize=10, color=INK)
    _share_limits(panels[: len(groups)])
    for axes in panels[len(groups) :]:
        axes.set_ylim(near)
        axes.set_title("the same, nearer", loc="left", fontsize=10)
    notes = [data["note"].where(data["note"] != "", group.symbols) for group, data in zip(groups, drawn, strict=True)]
    every = pd.concat([data.assign(note=note) for data, note in zip(drawn, notes, strict=True)], ignore_index=True)
    add_legend(sheet, every, styles, {})
    return Drawing(
        name="language-context", title=title, figure=sheet, data=every,
        caption="Bits per byte of the same stretches of the test split, read in windows of each length (dashed: the "
        "training length); lower is better. Lines are means over seeds; bands reach from the lowest to the highest "
        "end of the seeds' 95 % intervals, which hold the differences between texts too: models that are asked for as "
        "many tokens read the same ones. Tokens of a BPE are drawn at the bytes that they stand for on average.",
    )  # fmt: skip


def _length_rows(group: LanguageGroup) -> pd.DataFrame:
    rows, width = Rows(), _bytes(group)
    by_model: dict[str, list[LanguageRun]] = {}
    for run in group.runs:
        by_model.setdefault(run.model, []).append(run)
    for model, runs in by_model.items():
        for seq_len in group.lengths:
            found = [run.scores[seq_len] for run in runs if seq_len in run.scores]
            for run in runs:
                if seq_len in run.absent:
                    rows.add(model, "failed", seq_len * width, status="skipped", note=run.absent[seq_len])
            if found:
                rows.add(
                    model, "measured", seq_len * width, sum(score.bits_per_byte for score in found) / len(found),
                    low=min(score.low for score in found), high=max(score.high for score in found), n=len(found),
                    status="ok", note=group.symbols,
                )  # fmt: skip
    return rows.frame()


def _bytes(group: LanguageGroup) -> float:
    """Of a token; 1 where nothing was scored at the training length."""
    found = group.bytes_per_token()
    return found if math.isfinite(found) else 1.0


def _near_limits(groups: Sequence[LanguageGroup], drawn: Sequence[pd.DataFrame]) -> tuple[float, float] | None:
    """From the best of all to the worst at a training length; None where that is most of what there is."""
    measured = [data[data["mark"] == "measured"] for data in drawn]
    trained = [
        data[data["seq_len"] <= group.train_len * _bytes(group)] for group, data in zip(groups, measured, strict=True)
    ]
    values, at_training = pd.concat(measured), pd.concat(trained)
    if at_training.empty:
        return None
    low, high = values["low"].min(), at_training["high"].max()
    if values["high"].max() - low < _PRESSED * (high - low):
        return None
    margin = 0.1 * (high - low)
    return float(low - margin), float(high + margin)


def _share_limits(panels: Sequence[Any]) -> None:
    """The same bits per byte at the same height in every panel."""
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _subtitle(group: LanguageGroup) -> str:
    return " \N{MIDDLE DOT} ".join(str(group.about[key]) for key in ("source", "dtype", "section") if group.about[key])
