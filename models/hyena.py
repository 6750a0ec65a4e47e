"""Hyena's implicit long convolution (Poli et al., arXiv 2302.10866, sections 3.3 and App. A).

Each channel is convolved with a filter as long as the sequence, whose value at position t is an MLP of
features of t, under an exponential window. With the H3 wiring around it and short convolutions on all three
projections it is the Hyena operator of order 2.

The features are sinusoids of geometric frequencies up to a period of ``max_period``, not functions of
t / L as published: a filter that stretched with the sequence would be another filter at every length, and
neither steps nor padding could agree with the whole.

Symbols and shape suffixes: B batch, L sequence length, D channels, M positions of a state, P features,
F hidden width of the filter's MLP. D_skip: the filter's value at 0 beside the MLP, as in the released code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.ops.fft_conv import causal_conv, fft_conv_flops

SINE_FREQUENCY = 10.0  # of the activations, as released: high-frequency filters from the start
# The windows fall to TARGET at FAST and SLOW times max_period (released: of the sequence).
TARGET, FAST, SLOW = 1e-2, 0.3, 1.5


class Hyena(Mixer):
    """Implicit long convolution of each channel.

    Args:
        width: channels D.
        filter_width: hidden width F of the filter's MLP.
        num_features: P, even: cosines and sines.
        max_period: of the slowest feature, in positions; the windows decay on this scale too.
        shortest_window: spreads the windows' scales from it to ``SLOW * max_period``, each so many times the last, for
            lengths that lie far below ``max_period``; as released (FAST to SLOW times ``max_period``) if None.
    """

    mixes_channels = False
    # The sines amplify what their arguments lose: with these in bfloat16 the outputs are off by 8 %.
    wide_params = frozenset({"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"})

    def __init__(
        self,
        width: int,
        *,
        filter_width: int = 64,
        num_features: int = 32,
        max_period: int = 8192,
        shortest_window: int | None = None,
    ) -> None:
        super().__init__()
        if num_features < 2 or num_features % 2:
            raise ValueError(f"num_features={num_features} must be even and at least 2: cosines and sines")
        self.width, self.num_features, self.max_period = width, num_features, max_period
        self.shortest_window = shortest_window
        self.fc1 = nn.Linear(num_features, filter_width)
        self.fc2 = nn.Linear(filter_width, filter_width)
        self.fc3 = nn.Linear(filter_width, width, bias=False)
        self.D_skip = nn.Parameter(torch.empty(width))

    def init_weights(self, generator: torch.Generator) -> None:
        for linear in (self.fc1, self.fc2, self.fc3):
            init_linear(linear, generator)
        for linear in (self.fc1, self.fc2):
            bound = 1 / math.sqrt(linear.in_features)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
        nn.init.normal_(self.D_skip, generator=generator)

    def filter(self, seq_len: int) -> Tensor:
        """``(D, L)`` in float32 or wider, autocast or not; memory grows as L (P + F + D)."""
        wide = torch.promote_types(self.fc1.weight.dtype, torch.float32)
        device = self.fc1.weight.device
        t_L = torch.arange(seq_len, device=device, dtype=wide)
        half = self.num_features // 2
        # Periods from 4 positions up, in geometric steps.
        periods_P = 4 * (self.max_period / 4) ** (torch.arange(half, device=device, dtype=wide) / max(half - 1, 1))
        angles_LP = 2 * math.pi * t_L[:, None] / periods_P
        with torch.autocast(device.type, enabled=False):
            hidden_LF = torch.cat([angles_LP.cos(), angles_LP.sin()], dim=-1)
            for linear in (self.fc1, self.fc2):
                pre_LF = F.linear(hidden_LF, linear.weight.to(wide), linear.bias.to(wide))
                hidden_LF = torch.sin(SINE_FREQUENCY * pre_LF)
            values_LD = F.linear(hidden_LF, self.fc3.weight.to(wide))
        if self.shortest_window is None:
            rates_D = torch.linspace(1 / FAST, 1 / SLOW, self.width, device=device, dtype=wide)
        else:
            fastest = math.log(self.max_period / self.shortest_window)
            rates_D = torch.linspace(fastest, math.log(1 / SLOW), self.width, device=device, dtype=wide).exp()
        # Transposed at the end: one operand in the other's layout would be read a line of the cache a value.
        return (values_LD * torch.exp(math.log(TARGET) / self.max_period * rates_D * t_L[:, None])).T

    def _skip(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.D_skip.to(x.dtype) * x

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BDL = causal_conv(x_BLD.transpose(1, 2), self.filter(x_BLD.shape[1]))
        return self._skip(y_BDL.transpose(1, 2), x_BLD)  # (B, L, D)

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        L, room = x_BLD.shape[1], state["past"].shape[2]
        if room < L:
            raise ValueError(f"a prompt of {L} tokens does not fit the state of {room}; raise max_len")
        state["past"][..., :L] = x_BLD.transpose(1, 2)
        state["length"].fill_(L)
        return self.forward(x_BLD)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:
        """A filter without a recurrence has no constant state: all inputs are kept, and the filter itself."""
        wide = torch.promote_types(dtype, torch.float32)
        filter_DM = torch.empty(self.width, max_len, device=device, dtype=wide)
        if device.type != "meta":
            with torch.no_grad():
                filter_DM.copy_(self.filter(max_len))
        return {
            "past": torch.zeros(batch, self.width, max_len, device=device, dtype=dtype),
            "filter": filter_DM,
            "length": torch.zeros(1, device=device, dtype=torch.int64),
        }

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        past_BDM, position_1 = state["past"], state["length"]
        past_BDM.index_copy_(2, position_1, x_BD[..., None])
        ages_M = position_1 - torch.arange(past_BDM.shape[2], device=x_BD.device)
        weights_DM = state["filter"].index_select(1, ages_M.clamp(min=0)) * (ages_M >= 0)
        y_BD = torch.einsum("bdm,dm->bd", past_BDM.to(weights_DM.dtype), weights_DM).to(x_BD.dtype)
        position_1 += 1
        return self._skip(y_BD, x_BD)

    def op_flops(self, seq_len: int) -> float:
        return fft_conv_flops(seq_len, self.width)
