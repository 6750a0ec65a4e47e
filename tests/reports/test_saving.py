"""Figures are written alike by one process and by several, in their order, and under names of their own."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from reports import saving
from reports.drawing import Drawing
from reports.figures import Job, figure_jobs
from reports.page import Section


@pytest.fixture
def jobs(section: Section) -> list[Job]:
    """More than are drawn in one process, one of them without a figure."""
    found = figure_jobs(section.speed, section.training, section.scores)
    drawing = next(job for job in found if job() is not None)
    return [partial(_nothing), *[drawing] * 2, *found[: saving.FEW_FIGURES]]


def _nothing() -> Drawing | None:
    return None


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.conformance
def test_several_processes_write_what_one_writes(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cores=cores: cores)
        folder = tmp_path / str(len(cores))
        folder.mkdir()
        pictures = saving.save_figures(jobs, folder, "s1-")
        written.append((_files(folder), [(one.name, one.title, one.svg) for one in pictures]))
    assert written[0] == written[1]
    files, pictures = written[0]
    names = [name for name, *_ in pictures]
    assert len(set(names)) == len(names) and all(name.startswith("s1-") for name in names)
    assert set(files) == {f"{name}.{end}" for name in names for end in ("svg", "png", "csv")}
    assert len(names) < len(jobs)  # a job without a figure leaves nothing


def test_work_is_shared_between_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(folder: Path) -> Drawing | None:
        (folder / str(os.getpid())).touch()
        return None

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    assert saving.save_figures([partial(process, tmp_path)] * 8, tmp_path) == []
    assert str(os.getpid()) not in {path.name for path in tmp_path.iterdir()}


def test_an_error_while_drawing_is_not_lost(tmp_path: Path) -> None:
    def broken() -> Drawing | None:
        raise ZeroDivisionError("in a figure")

    for count in (1, saving.FEW_FIGURES + 2):
        with pytest.raises(ZeroDivisionError, match="in a figure"):
            saving.save_figures([broken] * count, tmp_path)
