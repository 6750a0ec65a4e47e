"""Triton kernels compiled ahead, in child processes and within a time limit.

Triton compiles the configurations that an autotuned kernel chooses from one after the other, on a kernel's first call:
minutes, on one core, inside whatever was to be measured. Here as many children as there are cores compile a share of
them each, into Triton's cache on disk, without launching anything; then one child runs the kernels as they are, which
shows that they run, unless every choice was known. Where it had choices to make, the children compile once more: the
shapes that waited for them. At the limit all of them are killed. What came of it is noted in Triton's cache, so that no
process waits for the same limit twice. The caller's own process still times the configurations, on its first call,
unless choices are remembered.
"""

import ctypes
import fcntl
import functools
import hashlib
import itertools
import json
import operator
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_VARIABLE = "SEQBENCH_COMPILE_LIMIT_S"
DEFAULT_LIMIT_S = 360.0
"""Mamba-3's 234 configurations took up to 283 s beside an H200, on sixteen cores that had other work too."""
MAX_CHILDREN = 16
"""Each holds a CUDA context, some hundred MiB of the GPU's memory."""
LEFT_OUT = 17
"""The exit status of a share which left shapes out whose configuration nobody has chosen yet."""
ALL_CHOSEN = 18
"""The exit status of a share whose kernels' configurations had all been chosen before, so that none need be timed."""
_PR_SET_PDEATHSIG = 1


class TooLong(RuntimeError):
    """The children did not end within the limit."""


def limit_s() -> float:
    """Seconds that a compilation may take. Raises ValueError for what is no positive number."""
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_S)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ValueError(f"{LIMIT_VARIABLE}={text!r} is no positive number of seconds; set it to one, or not at all")
    return limit


@functools.cache
def why_not_compiled(command: tuple[str, ...], key: tuple[str, ...]) -> str:
    """Compile by ``command``, unless that is done, and say why the kernels cannot be used, or "".

    Args:
        command: runs the kernels once. With two numbers more, i and n, it only compiles the i-th of n shares
            (:func:`compile_share`), and may end with :data:`LEFT_OUT` or :data:`ALL_CHOSEN`.
        key: what the result holds for: versions, the GPU.
    """
    limit = limit_s()
    with _note((*command, *key)) as note:
        known = _read(note)
        if known.get("done"):
            return ""
        if known.get("too_long_s", 0.0) >= limit:
            return _too_long(known["too_long_s"], "earlier")
        try:
            why = _compile_by(command, limit)
        except TooLong:
            note.write_text(json.dumps({"too_long_s": limit}))
            return _too_long(limit, "now")
        if not why:
            note.write_text(json.dumps({"done": True}))
        return why  # a failure may be one of this moment, as of memory: the next process tries again


def _too_long(limit: float, when: str) -> str:
    return f"compiling its kernels took more than {limit:g} s {when}; set {LIMIT_VARIABLE} to allow more"


def _compile_by(command: Sequence[str], limit: float) -> str:
    """All stages; returns why the run of the kernels failed, or "". Raises TooLong."""
    deadline = time.monotonic() + limit
    num_children = min(len(os.sched_getaffinity(0)), MAX_CHILDREN)
    shares = [[*command, str(i), str(num_children)] for i in range(num_children)]
    # A configuration that does not compile is one that the autotuner leaves out, and a share that ends early only makes
    # the run longer: that one's failure counts.
    ended = run_within(shares, limit)
    if all(child.status == ALL_CHOSEN for child in ended):
        return ""
    if early := [child for child in ended if child.status not in (0, LEFT_OUT, ALL_CHOSEN)]:
        print(
            f"{len(early)} of {num_children} processes that compile kernels ahead ended early, the first with exit "
            f"status {early[0].status}: {early[0].last_words}",
            file=sys.stderr,
        )
    (run,) = run_within([command], deadline - time.monotonic())
    if run.status:
        return f"compiling its kernels failed with exit status {run.status}: {run.last_words}"
    if any(child.status == LEFT_OUT for child in ended):
        run_within(shares, deadline - time.monotonic())
    return ""


class Ended(NamedTuple):
    """How a child ended: its exit status, and the end of its stderr."""

    status: int
    last_words: str


def run_within(commands: Sequence[Sequence[str]], limit: float) -> list[Ended]:
    """Run commands side by side, from the repository's root; at the limit, kill them and what they have started.

    Raises TooLong at the limit in seconds.
    """
    deadline = time.monotonic() + limit
    root = Path(__file__).resolve().parents[2]
    processes: list[subprocess.Popen[bytes]] = []
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i, command in enumerate(commands):
                with open(Path(folder) / str(i), "wb") as stderr:
                    processes.append(
                        subprocess.Popen(
                            command, cwd=root, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
                        )
                    )
            for i, process in enumerate(processes):
                status = process.wait(max(0.0, deadline - time.monotonic()))
                outcomes.append(Ended(status, (Path(folder) / str(i)).read_text(errors="replace").strip()[-500:]))
        except subprocess.TimeoutExpired:
            raise TooLong(f"{commands[0][0]} and what it started took more than {limit:g} s") from None
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    return outcomes


def _read(note: Path) -> dict[str, Any]:
    try:
        return json.loads(note.read_text())
    except ValueError:  # new and empty, or torn
        return {}


@contextmanager
def _note(key: Sequence[str]) -> Iterator[Path]:
    """The file of a result, in the folder that Triton keeps compiled kernels in, so that both are deleted together.

    Held by one process at a time: the others wait for what it finds.
    """
    path = triton_cache_dir() / f"seqbench-{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def triton_cache_dir() -> Path:
    """Where Triton keeps what it compiles. May not exist yet."""
    if named := os.environ.get("TRITON_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton/cache"


def die_with_parent() -> None:
    """For children: in sessions of their own, they would outlive a trial that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def compile_share(autotuned: Sequence[Any], i: int, n: int) -> "Share":
    """From now on a call of these kernels compiles its configurations, of all that are met each n-th from the i-th on.

    Nothing is launched. A call whose choice is in the kernel's cache compiles that alone, and one that differs from an
    earlier call in nothing that its choice is made by compiles nothing until that choice is known.

    Args:
        autotuned: ``triton.runtime.Autotuner`` objects: what ``@triton.autotune`` makes of a kernel.
    """
    share = Share(i, n)
    for kernel in autotuned:
        kernel.run = functools.partial(share.compile, kernel)
    return share


class Share:
    """Which compilations are this child's: all children meet the same calls, and deal them out in the same order."""

    def __init__(self, i: int, n: int) -> None:
        self.i = i
        self.left_out = False
        """Whether a shape waits for a choice."""
        self.all_chosen = True
        """Whether every kernel that was called had its choice made before."""
        self._turns = itertools.cycle(range(n))
        self._dealt: dict[tuple[object, ...], int] = {}
        self._untuned: dict[tuple[object, ...], tuple[object, ...]] = {}

    def compile(self, kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:  # noqa: ARG002
        named = {k: v for k, v in (dict(zip(kernel.arg_names, args)) | options).items() if k in kernel.arg_names}  # noqa: B905
        # As the autotuner makes its key.
        dtypes = [str(v.dtype) for v in named.values() if hasattr(v, "dtype")]
        key = (*(named[name] for name in kernel.keys if name in named), *dtypes)
        signature = tuple(_specialised(name, value) for name, value in named.items())
        chosen = kernel.cache.get(key)
        self.all_chosen &= chosen is not None
        # Callers read a block's size off it, for the shape of what comes after.
        kernel.best_config = kernel.configs[0] if chosen is None else chosen
        if chosen is None and self._untuned.setdefault((id(kernel), *key), signature) != signature:
            self.left_out = True
            return
        for config in kernel.configs if chosen is None else [chosen]:
            what = (id(kernel), str(config), *signature)
            if what not in self._dealt:
                self._dealt[what] = next(self._turns)
            if self._dealt[what] == self.i:
                _compile(kernel.fn, config, args, options)


def _specialised(name: str, value: Any) -> object:
    """What Triton compiles a kernel anew for: a tensor's dtype, an integer that is 1 or divides by 16, a constant."""
    if hasattr(value, "dtype"):
        return str(value.dtype)
    is_constant = isinstance(value, bool) or not isinstance(value, int) or name.isupper()
    return value if is_constant else integer_kind(value)


def integer_kind(value: int) -> int:
    """1, 16, or 0 for what is neither: Triton's kinds of an integer argument."""
    return 1 if value == 1 else 16 if value % 16 == 0 else 0


_have_launcher = operator.attrgetter("run")
"""Triton writes and builds the C code that launches a kernel when it is first asked for it, and keeps it in its cache.
Without this the first trial of a shape would wait for gcc: 1 to 4 s longer than the next, in a sweep of an H200."""


def _compile(kernel: Any, config: Any, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    try:
        _have_launcher(kernel.warmup(*args, **options, **config.all_kwargs()))
    except Exception as error:  # noqa: BLE001 (the compiler's errors are of many kinds; the autotuner meets them again)
        print(f"{config}: {type(error).__name__}: {error}", file=sys.stderr)
