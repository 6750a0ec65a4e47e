"""The stand-in for mamba-ssm's state space dual on fake tensors, and what that holds within a fused block.

:mod:`models.ops.fused_blocks` has the rules. Read off ``mamba_ssm.ops.triton.ssd_combined`` 2.3.2.

Shape suffixes: B batch, L sequence length, H heads, P head_dim, G groups, N states, K chunks, Q steps of a chunk,
S splits of a group's heads.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.ssd_chunked import CHUNK

NUM_SMS = 132
"""Multiprocessors of an H100 or H200: the backward splits the heads of a group until there are programs for all of
them. Asking the device would start CUDA in the planning process."""
DD_TILES = 8  # of a chunk's 256 steps: partial sums of D's and the decays' gradients
STATE_TILE = 64  # of a head's states: partial sums of a chunk's decay


class FakeMambaSSD(torch.autograd.Function):
    """mamba-ssm's ``MambaChunkScanCombinedFn`` without D, gate, bias and softplus: ``y (B, L, H, P)``, last state."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (batch, length, heads, head_dim), (groups, d_state) = x.shape, B.shape[2:]
        ctx.sizes = SSDSizes(batch, length, heads, head_dim, groups, d_state, CHUNK["mamba-ssm"])
        y, decay_sums, _dt, _states, h_last = hold_ssd_forward(x, ctx.sizes)
        ctx.save_for_backward(y, x, dt, decay_sums, A, B, C, h0)
        return y.view(x.shape), h_last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _dh_last: Tensor) -> tuple[Tensor | None, ...]:
        _, x, dt, _, A, B, C, h0 = ctx.saved_tensors
        _dy = dy.contiguous()
        dx, dB, dC, ddt = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, B, C, dt))
        hold_ssd_backward(x, dt, ctx.sizes)
        return dx, ddt, torch.empty_like(A), dB, dC, None if h0 is None else torch.empty_like(h0)


class SSDSizes:
    """Shapes of what the state space dual's kernels hold."""

    def __init__(
        self, batch: int, length: int, heads: int, head_dim: int, groups: int, d_state: int, chunk: int
    ) -> None:
        num_chunks = math.ceil(length / chunk)
        self.heads, self.head_dim, self.groups = heads, head_dim, groups
        self.out = (batch, length, heads * head_dim)
        self.per_step = (batch, heads, num_chunks, chunk)
        self.scores = (batch, num_chunks, groups, chunk, chunk)
        self.states = (batch, num_chunks, heads, head_dim, d_state)
        self.last_state = (batch, heads, head_dim, d_state)
        self.dBC = (batch, length, groups, d_state)
        self.state_tiles = (batch, heads, num_chunks, math.ceil(head_dim * d_state / STATE_TILE))
        heads_a_group = heads // groups
        heads_a_program = max(min(math.ceil(batch * num_chunks * heads / NUM_SMS), heads_a_group), 1)
        self.splits = math.ceil(heads_a_group / heads_a_program)


def hold_ssd_forward(like: Tensor, sizes: SSDSizes) -> tuple[Tensor, ...]:
    """``out`` in the dtype of ``like``, and what is held beside it until the block returns."""
    wide = functools.partial(torch.empty, dtype=torch.float32, device=like.device)
    decay_sums, dt = wide(sizes.per_step), wide(sizes.per_step)
    wide_states = wide(sizes.states)
    states, last_state = like.new_empty(sizes.states), wide(sizes.last_state)
    del wide_states
    _scores = wide(sizes.scores)
    return like.new_empty(sizes.out), decay_sums, dt, states, last_state


def hold_ssd_backward(like: Tensor, dt_BLH: Tensor, sizes: SSDSizes) -> None:
    """What the scan's backward holds while it runs, with x, B and C as one tensor ``like``.

    Most of it is the states of chunks and their gradients (float32, then narrow too, then narrow alone), scores
    twice, and, at short lengths, gradients of B, C and the scores once for each split of the heads.
    """
    wide = functools.partial(torch.empty, dtype=torch.float32, device=like.device)
    held: list[Tensor] = [dt_BLH.clone(), wide(sizes.per_step), wide(sizes.per_step), wide(sizes.scores)]
    own_states = wide(sizes.states)  # of each chunk alone
    wide_states, last_state = wide(sizes.states), wide(sizes.last_state)
    del own_states
    wide_dstates, dstates = wide(sizes.states), like.new_empty(sizes.states)
    states = wide_states if like.dtype == torch.float32 else like.new_empty(sizes.states)
    held += [last_state, states, dstates, wide(sizes.state_tiles).sum(-1)]
    del wide_states, wide_dstates
    # x's gradient has its place already; D's and dt's.
    batch, heads, num_chunks, chunk = sizes.per_step
    held += [wide(DD_TILES, batch, num_chunks, heads).sum((0, 1, 2)), wide(sizes.per_step)]
    for _ in ("B", "C"):  # its gradient, and its part of the decays'
        held.append(wide(sizes.per_step))
        held.append(_summed_over_splits(wide, sizes.dBC, sizes.splits))
    held.append(_summed_over_splits(wide, sizes.scores, sizes.splits))
    suffix_sums = wide(sizes.per_step).flip(-1)
    suffix_sums = suffix_sums.cumsum(-1)
    suffix_sums = suffix_sums.flip(-1)
    ddecay = wide(batch, heads, num_chunks, DD_TILES, chunk).sum(3)
    ddecay += suffix_sums + suffix_sums


def _summed_over_splits(wide: Callable[..., Tensor], shape: tuple[int, ...], splits: int) -> Tensor:
    """A gradient that each of the splits has its own part of."""
    return wide(*shape[:2], splits, *shape[2:]).sum(2)
