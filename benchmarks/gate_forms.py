"""A gate's result in four forms: terminal table, Markdown, JUnit XML, GitHub annotations. Text out, no I/O."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from harness.gate import GateResult
from harness.gate_rules import PAIRED_LATENCY, Comparison, Verdict

ORDER: tuple[Verdict, ...] = (
    "regressed", "not comparable", "suspect", "inconclusive", "changed", "improved", "new", "pass",
)  # fmt: skip
MAX_ROWS = 40
"""Rows that fail nothing beyond these are counted, not shown: a new suite would bury what matters."""
MAX_ANNOTATIONS = 10
"""GitHub shows no more of one kind for one step."""
_COLUMNS = ("verdict", "trial", "metric", "base", "candidate", "detail")
_JUNIT_KINDS = {
    "regressed": "failure", "not comparable": "error", "suspect": "skipped", "inconclusive": "skipped",
}  # fmt: skip
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def verdict_sentence(result: GateResult, heading: str) -> str:
    """One line: what was compared, and what came out."""
    outcome = ("pass", "REGRESSED", "NOT COMPARABLE" if result.num_matched else "NOTHING COMPARABLE")[result.exit_code]
    counts = ", ".join(f"{result.counts[v]} {v}" for v in ORDER if v in result.counts)
    return f"{heading}: {outcome} (trials on both sides: {result.num_matched}; comparisons: {counts or 'none'})"


def notes_of(result: GateResult) -> list[str]:
    """The result's notes, and the fix where nothing compares."""
    if result.num_matched:
        return list(result.notes)
    return ["no trial stands on both sides: another suite, device, data or protocol; accept a baseline with --accept"]


def _shown(result: GateResult) -> tuple[list[Comparison], int]:
    """Rows that are not ``pass`` and all of the timing tier, worst first; and how many harmless ones are left out."""
    rows = [c for c in result.comparisons if c.verdict != "pass" or c.metric == PAIRED_LATENCY]
    rows.sort(key=lambda c: ORDER.index(c.verdict))
    num_failing = sum(c.verdict in ("regressed", "not comparable", "suspect") for c in rows)
    shown = rows[: max(MAX_ROWS, num_failing)] if result.num_matched else []
    return shown, len(rows) - len(shown)


def _cells(row: Comparison) -> tuple[str, ...]:
    cells = (row.verdict, row.trial, row.metric, _figure(row.base), _figure(row.candidate), row.detail)
    return tuple(map(_printable, cells))


def _figure(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.4g}"


def terminal_table(result: GateResult, heading: str) -> str:
    """The verdict, the rows that are not ``pass`` in aligned columns, and the notes."""
    rows, num_hidden = _shown(result)
    table = [_COLUMNS, *map(_cells, rows)] if rows else []
    widths = [max((len(row[i]) for row in table), default=0) for i in range(len(_COLUMNS) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in table]
    if num_hidden and rows:
        lines.append(f"... and {num_hidden} more that fail nothing")
    lines += [f"note: {note}" for note in notes_of(result)]
    return "\n".join([verdict_sentence(result, heading), *(line.replace("\n", " ") for line in lines)])


def markdown_page(result: GateResult, heading: str) -> str:
    """The same as a page for a pull request."""
    rows, num_hidden = _shown(result)
    lines = ["## seqbench gate", "", _in_cell(verdict_sentence(result, heading)), ""]
    if rows:
        lines += [
            _markdown_row(_COLUMNS),
            _markdown_row(["---"] * len(_COLUMNS)),
            *(_markdown_row(_cells(r)) for r in rows),
        ]
        lines += ["", f"... and {num_hidden} more that fail nothing", ""] if num_hidden else [""]
    lines += [f"- {_in_cell(note)}" for note in notes_of(result)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_in_cell, cells))} |"


def _in_cell(text: str) -> str:
    """Text that neither ends a cell nor opens a tag."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").split())


def junit_xml(result: GateResult) -> str:
    """One test case a comparison; ``suspect`` and ``inconclusive`` are skipped tests, with their reason, and what does
    not compare is an error."""
    failures = [c for c in result.comparisons if c.verdict == "regressed"]
    skipped = [c for c in result.comparisons if c.verdict in ("suspect", "inconclusive")]
    errors = sum(c.verdict == "not comparable" for c in result.comparisons) + (not result.num_matched)
    suite = ET.Element(
        "testsuite", name="seqbench gate", tests=str(len(result.comparisons)), failures=str(len(failures)),
        errors=str(errors), skipped=str(len(skipped)),
    )  # fmt: skip
    if not result.num_matched:
        case = ET.SubElement(suite, "testcase", classname="seqbench gate", name="comparable")
        ET.SubElement(case, "error", message=notes_of(result)[0])
        suite.set("tests", str(len(result.comparisons) + 1))
    for row in result.comparisons:
        name = f"{row.metric} [{row.key[:8]}]"  # labels leave parts of the specification out
        case = ET.SubElement(suite, "testcase", classname=_printable(row.trial), name=_printable(name))
        if row.verdict in _JUNIT_KINDS:
            ET.SubElement(case, _JUNIT_KINDS[row.verdict], message=_sentence(row))
    ET.SubElement(suite, "system-out").text = _printable("\n".join(notes_of(result)))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _printable(text: str) -> str:
    """Text without what XML, UTF-8 or a terminal cannot show; messages of crashes may hold it."""
    return _NOT_XML.sub("?", text)


def _sentence(row: Comparison) -> str:
    detail = f" ({row.detail})" if row.detail else ""
    figures = f"{_figure(row.base)} -> {_figure(row.candidate)}"
    return _printable(f"{row.verdict}: {row.trial}: {row.metric} {figures}{detail}")


def annotations(result: GateResult) -> list[str]:
    """GitHub workflow commands: an error for what fails, a warning for each suspicion."""
    if not result.num_matched:
        return [_annotation("error", notes_of(result)[0])]
    lines = []
    for level, verdict in (("error", "regressed"), ("error", "not comparable"), ("warning", "suspect")):
        rows = [c for c in result.comparisons if c.verdict == verdict]
        shown = rows if len(rows) <= MAX_ANNOTATIONS else rows[: MAX_ANNOTATIONS - 1]
        lines += [_annotation(level, _sentence(row)) for row in shown]
        if len(shown) < len(rows):
            lines.append(_annotation(level, f"and {len(rows) - len(shown)} more {verdict}; the log has them all"))
    return lines


def _annotation(level: str, message: str) -> str:
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{level} title=seqbench gate::{escaped}"
