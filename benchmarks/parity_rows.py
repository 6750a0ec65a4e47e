"""One row of a parity table: how far one quantity of two implementations lies apart."""

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from models.ops.context import relative_error


@dataclass(frozen=True, kw_only=True)
class Row:
    """``error`` is relative in the 2-norm, or whatever ``quantity`` says."""

    subject: str
    reference: str
    quantity: str
    seq_len: int
    dtype: str
    error: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return math.isfinite(self.error) and self.error <= self.tolerance

    @property
    def share(self) -> float:
        """Of the tolerance; what is no number is beyond any."""
        return self.error / self.tolerance if math.isfinite(self.error) else math.inf

    def cells(self) -> list[str]:
        return [f"{c:.3e}" if isinstance(c, float) else str(c) for c in astuple(self)]

    def line(self) -> str:
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{self.subject} / {self.reference}, {self.quantity}, {self.seq_len}, {self.dtype}: "
            f"{self.error:.1e} ({verdict} within {self.tolerance:.0e})"
        )


def compared(
    subject: str, reference: str, pairs: dict[str, tuple[Tensor, Tensor]], *, seq_len: int, tolerance: float
) -> list[Row]:
    """A row for each pair of an actual and a reference tensor."""
    return [
        Row(
            subject=subject,
            reference=reference,
            quantity=quantity,
            seq_len=seq_len,
            dtype=dtype_name(actual.dtype),
            error=relative_error(actual, wanted),
            tolerance=tolerance,
        )
        for quantity, (actual, wanted) in pairs.items()
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` of ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
