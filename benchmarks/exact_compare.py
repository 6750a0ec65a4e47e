"""Verdicts on two sets of exact figures: equal, or moved beyond the stated band. Figures in, findings out; no torch."""

import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Value = int | float | str
Change = Literal["moved", "new", "vanished"]
_BANDS = Path(__file__).with_name("exact_tolerances.toml")


@dataclass(frozen=True, kw_only=True)
class ExactRecord:
    """One figure, and what it was made with."""

    subject: str
    """A model's name, ``task NAME`` or ``training TASK MODEL``."""
    metric: str
    at: str
    """Under which conditions: ``model train cpu L=2K``, ``step 5``."""
    value: Value
    made_with: Mapping[str, str]
    """Versions by name: those that a band's ``depends_on`` may ask for."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.subject, self.metric, self.at


@dataclass(frozen=True, kw_only=True)
class Band:
    """How far a metric may move, and which versions it depends on."""

    limit: float
    reason: str
    absolute: bool = False
    depends_on: tuple[str, ...] = ()
    limit_otherwise: float | None = None
    """Where those versions differ; None: it is not compared then."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A figure that is not what it was. ``base`` or ``candidate`` is None where that side has none."""

    change: Change
    subject: str
    metric: str
    at: str
    base: Value | None
    candidate: Value | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that moved, and what the reader must know about the rest."""

    findings: tuple[Finding, ...]
    num_compared: int
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)


def load_bands(path: Path = _BANDS) -> dict[str, Band]:
    """The band of every metric. Raises ValueError where one is senseless or lacks its reason."""
    bands = {}
    for metric, entry in tomllib.loads(path.read_text()).items():
        limit, reason, otherwise = entry.get("limit"), entry.get("reason", ""), entry.get("limit_otherwise")
        numbers = [limit] if otherwise is None else [limit, otherwise]
        if not reason or not all(isinstance(n, int | float) and 0 <= n < 1 for n in numbers):
            raise ValueError(f"{path}: [{metric}] has limit={limit!r}; limits are 0 <= limit < 1, each with a reason")
        bands[metric] = Band(
            limit=limit, reason=reason, absolute=bool(entry.get("absolute")),
            depends_on=tuple(entry.get("depends_on", ())), limit_otherwise=otherwise,
        )  # fmt: skip
    return bands


def compare_exact(
    base: Iterable[ExactRecord], candidate: Iterable[ExactRecord], bands: Mapping[str, Band] | None = None
) -> Findings:
    """Every figure of either side that moved beyond its band, appeared or vanished.

    A move counts whatever its direction: an exact figure changes for a reason, and the reason belongs to a commit.
    Raises ValueError for a metric without a band.
    """
    bands = load_bands() if bands is None else bands
    befores, afters = ({record.key: record for record in side} for side in (base, candidate))
    found: list[Finding] = []
    left_out: Counter[str] = Counter()
    num_compared = 0
    for key in dict.fromkeys([*befores, *afters]):
        before, after = befores.get(key), afters.get(key)
        if before is None or after is None:
            found.append(_one_sided(before, after))
            continue
        if before.metric not in bands:
            raise ValueError(f"{_BANDS.name} has no band for {before.metric!r}; add [{before.metric}] with a reason")
        band = bands[before.metric]
        others = {name: _versions(before, after, name) for name in band.depends_on if _differs(before, after, name)}
        limit = band.limit_otherwise if others else band.limit
        if limit is None:
            left_out[f"{before.metric} depends on {' and '.join(others.values())}"] += 1
            continue
        num_compared += 1
        if not _within(before.value, after.value, limit, absolute=band.absolute):
            found.append(_moved(before, after, band, limit))
    notes = tuple(f"not compared: {why} ({count} figures)" for why, count in sorted(left_out.items()))
    return Findings(findings=tuple(found), num_compared=num_compared, notes=notes)


def _differs(before: ExactRecord, after: ExactRecord, name: str) -> bool:
    return before.made_with.get(name) != after.made_with.get(name)


def _versions(before: ExactRecord, after: ExactRecord, name: str) -> str:
    return f"{name} ({before.made_with.get(name, 'unknown')} against {after.made_with.get(name, 'unknown')})"


def _within(old: Value, new: Value, limit: float, *, absolute: bool) -> bool:
    if isinstance(old, str) or isinstance(new, str):
        return old == new
    if not (math.isfinite(old) and math.isfinite(new)):
        return False  # what is no number compares with nothing
    return abs(new - old) <= limit * (1 if absolute else abs(old))


def _one_sided(before: ExactRecord | None, after: ExactRecord | None) -> Finding:
    record = after or before
    assert record is not None
    if before is None:
        change: Change = "new"
        what = f"is {_shown(record.value)} and has no old value: the base does not know it"
    else:
        change, what = "vanished", f"was {_shown(record.value)} and is not computed any more"
    return Finding(
        change=change, subject=record.subject, metric=record.metric, at=record.at,
        base=before.value if before else None, candidate=after.value if after else None,
        message=f"{_name(record)} {what}",
    )  # fmt: skip


def _moved(before: ExactRecord, after: ExactRecord, band: Band, limit: float) -> Finding:
    old, new = before.value, after.value
    if isinstance(old, str) or isinstance(new, str):
        by = "another value, where only the same will do"
    else:
        moved = f"{new - old:+.6g}" if band.absolute or not old else f"{(new - old) / abs(old):+.3%}"
        allowed = "none" if not limit else f"{limit:g}" if band.absolute else f"{limit:.4g} of the old value"
        by = f"{moved}, allowed {allowed}"
    return Finding(
        change="moved", subject=before.subject, metric=before.metric, at=before.at, base=old, candidate=new,
        message=f"{_name(before)} was {_shown(old)} and is {_shown(new)}: {by}. {band.reason}",
    )  # fmt: skip


def _name(record: ExactRecord) -> str:
    return f"{record.metric} of {record.subject} ({record.at})"


def _shown(value: Value) -> str:
    if isinstance(value, str):
        return value if len(value) < 64 else f"{value[:16]}…"
    return f"{value:,}"
