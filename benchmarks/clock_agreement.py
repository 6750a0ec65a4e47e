"""The suite's clock and memory meter against independent instruments, on three operators at two lengths.

``python -m benchmarks.clock_agreement`` prints a table, writes it as CSV and exits with 1 where an instrument differs
from the suite's own by more than 3 %. It wants an idle machine.

================================  ==========================================================================
``harness.clocks``                the suite's: runs of calls between events (CUDA) or readings of a clock (CPU)
``torch.utils.benchmark``         blocks of calls by wall clock, the device synchronised at both ends
``triton.testing.do_bench``       CUDA only: events around each call, the L2 cache cleared before it
``harness.memory``                the suite's peak of the allocator
``torch.cuda.max_memory_allocated``, ``torch.profiler total``: the allocator's own running total
================================  ==========================================================================

The suite's clock leaves caches warm. On CUDA the operands are therefore larger than an H200's L2 (50 MB), so that a
call finds little of them there and clearing it between calls changes nothing that matters. All timings are of the
forward without gradients. The instruments take turns for three rounds, and each one's figure is the median of its
medians, so that a machine's slow moment meets all of them.

Shape suffixes: B batch (1), L length, D channels, N states, H heads, K head dimension.
"""

import argparse
import functools
import importlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.benchmark
from torch import Tensor

from benchmarks.csv_files import write_csv
from harness import format_length
from harness.clocks import time_calls
from harness.memory import memory_of
from models.ops.attention import causal_attention
from models.ops.fft_conv import causal_conv
from models.ops.selective_scan import selective_scan

ROOT = Path(__file__).parent.parent
COLUMNS = ("operator", "seq_len", "instrument", "median_ms", "ratio_to_ours", "peak_bytes")
"""``median_ms`` is empty for the memory meters, ``peak_bytes`` for the clocks; each has its ratio."""
LIMIT = 0.03
NUM_ROUNDS = 3
CLOCK, METER = "harness.clocks", "harness.memory"

Row = dict[str, Any]
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a device works on."""

    dtype: torch.dtype
    channels: int
    lengths: tuple[int, int]


SIZES = {
    # x, dt and y of the scan, q, k, v and the output are 32 MB each at the shorter length, in a call of about a
    # millisecond or more: long beside the 5 us that a launch takes.
    "cuda": Sizes(dtype=torch.bfloat16, channels=1024, lengths=(2**14, 2**16)),
    "cpu": Sizes(dtype=torch.float32, channels=64, lengths=(2**10, 2**12)),
}
STATES, HEAD_DIM = 16, 64


Draw = Callable[..., Tensor]
"""Standard normal numbers of a shape, on the device."""


def _scan_inputs(normal: Draw, length: int, channels: int) -> list[Tensor]:
    x_BLD, dt_BLD = normal(1, length, channels), normal(1, length, channels).sigmoid() * 0.1
    A_DN = -torch.arange(1.0, STATES + 1, device=x_BLD.device).expand(channels, STATES).contiguous()
    return [x_BLD, dt_BLD, A_DN, normal(1, length, STATES), normal(1, length, STATES)]


def _attention_inputs(normal: Draw, length: int, channels: int) -> list[Tensor]:
    return [normal(1, channels // HEAD_DIM, length, HEAD_DIM) for _ in range(3)]


def _conv_inputs(normal: Draw, length: int, channels: int) -> list[Tensor]:
    x_BDL, kernel_DL = normal(1, channels, length), normal(channels, length)
    return [x_BDL, kernel_DL * torch.exp(-torch.arange(length, device=kernel_DL.device) / 100.0)]


OPERATORS: dict[str, tuple[Callable[..., object], Callable[[Draw, int, int], list[Tensor]]]] = {
    "selective_scan": (selective_scan, _scan_inputs),
    "attention": (causal_attention, _attention_inputs),
    "fft_conv": (causal_conv, _conv_inputs),
}
"""The function, and its inputs in float32 for a length and a number of channels."""


def bind(operator: str, seq_len: int, device: torch.device) -> Call:
    """One forward call on inputs of the device's size."""
    function, make_inputs = OPERATORS[operator]
    sizes = SIZES[device.type]
    normal = functools.partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(seq_len))
    inputs = [tensor.to(sizes.dtype) for tensor in make_inputs(normal, seq_len, sizes.channels)]

    def call() -> object:
        with torch.no_grad():
            return function(*inputs)

    return call


def clocks(device: torch.device, budget_s: float) -> dict[str, Callable[[Call], float]]:
    """Median milliseconds of a call, by instrument; the suite's own comes first."""

    def ours(call: Call) -> float:
        return statistics.median(time_calls(call, device, budget_s=budget_s).samples_ms)

    def timer(call: Call) -> float:
        measured = torch.utils.benchmark.Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        return 1e3 * measured.blocked_autorange(min_run_time=budget_s).median

    instruments: dict[str, Callable[[Call], float]] = {CLOCK: ours, "torch.utils.benchmark": timer}
    if device.type == "cuda":
        do_bench = importlib.import_module("triton.testing").do_bench  # comes with PyTorch for CUDA alone

        def triton(call: Call) -> float:
            return do_bench(call, warmup=1e3 * budget_s / 4, rep=1e3 * budget_s, return_mode="median")

        instruments["triton.testing.do_bench"] = triton
    return instruments


def time_rows(operator: str, seq_len: int, device: torch.device, budget_s: float) -> list[Row]:
    """One row a clock."""
    call, instruments = bind(operator, seq_len, device), clocks(device, budget_s)
    call()
    medians: dict[str, list[float]] = {name: [] for name in instruments}
    for _ in range(NUM_ROUNDS):
        for name, measure in instruments.items():
            medians[name].append(measure(call))
    figures = {name: statistics.median(values) for name, values in medians.items()}
    return [
        _row(operator, seq_len, name, ms, figures[CLOCK]) | {"median_ms": round(ms, 5)} for name, ms in figures.items()
    ]


def memory_rows(operator: str, seq_len: int, device: torch.device) -> list[Row]:
    """Peak bytes of building the inputs and one call, by both meters."""

    def work() -> object:
        call = bind(operator, seq_len, device)
        return call, call()

    work()  # kernels are chosen and libraries loaded on a first call
    other = _cuda_total_peak if device.type == "cuda" else _cpu_total_peak
    name = "torch.cuda.max_memory_allocated" if device.type == "cuda" else "torch.profiler total"
    figures = {METER: memory_of(work, device)["peak_alloc_bytes"], name: other(work)}
    return [_row(operator, seq_len, n, value, figures[METER]) | {"peak_bytes": value} for n, value in figures.items()]


def _row(operator: str, seq_len: int, instrument: str, value: float, ours: float) -> Row:
    key = {"operator": operator, "seq_len": seq_len, "instrument": instrument}
    return dict.fromkeys(COLUMNS, "") | key | {"ratio_to_ours": round(value / ours, 4)}


def _cuda_total_peak(work: Call) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = work()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def _cpu_total_peak(work: Call) -> int:
    """From the running total that the allocator reports with each event, where ours adds up the events' own bytes."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        torch.empty(1)
        kept = work()
    del kept
    with tempfile.TemporaryDirectory(prefix="clock-agreement-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    events.sort(key=lambda e: e["ts"])
    totals = [e["args"]["Total Allocated"] for e in events]
    return max(totals) - (totals[0] - events[0]["args"]["Bytes"])


def disagreements(rows: Sequence[Row]) -> list[str]:
    """Rows beyond the limit, said in a sentence each."""
    return [
        f"{row['instrument']} gives {row['ratio_to_ours']} of ours for {row['operator']} at "
        f"{format_length(row['seq_len'])}, where {LIMIT:.0%} are allowed"
        for row in rows
        if not abs(row["ratio_to_ours"] - 1) <= LIMIT  # a NaN is not within any limit
    ]


def format_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of the table."""
    yield f"{'operator':<16}{'length':>7}  {'instrument':<33}{'median ms':>12}{'peak MB':>10}{'of ours':>9}"
    for row in rows:
        ms = f"{row['median_ms']:.4f}" if row["median_ms"] != "" else ""
        peak = f"{row['peak_bytes'] / 1e6:.2f}" if row["peak_bytes"] != "" else ""
        place = f"{row['operator']:<16}{format_length(row['seq_len']):>7}  {row['instrument']:<33}"
        yield f"{place}{ms:>12}{peak:>10}{row['ratio_to_ours']:>9.4f}"


def parse_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program with a message for a device that is not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clock_agreement", description=__doc__.splitlines()[0])
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=found, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="the CSV (results/runs/clock_agreement_DEVICE.csv)")
    parser.add_argument(
        "--budget-s", type=float, default=2.0, help="seconds of an instrument on a call, each of three rounds (2)"
    )
    options = parser.parse_args(words)
    if options.device == "cuda" and found != "cuda":
        parser.error("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if not options.budget_s > 0:
        parser.error(f"--budget-s {options.budget_s} is not positive; 2 seconds are enough")
    options.out = options.out or ROOT / f"results/runs/clock_agreement_{options.device}.csv"
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write, print; 1 if an instrument disagrees by more than :data:`LIMIT`."""
    options = parse_options(words)
    device = torch.device(options.device)
    rows: list[Row] = []
    for operator in OPERATORS:
        for seq_len in SIZES[device.type].lengths:
            rows += time_rows(operator, seq_len, device, options.budget_s)
            rows += memory_rows(operator, seq_len, device)
            write_csv(rows, COLUMNS, options.out)  # a later operator may fail
    print(*format_table(rows), sep="\n")
    print(f"written: {options.out}")
    for sentence in (found := disagreements(rows)):
        print(f"DISAGREES: {sentence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
