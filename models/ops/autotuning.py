"""What Triton's autotuner chose, remembered from one process to the next.

On a kernel's first call in a process the autotuner times each configuration for an eighth of a second: 6 s for the
forward of the state space dual, as much again for its backward. Its own cache on disk leaves out the kernels whose
configurations clear an output first. Here every choice is kept, beside the compiled kernels; some GPUs' come with the
project (:data:`SHIPPED`).
"""

import functools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models.ops.compiling import triton_cache_dir

PACKAGE = "mamba_ssm.ops.triton"
SHIPPED = Path(__file__).with_name("tuned")
"""Files of choices, each made by a run on the GPU and with the versions that its name tells; copied from Triton's cache
as they are. Other GPUs and versions choose for themselves."""

Choices = dict[str, list[tuple[list[Any], str]]]
"""Kernel -> pairs of the autotuner's key (sizes and dtypes) and the configuration, as it prints itself."""


def autotuned_kernels() -> dict[str, Any]:
    """The ``triton.runtime.Autotuner`` objects of those modules of the package that are imported, by name."""
    found: dict[int, tuple[str, Any]] = {}
    for name, module in sorted(sys.modules.items()):
        if name.startswith(PACKAGE):
            for attribute, value in vars(module).items():
                if hasattr(value, "configs") and hasattr(value, "cache") and hasattr(value, "fn"):
                    found.setdefault(id(value), (f"{name}.{attribute}", value))
    return dict(found.values())


@contextmanager
def choices_remembered(path: Path) -> Iterator[bool]:
    """Take over the choices noted in a file, and note there what the block has chosen beside them.

    Gives whether any was taken over. A file that is missing or unreadable counts as empty; of a file of this name in
    :data:`SHIPPED` those choices are taken over that this one does not have.
    """
    known = _merged(_read(SHIPPED / path.name), _read(path))
    taken = take_over(autotuned_kernels(), known)
    yield taken
    chosen = choices(autotuned_kernels())
    if any(entry not in known.get(kernel, []) for kernel, entries in chosen.items() for entry in entries):
        write_choices(path, chosen)


def tune_briefly(kernels: Mapping[str, Any]) -> None:
    """From now on each configuration is timed for a sixth of Triton's own time: 20 ms, after 5 ms of warm-up."""
    from triton.testing import do_bench

    for kernel in kernels.values():
        kernel.do_bench = functools.partial(do_bench, warmup=5, rep=20)


def choices(kernels: Mapping[str, Any]) -> Choices:
    """What the autotuner of each kernel has chosen in this process."""
    return {
        name: [(list(key), str(config)) for key, config in kernel.cache.items()]
        for name, kernel in kernels.items()
        if kernel.cache
    }


def take_over(kernels: Mapping[str, Any], known: Choices) -> bool:
    """Have kernels use these choices; one that names no configuration of its kernel is passed over."""
    taken = False
    for name, kernel in kernels.items():
        by_text = {str(config): config for config in kernel.configs}
        for key, text in known.get(name, []):
            if text in by_text:
                kernel.cache[tuple(key)] = by_text[text]
                taken = True
    return taken


def write_choices(path: Path, chosen: Choices) -> None:
    """Add choices to a file, whole or not at all; a folder that cannot be written is done without."""
    merged = _merged(_read(path), chosen)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(merged, sort_keys=True, indent=1))
        os.replace(unfinished, path)


def _merged(known: Choices, newer: Choices) -> Choices:
    """The newer choice for each key of a kernel, else the known one."""
    merged = dict(known)
    for kernel, entries in newer.items():
        others = [entry for entry in merged.get(kernel, []) if entry[0] not in [key for key, _ in entries]]
        merged[kernel] = others + entries
    return merged


def _read(path: Path) -> Choices:
    try:
        return {
            kernel: [(key, text) for key, text in entries] for kernel, entries in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@functools.cache
def choices_path() -> Path:
    """Of this GPU and these versions, in the folder of the compiled kernels. Starts CUDA."""
    versions = [f"{name}-{version(name)}" for name in ("mamba-ssm", "torch", "triton")]
    held_for = "-".join([torch.cuda.get_device_name().lower(), *versions])
    return triton_cache_dir() / f"seqbench-choices-{re.sub('[^a-z0-9.+-]+', '-', held_for)}.json"
