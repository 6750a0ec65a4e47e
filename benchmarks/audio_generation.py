"""The ``audio_generation`` benchmark: raw audio sampled from a model, a step a sample.

First the check: a short generation's logits against the whole forward's. Then the memory of a whole generation's
states, and then the generation itself, timed in parts and kept as sound. ``python -m benchmarks.audio_generation`` is
one trial from the command line.

Shape suffixes: B batch, L prompt length, N new samples, V vocabulary.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.audio_generation_clips import check_task, prompt_and_real, score_speech, write_clips
from benchmarks.audio_generation_loops import EagerSampler, find_sampler
from benchmarks.audio_generation_sampling import Sampling, draw_uniforms
from benchmarks.generation import describe_loop, free_memory, prefill_and_step_cost, weight_bytes
from benchmarks.generation_checks import demand, last_logits, tolerance
from benchmarks.training import task_of
from benchmarks.training_start import start_from_checkpoint
from benchmarks.workloads import DTYPES
from harness import Trial, Unsupported
from harness.clocks import L2_POLICY, time_once_ms
from harness.memory import memory_of
from harness.prediction import Prediction
from harness.worker import Report
from models import Model, build_fake_model, build_model
from models.ops.context import observing, relative_error
from models.unet import UNet
from tasks.audio.waveform import NUM_LEVELS, SAMPLE_RATE_HZ

CHECKED_PROMPT, CHECKED_STEPS = 256, 40
PARTS = 8
"""A generation is timed in so many parts of equal length, which are the samples of its time a step."""


def run_audio_generation(trial: Trial, context: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Measure one ``audio_generation`` trial.

    ``seq_len`` is the prompt's length, ``batch`` the number of sequences. The protocol has ``new_samples``, ``start``
    (``silence``, or ``data`` of the test split), ``loop``, ``temperature`` and ``top_p``, and where weights are trained
    ``init_from``; else they are random. Metrics: ``samples_per_s`` of all sequences together, without the prompt's
    reading; ``real_time_factor``, seconds of sound a second and sequence; ``step_ms``, a step's time in each part of
    the generation; ``prefill_ms``, ``capture_ms``, the memory with the weights, ``state_bytes`` of the whole batch,
    ``max_relative_error``, ``clips``, and of spoken digits ``speech_metrics``.

    Args:
        context: ``clips``, the folder of wav files; none are kept without it.

    Raises:
        Unsupported: a loop, task, prompt or checkpoint that does not fit.
        WrongOutput: logits that differ from the forward's; then no speed is given.
    """
    _check_protocol(trial)
    loop_class, device = find_sampler(trial), torch.device(trial.device)
    task = check_task(task_of(trial, context))
    prompt_BL, real_KN = prompt_and_real(trial, task)
    model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed)
    start_from_checkpoint(model, task, trial, context.get("init_from"))
    model = model.cast(DTYPES[trial.dtype]).to(device).eval()
    prompt_BL = prompt_BL.to(device)
    source = task.provenance
    metrics: dict[str, Any] = {
        "params": model.num_params,
        "state_bytes": model.state_bytes(trial.seq_len + trial.protocol["new_samples"], batch=trial.batch),
        "source": {"name": source.name, "kind": source.kind, "note": source.note},
        "weights": "random" if trial.protocol.get("init_from") is None else "trained",
    }
    metrics["max_relative_error"] = verify(trial, model, prompt_BL, loop_class)
    free_memory(device)
    loop, measured, kernels = measure_memory(trial, model, prompt_BL, loop_class)
    metrics |= measured
    backend = kernels | describe_loop(trial, loop.description, captured=loop.captured)
    report({**metrics, "backend": backend})

    timed = _timed_generation(loop)
    errors = {"last": check_end(trial, model, loop), "prefix": metrics["max_relative_error"]}
    metrics |= timed | {"max_relative_error": max(errors.values()), "l2_policy": L2_POLICY}
    if folder := context.get("clips"):
        metrics["clips"] = write_clips(Path(folder) / context["trial_id"][:12], loop.tokens_BN, real_KN)
    metrics["speech_metrics"] = score_speech(trial, loop.tokens_BN)
    clock = "cuda_events" if device.type == "cuda" else "perf_counter_ns"
    return {"metrics": metrics, "backend": backend | {"clock": clock}}


def _check_protocol(trial: Trial) -> None:
    protocol = trial.protocol
    if trial.direction != "forward":
        raise Unsupported(f"direction={trial.direction!r}: generation has a forward only; use direction: forward")
    if trial.dtype not in DTYPES:
        raise Unsupported(f"dtype={trial.dtype!r} is not one of {', '.join(DTYPES)}")
    if protocol["start"] not in ("silence", "data"):
        raise Unsupported(f"start={protocol['start']!r} is neither silence nor data")
    if protocol["new_samples"] <= PARTS:
        raise Unsupported(f"new_samples={protocol['new_samples']} is not above {PARTS}, the parts that are timed")
    if trial.seq_len < 1 or trial.batch < 1:
        raise Unsupported(f"prompt={trial.seq_len}, batch={trial.batch}: both must be at least 1")
    _sampling(trial)


def _sampling(trial: Trial) -> Sampling:
    try:
        return Sampling(temperature=trial.protocol["temperature"], top_p=trial.protocol["top_p"])
    except ValueError as error:
        raise Unsupported(str(error)) from error


# --------------------------------------------------------------------------------------------------
# Correct before fast


@torch.no_grad()
def verify(trial: Trial, model: Model, prompt_BL: Tensor, loop_class: type[EagerSampler]) -> float:
    """Compare every logit of a short generation with those of the whole forward; twice, the second from used states.

    Of a U-Net it is long enough that the slowest stage takes a step and is heard.

    Raises:
        WrongOutput: beyond the tolerance of the dtype.
    """
    prompt_BL = prompt_BL[:1, :CHECKED_PROMPT]
    count = CHECKED_STEPS + 1
    if isinstance(model, UNet):
        count += model.settling_len // 2 + model.factor  # until the slowest stage's first step has come all the way up
    loop = loop_class(model, prompt_BL, draw_uniforms(1, count, trial.seed), _sampling(trial))
    largest = 0.0
    for what in ("", " in the second generation of a loop"):
        trace = loop.trace()
        ids_BL = torch.cat([prompt_BL, loop.tokens_BN[:, :-1]], dim=1)
        forward_BNV = last_logits(model, ids_BL, count)
        for i, logits_BV in enumerate(trace):
            error = relative_error(logits_BV, forward_BNV[:, i])
            place = f"the logits of {'the prefill' if i == 0 else f'step {i}'}{what}"
            demand(error, tolerance(trial, model), place, "the whole forward's", trial)
            largest = max(largest, error)
    return largest


@torch.no_grad()
def check_end(trial: Trial, model: Model, loop: EagerSampler) -> float:
    """The logits of the last step of the first and the last sequence against a forward over all that was generated.

    Raises:
        WrongOutput: beyond the tolerance of the dtype.
    """
    assert loop.last_logits_BV is not None
    largest = 0.0
    for row in sorted({0, trial.batch - 1}):
        own = slice(row, row + 1)
        ids_BL = torch.cat([loop.prompt_BL[own], loop.tokens_BN[own, :-1]], dim=1)
        error = relative_error(loop.last_logits_BV[own], last_logits(model, ids_BL, 1)[:, -1])
        what = f"the last logits of sequence {row} of {trial.batch}"
        demand(error, tolerance(trial, model), what, "the whole forward's", trial)
        largest = max(largest, error)
    return largest


# --------------------------------------------------------------------------------------------------
# Memory and time


def measure_memory(
    trial: Trial, model: Model, prompt_BL: Tensor, loop_class: type[EagerSampler]
) -> tuple[EagerSampler, dict[str, Any], dict[str, str]]:
    """The loop with states for the whole generation, its prefill and first steps: nothing grows afterwards.

    Returns the loop, its metrics, and the kernels that ran, those of a step under ``step_`` and the operator's name.
    """
    built: list[EagerSampler] = []
    kernels: dict[str, str] = {}
    steps = min(PARTS, trial.protocol["new_samples"] - 1)

    def generate() -> None:
        uniforms_BN = draw_uniforms(trial.batch, trial.protocol["new_samples"], trial.seed)
        with observing() as capturing:
            built.append(loop_class(model, prompt_BL, uniforms_BN, _sampling(trial)))
        with observing() as reading:
            built[0].prefill()
        with observing() as stepping:
            built[0].decode(steps)
        step_kernels = capturing.backends | stepping.backends
        kernels.update(reading.backends | {f"step_{op}": kernel for op, kernel in step_kernels.items()})

    metrics: dict[str, Any] = dict(memory_of(generate, torch.device(trial.device)))
    metrics["peak_alloc_bytes"] += weight_bytes(model)  # they were there before
    (loop,) = built
    if loop.capture_ms is not None:
        metrics["capture_ms"] = round(loop.capture_ms, 3)
    return loop, metrics, kernels


def _timed_generation(loop: EagerSampler) -> dict[str, Any]:
    """One whole generation, in :data:`PARTS` parts by the device's clock. The steps before it were the warm-up."""
    prefill_ms = time_once_ms(loop.prefill, loop.device)
    steps, step_ms = (loop.new_samples - 1) // PARTS, []
    for _ in range(PARTS):
        step_ms.append(time_once_ms(lambda: loop.decode(steps), loop.device) / steps)
    loop.decode(loop.new_samples - 1 - steps * PARTS)
    samples_per_s = 1e3 / statistics.fmean(step_ms)  # of a sequence
    return {
        "prefill_ms": [round(prefill_ms, 6)],
        "step_ms": [round(ms, 6) for ms in step_ms],
        "samples_per_s": len(loop.prompt_BL) * samples_per_s,
        "real_time_factor": samples_per_s / SAMPLE_RATE_HZ,
        "new_samples": loop.new_samples,
    }


# --------------------------------------------------------------------------------------------------
# Prediction


def predicted_audio_generation(trial: Trial) -> Prediction:
    """Peak bytes and FLOPs of a whole generation; nothing is allocated.

    Raises:
        Unsupported: as :func:`run_audio_generation`, where it is known before the start.
    """
    _check_protocol(trial)
    find_sampler(trial)
    # Fake CUDA tensors would start CUDA in this process; shapes, and so bytes, are the same without.
    here = replace(trial, device="cpu")
    later_flops: list[float] = []

    def build() -> Model:
        model = build_fake_model(trial.model, vocab_size=NUM_LEVELS, dtype=DTYPES[trial.dtype]).eval()
        last, first = trial.seq_len + trial.protocol["new_samples"], trial.seq_len + 1
        flops = [model.describe(seq_len).forward_flops for seq_len in (first, last)]
        later_flops.append(trial.batch * (flops[1] - flops[0]))
        return model

    prediction = prefill_and_step_cost(here, build, trial.protocol["new_samples"], device=trial.device)
    # Beside what the model takes: random numbers and samples, eight bytes each; on a CPU the drawn numbers too.
    copies = 2 if torch.device(trial.device).type == "cuda" else 3
    kept_bytes = 8 * copies * trial.batch * trial.protocol["new_samples"]
    peak_bytes = prediction.peak_bytes + kept_bytes
    return replace(prediction, peak_bytes=peak_bytes, flops=prediction.flops + later_flops[0])


if __name__ == "__main__":
    from benchmarks.audio_generation_command import main

    raise SystemExit(main())
