"""Multi-head causal self-attention, with any of the usual positions, all of the past or a window of it.

Vaswani et al., 2017. Positions: rotary (Su et al., arXiv 2104.09864), xPos (Sun et al., arXiv 2212.10554), ALiBi
(Press et al., ICLR 2022), or none; ``absolute`` means none here, and sinusoids that the model adds to its embeddings.

Symbols and shape suffixes: B batch, L sequence length, D d_model, H num_heads, G num_kv_heads, R = H / G query heads
that share a key head, K head dimension (D / H), M positions of a cache, p the position of a step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.ops.attention import causal_attention, causal_attention_flops
from models.ops.decode_attention import decode_attention
from models.ops.positions import alibi_slopes, rotary_tables, rotate, xpos_rates

POSITIONS = ("rope", "xpos", "alibi", "none", "absolute")


class Attention(Mixer):
    """Attention with a static key-value cache: ``max_len`` positions, or a ring of ``window``.

    Args:
        d_model: width D.
        num_heads: H, a divisor of D; with ``rope`` and ``xpos`` D / H must be even.
        positions: how the order of the tokens enters. A model that is told ``absolute`` adds
            :func:`models.ops.positions.sinusoids` to its embeddings; the mixer then does nothing.
        window: how many positions a query sees, its own among them; all if not given.
        bias: whether the projections have one.
        num_kv_heads: G, a divisor of H (grouped queries, Ainslie et al., arXiv 2305.13245); H if not given.

    Raises:
        ValueError: heads that do not divide, unknown positions, a window below 1.
    """

    mixes_channels = True

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int,
        positions: str = "rope",
        window: int | None = None,
        bias: bool = False,
        num_kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r} is not one of {', '.join(POSITIONS)}")
        rotary = positions in ("rope", "xpos")
        if num_heads < 1 or d_model % num_heads or (rotary and d_model // num_heads % 2):
            even = " of even width" if rotary else ""
            raise ValueError(f"d_model={d_model} does not split into {num_heads} heads{even}; change num_heads")
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}; change one of them")
        if window is not None and window < 1:
            raise ValueError(f"window={window} is below 1: a position sees at least itself; raise it")
        self.d_model, self.num_heads, self.num_kv_heads = d_model, num_heads, num_kv_heads
        self.head_dim = d_model // num_heads
        self.positions, self.window, self.rotary = positions, window, rotary
        self.in_proj = nn.Linear(d_model, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    @property
    def label(self) -> str:
        kind = self.positions if self.window is None else f"{self.positions}, window {self.window}"
        return f"Attention ({kind})"

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)

    def _qkv(self, x_BLD: Tensor, positions_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, H, L, K)`` and twice ``(B, G, L, K)``, rotated where positions are rotary."""
        H, G, K = self.num_heads, self.num_kv_heads, self.head_dim
        heads_BXLK = self.in_proj(x_BLD).unflatten(2, (H + 2 * G, K)).transpose(1, 2)  # X = H + 2 G
        q_BHLK, k_BGLK, v_BGLK = heads_BXLK.split((H, G, G), dim=1)
        if self.rotary:
            wide = torch.promote_types(x_BLD.dtype, torch.float32)
            tables = rotary_tables(positions_L, K, dtype=wide)
            if x_BLD.shape[1] == 1:  # together: a step is short, and takes the time of its launches
                q_BHLK, k_BGLK = rotate(heads_BXLK[:, : H + G], *tables).split((H, G), dim=1)
            else:
                q_BHLK, k_BGLK = rotate(q_BHLK, *tables), rotate(k_BGLK, *tables)
        return q_BHLK, k_BGLK, v_BGLK

    def _mix(self, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        if (R := self.num_heads // self.num_kv_heads) > 1:
            k_BGLK, v_BGLK = (t.repeat_interleave(R, dim=1) for t in (k_BGLK, v_BGLK))
        out_BHLK = causal_attention(
            q_BHLK,
            k_BGLK,
            v_BGLK,
            window=self.window,
            slopes_H=alibi_slopes(self.num_heads, q_BHLK.device) if self.positions == "alibi" else None,
            xpos_K=xpos_rates(self.head_dim, q_BHLK.device) if self.positions == "xpos" else None,
        )
        return self.out_proj(out_BHLK.transpose(1, 2).flatten(2))  # (B, L, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._mix(*self._qkv(x_BLD, torch.arange(x_BLD.shape[1], device=x_BLD.device)))

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        L, M = x_BLD.shape[1], state["keys"].shape[2]
        if L > M and self.window != M:
            raise ValueError(f"a prompt of {L} tokens does not fit the cache of {M}; raise max_len")
        q_BHLK, k_BGLK, v_BGLK = self._qkv(x_BLD, torch.arange(L, device=x_BLD.device))
        kept_M = torch.arange(max(0, L - M), L, device=x_BLD.device)
        state["keys"].index_copy_(2, kept_M % M, k_BGLK[:, :, -M:])
        state["values"].index_copy_(2, kept_M % M, v_BGLK[:, :, -M:])
        state["length"].fill_(L)
        return self._mix(q_BHLK, k_BGLK, v_BGLK)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        M = max_len if self.window is None else min(max_len, self.window)
        shape = (batch, self.num_kv_heads, M, self.head_dim)
        return {
            "keys": torch.zeros(shape, device=device, dtype=dtype),
            "values": torch.zeros(shape, device=device, dtype=dtype),
            # A tensor, so that a captured graph reads the position and does not bake it in.
            "length": torch.zeros(1, device=device, dtype=torch.int64),
        }

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        keys_BGMK, values_BGMK, p_1 = state["keys"], state["values"], state["length"]
        M = keys_BGMK.shape[2]
        q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], p_1)
        # A cache shorter than the window must not wrap: past its end, index_copy_ raises an IndexError.
        slot_1 = p_1 % M if self.window == M else p_1
        keys_BGMK.index_copy_(2, slot_1, k_BG1K)
        values_BGMK.index_copy_(2, slot_1, v_BG1K)
        if self.positions in ("alibi", "xpos"):
            out_BHK = self._biased(q_BH1K, keys_BGMK, values_BGMK, slot_1, p_1)
            p_1 += 1
        else:
            p_1 += 1  # now how many slots hold something, at most M; in which order does not matter
            out_BHK = decode_attention(q_BH1K.squeeze(2), keys_BGMK, values_BGMK, p_1)
        return self.out_proj(out_BHK.reshape(x_BD.shape))

    def _biased(self, q_BH1K: Tensor, keys_BGMK: Tensor, values_BGMK: Tensor, slot_1: Tensor, p_1: Tensor) -> Tensor:
        """A step's attention where distance has a say: over the whole cache, under a mask."""
        G, M = keys_BGMK.shape[1:3]
        age_M = (slot_1 - torch.arange(M, device=p_1.device)) % M  # how many positions back a slot was written
        seen_M = age_M <= p_1
        wide = torch.promote_types(q_BH1K.dtype, torch.float32)
        mask: Tensor = seen_M[None]  # (1, M)
        if self.positions == "xpos":
            scale_MK = (xpos_rates(self.head_dim, p_1.device).to(wide) * age_M[:, None]).exp()
            keys_BGMK = (keys_BGMK * scale_MK).to(keys_BGMK.dtype)
        else:
            slopes_GR1 = alibi_slopes(self.num_heads, p_1.device).to(wide).view(G, -1, 1)
            mask = (-slopes_GR1 * age_M).masked_fill(~seen_M, -torch.inf).to(q_BH1K.dtype)[None]  # (1, G, R, M)
        # The query heads that share a key head are its queries.
        q_BGRK = q_BH1K.reshape(-1, G, self.num_heads // G, self.head_dim)
        return F.scaled_dot_product_attention(q_BGRK, keys_BGMK, values_BGMK, attn_mask=mask)

    def op_flops(self, seq_len: int) -> float:
        return causal_attention_flops(seq_len, self.d_model, self.window)
