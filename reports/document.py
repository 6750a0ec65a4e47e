"""A report as a list of blocks, and how blocks become one self-contained HTML page or a Markdown file.

All text that comes from records is escaped here, in one place for each of the two forms.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reports import style

LONG_CELL = 100  # a cell of these columns with more characters than this is folded on the page
FOLDED_COLUMNS = ("Message", "Why", "Tail of its output", "Value")

STYLESHEET = """
:root { --ink: #222; --soft: #666; --line: #e2e0dc; --paper: #fff; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 46rem; } a { color: var(--accent); }
figure { margin: 1.5rem 0 2.25rem; } figure img { width: 100%; max-width: 900px; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .86rem; max-width: 900px; margin-top: .35rem; }
.table { overflow-x: auto; margin: .75rem 0 1.5rem; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 1.5px solid var(--ink); white-space: nowrap; }
th, td { padding: .38rem .8rem .38rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); min-width: 3rem; }
td.short { white-space: nowrap; } td.middle { min-width: 11rem; }
td.long { min-width: 18rem; overflow-wrap: anywhere; }
td pre { margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .78rem; }
summary { cursor: pointer; } details > summary { font-weight: 600; margin: .5rem 0; } td summary { font-weight: 400;
  margin: 0; }
.badge { display: inline-block; padding: 0 .5em; border-radius: .7em; font-size: .8rem; font-weight: 600;
  white-space: nowrap; background: #eeece8; color: #555; }
.badge.good { background: #e0f1ea; color: #00614a; } .badge.bad { background: #fbe6dc; color: #973f00; }
.warnings { border-left: 3px solid #d55e00; padding: .4rem 1rem; background: #fdf6f1; }
.sounds audio { width: 15rem; display: block; }
@media print { body { max-width: none; } details { display: block; } }
"""
GOOD, BAD = ("shown", "ok", "reproduced"), ("not shown", "differs", "oom", "timeout", "killed", "error", "wrong")
NEUTRAL = ("not measured", "not attempted", "unsupported", "skipped")


@dataclass(frozen=True, kw_only=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    text: str


@dataclass(frozen=True, kw_only=True)
class Bullets:
    items: Sequence[str]
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A frame of text; folded tables open on a click."""

    frame: pd.DataFrame
    folded: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: its file name without ending, its SVG, and words."""

    name: str
    title: str
    caption: str
    svg: bytes


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A wav file; its name is that of its copy in the report's folder ``audio``."""

    name: str
    wav: bytes


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Players: a row each of what made them."""

    rows: Mapping[str, Sequence[Sound]]


Block = Heading | Paragraph | Bullets | Table | Picture | Sounds


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs nothing else: styles inline, figures as data."""
    body = style.printable("\n".join(_html(block) for block in blocks))
    title = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLESHEET}</style>\n'
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same report with its figures as linked files."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(style.printable(str(text)).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", text).replace("://", "&#58;//")


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Bullets():
            items = "".join(f"<li>{html.escape(item)}</li>" for item in block.items)
            return f'<ul class="warnings">{items}</ul>' if block.warning else f"<ul>{items}</ul>"
        case Table():
            return _html_table(block)
        case Picture():
            # As an image and not inline, so that no two figures' ids can meet.
            data = base64.b64encode(block.svg).decode()
            ends = ("csv", "png", "svg")
            links = ", ".join(f'<a href="figures/{block.name}.{end}">{end.upper()}</a>' for end in ends)
            return (
                f'<figure id="{block.name}"><img alt="{html.escape(block.title)}" '
                f'src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{html.escape(block.caption)} {links}</figcaption></figure>"
            )
        case Sounds():
            rows = "\n".join(
                f'<tr><td class="short">{html.escape(who)}</td>{"".join(map(_player, sounds))}</tr>'
                for who, sounds in block.rows.items()
            )
            return f'<div class="table"><table class="sounds"><tbody>\n{rows}\n</tbody></table></div>'


def _player(sound: Sound) -> str:
    data = base64.b64encode(sound.wav).decode()
    return f'<td><audio controls src="data:audio/wav;base64,{data}"></audio></td>'


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.frame.columns)
    names = [str(name) for name in table.frame.columns]
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, names))}</tr>" for row in table.frame.itertuples(index=False))
    whole = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    return f"<details><summary>{html.escape(table.folded)}</summary>{whole}</details>" if table.folded else whole


def _cell(value: object, column: str) -> str:
    text = str(value)
    if text in GOOD + BAD + NEUTRAL:
        kind = " good" if text in GOOD else " bad" if text in BAD else ""
        return f'<td class="short"><span class="badge{kind}">{html.escape(text)}</span></td>'
    if column in FOLDED_COLUMNS and (len(text) > LONG_CELL or "\n" in text):
        first = html.escape(" ".join(text.split())[: LONG_CELL // 2])
        whole = html.escape(text)
        return f'<td class="middle"><details><summary>{first} …</summary><pre>{whole}</pre></details></td>'
    size = "short" if len(text) <= 26 else "middle" if len(text) <= 80 else "long"
    return f'<td class="{size}">{html.escape(text)}</td>'


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape_markdown(block.text)}"
        case Paragraph():
            return escape_markdown(block.text)
        case Bullets():
            return "\n".join(f"- {escape_markdown(item)}" for item in block.items)
        case Table():
            head = [escape_markdown(str(name)) for name in block.frame.columns]
            rows = [[escape_markdown(str(value)) for value in row] for row in block.frame.itertuples(index=False)]
            lines = [head, ["---"] * len(head), *rows]
            text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return f"{escape_markdown(block.folded)}:\n\n{text}" if block.folded else text
        case Picture():
            alt = escape_markdown(block.title)
            return (
                f"![{alt}](figures/{block.name}.png)\n\n{escape_markdown(block.caption)} "
                f"[CSV](figures/{block.name}.csv) · [SVG](figures/{block.name}.svg)"
            )
        case Sounds():
            return "\n".join(
                f"- {escape_markdown(who)}: "
                + ", ".join(f"[{number}](audio/{sound.name})" for number, sound in enumerate(sounds))
                for who, sounds in block.rows.items()
            )
