"""Agreement of clocks: what counts as disagreement, what is written, and that meters of memory agree exactly."""

import csv
import math

import pytest
import torch

from benchmarks import clock_agreement
from benchmarks.clock_agreement import COLUMNS, OPERATORS, bind, disagreements, format_table, main, memory_rows

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.set_num_threads(1)
    sizes = clock_agreement.Sizes(dtype=torch.float32, channels=64, lengths=(64, 96))
    monkeypatch.setitem(clock_agreement.SIZES, "cpu", sizes)


def rows(*ratios: float) -> list[dict]:
    key = {"operator": "attention", "seq_len": 1024, "instrument": "another clock", "peak_bytes": ""}
    return [{**key, "median_ms": 2.0 * ratio, "ratio_to_ours": ratio} for ratio in ratios]


@pytest.mark.parametrize(("ratio", "agrees"), [(1.0, True), (1.029, True), (0.971, True), (1.031, False), (0.9, False)])
def test_three_percent_either_way_are_allowed(ratio, agrees):
    assert bool(disagreements(rows(1.0, ratio))) is not agrees


def test_a_figure_that_is_none_disagrees():
    (sentence,) = disagreements(rows(1.0, math.nan))
    assert "another clock" in sentence and "attention at 1K" in sentence


@pytest.mark.parametrize("slower", [1.0, 2.0])
def test_a_run_writes_all_it_measured_and_fails_by_its_figures(monkeypatch, tmp_path, capsys, slower):
    """Both instruments read the same mock clock, one of them running at another speed."""
    clocks = {clock_agreement.CLOCK: lambda call: 3.0, "mock": lambda call: 3.0 * slower}
    monkeypatch.setattr(clock_agreement, "clocks", lambda device, budget_s: clocks)
    out = tmp_path / "agreement.csv"
    assert main(["--device", "cpu", "--out", str(out)]) == (slower != 1.0)
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == list(COLUMNS)
    timed = [row for row in written if row["median_ms"]]
    assert {(r["operator"], r["seq_len"]) for r in timed} == {(o, length) for o in OPERATORS for length in ("64", "96")}
    assert {float(r["ratio_to_ours"]) for r in timed if r["instrument"] == "mock"} == {slower}
    assert ("DISAGREES: mock gives 2.0 of ours" in capsys.readouterr().out) is (slower != 1.0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_both_meters_of_memory_agree_to_the_byte(operator):
    ours, other = memory_rows(operator, 96, CPU)
    inputs = 64 * 96 * 4
    assert ours["peak_bytes"] > inputs
    assert other["peak_bytes"] == ours["peak_bytes"]


def test_a_clock_measures_the_call():
    """Only that it runs and counts calls: a busy machine does not agree with itself."""
    calls: list[None] = []
    for measure in clock_agreement.clocks(CPU, 0.01).values():
        calls.clear()
        assert measure(lambda: calls.append(None)) > 0
        assert calls


def test_calls_are_the_same_each_time_and_keep_no_graph():
    for operator in OPERATORS:
        first, second = (bind(operator, 64, CPU)() for _ in range(2))
        first, second = (out[0] if isinstance(out, tuple) else out for out in (first, second))
        assert torch.equal(first, second) and not first.requires_grad


def test_the_table_names_every_row():
    lines = list(format_table(rows(1.0, 1.5)))
    assert len(lines) == 3 and lines[-1].endswith("1.5000")


@pytest.mark.parametrize("words", [["--device", "cuda"], ["--budget-s", "0"]])
def test_what_cannot_be_is_refused(words, capsys):
    if words[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main(words)
    assert words[0] in capsys.readouterr().err
