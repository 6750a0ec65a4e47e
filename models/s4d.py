"""S4D: the linear time-invariant baseline (Gu et al., "On the parameterization and initialization
of diagonal state space models", arXiv 2206.11893).

Each channel is h' = A h + B x, y = C h + D x with a diagonal A, discretised by zero-order hold with its
own step size. Nothing depends on the input, so that a whole sequence is one long convolution, computed
by FFT, and generation is a recurrence with a constant state. A is complex (S4D-Lin: -1/2 + i pi n, where a
mode stands for a conjugate pair and y takes twice the real part) or real (S4D-Real: -(n + 1)).

Symbols and shape suffixes: B batch, L sequence length, D channels, N modes (complex: d_state / 2). dt step
size; A = -exp(log_A_real) + i A_imag; input = (exp(dt A) - 1) / A, the discretised B = 1.
"""

import math

import torch
from torch import Tensor, nn

from models.base import Mixer, State
from models.ops.fft_conv import causal_conv, fft_conv_flops, ssm_final_state, ssm_kernel

DT_MIN, DT_MAX = 1e-3, 1e-1


class S4D(Mixer):
    """Diagonal LTI state space on each channel, with its skip."""

    mixes_channels = False
    wide_params = frozenset({"log_dt", "log_A_real", "A_imag", "C"})

    def __init__(self, width: int, *, d_state: int = 64, is_complex: bool = True) -> None:
        super().__init__()
        if d_state < 1 or (is_complex and d_state % 2):
            raise ValueError(f"d_state={d_state} must be at least 1, and even where A is complex: conjugate pairs")
        self.width, self.is_complex = width, is_complex
        self.num_modes = d_state // 2 if is_complex else d_state
        self.log_dt = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.log_A_real = nn.Parameter(torch.empty(width, self.num_modes, dtype=torch.float32))
        pair = (2,) if is_complex else ()
        if is_complex:
            self.A_imag = nn.Parameter(torch.empty(width, self.num_modes, dtype=torch.float32))
        self.C = nn.Parameter(torch.empty(width, self.num_modes, *pair, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(width))

    @property
    def label(self) -> str:
        return "S4D-Lin" if self.is_complex else "S4D-Real"

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.log_dt, math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        modes = torch.arange(self.num_modes)
        if self.is_complex:
            nn.init.constant_(self.log_A_real, math.log(0.5))
            self.A_imag.copy_((math.pi * modes).expand_as(self.A_imag))
        else:
            self.log_A_real.copy_((modes + 1).log().expand_as(self.log_A_real))
        nn.init.normal_(self.C, std=math.sqrt(0.5), generator=generator)
        nn.init.normal_(self.D, generator=generator)

    def discretised(self) -> tuple[Tensor, Tensor, Tensor]:
        """``log_decay = dt A``, ``input``, ``C``: ``(D, N)`` each, in float32, complex64 or wider."""
        wide = torch.promote_types(self.log_A_real.dtype, torch.float32)
        A_DN, C_DN = -self.log_A_real.to(wide).exp(), self.C.to(wide)
        if self.is_complex:
            A_DN, C_DN = torch.complex(A_DN, self.A_imag.to(wide)), torch.view_as_complex(C_DN.contiguous())
        log_decay_DN = A_DN * self.log_dt.to(wide).exp()[:, None]
        # expm1 keeps the digits that exp(small) - 1 would lose.
        return log_decay_DN, torch.expm1(log_decay_DN) / A_DN, C_DN

    def _skip(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.D.to(x.dtype) * x

    def forward(self, x_BLD: Tensor) -> Tensor:
        log_decay_DN, input_DN, C_DN = self.discretised()
        kernel_DL = ssm_kernel(C_DN * input_DN, log_decay_DN, x_BLD.shape[1])
        return self._skip(causal_conv(x_BLD.transpose(1, 2), kernel_DL).transpose(1, 2), x_BLD)  # (B, L, D)

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        log_decay_DN, input_DN, _ = self.discretised()
        h_BDN = ssm_final_state(x_BLD.transpose(1, 2), input_DN, log_decay_DN)
        state["h"].copy_(torch.view_as_real(h_BDN) if self.is_complex else h_BDN)
        return self.forward(x_BLD)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        pair = (2,) if self.is_complex else ()
        return {"h": torch.zeros(batch, self.width, self.num_modes, *pair, device=device, dtype=wide)}

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        log_decay_DN, input_DN, C_DN = self.discretised()
        h_BDN = torch.view_as_complex(state["h"]) if self.is_complex else state["h"]
        h_BDN.mul_(log_decay_DN.exp()).add_(input_DN * x_BD.to(state["h"].dtype)[..., None])
        y_BD = (C_DN * h_BDN).sum(dim=-1)
        return self._skip((2 * y_BD.real if self.is_complex else y_BD).to(x_BD.dtype), x_BD)

    def op_flops(self, seq_len: int) -> float:
        kernel = 2 * (2 if self.is_complex else 1) * self.num_modes * self.width * seq_len
        return fft_conv_flops(seq_len, self.width) + kernel
