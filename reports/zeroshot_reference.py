"""Table 3 of the Mamba paper (zero-shot), from results/reference/lm_zeroshot.csv, and which of its rows a model is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "lm_zeroshot.csv"
SOURCE = "Gu and Dao, arXiv 2312.00752v2, Table 3"
# What the table calls a column -> the record's task and metric.
COLUMNS = {
    "lambada_ppl": ("lambada_openai", "perplexity"),
    "lambada_acc": ("lambada_openai", "accuracy"),
    "hellaswag_acc_norm": ("hellaswag", "acc_norm"),
    "piqa_acc": ("piqa", "accuracy"),
    "arc_e_acc": ("arc_easy", "accuracy"),
    "arc_c_acc_norm": ("arc_challenge", "acc_norm"),
    "winogrande_acc": ("winogrande", "accuracy"),
}
AVERAGED = tuple(pair for column, pair in COLUMNS.items() if column != "lambada_ppl")
"""The six accuracies of the table's average."""
ROUNDING = 0.0005 + 1e-9
"""Half the last digit of a printed average, as a share: as far as rounding can move it."""


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One row: shares for accuracies, a perplexity as it is."""

    label: str
    values: Mapping[tuple[str, str], float]
    printed_average: float

    @property
    def average(self) -> float:
        """The mean of the row's own six accuracies."""
        return sum(self.values[pair] for pair in AVERAGED) / len(AVERAGED)

    @property
    def is_consistent(self) -> bool:
        """Whether the printed average is the mean of its row, but for rounding."""
        return abs(self.printed_average - self.average) <= ROUNDING


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Every row in the table's order; none where the file is not installed."""
    if not REFERENCE.is_file():
        return ()
    table = pd.read_csv(REFERENCE)
    return tuple(_row(str(label), cells) for label, cells in table.groupby("model", sort=False))


def _row(label: str, cells: pd.DataFrame) -> PublishedModel:
    shares = {"%": 100.0, "ppl": 1.0}
    by_column = {
        row["metric"]: float(row["value"]) / shares[row["unit"]] for row in cells.to_dict("records")
    }  # fmt: skip
    return PublishedModel(
        label=label,
        values={pair: by_column[column] for column, pair in COLUMNS.items()},
        printed_average=by_column["average_acc"],
    )


def published_model(name: str) -> PublishedModel | None:
    """The row of a checkpoint's name: its owner and a final ``-hf`` aside, it must be the row's label.

    ``state-spaces/mamba-130m`` and ``mamba-130m-hf`` are the row Mamba-130M; ``mamba-tiny`` is none.
    """
    key = _key(name.rstrip("/").rpartition("/")[2]).removesuffix("-hf")
    return next((model for model in published_models() if _key(model.label) == key), None)


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())
