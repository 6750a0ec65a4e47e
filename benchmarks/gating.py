"""The gate between two sets of records: find them, have them compared, say so in every form that was asked for.

A side is a file, a folder, or a git ref; the records of a ref are those committed at
``results/baselines/NAME/records.jsonl``. A path that holds records is taken as a path.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.gate_forms import annotations, junit_xml, markdown_page, terminal_table
from harness.gate import GateResult, by_specification, compare, order_of
from harness.gate_rules import COUNTS, METRICS, PEAKS, SCORES, Tolerance
from harness.records import RECORDS_FILE, RecordsError, read_environment, read_records, write_environment
from harness.trials import STATUSES, canonical_json

BASELINES = PurePosixPath("results/baselines")
_TOLERANCES = Path(__file__).with_name("tolerances.toml")
_SCORE_KEYS = ("seq_len", "status", "reason", *SCORES)


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """Records of one file or folder, or of one baseline of a ref."""

    name: str
    """A baseline's name, or a folder's: what ``--accept`` writes to."""
    records: Sequence[Mapping[str, Any]]
    environments: Mapping[str, Mapping[str, Any]]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What the command line says. ``accept`` is None, a baseline's name, or "" for the candidate's own."""

    base: str | None
    candidate: str
    exact_only: bool = False
    timing_fails: bool = False
    accept: str | None = None
    markdown: Path | None = None
    junit: Path | None = None


def run_gate(options: GateOptions) -> int:
    """Compare, print, write; returns the exit code. Raises RecordsError for sides that cannot be read."""
    candidate = merge(load_side(options.candidate))
    _say(candidate.warnings)
    code = 0
    if options.base is not None:
        base = counterpart(load_side(options.base), candidate, options.base)
        _say(base.warnings)
        code = _judge(base, candidate, options)
    if options.accept is None:
        return code
    path = accept(candidate, options.accept or candidate.name)
    print(f"accepted as the baseline {path}; commit it, with env/ beside it")
    return 0


def _judge(base: RecordSet, candidate: RecordSet, options: GateOptions) -> int:
    result = compare(
        base.records, candidate.records, {**base.environments, **candidate.environments}, load_tolerances(),
        exact_only=options.exact_only, timing_fails=options.timing_fails,
    )  # fmt: skip
    return show(result, f"{options.candidate} against {options.base}", options)


def show(result: GateResult, heading: str, options: GateOptions) -> int:
    """Print and write a result in every form that was asked for; returns its exit code."""
    print(terminal_table(result, heading))
    for path, text in (
        (options.markdown, lambda: markdown_page(result, heading)),
        (options.junit, lambda: junit_xml(result)),
    ):
        if path is not None:
            _write(path, text())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(annotations(result)))
    return result.exit_code


def _say(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)


def load_tolerances(path: Path = _TOLERANCES) -> dict[str, Tolerance]:
    """The tolerance of every metric. Raises ValueError where one is missing or senseless."""
    tolerances = {}
    entries = tomllib.loads(path.read_text())
    for metric in METRICS:
        entry = entries.get(metric, {})
        limit, reason = entry.get("limit"), entry.get("reason", "")
        if not isinstance(limit, int | float) or not 0 <= limit < 1 or not reason:
            raise ValueError(f"{path}: [{metric}] has limit={limit!r}; it needs 0 <= limit < 1, and a reason")
        if bool(entry.get("absolute")) != (metric in SCORES):
            raise ValueError(f"{path}: [{metric}] absolute={entry.get('absolute')}: true for scores, and only for them")
        tolerances[metric] = Tolerance(limit=limit, reason=reason, both_ways=bool(entry.get("both_ways")))
    return tolerances


def is_records(text: str | None) -> bool:
    """Whether a word of the command line names a file, or a folder with records."""
    path = Path(text or "")
    return bool(text) and (path.is_file() or any(path.rglob(RECORDS_FILE)))  # no text is no path, though Path("") is


def load_side(text: str) -> list[RecordSet]:
    """The sets of records that a word of the command line names: one of a path, one a baseline of a ref."""
    if is_records(text):
        path = Path(text)
        folder = path if path.is_dir() else path.parent
        return [_load_path(path, folder.resolve().name)]
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    if commit is None:
        raise RecordsError(
            f"{text!r} is neither a file or folder of records nor a git ref here; "
            "name what `seqbench run` wrote, or fetch the ref first (git fetch origin main, then origin/main)"
        )
    return _load_commit(text, commit.decode().strip())


def _load_path(path: Path, name: str) -> RecordSet:
    try:
        records, warnings = read_records([path])
    except OSError as error:
        raise RecordsError(f"cannot read {path}: {error.strerror or error}; name readable records") from error
    usable = [record for record in records if _is_usable(record)]
    if len(usable) < len(records):
        warnings.append(f"{path}: {len(records) - len(usable)} records lack a trial, status or metrics; ignored")
    environments: dict[str, Mapping[str, Any]] = {}
    for records_path, env_id in sorted({(r["records_path"], str(r.get("env_id"))) for r in usable}):
        try:
            environment = read_environment(Path(records_path), env_id)
        except (OSError, ValueError) as error:
            warnings.append(f"{records_path}: environment {env_id} cannot be read ({error}); its machine is unknown")
            continue
        if isinstance(environment, dict) and environment:
            environments[env_id] = environment
    return RecordSet(name=name, records=usable, environments=environments, warnings=warnings)


def _is_usable(record: Mapping[str, Any]) -> bool:
    trial = record.get("trial")
    if not isinstance(trial, dict) or not isinstance(trial.get("seq_len"), int):
        return False
    try:
        canonical_json(trial)
    except ValueError:  # NaN: no specification that a run writes
        return False
    parts = (record.get("metrics"), record.get("backend"), record.get("error", {}))
    return record.get("status") in STATUSES and all(isinstance(part, dict) for part in parts)


def _load_commit(ref: str, commit: str) -> list[RecordSet]:
    """Baselines of a commit, written to a temporary folder so that one reader reads all records."""
    listing = _git("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, "--", f"{BASELINES}/") or b""
    depth = len(BASELINES.parts)
    with tempfile.TemporaryDirectory(prefix="seqbench-gate-") as folder:
        names: set[str] = set()
        for file in map(PurePosixPath, filter(None, listing.decode(errors="surrogateescape").split("\0"))):
            within = file.parts[depth:]
            is_records = len(within) == 2 and within[1] == RECORDS_FILE
            is_environment = len(within) == 3 and within[1] == "env" and file.suffix == ".json"
            content = _git("show", f"{commit}:{file}") if is_records or is_environment else None
            if content is None:
                continue
            target = Path(folder, *within)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            if is_records:
                names.add(within[0])
        if not names:
            raise RecordsError(
                f"{ref} ({commit[:10]}) has no {BASELINES}/*/{RECORDS_FILE}; make one with "
                "`seqbench gate --candidate results/runs/quick --accept`, and commit it"
            )
        sets = [_load_path(Path(folder, name, RECORDS_FILE), name) for name in sorted(names)]
        origin = f"{ref}:{BASELINES}"
        return [
            RecordSet(
                name=found.name, records=found.records, environments=found.environments,
                warnings=[warning.replace(folder, origin) for warning in found.warnings],
            )
            for found in sets
        ]  # fmt: skip


def _git(*words: str) -> bytes | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        result = subprocess.run(["git", *words], capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None


def merge(sets: Sequence[RecordSet]) -> RecordSet:
    """All sets as one; it has a name where there is but one."""
    return RecordSet(
        name=sets[0].name if len(sets) == 1 else "",
        records=[record for one in sets for record in one.records],
        environments={key: value for one in sets for key, value in one.environments.items()},
        warnings=[warning for one in sets for warning in one.warnings],
    )


def counterpart(sets: Sequence[RecordSet], candidate: RecordSet, label: str) -> RecordSet:
    """What of the base a candidate is compared with.

    A ref may hold baselines of several suites, and a run of one suite has not lost the trials of the others: of
    several sets, the candidate's namesake counts, or, without one, those that share a trial with it.
    """
    if len(sets) == 1 or not candidate.name:
        return merge(sets)
    trials = by_specification(candidate.records).keys()
    sharing = [one for one in sets if trials & by_specification(one.records).keys()]
    chosen = [one for one in sharing if one.name == candidate.name] or sharing
    note = f"{label}: compared with {', '.join(one.name for one in chosen) or 'none'} of its {len(sets)} baselines"
    merged = merge(chosen) if chosen else RecordSet(name="", records=[], environments={})
    return RecordSet(
        name=merged.name, records=merged.records, environments=merged.environments, warnings=[*merged.warnings, note]
    )


def accept(candidate: RecordSet, name: str) -> Path:
    """Write a candidate as the baseline ``name``: what holds on any machine, in an order that diffs well."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RecordsError(f"--accept: {name!r} is no name for a baseline; write --accept NAME, such as quick")
    kept = sorted(by_specification(candidate.records).values(), key=order_of)
    if not kept:
        raise RecordsError("--accept: the candidate has no records; run `seqbench run quick` first")
    folder = Path(BASELINES, name)
    lines = [json.dumps(_portable(record), sort_keys=True, allow_nan=False) + "\n" for record in kept]
    _write(folder / RECORDS_FILE, "".join(lines))
    used = {str(record.get("env_id")) for record in kept} & candidate.environments.keys()
    for env_id in sorted(used):
        write_environment(folder, env_id, candidate.environments[env_id])
    for stale in (folder / "env").glob("*.json"):
        if stale.stem not in used:
            stale.unlink()
    return folder / RECORDS_FILE


def _portable(record: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {key: record["metrics"][key] for key in (*COUNTS, *PEAKS, *SCORES) if key in record["metrics"]}
    if scores := record["metrics"].get("scores"):
        metrics["scores"] = [{key: entry[key] for key in _SCORE_KEYS if key in entry} for entry in scores]
    fields = {key: value for key, value in record.items() if key != "records_path"} | {"metrics": metrics}
    if isinstance(record.get("error"), dict):
        fields["error"] = {**record["error"], "tail": ""}  # another in every run: process ids, addresses
    return fields


def _write(path: Path, text: str) -> None:
    """Whole or not at all. Raises RecordsError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise RecordsError(f"cannot write {path}: {error.strerror}; name another place") from error
