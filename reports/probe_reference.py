"""The paper's two tables of probes, from results/reference/, and which of the suite's models stands for which row.

Table 11 (induction heads, trained at 256) and Table 1 (selective copying at 4096) of Gu and Dao, arXiv 2312.00752v2.
A check mark there is read as 100 %, and "out of memory" as no figure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent.parent / "results" / "reference"
SOURCE = "Gu and Dao, arXiv 2312.00752v2"
PROTOCOL = re.compile(r"; steps (\d+); lr ([\d.e-]+)")
# What the paper calls a row -> the suite's model. Models of a suite that the paper does not have follow at the end.
INDUCTION_HEADS = {
    "Mamba": "mamba-probe64",
    "MHA-RoPE": "transformer-probe128",
    "MHA-xPos": "transformer_xpos-probe128",
    "MHA-Abs": "transformer_absolute-probe128",
    "H3": "h3-probe128",
    "Hyena": "hyena-probe128",
}
SELECTIVE_COPYING = {
    "Mamba arch + S6 layer (= Mamba)": "mamba-probe64",
    "No gate arch + S6 layer": "s6.plain-probe64",
    "H3 arch + S6 layer": "s6.h3-probe64",
    "No gate arch + S4 layer (= S4)": "s4d-probe64",
    "H3 arch + S4 layer (= H3)": "h3-probe64",
    "Mamba arch + S4 layer": "s4d.mamba-probe64",
    "H3 arch + Hyena layer (= Hyena)": "hyena-probe64",
    "Mamba arch + Hyena layer": "hyena.mamba-probe64",
}


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of a table: shares by length (NaN where the paper ran out of memory), after so many steps."""

    label: str
    params: str
    steps: int
    lr: float
    accuracy: Mapping[int, float]

    @property
    def printed(self) -> dict[int, float]:
        """The lengths that have a figure."""
        return {seq_len: value for seq_len, value in self.accuracy.items() if math.isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table, the protocol that a trial must follow to be compared with it, and its rows by the suite's models."""

    name: str
    task: str
    train_len: int
    batch: int
    rows: Mapping[str, PaperRow]
    others: tuple[str, ...]
    """Models that the suite trains beside the table's."""

    @property
    def models(self) -> list[str]:
        return [*self.rows, *self.others]


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Both tables; those whose file is not installed are left out."""
    tables = (
        PaperTable(
            name="Table 11", task="induction_heads", train_len=256, batch=8,
            rows=_rows("induction_heads", INDUCTION_HEADS), others=("s4d-probe128", "mamba2-probe64"),
        ),
        PaperTable(
            name="Table 1", task="selective_copying", train_len=4096, batch=64,
            rows=_rows("selective_copying", SELECTIVE_COPYING), others=("transformer-probe64", "mamba2-probe64"),
        ),
    )  # fmt: skip
    return tuple(table for table in tables if table.rows)


def _rows(task: str, models: Mapping[str, str]) -> dict[str, PaperRow]:
    path = FOLDER / f"{task}.csv"
    if not path.is_file():
        return {}
    published = pd.read_csv(path, dtype=str, keep_default_na=False)
    return {model: _row(label, published[published["model"] == label]) for label, model in models.items()}


def _row(label: str, cells: pd.DataFrame) -> PaperRow:
    first = cells.iloc[0]
    found = PROTOCOL.search(first["protocol_note"])
    assert found is not None, first["claim_id"]
    values = pd.to_numeric(cells["value"], errors="coerce") / 100
    return PaperRow(
        label=label,
        params=first["params"],
        steps=int(found[1]),
        lr=float(found[2]),
        accuracy=dict(zip(cells["seq_len"].astype(int), values, strict=True)),
    )
