"""The command line. Heavy imports live in the commands, so that ``--help`` answers at once."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gate_command import add_gate_options, run_gate_command

if TYPE_CHECKING:
    from benchmarks.run import RunOptions
    from benchmarks.suite_trials import Selection

DEFAULT_SUITES = {"cpu": "quick", "cuda": "quick"}


class UsageError(ValueError):
    """The words of the command line make no sense. The message names them and the fix."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. 2: wrong usage or input, with one clear line on stderr."""
    arguments = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except BrokenPipeError:  # `seqbench claims | head` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if arguments.debug or not _is_expected(error):
            raise
        print(f"seqbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nseqbench: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 130


def _is_expected(error: BaseException) -> bool:
    """Whether an error is about the user's input: one of the classes that say so."""
    named = ("UsageError", "SuiteError", "TaskError", "RecordsError", "ReportError", "CheckpointError", "TreeError")
    return type(error).__name__ in named or type(error) is ValueError


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="seqbench",
        description="What does a sequence model get right, and what does it cost, from 1K to 1M tokens?",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of expected errors too")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="models, tasks, suites or claims")
    listing.add_argument("what", choices=("models", "tasks", "suites", "claims"))
    listing.set_defaults(command=_list)

    for name, function, text in (
        ("plan", _plan, "show a suite's trials with predicted cost and an ETA; runs nothing"),
        ("run", _run, "run a suite; what is recorded already is not run again"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("suite", metavar="SUITE", help="name of a suite, or a .yaml file")
        _add_selectors(command)
        add_run_options(command)
        command.set_defaults(command=function)

    evaluation = commands.add_parser("eval", help="zero-shot tasks of lm-eval on a trained or a published model")
    _add_eval_options(evaluation)
    evaluation.set_defaults(command=_eval)

    check = commands.add_parser("check", help="the conformance suite on a model of your own")
    check.add_argument("model", metavar="path/to/file.py:factory", help="a factory in a file, or a model's name")
    check.add_argument("--only", default="", metavar="CHECKS", help="checks, separated by commas (default: all)")
    check.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="default: %(default)s")
    check.set_defaults(command=_check)

    report = commands.add_parser("report", help="figures, tables and pages from records")
    report.add_argument(
        "records", nargs="*", type=Path, metavar="RECORDS", help="files or folders (default: results/runs)"
    )
    report.add_argument(
        "--out", type=Path, default=Path("reports/latest"), help="folder to write (default: %(default)s)"
    )
    report.add_argument(
        "--markdown",
        action="store_true",
        help="print the tables of the speed suite and of zero-shot tasks as Markdown instead; draws nothing",
    )
    report.set_defaults(command=_report)

    claims = commands.add_parser("claims", help="which known contrasts and claims about speed the records show")
    claims.add_argument("records", nargs="*", type=Path, metavar="RECORDS")
    claims.set_defaults(command=_claims)

    gate = commands.add_parser(
        "gate", help="compare two commits, or two sets of records; exit 0 pass, 1 regressed, 2 nothing comparable"
    )
    add_gate_options(gate)
    gate.set_defaults(command=run_gate_command)

    data = commands.add_parser("data", help="which data every task would use; --download fetches pinned ones")
    data.add_argument("--data", type=Path, metavar="DIR", help="data root (default: $SEQBENCH_DATA)")
    data.add_argument("--download", action="store_true", help="fetch the pinned files into the cache")
    data.set_defaults(command=_data)
    return parser


def _add_selectors(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("selectors")
    group.add_argument("--models", help="families, names, or path/to/file.py:factory, separated by commas")
    group.add_argument("--tasks", help="tasks, separated by commas")
    group.add_argument("--lengths", help="such as 1K..1M or 1K,4K")
    group.add_argument("--seeds", help="such as 0..2 or 0,7")


def add_run_options(command: argparse.ArgumentParser) -> None:
    """What a run is given beside its suite."""
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--data", type=Path, metavar="DIR", help="data root (default: $SEQBENCH_DATA)")
    command.add_argument("--source", action="append", default=[], metavar="TASK=PATH", help="your own data for a task")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of the records (default: results/runs/SUITE)")
    command.add_argument("--executor", choices=("local",), default="local", help="where trials run")
    command.add_argument(
        "--shard", default="1/1", metavar="I/N", help="run the I-th of N parts; each writes its own file"
    )
    command.add_argument("--fresh", action="store_true", help="run recorded trials again; their last record counts")
    command.add_argument(
        "--stop-after",
        type=_minutes,
        metavar="MINUTES",
        help="end the run so long after its start, planning included; the same command goes on where it stopped, "
        "within a training too",
    )
    command.add_argument("--threads", type=int, metavar="N", help="CPU cores of the run (default: all)")
    command.add_argument(
        "--memory-limit", type=float, metavar="GIB", help="memory that a trial may use (default: what is free)"
    )


def _add_eval_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        required=True,
        metavar="PATH|NAME",
        help="a checkpoint folder (this suite's, mamba-ssm's, Hugging Face's), a name on the Hugging Face hub, or a "
        "model of this suite: its newest on language",
    )
    command.add_argument(
        "--tokenizer",
        metavar="PATH|NAME",
        help="of a published checkpoint (default: its own; mamba-ssm's have none: EleutherAI/gpt-neox-20b)",
    )
    command.add_argument(
        "--tasks", required=True, help="lm-eval's names, separated by commas: lambada_openai,piqa …; or mamba_paper"
    )
    command.add_argument("--data", type=Path, metavar="DIR", help="data root (default: $SEQBENCH_DATA)")
    command.add_argument("--source", action="append", default=[], metavar="TASK=PATH", help="your own items for a task")
    command.add_argument("--limit", type=positive, metavar="N", help="only the first N items of every task")
    command.add_argument(
        "--batch-size", type=batch_size, metavar="auto|N", help="requests at once (default: what memory allows)"
    )
    command.add_argument(
        "--max-length", type=positive, metavar="N", help="tokens or bytes (default: the checkpoint's, or 2048)"
    )
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that a published checkpoint brings along"
    )
    command.add_argument("--no-cache", action="store_true", help="neither use nor keep single answers below --out")
    command.add_argument(
        "--out", type=Path, default=Path("results/runs/eval"), metavar="DIR", help="default: %(default)s"
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def batch_size(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0, such as 10 or 0.5")
    return minutes


def _selection(arguments: argparse.Namespace) -> "Selection":
    from benchmarks.suite_trials import Selection
    from harness import parse_lengths

    return Selection(
        models=_split(arguments.models),
        tasks=_split(arguments.tasks),
        lengths=tuple(parse_lengths(arguments.lengths)) if arguments.lengths else (),
        seeds=_seeds(arguments.seeds),
    )


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _seeds(text: str | None) -> tuple[int, ...]:
    seeds: list[int] = []
    for part in _split(text):
        first, dots, last = part.partition("..")
        if not first.isdigit() or (dots and not last.isdigit()):
            raise UsageError(f"--seeds {text!r}: {part!r} is no seed; write 0..2 or 0,7")
        seeds += range(int(first), int(last) + 1) if dots else [int(first)]
    return tuple(seeds)


def run_options(arguments: argparse.Namespace, suite_name: str) -> "RunOptions":
    """The run that the options of :func:`add_run_options` ask for. Raises UsageError."""
    from benchmarks.plan import RunSettings
    from benchmarks.run import RunOptions

    data_root = arguments.data or (Path(os.environ["SEQBENCH_DATA"]) if os.environ.get("SEQBENCH_DATA") else None)
    if data_root is not None and not data_root.is_dir():
        raise UsageError(f"data root {data_root} is no folder; name one with --data DIR or SEQBENCH_DATA")
    out = arguments.out or Path("results/runs") / suite_name
    settings = RunSettings(
        checkpoints=(out / "checkpoints").resolve(),
        states=(out / "training").resolve(),
        clips=(out / "audio").resolve(),
        cores=tuple(sorted(os.sched_getaffinity(0)))[: arguments.threads],
        data_root=data_root.resolve() if data_root else None,
        sources=_sources(arguments.source),
    )
    return RunOptions(
        device=resolve_device(arguments.device),
        out=out,
        settings=settings,
        shard=_shard(arguments.shard),
        fresh=arguments.fresh,
        memory_bytes=int(arguments.memory_limit * 2**30) if arguments.memory_limit else None,
        stop_at=time.monotonic() + 60 * arguments.stop_after if arguments.stop_after else None,
    )


def _sources(items: Sequence[str]) -> dict[str, Path]:
    sources = {}
    for item in items:
        task, equals, path = item.partition("=")
        if not equals or not task or not path:
            raise UsageError(f"--source {item!r} is not TASK=PATH, such as language=novel.txt")
        if not Path(path).exists():
            raise UsageError(f"--source {item}: there is no file or folder {path}")
        sources[task] = Path(path).resolve()
    return sources


def _shard(text: str) -> tuple[int, int]:
    first, slash, last = text.partition("/")
    if not slash or not first.isdigit() or not last.isdigit() or not 1 <= int(first) <= int(last):
        raise UsageError(f"--shard {text!r} is not I/N with 1 <= I <= N, such as 2/4")
    return int(first), int(last)


def resolve_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where nvidia-smi finds a GPU and PyTorch was built for it, else ``cpu``."""
    import torch

    has_cuda = torch.backends.cuda.is_built() and bool(_nvidia_smi())
    if name == "cuda" and not has_cuda:
        raise UsageError("--device cuda: no CUDA device (or a CPU build of PyTorch); use --device cpu")
    return ("cuda" if has_cuda else "cpu") if name == "auto" else name


def _nvidia_smi() -> str:
    """The first GPU's name. Asked of nvidia-smi: a process that has touched CUDA cannot fork workers."""
    import shutil
    import subprocess

    from harness.environment import nvidia_smi

    if shutil.which("nvidia-smi") is None:
        return ""
    answer = subprocess.run(nvidia_smi("name"), capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _plan(arguments: argparse.Namespace) -> int:
    from benchmarks.run import MEMORY_MARGIN, free_memory_bytes, plan_table, planned_suite, say_embedded
    from benchmarks.suites import load_suite
    from harness.environment import fingerprint
    from harness.runner import measure_matmul_rate

    suite = load_suite(arguments.suite)
    options = run_options(arguments, suite.name)
    planned = planned_suite(suite, _selection(arguments), options)
    say_embedded((item.trial for item in planned), sys.stderr)
    _, environment = fingerprint(Path.cwd(), device=options.device, num_threads=len(options.settings.cores))
    memory_bytes = options.memory_bytes or int(free_memory_bytes(options.device, environment) * MEMORY_MARGIN)
    print(plan_table(planned, rate=measure_matmul_rate() * 0.2, memory_bytes=memory_bytes))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.run import prepared_suite, run_suite, summarise
    from benchmarks.suites import load_suite

    suite = load_suite(arguments.suite)
    options = run_options(arguments, suite.name)
    planned = prepared_suite(suite, _selection(arguments), options, log=sys.stderr)
    counts = run_suite(planned, options, log=sys.stderr)
    print(f"{summarise(counts)}; records in {options.out}", file=sys.stderr)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from benchmarks.evaluation.run import EvalOptions, run_evaluation
    from benchmarks.evaluation.summary import table

    options = EvalOptions(
        model=arguments.model,
        tasks=_split(arguments.tasks),
        device=resolve_device(arguments.device),
        out=arguments.out,
        data_root=arguments.data,
        sources=_sources(arguments.source),
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        dtype=arguments.dtype,
        tokenizer=arguments.tokenizer,
        trust_remote_code=arguments.trust_remote_code,
        use_cache=not arguments.no_cache,
    )
    if not options.tasks:
        raise UsageError(f"--tasks {arguments.tasks!r} names no task; write --tasks lambada_openai,piqa")
    print(table(run_evaluation(options)))
    print(f"records in {options.out}", file=sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from benchmarks.checking import run_check

    return run_check(arguments.model, only=_split(arguments.only), device=resolve_device(arguments.device))


def _report(arguments: argparse.Namespace) -> int:
    from reports import speed_markdown, write_report

    records = arguments.records or [Path("results/runs")]
    print(speed_markdown(records) if arguments.markdown else write_report(records, arguments.out))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    from reports import judge

    section = ""
    for label, contrast in judge(arguments.records or [Path("results/runs")]):
        if label != section:
            print(label)
            section = label
        print(f"  {contrast.verdict:12}  {contrast.statement}\n{'':16}{contrast.evidence}")
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from tasks import describe_source, fetch_sources, task_names

    for task in task_names():
        if arguments.download:
            for path in fetch_sources(task):
                print(f"{task}: fetched {path}")
        provenance = describe_source(task, arguments.data, None)
        print(f"{task:18} {provenance.kind:10} {provenance.name}  {provenance.note}".rstrip())
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from benchmarks.listing import aligned, rows_of

    print(aligned(rows_of(arguments.what)))
    return 0
