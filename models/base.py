"""What a block is made of: mixers, norms, MLPs.

A mixer that works on each channel alone is surrounded by a wiring (:mod:`models.wirings`), which is a
mixer too. Shape suffixes: B batch, L sequence length, D model width, F hidden width of an MLP.
"""

import functools
import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ops import fused_blocks
from models.ops.context import is_fake, stands_for

State = dict[str, Tensor]
"""One block's recurrent state. Its tensors have a fixed shape and are updated in place, so that a
captured CUDA graph can replay a step. A wiring and its mixer share one: their keys differ."""

RMS_NORM_EPS = 1e-5


class Mixer(nn.Module, ABC):
    """What mixes information along the sequence. The first argument of its constructor is the width D."""

    mixes_channels: ClassVar[bool]
    """Whether it has projections of its own, as attention has; if not, a wiring must surround it."""

    wide_params: ClassVar[frozenset[str]] = frozenset()
    """Parameters that stay in float32 when weights are cast to a half precision: decays and step
    sizes act through exponentials over the whole length, where eight bits of mantissa are not enough."""

    @abstractmethod
    def forward(self, x_BLD: Tensor) -> Tensor:
        """The whole sequence at once: ``(B, L, D)`` to ``(B, L, D)``, causal."""

    @abstractmethod
    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        """As :meth:`forward`, from an empty state, leaving the state behind the last position in ``state``."""

    @abstractmethod
    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        """An empty state for sequences of at most ``max_len`` positions."""

    @abstractmethod
    def step(self, x_BD: Tensor, state: State) -> Tensor:
        """One position: ``(B, D)`` to ``(B, D)``; updates ``state`` in place."""

    @abstractmethod
    def op_flops(self, seq_len: int) -> float:
        """Forward operations of the sequence mixing alone, for one sequence, without the projections."""

    @functools.cached_property
    def step_flops(self) -> float:
        """``op_flops`` of one position; kept, since a step from Python is short."""
        return self.op_flops(1)

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Overwrite every parameter from ``generator``."""

    @property
    def label(self) -> str:
        """What tables call it."""
        return type(self).__name__


def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """PyTorch's, over the last dimension, with what it takes on the device that a fake tensor stands for."""
    if is_fake(x) and stands_for(x) == "cuda":
        return fused_blocks.rms_norm(x, weight_D)  # one kernel there, several operations on a CPU
    return F.rms_norm(x, x.shape[-1:], weight_D, eps)


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich, 2019), without a bias."""

    def __init__(self, width: int, *, eps: float = RMS_NORM_EPS) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


class GatedMLP(nn.Module):
    """SwiGLU: ``W2 (silu(W1 x) * W3 x)`` (Shazeer, 2020), without biases. F is the hidden width."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * d_hidden, bias=False)
        self.fc2 = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        value_BLF, gate_BLF = self.fc1(x_BLD).chunk(2, dim=-1)
        return self.fc2(value_BLF * F.silu(gate_BLF))  # (B, L, D)


def init_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's default initialisation of a linear layer, from an explicit generator; zero bias."""
    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
