"""minGRU (Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201, section 3.1), as an example of a model
of your own. ``seqbench check docs/examples/min_gru.py:factory`` puts it to the conformance suite.

A GRU whose gate and candidate depend on the input alone, and not on the state before:

    z_t = sigmoid(W_z x_t + b_z),  c_t = W_h x_t + b_h,  h_t = (1 - z_t) h_{t-1} + z_t c_t

so that all positions can be computed at once. The paper does it with a parallel scan of logarithms, for which
its candidates must be positive. Here the scan multiplies and adds: every factor lies between 0 and 1, so that no
product grows, nothing is divided, and candidates keep their sign.

Symbols and shape suffixes: B batch, L sequence length, D width. z: the update gate; c: the candidate (h tilde
in the paper); h: the state. ``keep`` is 1 - z, ``write`` is z c.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.model import SequenceModel


class MinGRU(Mixer):
    """One minGRU layer of width D, and a projection of its output."""

    mixes_channels = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 2 * d_model)  # W_z and W_h
        self.out_proj = nn.Linear(d_model, d_model, bias=False)  # the model scales it by its depth

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        init_linear(self.out_proj, generator)

    def _keep_and_write(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, D)`` each, in float32 or wider: long products of factors near 1 need the digits."""
        gate, candidate = self.in_proj(x).to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        return torch.sigmoid(-gate), torch.sigmoid(gate) * candidate  # sigmoid(-g) is 1 - sigmoid(g), exactly

    def _states(self, x_BLD: Tensor) -> Tensor:
        """h of every position, ``(B, L, D)``."""
        return scan(*self._keep_and_write(x_BLD))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out_proj(self._states(x_BLD).to(x_BLD.dtype))  # (B, L, D)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=wide)}

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        h_BLD = self._states(x_BLD)
        state["h"].copy_(h_BLD[:, -1])
        return self.out_proj(h_BLD.to(x_BLD.dtype))

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        keep_BD, write_BD = self._keep_and_write(x_BD)
        state["h"].mul_(keep_BD).add_(write_BD)  # in place: a captured CUDA graph replays it
        return self.out_proj(state["h"].to(x_BD.dtype))

    def op_flops(self, seq_len: int) -> float:
        # Two sigmoids and a product; three operations for each doubling of the scan.
        return (3.0 + 3.0 * math.ceil(math.log2(max(seq_len, 2)))) * self.d_model * seq_len


def scan(keep_BLD: Tensor, write_BLD: Tensor) -> Tensor:
    """``h_t = keep_t h_{t-1} + write_t`` from h = 0, by doubling (Hillis & Steele, 1986): ``(B, L, D)``.

    After the step with stride s a position holds what its last 2 s positions wrote, and what it keeps of the rest.
    Time and, for the backward pass, memory grow as L log L.
    """
    stride, seq_len = 1, keep_BLD.shape[1]
    while stride < seq_len:
        write_BLD = write_BLD + keep_BLD * _delayed(write_BLD, stride)
        keep_BLD = keep_BLD * _delayed(keep_BLD, stride)
        stride *= 2
    return write_BLD


def _delayed(x_BLD: Tensor, stride: int) -> Tensor:
    """Later by ``stride`` positions; zeros come before the first."""
    return F.pad(x_BLD[:, :-stride], (0, 0, stride, 0))


def factory(*, vocab_size: int) -> SequenceModel:
    """Two layers of width 64 with MLPs: about as many parameters as the suite's own tiny models have."""
    return SequenceModel(vocab_size=vocab_size, d_model=64, mixers=[MinGRU(64) for _ in range(2)], d_mlp=108)
