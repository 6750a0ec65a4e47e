"""Figures, tables and pages, drawn from records alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.contrasts import Contrast, judge_contrasts
    from reports.fits import crossover, fit_slope, geometric_mean_speedup
    from reports.frames import generation_frame, scores_frame, speed_frame, training_frame, trials_frame
    from reports.page import judge, speed_markdown, write_report
    from reports.speed_claims import judge_speed_claims

__all__ = [
    "Contrast",
    "crossover",
    "fit_slope",
    "generation_frame",
    "geometric_mean_speedup",
    "judge",
    "judge_contrasts",
    "judge_speed_claims",
    "scores_frame",
    "speed_frame",
    "speed_markdown",
    "training_frame",
    "trials_frame",
    "write_report",
]
_HOME = {
    "Contrast": "contrasts",
    "judge_contrasts": "contrasts",
    "crossover": "fits",
    "fit_slope": "fits",
    "geometric_mean_speedup": "fits",
    "scores_frame": "frames",
    "speed_frame": "frames",
    "training_frame": "frames",
    "generation_frame": "frames",
    "trials_frame": "frames",
    "judge": "page",
    "judge_speed_claims": "speed_claims",
    "speed_markdown": "page",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    """Loads on first use: pandas and matplotlib must not slow down a command line that only prints its help."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"reports.{_HOME[name]}"), name)
