"""The table of scans: what it refuses, what it survives, and what its memory column says."""

import csv
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.scan_implementations import find_implementation, scan_inputs
from benchmarks.scan_table import (
    COLUMNS,
    LONGEST_EXTRA_MB,
    Options,
    failures,
    format_table,
    main,
    measure_rows,
)
from harness.memory import host_peak
from models.ops.scan_reference import sequential_scan
from models.ops.selective_scan import ensure_built, selective_scan

HERE = "tests.benchmarks.test_scan_table"
OWN = "seqbench-chunked" if ensure_built() else "seqbench-kernel"
needs_peak = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset")


def options(*implementations: str, **changes: object) -> Options:
    settings = dict(lengths=[64], threads=[1], longest=None, repeats=5, budget_s=0.2, time_limit_s=60.0)
    return Options(implementations=implementations, **(settings | changes))


def measure(*implementations: str, **changes: object) -> list[dict]:
    return measure_rows(options(*implementations, **changes), lambda row: None)


def forgets_a_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(x * (torch.arange(x.shape[1])[:, None] != 20), dt, A, B, C)[0]


def wrong_gradient(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(x, dt.detach(), A, B, C)[0] + 0 * dt


def crashes(*_: Tensor) -> Tensor:
    os.abort()


def runs_for_ever(*_: Tensor) -> Tensor:
    while True:
        pass


def test_command_writes_rows_environment_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "machine" / "table.csv"
    words = f"--lengths 64 --threads 1 --implementations {OWN},sequential --longest 2K --budget-s 0.1 --out {out}"
    code = main(words.split())
    rows = list(csv.DictReader(out.open()))
    assert tuple(rows[0]) == COLUMNS
    assert COLUMNS[:6] == ("implementation", "direction", "seq_len", "threads", "median_ms", "extra_mb")
    assert [r["seq_len"] for r in rows] == ["64"] * 4 + ["2048"]
    measured = rows[:-1] if OWN != "seqbench-kernel" else rows
    assert code == (0 if measured is rows else 1)
    for row in measured:
        assert row["status"] == "ok" and int(row["samples"]) >= 1  # as many as a slow machine takes in its budget
        assert 0 < float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
    environment = json.loads((tmp_path / "machine" / "table_env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["problem"] == {"batch": 1, "channels": 128, "states": 16, "dtype": "float32"}
    printed = capsys.readouterr().out
    assert all(f"{direction}, 64 steps" in printed for direction in ("forward", "forward+backward"))


def test_what_is_wrong_is_not_timed():
    rows = measure(f"{HERE}:forgets_a_step", f"{HERE}:wrong_gradient")
    status = {(r["implementation"].rpartition(":")[2], r["direction"]): r["status"] for r in rows}
    assert status == {
        ("forgets_a_step", "forward"): "wrong",
        ("forgets_a_step", "forward+backward"): "wrong",
        ("wrong_gradient", "forward"): "ok",
        ("wrong_gradient", "forward+backward"): "wrong",
    }
    for row in rows:
        assert (row["median_ms"] == "") == (row["status"] == "wrong")
        assert row["status"] == "ok" or "differs from the reference by" in row["note"]


def test_a_crash_and_a_time_limit_end_a_row_and_not_the_run():
    rows = measure(f"{HERE}:crashes", OWN)
    assert [r["status"] for r in rows] == ["killed", "ok"] * 2
    assert "SIGABRT" in rows[0]["note"] and rows[0]["median_ms"] == ""
    assert "killed: the process was ended by SIGABRT" in "\n".join(format_table(rows))
    for row in measure(f"{HERE}:runs_for_ever", time_limit_s=1.5):
        assert row["status"] == "timeout" and "its limit of 1.5 s" in row["note"]


def test_what_failed_or_would_take_too_long_is_not_tried_at_longer_lengths():
    crashed = measure(f"{HERE}:crashes", lengths=[256, 512], time_limit_s=60.0)  # a core dump takes its time
    assert {r["note"] for r in crashed if r["seq_len"] == 512} == {"killed at 256 steps already"}
    rows = measure("sequential", lengths=[256, 2**20 // 64], time_limit_s=8.0)
    shorter, backward = (r for r in rows if r["direction"] == "forward+backward")
    assert backward["status"] == "skipped" and backward["median_ms"] == ""
    assert f"predicted {64 * shorter['median_ms']:.0f} ms a call" in backward["note"]


@needs_peak
@pytest.mark.skipif(importlib.util.find_spec("mambapy") is None, reason="mambapy is not installed")
def test_materialised_states_show_in_the_memory_column():
    length, width, states = 4096, 128, 16
    rows = measure(OWN, "mambapy-pscan", lengths=[length])
    extra_mb = {(r["implementation"], r["direction"]): r["extra_mb"] for r in rows}
    one_mb = 4 * length * width * states / 1e6  # of one (B, L, D, N)
    for direction in ("forward", "forward+backward"):
        assert extra_mb["mambapy-pscan", direction] > 3 * one_mb
        assert extra_mb[OWN, direction] < one_mb


@needs_peak
def test_extra_memory_leaves_out_what_is_returned():
    *inputs, _ = scan_inputs(2**14)
    with host_peak() as host:
        y = selective_scan(*inputs, backend="auto")[0]
    measured = measure(OWN, lengths=[2**14])[0]["extra_mb"]
    whole = (host.peak_rss_bytes - host.baseline_rss_bytes) / 1e6
    assert measured <= max(0.0, whole - y.nbytes / 1e6) + 3  # pages of libraries that were not resident


def test_the_longest_row_is_held_to_its_memory():
    row = dict.fromkeys(COLUMNS, "") | {"implementation": "seqbench-kernel", "seq_len": 2**20, "status": "ok"}
    assert not failures([row | {"extra_mb": LONGEST_EXTRA_MB}], 2**20)
    assert "1001 MB extra" in failures([row | {"extra_mb": LONGEST_EXTRA_MB + 1}], 2**20)[0]
    assert failures([row | {"status": "skipped"}], 2**20) and not failures([row | {"status": "skipped"}], None)
    assert failures([row | {"status": "wrong"}], None)
    assert not failures([row | {"implementation": "other", "status": "wrong"}], None)


@pytest.mark.parametrize("name", ["mambapy-pscan", "torch-associative-scan", "transformers-slow"])
def test_the_others_are_called_rightly(name: str):
    try:
        scan = find_implementation(name).load()
    except ImportError as error:
        pytest.skip(str(error))
    *inputs, _ = scan_inputs(70, channels=5)
    torch.testing.assert_close(scan(*inputs), sequential_scan(*inputs, None)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--implementations magic", "'magic' is not one of seqbench-kernel"),
        ("--lengths x", "'x' is not a length"),
        ("--threads 0", "--threads 0: this process may use"),
        ("--repeats 0", "--repeats 0 is not from 1 to"),
    ],
)
def test_usage_errors_name_the_value_and_the_fix(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(words.split())
    assert message in capsys.readouterr().err
