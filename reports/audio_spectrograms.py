"""Spectrograms of generated audio under those of real audio, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reports import style
from reports.audio_clips import REAL, Clip, ClipGroup
from reports.drawing import INK, WIDTH_IN, Drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
"""Clips of each that are drawn."""
WINDOW, HOP = 512, 128
"""Samples: 32 ms and 8 ms at 16 kHz."""
RANGE_DB = 80
"""From the loudest point of the real clips downwards."""
_ROW_IN, _AROUND_IN = 1.75, 1.2
_FLOOR = 1e-12


def spectrogram_figure(group: ClipGroup) -> Drawing | None:
    """A row for the real clips and one a model, a column a clip; None where no clip is as long as a window."""
    rows = {
        who: [clip for clip in clips if len(clip.samples()[0]) >= WINDOW][:COLUMNS]
        for who, clips in group.by_who().items()
    }
    rows = {who: clips for who, clips in rows.items() if clips}
    if not rows:
        return None
    title = f"Spectrograms: {group.title}"
    columns = max(map(len, rows.values()))
    sheet, axes = new_figure(title, group.section, style.STAMP if group.embedded else "", len(rows), columns)
    sheet.set_size_inches(WIDTH_IN, len(rows) * _ROW_IN + _AROUND_IN)
    levels = {id(clip): level_db(clip) for clips in rows.values() for clip in clips}
    top = max(float(levels[id(clip)][0].max()) for clip in rows.get(REAL) or next(iter(rows.values())))
    for row, (who, clips) in enumerate(rows.items()):
        for column in range(columns):
            place = axes[row * columns + column]
            if column >= len(clips):
                place.set_axis_off()
                continue
            _draw(place, *levels[id(clips[column])], top)
            name = f"clip {clips[column].number}"
            place.set_title(name if column else f"{who}, {name}", loc="left", fontsize=9, color=INK)
            place.tick_params(labelbottom=row == len(rows) - 1, labelleft=not column)
            if not column:
                place.set_ylabel("kHz", fontsize=9, color=INK)
            if row == len(rows) - 1:
                place.set_xlabel("Seconds", fontsize=9, color=INK)
    return Drawing(
        name=f"spectrograms-{group.title.replace(', ', '-').replace(' ', '-')}", title=title, figure=sheet,
        data=_spectra([clip for clips in rows.values() for clip in clips]),
        caption=f"Power in windows of {WINDOW} samples (Hann, a step of {HOP}); the darkest is {RANGE_DB} dB below the "
        "loudest point of the first row, on one scale for all. Above: clips of the test split. Below: what the models "
        "made. The CSV has the mean spectrum of each clip, not the pictures.",
    )  # fmt: skip


def level_db(clip: Clip) -> tuple[np.ndarray, float, float]:
    """Power in dB, ``(frequencies, frames)``; seconds of the clip, and the highest frequency in kHz."""
    samples, rate_hz = clip.samples()
    places = np.arange(0, len(samples) - WINDOW + 1, HOP)
    framed = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[places] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(framed, axis=1)) ** 2 / (np.hanning(WINDOW).sum() ** 2)
    return 10 * np.log10(power.T + _FLOOR), len(samples) / rate_hz, rate_hz / 2000


def _draw(axes: Axes, level: np.ndarray, seconds: float, top_khz: float, top_db: float) -> None:
    axes.grid(False)
    axes.imshow(
        level, origin="lower", aspect="auto", extent=(0, seconds, 0, top_khz), cmap="magma",
        vmin=top_db - RANGE_DB, vmax=top_db, interpolation="nearest",
    )  # fmt: skip


def _spectra(clips: Sequence[Clip]) -> pd.DataFrame:
    parts = []
    for clip in clips:
        level, _, top_khz = level_db(clip)
        mean_db = 10 * np.log10((10 ** (level / 10)).mean(axis=1))
        khz = np.linspace(0, top_khz, len(mean_db))
        parts.append(pd.DataFrame({"who": clip.who, "clip": clip.number, "khz": khz, "mean_db": mean_db.round(2)}))
    return pd.concat(parts, ignore_index=True)
