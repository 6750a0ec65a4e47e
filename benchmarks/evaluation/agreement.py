"""Two evaluations of one model that must agree: this suite's adapter and lm-eval's own ``HFLM``, item by item.

``python -m benchmarks.evaluation.agreement [--device cpu|cuda] [--model PATH|NAME …]`` prints a table and writes it as
CSV, with the machine beside it. Without ``--model``, small checkpoints are made here: GPT-NeoX, Llama and Mamba with
random weights, one trained on the very items (so that its scores are away from chance), and the Mamba once more in
mamba-ssm's format. Both sides read the same requests in the same process, taking turns; a speed is that of all
requests of a task, tokenization included. Exit code 1 if a row does not agree.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.cli import batch_size, positive
from benchmarks.csv_files import write_csv
from benchmarks.evaluation.agreement_rows import Row, Settings, Subject, compare
from benchmarks.evaluation.checkpoints import find_checkpoint
from benchmarks.evaluation.lm_harness import Instance, quiet
from benchmarks.evaluation.local_tasks import LocalTask, load_tasks
from benchmarks.evaluation.run import gold_request
from benchmarks.evaluation.small_checkpoints import (
    ARCHITECTURES,
    SIZES,
    embedded_text,
    make_network,
    make_tokenizer,
    save_as_mamba_ssm,
    save_as_transformers,
    train,
)
from benchmarks.listing import aligned
from harness.environment import fingerprint
from models.checkpoint import CheckpointError
from tasks import TaskError

TASKS = "lambada_openai,hellaswag,piqa,arc_easy,winogrande"
TRAINING_STEPS = 250
"""Enough to know many of the items by heart."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare on every model and task; returns 1 if any row does not agree, 2 for wrong input."""
    arguments = _parser().parse_args(argv)
    out = arguments.out or Path("results") / arguments.device / "eval_agreement.csv"
    settings = Settings(
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        repeats=arguments.repeats,
    )
    rows: list[Row] = []
    # Before the CSV is written: a file of the checkout that has changed makes it a dirty one.
    _, environment = fingerprint(Path.cwd(), device=arguments.device, num_threads=torch.get_num_threads())
    try:
        tasks = load_tasks(arguments.tasks.split(","), data_root=arguments.data)
        with tempfile.TemporaryDirectory() as scratch:
            for subject in _subjects(arguments, tasks, Path(scratch)):
                for row in compare(subject, tasks, settings):
                    rows.append(row)
                    print(f"{row.model} {row.task}: {'agrees' if row.agrees else 'DIFFERS'}", file=sys.stderr)
                write(out, rows, environment)
    except (CheckpointError, TaskError) as error:
        print(f"agreement: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    print(f"{sum(row.agrees for row in rows)} of {len(rows)} agree; written to {out}", file=sys.stderr)
    return 0 if all(row.agrees for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation.agreement", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--model", action="append", default=[], metavar="PATH|NAME", help="a Hugging Face checkpoint; may be repeated"
    )
    parser.add_argument("--tokenizer", metavar="PATH|NAME", help="of --model (default: its own)")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny", help="of the checkpoints that are made here")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="of both sides (default: %(default)s); in float64 no rounding hides a difference, nor makes one",
    )
    parser.add_argument("--tasks", default=TASKS, help="default: %(default)s")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data root (default: $SEQBENCH_DATA)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N items of every task")
    parser.add_argument(
        "--batch-size", type=batch_size, default=16, metavar="auto|N", help="of both sides (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="timed turns each (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=positive, default=TRAINING_STEPS, help="of the trained one (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV (default: results/DEVICE/eval_agreement.csv)")
    return parser


def _subjects(arguments: argparse.Namespace, tasks: Sequence[LocalTask], scratch: Path) -> Iterator[Subject]:
    for named in arguments.model:
        checkpoint = find_checkpoint(named, scratch, tokenizer=arguments.tokenizer)
        if checkpoint.own or checkpoint.tokenizer is None or "model_type" not in checkpoint.config:
            raise CheckpointError(f"--model {named}: HFLM reads checkpoints of transformers alone; name one of those")
        yield Subject(checkpoint.model, "as given", checkpoint.folder, checkpoint.folder, checkpoint.tokenizer)
    if not arguments.model:
        yield from small_subjects(scratch, tasks, size=arguments.size, steps=arguments.steps)


def small_subjects(folder: Path, tasks: Sequence[LocalTask], *, size: str, steps: int) -> Iterator[Subject]:
    """Checkpoints made in ``folder``: random ones of every architecture, a trained one, one in two formats."""
    text = embedded_text()
    for architecture in ARCHITECTURES:
        tokenizer = make_tokenizer([text], adds_bos=architecture == "llama")
        network = make_network(architecture, tokenizer, size=size)
        place = save_as_transformers(network, tokenizer, folder / architecture)
        yield Subject(architecture, "random", place, place, str(place))
        if architecture == "mamba":
            ssm = save_as_mamba_ssm(network, folder / "mamba-ssm")
            yield Subject("mamba in mamba-ssm's format", "random", ssm, place, str(place))
        if architecture == "gpt_neox":
            train(network, tokenizer, [*right_answers(tasks), text[:10_000]], steps=steps)
            place = save_as_transformers(network, tokenizer, folder / f"{architecture}-trained")
            yield Subject(architecture, f"trained {steps} steps", place, place, str(place))


def right_answers(tasks: Sequence[LocalTask]) -> list[str]:
    """Every item's prompt with its right answer."""
    texts = []
    for task in tasks:
        built = task.build()
        with quiet():
            built.build_all_requests()
        items: dict[int, list[Instance]] = {}
        for instance in built.instances:
            items.setdefault(instance.doc_id, []).append(instance)
        for instances in items.values():
            sample = {"arguments": [i.args for i in instances], "doc": instances[0].doc}
            texts.append("".join(sample["arguments"][gold_request(built, sample)]))
    return texts


def write(out: Path, rows: Sequence[Row], environment: Mapping[str, Any]) -> None:
    """The CSV, and the machine in a JSON file beside it."""
    columns = [*(field.name for field in fields(Row)), "agrees"]
    cells = ({**vars(row), "agrees": "yes" if row.agrees else "no"} for row in rows)
    write_csv(cells, columns, out)
    out.with_name(out.stem + "_env.json").write_text(json.dumps(environment, indent=1, sort_keys=True) + "\n")


def table(rows: Sequence[Row]) -> str:
    """One line a task."""
    heading = ["model", "weights", "task", "requests", "difference", "tolerance", "agrees", "tokens/s", "HFLM", "ratio"]
    body = [
        [r.model, r.weights, r.task, str(r.requests), f"{r.largest_difference:.1e}", f"{r.tolerance:.0e}",
         "yes" if r.agrees else "NO", f"{r.ours_tokens_per_s:.3g}", f"{r.hflm_tokens_per_s:.3g}",
         f"{r.ours_tokens_per_s / r.hflm_tokens_per_s:.2f}   {r.metrics}"]
        for r in rows
    ]  # fmt: skip
    return aligned([[*heading[:-1], "ratio  metrics"], *body])


if __name__ == "__main__":
    sys.exit(main())
