"""Realistic records without running anything: a small sweep in which things fail, are skipped, and are trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Record = dict[str, Any]
ENVIRONMENT = {
    "machine": "lab-7",
    "cpu": {"model": "AMD EPYC 7763", "cores": 8, "flags": ["avx2"]},
    "gpu": None,
    "packages": {"torch": "2.13.0", "numpy": "2.3.1"},
    "python": "3.11.9",
    "os": "Linux 6.8",
    "threads": 8,
    "commit": "0123abcd",
    "dirty": False,
}
MODELS = ("mamba-tiny", "transformer-tiny", "s4d-tiny")
LENGTHS = [1024 * 2**power for power in range(11)]


def speed(
    model: str,
    seq_len: int,
    status: str = "ok",
    *,
    level: str = "operator",
    direction: str = "forward",
    device: str = "cpu",
    dtype: str = "float32",
    batch: int = 1,
    seed: int = 0,
    env_id: str = "env-a",
    message: str = "",
    latency: Sequence[float] = (),
    started_at: str = "2025-05-01T10:00:00Z",
    protocol: Mapping[str, Any] | None = None,
    **metrics: Any,
) -> Record:
    """One speed trial; metrics are the record's own keys."""
    trial = {
        "kind": "speed",
        "model": model,
        "task": None,
        "seq_len": seq_len,
        "batch": batch,
        "dtype": dtype,
        "direction": direction,
        "device": device,
        "seed": seed,
        "protocol": {"level": level, **(protocol or {})},
    }
    if latency:
        metrics["latency_ms"] = list(latency)
        metrics.setdefault("tokens_per_s", 1e3 * batch * seq_len / float(np.median(latency)))
    backend = {"mixer": "torch-chunked" if "mamba" in model else "sdpa-math", "compiled": False, "threads": 8}
    return _record(trial, status, message, env_id, started_at, metrics, backend)


def generation(
    model: str,
    batch: int,
    loop: str = "cuda_graph",
    status: str = "ok",
    *,
    prompt: int = 2048,
    new_tokens: int = 128,
    prefill: Sequence[float] = (),
    decode: Sequence[float] = (),
    message: str = "",
    env_id: str = "env-a",
    **metrics: Any,
) -> Record:
    """One generation trial; batch 0 is a search."""
    trial = {
        "kind": "generation",
        "model": model,
        "task": None,
        "seq_len": prompt,
        "batch": batch,
        "dtype": "bfloat16",
        "direction": "forward",
        "device": "cuda",
        "seed": 0,
        "protocol": {"new_tokens": new_tokens, "loop": loop, "sample_budget_s": 1.0},
    }
    if prefill and decode:
        size = batch or metrics["largest_batch"]
        total_s = (float(np.median(prefill)) + float(np.median(decode))) / 1e3
        metrics |= {"prefill_ms": list(prefill), "decode_ms": list(decode)}
        metrics |= {"tokens_per_s": size * new_tokens / total_s}
        metrics |= {"decode_tokens_per_s": 1e3 * size * new_tokens / float(np.median(decode))}
    started_at = "2025-05-03T10:00:00Z"
    return _record(trial, status, message, env_id, started_at, metrics, {"mixer": "triton", "loop": loop})


def training(
    model: str,
    task: str,
    seed: int = 0,
    status: str = "ok",
    *,
    train_len: int = 256,
    message: str = "",
    scores: Sequence[Mapping[str, Any]] = (),
    source: Mapping[str, Any] | None = None,
    env_id: str = "env-a",
    lr: float = 1e-3,
    started_at: str = "2025-05-02T10:00:00Z",
    **metrics: Any,
) -> Record:
    """One training trial with its scores."""
    protocol: dict[str, Any] = {"train_len": train_len, "steps": 2000, "lr": lr, "loss": "masked"}
    if source:
        protocol["source"] = dict(source)
    trial = {
        "kind": "training",
        "model": model,
        "task": task,
        "seq_len": train_len,
        "batch": 16,
        "dtype": "float32",
        "direction": "train",
        "device": "cpu",
        "seed": seed,
        "protocol": protocol,
    }
    if status == "ok":
        metrics = {"params": 412_160, "state_bytes": 65_536, **metrics, "scores": [dict(score) for score in scores]}
    return _record(trial, status, message, env_id, started_at, metrics, {"mixer": "torch-chunked"})


def share(value: float, n: int = 1000) -> dict[str, float]:
    """An accuracy with its Wilson interval."""
    z = 1.96
    centre, scale = value + z * z / (2 * n), 1 + z * z / n
    half = z * float(np.sqrt(value * (1 - value) / n + z * z / (4 * n * n)))
    return {"value": value, "low": (centre - half) / scale, "high": (centre + half) / scale, "n": n}


def bits(value: float, half: float = 0.01, n: int = 50_000) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def around(rng: np.random.Generator, value: float, spread: float = 0.03, count: int = 9) -> list[float]:
    """Latency samples about a median: right-skewed as timings are."""
    return [float(x) for x in value * (1 + spread * (np.abs(rng.standard_normal(count)) - 0.7))]


def sweep() -> list[Record]:
    """Every kind of record that a run leaves behind."""
    rng = np.random.default_rng(7)
    records: list[Record] = []
    for level, direction, factor in (("operator", "forward", 1.0), ("model", "train", 9.0)):
        for model in MODELS:
            records += [_point(rng, model, seq_len, level, direction, factor) for seq_len in LENGTHS]
    for seed in range(3):
        for model in MODELS:
            records += [_probe(rng, model, task, seed) for task in ("selective_copying", "induction_heads")]
    for task, base in (("language", 1.9), ("dna", 1.94)):
        records += [_modality(rng, model, task, base + index * 0.06) for index, model in enumerate(MODELS)]
    records.append(training("mamba-tiny", "audio", status="oom", message="tried to allocate 3.0 GiB"))
    return records


def _time_ms(model: str, seq_len: int) -> float:
    cost: dict[str, Callable[[float], float]] = {
        "mamba-tiny": lambda x: 1.2 + 2.4 * x,
        "s4d-tiny": lambda x: 0.7 + 1.1 * x * (1 + 0.02 * np.log2(x)),
        "transformer-tiny": lambda x: 0.8 + 0.25 * x + 0.22 * x * x,
    }
    return float(cost[model](seq_len / 1024))


def _point(rng: np.random.Generator, model: str, seq_len: int, level: str, direction: str, factor: float) -> Record:
    time_ms, peak = factor * _time_ms(model, seq_len), int(factor * (4e6 + 1800.0 * seq_len))
    predicted = {"predicted_peak_bytes": int(peak * 1.06), "predicted_latency_ms": time_ms * 0.9}
    where: dict[str, Any] = {"level": level, "direction": direction, **predicted}
    if model == "transformer-tiny" and seq_len >= 256 * 1024:
        return speed(
            model, seq_len, "skipped", message=f"would outlast its limit of 60 s ({time_ms:.0f} ms a call)", **where
        )
    if model == "transformer-tiny" and seq_len == 128 * 1024 and level == "model":
        return speed(model, seq_len, "timeout", message="no result after 60 s", **where)
    if model == "mamba-tiny" and seq_len >= 512 * 1024 and level == "model":
        return speed(
            model,
            seq_len,
            "oom" if seq_len == 512 * 1024 else "skipped",
            message="DefaultCPUAllocator: can't allocate memory" if seq_len == 512 * 1024 else "would not fit",
            **where,
        )
    if model == "s4d-tiny" and seq_len == 2**20:
        return speed(model, seq_len, "wrong", message="max relative error 3.1e-2 above 1e-3", **where)
    return speed(
        model,
        seq_len,
        latency=around(rng, time_ms),
        peak_rss_bytes=300_000_000 + peak,
        baseline_rss_bytes=300_000_000,
        params=412_160,
        state_bytes=65_536,
        flops=1e6 * seq_len,
        **where,
    )


def _probe(rng: np.random.Generator, model: str, task: str, seed: int) -> Record:
    reach = {"mamba-tiny": 4096, "transformer-tiny": 300, "s4d-tiny": 300 if task == "induction_heads" else 0}[model]
    chance = 1 / 16
    scores: list[dict[str, Any]] = []
    if model == "s4d-tiny" and seed == 2:
        return training(model, task, seed, "killed", message="killed by signal 9")
    for seq_len in (256, 512, 1024, 4096, 16384, 65536):
        if model == "transformer-tiny" and seq_len == 65536:
            scores.append({"seq_len": seq_len, "status": "skipped", "reason": "would outlast its limit"})
            continue
        good = 0.99 - 0.004 * seed if seq_len <= reach * 4**seed else max(chance, 0.55 - 0.07 * np.log2(seq_len / 256))
        scores.append({"seq_len": seq_len, "status": "ok", "accuracy": share(min(good, 1.0), 512)})
    curve = [
        [step, float(2.77 * np.exp(-step / (300 if reach else 4000)) + 0.03 * rng.random())]
        for step in range(0, 2001, 50)
    ]
    return training(
        model,
        task,
        seed,
        scores=scores,
        accuracy=scores[0]["accuracy"],
        chance=chance,
        loss_curve=curve,
        lr=1e-3 if model == "mamba-tiny" else 3e-3,
    )


def _modality(rng: np.random.Generator, model: str, task: str, base: float) -> Record:
    scores: list[dict[str, Any]] = []
    gain = 0.05 if task == "language" else 0.002
    for seq_len in (1024, 4096, 16384, 65536):
        level = base - gain * np.log2(seq_len / 1024) * (1 if model == "mamba-tiny" else 0.3)
        edges = [0, *(2**power for power in range(6, int(np.log2(seq_len)) + 1))]
        scores.append(
            {
                "seq_len": seq_len,
                "status": "ok",
                "bits_per_token": bits(level),
                "bits_by_position": [
                    {
                        "start": start,
                        "stop": stop,
                        **bits(level + 0.6 / (1 + index) + 0.004 * rng.standard_normal(), 0.02, n=8),
                    }
                    for index, (start, stop) in enumerate(pairwise(edges))
                ],
            }
        )
    if model == "transformer-tiny":
        scores[-1] = {"seq_len": 65536, "status": "unsupported", "reason": "positions end at 16K"}
    source = (
        {"name": "tiny-books", "kind": "embedded", "sha256": "ab" * 32, "note": "64 KiB sample"}
        if task == "language"
        else {"name": "hg38-chr21", "kind": "file", "sha256": "cd" * 32, "note": None}
    )
    curve = [[step, float(base * 0.69 + 2.0 * np.exp(-step / 400))] for step in range(0, 2001, 100)]
    return training(
        model,
        task,
        train_len=1024,
        scores=scores,
        bits_per_token=scores[0]["bits_per_token"],
        accuracy=share(0.41),
        loss_curve=curve,
        source=source,
    )


def _record(
    trial: Record,
    status: str,
    message: str,
    env_id: str,
    started_at: str,
    metrics: Mapping[str, Any],
    backend: Mapping[str, Any],
) -> Record:
    digest = hashlib.sha256(json.dumps(trial, sort_keys=True).encode()).hexdigest()
    record: Record = {
        "schema": 1,
        "trial_id": digest,
        "trial": trial,
        "status": status,
        "env_id": env_id,
        "started_at": started_at,
        "wall_s": 2.5,
        "metrics": dict(metrics),
        "backend": dict(backend),
    }
    if status != "ok":
        record["error"] = {"type": status, "message": message, "tail": f"Traceback …\n  {message}"}
    return record
