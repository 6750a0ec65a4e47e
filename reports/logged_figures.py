"""What is logged while a model trains, against the step: its loss, and the loss or accuracy on the validation split."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports import style
from reports.drawing import AROUND_IN, GREY, INK, WIDTH_IN, Drawing, Styles, add_legend, new_figure
from reports.frames import TRAINING_GROUP
from reports.quality import PROBES, UNITS, Labels, is_embedded, stamp_of, stamped, task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Fills = Mapping[Any, Mapping[str, Any]]
"""By seed, what fills a mark."""
MARKED = "Marks along a line only tell which it is."
FILLS: tuple[Mapping[str, Any], ...] = (
    {},
    {"markerfacecolor": "white"},
    *({"fillstyle": side, "markerfacecoloralt": "white"} for side in ("left", "right", "top", "bottom")),
)
"""Of the marks of a model's seeds, in their order."""
SEED_WIDTH = 1.2
MARKS = 4
"""On each curve."""
MANY_PANELS, MANY_PANEL_IN = 8, 2.5
"""From more panels on they are smaller, three abreast, and so high."""


def losses_figure(losses: pd.DataFrame, styles: Styles | None = None, labels: Labels | None = None) -> Drawing | None:
    """Training loss against step: a panel a task and protocol, a line a seed; None where none was logged."""
    caption = f"Training loss as logged, the mean cross-entropy of a step's targets, one line a seed. {MARKED}"
    return _logged_figure(losses, "loss", "losses", "Training loss", caption, styles, labels)


def validation_losses_figure(
    losses: pd.DataFrame, styles: Styles | None = None, labels: Labels | None = None
) -> Drawing | None:
    """Loss on the validation split against step, as :func:`losses_figure`; None where none was logged."""
    caption = (
        "Mean cross-entropy of the validation examples at the training length as training goes on, one line a seed: "
        f"where it rises, a model overfits. {MARKED}"
    )
    title = "Loss on the validation split as training goes on"
    return _logged_figure(losses, "loss", "validation-losses", title, caption, styles, labels)


def validation_figure(validation: pd.DataFrame, styles: Styles | None = None) -> Drawing | None:
    """Accuracy on the validation split against step, as :func:`losses_figure`; None where none was logged."""
    caption = (
        "Accuracy on the validation split at the training length as training goes on, one line a seed; dotted: chance. "
        f"{MARKED}"
    )
    title = "Accuracy on the validation split as training goes on"
    return _logged_figure(validation, "accuracy", "validation", title, caption, styles)


def _logged_figure(
    logged: pd.DataFrame,
    column: str,
    name: str,
    title: str,
    caption: str,
    styles: Styles | None,
    labels: Labels | None = None,
) -> Drawing | None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    if logged.empty:
        return None
    styles = styles or style.model_styles(logged["model"])
    groups = [
        (dict(zip(TRAINING_GROUP, key, strict=True)), rows)
        for key, rows in logged.groupby(TRAINING_GROUP, dropna=False)
    ]
    groups.sort(key=lambda group: group[0]["task"] not in PROBES)
    many = len(groups) > MANY_PANELS
    columns = min(3 if many else 2, len(groups))
    lines = -(-len(groups) // columns)
    sheet, panels = new_figure(title, str(groups[0][0]["section"]), stamp_of(logged), lines, columns)
    if many:
        sheet.set_size_inches(WIDTH_IN, lines * MANY_PANEL_IN + AROUND_IN)
    drawn, fills = [], seed_fills(logged["seed"])
    for axes, (about, rows) in zip(panels, groups, strict=False):
        _draw_logged(axes, rows, column, styles, fills)
        mark = f" · {style.STAMP.lower()}" if is_embedded(rows) else ""
        size, width = (8, 38) if many else (10, 48)
        axes.set_title(f"{_panel_title(about, groups, width)}{mark}", loc="left", fontsize=size, color=INK)
        axes.set_xlabel("Step", fontsize=size, color=INK)
        label = "Accuracy" if column == "accuracy" else _loss_label(str(about["task"]))
        axes.set_ylabel(label, fontsize=size, color=INK)
        if column == "accuracy":
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            for chance in rows["chance"].dropna().unique():
                axes.axhline(chance, color=GREY, linewidth=0.9, linestyle=":")
        elif (low := float(rows[column].min())) < rows[column].max() / 2:
            axes.set_ylim(bottom=min(0.0, low))  # else the curves would lie flat at the top
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        drawn.append(rows.assign(mark=column, status="ok"))
    for axes in panels[len(groups) :]:
        axes.remove()
    about_run = ["section", "task", "train_len", "source", "variant", "model", "seed", "trial_id"]
    data = pd.concat(drawn)[[*about_run, "mark", "status", "step", column]].reset_index(drop=True)
    add_legend(sheet, data, styles, labels or {}, _seed_handles(fills))
    return Drawing(name=name, title=title, caption=stamped(caption, logged), figure=sheet, data=data)


def seed_fills(seeds: Iterable[float]) -> Fills:
    """How the marks of each seed are filled; all alike where there are more seeds than ways to fill a mark."""
    ordered = sorted({seed for seed in seeds if seed == seed})
    if len(ordered) > len(FILLS):
        return dict.fromkeys(ordered, FILLS[0])
    return dict(zip(ordered, FILLS, strict=False))


def _draw_logged(axes: Axes, rows: pd.DataFrame, column: str, styles: Styles, fills: Fills) -> None:
    """A line a seed, thinner where a model has several. Curves that coincide stay visible: each is thinner than the
    one under it, and its marks stand where those of the others do not."""
    models = sorted(rows["model"].unique())
    lines = list(rows.groupby(["model", "seed", "trial_id"], dropna=False))
    for index, ((model, seed, _), line) in enumerate(lines):
        line, look = line.sort_values("step"), styles[str(model)]
        width = 2.4 - 1.4 * models.index(model) / max(len(models) - 1, 1)
        if rows.loc[rows["model"] == model, "seed"].nunique() > 1:
            width = min(width, SEED_WIDTH)
        places = {round((len(line) - 1) * (mark + (index + 0.5) / len(lines)) / MARKS) for mark in range(MARKS)}
        axes.plot(
            line["step"],
            line[column],
            color=look.color,
            linestyle=look.line,
            linewidth=width,
            zorder=3 - width / 10,
            clip_on=False,
            marker=look.marker,
            markevery=sorted(places),
            markersize=5,
            markeredgewidth=0.9,
            **fills.get(seed, {}),
        )


def _seed_handles(fills: Fills) -> list[Any]:
    """What the legend says of the seeds, where they are told apart."""
    from matplotlib.lines import Line2D

    if not 1 < len(fills) <= len(FILLS):
        return []
    looks: dict[str, Any] = {"linestyle": "", "color": GREY, "marker": "o", "markersize": 5}
    return [Line2D([], [], label=f"seed {style.figure(seed)}", **looks, **fill) for seed, fill in fills.items()]


def _loss_label(task: str) -> str:
    return f"Loss (nats per {UNITS[task]})" if task in UNITS else "Loss (nats)"


def _panel_title(about: Mapping[str, Any], groups: list[tuple[dict[str, Any], pd.DataFrame]], width: int) -> str:
    """The task and its training length; what else tells it from panels that would read alike."""
    title = f"{task_title(str(about['task']))} at {style.length(about['train_len'])}"
    alike = [other for other, _ in groups if (other["task"], other["train_len"]) == (about["task"], about["train_len"])]
    varied = [key for key in TRAINING_GROUP if len({str(other[key]) for other in alike}) > 1]
    differences = [str(about[key]) for key in varied if about[key] != ""]
    # A panel holds so many characters (width), and a protocol that differs in much is longer.
    return "\n".join(textwrap.wrap(", ".join([title, *differences]), width, max_lines=2))
