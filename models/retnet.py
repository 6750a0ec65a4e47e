"""Retention: linear attention whose heads forget at fixed rates (RetNet, Sun et al., arXiv 2307.08621).

``S_n = gamma S_{n-1} + k_n v_n^T``, ``out_n = q_n S_n`` (eq. 6) with ``gamma_h = 1 - 2^(-5-h)`` (eq. 8), q and k
rotated by angles that grow with the position (section 2.1), a group norm over each head and a swish gate (eq. 8).
Values are twice as wide as queries and keys, as the paper has them where it compares with Transformers of equal size.
The paper's three normalisations of the scores (section 2.1) scale a head's output by numbers that its norm takes out
again; only ``1 / sqrt(K)`` is kept, for the range of half precisions.

Symbols and shape suffixes: B batch, L sequence length, D d_model, H num_heads, K query and key width (D / H),
P value width (value_expand K), E all values (H P).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.ops.positions import rotary_tables, rotate
from models.ops.ssd import ssd, ssd_flops

GROUP_NORM_EPS = 1e-5


class RetNet(Mixer):
    """Multi-scale retention. Raises ValueError for a width that does not split into heads of even width."""

    mixes_channels: ClassVar[bool] = True

    def __init__(self, d_model: int, *, num_heads: int, value_expand: int = 2) -> None:
        super().__init__()
        if d_model % num_heads or (d_model // num_heads) % 2:
            raise ValueError(f"d_model={d_model} does not split into {num_heads} heads of even width; change num_heads")
        self.d_model, self.num_heads, self.head_dim = d_model, num_heads, d_model // num_heads
        self.value_dim = value_expand * self.head_dim
        d_value = value_expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d_model + 2 * d_value, bias=False)
        self.group_norm = nn.GroupNorm(num_heads, d_value, eps=GROUP_NORM_EPS)
        self.out_proj = nn.Linear(d_value, d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)
        nn.init.ones_(self.group_norm.weight)
        nn.init.zeros_(self.group_norm.bias)

    def _log_decay(self, device: torch.device) -> Tensor:
        """``log gamma`` of each head, ``(H,)``, in float64: at the slowest, float32 would lose its digits."""
        return torch.log1p(-(2.0 ** (-5 - torch.arange(self.num_heads, device=device, dtype=torch.float64))))

    def _project(self, x_BLD: Tensor, positions_L: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q and k, rotated, ``(B, L, H, K)``; v ``(B, L, H, P)``; the gate ``(B, L, E)``."""
        d_value = self.num_heads * self.value_dim
        q, k, v, gate_BLE = self.in_proj(x_BLD).split([self.d_model, self.d_model, d_value, d_value], dim=-1)
        q_BLHK, k_BLHK, v_BLHP = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        cos_L1K, sin_L1K = (table[:, None] for table in rotary_tables(positions_L, self.head_dim))
        return (
            rotate(q_BLHK, cos_L1K, sin_L1K),
            rotate(k_BLHK, cos_L1K, sin_L1K) * self.head_dim**-0.5,
            v_BLHP,
            gate_BLE,
        )

    def _output(self, y_BLHP: Tensor, gate_BLE: Tensor) -> Tensor:
        # GroupNorm itself wants channels before positions, and would mix positions.
        normed_BLHP = F.layer_norm(y_BLHP, y_BLHP.shape[-1:], eps=GROUP_NORM_EPS)
        weight_E, bias_E = (t.to(y_BLHP.dtype) for t in (self.group_norm.weight, self.group_norm.bias))
        return self.out_proj(torch.addcmul(bias_E, normed_BLHP.flatten(2), weight_E) * F.silu(gate_BLE))

    def _parallel(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        positions_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        q_BLHK, k_BLHK, v_BLHP, gate_BLE = self._project(x_BLD, positions_L)
        log_decay_H = self._log_decay(x_BLD.device).to(torch.promote_types(x_BLD.dtype, torch.float32))
        y_BLHP, h_BHPK = ssd(v_BLHP, log_decay_H, k_BLHK, q_BLHK)
        return self._output(y_BLHP, gate_BLE), h_BHPK

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._parallel(x_BLD)[0]

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        out_BLD, h_BHPK = self._parallel(x_BLD)
        state["h"].copy_(h_BHPK)
        state["length"].fill_(x_BLD.shape[1])
        return out_BLD

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "h": torch.zeros(batch, self.num_heads, self.value_dim, self.head_dim, device=device, dtype=wide),
            # A tensor, so that a captured graph reads the position and does not bake it in.
            "length": torch.zeros(1, device=device, dtype=torch.int64),
        }

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        h_BHPK, position_1 = state["h"], state["length"]
        q_B1HK, k_B1HK, v_B1HP, gate_B1E = self._project(x_BD[:, None], position_1)
        q_BHK, k_BHK, v_BHP = (t[:, 0].to(h_BHPK.dtype) for t in (q_B1HK, k_B1HK, v_B1HP))
        h_BHPK.mul_(self._log_decay(x_BD.device).exp().to(h_BHPK.dtype)[:, None, None])
        h_BHPK.addcmul_(v_BHP[..., None], k_BHK[:, :, None])
        position_1 += 1
        y_BHP = torch.einsum("bhpk,bhk->bhp", h_BHPK, q_BHK).to(x_BD.dtype)
        return self._output(y_BHP[:, None], gate_B1E)[:, 0]

    def op_flops(self, seq_len: int) -> float:
        return ssd_flops(
            seq_len=seq_len,
            heads=self.num_heads,
            head_dim=self.value_dim,
            d_state=self.head_dim,
            groups=self.num_heads,
        )[0]
