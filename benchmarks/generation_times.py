"""The clock of the ``generation`` benchmark: samples of both phases, what they give, and what issuing them takes."""

import statistics
import time
from typing import Any

from benchmarks.generation_loops import Loop
from harness.clocks import MAX_SAMPLES, MIN_SAMPLES, is_launch_bound


def sample_loop(loop: Loop, budget_s: float) -> list[tuple[float, float]]:
    """Samples within about ``budget_s``; one at least. Compiled and set up is everything before."""
    began = time.perf_counter()
    samples = [loop.sample_ms()]
    if sum(samples[0]) / 1e3 * (1 + MIN_SAMPLES) < budget_s:
        samples.clear()  # a warm-up more; where generations are long, what ran before has to do
    while len(samples) < MAX_SAMPLES:
        if samples and time.perf_counter() - began + sum(samples[-1]) / 1e3 > budget_s:
            break
        samples.append(loop.sample_ms())
    return samples


def throughput(samples: list[tuple[float, float]], *, batch: int, new_tokens: int) -> dict[str, Any]:
    """Metrics of samples of prefill and decode, both in milliseconds."""
    prefill_ms, decode_ms = ([round(pair[i], 6) for pair in samples] for i in (0, 1))
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


def host_times(
    issued: list[tuple[float, float]], samples: list[tuple[float, float]], new_tokens: int
) -> dict[str, Any]:
    """Host milliseconds of a prefill, of a step, and of both phases together; whether issuing them sets the time."""
    if not issued:
        return {}
    host_ms = [prefill + new_tokens * step for prefill, step in issued]
    return {
        "prefill_host_ms": [round(prefill, 6) for prefill, _ in issued],
        "step_host_ms": [round(step, 6) for _, step in issued],
        "host_ms": [round(total, 6) for total in host_ms],
        "launch_bound": is_launch_bound(host_ms, [sum(pair) for pair in samples]),
    }
