"""Options of the ``gate`` command, and which kind of gate they ask for: records, two commits, or the gate itself."""

import argparse
import sys
from pathlib import Path

SAMPLES = Path("results/runs/gate_self/blocks.json")
OUT = Path("results/cpu/gate_self.json")


def add_gate_options(command: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    command.add_argument("--base", metavar="REF|FILE", help="a git ref, or a file or folder of records")
    command.add_argument(
        "--candidate",
        metavar="REF|FILE",
        help="what is judged: a git ref (default: the working tree), or records such as results/runs/quick",
    )
    command.add_argument("--exact-only", action="store_true", help="compare no times, and train nothing")
    command.add_argument("--timing-fails", action="store_true", help="records: let a suspected slowdown fail the gate")
    command.add_argument(
        "--accept", nargs="?", const="", metavar="NAME", help="make the candidate the baseline results/baselines/NAME"
    )
    command.add_argument("--markdown", type=Path, metavar="FILE", help="write the result as a Markdown page too")
    command.add_argument("--junit", type=Path, metavar="FILE", help="write the result as JUnit XML too")
    refs = command.add_argument_group("between two commits")
    refs.add_argument(
        "--budget", type=float, default=3.5, metavar="MINUTES", help="of the timed blocks (default: %(default)g)"
    )
    refs.add_argument("--no-accuracy", action="store_true", help="train nothing")
    itself = command.add_argument_group("the gate itself")
    itself.add_argument(
        "--self",
        dest="of_itself",
        action="store_true",
        help="compare a commit (--candidate, default HEAD) with itself: false alarms, and what slowdowns are seen",
    )
    itself.add_argument("--blocks", type=int, default=96, metavar="N", help="blocks to run (default: %(default)s)")
    itself.add_argument(
        "--comparisons", type=int, default=200, metavar="N", help="to form from them (default: %(default)s)"
    )
    itself.add_argument(
        "--samples", type=Path, metavar="FILE", help=f"form them from blocks that ran before, such as {SAMPLES}"
    )
    itself.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="its figures (default: %(default)s)")


def run_gate_command(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises ValueError and its kinds for sides that make no sense."""
    from benchmarks.gate_trees import WORKING_TREE, is_ref, two_trees
    from benchmarks.gating import GateOptions, is_records, load_side, run_gate, show

    if arguments.of_itself:
        return _of_itself(arguments)
    base, candidate = arguments.base, arguments.candidate
    if base is None and arguments.accept is None:
        raise ValueError("gate needs --base REF|FILE to compare with; only --accept and --self go without")
    options = GateOptions(
        base=base, candidate=candidate or "", exact_only=arguments.exact_only, timing_fails=arguments.timing_fails,
        accept=arguments.accept, markdown=arguments.markdown, junit=arguments.junit,
    )  # fmt: skip
    by_records = arguments.accept is not None or is_records(base) or (candidate is not None and is_records(candidate))
    if by_records and candidate is None:
        raise ValueError(
            "--base names records, and so must --candidate, such as results/runs/quick; the working tree is "
            "compared with a git ref"
        )
    if candidate is None and not is_ref(base):
        load_side(base)  # raises, and says what a side may be
    if by_records or not is_ref(base) or (candidate is not None and not is_ref(candidate)):
        return run_gate(options)
    if not 0 < arguments.budget < float("inf"):
        raise ValueError(f"--budget {arguments.budget:g} is not a number of minutes above 0")
    from benchmarks.gate_compare import compare_trees
    from benchmarks.gate_exact import has_exact_tier
    from benchmarks.gating import load_tolerances

    with two_trees(base, candidate or WORKING_TREE) as (before, after, notes):
        if arguments.exact_only and not has_exact_tier(before, after) and candidate is not None:
            return run_gate(options)  # what is left to compare without running anything: committed baselines
        result = compare_trees(
            before, after, load_tolerances(), budget_s=60 * arguments.budget, exact_only=arguments.exact_only,
            with_accuracy=not (arguments.exact_only or arguments.no_accuracy), notes=notes,
        )  # fmt: skip
        return show(result, f"{after.label} against {before.label}", options)


def _of_itself(arguments: argparse.Namespace) -> int:
    from benchmarks.gate_self import run_self, tables
    from benchmarks.gate_trees import two_trees
    from benchmarks.gating import load_tolerances
    from harness.gate_rules import PAIRED_LATENCY

    if arguments.comparisons < 1 or arguments.blocks < 1:
        raise ValueError(f"--comparisons {arguments.comparisons} --blocks {arguments.blocks}: both at least 1")
    common = {
        "num_blocks": arguments.blocks, "num_comparisons": arguments.comparisons,
        "tolerance": load_tolerances()[PAIRED_LATENCY].limit, "out": arguments.out,
    }  # fmt: skip
    if arguments.samples is not None:
        found = run_self(None, samples=arguments.samples, **common)
    else:
        ref = arguments.candidate or arguments.base or "HEAD"
        with two_trees(ref, ref) as (before, after, notes):
            print("\n".join(f"note: {note}" for note in notes), file=sys.stderr)
            found = run_self((before, after), samples=SAMPLES, **common)
    print(f"written: {arguments.out}", file=sys.stderr)
    print(tables(found))
    return 0
