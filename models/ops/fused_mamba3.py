"""The stand-in for mamba-ssm's Mamba-3 operator on fake tensors; :mod:`models.ops.fused_blocks` has the rules.

It was read off mamba-ssm 2.3.2; descriptors of tensors, 128 bytes a program, are left out. Shape suffixes: B batch,
L sequence length, H heads, P head_dim, N d_state, S angles, K chunks.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STATE_BLOCK = 64  # of a head's states: each has its own part of the gradients of scale and gamma


def mamba3_siso_combined(
    *,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    D: Tensor,
    Z: Tensor,
    chunk_size: int,
) -> Tensor:
    """As the function of that name in ``mamba_ssm.ops.triton.mamba3``: ``(B, L, H, P)`` in bfloat16, without data.

    Args as there: Q and K ``(B, L, 1, N)``, V and Z ``(B, L, H, P)``, ADT, DT and Trap ``(B, H, L)``, biases
    ``(H, N)``, Angles ``(B, L, H, S)``, D ``(H,)``.
    """
    Q, K, V, Trap, Angles, Z = (t.to(torch.bfloat16) for t in (Q, K, V, Trap, Angles, Z))
    return FakeMamba3.apply(Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D, Z, chunk_size)


class FakeMamba3(torch.autograd.Function):
    """mamba-ssm's ``_Mamba3Function`` without states that come in or go out.

    In bytes a position and head:

    ==================  ====================================================================================
    saved               Q and K rotated 4 N, output before and after the gate 4 P, angles and their sums 4 S, the
                        states of chunks 2 P N / 64, five floats; and the arguments, as views where they are such
    forward, at most    saved, and dense copies of V and Z 4 P and of what is ``(B, H, L)``
    backward, at most   saved, and gradients of Q and K by head 4 N, of V, Z and the output 6 P, V again 2 P or
                        partial sums of the biases' gradients 8 N / 64
    ==================  ====================================================================================
    """

    @staticmethod
    def forward(
        ctx: Any,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        ADT: Tensor,
        DT: Tensor,
        Trap: Tensor,
        Q_bias: Tensor,
        K_bias: Tensor,
        Angles: Tensor,
        D: Tensor,
        Z: Tensor,
        chunk: int,
    ) -> Tensor:
        (B, L, H, P), N = V.shape, Q.shape[-1]
        num_chunks = math.ceil(L / chunk)
        wide = functools.partial(torch.empty, dtype=torch.float32, device=V.device)
        angles = torch.empty_like(Angles)  # summed
        _last_angles = Angles.new_empty(B, H, Angles.shape[-1])
        dense = [t.contiguous() for t in (Q, K, V, ADT, DT, Trap, Q_bias, K_bias, angles, D, Z)]
        out = V.new_empty(B, L, H, P)
        states, decay_sums, chunk_decays, ungated = None, None, None, None
        if any(ctx.needs_input_grad):
            states = V.new_empty(B, H, P, num_chunks * N)
            decay_sums, chunk_decays = wide(B, H, L), wide(B, H, num_chunks)
            ungated = V.new_empty(B, L, H, P)
        rotated_Q, scaled_K = Q.new_empty(B, L, H, N), K.new_empty(B, L, H, N)
        products, scale, gamma = wide(B, H, L), wide(B, H, L), wide(B, H, L)
        del dense
        if states is not None:
            ctx.chunk = chunk
            used = (Q, K, V, DT, Trap, Angles, angles, Z, decay_sums, rotated_Q, scaled_K)
            kept = (ADT, Q_bias, K_bias, D, out, ungated, states, chunk_decays, products, scale, gamma)
            ctx.save_for_backward(*used, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        Q, K, V, DT, Trap, Angles, angles, Z, decay_sums, rotated_Q, scaled_K, *_kept = ctx.saved_tensors
        (B, L, H, P), N = V.shape, Q.shape[-1]
        wide = functools.partial(torch.empty, dtype=torch.float32, device=V.device)
        dZ, dungated = torch.empty_like(Z, dtype=dout.dtype), torch.empty_like(dout)
        # The recurrence.
        _dense = [V.contiguous(), dungated.contiguous()]
        drotated_Q, dscaled_K, dV = torch.empty_like(rotated_Q), torch.empty_like(scaled_K), V.new_empty(B, L, H, P)
        dADT, dproducts = torch.empty_like(decay_sums), torch.empty_like(decay_sums)
        dD = wide(B, H).sum(0)
        del _dense
        # Rotation and biases.
        _angles = angles.contiguous()
        dQ, dK = Q.new_empty(Q.shape), K.new_empty(K.shape)
        dangles = angles.new_empty(angles.shape)
        blocks = max(1, N // STATE_BLOCK)
        dscale, dgamma = wide(B, H, blocks, L), wide(B, H, blocks, L)
        bias_parts = [wide(B, math.ceil(L / ctx.chunk), H, N) for _ in range(2)]
        dscale = dscale.sum(2)
        dgamma = dgamma.sum(2)
        dQ_bias, dK_bias = (part.sum((0, 1)) for part in bias_parts)
        del _angles, bias_parts
        # Step sizes and shares.
        wide_trap = Trap.float()
        _dense = [dscale.contiguous(), dgamma.contiguous(), DT.contiguous(), wide_trap.contiguous()]
        dDT, dTrap = torch.empty_like(_dense[2], dtype=torch.float32), torch.empty_like(_dense[3])
        del _dense, wide_trap
        dAngles, dDT_angles = torch.empty_like(Angles), torch.empty_like(DT)
        dDT = dDT + dDT_angles
        del drotated_Q, dscaled_K, dungated, dproducts, dangles, dscale, dgamma, dDT_angles  # held until here
        return dQ, dK, dV, dADT, dDT, dTrap, dQ_bias, dK_bias, dAngles, dD, dZ, None
