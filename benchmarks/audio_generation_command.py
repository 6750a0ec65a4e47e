"""``python -m benchmarks.audio_generation``: sound from one model, as wav files and a record."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cli import UsageError, add_run_options, positive, run_options
from benchmarks.run import prepared_suite, run_suite, summarise
from benchmarks.suite_trials import Selection
from benchmarks.suites import Suite, check_entry
from harness import TrialFailure
from models.checkpoint import CONFIG_FILE, CheckpointError
from tasks.audio.waveform import SAMPLE_RATE_HZ
from tasks.base import TaskError

NAME = "audio-samples"
_TIME_LIMIT_S = 7200.0


def main(argv: Sequence[str] | None = None) -> int:
    """Generate as the command line says; returns 0, 1 where the trial did not end well, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        suite = Suite.model_validate({"name": NAME, "description": "", "trials": [_entry(arguments)]})
        check_entry(suite.trials[0])
        options = run_options(arguments, NAME)
        planned = prepared_suite(suite, Selection(), options)
        counts = run_suite(planned, options)
    except (UsageError, CheckpointError, TaskError, TrialFailure, ValueError) as error:
        print(f"audio_generation: {error}", file=sys.stderr)
        return 2
    print(f"{summarise(counts)}; record in {options.out}, wav files in {options.settings.clips}", file=sys.stderr)
    return 0 if set(counts) == {"ok"} else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audio_generation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="a trained model, of an audio task")
    which.add_argument("--model", metavar="NAME", help="a model of this name with random weights")
    parser.add_argument("--task", help="of the real clips and prompts (default: the checkpoint's, or audio)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of new sound (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=1, help="sequences at once (default: %(default)s)")
    parser.add_argument(
        "--prompt",
        type=positive,
        metavar="SAMPLES",
        help="real samples of the test split to go on from",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of draws and random weights (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--loop", choices=("cuda_graph", "eager"), help="default: cuda_graph on CUDA, eager on a CPU")
    add_run_options(parser)
    return parser


def _entry(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line as an entry of a suite."""
    from benchmarks.cli import resolve_device

    new_samples = round(arguments.seconds * SAMPLE_RATE_HZ)
    model, task, start = arguments.model, arguments.task or "audio", None
    if arguments.checkpoint is not None:
        config = _config(arguments.checkpoint)
        model, task = config["model"], arguments.task or _audio_task(config)
        start = {"folder": str(arguments.checkpoint), "seq_len": config["train_len"], "seed": config["seed"]}
    on_cuda = resolve_device(arguments.device) == "cuda"
    return {
        "kind": "audio_generation",
        "tasks": [task],
        "models": [model],
        "batches": [arguments.batch],
        "prompt": arguments.prompt or 1,
        "start": "data" if arguments.prompt else "silence",
        "new_samples": new_samples,
        "loops": [arguments.loop or ("cuda_graph" if on_cuda else "eager")],
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "seeds": [arguments.seed],
        "dtype": arguments.dtype,
        "init_from": start,
        "time_limit_s": _TIME_LIMIT_S,
    }


def _config(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises CheckpointError."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        return {key: config[key] for key in ("model", "task", "train_len", "seed")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint of a training run: {CONFIG_FILE} must name model, task, train_len and seed "
            f"({type(error).__name__}: {error}); name a folder below results/runs/SUITE/checkpoints"
        ) from error


def _audio_task(config: dict[str, Any]) -> str:
    """The checkpoint's own task where that is audio; else ``audio``, whose check then names both vocabularies."""
    return config["task"] if config["task"] in ("audio", "speech", "digits") else "audio"
