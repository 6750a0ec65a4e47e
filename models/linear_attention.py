"""Linear attention with a state of constant size (Katharopoulos et al., arXiv 2006.16236).

Softmax's ``exp(q k)`` becomes ``phi(q) phi(k)`` with ``phi(u) = elu(u) + 1``, positive, so that the sums over the past
(eq. 9) ``S = sum_j phi(k_j) v_j^T`` and (eq. 10) ``Z = sum_j phi(k_j)`` need no attention matrix (sections 3.2, 3.3):
``out_i = phi(q_i) S_i / phi(q_i) Z_i``. Z is the sum of one more value channel that is always 1.

Symbols and shape suffixes: B batch, L sequence length, D d_model, H num_heads, K head width (D / H), P = K + 1 the
value channels with the one of the normaliser.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.ops.ssd import ssd, ssd_flops


def positive(u: Tensor) -> Tensor:
    """``elu(u) + 1``, without the digits that adding 1 to a number near -1 would lose."""
    return torch.where(u > 0, u + 1, u.clamp_max(0).exp())


class LinearAttention(Mixer):
    """Multi-head causal linear attention. Raises ValueError for a width that does not split into the heads."""

    mixes_channels: ClassVar[bool] = True

    def __init__(self, d_model: int, *, num_heads: int) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} does not split into {num_heads} heads; change num_heads")
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q) and phi(k) ``(…, H, K)``, and the values with a 1 behind them ``(…, H, P)`` in float32 at least."""
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        # Wide, since both sums grow with the length: float16 ends at 65504.
        v = F.pad(v.to(torch.promote_types(v.dtype, torch.float32)), (0, 1), value=1.0)
        return positive(q), positive(k), v

    def _normalised(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """``(…, H, P)`` sums to ``(…, D)``. A bound keeps features that have all underflowed from giving 0 / 0."""
        tiny = torch.finfo(y.dtype).tiny
        return self.out_proj((y[..., :-1] / y[..., -1:].clamp_min(tiny)).flatten(-2).to(dtype))

    def _parallel(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        q_BLHK, k_BLHK, v_BLHP = self._features(x_BLD)
        y_BLHP, h_BHPK = ssd(v_BLHP, None, k_BLHK, q_BLHK)
        return self._normalised(y_BLHP, x_BLD.dtype), h_BHPK

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._parallel(x_BLD)[0]

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        out_BLD, h_BHPK = self._parallel(x_BLD)
        state["h"].copy_(h_BHPK)
        return out_BLD

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        shape = (batch, self.num_heads, self.head_dim + 1, self.head_dim)
        return {"h": torch.zeros(shape, device=device, dtype=wide)}

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        h_BHPK = state["h"]
        q_BHK, k_BHK, v_BHP = (t.to(h_BHPK.dtype) for t in self._features(x_BD))
        h_BHPK.addcmul_(v_BHP[..., None], k_BHK[:, :, None])
        return self._normalised(torch.einsum("bhpk,bhk->bhp", h_BHPK, q_BHK), x_BD.dtype)

    def op_flops(self, seq_len: int) -> float:
        width = self.head_dim
        return ssd_flops(
            seq_len=seq_len, heads=self.num_heads, head_dim=width + 1, d_state=width, groups=self.num_heads
        )[0]
