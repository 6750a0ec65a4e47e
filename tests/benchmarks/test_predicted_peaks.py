"""Predicted peaks against those that an H200 measured: operators and blocks of the committed trials, generations."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.generation import predicted_generation
from benchmarks.plan import predicted_cost
from harness import Trial

pytestmark = pytest.mark.conformance

RECORDS = Path(__file__).parents[2] / "results/h200/speed/records.jsonl"
LARGE = 64 * 2**20
"""Below it, libraries' own buffers and blocks that are not split off show."""


def measured() -> Iterator[tuple[Trial, int]]:
    """Whole models are left out: they take a minute and a half to predict, and lie within 3 % (docs/speed.md)."""
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


GENERATIONS = {
    "mamba-1.4b": {4: 3_350_006_784, 64: 11_327_835_136, 965: 131_066_618_368},
    "mamba2-1.4b": {64: 18_190_351_360, 128: 26_352_186_368, 952: 137_741_361_152},
}
"""Peak bytes by batch: 2,048 positions read by mamba-ssm's kernels, 128 decoded, bfloat16. Mamba-2 reads
128 in two parts and its largest in eight."""
WORKSPACES = 2 * 32 * 2**20
"""cuBLAS takes one on each stream, the eager one and the captured step's; no operator knows of them."""


@pytest.mark.parametrize(("name", "batch"), [(name, batch) for name, peaks in GENERATIONS.items() for batch in peaks])
def test_predicted_peaks_of_generation_are_those_of_the_prompts_kernels(name, batch):
    torch.set_num_threads(1)
    trial = Trial(
        kind="generation", model=name, task=None, seq_len=2048, batch=batch, dtype="bfloat16", direction="forward",
        device="cuda", seed=0, protocol={"new_tokens": 128, "loop": "cuda_graph", "sample_budget_s": 1.0},
    )  # fmt: skip
    predicted = predicted_generation(trial).peak_bytes + WORKSPACES
    # The allocator counts whole blocks.
    assert predicted == pytest.approx(GENERATIONS[name][batch], rel=2e-3)
