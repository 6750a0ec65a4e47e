"""Published figures to show beside measured ones, from results/reference/speed_memory.csv.

They were measured by others on another machine (an A100), so a figure draws them thin, grey and hollow, names machine
and source, and only where the protocol is the one that was measured here. Most were read off a figure's coordinates
("digitised"), which their notes say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "speed_memory.csv"
SOURCE = "Gu and Dao, arXiv 2312.00752v2"
CURVES_NOTE = f"Grey: published ({SOURCE}, Fig 8 left, digitised; A100 80GB PCIe), another machine than the measured."
BARS_NOTE = f"Grey: published ({SOURCE}, Fig 8 right, digitised; A100 80GB PCIe, plain transformers for attention)."
MEMORY_NOTE = f"Grey: published ({SOURCE}, Table 15, one A100 80GB; GB read as 10^9 bytes)."
# The protocol of the published curves; anything else is not comparable.
CURVES_PROTOCOL = {"width": 1024.0, "d_state": 16.0, "batch": 1.0, "dtype": "bfloat16", "direction": "forward"}
PROMPT, NEW_TOKENS, TRAIN_LEN = 2048, 128, 2048
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class PublishedPoint:
    """One published figure: on which curve, at which x (a length or a batch), and its value in ms, tokens/s, bytes."""

    curve: str
    x: float
    value: float
    caption: str


def operator_times(group: pd.DataFrame) -> list[PublishedPoint]:
    """The published curves of operators, where a group follows their protocol; else none."""
    if not (group["level"] == "operator").all() or not group["tokens"].isna().all():
        return []
    if any((group[key] != value).any() for key, value in CURVES_PROTOCOL.items()):
        return []
    rows = _rows("M1-fig8L-", "ms")
    return [
        PublishedPoint(
            curve=f"published, A100: {row['model']}", x=float(row["seq_len"]), value=float(row["value"]),
            caption=CURVES_NOTE,
        )
        for row in rows
    ]  # fmt: skip


def operator_time(curve: str, seq_len: float) -> float | None:
    """A published time in ms: FlashAttention-2, Convolution, Scan (PyTorch) or Scan (ours), at a length."""
    found = [r for r in _rows("M1-fig8L-", "ms") if r["model"] == curve and float(r["seq_len"]) == seq_len]
    return float(found[0]["value"]) if found else None


def throughputs(size: str = "1.4b") -> list[PublishedPoint]:
    """Published tokens/s against batch of the two models of about 1.4 billion parameters (6.9 for size "6.9b")."""
    sizes = {"1.4b": ("1.4B", "1.3B"), "6.9b": ("6.9B", "6.7B")}.get(size.lower(), ())
    return [
        PublishedPoint(
            curve=f"published, A100: {row['model']} {row['params']}", x=_batch(row), value=float(row["value"]),
            caption=BARS_NOTE,
        )
        for row in _rows("M1-fig8R-", "tok/s") if row["params"] in sizes
    ]  # fmt: skip


def training_memory() -> list[PublishedPoint]:
    """Published peak bytes against batch of the two models of 125 million parameters at length 2048."""
    return [
        PublishedPoint(
            curve=f"published, A100: {row['model'].partition(' (')[0]} {row['params']}", x=_batch(row),
            value=GB * float(row["value"]), caption=MEMORY_NOTE,
        )
        for row in _rows("M1-T15-", "GB")
    ]  # fmt: skip


def _batch(row: Mapping[str, str]) -> float:
    return float(str(row["metric"]).rpartition("_bs")[2])


def _rows(prefix: str, unit: str) -> list[dict[str, str]]:
    """Figures (no ratios, no OOM) whose claim's name begins so; none where the file is not installed."""
    found = _table()
    if found.empty:
        return []
    chosen = found[found["claim_id"].str.startswith(prefix) & (found["unit"] == unit)]
    return [{str(key): str(value) for key, value in row.items()} for row in chosen.to_dict("records")]


@cache
def _table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE, dtype=str, keep_default_na=False) if REFERENCE.is_file() else pd.DataFrame()
