"""Frames hold what records hold: absent stays absent, and only what compares shares a group."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import record_builder as builder

from harness import CutShort
from reports import frames
from reports.page import sections_of


def test_what_was_not_measured_is_never_a_number() -> None:
    frame = frames.trials_frame([builder.speed("mamba-tiny", 1024, "oom", message="no memory")])
    row = frame.iloc[0]
    for name in [*frames.NUMBERS, "latency_median_ms", "accuracy", "bits_per_token", "latency_n"]:
        assert math.isnan(row[name]), name
    speed = frames.speed_frame(frame)
    assert speed["memory_bytes"].isna().all()


def test_a_trial_that_the_end_of_its_run_cut_is_no_time_out_of_a_figure() -> None:
    records = [builder.speed("a", length, "timeout", message="over") for length in (1024, 2048)]
    records[0]["error"]["type"] = CutShort.__name__
    trials = frames.trials_frame(records)
    assert set(trials["seq_len"]) == {1024, 2048}
    assert set(frames.speed_frame(trials)["seq_len"]) == {2048}


@pytest.mark.parametrize(
    ("protocol", "seq_len", "expected"),
    [
        ({"min_examples": 8, "max_examples": 256, "score_tokens": 2**18}, 64, 256),
        ({"min_examples": 8, "max_examples": 256, "score_tokens": 2**18}, 4096, 64),
        ({"min_examples": 8, "max_examples": 256, "score_tokens": 2**18}, 2**20, 8),
        ({"min_examples": 256, "max_examples": 256, "score_tokens": 2**16}, 2**20, 256),
    ],
)
def test_a_suite_asks_for_so_many_examples(protocol: dict[str, int], seq_len: int, expected: int) -> None:
    assert frames.wanted_examples(protocol, seq_len) == expected
    assert all(math.isnan(frames.wanted_examples({**protocol, key: None}, seq_len)) for key in protocol)


@pytest.mark.parametrize("value", [None, True, "12", float("nan"), float("inf"), {}])
def test_what_is_no_number_is_nan(value: object) -> None:
    assert math.isnan(frames.number(value))


def test_a_zero_that_was_recorded_stays() -> None:
    assert frames.number(0) == 0.0


def test_memory_below_the_baseline_is_absent() -> None:
    record = builder.speed("a", 1024, latency=[1.0], peak_rss_bytes=100, baseline_rss_bytes=100)
    assert frames.speed_frame(frames.trials_frame([record]))["memory_bytes"].isna().all()


def test_one_group_never_mixes_two_ways_of_measuring_memory() -> None:
    both: dict[str, Any] = {"latency": [1.0], "peak_rss_bytes": 300, "baseline_rss_bytes": 100}
    records = [builder.speed("a", 1024, **both, peak_alloc_bytes=50), builder.speed("b", 1024, **both)]
    speed = frames.speed_frame(frames.trials_frame(records))
    assert set(speed["memory_basis"]) == {frames.RSS}
    assert set(speed["memory_bytes"]) == {200.0}


def test_the_newest_record_of_a_trial_counts() -> None:
    old = builder.speed("a", 1024, latency=[9.0])
    new = builder.speed("a", 1024, latency=[1.0], started_at="2025-06-01T00:00:00Z")
    for records in ([old, new], [new, old]):
        assert list(frames.trials_frame(records)["latency_median_ms"]) == [1.0]
        assert frames.latest(records)[1] == 1


def test_the_same_trial_on_two_machines_is_two_measurements() -> None:
    records = [builder.speed("a", 1024, latency=[1.0], env_id=name) for name in ("env-a", "env-b")]
    environments = {name: {"machine": name} for name in ("env-a", "env-b")}
    assert [section.label for section in sections_of(records, environments)] == ["env-a, cpu", "env-b, cpu"]


def test_environments_that_differ_only_in_the_commit_are_one_section() -> None:
    records = [
        builder.speed("a", length, latency=[1.0], env_id=name) for length, name in ((1024, "env-a"), (2048, "env-b"))
    ]
    environments = {name: {"machine": "m", "commit": name} for name in ("env-a", "env-b")}
    assert len(sections_of(records, environments)) == 1


def test_which_gpu_of_a_machine_it_was_makes_no_section() -> None:
    records = [
        builder.speed("a", length, latency=[1.0], env_id=name) for length, name in ((1024, "env-a"), (2048, "env-b"))
    ]

    def on(gpu: str, threads: str) -> dict[str, object]:
        variables = {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": threads}
        return {"machine": "m", "flags": {"variables": variables}}

    assert len(sections_of(records, {"env-a": on("0", "1"), "env-b": on("1", "1")})) == 1
    assert len(sections_of(records, {"env-a": on("0", "1"), "env-b": on("0", "2")})) == 2


def test_how_many_host_threads_there_were_makes_a_section_of_a_cpus_trials_alone() -> None:
    def on(threads: int) -> dict[str, object]:
        variables = {"OMP_NUM_THREADS": str(threads)}
        return {"machine": "m", "threads": threads, "cpu": {"cores": threads}, "flags": {"variables": variables}}

    environments = {"env-a": on(16), "env-b": on(32)}
    for device, expected in (("cuda", 1), ("cpu", 2)):
        records = [builder.speed("a", 1024, latency=[1.0], env_id=name, device=device) for name in environments]
        assert len(sections_of(records, environments)) == expected


def test_alike_names_of_different_environments_are_told_apart() -> None:
    records = [builder.speed("a", 1024, latency=[1.0], env_id=name) for name in ("env-a", "env-b")]
    environments = {name: {"machine": "m", "threads": index} for index, name in enumerate(("env-a", "env-b"))}
    assert len({section.label for section in sections_of(records, environments)}) == 2


def test_a_protocol_that_was_varied_splits_and_one_that_differs_by_model_does_not() -> None:
    records = [
        builder.speed(model, 1024, latency=[1.0], protocol={"lr": lr, "heads": heads})
        for model, lr in (("a", 0.1), ("b", 0.2))
        for heads in (2, 4)
    ]
    variants = frames.trials_frame(records)["variant"]
    assert set(variants) == {"heads 2", "heads 4"}


def test_rates_of_models_that_follow_from_another_choice_do_not_part_the_models() -> None:
    def variants(rates: dict[tuple[str, str], float]) -> set[str]:
        records = [
            builder.speed(model, 1024, latency=[1.0], protocol={"answers": answers, "lr": lr})
            for (model, answers), lr in rates.items()
        ]
        return set(frames.trials_frame(records)["variant"])

    rates = {("a", "all"): 0.2, ("a", "labels"): 0.02, ("b", "all"): 0.1, ("b", "labels"): 0.01}
    assert variants(rates) == {"answers all", "answers labels"}
    assert variants({key: lr for key, lr in rates.items() if key[0] == "a"}) == {
        "answers all, lr 0.2", "answers labels, lr 0.02",
    }  # fmt: skip


def test_what_follows_from_the_steps_is_named_only_where_nothing_else_tells_protocols_apart() -> None:
    def variants(*protocols: dict[str, int]) -> set[str]:
        records = [builder.speed("a", 1024, latency=[1.0], protocol=protocol) for protocol in protocols]
        return set(frames.trials_frame(records)["variant"])

    assert variants({"steps": 10, "warmup_steps": 1}, {"steps": 20, "warmup_steps": 2}) == {"steps 10", "steps 20"}
    alone = {"steps 10, warmup_steps 1", "steps 10, warmup_steps 2", "steps 20, warmup_steps 2"}
    short = {"steps": 10, "warmup_steps": 2}
    assert variants({"steps": 10, "warmup_steps": 1}, short, {"steps": 20, "warmup_steps": 2}) == alone
    assert variants({"warmup_steps": 1}, {"warmup_steps": 2}) == {"warmup_steps 1", "warmup_steps 2"}


def test_stand_in_data_never_share_a_group_with_what_they_stand_in_for() -> None:
    records = [
        builder.training(model, "dna", source={"name": "hg38", "kind": kind}, bits_per_token=builder.bits(1.9))
        for model, kind in (("a", "embedded"), ("b", "file"))
    ]
    scores = frames.scores_frame(frames.training_frame(frames.trials_frame(records)))
    assert len(scores.groupby(frames.TRAINING_GROUP, dropna=False)) == 2


def test_the_training_length_is_a_scored_length_even_if_only_the_metrics_say_so() -> None:
    record = builder.training("a", "dna", bits_per_token=builder.bits(1.9))
    scores = frames.scores_frame(frames.training_frame(frames.trials_frame([record])))
    assert list(scores["scored_len"]) == [256.0]
    assert list(scores["bits_per_token"]) == [1.9]


def test_a_sparse_record_is_read() -> None:
    record = json.loads('{"trial_id": "ab", "trial": {"kind": "speed", "model": "m"}, "status": "ok"}')
    frame = frames.trials_frame([record])
    assert len(frames.speed_frame(frame)) == 1
