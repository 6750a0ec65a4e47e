"""Predicted peaks of the operators and blocks that an H200 measured, told anew from the committed trials."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.plan import predicted_cost
from harness import Trial

RECORDS = Path(__file__).parents[2] / "results/h200/speed/records.jsonl"
LARGE = 64 * 2**20
"""Below it, libraries' own buffers and blocks that are not split off show."""


def measured() -> Iterator[tuple[Trial, int]]:
    """Whole models are left out: that run's peaks contain their construction in float32."""
    for line in RECORDS.read_text().splitlines() if RECORDS.exists() else ():
        record = json.loads(line)
        trial, peak = Trial.from_dict(record["trial"]), record["metrics"].get("peak_alloc_bytes", 0)
        if trial.protocol.get("level") in ("operator", "block") and peak > LARGE:
            yield trial, peak


NAMES = sorted({trial.model for trial, _ in measured()})


@pytest.mark.skipif(not NAMES, reason="no records of an H200")
@pytest.mark.parametrize("name", NAMES)
def test_predicted_peaks_are_within_five_percent(name):
    torch.set_num_threads(1)
    for trial, peak in measured():
        if trial.model == name:
            assert predicted_cost(trial).peak_bytes == pytest.approx(peak, rel=0.05), trial
