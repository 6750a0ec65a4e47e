"""The table of conditions says what the records hold, and says so where they hold nothing."""

from __future__ import annotations

from typing import Any

import pandas as pd
import record_builder as builder

from reports import frames
from reports.conditions import NOT_RECORDED, conditions_table

ENVIRONMENT: dict[str, Any] = builder.ENVIRONMENT | {
    "gpu": {"name": "Imaginary GPU", "driver_version": "580.1", "clocks.max.sm": "1980 MHz", "power.limit": "700.00 W"}
}


def _reading(sm: int, reasons: list[str] | None) -> dict[str, Any]:
    reading = {"clocks.sm": f"{sm} MHz", "clocks.mem": "3201 MHz", "temperature.gpu": "41", "power.draw": "99.50 W"}
    return reading if reasons is None else {**reading, "throttle_reasons": reasons}


def _table(records: list[builder.Record], environment: dict[str, Any] = ENVIRONMENT) -> dict[str, str]:
    table = conditions_table(frames.trials_frame(records, {"env-a": environment}), environment)
    return dict(zip(table["Condition"], table["In this run"], strict=True))


def _timed(seq_len: int, count: int = 9, **metrics: Any) -> builder.Record:
    return builder.speed("mamba-tiny", seq_len, device="cuda", latency=[1.0] * count, **metrics)


def test_clocks_and_reasons_are_ranges_over_all_trials() -> None:
    records = [
        _timed(1024, gpu_clocks={"before": _reading(1980, []), "after": _reading(1755, ["software power cap"])}),
        _timed(2048, gpu_clocks={"before": _reading(1965, ["idle"]), "after": _reading(1980, [])}),
        _timed(4096, gpu_clocks={"before": {}, "after": {}}),  # nvidia-smi did not answer
    ]
    table = _table(records)
    assert table["SM clock"] == "before 1,965 to 1,980 MHz; after 1,755 to 1,980 MHz; device maximum 1980 MHz"
    assert table["Temperature"] == "before 41 °C; after 41 °C"
    before, after = table["Reasons for lower clocks"].split("; ")
    assert set(before.removeprefix("before: ").split(", ")) == {"none in 1 of 2", "idle in 1 of 2"}
    assert set(after.removeprefix("after: ").split(", ")) == {"software power cap in 1 of 2", "none in 1 of 2"}
    assert "580.1" in table["Device"] and "Imaginary GPU" in table["Device"]


def test_what_was_not_recorded_is_not_made_up() -> None:
    table = _table([builder.speed("mamba-tiny", 1024, latency=[1.0] * 9)])
    assert table["Clocks and throttling"] == NOT_RECORDED
    assert table["Last-level cache (L2)"] == NOT_RECORDED
    assert "SM clock" not in table
    assert "Launch-bound" in table and "not applicable" in table["Launch-bound"]
    unknown = _table([_timed(1024, gpu_clocks={"before": _reading(1980, None), "after": _reading(1980, None)})])
    assert "not known to the driver" in unknown["Reasons for lower clocks"]


def test_few_samples_are_counted_whether_flagged_or_not() -> None:
    records = [
        _timed(1024),
        _timed(2048, 3, few_samples="3 of 5: a call outlasts the sampling budget"),
        _timed(4096, 4),  # not flagged, and yet too few
        builder.generation("mamba-tiny", 1, prefill=[1.0] * 2, decode=[9.0] * 2, few_samples="2 of 5", state_bytes=8),
    ]
    assert _table(records)["Samples of a trial"].endswith("; 3 with fewer than 5 (2 flagged by their record)")


def test_mixed_policies_are_counted_and_equal_ones_are_not() -> None:
    assert _table([_timed(1024, l2_policy="warm"), _timed(2048, l2_policy="warm")])["Last-level cache (L2)"] == "warm"
    mixed = _table([_timed(1024, l2_policy="warm"), _timed(2048, l2_policy="warm"), _timed(4096, l2_policy="cold")])
    assert mixed["Last-level cache (L2)"] == "warm (2 of 3 trials); cold (1 of 3 trials)"


def test_overhead_is_what_no_phase_accounts_for() -> None:
    phases = {"first_call": 0.5, "memory": 1.0, "check": 0.25, "timing": 0.25}
    records = [_timed(1024 * n, phases_s=phases) | {"wall_s": 2.0 + overhead} for n, overhead in ((1, 0.2), (2, 0.4))]
    records.append(_timed(4096) | {"wall_s": 99.0})  # of a run that did not measure its phases
    assert _table(records)["Harness overhead of a trial"].startswith("median 0.3 s, quartiles 0.25 to 0.35 s, of 2 ")
    assert _table([_timed(1024)])["Harness overhead of a trial"] == NOT_RECORDED


def test_without_a_timed_trial_there_is_no_table() -> None:
    records = [builder.speed("mamba-tiny", 1024, "oom", message="no memory")]
    assert isinstance(conditions_table(frames.trials_frame(records), {}), pd.DataFrame)
    assert _table(records) == {}
