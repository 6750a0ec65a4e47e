"""How many requests are read at once: a number of rows, or as many tokens as memory allows."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from harness.outcomes import is_out_of_memory
from models import Model

CPU_TOKENS = 8192
"""Enough to keep the cores busy; more only costs memory."""
MAX_GPU_TOKENS = 131_072
"""Beyond, no GPU becomes faster, and 32-bit offsets within kernels come near."""
MAX_ROWS = 512
PROBE_LENGTH = 1024
FREE_SHARE = 0.5
"""Of the free memory; a longest batch's needs are extrapolated from one of ``PROBE_LENGTH`` tokens."""

T = TypeVar("T")


class TokenBudget:
    """The size of batches; found out once and kept for all tasks of a run.

    Args:
        batch_size: rows of every batch; None for as many as ``tokens`` allow, which is halved, for good, where memory
            runs out.
        tokens: of a batch, padding included.
    """

    def __init__(self, *, batch_size: int | None = None, tokens: int = CPU_TOKENS) -> None:
        if (batch_size is not None and batch_size < 1) or tokens < 1:
            raise ValueError(f"batch size {batch_size} and token budget {tokens} must be at least 1")
        self.batch_size, self.tokens = batch_size, tokens

    @classmethod
    def measured(cls, model: Model, device: torch.device) -> "TokenBudget":
        """From the GPU's free memory and what a short forward pass takes of it; on a CPU a fixed number."""
        return cls(tokens=_gpu_tokens(model, device) if device.type == "cuda" else CPU_TOKENS)

    def rows(self, length: int) -> int:
        """How many requests of ``length`` tokens make a batch; at least one."""
        return self.batch_size or max(1, min(MAX_ROWS, self.tokens // max(length, 1)))

    def run(self, items: Sequence[T], length: Callable[[T], int], work: Callable[[Sequence[T]], None]) -> None:
        """Hand all items to ``work`` in batches of near-equal lengths, the longest first.

        ``work`` may raise an out-of-memory error, and must then have done nothing: it gets those items again, fewer
        at a time. The error of a single item, or of a given ``batch_size``, is raised.
        """
        ordered = sorted(items, key=length, reverse=True)
        done = 0
        while done < len(ordered):
            longest = length(ordered[done])
            batch = ordered[done : done + self.rows(longest)]
            if self._fits(batch, work):
                done += len(batch)
            else:
                # Only now, when the error is gone whose traceback held the batch's tensors.
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                self.tokens = max(1, len(batch) * longest // 2)

    def _fits(self, batch: Sequence[T], work: Callable[[Sequence[T]], None]) -> bool:
        try:
            work(batch)
        except (RuntimeError, MemoryError) as error:
            if self.batch_size is not None or len(batch) == 1 or not is_out_of_memory(error):
                raise
            return False
        return True


@torch.no_grad()
def _gpu_tokens(model: Model, device: torch.device) -> int:
    ids_BL = torch.zeros(1, PROBE_LENGTH, dtype=torch.int64, device=device)
    model.hidden(ids_BL)  # kernels are compiled and libraries take their workspaces
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model.hidden(ids_BL)
    torch.cuda.synchronize(device)
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    # What PyTorch holds without using it is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    tokens = int(FREE_SHARE * free / taken * PROBE_LENGTH)
    return max(PROBE_LENGTH, min(MAX_GPU_TOKENS, tokens))
