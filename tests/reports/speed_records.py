"""A synthetic run of every level of speed on a made-up GPU: scaling and failures as a real one could have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import record_builder as builder

ENVIRONMENT = builder.ENVIRONMENT | {"machine": "lab-8", "gpu": {"name": "Imaginary GPU"}}
LENGTHS = [2**power for power in range(9, 21)]
WIDTH, D_STATE = 1024, 16
COPY, MATMUL, EXP = 3.6e12, 6.5e14, 1.2e13
ATTENTION_MS = {  # ms = fixed + pairs of positions / rate
    "attention": (0.02, 2.2e8),
    "attention_flash": (0.022, 2.0e8),
    "attention_cudnn": (0.021, 2.3e8),
    "attention_efficient": (0.03, 0.9e8),
    "attention_math": (0.05, 1.2e7),
}
LINEAR_MS = {  # ms = fixed + tokens / rate
    "selective_scan": (0.02, 4.0e4),
    "selective_scan_full": (0.025, 3.0e4),
    "selective_scan_torch": (0.9, 1.4e3),
    "ssd": (0.05, 7.0e4),
    "ssd_torch": (0.4, 1.1e4),
    "fft_conv": (0.08, 1.8e4),
}
MODELS = (
    "mamba", "mamba2", "transformer", "s4d", "hyena", "h3", "retnet", "linear_attention", "lstm", "hybrid",
)  # fmt: skip
MODEL_MS = {
    "mamba": 1.0, "mamba2": 0.8, "transformer": 0.7, "s4d": 1.1, "hyena": 1.5, "h3": 1.4, "retnet": 0.9,
    "linear_attention": 0.85, "lstm": 30.0, "hybrid": 0.9,
}  # fmt: skip
SHAPES = {"width": WIDTH, "d_state": D_STATE, "head_dim": 64, "sample_budget_s": 0.5}
GPU = {"device": "cuda", "dtype": "bfloat16"}


def suite(seed: int = 3) -> list[builder.Record]:
    """Ceilings, operators, blocks, models, training memory and generation."""
    rng = np.random.default_rng(seed)
    return [*_ceilings(rng), *_operators(rng), *_stacks(rng), *_batches(rng), *_generations(rng)]


def _ceilings(rng: np.random.Generator) -> Iterator[builder.Record]:
    for name, unit, rate, size in (
        ("copy", "byte/s", COPY, 2**28), ("matmul", "flop/s", MATMUL, 8192), ("exp", "exp/s", EXP, 2**26)
    ):  # fmt: skip
        latency = builder.around(rng, 1.0)
        yield builder.speed(name, size, level="ceiling", latency=latency, rate=rate, rate_unit=unit, **GPU)


def operator_ms(name: str, seq_len: float, batch: int = 1, train: bool = False) -> float:
    """The law that the synthetic operators follow."""
    fixed, rate = ATTENTION_MS.get(name) or LINEAR_MS[name]
    work = batch * seq_len * seq_len if name in ATTENTION_MS else batch * seq_len
    return float((fixed + work / rate) * (3.2 if train else 1.0))


def cost(name: str, tokens: float, seq_len: float, train: bool) -> dict[str, float]:
    """What a call must move and compute at the least."""
    times = 3.0 if train else 1.0
    exps = tokens * WIDTH * D_STATE if "scan" in name else tokens * seq_len * 8 if name in ATTENTION_MS else 0.0
    flops = 2 * tokens * seq_len * WIDTH if name in ATTENTION_MS else 9 * tokens * WIDTH * D_STATE
    return {"bytes": times * 8 * tokens * WIDTH, "flops": times * flops, "exps": times * exps}


def _operators(rng: np.random.Generator) -> Iterator[builder.Record]:
    for direction in ("forward", "train"):
        for tokens in (None, 65536):
            for name in (*ATTENTION_MS, *LINEAR_MS):
                for seq_len in LENGTHS:
                    if tokens is None or seq_len <= tokens:
                        yield _operator(rng, name, seq_len, direction, tokens)


def _operator(rng: np.random.Generator, name: str, seq_len: int, direction: str, tokens: int | None) -> builder.Record:
    train, batch = direction == "train", tokens // seq_len if tokens else 1
    time_ms = operator_ms(name, seq_len, batch, train)
    peak = 14.0 * batch * seq_len * WIDTH * (2.5 if train else 1.0)
    peak *= 1 + 2 * seq_len / WIDTH if name == "attention_math" else 12 if name.endswith("_torch") else 1
    protocol = SHAPES | ({"tokens": tokens} if tokens else {})
    predicted = {"predicted_peak_bytes": int(peak * 1.04), "predicted_latency_ms": time_ms * 1.1}
    where: dict[str, Any] = {"direction": direction, "batch": batch, "protocol": protocol, **predicted, **GPU}
    if peak > 120e9:
        return builder.speed(name, seq_len, "skipped", message=f"needs {peak / 1e9:.0f} GB", **where)
    if time_ms > 8000:
        return builder.speed(name, seq_len, "timeout", message="no result after 30 s", **where)
    if name == "attention_cudnn" and seq_len == 2**20:
        return builder.speed(name, seq_len, "unsupported", message="no engine for this length", **where)
    count = 4 if time_ms > 2000 else 9
    host = 0.045 * (2.5 if train else 1.0)
    return builder.speed(
        name,
        seq_len,
        latency=builder.around(rng, max(time_ms, host), 0.02, count),
        peak_alloc_bytes=int(peak * (1 + 0.02 * rng.standard_normal())),
        cost=cost(name, batch * seq_len, seq_len, train),
        host_ms=[host] * 5,
        launch_bound=host >= 0.9 * time_ms,
        **({"replay_ms": builder.around(rng, time_ms, 0.02, count)} if host >= 0.5 * time_ms else {}),
        l2_policy="flushed before each sample",
        **({"few_samples": f"{count} of 5: a call outlasts the sampling budget"} if count < 5 else {}),
        **where,
    )


def _stacks(rng: np.random.Generator) -> Iterator[builder.Record]:
    for level, factor in (("block", 1.0), ("model", 12.0)):
        for direction in ("forward", "train"):
            for tokens in (None, 65536):
                for family in MODELS:
                    for seq_len in LENGTHS:
                        if tokens is None or seq_len <= tokens:
                            yield _stack(rng, family, seq_len, level, direction, factor, tokens)


def stack_ms(family: str, seq_len: float, batch: float = 1) -> float:
    """The law that one synthetic block follows: linear work, and quadratic work where it attends."""
    quadratic = {"transformer": 1 / 1.5e8, "hybrid": 1 / 1.2e9}.get(family, 0.0)
    return batch * (MODEL_MS[family] * seq_len / 16384 + quadratic * seq_len**2) + 0.06


def _stack(
    rng: np.random.Generator,
    family: str,
    seq_len: int,
    level: str,
    direction: str,
    factor: float,
    tokens: int | None,
) -> builder.Record:
    train, batch = direction == "train", tokens // seq_len if tokens else 1
    time_ms = factor * stack_ms(family, seq_len, batch) * (3 if train else 1)
    peak = factor * batch * seq_len * 768 * 2 * (14.0 if train else 2.0) + (
        2.2e9 if train and level == "model" else 3e8
    )
    where: dict[str, Any] = {
        "level": level,
        "direction": direction,
        "batch": batch,
        "predicted_peak_bytes": int(peak * 1.1),
        "predicted_latency_ms": time_ms,
        "protocol": {"tokens": tokens} if tokens else {},
        **GPU,
    }
    name = f"{family}-130m"
    if peak > 120e9:
        return builder.speed(name, seq_len, "oom", message=f"tried to allocate {peak / 1e9:.0f} GB", **where)
    if time_ms > 10_000:
        return builder.speed(name, seq_len, "skipped", message="would outlast its limit of 30 s", **where)
    state = 40e3 * seq_len if family == "transformer" else 5e3 * seq_len if family == "hybrid" else 5e6
    return builder.speed(
        name,
        seq_len,
        latency=builder.around(rng, time_ms),
        peak_alloc_bytes=int(peak),
        params=129_000_000,
        state_bytes=int(batch * state),
        launch_bound=time_ms < 2.0,
        **where,
    )


def _batches(rng: np.random.Generator) -> Iterator[builder.Record]:
    for family, slope in (("mamba", 1.15e9), ("transformer", 1.0e9)):
        for batch in (2, 4, 8, 16, 32):
            peak = 2.2e9 + slope * batch
            yield builder.speed(
                f"{family}-130m", 2048, level="model", direction="train", batch=batch,
                latency=builder.around(rng, 8.0 * batch), peak_alloc_bytes=int(peak),
                predicted_peak_bytes=int(1.05 * peak), **GPU,
            )  # fmt: skip


def _generations(rng: np.random.Generator) -> Iterator[builder.Record]:
    loops = (
        ("mamba-1.4b", "cuda_graph", 2.2, 0.03, 5e6, 2048),
        ("mamba2-1.4b", "cuda_graph", 2.0, 0.035, 2e7, 1024),
        ("transformer-1.4b", "cuda_graph", 2.0, 0.25, 4e8, 256),
        ("transformer-1.4b", "transformers", 22.0, 0.5, 4e8, 64),
    )
    for model, loop, fixed, each, state, largest in loops:
        for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 0):
            size = batch or largest
            if size > largest:
                yield builder.generation(model, batch, loop, "oom", message="CUDA out of memory", state_bytes=None)
                continue
            yield builder.generation(
                model,
                batch,
                loop,
                prefill=builder.around(rng, 20.0 * size + 10, count=5),
                decode=builder.around(rng, 128 * (fixed + each * size), count=5),
                state_bytes=int(state * size),
                params=1_400_000_000,
                capture_ms=900.0,
                peak_alloc_bytes=int(3e9 + state * size),
                **({} if batch else {"largest_batch": largest}),
            )
