"""The sequence-mixing operators alone, on random inputs of a model's own width: what ``level: operator`` runs.

Shape suffixes: B batch, L sequence length, D channels, N states, H heads, K head dimension, P head width of
Mamba-2, G groups.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import Trial, Unsupported
from models import Mixer
from models.attention import Attention
from models.hyena import Hyena
from models.mamba2 import Mamba2
from models.ops.attention import causal_attention
from models.ops.fft_conv import causal_conv
from models.ops.selective_scan import selective_scan
from models.ops.ssd import ssd
from models.s4d import S4D
from models.s6 import S6
from models.wirings import Wiring

Operator = Callable[..., Tensor]


@dataclass(frozen=True)
class Draw:
    """Random inputs for one trial; without a generator (fake tensors) only their shapes count."""

    batch: int
    seq_len: int
    generator: torch.Generator | None

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)


def operator_inputs(mixer: Mixer, trial: Trial, generator: torch.Generator | None) -> tuple[list[Tensor], Operator]:
    """Inputs of the operator that a mixer rests on, and the operator. Raises Unsupported where it has none alone."""
    inner = mixer.inner if isinstance(mixer, Wiring) else mixer
    draw = Draw(trial.batch, trial.seq_len, generator)
    if isinstance(inner, S6):
        return _selective_scan(inner, draw)
    if isinstance(inner, Attention):
        return _attention(inner, draw)
    if isinstance(inner, S4D | Hyena):
        return _convolution(inner, draw)
    if isinstance(inner, Mamba2):
        return _ssd(inner, draw)
    raise Unsupported(f"no operator benchmark for the mixer {type(inner).__name__}; use level: model")


def _selective_scan(s6: S6, draw: Draw) -> tuple[list[Tensor], Operator]:
    B, L, D, N = draw.batch, draw.seq_len, s6.width, s6.d_state
    if not s6.is_published:
        raise Unsupported(f"the operator benchmark is of the real, fully selective scan, not of {s6.label}")
    # Steps and decays where a fresh model has them, so that states neither vanish nor explode.
    dt_BLD = draw.uniform(B, L, D) * 0.1
    A_DN = -torch.arange(1.0, N + 1).expand(D, N).contiguous()
    tensors = [draw.normal(B, L, D), dt_BLD, A_DN, draw.normal(B, L, N), draw.normal(B, L, N)]
    return tensors, lambda *args: selective_scan(*args)[0]


def _attention(attention: Attention, draw: Draw) -> tuple[list[Tensor], Operator]:
    if attention.positions in ("alibi", "xpos") or attention.window:
        raise Unsupported(f"the operator benchmark is of plain causal attention, not of {attention.label}")
    shape = (draw.batch, attention.num_heads, draw.seq_len, attention.head_dim)
    return [draw.normal(*shape) for _ in range(3)], causal_attention


def _convolution(mixer: S4D | Hyena, draw: Draw) -> tuple[list[Tensor], Operator]:
    kernel_DL = draw.normal(mixer.width, draw.seq_len) * torch.exp(-torch.arange(draw.seq_len) / 100.0)
    return [draw.normal(draw.batch, mixer.width, draw.seq_len), kernel_DL], causal_conv


def _ssd(mamba2: Mamba2, draw: Draw) -> tuple[list[Tensor], Operator]:
    B, L, H, P, N, G = (
        draw.batch, draw.seq_len, mamba2.num_heads, mamba2.head_dim, mamba2.d_state, mamba2.num_groups,
    )  # fmt: skip
    log_decay_BLH = -draw.uniform(B, L, H)
    tensors = [draw.normal(B, L, H, P), log_decay_BLH, draw.normal(B, L, G, N), draw.normal(B, L, G, N)]
    return tensors, lambda *args: ssd(*args)[0]
