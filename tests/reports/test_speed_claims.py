"""Each rule about speed and memory decides both ways, and says when it cannot decide."""

from __future__ import annotations

from typing import Any

import pytest
import record_builder as builder

from reports import frames
from reports.contrasts import Contrast
from reports.page import sections_of
from reports.speed_claims import judge_speed_claims

SHAPES = {"width": 1024, "d_state": 16}
LENGTHS = [2**power for power in range(9, 21)]
Record = builder.Record


def _judge(records: list[Record]) -> dict[str, Contrast]:
    trials = frames.trials_frame(records)
    claims = judge_speed_claims(frames.speed_frame(trials), frames.generation_frame(trials))
    return {claim.id: claim for claim in claims}


def _operator(name: str, times: dict[int, float], direction: str = "forward") -> list[Record]:
    return [
        builder.speed(name, x, direction=direction, dtype="bfloat16", protocol=SHAPES, latency=[time] * 5)
        for x, time in times.items()
    ]


def _scan(power: float = 1.0, direction: str = "forward") -> list[Record]:
    return _operator("selective_scan", {x: (x / 2048) ** power for x in LENGTHS}, direction)


def _attention(at: float, name: str = "attention_flash", direction: str = "forward") -> list[Record]:
    """Quadratic, and as fast as the scan at the length `at`."""
    return _operator(name, {x: x / 2048 * x / at for x in LENGTHS}, direction)


def _model(name: str, times: dict[int, float], direction: str = "train", **rest: Any) -> list[Record]:
    return [
        builder.speed(name, x, level="model", direction=direction, latency=[y] * 5, **rest) for x, y in times.items()
    ]


def _generated(model: str, loop: str, rates: dict[int, float]) -> list[Record]:
    return [
        builder.generation(model, batch, loop, prefill=[1.0] * 3, decode=[1e3 * 128 * batch / rate - 1.0] * 3)
        for batch, rate in rates.items()
    ]


def _trained(model: str, peaks: dict[int, float]) -> list[Record]:
    return [
        builder.speed(
            model, 2048, level="model", direction="train", batch=batch, latency=[1.0] * 5, peak_alloc_bytes=peak
        )
        for batch, peak in peaks.items()
    ]


def _replayed(records: list[Record], at: float) -> list[Record]:
    """Each call launch-bound up to 8K, where the host takes `at` ms and the device what the record had."""
    for record in records:
        if record["trial"]["seq_len"] <= 8192:
            metrics = record["metrics"]
            metrics["replay_ms"] = metrics["latency_ms"]
            metrics |= {"latency_ms": [at] * 5, "host_ms": [at] * 5, "launch_bound": True}
    return records


def _issued(records: list[Record], factor: float) -> list[Record]:
    """Each call launch-bound: the host takes `factor` times as long as the device, whose time the record had."""
    for record in records:
        metrics = record["metrics"]
        metrics["replay_ms"] = metrics["latency_ms"]
        slow = [factor * sample for sample in metrics["latency_ms"]]
        metrics |= {"latency_ms": slow, "host_ms": slow, "launch_bound": True}
    return records


MAMBA = _generated("mamba-1.4b", "cuda_graph", {1: 100.0, 8: 500.0, 64: 1000.0})
STATIC_CACHE = _generated("transformer-1.4b", "cuda_graph", {1: 50, 8: 200})
CASES: list[tuple[str, list[Record], str]] = [
    ("scan-crosses-attention-near-2k", _scan() + _attention(2500), "shown"),
    ("scan-crosses-attention-near-2k", _scan() + _attention(20_000), "not shown"),
    # The slower kernel crosses where the claim says, the fastest one does not: the fastest counts.
    (
        "scan-crosses-attention-near-2k",
        _scan() + _attention(2500, "attention_efficient") + _attention(20_000),
        "not shown",
    ),
    ("scan-crosses-attention-near-2k", _attention(2500), "not measured"),
    # The host hides who is faster: of what it issues attention seems to be, up to 8K.
    ("scan-crosses-attention-near-2k", _replayed(_scan(), 9.0) + _replayed(_attention(2500), 8.0), "not shown"),
    ("scan-crosses-attention-near-2k-device", _replayed(_scan(), 9.0) + _replayed(_attention(2500), 8.0), "shown"),
    (
        "scan-crosses-attention-near-2k-device",
        _replayed(_scan(), 8.0) + _replayed(_attention(20_000), 9.0),
        "not shown",
    ),
    ("scan-crosses-attention-near-2k-device", _scan() + _attention(2500), "not measured"),
    (
        "mamba-trains-slower-at-2k-faster-at-8k",
        _model("mamba-130m", {2048: 2.0, 8192: 8.0}) + _model("transformer-130m", {2048: 1.0, 8192: 9.0}),
        "shown",
    ),
    (
        "mamba-trains-slower-at-2k-faster-at-8k",
        _model("mamba-130m", {2048: 2.0, 8192: 8.0}) + _model("transformer-130m", {2048: 1.0, 8192: 7.0}),
        "not shown",
    ),
    # Another size is no comparison.
    (
        "mamba-trains-slower-at-2k-faster-at-8k",
        _model("mamba-130m", {2048: 2.0, 8192: 8.0}) + _model("transformer-tiny", {2048: 1.0, 8192: 9.0}),
        "not measured",
    ),
    (
        "fused-scan-20-times-a-torch-scan",
        _scan() + _operator("selective_scan_torch", {x: 30 * x / 2048 for x in LENGTHS}),
        "shown",
    ),
    (
        "fused-scan-20-times-a-torch-scan",
        _scan() + _operator("selective_scan_torch", {x: (30 if x < 2**19 else 10) * x / 2048 for x in LENGTHS}),
        "not shown",
    ),
    ("fused-scan-20-times-a-torch-scan", _scan(), "not measured"),
    # What the host adds to many short launches is no merit of the one that has few.
    (
        "fused-scan-20-times-a-torch-scan",
        _scan() + _issued(_operator("selective_scan_torch", {x: 10 * x / 2048 for x in LENGTHS}), 3.0),
        "shown",
    ),
    (
        "fused-scan-20-times-a-torch-scan-device",
        _scan() + _issued(_operator("selective_scan_torch", {x: 10 * x / 2048 for x in LENGTHS}), 3.0),
        "not shown",
    ),
    (
        "fused-scan-20-times-a-torch-scan-device",
        _scan() + _issued(_operator("selective_scan_torch", {x: 30 * x / 2048 for x in LENGTHS}), 3.0),
        "shown",
    ),
    (
        "fused-scan-20-times-a-torch-scan-device",
        _scan() + _operator("selective_scan_torch", {2048: 30}),
        "not measured",
    ),
    ("scan-7-times-attention-at-32k", _scan() + _attention(32 * 1024 / 8), "shown"),
    ("scan-7-times-attention-at-32k", _scan() + _attention(32 * 1024 / 6), "not shown"),
    ("mamba-linear-to-1m-operator-forward", _scan(), "shown"),
    ("mamba-linear-to-1m-operator-forward", _scan(1.5), "not shown"),
    ("mamba-linear-to-1m-operator-train", _scan(), "not measured"),
    ("mamba-linear-to-1m-operator-train", _scan(1.0, "train"), "shown"),
    # It was tried at 1M and did not fit: that is no missing measurement.
    (
        "mamba-linear-to-1m-model-train",
        [
            *_model("mamba-130m", {x: float(x) for x in LENGTHS[:-1]}),
            builder.speed("mamba-130m", 2**20, "oom", level="model", direction="train", message="no memory"),
        ],
        "not shown",
    ),
    ("mamba-linear-to-1m-model-train", _model("mamba-130m", {x: float(x) for x in LENGTHS[:-1]}), "not measured"),
    ("mamba-linear-to-1m-model-forward", _model("mamba-130m", {x: float(x) for x in LENGTHS}, "forward"), "shown"),
    ("scan-100-times-attention-at-128k-best-forward", _scan() + _attention(1200), "shown"),
    ("scan-100-times-attention-at-128k-best-forward", _scan() + _attention(1400), "not shown"),
    ("scan-100-times-attention-at-128k-best-train", _scan() + _attention(1200), "not measured"),
    ("scan-100-times-attention-at-128k-materialised-forward", _scan() + _attention(1200, "attention_math"), "shown"),
    ("scan-100-times-attention-at-128k-materialised-forward", _scan() + _attention(1200), "not measured"),
    (
        "mamba-generates-5-times-static-cache-best",
        MAMBA + _generated("transformer-1.4b", "cuda_graph", {1: 50, 8: 200}),
        "shown",
    ),
    (
        "mamba-generates-5-times-static-cache-equal",
        MAMBA + _generated("transformer-1.4b", "cuda_graph", {1: 50, 8: 200}),
        "not shown",
    ),
    (
        "mamba-generates-5-times-transformers-equal",
        MAMBA + _generated("transformer-1.4b", "cuda_graph", {1: 50, 8: 200}),
        "not measured",
    ),
    (
        "mamba-generates-5-times-transformers-equal",
        MAMBA + _generated("transformer-1.4b", "transformers", {1: 10}),
        "shown",
    ),
    (
        "mamba-trains-in-attentions-memory",
        _trained("mamba-130m", {1: 1.1e9, 2: 2.2e9, 4: 4e9}) + _trained("transformer-130m", {1: 1e9, 2: 2e9, 4: 4e9}),
        "shown",
    ),
    (
        "mamba-trains-in-attentions-memory",
        _trained("mamba-130m", {1: 1.1e9, 2: 2.2e9, 4: 6e9}) + _trained("transformer-130m", {1: 1e9, 2: 2e9, 4: 4e9}),
        "not shown",
    ),
    ("mamba-trains-in-attentions-memory", _trained("mamba-130m", {1: 1e9, 2: 2e9, 4: 3e9}), "not measured"),
]


@pytest.mark.parametrize(("name", "records", "verdict"), CASES)
def test_a_rule_decides(name: str, records: list[Record], verdict: str) -> None:
    assert _judge(records)[name].verdict == verdict


def test_constant_tokens_say_nothing_about_how_time_grows() -> None:
    flat = [
        builder.speed("selective_scan", x, batch=2**20 // x, protocol=SHAPES | {"tokens": 2**20}, latency=[1.0] * 5)
        for x in LENGTHS
    ]
    assert _judge(flat)["mamba-linear-to-1m-operator-forward"].verdict == "not measured"


def test_the_hundredfold_says_where_it_is_reached_and_against_what() -> None:
    evidence = _judge(_scan() + _attention(2048))["scan-100-times-attention-at-128k-best-forward"].evidence
    assert "64x [64, 64] at 128K" in evidence
    assert "100x reached at 200K" in evidence
    assert "published, A100 (digitised): 28.5x" in evidence


def test_every_claim_is_undecided_without_its_measurements_and_has_numbers_with_them() -> None:
    assert {claim.verdict for claim in _judge([]).values()} == {"not measured"}
    claims = _judge([record for _, records, _ in CASES for record in records])
    for claim in claims.values():
        assert claim.verdict == "not measured" or any(char.isdigit() for char in claim.evidence)


def test_claims_are_judged_where_speed_was_measured_for_its_own_sake() -> None:
    (section,) = sections_of(_scan(), {})
    assert section.claims
    (section,) = sections_of(_model("mamba-tiny", {1024: 1.0, 2048: 2.0}), {})
    assert section.claims == []
