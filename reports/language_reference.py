"""The paper's scaling laws of language models (Fig. 4), from results/reference/, as context for ours.

Perplexities a token of GPT-2's tokenizer on the Pile, read off the figure's coordinates: another text, other symbols,
other sizes. Only what has no unit can be put beside ours: a model's loss over Transformer++'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "lm_scaling.csv"
SOURCE = "Gu and Dao, arXiv 2312.00752v2, Fig 4, digitised"
TASK, PANEL = "lm_pretraining_pile", "M1-fig4"
FAMILIES = {"mamba": "Mamba", "transformer": "Transformer++", "h3": "H3++", "hyena": "Hyena"}
"""The suite's families that the figure has; its H3++ and Hyena have MLPs of their own widths."""


@dataclass(frozen=True, kw_only=True)
class PaperPoint:
    """A model that the paper trained: perplexity on the validation set, and training FLOPs."""

    model: str
    params: str
    seq_len: int
    perplexity: float
    flops: float

    @property
    def nats(self) -> float:
        return math.log(self.perplexity)


@cache
def paper_points() -> tuple[PaperPoint, ...]:
    """Every point of both panels, smallest first; none where the file is not installed."""
    if not REFERENCE.is_file():
        return ()
    table = pd.read_csv(REFERENCE, dtype=str, keep_default_na=False)
    table = table[(table["task"] == TASK) & table["claim_id"].str.startswith(PANEL)]
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in table.to_dict("records"):
        value = pd.to_numeric(row["value"], errors="coerce")
        found.setdefault((row["model"], row["params"], int(row["seq_len"])), {})[row["metric"]] = float(value)
    points = [
        PaperPoint(model=model, params=params, seq_len=seq_len, perplexity=cell["val_ppl"], flops=cell["train_flops"])
        for (model, params, seq_len), cell in found.items()
        if math.isfinite(cell.get("val_ppl", math.nan)) and math.isfinite(cell.get("train_flops", math.nan))
    ]
    return tuple(sorted(points, key=lambda point: point.flops))


def paper_line(model: str, seq_len: int) -> list[tuple[float, float]]:
    """(FLOPs, perplexity) of a model's sizes at a context length."""
    mine = [point for point in paper_points() if (point.model, point.seq_len) == (model, seq_len)]
    return [(point.flops, point.perplexity) for point in mine]


def on_line(points: Sequence[tuple[float, float]], flops: float) -> tuple[float, bool]:
    """What the line through (FLOPs, loss) gives, straight between neighbours in log-log, and whether it lies outside.

    Beyond the ends the nearest piece goes on. Raises ValueError for fewer than two points.
    """
    known = sorted(points)
    if len(known) < 2:
        raise ValueError(f"{len(known)} points are no line; two sizes are the least")
    inner = [i for i in range(1, len(known) - 1) if known[i][0] <= flops]
    left, right = known[inner[-1] if inner else 0], known[inner[-1] + 1 if inner else 1]
    share = math.log(flops / left[0]) / math.log(right[0] / left[0])
    value = left[1] * (right[1] / left[1]) ** share
    return value, not known[0][0] * (1 - 1e-9) <= flops <= known[-1][0] * (1 + 1e-9)
