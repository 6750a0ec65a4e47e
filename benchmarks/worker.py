"""The measurement that a trial's process runs: dispatch by kind, under the run's settings."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.speed import run_speed
from benchmarks.training import run_training
from harness import Trial, Unsupported, gpu_clocks
from harness.memory import load_libraries
from harness.worker import Report
from models.ops import autotuning

Measure = Callable[[Trial, Mapping[str, Any], Report], Mapping[str, Any]]


def _run_generation(trial: Trial, context: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    from benchmarks.generation import run_generation  # few runs need what it imports

    return run_generation(trial, context, report)


def _run_audio_generation(trial: Trial, context: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    from benchmarks.audio_generation import run_audio_generation

    return run_audio_generation(trial, context, report)


_KINDS: dict[str, Measure] = {
    "speed": run_speed,
    "training": run_training,
    "generation": _run_generation,
    "audio_generation": _run_audio_generation,
}


def start_cuda() -> None:
    """What a trial's process on a GPU does before it knows its trial.

    Beside the trial that runs it holds a context's memory on the device, and nothing else that could be seen.
    """
    if torch.cuda.is_available():
        load_libraries(torch.device("cuda"))
        gpu_clocks.connect()


def execute(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Run one trial, and its companions. ``payload``: what the runner and :class:`RunSettings` put there."""
    trial = Trial.from_dict(payload["trial"])
    os.sched_setaffinity(0, payload["cores"])
    torch.set_num_threads(len(payload["cores"]))
    if trial.device == "cuda":
        if not torch.cuda.is_available():
            raise Unsupported("device=cuda: PyTorch finds no CUDA device here; use --device cpu")
        # Stated, not inherited: float32 trials use TF32 products unless told not to, and every record says so.
        tf32 = trial.protocol.get("tf32", True)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        return _with_choices(trial, payload, report)
    return _KINDS[trial.kind](trial, payload, report)


def _with_choices(trial: Trial, payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """On a GPU: with what Triton's autotuner chose in earlier processes, where mamba-ssm is installed."""
    if not autotuning.autotuned_kernels():
        return _KINDS[trial.kind](trial, payload, report)
    with autotuning.choices_remembered(autotuning.choices_path()):
        return _KINDS[trial.kind](trial, payload, report)
