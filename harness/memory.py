"""Memory meters: what the process held, and what PyTorch's allocator handed out.

Host: the child resets its own high-water mark and reads ``VmHWM``. ``ru_maxrss`` would inherit the
parent's peak, and polling misses bursts. Device: PyTorch's caching allocator counts exactly.
"""

import ctypes
import gc
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_RESET_PEAK_RSS = "5"  # proc(5), clear_refs


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
HOST_ALLOCATOR = "glibc, freed pages kept"


def keep_freed_memory() -> str:
    """Have glibc keep freed memory for the next allocation, as PyTorch does on a GPU.

    By default it returns every block over 32 MB to the kernel at once, and each call then pays for
    having its pages zeroed again: from 64K tokens up that dominates (3.3 s instead of 12 s at 2^20,
    two-layer Mamba of width 64) and bends slopes that are straight. Returns what the record says.
    """
    libc = ctypes.CDLL(None)
    kept = hasattr(libc, "mallopt") and libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)
    return HOST_ALLOCATOR if kept else "the C library's default"


def touch_memory(nbytes: int) -> None:
    """Have the kernel provide so many bytes, but half of what it has left at the most, for what is timed afterwards.

    :func:`keep_freed_memory` keeps them. Without it calls meet fresh pages beyond the first, as long as the heap still
    grows, and the only samples of a long call are such calls: in a virtual machine, whose host has to provide the pages
    too, they took up to four times as long as the next (a convolution at 2^18, 0.65 s and 0.26 s).
    """
    try:
        torch.empty(min(nbytes, host_available_bytes() // 2), dtype=torch.uint8)[:: mmap.PAGESIZE].fill_(0)
    except RuntimeError:  # more than the process may have: its own calls will tell whether that suffices
        return


def let_segments_grow() -> str:
    """Have PyTorch's allocator map a GPU's memory page by page from now on, into segments that grow and shrink.

    By default a segment keeps the size it was asked for, and what is left over in it cannot serve a larger request: a
    cache that grows by concatenation left 36 to 49 GiB of an H200 unused so. Returns what the record says.
    """
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    return "segments that grow (expandable_segments)"


@dataclass(kw_only=True)
class HostPeak:
    """Resident memory around a block of work, in bytes; 0 until the block has ended."""

    baseline_rss_bytes: int = 0
    peak_rss_bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """For a record: empty where the kernel does not let the peak be reset."""
        if not self.peak_rss_bytes:
            return {}
        return {"peak_rss_bytes": self.peak_rss_bytes, "baseline_rss_bytes": self.baseline_rss_bytes}


@contextmanager
def host_peak() -> Iterator[HostPeak]:
    """Measure the peak resident memory of the block, and what was resident when it began.

    Sandboxes without ``/proc/self/clear_refs`` give no figure: a peak that includes what came before
    would be a wrong one.
    """
    gc.collect()
    # glibc keeps freed heap; without this the block would reuse pages that are resident already.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    peak = HostPeak()
    resettable = _reset_peak()
    if resettable:
        peak.baseline_rss_bytes = _status_bytes("VmRSS")
    yield peak
    if resettable:
        peak.peak_rss_bytes = _status_bytes("VmHWM")


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK_RSS)
    except OSError:
        return False
    return True


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {key}")


def available_memory_bytes(device: torch.device) -> int:
    """What a new process could get: free device memory, or the host's MemAvailable."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_available_bytes()


def host_available_bytes() -> int:
    """What can be had without swapping: the kernel's own estimate, or what the process's control groups leave of it."""
    meminfo = _numbers(Path("/proc/meminfo").read_text().replace(":", ""))
    return min(meminfo["MemAvailable"] * 1024, _left_by_control_groups())


def _left_by_control_groups(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Of the tightest limit above this process, as a container has one; far more than any machine has where none is.

    Page cache that is not in use (``inactive_file``) can be had too.
    """
    left = [2**62]
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        own = root / "memory" if controllers else root
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        for group in (own / path.strip("/"), *(own / parent for parent in Path(path.strip("/")).parents)):
            try:
                most = (group / limit).read_text().strip()
                cache = _numbers((group / "memory.stat").read_text()).get("inactive_file", 0)
                if most != "max":
                    left.append(int(most) - int((group / used).read_text()) + cache)
            except OSError:  # seen from inside a container, a group may lie elsewhere
                continue
    return max(0, min(left))


def _numbers(text: str) -> dict[str, int]:
    """Of lines with a name and a number."""
    return {name: int(number) for name, number, *_ in (line.split() for line in text.splitlines())}


def memory_of(work: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Peak memory of ``work``, which builds all that it uses: a pass of its own, never timed.

    Returns the host's ``peak_rss_bytes`` and ``baseline_rss_bytes`` and the allocator's
    ``peak_alloc_bytes``, on CUDA ``peak_reserved_bytes`` too. On a CPU the allocator keeps no count,
    so its events are replayed from the profiler, whose own start-up lies before the baseline.
    """
    if device.type == "cuda":
        load_libraries(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with host_peak() as host:
            work()
            torch.cuda.synchronize(device)
        return host.as_dict() | {
            "peak_alloc_bytes": torch.cuda.max_memory_allocated(device) - before,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    gc.collect()  # what is freed while the profiler looks would count against what is allocated
    # The bare profiler, which leaves its events as they are: making Python objects of all of them took seconds.
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        torch.empty(1)  # the profiler's first event sets up its buffers
        with host_peak() as host:
            kept = work()
    del kept
    return host.as_dict() | {"peak_alloc_bytes": _replayed_peak(profiler)}


@contextmanager
def allocator_peak(device: torch.device, *, above: int) -> Iterator[dict[str, int]]:
    """``peak_alloc_bytes`` of the block, ``above`` so many bytes; in the mapping once the block has ended.

    For a GPU, whose allocator keeps the count anyway, so that what is timed may be measured; on a CPU it stays empty.
    """
    peak: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak["peak_alloc_bytes"] = torch.cuda.max_memory_allocated(device) - above


def load_libraries(device: torch.device) -> None:
    """Start CUDA, and have cuBLAS allocate its workspaces: 32 MiB for each of the two threads of a train step.

    They are the library's, come once a process, and would hide the models at short lengths.
    """
    weight = torch.ones(16, 16, device=device, requires_grad=True)
    (weight @ weight).sum().backward()
    torch.cuda.synchronize(device)


def _replayed_peak(profiler: torch.autograd.profiler.profile) -> int:
    results: Any = profiler.kineto_results
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held = peak = 0
    for _, nbytes in changes:
        held += nbytes
        peak = max(peak, held)
    return peak
