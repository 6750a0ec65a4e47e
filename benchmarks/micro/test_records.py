"""The record store: what a run pays for a record that is on disk, and a report for reading a thousand."""

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.pieces import measure, micro_trial
from harness import Record, RecordWriter, Trial, read_records

COUNT = 1000


def _record(trial: Trial, number: int) -> Record:
    return Record(
        trial_id=f"{number:064x}", trial=trial, status="ok", env_id="0" * 16, started_at="2026-01-01T00:00:00+00:00",
        wall_s=1.0, metrics={"latency_ms": [1.5] * 50, "params": 1}, backend={"selective_scan": "kernel"},
    )  # fmt: skip


def test_append(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """One record, flushed to the disk as a run does: the disk's time as much as the code's."""
    trial = micro_trial("record_append", seq_len=1)
    record = _record(trial, 1)
    with RecordWriter(tmp_path) as writer:
        measure(benchmark, trial, lambda: writer.append(record))


def test_read(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    trial = micro_trial("record_read", seq_len=1, protocol={"records": COUNT})
    with RecordWriter(tmp_path) as writer:
        for number in range(COUNT):
            writer.append(_record(trial, number))
    measure(benchmark, trial, lambda: read_records([tmp_path]))
