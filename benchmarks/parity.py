"""Numbers that must agree: every model and kernel against an independent implementation of the same thing.

``python -m benchmarks.parity [--device cpu|cuda] [--out FILE]`` prints a table and writes it as CSV, with the
machine beside it. Each row is one quantity (an output, a gradient) of one comparison at one length; the error is
``||a - b|| / ||b||`` unless said otherwise. Exit code 1 if a row is beyond its tolerance.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from benchmarks import parity_models, parity_operators
from benchmarks.csv_files import write_csv
from benchmarks.listing import aligned
from benchmarks.parity_rows import Row
from harness import parse_lengths
from harness.environment import fingerprint

Comparison = Callable[[torch.device, Sequence[int]], Iterator[Row]]


@dataclass(frozen=True)
class Group:
    """Comparisons of one subject, and where they can run."""

    name: str
    run: Comparison
    devices: tuple[str, ...] = ("cpu", "cuda")


GROUPS = [
    Group("selective-scan", parity_operators.selective_scans),
    Group("fused-scan", parity_operators.fused_selective_scan, ("cuda",)),
    Group("fused-ssd", parity_operators.fused_ssd, ("cuda",)),
    Group("attention-kernels", parity_operators.attention_kernels, ("cuda",)),
    Group("recurrent-forms", parity_models.recurrent_forms),
    Group("transformers", parity_models.transformers_models),
    Group("graphs", parity_models.captured_steps, ("cuda",)),
    Group("devices", parity_models.devices, ("cuda",)),
    # Last those whose Triton kernels take minutes to tune.
    Group("mamba-ssm", parity_models.mamba_ssm_models, ("cuda",)),
    Group("fused-blocks", parity_models.fused_blocks, ("cuda",)),
    Group("fused-mamba3", parity_models.fused_mamba3, ("cuda",)),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons; returns 1 if any is beyond its tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", default="1K,16K", help="of the operators (default: %(default)s)")
    parser.add_argument("--only", default="", help=f"groups, separated by commas: {', '.join(g.name for g in GROUPS)}")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="CSV (default: results/DEVICE/parity.csv)"
    )
    arguments = parser.parse_args(argv)
    wanted = [name for name in arguments.only.split(",") if name]
    if unknown := set(wanted) - {group.name for group in GROUPS}:
        parser.error(
            f"--only {', '.join(sorted(unknown))}: no such group; there are {', '.join(group.name for group in GROUPS)}"
        )
    torch.set_num_threads(1 if arguments.device == "cpu" else torch.get_num_threads())
    out = arguments.out or Path("results") / arguments.device / "parity.csv"
    rows: list[Row] = []
    for group in GROUPS:
        if arguments.device in group.devices and (not wanted or group.name in wanted):
            for row in group.run(torch.device(arguments.device), parse_lengths(arguments.lengths)):
                rows.append(row)
                print(f"{group.name}: {row.line()}", file=sys.stderr, flush=True)
            # A later group may run out of memory or time: what was found is kept.
            write(out, rows, arguments.device)
    print(table(rows))
    print(f"{sum(row.agrees for row in rows)} of {len(rows)} agree; written to {out}", file=sys.stderr)
    return 0 if all(row.agrees for row in rows) else 1


def write(out: Path, rows: Sequence[Row], device: str) -> None:
    """The CSV, and the machine in a JSON file beside it."""
    columns = [*(field.name for field in fields(Row)), "agrees"]
    cells = ([*row.cells(), "yes" if row.agrees else "no"] for row in rows)
    write_csv((dict(zip(columns, values, strict=True)) for values in cells), columns, out)
    _, environment = fingerprint(Path.cwd(), device=device, num_threads=torch.get_num_threads())
    out.with_name(out.stem + "_env.json").write_text(json.dumps(environment, indent=1, sort_keys=True) + "\n")


def table(rows: Sequence[Row]) -> str:
    """One line a comparison: its worst quantity."""
    worst: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row.subject, row.reference, str(row.seq_len), row.dtype)
        if key not in worst or row.share > worst[key].share:
            worst[key] = row
    heading = ["subject", "reference", "length", "dtype", "worst quantity", "error", "tolerance", "agrees"]
    body = [
        [r.subject, r.reference, str(r.seq_len), r.dtype, r.quantity, f"{r.error:.1e}", f"{r.tolerance:.0e}",
         "yes" if r.agrees else "NO"]
        for r in worst.values()
    ]  # fmt: skip
    return aligned([heading, *body])


if __name__ == "__main__":
    sys.exit(main())
