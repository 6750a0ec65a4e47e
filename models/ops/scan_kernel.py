"""The compiled selective scan for CPUs: built on first use, kept in a cache, called through ctypes.

``scan_kernel.cpp`` has a plain C interface and none of PyTorch's headers, and the compiler is called directly:
a build takes 3.4 s on one core of an EPYC 9004, where ``torch.utils.cpp_extension.load_inline`` takes 25.5 s for
a function of one line; it needs no ninja, and its result depends on no PyTorch version. It is compiled for this
very CPU; the cache's key is a hash of the source, the flags and the CPU's features, so that a changed source is
built again and a home folder shared by several machines never hands one the other's code. A build appears in the
cache by a rename, whole or not at all.

All memory of the kernel is allocated here as tensors, so that a ``FakeTensorMode`` with a memory tracker
sees exactly what a real call takes. In elements of the inputs' type, with T = :data:`CHUNK`, D' = D rounded
up to 16, P threads and S channel splits of a sequence:

=============  ===========================================================================
forward        y B L D, h_last B D N, A D' N, states B D' N (B (⌈L/T⌉ + 1) D' N where a
               backward follows; they live until then), scratch P · 48 T
backward       dx and ddt B L D each, dB and dC B L N each, dA D N, dh0 B D N,
               A D' N, running gradients 2 B D' N, scratch P · (32 T N + 1280 T + 512),
               partial sums of dB and dC for S > 1: at most 2^22, or one chunk's
with weights   D' N in both; in the backward D N and B D' N more
=============  ===========================================================================
"""

import ctypes
import fcntl
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from models.ops.context import is_fake

SOURCE = Path(__file__).with_suffix(".cpp")
# Not -ffast-math: it would let the compiler assume that there are no NaNs, and linking with it makes
# the whole process flush denormals.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
BUILD_TIMEOUT_S = 120

CHUNK = 128
"""Steps between saved states: they take N / CHUNK of x's memory. Longer chunks fall out of L2."""
LANES = 16  # of the widest vector; constants of the source: kPad, kGroup and kTile * LANES
GROUP = 16
TILE = 2 * LANES
STATES_PER_THREAD = 2**20  # about 0.2 ms of work; waking a thread for less can cost more than it saves
PARTIAL_ELEMENTS = 2**22  # of partial dB and dC between two meetings of the threads: some milliseconds of work

# fmt: off
_SIZES = [
    "batch", "len", "channels", "states", "chunk", "splits", "threads", "segment_chunks", "scratch_size", "keep_states",
]
_STRIDES = ["x_b", "x_t", "dt_b", "dt_t", "B_b", "B_t", "C_b", "C_t", "gy_b", "gy_t"]
_POINTERS = [
    "x", "dt", "A", "B", "C", "h0", "weight", "gy", "gh_last",
    "y", "h_last", "A_blocked", "weight_blocked", "boundary", "scratch",
    "dx", "ddt", "dA", "dB", "dC", "dh0", "dweight", "gh_blocked", "dA_blocked", "dweight_blocked", "partial",
]
# fmt: on


class _ScanArgs(ctypes.Structure):
    """The source's struct of the same name."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES + _STRIDES] + [(p, ctypes.c_void_p) for p in _POINTERS]


def ensure_built() -> str:
    """Build and load the kernel unless that is done; returns why it cannot be used, or "".

    Call it before forking workers, so that they find the build in the cache.
    """
    if os.environ.get("SEQBENCH_NO_KERNEL", "") not in ("", "0"):
        return "SEQBENCH_NO_KERNEL is set"
    library = _library()
    return library if isinstance(library, str) else ""


def _cache_root() -> Path:
    if own := os.environ.get("SEQBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqbench"


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    first = {line.split(":")[0].strip(): line for line in reversed(lines) if line.startswith(wanted)}
    return "\n".join([platform.machine(), platform.processor(), *first.values()])


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The loaded kernel, or why there is none."""
    try:
        path = _build()
        library = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        return f"the build failed: {error.stderr.strip()[-400:]}"
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    for direction in ("forward", "backward"):
        for dtype in ("float32", "float64"):
            function = getattr(library, f"scan_{direction}_{dtype}")
            function.argtypes, function.restype = [ctypes.POINTER(_ScanArgs)], None
    return library


def _build() -> Path:
    """The shared library in the cache, compiled if it is not there."""
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS, _cpu()]).encode()).hexdigest()[:16]
    folder = _cache_root() / "kernels" / f"selective_scan-{key}"
    target = folder / "selective_scan.so"
    if target.exists():
        return target
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
                     if name and (found := shutil.which(name))), None)  # fmt: skip
    if compiler is None:
        raise RuntimeError("no C++ compiler (CXX, c++, g++, clang++) on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    # The lock saves the work of building twice and dies with its holder; the rename is what makes it safe.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / target.name
                command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
                built.replace(target)
    return target


def scan_forward(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    h0_BDN: Tensor | None,
    W_DN: Tensor | None = None,
    *,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_last and the states at chunk boundaries that :func:`scan_backward` wants; all of one real dtype."""
    B, L, D = x_BLD.shape
    N, threads = A_DN.shape[1], _num_threads(x_BLD, A_DN)
    D_padded, num_chunks = _round_up(D), math.ceil(L / CHUNK)
    y_BLD = x_BLD.new_empty(B, L, D)
    h_last_BDN = x_BLD.new_empty(B, D, N)
    boundary = x_BLD.new_empty(B, num_chunks + 1 if keep_states else 1, D_padded, N)
    scratch = x_BLD.new_empty(threads, 3 * CHUNK * LANES)
    _call(
        "forward",
        {"splits": _num_splits(B, D, threads), "threads": threads, "keep_states": int(keep_states)},
        {"x": x_BLD, "dt": dt_BLD, "B": B_BLN, "C": C_BLN},
        {
            "A": A_DN,
            "h0": h0_BDN,
            "weight": W_DN,
            "y": y_BLD,
            "h_last": h_last_BDN,
            "A_blocked": A_DN.new_empty(D_padded, N),
            "weight_blocked": None if W_DN is None else A_DN.new_empty(D_padded, N),
            "boundary": boundary,
        },
        scratch,
    )
    return y_BLD, h_last_BDN, boundary


def scan_backward(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    boundary: Tensor,
    gy_BLD: Tensor,
    gh_last_BDN: Tensor | None,
    W_DN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, dt, A, B, C, h0 and W (None without W); the same for the same number of threads."""
    B, L, D = x_BLD.shape
    N, threads = A_DN.shape[1], _num_threads(x_BLD, A_DN)
    D_padded, num_chunks, splits = (_round_up(D), math.ceil(L / CHUNK), _num_splits(B, D, threads))
    new = x_BLD.new_empty
    gradients = {
        "dx": new(B, L, D),
        "ddt": new(B, L, D),
        "dA": new(D, N),
        "dB": new(B, L, N),
        "dC": new(B, L, N),
        "dh0": new(B, D, N),
    }
    weighted = {}
    if W_DN is not None:
        shapes = {"weight_blocked": (D_padded, N), "dweight": (D, N), "dweight_blocked": (B, D_padded, N)}
        weighted = {"weight": W_DN} | {name: new(shape) for name, shape in shapes.items()}
    segment_chunks, partial = num_chunks, new(0)
    if splits > 1:
        chunk_partial = 2 * B * splits * CHUNK * N
        segment_chunks = min(num_chunks, max(1, PARTIAL_ELEMENTS // chunk_partial))
        partial = new(segment_chunks * chunk_partial)
    per_thread = 2 * CHUNK * N * LANES + (2 * CHUNK + 1) * GROUP * TILE + 8 * CHUNK * TILE
    _call(
        "backward",
        {"splits": splits, "threads": threads, "keep_states": 1, "segment_chunks": segment_chunks},
        {"x": x_BLD, "dt": dt_BLD, "B": B_BLN, "C": C_BLN, "gy": gy_BLD},
        dict(
            A=A_DN,
            gh_last=gh_last_BDN,
            boundary=boundary,
            A_blocked=new(D_padded, N),
            partial=partial,
            gh_blocked=new(B, D_padded, N),
            dA_blocked=new(B, D_padded, N),
            **gradients,
            **weighted,
        ),
        new(threads, per_thread),
    )
    dx, ddt, dA, dB, dC, dh0 = gradients.values()
    return dx, ddt, dA, dB, dC, dh0, weighted.get("dweight")


def _round_up(channels: int) -> int:
    return math.ceil(channels / LANES) * LANES


def _num_threads(x_BLD: Tensor, A_DN: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x_BLD.numel() * A_DN.shape[1] // STATES_PER_THREAD))


def _num_splits(batch: int, channels: int, threads: int) -> int:
    """Parts that a sequence's channels are cut into, so that threads get equal shares."""
    if batch >= 4 * threads:
        return 1  # whole sequences are shares enough, and need no partial sums
    return min(math.ceil(channels / LANES), threads // math.gcd(threads, batch))


def _call(
    direction: str,
    sizes: dict[str, int],
    sequences: dict[str, Tensor],
    blocks: dict[str, Tensor | None],
    scratch: Tensor,
) -> None:
    """Hand the tensors over: ``sequences`` with strides of batch and time, the others contiguous."""
    x_BLD = sequences["x"]
    if is_fake(x_BLD):
        return
    args = _ScanArgs(chunk=CHUNK, scratch_size=scratch.shape[1], scratch=scratch.data_ptr(), **sizes)
    args.batch, args.len, args.channels = x_BLD.shape
    args.states = sequences["B"].shape[2]
    for name, tensor in sequences.items():
        assert tensor.dtype == x_BLD.dtype and (tensor.stride(2) == 1 or tensor.shape[2] == 1), name
        setattr(args, f"{name}_b", tensor.stride(0))
        setattr(args, f"{name}_t", tensor.stride(1))
        setattr(args, name, tensor.data_ptr())
    for name, block in blocks.items():
        if block is not None:
            assert block.dtype == x_BLD.dtype and block.is_contiguous(), name
            setattr(args, name, block.data_ptr())
    library = _library()
    assert isinstance(library, ctypes.CDLL), library
    getattr(library, f"scan_{direction}_{str(x_BLD.dtype).removeprefix('torch.')}")(ctypes.byref(args))
