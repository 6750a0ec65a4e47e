"""The page stands alone, shows every trial, and takes nothing from records as markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import record_builder as builder

import reports
from reports import tables
from reports.document import escape_markdown
from reports.page import Section, write_pages

HOSTILE = (
    '<script src="https://evil.example/x.js"></script> & | `rm` [a](http://evil.example) *b* $\\frac$ \x1b[31m \udc80'
)
VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Checks nesting and collects what the page would load and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _write(records: list[builder.Record], out: Path) -> Page:
    page = write_pages(records, {"env-a": builder.ENVIRONMENT}, ["a torn line"], out, "seqbench report x")
    return Page(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    _write(builder.sweep(), out)
    return out


def test_the_page_loads_nothing_from_elsewhere_and_parses(report: Path) -> None:
    page = Page((report / "index.html").read_text(encoding="utf-8"))
    for address in page.loads:
        assert address.startswith("data:image/svg+xml;base64,") or (report / address).is_file(), address[:80]
    assert "script" not in page.tags
    assert "@import" not in (report / "index.html").read_text(encoding="utf-8")
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_has_png_svg_and_its_data(report: Path) -> None:
    names = {file.stem for file in (report / "figures").iterdir()}
    for name in names:
        assert (report / "figures" / f"{name}.png").stat().st_size > 1000
        assert (report / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert len(pd.read_csv(report / "figures" / f"{name}.csv")) > 0
        assert f"(figures/{name}.png)" in (report / "report.md").read_text(encoding="utf-8")


def test_every_trial_and_every_failure_is_on_the_page(report: Path) -> None:
    records = builder.sweep()
    words = " ".join(Page((report / "index.html").read_text(encoding="utf-8")).words)
    markdown = (report / "report.md").read_text(encoding="utf-8")
    for record in records:
        assert record["trial_id"][:8] in words
        if record["status"] != "ok":
            assert record["error"]["message"] in words
            assert escape_markdown(record["error"]["message"]) in markdown
    for phrase in ("a torn line", "EMBEDDED SAMPLE DATA", "AMD EPYC 7763", "2.13.0", "0123abcd", "seqbench report x"):
        assert phrase in words


def test_a_failed_trial_is_in_the_tables(section: Section) -> None:
    failed = section.trials[section.trials["status"] != "ok"]
    skipped = tables.skipped_table(section.trials, section.scores)
    everything = tables.trials_table(section.trials)
    for row in failed.to_dict("records"):
        assert row["error_message"] in " ".join(skipped.loc[skipped["Trial"] == row["trial_id"][:8], "Why"])
        assert list(everything.loc[everything["Trial"] == row["trial_id"][:8], "Status"]) == [row["status"]]


def test_absent_figures_are_dashes_in_tables() -> None:
    frame = reports.trials_frame([builder.speed("a", 1024, "oom", message="no memory")])
    row = tables.trials_table(frame).iloc[0]
    assert "0" not in row["Time (predicted)"] + row["Memory (predicted)"] + row["Tokens/s"] + row["Result"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    records = [
        builder.speed(HOSTILE, 1024, "error", message=HOSTILE),
        builder.speed("a$b", 1024, latency=[1.0]),
        builder.training(
            "_x",
            HOSTILE,
            source={"name": HOSTILE, "kind": "embedded", "note": HOSTILE},
            bits_per_token=builder.bits(1.0),
            loss_curve=[[0, 1.0], [1, 0.5]],
        ),
    ]
    page = _write(records, tmp_path)
    assert "script" not in page.tags
    assert all(not address.startswith("http") for address in page.loads)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "://" not in markdown


@pytest.mark.conformance
def test_the_same_records_give_the_same_bytes(report: Path, tmp_path: Path) -> None:
    _write(list(reversed(builder.sweep())), tmp_path)
    for file in sorted(path for path in report.rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / file.relative_to(report)).read_bytes(), file.name


@pytest.mark.parametrize(
    "record",
    [
        builder.speed("mamba-tiny", 1024, latency=[1.0, 1.1]),
        builder.speed("mamba-tiny", 1024, "skipped", message="no"),
        builder.speed("mamba-tiny", 1024),
        builder.training("mamba-tiny", "dna", status="killed", message="no"),
        builder.training("mamba-tiny", "induction_heads", accuracy=builder.share(0.99)),
        {"trial_id": "ab", "trial": {"kind": "speed", "model": "m", "seq_len": 64}, "status": "ok"},
    ],
)
def test_one_record_is_enough(record: builder.Record, tmp_path: Path) -> None:
    assert record["trial_id"][:8] in " ".join(_write([record], tmp_path).words)


def test_two_environments_are_two_sections(tmp_path: Path) -> None:
    records = [builder.speed("mamba-tiny", 1024, latency=[1.0], env_id=name) for name in ("env-a", "env-b")]
    page = write_pages(records, {"env-a": {"machine": "one"}, "env-b": {"machine": "two"}}, [], tmp_path, "c")
    words = Page(page.read_text(encoding="utf-8")).words
    assert {"one, cpu", "two, cpu"} <= set(words)
    assert {file.name.split("-")[0] for file in (tmp_path / "figures").iterdir()} == {"s1", "s2"}


def test_records_are_read_from_files_with_their_environments(tmp_path: Path) -> None:
    for machine in ("one", "two"):
        folder = tmp_path / machine
        (folder / "env").mkdir(parents=True)
        record = builder.speed("mamba-tiny", 1024, latency=[1.0], env_id=f"env-{machine}")
        (folder / "records.jsonl").write_text(json.dumps(record) + '\n{"schema": 1, "tri', encoding="utf-8")
        (folder / "env" / f"env-{machine}.json").write_text(json.dumps({"machine": machine}), encoding="utf-8")
    page = reports.write_report([tmp_path], tmp_path / "out")
    words = " ".join(Page(page.read_text(encoding="utf-8")).words)
    # The same trial on two machines has one id and is two measurements.
    assert "one, cpu" in words
    assert "two, cpu" in words
    assert "line 2" in words


def test_without_records_the_error_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("", encoding="utf-8")
    for paths in ([], [tmp_path / "absent"], [tmp_path], [tmp_path / "records.jsonl"]):
        with pytest.raises(ValueError, match="seqbench run quick"):
            reports.write_report(paths, tmp_path / "out")
