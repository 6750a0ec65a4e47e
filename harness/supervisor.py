"""Runs measurements, each in a fresh process forked from a server that has imported torch already.

Where starting a device takes long, the next measurement's process starts it while the present one still prepares, and
the one before, if it held little of the device, lets go of it; no measurement takes its times meanwhile. The supervisor
sleeps until a message, an exit or the time limit wakes it. It kills whole process groups, and it types every end: a
measurement can fail in any way without ending the sweep.
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
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness.trials import Status
from harness.worker import Limits, run_in_child

_TAIL_CHARS = 2000
_EXIT_GRACE_S = 5.0
"""A child that has sent its outcome gets this long to exit before it is killed."""
_WARM_UP_S = 10.0
"""A measurement waits for the next one's process to be ready no longer than this."""


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


@dataclass(kw_only=True)
class _Child:
    """A process that waits for its payload, or works on it."""

    process: BaseProcess
    pipe: Connection
    is_ready: bool = False
    """Whether it has said that it is warmed up."""


class Supervisor:
    """Runs a measurement, named ``package.module:function``, in one process after another.

    Args:
        target: the measurement; see :data:`harness.worker.Measurement`.
        preload: modules that the server imports once, before any trial, beside the target's. They
            must not touch CUDA: a forked child cannot use it then.
        warm_up: a function, named like the target, that starts a device. The next measurement's process calls it while
            the present one prepares; whoever reports is held until that is over, and is alone from then on.
        little_bytes: a process that reserved no more of a device's memory may end while the next one prepares. Waiting
            for that took an H200's trials of 4 to 8 GiB 0.12 s each, those of 8 to 16 GiB 0.17 s.
    """

    def __init__(
        self,
        target: str,
        *,
        preload: Sequence[str] = ("harness.preload",),
        warm_up: str | None = None,
        little_bytes: int = 0,
    ) -> None:
        self.target, self._warm_up, self._little_bytes = target, warm_up, little_bytes
        self._context = multiprocessing.get_context("forkserver")
        # Reading an exit status is not thread-safe in multiprocessing, and starting a process
        # reads those of finished ones.
        self._bookkeeping = threading.Lock()
        self._running: set[int] = set()
        self._leaving: list[_Child] = []
        self._standby: _Child | None = None
        self._standby_lock = threading.Lock()
        settle_imports(target, preload)

    def run(self, payload: Mapping[str, Any], limits: Limits) -> Outcome:
        """Run once. Never raises for what the measurement does; KeyboardInterrupt passes through."""
        with tempfile.TemporaryDirectory(prefix="seqbench-") as scratch:
            stderr_path = Path(scratch) / "stderr"
            oom_kills = _oom_kill_count()
            started, leaves_alone = time.monotonic(), False
            child = self._hand_over(payload, limits, str(stderr_path))
            process = child.process
            try:
                end, partial = self._follow(child.pipe, started + limits.time_s)
                timed_out = end is None and time.monotonic() >= started + limits.time_s
                if leaves_alone := end is not None and self._held_little(end):
                    with self._standby_lock:
                        self._leaving.append(child)
                else:
                    wait([process.sentinel], timeout=0 if timed_out else _EXIT_GRACE_S)
            finally:
                if not leaves_alone:
                    self._end(child)
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

    def close(self) -> None:
        """End the process that waits for a next measurement, and see the last one off."""
        with self._standby_lock:
            self._see_off()
            if self._standby is not None:
                self._end(self._standby)
                self._standby = None

    def _hand_over(self, payload: Mapping[str, Any], limits: Limits, stderr_path: str) -> _Child:
        """The process that works on it, and another one that gets ready meanwhile."""
        with self._standby_lock:
            child, self._standby = self._standby, None
            if child is not None and not _is_usable(child):  # it found no memory on the device, say
                self._end(child)
                child = None
            child = child or self._start(None)
            if limits.whole_device:
                self._see_off()
            # One that dies of its warm-up at this very moment ends as a process without an outcome.
            with contextlib.suppress(BrokenPipeError):
                child.pipe.send((payload, limits, stderr_path))
            if self._warm_up is not None and not limits.whole_device:
                self._standby = self._start(self._warm_up)
        return child

    def _start(self, warm_up: str | None) -> _Child:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=run_in_child, args=(self.target, warm_up, theirs), daemon=False)
        with self._bookkeeping:
            process.start()
            self._running.add(process.pid or 0)
        theirs.close()
        return _Child(process=process, pipe=ours)

    def _end(self, child: _Child) -> None:
        process = child.process
        _kill_group(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGKILL)  # for the moment before it has its own group
        wait([process.sentinel])
        with self._bookkeeping:
            process.join()
            self._running.discard(process.pid or 0)
        child.pipe.close()

    def _follow(self, pipe: Connection, deadline: float) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Read messages until the end is announced, the pipe closes or time is up."""
        partial: dict[str, Any] = {}
        while (remaining := deadline - time.monotonic()) > 0:
            if not wait([pipe], timeout=remaining):
                return None, partial
            try:
                kind, content = pipe.recv()
                if kind == "end":
                    return content, partial
                if kind == "partial":
                    partial.update(content)
                    self._let_others_settle()
                    pipe.send("go on")
            except (EOFError, OSError):
                return None, partial
        return None, partial

    def _held_little(self, end: Mapping[str, Any]) -> bool:
        """Of a GPU; a measurement that does not say may have held anything."""
        return end.get("metrics", {}).get("peak_reserved_bytes", self._little_bytes + 1) <= self._little_bytes

    def _see_off(self) -> None:
        while self._leaving:
            child = self._leaving.pop()
            wait([child.process.sentinel], timeout=_EXIT_GRACE_S)
            self._end(child)

    def _let_others_settle(self) -> None:
        """Until nobody starts or stops a device."""
        with self._standby_lock:
            self._see_off()
            standby = self._standby
            if standby is not None and not standby.is_ready:
                standby.is_ready = standby.pipe.poll(_WARM_UP_S) and _is_usable(standby)


def _is_usable(child: _Child) -> bool:
    """Whether a process that waits is warmed up, or still at it."""
    if child.is_ready or not child.pipe.poll():
        return child.process.is_alive()
    try:
        child.is_ready = child.pipe.recv()[0] == "ready"
    except (EOFError, OSError):
        return False
    return child.is_ready


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
