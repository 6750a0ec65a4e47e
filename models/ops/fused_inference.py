"""Stand-ins for the packages' kernels of generation on fake tensors; :mod:`models.ops.fused_blocks` has the rules.

Read off mamba-ssm 2.3.2 and causal-conv1d 1.7.0. The kernels know no gradients, so that nothing is saved: what a
function here holds besides what it returns is gone when it returns.

Shape suffixes: B batch, L sequence length, F channels, W width of the convolution, N states, H heads, P head_dim,
G groups.
"""

import torch
from torch import Tensor

from models.ops.fused_blocks import dense, scan_states
from models.ops.fused_ssd import SSDSizes, hold_ssd_forward


def causal_conv1d_fn(x_BFL: Tensor, _weight_FW: Tensor, _bias_F: Tensor, **_same_memory: object) -> Tensor:
    """As ``causal_conv1d.causal_conv1d_fn``: like ``x``, with channels or positions adjacent as there."""
    return torch.empty_like(x_BFL if 1 in x_BFL.stride()[1:] else x_BFL.contiguous())


def causal_conv1d_update(x_BF: Tensor, *_weights: Tensor, **_same_memory: object) -> Tensor:
    """As ``causal_conv1d.causal_conv1d_update``: ``(B, F)``; the window is not shifted."""
    return torch.empty_like(x_BF)


def selective_scan_fn(
    u_BFL: Tensor,
    delta_BFL: Tensor,
    A_FN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    _D_F: Tensor,
    *,
    z: Tensor,
    **_same_memory: object,
) -> tuple[Tensor, Tensor]:
    """As ``selective_scan_fn`` of mamba-ssm with a gate and its last state: ``(B, F, L)`` and ``(B, F, N)``.

    The last state is a view of the states of chunks, float32, which live as long as it does.
    """
    _u, delta, _B, _C, z = (dense(t) for t in (u_BFL, delta_BFL, B_BNL, C_BNL, z))
    _ungated, states, gated = torch.empty_like(delta), scan_states(delta, A_FN), torch.empty_like(z)
    return gated, states[:, :, -1, 1::2]


def mamba_chunk_scan_combined(
    x_BLHP: Tensor,
    _dt_BLH: Tensor,
    _A_H: Tensor,
    B_BLGN: Tensor,
    _C_BLGN: Tensor,
    chunk_size: int,
    **_same_memory: object,
) -> tuple[Tensor, Tensor]:
    """As the function of that name with its last state: ``(B, L, H, P)`` and, float32, ``(B, H, P, N)``."""
    (batch, length, heads, head_dim), (groups, d_state) = x_BLHP.shape, B_BLGN.shape[2:]
    sizes = SSDSizes(batch, length, heads, head_dim, groups, d_state, chunk_size)
    out, *_held, last_state = hold_ssd_forward(x_BLHP, sizes)
    return out.view(x_BLHP.shape), last_state


def selective_state_update(_state: Tensor, x: Tensor, *_weights: Tensor, **_same_memory: object) -> Tensor:
    """As the function of that name, of channels or of heads: like ``x``; the state is not moved on."""
    return torch.empty_like(x)
