"""Runs measurements, each in a fresh process forked from a server that has imported torch already.

The supervisor sleeps until a message, an exit or the time limit wakes it. It kills whole process
groups, and it types every end: a measurement can fail in any way without ending the sweep.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.trials import Status
from harness.worker import Limits, run_in_child

_TAIL_CHARS = 2000
_EXIT_GRACE_S = 5.0
"""A child that has sent its outcome gets this long to exit before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run of a measurement ended."""

    status: Status
    wall_s: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    backend: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None


def settle_imports(target: str, preload: Sequence[str]) -> None:
    """Say what the server imports. It holds from the server's first fork on, whoever asks for that."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([*preload, target.partition(":")[0]])


class Supervisor:
    """Runs a measurement, named ``package.module:function``, in one process after another.

    Args:
        target: the measurement; see :data:`harness.worker.Measurement`.
        preload: modules that the server imports once, before any trial, beside the target's. They
            must not touch CUDA: a forked child cannot use it then.
    """

    def __init__(self, target: str, *, preload: Sequence[str] = ("harness.preload",)) -> None:
        self.target = target
        self._context = multiprocessing.get_context("forkserver")
        # Reading an exit status is not thread-safe in multiprocessing, and starting a process
        # reads those of finished ones.
        self._bookkeeping = threading.Lock()
        self._running: set[int] = set()
        settle_imports(target, preload)

    def run(self, payload: Mapping[str, Any], limits: Limits) -> Outcome:
        """Run once. Never raises for what the measurement does; KeyboardInterrupt passes through."""
        with tempfile.TemporaryDirectory(prefix="seqbench-") as scratch:
            stderr_path = Path(scratch) / "stderr"
            receiver, sender = self._context.Pipe(duplex=False)
            process = self._context.Process(
                target=run_in_child, args=(self.target, payload, limits, str(stderr_path), sender), daemon=False
            )
            oom_kills = _oom_kill_count()
            started = time.monotonic()
            with self._bookkeeping:
                process.start()
                self._running.add(process.pid or 0)
            sender.close()
            try:
                end, partial = _follow(receiver, started + limits.time_s)
                timed_out = end is None and time.monotonic() >= started + limits.time_s
                wait([process.sentinel], timeout=0 if timed_out else _EXIT_GRACE_S)
            finally:
                _kill_group(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGKILL)  # for the moment before it has its own group
                wait([process.sentinel])
                with self._bookkeeping:
                    process.join()
                    self._running.discard(process.pid or 0)
                receiver.close()
            wall_s = time.monotonic() - started
            tail = _tail(stderr_path)
            if end is None:
                end = _unannounced_end(process.exitcode, timed_out, limits, _oom_kill_count() > oom_kills)
            error = end.get("error")
            return Outcome(
                status=end["status"],
                wall_s=wall_s,
                metrics={**partial, **end.get("metrics", {})},
                backend=end.get("backend", partial.get("backend", {})),
                error=None if error is None else {**error, "tail": tail},
            )

    def cancel(self) -> None:
        """End everything that runs at this moment; :meth:`run` then returns ``killed``."""
        with self._bookkeeping:
            running = list(self._running)
        for pid in running:
            _kill_group(pid)


def _follow(receiver: Connection, deadline: float) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Read messages until the end is announced, the pipe closes or time is up."""
    partial: dict[str, Any] = {}
    while (remaining := deadline - time.monotonic()) > 0:
        if not wait([receiver], timeout=remaining):
            return None, partial
        try:
            kind, content = receiver.recv()
        except (EOFError, OSError):
            return None, partial
        if kind == "end":
            return content, partial
        partial.update(content)
    return None, partial


def _unannounced_end(exit_code: int | None, timed_out: bool, limits: Limits, oom_killed: bool) -> dict[str, Any]:
    if timed_out:
        message = f"still running after its limit of {limits.time_s:g} s; raise time_limit_s, or shorten the trial"
        return {"status": "timeout", "error": {"type": "TimeLimit", "message": message}}
    if oom_killed:
        return {"status": "oom", "error": {"type": "OutOfMemoryKill", "message": "the kernel's OOM killer ended it"}}
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return {"status": "killed", "error": {"type": name, "message": f"the process was ended by {name}"}}
    message = f"the process exited with code {exit_code} and left no outcome"
    return {"status": "error", "error": {"type": "NoOutcome", "message": message}}


def _kill_group(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    return path.read_bytes()[-4 * _TAIL_CHARS :].decode(errors="replace")[-_TAIL_CHARS:]


def _oom_kill_count() -> int:
    """How often the kernel's OOM killer struck in this control group; 0 where that is not told."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0
