"""The regression gate's own rates on the machines that records come from, as ``seqbench gate --self`` wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reports.document import Block, Bullets, Heading

FILE = "gate_self.json"
_LEVELS_UP = 2
"""From results/<machine>/<suite>/records.jsonl to results/<machine>/."""


def gate_self_blocks(records: Iterable[Mapping[str, Any]]) -> list[Block]:
    """One line a machine whose folder holds the file beside the records' folders; nothing where none does."""
    folders = {parent for r in records for parent in list(Path(str(r.get("records_path"))).parents)[:_LEVELS_UP]}
    lines = [line for folder in sorted(folders) if (line := _line(folder / FILE))]
    return [Heading(text="The regression gate's own rates"), Bullets(items=lines)] if lines else []


def _line(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        rates = found["rules"]["this gate"]["detected_percent"]
        seen = ", ".join(f"+{slowdown} % {share:g} %" for slowdown, share in rates.items())
        return (
            f"{found['cpu']}, {found['cores']} cores: false alarms {found['false_alarms_percent']:g} % of "
            f"{found['comparisons']} comparisons of commit {str(found['commit'])[:10]} with itself, formed from "
            f"{found['num_blocks']} blocks; slowdowns of {found['injected']} that it saw: {seen}"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""  # none there, or of another version: a report is no place to fail over it
