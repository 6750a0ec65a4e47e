"""The ``generation`` benchmark: a prompt read and new tokens decoded, greedily, with random weights.

First comes a whole generation under the memory meter, of several batches where the largest is searched for; then the
check of what was generated, and only then the clock. A search may take times too, which a failed check drops.

Shape suffixes: B batch, L prompt length, N new tokens, V vocabulary.
"""

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _pop_mode_temporarily

from benchmarks.generation_checks import check_tokens, prompt_ids, verify
from benchmarks.generation_loops import Loop, Sample, find_loop, ran_out_of_memory
from benchmarks.generation_models import GPT_NEOX, build_fake_generation_model, build_generation_model
from benchmarks.generation_search import (
    PeakLine,
    Probe,
    is_bracketed,
    largest_fitting,
    line_to_capacity,
    search_largest,
)
from benchmarks.generation_times import host_times, sample_loop, throughput
from benchmarks.speed import phase
from harness import Trial, Unsupported, WrongOutput
from harness.clocks import L2_POLICY, time_once_ms
from harness.gpu_clocks import ClockReading
from harness.memory import available_memory_bytes, keep_freed_memory, let_segments_grow, memory_of
from harness.prediction import Prediction, predict
from harness.worker import Report
from models import Model
from models.ops.context import observing, predicting
from models.ops.selective_scan import force_backend

DEFAULT_SEARCH_S = 60.0
"""What a search may take where the protocol has no ``search_budget_s``; the probe that crosses it still ends."""
OWN_SAMPLE_MS = 1e4
"""A captured generation of the largest batch that took longer is its own sample. It is the first of its batch, but its
step is captured by then and kernels are chosen; on an H200 first prompts of 4 s and 21 s took 5 % and 0.2 % longer than
those that were timed after them. A loop that is not captured allocates as it goes: of it a batch fits that generates
twice, and the second time is the sample."""
HOST_SHARE, DEVICE_SHARE = 0.8, 0.97
"""Of the memory available when the search begins: a CPU must not begin to swap, a GPU's limit is hard."""


def run_generation(trial: Trial, _context: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Measure one ``generation`` trial.

    ``seq_len`` is the prompt's length, ``batch`` the number of sequences, 0 for the largest that fits; the protocol
    has ``new_tokens``, ``loop`` and ``sample_budget_s``. Metrics: ``prefill_ms`` and ``decode_ms`` (of all N steps)
    for each sample, ``tokens_per_s`` (B N over the sum of their medians), ``decode_tokens_per_s``, the memory of a
    whole generation with the weights, ``state_bytes`` of the whole batch, ``params``, ``first_call_ms`` (of the first
    prefill of this batch), ``capture_ms``, ``l2_policy``, ``phases_s``; the host's time (:func:`host_times`) where it
    is another than the device's; ``largest_batch`` and ``search`` where it was searched for, and ``sampled_in_search``
    where a generation of the search was the sample (:data:`OWN_SAMPLE_MS`).

    Raises:
        Unsupported: a loop that cannot run this model here.
        WrongOutput: logits that differ from the forward's; then no speed is given.
    """
    _check_protocol(trial)
    loop_class, device = find_loop(trial, wrapped=trial.model in GPT_NEOX), torch.device(trial.device)
    # For every loop alike: the largest batch is to be what the memory holds, not what the allocator happens to lose.
    grown = {"device_allocator": let_segments_grow()} if device.type == "cuda" and not trial.batch else {}
    model = build_generation_model(trial)
    metrics: dict[str, Any] = {"params": model.num_params}
    phases_s: dict[str, float] = {}
    with phase("memory" if trial.batch else "search", phases_s):
        if trial.batch:
            generated = _generate(trial, model, loop_class, trial.batch)
        else:
            generated, about_search = _largest(trial, model, loop_class)
            metrics |= about_search
    batch = len(generated.prompt_BL)
    metrics |= generated.metrics
    allocator = keep_freed_memory()
    # Asked for now, so that the check's work covers the asking.
    clocks_before = ClockReading() if device.type == "cuda" else None
    with phase("check", phases_s):
        errors = verify(trial, model, loop_class)
        errors["tokens"] = check_tokens(trial, model, generated.prompt_BL, generated.tokens_BN)
    metrics["max_relative_error"] = max(errors.values())
    metrics["state_bytes"] = model.state_bytes(trial.seq_len + trial.protocol["new_tokens"], batch=batch)
    backend = generated.backend | _describe(trial, model, loop_class) | {"host_allocator": allocator} | grown
    if clocks_before is not None:
        metrics["gpu_clocks"] = {"before": clocks_before.read()}
    report({**metrics, "backend": backend})

    new_tokens = trial.protocol["new_tokens"]
    if not trial.batch and (not loop_class.captured or generated.samples[0].total_ms >= OWN_SAMPLE_MS):
        samples = generated.samples
        metrics["sampled_in_search"] = True
    else:
        if not trial.batch:
            free_memory(device)  # what the check left would break up a memory that the largest batch needs whole
        with phase("timing", phases_s):
            loop = loop_class(model, generated.prompt_BL, new_tokens)
            samples = sample_loop(loop, trial.protocol["sample_budget_s"])
    metrics["phases_s"] = phases_s
    metrics |= throughput(samples, batch=batch, new_tokens=new_tokens)
    metrics |= host_times(samples, new_tokens)
    metrics["l2_policy"] = L2_POLICY
    if clocks_before is not None:
        metrics["gpu_clocks"]["after"] = ClockReading().read()
    clock = "cuda_events" if device.type == "cuda" else "perf_counter_ns"
    return {"metrics": metrics, "backend": backend | {"clock": clock}}


def _check_protocol(trial: Trial) -> None:
    if trial.direction != "forward":
        raise Unsupported(f"direction={trial.direction!r}: generation has a forward only; use direction: forward")
    if (count := trial.protocol["new_tokens"]) < 1:
        raise Unsupported(f"new_tokens={count} is below 1; nothing would be decoded")


# --------------------------------------------------------------------------------------------------
# Memory


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A whole generation under the memory meter; the states are let go, so that another may follow."""

    prompt_BL: Tensor
    tokens_BN: Tensor
    samples: list[Sample]
    """Its own times, until others are taken."""
    metrics: dict[str, Any]
    """Memory, weights included, and the first call's time."""
    backend: dict[str, Any]


def _generate(trial: Trial, model: Model, loop_class: type[Loop], batch: int) -> Generated:
    device = torch.device(trial.device)
    prompt_BL = prompt_ids(trial, model, batch)
    built: list[Loop] = []
    found: dict[str, Any] = {}

    def generate() -> None:
        # Shapes choose kernels: what runs is noted at the full batch.
        with observing() as capture_ops:
            built.append(loop_class(model, prompt_BL, trial.protocol["new_tokens"]))
        with observing() as prefill_ops:
            found["first_call_ms"] = time_once_ms(built[0].prefill, device)
        with observing() as decode_ops:
            found["decode_ms"] = time_once_ms(built[0].decode, device)
        step_ops = capture_ops.backends | decode_ops.backends
        found["backend"] = prefill_ops.backends | {f"step_{op}": kernel for op, kernel in step_ops.items()}
        if not step_ops and trial.model not in GPT_NEOX:
            found["backend"]["step"] = "PyTorch operators"

    metrics: dict[str, Any] = dict(memory_of(generate, device))
    # The weights were there before.
    metrics["peak_alloc_bytes"] += weight_bytes(model)
    metrics["first_call_ms"] = round(found["first_call_ms"], 3)
    (loop,) = built
    if loop.capture_ms is not None:
        metrics["capture_ms"] = round(loop.capture_ms, 3)
    return Generated(
        prompt_BL=prompt_BL,
        tokens_BN=loop.tokens_BN,
        samples=[loop.as_sample(found["first_call_ms"], found["decode_ms"])],
        metrics=metrics,
        backend=found["backend"],
    )


def weight_bytes(model: Model) -> int:
    """Of parameters and buffers, shared ones once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def free_memory(device: torch.device) -> None:
    """Let go of what nobody holds, so that a peak or a search begins low."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _largest(trial: Trial, model: Model, loop_class: type[Loop]) -> tuple[Generated, dict[str, Any]]:
    """What the largest batch generated under the meter, and the metrics of the search for it.

    Each probe is a whole generation, so that the largest needs no other. Where the memory ends is predicted first.

    Raises:
        MemoryError: not even a batch of 1 fits.
    """
    device = torch.device(trial.device)
    free_memory(device)
    weights = weight_bytes(model)
    share = DEVICE_SHARE if device.type == "cuda" else HOST_SHARE
    capacity = weights + int(share * available_memory_bytes(device))
    line = line_to_capacity(partial(_predicted_peak, trial), empty_bytes=weights, capacity_bytes=capacity)
    fitting: dict[int, Generated] = {}

    def probe(batch: int) -> Probe:
        # A host would begin to swap, or kill: what is predicted to be too much is not run there.
        if device.type == "cpu" and (predicted := _predicted_peak(trial, batch)) > capacity:
            return Probe(batch=batch, fits=False, why=f"would take {predicted:,} of {capacity:,} bytes")
        generated = _try(trial, model, loop_class, batch)
        free_memory(device)
        if isinstance(generated, str):
            return Probe(batch=batch, fits=False, why=generated)
        fitting[batch] = generated
        return Probe(batch=batch, fits=True, peak_bytes=generated.metrics["peak_alloc_bytes"])

    probes = search_largest(
        probe,
        expected=line.batch_that_fills(capacity),
        capacity_bytes=capacity,
        budget_s=trial.protocol.get("search_budget_s", DEFAULT_SEARCH_S),
    )
    if not fitting:
        raise MemoryError(f"not even a batch of {probes[-1].batch} fits: {probes[-1].why}")
    return fitting[largest_fitting(probes)], _about(probes, line)


def _about(probes: list[Probe], line: PeakLine) -> dict[str, Any]:
    """Metrics of a search. The plan, which could not know the batch, predicted the peak of one sequence."""
    largest = largest_fitting(probes)
    metrics: dict[str, Any] = {
        "largest_batch": largest,
        "search": [probe.as_dict() for probe in probes],
        "predicted_peak_bytes": line.peak_bytes(largest),
    }
    if not is_bracketed(probes):
        metrics["search_ended_early"] = "out of its time or probes: a larger batch may fit"
    return metrics


def _predicted_peak(trial: Trial, batch: int) -> int:
    return predicted_generation(replace(trial, batch=batch)).peak_bytes


def _try(trial: Trial, model: Model, loop_class: type[Loop], batch: int) -> Generated | str:
    """A whole generation of one batch, its tokens checked, and samples of a loop that is not captured; or why it does
    not fit. Raises what is no limit of it."""
    try:
        generated = _generate(trial, model, loop_class, batch)
        # Kernels that index with 32 bits write to wrong places at large batches, without an error.
        check_tokens(trial, model, generated.prompt_BL, generated.tokens_BN)
        if loop_class.captured:
            return generated
        free_memory(torch.device(trial.device))
        loop = loop_class(model, generated.prompt_BL, trial.protocol["new_tokens"])
        return replace(generated, samples=sample_loop(loop, trial.protocol["sample_budget_s"]))
    except (RuntimeError, MemoryError, WrongOutput) as error:
        if not ran_out_of_memory(error):
            if batch == 1:
                raise
            if trial.device == "cuda":
                torch.cuda.synchronize(trial.device)  # an error that stays ends the trial here
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _describe(trial: Trial, model: Model, loop_class: type[Loop]) -> dict[str, Any]:
    """Which loop ran, and under which switches."""
    backend = describe_loop(trial, loop_class.description, captured=loop_class.captured)
    if trial.model in GPT_NEOX:
        config: Any = model.config
        backend["attention"] = f"transformers {config._attn_implementation}"
    return backend


def describe_loop(trial: Trial, description: str, *, captured: bool) -> dict[str, Any]:
    """Under which switches steps were issued."""
    backend: dict[str, Any] = {
        "loop": description,
        "precision": f"{trial.dtype} weights",
        "compiled": False,
        "cuda_graph": captured,
        "threads": torch.get_num_threads(),
    }
    if trial.device == "cuda":
        backend["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return backend


# --------------------------------------------------------------------------------------------------
# Prediction


def predicted_generation(trial: Trial) -> Prediction:
    """Peak bytes of a whole generation (a batch of 1 for batch 0) and its FLOPs; nothing is allocated.

    The prefill and one step run on fake tensors, with weights, states of the full length, activations and logits. A
    cache that grows by concatenation holds one layer's more than the static one that is predicted.

    Raises:
        Unsupported: as :func:`run_generation`, known before it starts.
    """
    _check_protocol(trial)
    find_loop(trial, wrapped=trial.model in GPT_NEOX)
    # Fake CUDA tensors would start CUDA in this process; shapes, and so bytes, are the same without.
    here = replace(trial, device="cpu", batch=trial.batch or 1)
    new_tokens = trial.protocol["new_tokens"]
    step_flops: list[float] = []

    def build() -> Model:
        model = build_fake_generation_model(here)
        flops = [model.describe(trial.seq_len + extra).forward_flops for extra in (0, 1)]
        step_flops.append(here.batch * (flops[1] - flops[0]))
        return model

    prediction = prefill_and_step_cost(here, build, new_tokens, device=trial.device)
    return replace(prediction, flops=prediction.flops + (new_tokens - 1) * step_flops[0])


def prefill_and_step_cost(here: Trial, build_model: Callable[[], Model], new_tokens: int, *, device: str) -> Prediction:
    """Peak bytes of a generation and the FLOPs of its prefill and first step, on fake tensors.

    Args:
        here: the trial on a CPU.
        build_model: a model of fake tensors.
        device: that is predicted for.
    """
    counted: list[float] = []

    def build() -> Callable[[], object]:
        # While it is made, a model holds an untied head for a moment; only what it keeps is followed.
        with _pop_mode_temporarily():
            model = build_model()
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach()  # the tracker sees results of operators, and by this one the weights
        with torch.no_grad():
            states = model.init_state(here.batch, here.seq_len + new_tokens)
        prompt_BL = torch.zeros(here.batch, here.seq_len, dtype=torch.int64)

        @torch.no_grad()
        def generate() -> None:
            with observing() as report:
                ids_B = model.prefill(prompt_BL, states).argmax(dim=-1)
                model.step(ids_B, states)
            counted.append(report.forward_flops)

        return generate

    fused = force_backend("mamba-ssm") if torch.device(device).type == "cuda" else nullcontext()
    with fused, predicting(device):
        prediction = predict(build, device=device)
    return replace(prediction, flops=prediction.flops + counted[-1])
