"""The paper's figures of raw audio, from results/reference/, and which of the suite's models stands for which curve.

Figures 7 and 10 of Gu and Dao, arXiv 2312.00752v2: bits per sample of YouTubeMix, which we do not have. Differences
between models compare, levels do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "audio.csv"
SOURCE = "Gu and Dao, arXiv 2312.00752v2"
MAMBA_S4 = "s6_complex_lti.mamba-unet8x4"
_CENTRE = "s6_complex_lti.mamba+"
ALL = "all blocks"
# What the paper calls a curve -> the suite's model.
CONTEXT = {"S4+FFN (SaShiMi)": "s4d-unet3x16", "Mamba": "mamba_complex-unet3x16"}
ALL_BLOCKS = {
    "S4+MLP": "s4d-unet8x4",
    "Mamba (S6)": "mamba-unet8x4",
    "+ complex": "mamba_complex-unet8x4",
    "- selective B/C": "s6_complex_dt.mamba-unet8x4",
    "- selective Delta (Mamba-S4)": MAMBA_S4,
}
CENTRE = {
    "Mamba (S6)": f"{_CENTRE}mamba-unet8x4",
    "+ complex": f"{_CENTRE}mamba_complex-unet8x4",
    "- selective B/C": f"{_CENTRE}s6_complex_dt.mamba-unet8x4",
    "- selective Delta (Mamba-S4)": MAMBA_S4,
}

Curve = Mapping[int, float]
"""Bits per sample by length."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Half of Fig. 10. ``rows``: the suite's model and the paper's curve, by the paper's name, in its order."""

    title: str
    rows: Mapping[str, tuple[str, Curve]]

    @property
    def models(self) -> list[str]:
        return [model for model, _ in self.rows.values()]


def context_curves() -> dict[str, Curve]:
    """Figure 7: the paper's curve by the suite's model."""
    return dict(_curves("M1-fig7-", CONTEXT).values())


def ablation_panels() -> list[Panel]:
    """Figure 10, left and right; none where the file is not installed."""
    panels = [
        Panel(title=ALL, rows=_curves("M1-fig10L-", ALL_BLOCKS)),
        Panel(title="the centre's blocks alone", rows=_curves("M1-fig10R-", CENTRE)),
    ]
    return [panel for panel in panels if panel.rows]


def row_names() -> dict[str, str]:
    """What the paper calls each of its models."""
    names = {model: label for label, model in CONTEXT.items()}
    for panel in ablation_panels():
        where = "" if panel.title == ALL else f", {panel.title}"
        for label, (model, _) in panel.rows.items():
            names.setdefault(model, f"{label}{where}")
    return names


def is_ablation(models: Iterable[str]) -> bool:
    """Whether two rows of a panel or more are among them."""
    known = set(models)
    return any(len(known & set(panel.models)) > 1 for panel in ablation_panels())


def row_labels(models: Iterable[str]) -> dict[str, str]:
    """What a legend says of the models of an ablation: each with the paper's name of its row. Else empty."""
    known, names = set(models), row_names()
    rows = {model for panel in ablation_panels() for model in panel.models}
    return {model: f"{model}: {names[model]}" for model in sorted(known & rows)} if is_ablation(known) else {}


def _curves(prefix: str, models: Mapping[str, str]) -> dict[str, tuple[str, Curve]]:
    found = _table()
    mine = found[found["claim_id"].str.startswith(prefix)] if len(found) else found
    curves: dict[str, tuple[str, Curve]] = {}
    for label, model in models.items():
        cells = mine[mine["model"] == label] if len(mine) else mine
        if len(cells):
            values = cells["value"].astype(float)
            curves[label] = (model, dict(zip(cells["seq_len"].astype(int), values, strict=True)))
    return curves


def published_speech() -> list[dict[str, str]]:
    """Table 4, the scores of generated digits: a mapping a row with ``model``, ``params`` and the scores' own names."""
    found = _table()
    cells = found[found["claim_id"].str.startswith("M1-T4-")].to_dict("records") if len(found) else []
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        who = (cell["model"], cell["params"])
        rows.setdefault(who, {"model": who[0], "params": who[1]})[cell["metric"]] = cell["value"]
    return list(rows.values())


@cache
def _table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE, dtype=str, keep_default_na=False) if REFERENCE.is_file() else pd.DataFrame()
