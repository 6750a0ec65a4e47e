"""The compact tables of the speed suite agree with the laws behind the synthetic records, and print as Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import record_builder as builder
import speed_records as speed_suite

from benchmarks.cli import main
from reports import fits, frames, speed_summary, speed_tables, style
from reports.document import Table
from reports.page import Section, sections_of


@pytest.fixture(scope="module")
def suite() -> Section:
    records = [
        record
        for record in speed_suite.suite()
        if record["trial"]["protocol"].get("level") != "block" and "tokens" not in record["trial"]["protocol"]
    ]
    (only,) = sections_of(records, {"env-a": speed_suite.ENVIRONMENT})
    return only


def _number(cell: str) -> float:
    """The first number of a cell, times in milliseconds."""
    match = re.match(r"([\d.,]+) ?(ms|s|µs)?", cell)
    assert match, cell
    return float(match[1].replace(",", "")) * {"s": 1e3, "µs": 1e-3}.get(match[2] or "", 1.0)


def test_operator_times_and_ratios_follow_the_laws(suite: Section) -> None:
    (forward, forward_alone, train, train_alone) = speed_summary.times_parts(suite.speed)
    for (_, _, table), is_train in ((forward, False), (train, True)):
        assert list(table["Length"]) == [style.length(x) for x in speed_suite.LENGTHS]
        for row in table.to_dict("records"):
            length = 2 ** [style.length(x) for x in speed_suite.LENGTHS].index(row["Length"]) * 512
            for name in speed_summary.COMPARED:
                law = speed_suite.operator_ms(name, length, train=is_train)
                if law > 1:  # far from what the host allows
                    assert _number(row[name]) == pytest.approx(law, rel=0.05)
                    ratio = re.search(r"\(([\d.]+)x\)", row[name])
                    best = min(speed_suite.operator_ms(n, length, train=is_train) for n in speed_suite.ATTENTION_MS)
                    assert (ratio is None) == ("(" not in row["attention, fastest kernel"])
                    assert ratio is None or float(ratio[1]) == pytest.approx(best / law, rel=0.1)
    for (title, _, table), is_train in ((forward_alone, False), (train_alone, True)):
        assert title.startswith("The device's time")
        first = table.to_dict("records")[0]  # where the host decides, and the replays do not show it
        for name in speed_summary.COMPARED:
            assert _number(first[name]) == pytest.approx(speed_suite.operator_ms(name, 512, train=is_train), rel=0.05)
    last = train[2].iloc[-1]["attention, fastest kernel"]
    assert "timeout" in last and "ms" not in last


def test_a_slope_from_8k_uses_those_lengths_only(suite: Section) -> None:
    table = speed_summary.slopes_table(suite.speed)
    assert len(table)
    for row in table.to_dict("records"):
        for column in ("Lengths (time)", "Lengths (memory)"):
            if row[column] != style.NONE:
                start = row[column].partition(", ")[2].partition("..")[0]
                assert start in {style.length(x) for x in speed_suite.LENGTHS if x >= 8192}
    operators = table[table["Measured"].str.startswith("operator, forward")].set_index("Series")["Time"]
    assert _number(operators["attention"]) == pytest.approx(2, abs=0.05)
    assert _number(operators["selective_scan"]) == pytest.approx(1, abs=0.05)


def test_the_slope_of_a_power_law_and_its_limits() -> None:
    law = {float(x): 3.0 * x**1.5 for x in (1024, 8192, 16384, 65536)}
    slope = fits.fit_slope_since(law, 8192)
    assert slope is not None
    assert slope.value == pytest.approx(1.5) and slope.num_points == 3 and slope.start == 8192
    assert fits.fit_slope_since(law, 16384) is None  # two points have no interval
    assert fits.fit_slope_since({8192.0: 1.0, 12288.0: 2.0, 16384.0: 3.0}, 8192) is None  # a factor of two
    flat = fits.fit_slope_since({x: 1.0 - 1e-9 * np.log(x) for x in law}, 1024)
    assert str(flat).startswith("0.00")


def test_ratios_to_pytorch_are_the_laws(suite: Section) -> None:
    table = speed_tables.torch_speedups_table(suite.speed)
    assert set(zip(table["Model"], table["Compared with"], strict=True)) == {
        ("selective_scan", "selective_scan_torch"),
        ("ssd", "ssd_torch"),
    }
    forward = table[table["Measured"].str.startswith("operator, forward") & (table["Model"] == "selective_scan")]
    law = [speed_suite.operator_ms(name, 65536) for name in ("selective_scan_torch", "selective_scan")]
    assert _number(forward["64K"].item().replace("x", " ")) == pytest.approx(law[0] / law[1], rel=0.05)


def test_generation_by_batch_holds_every_point_and_every_failure(suite: Section) -> None:
    generated = frames.generation_frame(suite.trials)
    ((_, _, table),) = speed_summary.batches_parts(generated)
    table = table.set_index("Batch")
    assert table.loc["largest that fits", "mamba-1.4b (CUDA graph)"] == "2,048"
    assert table.loc["128", "transformer-1.4b (plain transformers)"] == "oom"
    at_one = generated[(generated["batch"] == 1) & (generated["model"] == "mamba-1.4b")]["tokens_per_s"].item()
    assert _number(table.loc["1", "mamba-1.4b (CUDA graph)"]) == pytest.approx(at_one, rel=0.03)


def test_the_summary_folds_nothing_and_names_only_references(suite: Section) -> None:
    blocks = speed_summary.summary_blocks(suite.speed, suite.trials)
    found = [block for block in blocks if isinstance(block, Table)]
    assert len(found) >= 9 and not any(table.folded for table in found)
    (crossings,) = (table.frame for table in found if "95 % interval" in table.frame.columns)
    every = speed_tables.crossovers_table(suite.speed)
    assert 0 < len(crossings) < len(every)
    pairs = pd.MultiIndex.from_frame(every[["Measured", "Model", "Compared with"]])
    assert pd.MultiIndex.from_frame(crossings[["Measured", "Model", "Compared with"]]).isin(pairs).all()


def _write(records: list[builder.Record], folder: Path) -> None:
    (folder / "env").mkdir()
    (folder / "env" / "env-a.json").write_text(json.dumps(speed_suite.ENVIRONMENT))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_command_prints_markdown_and_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [r for r in speed_suite.suite() if r["trial"]["kind"] == "generation" or "scan" in r["trial"]["model"]]
    _write(chosen, tmp_path)
    assert main(["report", str(tmp_path), "--markdown"]) == 0
    text = capsys.readouterr().out
    for title in ("Time of a call", "Slopes from 8K on", "Speedup over the same operator in PyTorch", "Condition"):
        assert title in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows and all(line.endswith("|") for line in rows)
    assert not (tmp_path / "figures").exists()
    assert main(["claims", str(tmp_path)]) == 0
    assert "20 times faster than a scan in PyTorch" in capsys.readouterr().out


def test_the_command_says_what_to_run_where_no_suite_was_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write([builder.speed("mamba-tiny", 1024, latency=[1.0] * 9)], tmp_path)
    assert main(["report", str(tmp_path), "--markdown"]) == 2
    assert "seqbench run speed" in capsys.readouterr().err
    assert main(["claims", str(tmp_path)]) == 0
    assert "needs selective_scan and an attention kernel" in capsys.readouterr().out
