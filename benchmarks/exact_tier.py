"""The exact tier: what code computes, compared with what it computed before; no clock, any machine.

``python -m benchmarks.exact_tier`` counts parameters, operators and state, predicts FLOPs and peaks of memory, hashes
the tasks' first examples, trains small models for five steps and scores them, and compares every figure with the golden
file results/baselines/exact.json. ``--write FILE`` accepts: the golden file is then a diff that a reviewer reads.

Exit codes: 0 all equal or within their bands; 1 something moved, appeared or vanished; 2 wrong usage, or nothing to
compare with.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.exact_compare import Band, ExactRecord, Findings, compare_exact, load_bands
from tasks.cache import write_atomically

GOLDEN = Path(__file__).parent.parent / "results" / "baselines" / "exact.json"
FORMAT = 1
MAX_LINES = 40
"""Findings beyond these are counted, not shown: a change to all models is understood from a few."""
_MAX_WORKERS = 4
"""A worker imports PyTorch first, which a few tens of seconds of work pay back only so often."""


def exact_records(subjects: Sequence[str] = ()) -> list[ExactRecord]:
    """Compute the figures of ``subjects``, of all that the golden file holds if none are named.

    In processes of their own, which see no data but the embedded samples; this one is left as it is.
    Raises ValueError for a model that nobody knows.
    """
    from benchmarks.exact_figures import figures_of, prepare_process
    from benchmarks.exact_figures import subjects as all_subjects

    wanted, versions = tuple(subjects) or all_subjects(), made_with()
    workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)), len(wanted))
    # Spawned: a fork would take over locks of this process's threads.
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="seqbench-exact-") as cache,
        ProcessPoolExecutor(workers, spawn, prepare_process, (cache,)) as pool,
    ):
        found = [figure for figures in pool.map(figures_of, wanted) for figure in figures]
    return [ExactRecord(subject=f.subject, metric=f.metric, at=f.at, value=f.value, made_with=versions) for f in found]


def made_with() -> dict[str, str]:
    """The versions that figures may depend on; PyTorch's release without the name of its build."""
    import torch

    return {"torch": torch.__version__.partition("+")[0], "python": platform.python_version()}


def golden_text(records: Sequence[ExactRecord], bands: dict[str, Band] | None = None) -> str:
    """The golden file: sorted, a figure a line, the versions first with the metrics that depend on them."""
    bands = load_bands() if bands is None else bands
    (versions,) = {tuple(sorted(record.made_with.items())) for record in records}
    used = {record.metric for record in records}
    depending = {
        name: sorted(metric for metric, band in bands.items() if name in band.depends_on and metric in used)
        for name, _ in versions
    }
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        figures.setdefault(record.subject, {}).setdefault(record.metric, {})[record.at] = record.value
    content = {"depends_on": depending, "figures": figures, "format": FORMAT, "made_with": dict(versions)}
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def parse_golden(text: str, name: str) -> list[ExactRecord]:
    """The records of a golden file's text. Raises ValueError, saying what ``name`` is and the fix, for any other."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, where {FORMAT} is read")
        versions = dict(content["made_with"])
        return [
            ExactRecord(subject=subject, metric=metric, at=at, value=value, made_with=versions)
            for subject, metrics in content["figures"].items()
            for metric, values in metrics.items()
            for at, value in values.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name} is no golden file of the exact tier ({error}); make one with --write {name}"
        ) from error


def read_golden(path: Path) -> list[ExactRecord]:
    """Raises ValueError for a file that is missing or none of this tier's."""
    try:
        return parse_golden(path.read_text(), str(path))
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; name a golden file with --base, or make one with --write {path}"
        ) from error


def accept(records: Sequence[ExactRecord], path: Path) -> None:
    """Write a golden file. Raises ValueError where that would lose the figures of other subjects."""
    if path.exists():
        lost = {r.subject for r in read_golden(path)} - {r.subject for r in records}
        from benchmarks.exact_figures import subjects  # what is no longer listed may go

        if lost & set(subjects()):
            raise ValueError(
                f"{path} also holds {', '.join(sorted(lost)[:3])} …, which this run did not compute; "
                "leave --models out, or write another file"
            )
    if not write_atomically(path, golden_text(records).encode()):
        raise ValueError(f"cannot write {path}; name another place")
    path.chmod(0o644)


def report_lines(result: Findings, base: str, command: str) -> list[str]:
    """What a reader needs: the verdict, every finding in a sentence, what was left out, and what to do."""
    verdict = f"{len(result)} figures are not as in {base}" if len(result) else f"all as in {base}"
    lines = [f"exact tier: {verdict} ({result.num_compared} compared)"]
    lines += [f"  {finding.change}: {finding.message}" for finding in result.findings[:MAX_LINES]]
    if len(result) > MAX_LINES:
        lines.append(f"  ... and {len(result) - MAX_LINES} more")
    lines += [f"  {note}" for note in result.notes]
    if len(result):
        lines.append(f"  if this is meant: `{command}` accepts it; commit the file, and say why in the message")
    return lines


def _markdown(lines: Sequence[str]) -> str:
    heading, *rest = lines
    return "\n".join([f"## {heading}", "", *(f"- {line.strip()}" for line in rest)]).rstrip() + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_tier", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", type=Path, metavar="FILE", help="golden file (default: results/baselines/exact.json)")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=GOLDEN,
        metavar="FILE",
        help="accept: write the golden file (default: it)",
    )
    parser.add_argument(
        "--models", default="", help="only these, separated by commas; path/to/file.py:factory for one of your own"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the result as a Markdown page too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compute, compare, say so; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except ValueError as error:
        print(f"exact tier: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from models import find_factory

    chosen = tuple(dict.fromkeys(name.strip() for name in arguments.models.split(",") if name.strip()))
    for name in chosen:
        find_factory(name)  # raises before anything is computed
    base_path = arguments.base or arguments.write or GOLDEN
    base = [] if arguments.write and not base_path.exists() else read_golden(base_path)
    records = exact_records(chosen)
    computed = {record.subject for record in records}
    result = compare_exact([r for r in base if not chosen or r.subject in computed], records)
    words = [f"--models {arguments.models}"] if chosen else []
    shown = os.path.relpath(base_path) if base_path.is_relative_to(Path.cwd()) else str(base_path)
    command = " ".join(["python -m benchmarks.exact_tier", *words, f"--write {shown}"])
    if base:
        lines = report_lines(result, shown, command)
        print("\n".join(lines))
        if arguments.markdown:
            arguments.markdown.write_text(_markdown(lines))
    if arguments.write:
        accept(records, arguments.write)
        print(f"exact tier: {len(records)} figures written to {arguments.write}")
        return 0
    if not result.num_compared and not len(result):
        raise ValueError(f"nothing in {base_path} is comparable here ({'; '.join(result.notes)})")
    return int(len(result) > 0)


if __name__ == "__main__":
    sys.exit(main())
