"""Records: what became of trials, one JSON object a line, written as they happen.

A file has one writer, which holds a lock on it. Every line is one ``write`` followed by ``fsync``,
so that a kill tears at most the last line; a torn line is set aside, reported, and its trial is run
again.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.trials import Status, Trial

SCHEMA = 1
RECORDS_FILE = "records.jsonl"


class RecordsError(OSError):
    """The folder or file of records cannot be used. The message names it and the fix."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of a trial."""

    trial_id: str
    trial: Trial
    status: Status
    env_id: str
    started_at: str
    wall_s: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Only what was measured or predicted; an absent figure is absent."""
    backend: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "schema": SCHEMA,
            "trial_id": self.trial_id,
            "trial": self.trial.as_dict(),
            "status": self.status,
            "env_id": self.env_id,
            "started_at": self.started_at,
            "wall_s": round(self.wall_s, 3),
            "metrics": dict(self.metrics),
            "backend": dict(self.backend),
        }
        if self.error is not None:
            fields["error"] = dict(self.error)
        return fields


class RecordWriter:
    """Appends records to ``folder/records.jsonl``; the only writer of that file while it is open.

    Raises :class:`RecordsError` if the folder cannot be written or another run holds the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORDS_FILE
        self.warnings: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115 (closed in close())
        except OSError as error:
            raise RecordsError(
                f"cannot write {self.path}: {error.strerror}; choose another folder with --out"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RecordsError(
                f"another run is writing {self.path}; wait for it, or choose another --out (or --shard i/n)"
            ) from error
        self._set_torn_line_aside()

    def _set_torn_line_aside(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if torn := content[whole:]:
            aside = self.path.with_suffix(".torn")
            with open(aside, "ab") as file:
                file.write(torn + b"\n")
            self._file.truncate(whole)
            self.warnings.append(
                f"{self.path}: the last line was torn ({len(torn)} bytes, kept in {aside.name}); its trial runs again"
            )

    def append(self, record: Record) -> None:
        """Write one record; it is on disk when this returns."""
        line = json.dumps(record.as_dict(), allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_records(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """All records under ``paths`` (files, or folders searched for records.jsonl), and warnings.

    Where a file holds several records of a trial, the last counts; the same trial in two files is
    two measurements. Raises :class:`RecordsError` for a path that does not exist.
    """
    records: list[dict[str, Any]] = []
    warnings: list[str] = []
    for path in paths:
        if not path.exists():
            raise RecordsError(f"no records at {path}; run `seqbench run quick` first, or name another file")
        files = sorted(path.rglob(RECORDS_FILE)) if path.is_dir() else [path]
        for file in files:
            latest = {record["trial_id"]: record for record in _read_file(file, warnings)}
            records += latest.values()
    return records, warnings


def _read_file(path: Path, warnings: list[str]) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            warnings.append(f"{path}, line {number}: not a whole record ({len(line)} bytes); ignored")
            continue
        if not isinstance(record, dict) or record.get("schema") != SCHEMA or "trial_id" not in record:
            warnings.append(f"{path}, line {number}: not a record of schema {SCHEMA}; ignored")
            continue
        records.append(record | {"records_path": str(path)})
    return records


def write_environment(folder: Path, env_id: str, environment: Mapping[str, Any]) -> None:
    """Put ``env/<env_id>.json`` beside the records, whole or not at all."""
    path = folder / "env" / f"{env_id}.json"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(environment, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def read_environment(records_path: Path, env_id: str) -> dict[str, Any]:
    """The environment that a record of ``records_path`` names; empty where its file is missing."""
    path = records_path.parent / "env" / f"{env_id}.json"
    return json.loads(path.read_text()) if path.is_file() else {}
