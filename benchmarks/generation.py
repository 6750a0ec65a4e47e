"""The ``generation`` benchmark: a prompt read and new tokens decoded, greedily, with random weights.

First comes the largest batch where that is asked for, then a whole generation under the memory meter, then the check of
what was generated, and only then the clock.

Shape suffixes: B batch, L prompt length, N new tokens, V vocabulary.
"""

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import _pop_mode_temporarily

from benchmarks.generation_checks import check_tokens, prompt_ids, verify
from benchmarks.generation_loops import Loop, find_loop, ran_out_of_memory
from benchmarks.generation_models import GPT_NEOX, build_fake_generation_model, build_generation_model
from benchmarks.generation_search import Probe, is_bracketed, largest_fitting, search_largest
from benchmarks.generation_times import host_times, sample_loop, throughput
from harness import Trial, Unsupported, WrongOutput
from harness.clocks import L2_POLICY, time_once_ms
from harness.environment import ClockReading
from harness.memory import available_memory_bytes, keep_freed_memory, memory_of
from harness.prediction import Prediction, predict
from harness.worker import Report
from models import Model
from models.ops.context import observing, predicting
from models.ops.selective_scan import force_backend

DEFAULT_SEARCH_S = 60.0
"""What a search may take where the protocol has no ``search_budget_s``; the probe that crosses it still ends."""
HOST_SHARE, DEVICE_SHARE = 0.8, 0.97
"""Of the memory available when the search begins: a CPU must not begin to swap, a GPU's limit is hard."""
_STEP_BACKS = 3  # batches 1/16 smaller that are tried where the one found does not last a whole generation


def run_generation(trial: Trial, _context: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Measure one ``generation`` trial.

    ``seq_len`` is the prompt's length, ``batch`` the number of sequences, 0 for the largest that fits; the protocol
    has ``new_tokens``, ``loop`` and ``sample_budget_s``. Metrics: ``prefill_ms`` and ``decode_ms`` (of all N steps)
    for each sample, ``tokens_per_s`` (B N over the sum of their medians), ``decode_tokens_per_s``, the memory of a
    whole generation with the weights, ``state_bytes`` of the whole batch, ``params``, ``first_call_ms`` (of the first
    prefill of this batch), ``capture_ms``, ``l2_policy``; the host's time (:func:`host_times`) where it is another
    than the device's; ``largest_batch`` and ``search`` where it was searched for.

    Raises:
        Unsupported: a loop that cannot run this model here.
        WrongOutput: logits that differ from the forward's; then no speed is given.
    """
    _check_protocol(trial)
    loop_class, device = find_loop(trial, wrapped=trial.model in GPT_NEOX), torch.device(trial.device)
    model = build_generation_model(trial)
    metrics: dict[str, Any] = {"params": model.num_params}
    batch = trial.batch
    probes: list[Probe] = []
    if batch == 0:
        probes = _search(trial, model, loop_class)
        batch = largest_fitting(probes)
        if batch == 0:
            raise MemoryError(f"not even a batch of 1 fits: {probes[-1].why}")
    loop, batch, first = _first_run(trial, model, loop_class, batch, probes)
    metrics |= first["metrics"]
    if probes:
        metrics |= {"largest_batch": batch, "search": [probe.as_dict() for probe in probes]}
        # The plan, which could not know the batch, predicted one sequence.
        metrics["predicted_peak_bytes"] = predicted_generation(replace(trial, batch=batch)).peak_bytes
        if not is_bracketed(probes):
            metrics["search_ended_early"] = "out of its time or probes: a larger batch may fit"
    allocator = keep_freed_memory()
    # Asked for now, so that the check's work covers the asking.
    clocks_before = ClockReading() if device.type == "cuda" else None
    free_memory(device)
    errors = verify(trial, model, loop_class)
    errors["tokens"] = check_tokens(trial, model, loop.prompt_BL, loop.tokens_BN)
    metrics["max_relative_error"] = max(errors.values())
    metrics["state_bytes"] = model.state_bytes(trial.seq_len + trial.protocol["new_tokens"], batch=batch)
    backend = first["backend"] | _describe(trial, model, loop) | {"host_allocator": allocator}
    if clocks_before is not None:
        metrics["gpu_clocks"] = {"before": clocks_before.read()}
    report({**metrics, "backend": backend})

    samples = sample_loop(loop, trial.protocol["sample_budget_s"])
    metrics |= throughput(samples, batch=batch, new_tokens=trial.protocol["new_tokens"])
    metrics |= host_times(loop.issue_ms(trial.protocol["sample_budget_s"] / 4), samples, loop.new_tokens)
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


def _first_run(
    trial: Trial, model: Model, loop_class: type[Loop], batch: int, probes: list[Probe]
) -> tuple[Loop, int, dict[str, Any]]:
    """A whole generation under the memory meter. After a search a batch that fails is followed by smaller ones."""
    for _ in range(_STEP_BACKS):
        try:
            loop, first = _measure_memory(trial, model, loop_class, batch)
            return loop, batch, first
        except (RuntimeError, MemoryError) as error:
            if not probes or batch == 1 or not ran_out_of_memory(error):
                raise
        free_memory(torch.device(trial.device))
        probes.append(Probe(batch=batch, fits=False, why="out of memory in a whole generation"))
        batch = max(1, batch - max(1, batch // 16))
    loop, first = _measure_memory(trial, model, loop_class, batch)
    return loop, batch, first


def _measure_memory(trial: Trial, model: Model, loop_class: type[Loop], batch: int) -> tuple[Loop, dict[str, Any]]:
    device = torch.device(trial.device)
    built: list[Loop] = []
    found: dict[str, Any] = {}

    def generate() -> None:
        # Shapes choose kernels: what runs is noted at the full batch.
        with observing() as capture_ops:
            built.append(loop_class(model, prompt_ids(trial, model, batch), trial.protocol["new_tokens"]))
        with observing() as prefill_ops:
            found["first_call_ms"] = round(time_once_ms(built[0].prefill, device), 3)
        with observing() as decode_ops:
            built[0].decode()
        step_ops = capture_ops.backends | decode_ops.backends
        found["backend"] = prefill_ops.backends | {f"step_{op}": kernel for op, kernel in step_ops.items()}
        if not step_ops and trial.model not in GPT_NEOX:
            found["backend"]["step"] = "PyTorch operators"

    metrics: dict[str, Any] = dict(memory_of(generate, device))
    # The weights were there before.
    metrics["peak_alloc_bytes"] += weight_bytes(model)
    metrics["first_call_ms"] = found["first_call_ms"]
    (loop,) = built
    if loop.capture_ms is not None:
        metrics["capture_ms"] = round(loop.capture_ms, 3)
    return loop, {"metrics": metrics, "backend": found["backend"]}


def weight_bytes(model: Model) -> int:
    """Of parameters and buffers, shared ones once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def free_memory(device: torch.device) -> None:
    """Let go of what nobody holds, so that a peak or a search begins low."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _search(trial: Trial, model: Model, loop_class: type[Loop]) -> list[Probe]:
    device = torch.device(trial.device)
    free_memory(device)
    share = DEVICE_SHARE if device.type == "cuda" else HOST_SHARE
    capacity = weight_bytes(model) + int(share * available_memory_bytes(device))

    def probe(batch: int) -> Probe:
        if device.type == "cpu":
            predicted = predicted_generation(replace(trial, batch=batch)).peak_bytes
            if predicted > capacity:
                return Probe(batch=batch, fits=False, why=f"would take {predicted:,} of {capacity:,} bytes")
        found = _probe(trial, model, loop_class, batch)
        free_memory(device)
        return found if device.type == "cuda" or not found.fits else replace(found, peak_bytes=predicted)

    budget_s = trial.protocol.get("search_budget_s", DEFAULT_SEARCH_S)
    return search_largest(probe, capacity_bytes=capacity, budget_s=budget_s)


def _probe(trial: Trial, model: Model, loop_class: type[Loop], batch: int) -> Probe:
    """Prefill and a few steps of one batch, checked. Raises what is no limit of the batch."""
    device, is_cuda = torch.device(trial.device), trial.device == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        loop = loop_class(model, prompt_ids(trial, model, batch), trial.protocol["new_tokens"])
        prompt_BL, tokens_BN = loop.probe()
        # Kernels that index with 32 bits write to wrong places at large batches, without an error.
        check_tokens(trial, model, prompt_BL, tokens_BN)
        if is_cuda:
            torch.cuda.synchronize(device)
    except (RuntimeError, MemoryError, WrongOutput) as error:
        if not ran_out_of_memory(error):
            if batch == 1:
                raise
            if is_cuda:
                torch.cuda.synchronize(device)  # an error that stays ends the trial here
        return Probe(batch=batch, fits=False, why=(str(error).strip() or type(error).__name__).splitlines()[0])
    return Probe(batch=batch, fits=True, peak_bytes=torch.cuda.max_memory_allocated(device) if is_cuda else None)


def _describe(trial: Trial, model: Model, loop: Loop) -> dict[str, Any]:
    """Which loop ran, and under which switches."""
    backend = describe_loop(trial, loop.description, captured=loop.captured)
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
