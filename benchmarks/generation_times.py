"""The clock of the ``generation`` benchmark: samples of both phases, what they give, and what issuing them takes."""

import statistics
import time
from typing import Any

from benchmarks.generation_loops import Loop, Sample
from harness.clocks import MAX_SAMPLES, MIN_SAMPLES, is_launch_bound


def sample_loop(loop: Loop, budget_s: float) -> list[Sample]:
    """Samples within about ``budget_s``; one at least. Compiled and set up is everything before."""
    began = time.perf_counter()
    samples = [loop.sample()]
    if samples[0].total_ms / 1e3 * (1 + MIN_SAMPLES) < budget_s:
        samples.clear()  # a warm-up more; where generations are long, what ran before has to do
    while len(samples) < MAX_SAMPLES:
        if samples and time.perf_counter() - began + samples[-1].total_ms / 1e3 > budget_s:
            break
        samples.append(loop.sample())
    return samples


def throughput(samples: list[Sample], *, batch: int, new_tokens: int) -> dict[str, Any]:
    """Metrics of samples: milliseconds of prefill and decode, and rates of their medians."""
    prefill_ms = [round(sample.prefill_ms, 6) for sample in samples]
    decode_ms = [round(sample.decode_ms, 6) for sample in samples]
    prefill, decode = statistics.median(prefill_ms), statistics.median(decode_ms)
    metrics: dict[str, Any] = {
        "prefill_ms": prefill_ms,
        "decode_ms": decode_ms,
        "tokens_per_s": batch * new_tokens / ((prefill + decode) / 1e3),
    }
    # A difference of two noisy times, which `transformers` gives, can be nothing or less.
    if decode > 0:
        metrics["decode_tokens_per_s"] = batch * new_tokens / (decode / 1e3)
    if len(samples) < MIN_SAMPLES:
        metrics["few_samples"] = f"{len(samples)} of {MIN_SAMPLES}: a generation outlasts the sampling budget"
    return metrics


def host_times(samples: list[Sample], new_tokens: int) -> dict[str, Any]:
    """Host milliseconds of a prefill, of a step, and of both phases together; whether issuing them sets the time.

    Empty where samples have none.
    """
    issued = [
        (sample.prefill_host_ms, sample.step_host_ms)
        for sample in samples
        if sample.prefill_host_ms is not None and sample.step_host_ms is not None
    ]
    if not issued:
        return {}
    host_ms = [prefill + new_tokens * step for prefill, step in issued]
    return {
        "prefill_host_ms": [round(prefill, 6) for prefill, _ in issued],
        "step_host_ms": [round(step, 6) for _, step in issued],
        "host_ms": [round(total, 6) for total in host_ms],
        "launch_bound": is_launch_bound(host_ms, [sample.total_ms for sample in samples]),
    }
