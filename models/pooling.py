"""A causal pooling: p samples side by side become a frame of a slower, wider stage, and come back a frame later.

Shape suffixes: B batch, L samples, D width, l frames (L / p, rounded down), E width of frames, p samples of a frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import State, init_linear


class Pooling(nn.Module):
    """Down: p samples of width D to a frame of width E. Up: the reverse, a frame later."""

    def __init__(self, d_outer: int, d_inner: int, factor: int) -> None:
        super().__init__()
        self.d_outer, self.d_inner, self.factor = d_outer, d_inner, factor
        self.down_proj = nn.Linear(factor * d_outer, d_inner, bias=False)
        self.up_proj = nn.Linear(d_inner, factor * d_outer, bias=False)

    def down(self, x_BLD: Tensor) -> Tensor:
        """``(B, L, D)`` to ``(B, l, E)``; samples of an unfinished frame are left out, nothing has heard them yet."""
        whole = x_BLD.shape[1] // self.factor
        frames = (x_BLD.shape[0], whole, self.factor * self.d_outer)
        return self.down_proj(x_BLD[:, : whole * self.factor].reshape(frames))

    def up(self, y_BlE: Tensor, length: int) -> Tensor:
        """``(B, l, E)`` to ``(B, L, D)``: frame i in the place of frame i + 1, zeros in the first."""
        B, frames, _ = y_BlE.shape
        y_BLD = self.up_proj(y_BlE).view(B, frames * self.factor, self.d_outer)
        return F.pad(y_BLD, (0, 0, self.factor, self.factor))[:, :length]

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        """``heard``: the last p samples on the way down; ``due``: the next p on the way up."""
        shape = (batch, self.factor, self.d_outer)
        return {key: torch.zeros(shape, device=device, dtype=dtype) for key in ("heard", "due")}

    def prefill_down(self, x_BLD: Tensor, state: State) -> Tensor:
        """As :meth:`down`; leaves the last p samples in ``heard``."""
        tail_BpD = x_BLD[:, -self.factor :]
        state["heard"].zero_()
        state["heard"][:, self.factor - tail_BpD.shape[1] :] = tail_BpD
        return self.down(x_BLD)

    def prefill_up(self, y_BlE: Tensor, length: int, state: State) -> Tensor:
        """As :meth:`up`; leaves in ``due`` what belongs to the samples after ``length``."""
        later_BLD = self.up(y_BlE, length + self.factor)
        started = length % self.factor
        due_BpD = later_BLD[:, length : length + self.factor - started]
        state["due"].zero_()
        state["due"][:, : due_BpD.shape[1]] = due_BpD
        return later_BLD[:, :length]

    def step_down(self, x_BD: Tensor, state: State) -> None:
        state["heard"].copy_(state["heard"].roll(-1, dims=1))
        state["heard"][:, -1] = x_BD

    def step_up(self, state: State) -> Tensor:
        y_BD = state["due"][:, 0].clone()
        state["due"].copy_(state["due"].roll(-1, dims=1))
        return y_BD

    def frame(self, state: State) -> Tensor:
        """The frame ``(B, E)`` of the last p samples."""
        return self.down_proj(state["heard"].flatten(1))

    def finish_frame(self, y_BE: Tensor, state: State) -> None:
        """``due`` from the stage's output for the frame that was just heard."""
        state["due"].copy_(self.up_proj(y_BE).view(state["due"].shape))

    def init_weights(self, generator: torch.Generator) -> None:
        init_linear(self.down_proj, generator)
        init_linear(self.up_proj, generator)
