"""Measurements that fail in every way a real one can: targets of the supervisor's tests."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from harness import NonFiniteLoss, Unsupported, WrongOutput
from harness.worker import Report

_warmed_at: float | None = None


def warm_up() -> None:
    """Start a slow device."""
    global _warmed_at
    time.sleep(0.2)
    _warmed_at = time.monotonic()


def warm_up_that_fails() -> None:
    raise MemoryError("the device is full")


def behave(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Do what the trial's ``protocol.behaviour`` says."""
    behaviour = payload["trial"]["protocol"]["behaviour"]
    return globals()[f"_{behaviour}"](report)


def _succeed(report: Report) -> Mapping[str, Any]:
    report({"params": 7})
    return {"metrics": {"latency_ms": [1.0, 2.0, 3.0]}, "backend": {"mixer": "test"}}


def _times(report: Report) -> Mapping[str, Any]:
    began = time.monotonic()
    report({})
    return {"metrics": {"warmed_at": _warmed_at, "began": began, "alone_from": time.monotonic()}}


def _leave_slowly(report: Report) -> Mapping[str, Any]:
    return _hold(2**20)


def _leave_slowly_with_much(report: Report) -> Mapping[str, Any]:
    return _hold(2**40)


def _hold(reserved_bytes: int) -> Mapping[str, Any]:
    threading.Thread(target=time.sleep, args=(1.5,)).start()  # its end is waited for, as a device's is
    return {"metrics": {"pid": os.getpid(), "peak_reserved_bytes": reserved_bytes}}


def _pid(report: Report) -> Mapping[str, Any]:
    return {"metrics": {"pid": os.getpid(), "group": os.getpgid(0)}}


def _raise(report: Report) -> Mapping[str, Any]:
    raise ZeroDivisionError("the message of the exception")


def _nan(report: Report) -> Mapping[str, Any]:
    raise NonFiniteLoss("the loss is nan at step 3 of 10; lower lr=100")


def _unsupported(report: Report) -> Mapping[str, Any]:
    raise Unsupported("no kernel for this here")


def _wrong(report: Report) -> Mapping[str, Any]:
    raise WrongOutput("differs from its reference")


def _kill_itself(report: Report) -> Mapping[str, Any]:
    report({"params": 11})
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _exit_silently(report: Report) -> Mapping[str, Any]:
    os._exit(3)


def _sleep(report: Report) -> Mapping[str, Any]:
    report({"params": 5})
    time.sleep(60)
    return {}


def _ignore_termination_and_fork(report: Report) -> Mapping[str, Any]:
    """Leaves a grandchild behind, which must die with the group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = os.fork()
    if grandchild:
        report({"grandchild": grandchild})
    time.sleep(60)
    return {}


def _allocate(report: Report) -> Mapping[str, Any]:
    import torch

    held = [torch.empty(2**26) for _ in range(64)]  # 256 MiB of addresses each; no page is touched
    return {"metrics": {"held": len(held)}}


def _print_to_stderr(report: Report) -> Mapping[str, Any]:
    print("a line of diagnosis")
    raise RuntimeError("told on stderr")
