"""Transformer++: the attention baseline (rotary positions, SwiGLU, RMSNorm, no biases).

Attention: Vaswani et al., 2017; rotary positions: Su et al., arXiv 2104.09864; the recipe is the
"improved" one of Mamba, arXiv 2312.00752, App. E.2.1.

Symbols and shape suffixes: B batch, L sequence length, D d_model, H num_heads, K head dimension
(D / H), M the longest sequence of a cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, SequenceModel, State, init_linear
from models.ops.attention import causal_attention, causal_attention_flops

ROPE_BASE = 10_000.0


def rotary_tables(positions_L: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``(L, K / 2)`` in float32: angles up to 2^20 need more bits than bf16 has."""
    frequencies = ROPE_BASE ** (
        -torch.arange(0, head_dim, 2, device=positions_L.device, dtype=torch.float32) / head_dim
    )
    angles = positions_L.to(torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K/2) of the last axis by the given angles."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Attention(Mixer):
    """Multi-head causal self-attention with rotary positions and a static key-value cache."""

    def __init__(self, d_model: int, *, num_heads: int) -> None:
        super().__init__()
        if d_model % num_heads or (d_model // num_heads) % 2:
            raise ValueError(f"d_model={d_model} does not split into {num_heads} heads of even width; change num_heads")
        self.d_model, self.num_heads, self.head_dim = d_model, num_heads, d_model // num_heads
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)

    def _qkv(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, L, _ = x_BLD.shape
        qkv_3BHLK = self.in_proj(x_BLD).view(B, L, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        cos_LK, sin_LK = rotary_tables(torch.arange(L, device=x_BLD.device), self.head_dim)
        q_BHLK, k_BHLK, v_BHLK = qkv_3BHLK.unbind(0)
        return rotate(q_BHLK, cos_LK, sin_LK), rotate(k_BHLK, cos_LK, sin_LK), v_BHLK

    def _merge(self, out_BHLK: Tensor) -> Tensor:
        return self.out_proj(out_BHLK.transpose(1, 2).flatten(2))  # (B, L, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._merge(causal_attention(*self._qkv(x_BLD)))

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        q_BHLK, k_BHLK, v_BHLK = self._qkv(x_BLD)
        L = x_BLD.shape[1]
        if (room := state["keys"].shape[2]) < L:
            raise ValueError(f"a prompt of {L} tokens does not fit the cache of {room}; raise max_len")
        state["keys"][:, :, :L] = k_BHLK
        state["values"][:, :, :L] = v_BHLK
        state["length"].fill_(L)
        return self._merge(causal_attention(q_BHLK, k_BHLK, v_BHLK))

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        shape = (batch, self.num_heads, max_len, self.head_dim)
        return {
            "keys": torch.zeros(shape, device=device, dtype=dtype),
            "values": torch.zeros(shape, device=device, dtype=dtype),
            # A tensor, so that a captured graph reads the position and does not bake it in.
            "length": torch.zeros(1, device=device, dtype=torch.int64),
        }

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        B, D = x_BD.shape
        keys_BHMK, values_BHMK, position_1 = state["keys"], state["values"], state["length"]
        q_BHK, k_BHK, v_BHK = self.in_proj(x_BD).view(B, 3, self.num_heads, self.head_dim).unbind(1)
        cos_1K, sin_1K = rotary_tables(position_1, self.head_dim)
        keys_BHMK.index_copy_(2, position_1, rotate(k_BHK, cos_1K, sin_1K)[:, :, None])
        values_BHMK.index_copy_(2, position_1, v_BHK[:, :, None])
        seen_M = torch.arange(keys_BHMK.shape[2], device=x_BD.device) <= position_1
        out_BH1K = F.scaled_dot_product_attention(
            rotate(q_BHK, cos_1K, sin_1K)[:, :, None], keys_BHMK, values_BHMK, attn_mask=seen_M[None]
        )
        position_1 += 1
        return self.out_proj(out_BH1K.reshape(B, D))

    def op_flops(self, seq_len: int) -> float:
        return causal_attention_flops(seq_len, self.d_model)


def transformer(*, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_mlp: int) -> SequenceModel:
    """A Transformer++ language model."""
    mixers: list[Mixer] = [Attention(d_model, num_heads=num_heads) for _ in range(num_layers)]
    return SequenceModel(vocab_size=vocab_size, d_model=d_model, mixers=mixers, d_mlp=d_mlp)
