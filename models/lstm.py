"""LSTM (Hochreiter & Schmidhuber, 1997; with the forget gate of Gers et al., 2000): the classic recurrence.

i, f, o = sigmoid(W x + U h + b),  g = tanh(W x + U h + b),  c = f c + i g,  h = o tanh(c).

Weights, and the order of the gates (i, f, g, o), are those of ``torch.nn.LSTM``, whose kernels run.
Symbols and shape suffixes: B batch, L sequence length, D width.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.base import Mixer, State
from models.ops.context import is_fake, observe


class LSTM(Mixer):
    """One unidirectional LSTM layer of width D."""

    mixes_channels = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.cell = nn.LSTM(d_model, d_model, batch_first=True)

    def init_weights(self, generator: torch.Generator) -> None:
        """PyTorch's own, but for the forget gate, whose bias of 1 lets gradients through at first (Jozefowicz 2015)."""
        bound = 1 / math.sqrt(self.d_model)
        for parameter in self.cell.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        _, _, input_bias, hidden_bias = self._weights()
        forget = slice(self.d_model, 2 * self.d_model)
        nn.init.ones_(input_bias[forget])
        nn.init.zeros_(hidden_bias[forget])

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W and U, ``(4 D, D)``, and their biases."""
        weights = self.cell.weight_ih_l0, self.cell.weight_hh_l0, self.cell.bias_ih_l0, self.cell.bias_hh_l0
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], weights)

    def _run(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if is_fake(x_BLD):
            y_BLD, h_BD, c_BD = _FakeLSTM.apply(x_BLD, torch.is_grad_enabled(), *self.cell.parameters())
        else:
            y_BLD, (h_1BD, c_1BD) = self.cell(x_BLD)
            h_BD, c_BD = h_1BD[0], c_1BD[0]
        B, L, _ = x_BLD.shape
        observe(
            "lstm",
            "cudnn" if x_BLD.is_cuda and torch.backends.cudnn.enabled else "torch",
            forward_flops=B * self.op_flops(L),
            backward_flops=2 * B * self.op_flops(L),
        )
        return y_BLD, h_BD, c_BD

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._run(x_BLD)[0]

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        y_BLD, h_BD, c_BD = self._run(x_BLD)
        state["h"].copy_(h_BD)
        state["c"].copy_(c_BD)
        return y_BLD

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        return {name: torch.zeros(batch, self.d_model, device=device, dtype=dtype) for name in ("h", "c")}

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        W, U, input_bias, hidden_bias = self._weights()
        gates = F.linear(x_BD, W, input_bias) + F.linear(state["h"], U, hidden_bias)
        i_BD, f_BD, g_BD, o_BD = gates.chunk(4, dim=-1)
        state["c"].copy_(f_BD.sigmoid() * state["c"] + i_BD.sigmoid() * g_BD.tanh())
        state["h"].copy_(o_BD.sigmoid() * state["c"].tanh())
        return state["h"].clone()

    def op_flops(self, seq_len: int) -> float:
        # Eight products of D x D a position, five sigmoids and tanhs and four products a channel.
        return (16.0 * self.d_model**2 + 9.0 * self.d_model) * seq_len


class _FakeLSTM(torch.autograd.Function):
    """Allocates what the real one does: without data there is no reason to walk through L steps.

    Fitted to oneDNN's LSTM on a CPU at 1K to 4K positions, in widths of a position: it keeps 15.25 for the
    backward, and takes 8.25 for a forward and about 6 for a backward while they run.
    """

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, needs_grad: bool, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, _, D = x_BLD.shape
        y_BLD = torch.empty_like(x_BLD)
        if needs_grad:
            ctx.save_for_backward(x_BLD, y_BLD, _widths(x_BLD, 15.25), *weights)
        else:
            _scratch = _widths(x_BLD, 8.25)
        return y_BLD, x_BLD.new_empty(B, D), x_BLD.new_empty(B, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh: Tensor, gc: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, _, _, *weights = ctx.saved_tensors
        _scratch = _widths(x_BLD, 5.0)
        return (torch.empty_like(x_BLD), None, *map(torch.empty_like, weights))


def _widths(x_BLD: Tensor, widths: float) -> Tensor:
    return x_BLD.new_empty(int(x_BLD.numel() * widths))
