"""The fingerprint of where a measurement was made: machine, software, settings, and the code."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.trials import canonical_json

_PACKAGES = ("torch", "torchaudio", "numpy", "lm-eval", "mamba-ssm", "causal-conv1d", "transformers", "triton")
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "fma", "asimd", "sve")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "SEQBENCH_NO_KERNEL")


def fingerprint(checkout: Path, *, device: str, num_threads: int) -> tuple[str, dict[str, Any]]:
    """``(env_id, environment)``. Equal environments have equal ids, so that records can share one."""
    import torch

    environment: dict[str, Any] = {
        "machine": platform.node(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "threads": num_threads,
        "gpu": gpu_as_told() if device == "cuda" else None,
        "packages": _versions(_PACKAGES),
        "flags": {
            "mkl": torch.backends.mkl.is_available(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        },
        **_commit(checkout),
    }
    return hashlib.sha256(canonical_json(environment).encode()).hexdigest()[:16], environment


def _cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "model": fields.get("model name", platform.processor()),
        "family_model_stepping": "/".join(fields.get(k, "?") for k in ("cpu family", "model", "stepping")),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _TELLING_FLAGS if flag in present],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def nvidia_smi(*queries: str) -> list[str]:
    """The command that asks these things of the GPU that CUDA calls its first.

    That is the first of ``CUDA_VISIBLE_DEVICES``, where it names some of a machine's. Of a part of a GPU (MIG)
    nvidia-smi has no clocks; all GPUs answer then.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    chosen = ["-i", first] if first and not first.startswith("MIG") else []
    return ["nvidia-smi", *chosen, f"--query-gpu={','.join(queries)}", "--format=csv,noheader"]


def gpu_as_told() -> dict[str, Any] | None:
    """Asked of nvidia-smi, because the supervisor must not touch CUDA."""
    queries = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "power.limit")
    answer = _output(nvidia_smi(*queries))
    return dict(zip(queries, answer.splitlines()[0].split(", "), strict=False)) if answer else None


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit(checkout: Path) -> dict[str, Any]:
    """Commit and dirty flag of the suite's own checkout; None where it is no git checkout."""
    commit = _output(["git", "-C", str(checkout), "rev-parse", "HEAD"])
    if not commit:
        # A copy without history can still be told what it is a copy of.
        return {"commit": os.environ.get("SEQBENCH_COMMIT") or None, "dirty": None}
    changed = _output(["git", "-C", str(checkout), "status", "--porcelain"])
    return {"commit": commit.strip(), "dirty": bool(changed)}


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
