"""The paper's ablation on raw audio as a figure: bits per sample above Mamba-S4's, here and in the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd

from reports import style
from reports.audio_reference import MAMBA_S4, SOURCE, Panel, ablation_panels
from reports.audio_rows import AudioGroup, audio_groups, difference
from reports.drawing import GREY, INK, Drawing, Rows, add_legend, draw_curves, draw_rail, length_axis, new_figure


def audio_jobs(training: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Callable[[], Drawing]]:
    """What draws the ablation of each group that has Mamba-S4 and another of its rows."""
    for group in audio_groups(training, scores):
        panels = [panel for panel in ablation_panels() if _measured(group, panel)]
        if panels:
            yield partial(ablation_figure, group, panels)


def _measured(group: AudioGroup, panel: Panel) -> list[str]:
    """The panel's models that can be set beside Mamba-S4."""
    known = group.bits.get(MAMBA_S4, {})
    return [model for model in panel.models if model != MAMBA_S4 and known.keys() & group.bits.get(model, {}).keys()]


def ablation_figure(group: AudioGroup, panels: Sequence[Panel]) -> Drawing:
    """Above: here. Below: the paper's. A column each for all blocks and for the centre's alone; lines are the rows."""
    looks = style.model_styles(model for panel in panels for model in panel.models)
    styles = {label: looks[model] for panel in reversed(panels) for label, (model, _) in panel.rows.items()}
    title = "Audio: what selection costs on a homogeneous waveform"
    stamp = style.STAMP if group.embedded else ""
    sheet, axes = new_figure(title, f"{group.choices} · {group.section}", stamp, 2, len(panels))
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
        name="audio-ablation", title=title, figure=sheet, data=every,
        caption="Bits per sample less those of Mamba-S4, which has complex states and selects nothing, at the same "
        "length and seed; above zero is worse. Lines are means over seeds, bands Student's 95 % intervals over seeds "
        f"where there are two or more. Below: {SOURCE}, Fig 10, digitised; other data, and far more steps: compare "
        f"the order, not the size. {'; '.join(names)}.",
    )  # fmt: skip


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
