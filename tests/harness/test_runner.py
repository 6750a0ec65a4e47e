"""The run, with a mock executor and a mock clock: order, refusals, resume arithmetic, one record a trial."""

import datetime
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from harness import RecordWriter, Trial, read_records
from harness.runner import CostModel, run_trials
from harness.supervisor import Outcome
from harness.units import PlannedTrial
from harness.worker import Limits

GIB = 2**30


class MockExecutor:
    """Answers at a stated rate without running anything."""

    def __init__(self, flops_per_s: float = 1e9) -> None:
        self.flops_per_s, self.seen, self.cores = flops_per_s, [], []
        self._lock = threading.Lock()

    def run(self, payload: Mapping[str, Any], limits: Limits) -> Outcome:
        with self._lock:
            self.seen.append(payload["trial"]["seq_len"])
            self.cores.append(tuple(payload["cores"]))
        latency_ms = 1e3 * payload["flops"] / self.flops_per_s
        return Outcome(status="ok", wall_s=latency_ms / 1e3, metrics={"latency_ms": [latency_ms]}, backend={"k": "v"})

    def cancel(self) -> None:
        pass


def plan(seq_len: int, *, flops: float = 1e9, key: str = "k", **changes: Any) -> PlannedTrial:
    trial = Trial(
        kind="speed", model="m", task=None, seq_len=seq_len, batch=1, dtype="float32", direction="forward",
        device="cpu", seed=0,
    )  # fmt: skip
    fields = dict(
        trial=trial, trial_id=f"{seq_len:064d}", time_limit_s=10.0, predicted_peak_bytes=1, flops=flops, calls=4.0,
        speed_key=key, payload={"flops": flops},
    )  # fmt: skip
    return PlannedTrial(**(fields | changes))


def run(tmp_path, planned, executor=None, cores=(0,)):
    executor = executor or MockExecutor()
    with RecordWriter(tmp_path) as writer:
        records = list(
            run_trials(
                planned, executor=executor, writer=writer, env_id="e", costs=CostModel(1e9), memory_bytes=GIB,
                cores=cores, clock=lambda: datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            )
        )  # fmt: skip
    return records, executor


def test_every_trial_gets_exactly_one_record_in_order(tmp_path):
    records, executor = run(tmp_path, [plan(n) for n in (64, 128, 256)])
    assert executor.seen == [64, 128, 256]
    written, _ = read_records([tmp_path])
    assert [r["trial_id"] for r in written] == [r.trial_id for r in records]
    assert all(r["started_at"] == "2026-01-01T00:00:00+00:00" for r in written)


def test_what_cannot_fit_is_skipped_with_its_prediction(tmp_path):
    (record,), executor = run(tmp_path, [plan(64, predicted_peak_bytes=3 * GIB)])
    assert executor.seen == []
    assert record.status == "skipped"
    assert record.metrics["predicted_peak_bytes"] == 3 * GIB
    assert "3.0 GiB" in record.error["message"] and "1.0 GiB" in record.error["message"]
    assert "latency_ms" not in record.metrics


def test_what_would_outlast_its_limit_is_skipped_once_the_rate_is_known(tmp_path):
    # At 1e9 FLOP/s the third takes 8 s a call, four calls at least, against a limit of 10 s.
    records, executor = run(tmp_path, [plan(64, flops=1e8), plan(128, flops=2e8), plan(256, flops=8e9)])
    assert executor.seen == [64, 128]
    assert [r.status for r in records] == ["ok", "ok", "skipped"]
    assert records[2].metrics["predicted_latency_ms"] == pytest.approx(8e3)
    assert records[2].metrics["predicted_from"] == "measured rate"
    assert "time_limit_s" in records[2].error["message"]


def test_one_short_trial_is_no_ground_for_refusing_a_far_longer_one(tmp_path):
    """Its time may be all overhead."""
    records, _ = run(tmp_path, [plan(64, flops=1e8), plan(4096, flops=8e9)])
    assert [r.status for r in records] == ["ok", "ok"]


def test_a_guess_refuses_nothing(tmp_path):
    records, _ = run(tmp_path, [plan(64, flops=8e9)], MockExecutor(1e12))
    assert records[0].status == "ok"
    assert records[0].metrics["predicted_from"] == "default rate"


def test_rates_are_kept_apart_by_key(tmp_path):
    records, _ = run(tmp_path, [plan(64, flops=1e8, key="slow"), plan(128, flops=8e9, key="other")])
    assert [r.status for r in records] == ["ok", "ok"]


def test_unsupported_is_recorded_with_its_reason(tmp_path):
    (record,), executor = run(tmp_path, [plan(64, unsupported="no such kernel")])
    assert (record.status, executor.seen) == ("unsupported", [])
    assert record.error["message"] == "no such kernel"


def test_trials_that_share_the_machine_get_cores_of_their_own(tmp_path):
    planned = [plan(64), *(plan(n, num_threads=2) for n in (128, 256, 512, 1024))]
    records, executor = run(tmp_path, planned, cores=(0, 1, 2, 3, 4))
    assert executor.cores[0] == (0, 1, 2, 3, 4)
    assert set(executor.cores[1:]) <= {(0, 1), (2, 3)}
    assert sorted(executor.seen) == [64, 128, 256, 512, 1024]
    assert records[0].backend == {"k": "v"}
    assert all(r.backend["side_by_side"] == 2 for r in records[1:])


def test_overhead_and_rate_are_told_apart():
    costs = CostModel(1e9)
    for flops in (1e6, 1e8, 2e8):
        costs.observe(plan(64, flops=flops), 50.0 + 1e3 * flops / 1e10)
    assert costs.latency_ms(plan(64, flops=4e9)) == pytest.approx(450.0)


def test_a_prediction_is_never_below_what_was_measured_nor_above_proportion():
    costs = CostModel(1e9)
    costs.observe(plan(64, flops=1e8), 20.0)
    costs.observe(plan(64, flops=2e8), 10.0)
    assert costs.latency_ms(plan(64, flops=4e8)) == pytest.approx(10.0)
    costs.observe(plan(64, flops=2e8), 100.0)
    assert costs.latency_ms(plan(64, flops=4e8)) == pytest.approx(200.0)


class GroupExecutor(MockExecutor):
    """Runs a process of several trials: each but the last ends with what its name asks for."""

    def run(self, payload: Mapping[str, Any], limits: Limits) -> Outcome:
        self.limits = [*getattr(self, "limits", []), limits.time_s]
        members = [payload["trial"], *(other["trial"] for other in payload.get("companions", ()))]
        ids = [payload["trial_id"], *(other["trial_id"] for other in payload.get("companions", ()))]
        self.seen.append([member["seq_len"] for member in members])
        shares = {i: {"status": "ok", "metrics": {"seq_len": m["seq_len"]}} for i, m in zip(ids, members, strict=True)}
        error = {"type": "NonFiniteLoss", "message": "nan", "tail": ""}
        shares[ids[0]] |= {"status": "error", "error": error}
        if payload.get("dies"):
            shares = {ids[0]: {"metrics": {"steps_done": 3}}}
            late = {"type": "TimeLimit", "message": "late", "tail": ""}
            return Outcome(status="timeout", wall_s=1.0, metrics={"by_trial": shares}, error=late)
        return Outcome(status="ok", wall_s=1.0, metrics={"by_trial": shares})


def test_trials_with_one_key_share_a_process_and_get_a_record_each(tmp_path):
    planned = [plan(n, together="k", max_together=3, num_threads=1) for n in (64, 128, 256, 512, 1024)]
    records, executor = run(tmp_path, planned, GroupExecutor())
    assert sorted(executor.seen) == [[64, 128, 256], [512, 1024]]
    assert len(records) == 5
    by_len = {record.trial.seq_len: record for record in records}
    assert {n for n, record in by_len.items() if record.status == "error"} == {64, 512}
    assert by_len[64].error["type"] == "NonFiniteLoss"
    assert all(record.metrics["seq_len"] == n for n, record in by_len.items())
    assert all("by_trial" not in record.metrics for record in records)
    assert by_len[128].error is None


def test_a_process_that_dies_is_the_end_of_all_its_trials(tmp_path):
    planned = [plan(n, together="k", max_together=2, payload={"dies": True}) for n in (64, 128)]
    records, _ = run(tmp_path, planned, GroupExecutor())
    assert [r.status for r in records] == ["timeout", "timeout"]
    assert [r.metrics.get("steps_done") for r in records] == [3, None]
    assert all(r.error["type"] == "TimeLimit" for r in records)


def test_memory_is_that_of_all_trials_of_a_process(tmp_path):
    planned = [plan(n, together="k", max_together=2, predicted_peak_bytes=int(0.7 * GIB)) for n in (64, 128)]
    records, _ = run(tmp_path, planned, GroupExecutor())
    assert [r.status for r in records] == ["skipped", "skipped"]


def run_until(tmp_path, planned, stop_at):
    executor = GroupExecutor()
    with RecordWriter(tmp_path) as writer:
        records = list(
            run_trials(
                planned, executor=executor, writer=writer, env_id="e", costs=CostModel(1e9), memory_bytes=GIB,
                cores=(0,), stop_at=stop_at,
            )
        )  # fmt: skip
    return records, executor


def test_a_run_that_ends_begins_nothing_more_and_shortens_what_runs(tmp_path):
    for threads in (None, 1):
        records, executor = run_until(tmp_path, [plan(64, num_threads=threads)], time.monotonic() - 1)
        assert (records, executor.seen) == ([], [])
        _, executor = run_until(tmp_path, [plan(64, num_threads=threads)], time.monotonic() + 5)
        assert 0 < executor.limits[0] <= 5


def test_what_the_end_of_the_run_kills_was_cut_short(tmp_path):
    """Such a record is replaced by the next run; one that its own limit killed is not."""
    dies = dict(payload={"dies": True}, together="k", max_together=2)
    planned = [plan(n, **dies) for n in (64, 128)]
    cut, _ = run_until(tmp_path, planned, time.monotonic() + 5)
    late, _ = run_until(tmp_path, planned, time.monotonic() + 500)
    assert {r.error["type"] for r in cut} == {"CutShort"}
    assert {r.error["type"] for r in late} == {"TimeLimit"}
