"""The gate on itself: comparisons formed from collected blocks, what is counted, and what is printed and drawn."""

import json

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.gate_self import FACTORS, GATE, _dealt, pairs_of, simulate, summary, tables
from reports.document import to_markdown
from reports.gate_self import FILE, gate_self_blocks

ENVIRONMENT = {"commit": "abc", "dirty": False, "cpu": {"model": "EPYC", "cores": 2}}


def collected(num_blocks: int = 48, *, apart: float = 1.0, noise: float = 0.01) -> dict:
    """Blocks of two checkouts in the gate's order; the second is ``apart`` times as slow."""
    rng = np.random.default_rng(0)

    def samples(level: float) -> list[float]:
        return (level * (1 + noise * np.abs(rng.standard_normal(10)))).tolist()

    blocks = []
    for index in range(num_blocks):
        side = ("base", "candidate", "candidate", "base", "candidate", "base", "base", "candidate")[index % 8]
        level = apart if side == "candidate" else 1.0
        series = {name: {str(f): samples(level * f) for f in FACTORS} for name in ("scan", "other")}
        blocks.append({"side": side, "samples": series})
    return {
        "label": "HEAD (abc)",
        "core": 1,
        "calls": {"scan": 5},
        "blocks": blocks,
        "blocks_s": 12.5,
        "environment": ENVIRONMENT,
    }


def test_pairs_are_neighbours_by_their_true_side():
    data = collected()
    for index, block in enumerate(data["blocks"]):
        block["samples"]["scan"]["1.0"] = [index + (0.5 if block["side"] == "candidate" else 0.25)]
    pairs = pairs_of(data)["scan"][1.0]
    assert pairs.shape == (24, 2, 1)
    assert set(np.mod(pairs[:, 0], 1).ravel()) == {0.25}
    assert set(np.mod(pairs[:, 1], 1).ravel()) == {0.5}
    assert (np.abs(np.floor(pairs[:, 0]) - np.floor(pairs[:, 1])) == 1).all()
    with pytest.raises(ValueError, match="raise --blocks"):
        pairs_of(collected(47))


def test_a_comparison_uses_no_pair_twice_and_keeps_quads_together():
    dealt = _dealt(np.random.default_rng(1), 24)
    assert sorted(dealt) == list(range(24))
    assert all(first % 2 == 0 and second == first + 1 for first, second in dealt.reshape(-1, 2))
    assert list(dealt) != list(range(24))


def test_quiet_blocks_raise_no_alarm_and_show_a_tenth():
    tallies, effects = simulate(pairs_of(collected()), 20, 0.03)
    assert tallies[GATE].runs_with_alarm == 0
    assert tallies[GATE].calls["scan", 1.1] == 20
    assert all(0.03 < effect < 0.06 for effect in effects["scan"])


def test_checkouts_that_differ_raise_alarms_that_are_counted_by_run():
    """Every second comparison has the slower checkout as its candidate; two benchmarks that alarm are one run."""
    tallies, _ = simulate(pairs_of(collected(apart=1.2)), 20, 0.03)
    assert tallies[GATE].runs_with_alarm == 10
    assert tallies[GATE].calls["scan", 1.0] == tallies[GATE].calls["other", 1.0] == 10


def test_rules_differ_where_they_should():
    tallies, _ = simulate(pairs_of(collected(noise=0.001)), 10, 0.03)
    assert tallies["pytest-benchmark min:10%"].calls["scan", 1.05] == 0
    assert tallies["pytest-benchmark min:5%"].calls["scan", 1.1] == 10
    assert tallies["Mann-Whitney, one-sided p < 0.025"].calls["scan", 1.05] == 10


def test_the_command_reads_blocks_and_ends_with_its_line(tmp_path, monkeypatch, capsys):
    samples, out = tmp_path / "blocks.json", tmp_path / "results" / "cpu" / FILE
    samples.write_text(json.dumps(collected()))
    words = ["gate", "--self", "--samples", str(samples), "--out", str(out), "--comparisons", "10"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "false alarms 0 % of 10; detected +10 % 100 %"
    first = out.read_bytes()
    assert main(words) == 0
    assert out.read_bytes() == first
    assert main([*words[:-1], "0"]) == 2
    found = json.loads(first)
    assert found["rules"].keys() >= {GATE, "pytest-benchmark mean:10%"}
    assert found["benchmarks"]["scan"]["detected_percent"]["10"] == 100
    assert found["method"].startswith("Blocks of one commit")

    records = [{"records_path": str(out.parent / "quick" / "records.jsonl")}]
    text = to_markdown(gate_self_blocks(records))
    assert "EPYC, 2 cores: false alarms 0 % of 10" in text
    assert "+10 % 100 %" in text
    assert gate_self_blocks([{"records_path": str(tmp_path / "records.jsonl")}]) == []
    out.write_text("[]")
    assert gate_self_blocks(records) == []


def test_tables_name_every_benchmark_and_rule():
    text = tables(summary(collected(), 5, 0.03))
    for word in ("scan", "other", GATE, "Mann-Whitney", "smallest effect", "5 comparisons"):
        assert word in text
