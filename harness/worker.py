"""What runs inside a trial's own process: limits first, then the measurement, then its outcome."""

import ctypes
import gc
import importlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from harness.outcomes import TrialFailure, is_out_of_memory

Report = Callable[[Mapping[str, Any]], None]
"""A measurement calls it with the metrics it has so far: they survive a kill. Once it returns, no other process of the
run is starting: it is called before anything is timed."""

Measurement = Callable[[Mapping[str, Any], Report], Mapping[str, Any]]
"""Payload and report in; ``{"metrics": …, "backend": …}`` out."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a trial may use."""

    time_s: float
    address_space_bytes: int | None = None
    """``RLIMIT_AS``. Not for CUDA, which reserves address space far beyond what it uses."""
    whole_device: bool = False
    """Whether the next measurement's process must not get ready beside this one: what it holds of a GPU, 0.8 GiB of an
    H200, decides what still fits."""


def find_function(target: str) -> Callable[..., Any]:
    """That ``package.module:function`` names."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def run_in_child(target: str, warm_up: str | None, pipe: Connection) -> None:
    """Entry of the child process.

    With a ``warm_up`` (a function, named like the target) it sends ``("ready", {})`` when that has returned. Then it
    receives payload, limits and the path of its stderr, sends ``("partial", …)`` any number of times, each of which is
    answered, and ``("end", …)`` once.
    """
    gc.freeze()  # a collection looks at the trial's objects alone, not at the 300,000 of PyTorch's (0.1 s each time)
    os.setsid()  # a process group of its own, so that a kill takes helpers along
    # If the supervisor dies, so do the server that forked us and, by this, we.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C belongs to the supervisor, which then ends this process group itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if warm_up is not None:
        find_function(warm_up)()
        pipe.send(("ready", {}))
    try:
        payload, limits, stderr_path = pipe.recv()
    except (EOFError, OSError):  # the run is over, or was ended
        return
    stderr_fd = os.open(stderr_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stderr_fd, 1)
    os.dup2(stderr_fd, 2)
    if limits.address_space_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limits.address_space_bytes, limits.address_space_bytes))

    def report(metrics: Mapping[str, Any]) -> None:
        pipe.send(("partial", dict(metrics)))
        pipe.recv()

    pipe.send(("end", _outcome(target, payload, report)))
    pipe.close()


def _outcome(target: str, payload: Mapping[str, Any], report: Report) -> dict[str, Any]:
    try:
        measured = find_function(target)(payload, report)
    except TrialFailure as failure:
        return {"status": failure.status, "error": _describe(failure)}
    except Exception as error:  # noqa: BLE001 (whatever it was: typed, recorded, and the sweep goes on)
        return {"status": "oom" if is_out_of_memory(error) else "error", "error": _describe(error)}
    return {"status": "ok", **measured}


def _describe(error: BaseException) -> dict[str, str]:
    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    return {"type": type(error).__name__, "message": str(error)}
