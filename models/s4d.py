"""S4D: the linear time-invariant baseline (Gu et al., "On the parameterization and initialization
of diagonal state space models", arXiv 2206.11893).

Each channel is h' = A h + B x, y = Re(C h) + D x with a diagonal complex A, discretised by
zero-order hold with its own step size. Nothing depends on the input, so that a whole sequence is one
long convolution, computed by FFT, and generation is a recurrence with a constant state.

Symbols and shape suffixes: B batch, L sequence length, D d_model, N complex modes (d_state / 2:
conjugate pairs). dt step size; A = -exp(log_A_real) + i A_imag (S4D-Lin: -1/2 + i pi n); input =
(exp(dt A) - 1) / A, the discretised B = 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, SequenceModel, State, init_linear
from models.ops.fft_conv import causal_conv, fft_conv_flops, ssm_final_state, ssm_kernel

DT_MIN, DT_MAX = 1e-3, 1e-1


class S4D(Mixer):
    """Diagonal LTI state space, GELU, and a gated output projection, as in S4's own block."""

    wide_params = frozenset({"log_dt", "log_A_real", "A_imag", "C"})

    def __init__(self, d_model: int, *, d_state: int = 64) -> None:
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state} must be even and at least 2: modes come in conjugate pairs")
        self.d_model, self.num_modes = d_model, d_state // 2
        self.log_dt = nn.Parameter(torch.empty(d_model, dtype=torch.float32))
        self.log_A_real = nn.Parameter(torch.empty(d_model, self.num_modes, dtype=torch.float32))
        self.A_imag = nn.Parameter(torch.empty(d_model, self.num_modes, dtype=torch.float32))
        self.C = nn.Parameter(torch.empty(d_model, self.num_modes, 2, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.log_dt, math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        nn.init.constant_(self.log_A_real, math.log(0.5))
        self.A_imag.copy_((math.pi * torch.arange(self.num_modes)).expand_as(self.A_imag))
        nn.init.normal_(self.C, std=math.sqrt(0.5), generator=generator)
        nn.init.normal_(self.D, generator=generator)
        init_linear(self.out_proj, generator)

    def discretised(self) -> tuple[Tensor, Tensor, Tensor]:
        """``log_decay = dt A``, ``input``, ``C``: complex ``(D, N)`` each, never below complex64."""
        wide = torch.promote_types(self.A_imag.dtype, torch.float32)
        A_DN = torch.complex(-self.log_A_real.to(wide).exp(), self.A_imag.to(wide))
        log_decay_DN = A_DN * self.log_dt.to(wide).exp()[:, None]
        # expm1 keeps the digits that exp(small) - 1 would lose.
        input_DN = torch.expm1(log_decay_DN) / A_DN
        return log_decay_DN, input_DN, torch.view_as_complex(self.C.to(wide).contiguous())

    def _convolve(self, x_BLD: Tensor) -> Tensor:
        log_decay_DN, input_DN, C_DN = self.discretised()
        kernel_DL = ssm_kernel(C_DN * input_DN, log_decay_DN, x_BLD.shape[1])
        return causal_conv(x_BLD.transpose(1, 2), kernel_DL).transpose(1, 2)  # (B, L, D)

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y + self.D.to(x.dtype) * x)), dim=-1)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._output(self._convolve(x_BLD), x_BLD)

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        log_decay_DN, input_DN, _ = self.discretised()
        state["h"].copy_(torch.view_as_real(ssm_final_state(x_BLD.transpose(1, 2), input_DN, log_decay_DN)))
        return self.forward(x_BLD)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        return {"h": torch.zeros(batch, self.d_model, self.num_modes, 2, device=device, dtype=wide)}

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        log_decay_DN, input_DN, C_DN = self.discretised()
        h_BDN = torch.view_as_complex(state["h"])
        h_BDN.mul_(log_decay_DN.exp()).add_(input_DN * x_BD.to(h_BDN.real.dtype)[..., None])
        return self._output((2 * (C_DN * h_BDN).sum(dim=-1).real).to(x_BD.dtype), x_BD)

    def op_flops(self, seq_len: int) -> float:
        kernel = 2 * 2 * self.num_modes * self.d_model * seq_len
        return fft_conv_flops(seq_len, self.d_model) + kernel


def s4d(*, vocab_size: int, d_model: int, num_layers: int, d_mlp: int, d_state: int = 64) -> SequenceModel:
    """An S4D language model: S4D and MLP blocks in turn ("S4+MLP")."""
    mixers: list[Mixer] = [S4D(d_model, d_state=d_state) for _ in range(num_layers)]
    return SequenceModel(vocab_size=vocab_size, d_model=d_model, mixers=mixers, d_mlp=d_mlp)
