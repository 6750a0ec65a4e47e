"""The paper's ablation on raw audio as a figure: bits per sample above Mamba-S4's, here and in the paper.

Of a single length it shows the bits themselves, a line a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports import style
from reports.audio_reference import MAMBA_S4, SOURCE, Panel, ablation_panels
from reports.audio_rows import AudioGroup, audio_groups, difference
from reports.drawing import (
    AROUND_IN,
    GREY,
    INK,
    PUBLISHED,
    WIDTH_IN,
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_rail,
    length_axis,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_IN, PANEL_IN = 0.42, 0.75
"""The height of a row, and what a panel takes beside its rows."""
TITLE = "Audio: what selection costs on a homogeneous waveform"


def audio_jobs(training: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Callable[[], Drawing]]:
    """What draws the ablation of each group that has Mamba-S4 and another of its rows; at one length, any two."""
    for group in audio_groups(training, scores):
        one = len(group.lengths) == 1
        wanted = _shares_rows if one else _measured
        panels = [panel for panel in ablation_panels() if wanted(group, panel)]
        if panels:
            yield partial(rows_figure if one else ablation_figure, group, panels)


def _shares_rows(group: AudioGroup, panel: Panel) -> bool:
    return len(group.bits.keys() & set(panel.models)) > 1


def _measured(group: AudioGroup, panel: Panel) -> list[str]:
    """The panel's models that can be set beside Mamba-S4."""
    known = group.bits.get(MAMBA_S4, {})
    return [model for model in panel.models if model != MAMBA_S4 and known.keys() & group.bits.get(model, {}).keys()]


def ablation_figure(group: AudioGroup, panels: Sequence[Panel]) -> Drawing:
    """Above: here. Below: the paper's. A column each for all blocks and for the centre's alone; lines are the rows."""
    looks = style.model_styles(model for panel in panels for model in panel.models)
    styles = {label: looks[model] for panel in reversed(panels) for label, (model, _) in panel.rows.items()}
    stamp = style.STAMP if group.embedded else ""
    sheet, axes = new_figure(TITLE, f"{group.choices} · {group.section}", stamp, 2, len(panels))
    drawn = []
    for column, panel in enumerate(panels):
        for row, (whose, data) in enumerate((("here", _ours(group, panel)), ("the paper", _papers(panel)))):
            place = axes[row * len(panels) + column]
            length_axis(place, data["seq_len"].tolist(), "Length trained and scored at (1K = 1,024)" if row else "")
            place.axhline(0, color=GREY, linewidth=1.1, linestyle=":")
            place.set_title(f"{whose}: {panel.title}", loc="left", fontsize=10, color=INK)
            if not column:
                place.set_ylabel("Bits a sample above Mamba-S4", fontsize=9, color=INK)
            draw_curves(place, data, styles)
            draw_rail(place, data, styles)
            drawn.append(data.assign(note=f"{whose}, {panel.title}: " + data["note"]))
    every = pd.concat(drawn, ignore_index=True)
    add_legend(sheet, every, styles, {})
    names = dict.fromkeys(f"{label}: {model}" for panel in panels for label, (model, _) in panel.rows.items())
    return Drawing(
        name="audio-ablation", title=TITLE, figure=sheet, data=every,
        caption="Bits per sample less those of Mamba-S4, which has complex states and selects nothing, at the same "
        "length and seed; above zero is worse. Lines are means over seeds, bands Student's 95 % intervals over seeds "
        f"where there are two or more. Below: {SOURCE}, Fig 10, digitised; other data, and far more steps: compare "
        f"the order, not the size. {'; '.join(names)}.",
    )  # fmt: skip


def rows_figure(group: AudioGroup, panels: Sequence[Panel]) -> Drawing:
    """At one length: a line a row in the paper's order; on the left the bits here, on the right the paper's."""
    from matplotlib.ticker import MaxNLocator

    (seq_len,) = group.lengths
    looks = style.model_styles(model for panel in panels for model in panel.models)
    title, stamp = f"{TITLE}, at {style.length(seq_len)}", style.STAMP if group.embedded else ""
    sheet, axes = new_figure(title, f"{group.choices} · {group.section}", stamp, len(panels), 2)
    most = max(len(panel.rows) for panel in panels)
    sheet.set_size_inches(WIDTH_IN, len(panels) * (most * LINE_IN + PANEL_IN) + AROUND_IN)
    drawn = []
    for row, panel in enumerate(panels):
        ours, papers = _bits_here(group, panel, seq_len), _bits_published(panel, seq_len)
        here, there = axes[2 * row : 2 * row + 2]
        names = [f"{label}\n{model}" for label, (model, _) in panel.rows.items()]
        for place, data, whose in ((here, ours, "here"), (there, papers, "the paper")):
            place.set_title(f"{whose}: {panel.title}", loc="left", fontsize=10, color=INK)
            place.set_yticks(range(len(names)), names if place is here else [""] * len(names))
            place.tick_params(axis="y", labelsize=8)
            place.set_ylim(len(names) - 0.5, -0.5)
            place.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            _draw_points(place, data, panel, looks)
            drawn.append(data.assign(note=f"{whose}, {panel.title}: " + data["note"]))
            if row == len(panels) - 1:
                place.set_xlabel("Bits per sample", fontsize=10, color=INK)
    every = pd.concat(drawn, ignore_index=True)
    add_legend(sheet, every.iloc[:0], {}, {}, _row_handles(several=bool((every["mark"] == "seed").any())))
    return Drawing(
        name="audio-ablation", title=title, figure=sheet, data=every,
        caption=f"Bits per sample, trained and scored at {style.length(seq_len)}, a line a row of the ablation in the "
        "paper's order; lower is better. Left: means over seeds with Student's 95 % interval over seeds, of one seed "
        f"the interval over windows, which hold what is hard for every model too. Right: {SOURCE}, Fig 10, digitised, "
        "on a scale of its own; other data, and far more steps: compare the order, not the size.",
    )  # fmt: skip


def _bits_here(group: AudioGroup, panel: Panel, seq_len: int) -> pd.DataFrame:
    rows = Rows()
    for label, (model, _) in panel.rows.items():
        if bits := group.bits.get(model, {}).get(seq_len):
            ends = {"low": bits.low, "high": bits.high, "n": len(bits.seeds), "status": "ok"}
            rows.add(label, "measured", seq_len, bits.mean, **ends, note=model)
            for value in bits.seeds.values() if len(bits.seeds) > 1 else ():
                rows.add(label, "seed", seq_len, value, note=model)
        else:
            reason = group.absent.get(model, {}).get(seq_len, "not run")
            rows.add(label, "failed", seq_len, status=reason.partition(":")[0], note=f"{model}, {reason}")
    return rows.frame()


def _bits_published(panel: Panel, seq_len: int) -> pd.DataFrame:
    rows = Rows()
    for label, (_, curve) in panel.rows.items():
        if seq_len in curve:
            rows.add(label, "published", seq_len, curve[seq_len], status="ok", note="published")
    return rows.frame()


def _draw_points(axes: Axes, data: pd.DataFrame, panel: Panel, looks: Styles) -> None:
    """Each row's points on its line; its status where there is none."""
    labels = list(panel.rows)
    for mark in data.to_dict("records"):
        line, look = labels.index(mark["model"]), looks[panel.rows[mark["model"]][0]]
        if mark["mark"] == "failed":
            place = axes.get_yaxis_transform()
            axes.text(0.02, line, mark["status"], transform=place, va="center", fontsize=8, color=GREY)
        elif mark["mark"] == "published":
            axes.plot(mark["value"], line, "D", color=PUBLISHED, markerfacecolor="white", markersize=7)
        elif mark["mark"] == "seed":
            axes.plot(mark["value"], line, look.marker, color=look.color, markerfacecolor="none", markersize=5)
        else:
            axes.plot([mark["low"], mark["high"]], [line, line], color=look.color, linewidth=2.2)
            axes.plot(mark["value"], line, look.marker, color=look.color, markersize=7)
        if mark["mark"] in ("measured", "published") and panel.rows[mark["model"]][0] == MAMBA_S4:
            axes.axvline(mark["value"], color=GREY, linewidth=1.1, linestyle=":", zorder=1)


def _row_handles(several: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    point: dict[str, Any] = {"color": GREY, "marker": "o", "linewidth": 2.2}
    handles = [
        Line2D([], [], label="here, with its 95 % interval", **point),
        Line2D([], [], linestyle="", color=PUBLISHED, marker="D", markerfacecolor="white", label=f"{SOURCE}, Fig 10"),
        Line2D([], [], color=GREY, linewidth=1.1, linestyle=":", label="Mamba-S4, which selects nothing"),
    ]
    if several:
        handles.insert(1, Line2D([], [], linestyle="", color=GREY, marker="o", markerfacecolor="none", label="a seed"))
    return handles


def _ours(group: AudioGroup, panel: Panel) -> pd.DataFrame:
    rows, base = Rows(), group.bits.get(MAMBA_S4, {})
    for label, (model, _) in panel.rows.items():
        for seq_len, bits in sorted(group.bits.get(model, {}).items()):
            if seq_len in base and model != MAMBA_S4:
                mean, low, high = difference(bits, base[seq_len])
                ends = {"low": low, "high": high, "n": len(bits.seeds), "status": "ok"}
                rows.add(label, "measured", seq_len, mean, **ends, note=model)
        for seq_len, reason in sorted(group.absent.get(model, {}).items()):
            rows.add(label, "failed", seq_len, status=reason.partition(":")[0], note=f"{model}, {reason}")
    return rows.frame()


def _papers(panel: Panel) -> pd.DataFrame:
    rows = Rows()
    base = next(curve for model, curve in panel.rows.values() if model == MAMBA_S4)
    for label, (model, curve) in panel.rows.items():
        for seq_len, value in curve.items():
            if model != MAMBA_S4:
                rows.add(label, "measured", seq_len, value - base[seq_len], status="ok", note="published")
    return rows.frame()
