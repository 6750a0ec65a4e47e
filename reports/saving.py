"""Figures to files: SVG, PNG and the data as CSV, drawn side by side in forked processes.

Drawing takes far longer than reading and judging records, and one figure needs nothing of another.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reports.document import Picture

if TYPE_CHECKING:
    from reports.drawing import Drawing
    from reports.figures import Job

PNG_DPI = 160
PNG_COMPRESSION = 3  # of zlib's 9: files a tenth larger than the default's, in two thirds of its time
FEW_FIGURES = 3  # up to so many, starting processes takes longer than drawing


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A figure's words and what its three files hold."""

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    csv: str


def save_figures(jobs: Sequence[Job], folder: Path, prefix: str = "") -> list[Picture]:
    """Runs every job and writes its figure into folder, named `prefix` and a name without repeats; in the jobs' order.

    The files do not depend on how many processes drew them.
    """
    from reports.figures import unique_names

    rendered = [one for one in _rendered(jobs) if one is not None]
    pictures = []
    for one, name in zip(rendered, unique_names([prefix + one.name for one in rendered]), strict=True):
        (folder / f"{name}.svg").write_bytes(one.svg)
        (folder / f"{name}.png").write_bytes(one.png)
        (folder / f"{name}.csv").write_text(one.csv, encoding="utf-8")
        pictures.append(Picture(name=name, title=one.title, caption=one.caption, svg=one.svg))
    return pictures


def render(drawing: Drawing) -> Rendered:
    """The figure in its three forms."""
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": drawing.name, "svg.fonttype": "path", "text.hinting": "none"}):
        drawing.figure.draw_without_rendering()
        drawing.figure.set_layout_engine(None)  # laid out now; with an engine, each format would draw twice
        drawing.figure.savefig(svg, format="svg", metadata={"Date": None})
        compression = {"compress_level": PNG_COMPRESSION}
        drawing.figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None}, pil_kwargs=compression)
    return Rendered(
        name=drawing.name,
        title=drawing.title,
        caption=drawing.caption,
        svg=svg.getvalue(),
        png=png.getvalue(),
        csv=drawing.data.to_csv(index=False),
    )


_jobs: Sequence[Job] = ()
"""Of a forked process: jobs are inherited, because neither figures nor frames should be pickled."""


def _rendered(jobs: Sequence[Job]) -> list[Rendered | None]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(cores, len(jobs)) < 2 or len(jobs) <= FEW_FIGURES or "fork" not in multiprocessing.get_all_start_methods():
        return [_render_job(job) for job in jobs]
    # Imported once here and not in each process.
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401

    workers = min(cores, len(jobs))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _inherit, (jobs,)) as pool:
        return list(pool.map(_render_at, range(len(jobs))))


def _inherit(jobs: Sequence[Job]) -> None:
    global _jobs  # a pool's processes get their work by index
    _jobs = jobs


def _render_at(index: int) -> Rendered | None:
    return _render_job(_jobs[index])


def _render_job(job: Job) -> Rendered | None:
    drawing = job()
    return render(drawing) if drawing is not None else None
