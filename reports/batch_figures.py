"""The layout of figures against batch: generation throughput, and the memory of training."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.drawing import (
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    draw_flags,
    draw_published,
    draw_rail,
    length_axis,
    new_figure,
    nothing_measured,
    value_axis,
)

BATCH_AXIS = "Batch (sequences)"


def draw_batches(
    panels: Sequence[tuple[str, Rows]],
    styles: Styles,
    labels: dict[str, str],
    first: pd.Series,
    *,
    unit: str,
    what: str,
    name: str,
    title: str,
    caption: str,
) -> Drawing:
    """A panel for each (label of its values, rows), side by side; ``first`` is a trial of the group, for the subtitle,
    which also says ``what`` was asked."""
    parts = (first["section"], first["scale"], what, first["dtype"], first["variant"])
    subtitle = " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)
    sheet, all_axes = new_figure(title, subtitle, columns=len(panels))
    drawn: list[pd.DataFrame] = []
    extra: list[object] = []
    flags: list[object] = []
    for axes, (label, rows) in zip(all_axes, panels, strict=True):
        data = rows.frame()
        shown = data[data["mark"].isin(["measured", "predicted", "published"])]
        length_axis(axes, data["batch"].tolist(), BATCH_AXIS)
        value_axis(axes, label, unit, pd.concat([shown["value"], shown["low"], shown["high"]]).tolist())
        extra += draw_published(axes, data, "batch")
        draw_curves(axes, data, styles, "batch")
        if (shown["mark"] == "published").all():
            nothing_measured(axes)
        draw_rail(axes, data, styles, "batch")
        flags = draw_flags(axes, data, "batch") or flags
        drawn.append(data)
    data = pd.concat(drawn, ignore_index=True)
    add_legend(sheet, data, styles, labels, [*extra, *flags])
    return Drawing(name=name, title=title, caption=caption, figure=sheet, data=data)


def add_failed(rows: Rows, frame: pd.DataFrame, column: str, name: str = "model") -> None:
    """Every trial without a figure, for a rail along `column`."""
    for row in frame[(frame["status"] != "ok") & frame[column].notna()].to_dict("records"):
        note = f"{row['trial_id'][:8]}: {row['error_message'] or row['status']}"
        rows.add(row[name], "failed", row[column], status=row["status"], note=note)
