"""Selective scans on a CPU side by side: this suite's own and what else there is, in one run.

``python -m benchmarks.scan_table`` times every implementation at batch 1, 128 channels, 16 states, float32, and
writes a CSV with the environment beside it. Each row is measured by a process of its own, one at a time:

1. a warm-up at a short length, or at the full one if something has to be compiled for it;
2. memory of one call: the peak of resident memory above what was resident before it, without outputs and gradients;
3. the output, and the gradients of all five inputs, against the recurrence in float64: what is wrong is not timed;
4. time, with freed memory kept as the suite's other trials do (:func:`harness.memory.keep_freed_memory`).

Implementations get the same x, dt, A, B, C in this suite's layout and return y: what another layout or materialised
(B, L, D, N) operands cost is part of them. ``package.module:function`` names one more, ``(x, dt, A, B, C) -> y``.

Shapes: B batch, L time, D channels, N states (see :mod:`models.ops.selective_scan`). MB are 10^6 bytes.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.csv_files import write_csv
from benchmarks.scan_implementations import CHANNELS, IMPLEMENTATIONS, STATES, Scan, find_implementation, scan_inputs
from benchmarks.speed import TOLERANCES
from harness import Unsupported, WrongOutput, format_length, parse_length, parse_lengths
from harness.clocks import MAX_SAMPLES, MIN_SAMPLES, time_calls, time_once_ms
from harness.environment import fingerprint
from harness.memory import host_available_bytes, host_peak, keep_freed_memory
from harness.supervisor import Supervisor
from harness.worker import Limits, Report
from models.ops.context import relative_error
from models.ops.scan_reference import chunked_scan, sequential_scan
from models.ops.selective_scan import ensure_built, slice_error

ROOT = Path(__file__).parent.parent
DIRECTIONS = ("forward", "forward+backward")
COLUMNS = ("implementation", "direction", "seq_len", "threads", "median_ms", "extra_mb",
           "low_ms", "high_ms", "samples", "status", "note")  # fmt: skip
OWN = "seqbench-"
FASTEST = "seqbench-kernel"
"""What the printed table's ratios are taken to."""
LONGEST_EXTRA_MB = 1000.0
"""Above which the own kernel's forward at the longest length counts as a failure."""

DEFAULT_OUT = Path("results/cpu/scan_cpu.csv")

_DEVICE = torch.device("cpu")
_WARM_UP_STEPS = 1024
_REFERENCE_STEPS = 4096  # up to here the recurrence itself is the reference: its graph takes 64 KB a step
_CALLS_PER_ROW = 4.5  # at the least: the memory pass on fresh pages (about two and a half), a warm-up, a sample
_PREDICTED_SHARE = 0.25  # of the time limit: a row that is predicted to take more of it is skipped
_SHORTEST_BUDGET_S = 1.0

Row = dict[str, Any]


# --- in the process of a row -------------------------------------------------------------------------------------


def _bind(scan: Scan, seq_len: int, direction: str) -> Callable[[], tuple[Tensor, ...]]:
    """One call: y, and with the backward the gradients of the five inputs."""
    *inputs, gy_BLD = scan_inputs(seq_len)
    if direction == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (scan(*inputs),)

        return forward
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def forward_backward() -> tuple[Tensor, ...]:
        y_BLD = scan(*leaves)
        return (y_BLD.detach(), *torch.autograd.grad(y_BLD, leaves, gy_BLD))

    return forward_backward


def execute(payload: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Entry of the process: measure one row, or write the reference of a length."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: payload["threads"]])
    torch.set_num_threads(payload["threads"])
    if payload["implementation"] is None:
        return _write_reference(payload["seq_len"], Path(payload["reference"]))
    return _measure(payload, report)


def _write_reference(seq_len: int, path: Path) -> dict[str, Any]:
    """y and the gradients in float64: of the recurrence, and where its graph is too large of the chunked form,
    which the tests hold to the recurrence."""
    *inputs, gy_BLD = (t.double() for t in scan_inputs(seq_len))
    x, dt, A, B, C = leaves = [tensor.requires_grad_() for tensor in inputs]
    reference_scan = sequential_scan if seq_len <= _REFERENCE_STEPS else chunked_scan
    y_BLD, _ = reference_scan(x, dt, A, B, C, None)
    torch.save([y_BLD.detach(), *torch.autograd.grad(y_BLD, leaves, gy_BLD)], path)
    return {}


def _measure(payload: Mapping[str, Any], report: Report) -> dict[str, Any]:
    seq_len, direction = payload["seq_len"], payload["direction"]
    implementation = find_implementation(payload["implementation"])
    try:
        scan = implementation.load()
    except (ImportError, AttributeError) as reason:
        message = f"{payload['implementation']} does not import ({reason}); install its package, or a newer one"
        raise Unsupported(message) from reason
    warm_up = _bind(scan, seq_len if implementation.compiled else min(seq_len, _WARM_UP_STEPS), direction)
    first_ms = time_once_ms(warm_up, _DEVICE)
    del warm_up

    call = _bind(scan, seq_len, direction)
    results: list[tuple[Tensor, ...]] = []
    with host_peak() as host:
        fresh_ms = time_once_ms(lambda: results.append(call()), _DEVICE)
    held = sum(t.nbytes for t in results[0])
    metrics: dict[str, Any] = {}
    if host.peak_rss_bytes:
        metrics["extra_mb"] = max(0.0, (host.peak_rss_bytes - host.baseline_rss_bytes - held) / 1e6)
    report(metrics)
    error = _worst_error(results.pop(), seq_len, payload["reference"])
    if not error <= TOLERANCES["float32"]:  # a NaN is not below any limit
        raise WrongOutput(f"differs from the reference by {error:.3g}, where {TOLERANCES['float32']:g} is allowed")

    keep_freed_memory()
    budget_s = min(payload["budget_s"], max(_SHORTEST_BUDGET_S, (payload["repeats"] + 3) * fresh_ms / 1e3))
    samples_ms = time_calls(call, _DEVICE, budget_s=budget_s).samples_ms
    metrics |= {"samples_ms": samples_ms, "note": f"error {error:.1e}"}
    if implementation.compiled:
        metrics["note"] += f"; first call, compiling or reading its cache, {first_ms / 1e3:.1f} s"
    return {"metrics": metrics}


def _worst_error(results: Sequence[Tensor], seq_len: int, reference: str | None) -> float:
    """Largest relative error of y and the gradients; without a reference, of some channels of y at full length."""
    if reference is None:
        x, dt, A, B, C, _ = scan_inputs(seq_len)
        return slice_error(x, dt, A, B, C, None, None, results[0])
    wanted = torch.load(reference, mmap=True, weights_only=True)[: len(results)]
    errors = [relative_error(t, reference) for t, reference in zip(results, wanted, strict=True)]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


# --- in the process that was started ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    implementations: Sequence[str]
    lengths: Sequence[int]
    threads: Sequence[int]
    longest: int | None
    """Length of one more row, the own kernel's forward with all threads."""
    repeats: int
    budget_s: float
    time_limit_s: float


def measure_rows(options: Options, on_row: Callable[[Row], None]) -> list[Row]:
    """All rows, one process after another; those of a length and direction follow each other."""
    ensure_built()  # so that no row waits for the compiler
    supervisor = Supervisor("benchmarks.scan_table:execute")
    limits = Limits(time_s=options.time_limit_s, address_space_bytes=host_available_bytes())
    rows: list[Row] = []

    def run(name: str, direction: str, seq_len: int, threads: int, reference: Path | None) -> None:
        key = {"implementation": name, "direction": direction, "seq_len": seq_len, "threads": threads}
        row: Row = dict.fromkeys(COLUMNS, "") | key
        # The longest row is a promise of this suite: a noisy short one is no ground for not looking.
        if reason := _skip_reason(rows, row, options) if reference else "":
            row |= {"status": "skipped", "note": reason}
        else:
            settings = {"repeats": options.repeats, "budget_s": options.budget_s}
            where = {"reference": None if reference is None else str(reference)}
            outcome = supervisor.run({**key, **settings, **where}, limits)
            message = outcome.error["message"] if outcome.error else outcome.metrics["note"]
            row |= {"status": outcome.status, "note": " ".join(message.split())} | _figures(outcome.metrics)
        rows.append(row)
        on_row(row)

    with tempfile.TemporaryDirectory(prefix="scan-table-") as folder:
        for seq_len in options.lengths:
            reference = Path(folder) / "reference.pt"
            blank = {"implementation": None, "seq_len": seq_len, "threads": max(options.threads)}
            written = supervisor.run({**blank, "reference": str(reference)}, limits)
            if written.error:
                message = f"no reference at {seq_len} steps, so nothing can be timed: {written.error['message']}"
                raise RuntimeError(f"{message}; ask for shorter lengths")
            for direction in DIRECTIONS:
                for threads in options.threads:
                    for name in options.implementations:
                        run(name, direction, seq_len, threads, reference)
    if options.longest is not None:
        run(FASTEST, "forward", options.longest, max(options.threads), None)
    return rows


def _figures(metrics: Mapping[str, Any]) -> Row:
    """Columns of what was measured; the others stay empty."""
    figures: Row = {}
    if "extra_mb" in metrics:
        figures["extra_mb"] = round(metrics["extra_mb"], 2)
    if samples_ms := metrics.get("samples_ms"):
        figures |= {
            "median_ms": round(statistics.median(samples_ms), 4),
            "low_ms": round(min(samples_ms), 4),
            "high_ms": round(max(samples_ms), 4),
            "samples": len(samples_ms),
        }
    return figures


def _skip_reason(rows: Sequence[Row], row: Row, options: Options) -> str:
    """Why shorter lengths say that this one is not worth starting, or ""."""
    alike = [r for r in rows if all(r[k] == row[k] for k in ("implementation", "direction", "threads"))]
    shorter = [r for r in alike if r["seq_len"] < row["seq_len"]]
    if not shorter or shorter[-1]["status"] in ("error", "unsupported"):
        return ""
    last, measured = shorter[-1], [r for r in shorter if r["status"] == "ok"]
    if last["status"] in ("timeout", "oom", "killed", "wrong"):
        return f"{last['status']} at {last['seq_len']} steps already"
    if not measured:
        return last["note"]
    growth = find_implementation(row["implementation"]).backward_growth if "backward" in row["direction"] else 1.0
    if len(measured) > 1:
        (l0, t0), (l1, t1) = ((r["seq_len"], r["median_ms"]) for r in measured[-2:])
        growth = max(1.0, math.log(t1 / t0) / math.log(l1 / l0))
    start = measured[-1]
    predicted_ms = start["median_ms"] * (row["seq_len"] / start["seq_len"]) ** growth
    most_s = _PREDICTED_SHARE * options.time_limit_s
    if _CALLS_PER_ROW * predicted_ms / 1e3 <= most_s:
        return ""
    how = f"from {start['median_ms']:.0f} ms at {start['seq_len']} steps, growing as L^{growth:.1f}"
    return f"predicted {predicted_ms:.0f} ms a call ({how}); rows predicted to take over {most_s:g} s are left out"


def write_environment(options: Options, path: Path) -> None:
    """The machine, the packages and what was asked, as JSON."""
    env_id, environment = fingerprint(ROOT, device="cpu", num_threads=max(options.threads))
    with contextlib.suppress(PackageNotFoundError):  # its rows say so
        environment["packages"]["mambapy"] = version("mambapy")
    asked = {name: getattr(options, name) for name in ("lengths", "threads", "repeats", "budget_s", "time_limit_s")}
    problem = {"batch": 1, "channels": CHANNELS, "states": STATES, "dtype": "float32"}
    document = {"env_id": env_id, **environment, "problem": problem, "options": asked}
    path.write_text(json.dumps(document, indent=2) + "\n")


def format_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines, grouped by direction and length, with each time as a multiple of the own kernel's."""
    groups = dict.fromkeys((r["direction"], r["seq_len"], r["threads"]) for r in rows)
    for direction, seq_len, threads in sorted(groups, key=lambda g: (DIRECTIONS.index(g[0]), *g[1:])):
        yield f"{direction}, {format_length(seq_len)} steps, {threads} thread{'s' if threads > 1 else ''}"
        yield f"  {'implementation':<32}{'median ms':>11}{'x kernel':>10}{'extra MB':>10}{'samples':>9}  "
        group = [r for r in rows if (r["direction"], r["seq_len"], r["threads"]) == (direction, seq_len, threads)]
        own_ms = next((r["median_ms"] for r in group if r["implementation"] == FASTEST), "")
        for r in group:
            ms, extra = r["median_ms"], r["extra_mb"]
            ratio = f"{ms / own_ms:.1f}" if ms and own_ms else ""
            shown = f"{f'{ms:.2f}' if ms else '-':>11}{ratio:>10}{f'{extra:.1f}' if extra != '' else '-':>10}"
            said = r["note"] if r["status"] == "ok" else f"{r['status']}: {r['note']}"
            yield f"  {r['implementation']:<32}{shown}{r['samples']:>9}  {said}"
        yield ""


def failures(rows: Sequence[Row], longest: int | None) -> list[str]:
    """What this suite's own implementations owe and did not give."""
    found = []
    for r in rows:
        what = f"{r['implementation']} {r['direction']} at {r['seq_len']} steps, {r['threads']} threads"
        passing = ("ok",) if r["seq_len"] == longest else ("ok", "skipped")
        if r["implementation"].startswith(OWN) and r["status"] not in passing:
            found.append(f"{what}: {r['status']}: {r['note']}")
        elif r["seq_len"] == longest and r["extra_mb"] != "" and r["extra_mb"] > LONGEST_EXTRA_MB:
            found.append(f"{what}: {r['extra_mb']:.0f} MB extra, where {LONGEST_EXTRA_MB:.0f} MB are allowed")
    return found


def parse_options(words: Sequence[str] | None) -> tuple[Options, Path]:
    """The command line; ends the program with a message for what cannot be."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan_table", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--lengths", default="1K,16K,64K", help="steps, as 1K,16K or 1K..64K (%(default)s)")
    add("--threads", default=",".join(map(str, sorted({1, cores}))), help="thread counts (%(default)s)")
    add("--implementations", default=",".join(IMPLEMENTATIONS), help="names, or package.module:function (%(default)s)")
    add("--longest", default="1M", help="one more forward of the own kernel; none to leave it out (%(default)s)")
    add("--repeats", type=int, default=MIN_SAMPLES, help="samples of a row, if they fit its budget (%(default)s)")
    add("--budget-s", type=float, default=3.0, help="seconds of sampling a row (%(default)s)")
    add("--time-limit-s", type=float, default=120.0, help="seconds that a row may take at all (%(default)s)")
    add("--out", type=Path, default=ROOT / DEFAULT_OUT, help=f"the CSV ({DEFAULT_OUT})")
    asked = parser.parse_args(words)
    try:
        threads = [int(part) for part in asked.threads.split(",")]
        if not 1 <= min(threads) <= max(threads) <= cores:
            raise ValueError(f"--threads {asked.threads}: this process may use 1 to {cores} cores; name such numbers")
        if not 1 <= asked.repeats <= MAX_SAMPLES:
            raise ValueError(f"--repeats {asked.repeats} is not from 1 to {MAX_SAMPLES}; choose such a number")
        names = asked.implementations.split(",")
        for name in names:
            find_implementation(name)
        options = Options(
            implementations=names,
            lengths=parse_lengths(asked.lengths),
            threads=threads,
            longest=None if asked.longest == "none" else parse_length(asked.longest),
            repeats=asked.repeats,
            budget_s=asked.budget_s,
            time_limit_s=asked.time_limit_s,
        )
    except ValueError as error:
        parser.error(str(error))
    return options, asked.out


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write, print; 1 if an implementation of this suite was wrong, failed or took too much memory."""
    options, out = parse_options(words)
    rows: list[Row] = []

    def on_row(row: Row) -> None:
        rows.append(row)
        write_csv(rows, COLUMNS, out)  # a later row may fail
        what = f"{row['implementation']} {row['direction']} {format_length(row['seq_len'])} x{row['threads']}"
        print(f"{what}: {row['status']} {row['median_ms']}", file=sys.stderr, flush=True)

    measure_rows(options, on_row)
    write_environment(options, out.with_name(f"{out.stem}_env.json"))
    print(*format_table(rows), sep="\n")
    print(f"written: {out}")
    for failure in (failed := failures(rows, options.longest)):
        print(f"FAILED: {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    # The rows' processes import this module by its name; they need not run it as their own main module too.
    sys.modules["__main__"].__spec__ = None
    sys.exit(main())
