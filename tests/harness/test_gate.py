"""The gate's rules: each both ways, its statistics by false alarms and power, and no verdict without ground."""

import math

import numpy as np
import pytest

from harness.gate import compare, specification_key, trial_label
from harness.gate_rules import METRICS, Tolerance
from harness.gate_timing import judge_timing, quartile_ratio

LIMITS = {"params": 0.0, "state_bytes": 0.0, "accuracy": 0.02, "bits_per_token": 0.02, "latency_ms": 0.10}
TOLERANCES = {
    m: Tolerance(limit=LIMITS.get(m, 0.01), reason="a test", both_ways=m == "params") for m in METRICS
}  # fmt: skip
ENVIRONMENT = {
    "cpu": {"model": "EPYC", "cores": 2},
    "threads": 2,
    "gpu": None,
    "packages": {"torch": "2.13.0"},
    "commit": "abc",
}
QUIET = [10.0, 10.1, 10.2, 10.0, 10.3, 10.1, 10.0, 10.2]


def make_record(status="ok", *, trial=None, backend=None, env_id="here", **metrics) -> dict:
    spec = {
        "kind": "speed", "model": "mamba-tiny", "task": None, "seq_len": 1024, "batch": 1, "dtype": "float32",
        "direction": "forward", "device": "cpu", "seed": 0, "protocol": {"level": "model"}, **(trial or {}),
    }  # fmt: skip
    figures = {"params": 1000, "state_bytes": 512, "flops": 1e9, "predicted_peak_bytes": 10**7, **metrics}
    return {
        "schema": 1, "trial_id": "0" * 64, "trial": spec, "status": status, "env_id": env_id, "started_at": "t",
        "wall_s": 1.0, "metrics": {k: v for k, v in figures.items() if v is not None},
        "backend": {"scan": "kernel", "threads": 2, **(backend or {})},
    }  # fmt: skip


def interval(value: float, half: float = 0.01) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "n": 100}


def verdicts(before, after, environments=None, **options) -> dict[str, str]:
    known = {"here": ENVIRONMENT} if environments is None else environments
    return {c.metric: c.verdict for c in compare([before], [after], known, TOLERANCES, **options).comparisons}


def everything() -> list[dict]:
    scores = [{"seq_len": 1024, "status": "ok", "accuracy": interval(0.9), "bits_per_token": interval(2.0)}]
    noisy = np.random.default_rng(0).lognormal(size=9).tolist()
    return [
        make_record(latency_ms=QUIET, peak_alloc_bytes=5000),
        make_record(trial={"seed": 1}, latency_ms=noisy),
        make_record(trial={"task": "dna"}, scores=scores, accuracy={"value": 0.4}),
        make_record("oom", trial={"seq_len": 2**20}, params=None),
    ]


def test_a_set_compared_with_itself_passes_wholly():
    result = compare(everything(), everything(), {"here": ENVIRONMENT}, TOLERANCES)
    assert result.exit_code == 0
    assert set(result.counts) == {"pass"}
    assert result.num_matched == 4


@pytest.mark.parametrize(
    ("metric", "candidate", "expected"),
    [
        ("params", 1001, "regressed"),
        ("params", 999, "regressed"),
        ("params", None, "regressed"),
        ("state_bytes", 513, "regressed"),
        ("state_bytes", 256, "improved"),
        ("flops", 1.009e9, "pass"),
        ("flops", 1.02e9, "regressed"),
        ("flops", 0.9e9, "improved"),
        ("predicted_peak_bytes", 10**7 + 10**4, "pass"),
        ("predicted_peak_bytes", 2 * 10**7, "regressed"),
        ("predicted_peak_bytes", 10**6, "improved"),
        ("peak_alloc_bytes", 5040, "pass"),
        ("peak_alloc_bytes", 5060, "regressed"),
        ("peak_alloc_bytes", 4000, "improved"),
    ],
)
def test_numbers_within_their_band(metric, candidate, expected):
    before, after = make_record(peak_alloc_bytes=5000), make_record(**{"peak_alloc_bytes": 5000, metric: candidate})
    assert verdicts(before, after)[metric] == expected


def test_what_the_base_never_measured_is_not_judged():
    assert "peak_alloc_bytes" not in verdicts(make_record(), make_record(peak_alloc_bytes=5))


@pytest.mark.parametrize("status", ["oom", "timeout", "killed", "error", "wrong", "unsupported", "skipped"])
def test_ends_of_trials(status):
    assert verdicts(make_record(), make_record(status))["status"] == "regressed"
    assert verdicts(make_record(status), make_record())["status"] == "improved"
    assert verdicts(make_record(status), make_record(status))["status"] == "pass"
    other = "oom" if status != "oom" else "error"
    assert verdicts(make_record(status), make_record(other))["status"] == "changed"


def test_a_failed_trial_is_one_regression_not_one_for_each_metric_that_it_lacks():
    before, after = make_record(accuracy=interval(0.9)), make_record("error", params=None, state_bytes=None)
    result = compare([before], [after], {}, TOLERANCES)
    assert result.counts["regressed"] == 1
    assert result.exit_code == 1


def test_vanished_trials_regress_and_new_ones_inform():
    both, lost, gained = make_record(), make_record(trial={"seed": 1}), make_record(trial={"seed": 2})
    result = compare([both, lost], [both, gained], {}, TOLERANCES)
    found = {c.trial: (c.verdict, c.detail) for c in result.comparisons if c.metric == "status"}
    assert found["speed mamba-tiny model forward L=1K seed=1"][0] == "regressed"
    assert "vanished" in found["speed mamba-tiny model forward L=1K seed=1"][1]
    assert found["speed mamba-tiny model forward L=1K seed=2"][0] == "new"
    assert result.exit_code == 1
    assert compare([both], [both, gained], {}, TOLERANCES).exit_code == 0


def test_nothing_in_common_is_neither_pass_nor_regression():
    assert compare([make_record()], [make_record(trial={"seed": 1})], {}, TOLERANCES).exit_code == 2
    assert compare([], [], {}, TOLERANCES).exit_code == 2


def test_trials_match_by_specification_not_by_code_and_the_newest_record_counts():
    before, after = make_record(), {**make_record(params=7), "trial_id": "f" * 64, "started_at": "1"}
    newer = {**make_record(), "trial_id": "e" * 64, "started_at": "2"}
    assert compare([before], [newer, after], {}, TOLERANCES).exit_code == 0
    reordered = dict(reversed(before["trial"].items()))
    assert specification_key(before["trial"]) == specification_key(reordered)


def test_trials_that_differ_only_in_protocol_have_labels_of_their_own():
    records = [make_record(trial={"protocol": {"level": "model", "lr": lr}}) for lr in (1, 2)]
    labels = {c.trial for c in compare(records, records, {}, TOLERANCES).comparisons}
    assert len(labels) == 2
    assert trial_label(records[0]["trial"]) == trial_label(records[1]["trial"])


@pytest.mark.parametrize(
    ("metric", "candidate", "expected"),
    [
        ("accuracy", 0.85, "regressed"),
        ("accuracy", 0.865, "pass"),  # disjoint, but by less than the tolerance
        ("accuracy", 0.885, "pass"),
        ("accuracy", 0.97, "improved"),
        ("bits_per_token", 0.97, "regressed"),
        ("bits_per_token", 0.935, "pass"),
        ("bits_per_token", 0.85, "improved"),
    ],
)
def test_scores_by_disjoint_intervals(metric, candidate, expected):
    def record(value: float) -> dict:
        return make_record(**{metric: interval(value)})

    assert verdicts(record(0.9), record(candidate))[f"{metric} at 1K"] == expected

    def at_length(value: float) -> dict:
        return make_record(scores=[{"seq_len": 4096, "status": "ok", metric: interval(value)}])

    assert verdicts(at_length(0.9), at_length(candidate))[f"{metric} at 4K"] == expected


def test_lost_scores():
    before = make_record(scores=[{"seq_len": 4096, "status": "ok", "accuracy": interval(0.9)}])
    skipped = {"seq_len": 4096, "status": "skipped", "reason": "no time was left"}
    assert verdicts(before, make_record())["accuracy at 4K"] == "regressed"
    assert verdicts(before, make_record(scores=[skipped | {"status": "unsupported"}]))["accuracy at 4K"] == "regressed"
    assert verdicts(before, make_record(scores=[skipped]))["accuracy at 4K"] == "inconclusive"


def test_a_score_without_an_interval_decides_nothing():
    before, after = make_record(accuracy=interval(0.9)), make_record(accuracy={"value": 0.1, "n": 1})
    assert verdicts(before, after)["accuracy at 1K"] == "inconclusive"


def scaled(factor: float) -> list[float]:
    return [x * factor + 0.01 for x in QUIET]


@pytest.mark.parametrize(("factor", "expected"), [(1.3, "suspect"), (1.0, "pass"), (1.05, "pass"), (0.7, "improved")])
def test_times_are_suspected_not_failed_unless_asked(factor, expected):
    before, after = make_record(latency_ms=QUIET), make_record(latency_ms=scaled(factor))
    assert verdicts(before, after)["latency_ms"] == expected
    failing = verdicts(before, after, timing_fails=True)["latency_ms"]
    assert failing == ("regressed" if expected == "suspect" else expected)
    result = compare([before], [after], {"here": ENVIRONMENT}, TOLERANCES)
    assert result.exit_code == 0
    assert any("one-sided level of 2.5%" in note for note in result.notes)
    assert any("cannot separate drift" in note for note in result.notes)
    assert "latency_ms" not in verdicts(before, after, exact_only=True)


def test_an_inconclusive_time_says_what_it_could_have_seen():
    noisy = [5.0, 9.0, 14.0, 30.0, 7.0]
    before, after = make_record(latency_ms=noisy), make_record(latency_ms=noisy[::-1])
    (row,) = [
        c for c in compare([before], [after], {"here": ENVIRONMENT}, TOLERANCES).comparisons if c.metric == "latency_ms"
    ]
    assert row.verdict == "inconclusive"
    assert "smallest slowdown" in row.detail


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": {"model": "Xeon", "cores": 2}},
        {"cpu": {"model": "EPYC", "cores": 4}},
        {"threads": 1},
        {"gpu": {"name": "H100"}},
        {"packages": {"torch": "2.12.0"}},
        None,
    ],
)
def test_times_of_unlike_machines_do_not_compare_and_that_is_said_once(change):
    trials = [{"seed": seed} for seed in range(3)]
    before = [make_record(trial=t, latency_ms=QUIET) for t in trials]
    after = [make_record(trial=t, env_id="there", latency_ms=scaled(2)) for t in trials]
    environments = {"here": ENVIRONMENT} | ({"there": ENVIRONMENT | change} if change else {})
    result = compare(before, after, environments, TOLERANCES)
    assert result.exit_code == 2
    (row,) = [c for c in result.comparisons if c.metric == "latency_ms"]
    assert row.verdict == "not comparable"
    assert "machines differ" in row.detail
    assert "--exact-only" in row.detail
    assert row.trial == "3 timed trials"
    assert compare(before, after, environments, TOLERANCES, exact_only=True).exit_code == 0
    worse = [*after[:2], make_record("error", trial=trials[2], env_id="there")]
    assert compare(before, worse, environments, TOLERANCES).exit_code == 1  # what is found counts all the same


def test_another_commit_is_the_same_machine():
    environments = {"here": ENVIRONMENT, "there": ENVIRONMENT | {"commit": "def", "machine": "other"}}
    before, after = make_record(latency_ms=QUIET), make_record(env_id="there", latency_ms=scaled(2))
    assert verdicts(before, after, environments)["latency_ms"] == "suspect"


@pytest.mark.parametrize("few_or_shared", [{"latency_ms": QUIET[:4]}, {"backend": {"side_by_side": 2}}])
def test_few_samples_and_shared_machines_have_no_time(few_or_shared):
    before = make_record(latency_ms=QUIET)
    after = make_record(**{"latency_ms": scaled(2), **few_or_shared})
    assert "latency_ms" not in verdicts(before, after)
    assert "latency_ms" not in verdicts(after, before)


def test_peaks_compare_between_machines_only_on_equal_threads_and_kernels():
    before = make_record(peak_alloc_bytes=5000)
    after = make_record(peak_alloc_bytes=9000, predicted_peak_bytes=2 * 10**7, env_id="there")
    lost_kernel = make_record(peak_alloc_bytes=9000, env_id="there", backend={"scan": "chunked"})

    def against(record, **change):
        return verdicts(before, record, {"here": ENVIRONMENT, "there": ENVIRONMENT | change})

    other_cpu = {"cpu": {"model": "Xeon", "cores": 2}}
    assert against(after, **other_cpu)["peak_alloc_bytes"] == "regressed"
    assert not against(after, threads=8).keys() & {"peak_alloc_bytes", "predicted_peak_bytes"}
    assert against(after, threads=8)["flops"] == "pass"
    assert "peak_alloc_bytes" not in against(lost_kernel, **other_cpu)
    assert against(lost_kernel)["peak_alloc_bytes"] == "regressed"
    assert against(lost_kernel)["kernel scan"] == "changed"


def bursty(rng: np.random.Generator, count: int, factor: float = 1.0, mean_burst: float = 5.0) -> list[float]:
    """A quiet floor with 2 % of jitter; a tenth of the time, in bursts, twice as long."""
    leave, enter = 1 / mean_burst, 1 / mean_burst / 9
    disturbed = rng.random() < 0.1
    samples = []
    for _ in range(count):
        samples.append(factor * (1 + 0.02 * abs(rng.standard_normal())) * (2 if disturbed else 1))
        disturbed = rng.random() >= leave if disturbed else rng.random() < enter
    return samples


def share_regressed(factor: float, pairs: int, count: int) -> float:
    found = 0
    for pair in range(pairs):
        rng = np.random.default_rng((pair, count))
        verdict, _ = judge_timing(bursty(rng, count), bursty(rng, count, factor), 0.10, seed=pair)
        found += verdict == "regressed"
    return found / pairs


def test_false_alarms_of_the_timing_rule_are_at_most_one_in_a_hundred():
    assert share_regressed(1.0, pairs=600, count=30) <= 0.01


def test_a_slowdown_by_thirty_percent_is_found_nine_times_in_ten():
    assert share_regressed(1.3, pairs=200, count=30) >= 0.90


def test_the_bootstrap_is_deterministic_and_covers_what_is_so():
    rng = np.random.default_rng(3)
    base, candidate = bursty(rng, 30), bursty(rng, 30, 1.5)
    ratio = quartile_ratio(base, candidate, seed=1)
    assert ratio == quartile_ratio(base, candidate, seed=1)
    assert ratio != quartile_ratio(base, candidate, seed=2)
    assert ratio.low < 1.5 < ratio.high
    assert math.isclose(ratio.value, np.quantile(candidate, 0.25) / np.quantile(base, 0.25))


@pytest.mark.parametrize(
    ("status", "kind", "here", "there"),
    [
        ("timeout", "TimeLimit", "regressed", "inconclusive"),
        ("skipped", "PredictedTime", "suspect", "inconclusive"),
        ("skipped", "PredictedMemory", "suspect", "inconclusive"),
        ("oom", "MemoryError", "regressed", "regressed"),
    ],
)
def test_limits_are_the_machines_own(status, kind, here, there):
    """A slower machine that runs into a limit says nothing of the code."""
    environments = {"here": ENVIRONMENT, "there": ENVIRONMENT | {"cpu": {"model": "other", "cores": 2}}}
    for env_id, verdict in (("here", here), ("there", there)):
        after = make_record(status, env_id=env_id) | {"error": {"type": kind, "message": "m"}}
        assert verdicts(make_record(), after, environments)["status"] == verdict
