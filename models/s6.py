"""S6: the selective state space of Mamba (Gu & Dao, arXiv 2312.00752, sections 3.2 and 3.3, Algorithm 2).

h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,  y_t = C_t h_t + D x_t, each channel with its own diagonal A.
Selectivity can be taken away from dt, B and C one by one (Table 7 of the paper): what is not selected
is a parameter of every channel instead. Parameter names and shapes are those of mamba-ssm's ``Mamba``. With
nothing selected a sequence is one long convolution, by FFT.

Symbols and shape suffixes: B batch, L sequence length, E channels, N states of a channel (complex: N / 2
modes, which stand for conjugate pairs), R dt_rank. dt: the step size Δ (softplus of a low-rank projection);
A = -exp(A_log) (complex: plus i A_imag): the decay; B, C: into the state and out of it; D: the skip.
"""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Mixer, State, init_linear
from models.ops.fft_conv import causal_conv, fft_conv_flops, ssm_final_state, ssm_kernel
from models.ops.selective_scan import selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
SELECTABLE = ("dt", "B", "C")


class S6(Mixer):
    """The selective scan on each channel, with its input-dependent dt, B and C.

    Args:
        width: channels E.
        d_state: real states N of a channel; even if complex.
        dt_rank: rank of dt's projection; mamba-ssm has d_model / 16.
        select: which of ``dt``, ``B``, ``C`` depend on the input.
        is_complex: a complex diagonal A, initialised as S4D-Lin, which raw audio wants (App. E.4.1).
    """

    mixes_channels = False
    wide_params = frozenset({"A_log", "A_imag", "D", "B", "C", "dt_bias"})

    def __init__(
        self,
        width: int,
        *,
        d_state: int = 16,
        dt_rank: int | None = None,
        select: Collection[str] = SELECTABLE,
        is_complex: bool = False,
    ) -> None:
        super().__init__()
        if unknown := set(select) - set(SELECTABLE):
            raise ValueError(f"select={sorted(unknown)} is none of {', '.join(SELECTABLE)}")
        if is_complex and d_state % 2:
            raise ValueError(f"d_state={d_state} must be even where A is complex: modes come in conjugate pairs")
        self.width, self.d_state, self.is_complex = width, d_state, is_complex
        self.select = frozenset(select)
        self.dt_rank = math.ceil(width / 32) if dt_rank is None else dt_rank
        modes = d_state // 2 if is_complex else d_state
        sizes = {"dt": self.dt_rank, "B": d_state, "C": d_state}
        self.sizes = [sizes[name] if name in self.select else 0 for name in SELECTABLE]
        if self.select:
            self.x_proj = nn.Linear(width, sum(self.sizes), bias=False)
        if "dt" in self.select:
            self.dt_proj = nn.Linear(self.dt_rank, width)
        else:
            self.dt_bias = nn.Parameter(torch.empty(width, dtype=torch.float32))
        for name in ("B", "C"):
            if name not in self.select:
                shape = (width, modes, 2) if is_complex else (width, modes)
                self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))
        self.A_log = nn.Parameter(torch.empty(width, modes, dtype=torch.float32))
        if is_complex:
            self.A_imag = nn.Parameter(torch.empty(width, modes, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(width, dtype=torch.float32))

    @property
    def is_published(self) -> bool:
        """Whether it is Mamba's own form, for which mamba-ssm has a fused block."""
        return not self.is_complex and len(self.select) == len(SELECTABLE)

    @property
    def label(self) -> str:
        missing = "" if len(self.select) == len(SELECTABLE) else f"({','.join(sorted(self.select)) or 'LTI'})"
        return f"S6{'-complex' if self.is_complex else ''}{missing}"

    def init_weights(self, generator: torch.Generator) -> None:
        if self.select:
            init_linear(self.x_proj, generator)
        # The released code draws dt log-uniformly; the bias is its inverse under softplus.
        bias = self.dt_bias if "dt" not in self.select else self.dt_proj.bias
        if "dt" in self.select:
            nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5, generator=generator)
        dt_E = torch.empty_like(bias).uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        dt_E = dt_E.exp().clamp(min=DT_FLOOR)
        bias.copy_(dt_E + torch.log(-torch.expm1(-dt_E)))
        modes = torch.arange(self.A_log.shape[1])
        if self.is_complex:  # S4D-Lin: A_n = -1/2 + i pi n
            nn.init.constant_(self.A_log, math.log(0.5))
            self.A_imag.copy_((math.pi * modes).expand_as(self.A_imag))
        else:  # S4D-Real: A_n = -(n + 1)
            self.A_log.copy_((modes + 1).log().expand_as(self.A_log))
        for name in {"B", "C"} - self.select:
            parameter = getattr(self, name)
            if name == "B":
                nn.init.ones_(parameter)
                if self.is_complex:
                    nn.init.zeros_(parameter[..., 1])
            else:
                nn.init.normal_(parameter, std=math.sqrt(0.5), generator=generator)
        nn.init.ones_(self.D)

    def A(self) -> Tensor:
        """``(E, modes)``, in float32 or wider."""
        real = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        return torch.complex(real, self.A_imag.to(real.dtype)) if self.is_complex else real

    def _read_weights(self) -> Tensor | None:
        """What B and C are for a channel where they do not depend on the input, as one factor ``(E, modes)``.

        The state is diagonal: a constant factor on the way in equals one on the way out.
        """
        factors = [getattr(self, name) for name in ("B", "C") if name not in self.select]
        if not factors:
            return None
        if self.is_complex:
            factors = [torch.view_as_complex(f.to(torch.promote_types(f.dtype, torch.float32))) for f in factors]
        return factors[0] if len(factors) == 1 else factors[0] * factors[1]

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """dt ``(…, E)``, B and C ``(…, modes)``; ones for a B that is a parameter, None for such a C."""
        parts = self.x_proj(x).split(self.sizes, dim=-1) if self.select else (x[..., :0],) * 3
        if "dt" in self.select:
            dt = F.softplus(self.dt_proj(parts[0]))
        else:
            dt = F.softplus(self.dt_bias).to(x.dtype).expand_as(x)
        B, C = (self._modes(t) if name in self.select else None for name, t in zip("BC", parts[1:], strict=True))
        return dt, x.new_ones(1).expand(*x.shape[:-1], self.A_log.shape[1]) if B is None else B, C

    def _modes(self, part: Tensor) -> Tensor:
        if not self.is_complex:
            return part
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        return torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())

    def _real(self, y: Tensor) -> Tensor:
        """The sum over conjugate pairs is twice the real part of the sum over one of each."""
        return 2 * y.real if self.is_complex else y

    def _constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """dt A, dt and what is read from the state, ``(E, modes)`` each, where nothing is selected."""
        A_EN, weights_EN = self.A(), self._read_weights()
        assert weights_EN is not None
        dt_EN = F.softplus(self.dt_bias.to(A_EN.real.dtype))[:, None].expand(A_EN.shape)
        return A_EN * dt_EN, dt_EN, weights_EN

    def _convolve(self, x_BLE: Tensor) -> Tensor:
        """The scan of constants: its response to one sample is the kernel of a convolution."""
        log_decay_EN, dt_EN, weights_EN = self._constants()
        kernel_EL = ssm_kernel(weights_EN * dt_EN, log_decay_EN, x_BLE.shape[1])
        y_BLE = causal_conv(x_BLE.transpose(1, 2), kernel_EL).transpose(1, 2)
        return torch.addcmul(y_BLE, self.D.to(y_BLE.dtype), x_BLE)

    def _scan(self, x_BLE: Tensor) -> tuple[Tensor, Tensor]:
        dt_BLE, B_BLN, C_BLN = self._selected(x_BLE)
        y_BLE, h_BEN = selective_scan(x_BLE, dt_BLE, self.A(), B_BLN, C_BLN, W_DN=self._read_weights())
        y_BLE = self._real(y_BLE).to(x_BLE.dtype)
        return torch.addcmul(y_BLE, self.D.to(y_BLE.dtype), x_BLE), h_BEN

    def forward(self, x_BLE: Tensor) -> Tensor:
        return self._scan(x_BLE)[0] if self.select else self._convolve(x_BLE)

    def prefill(self, x_BLE: Tensor, state: State) -> Tensor:
        if self.select:
            y_BLE, h_BEN = self._scan(x_BLE)
        else:
            log_decay_EN, dt_EN, _ = self._constants()
            y_BLE, h_BEN = self._convolve(x_BLE), ssm_final_state(x_BLE.transpose(1, 2), dt_EN, log_decay_EN)
        state["h"].copy_(torch.view_as_real(h_BEN) if self.is_complex else h_BEN)
        return y_BLE

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> State:  # noqa: ARG002
        wide = torch.promote_types(dtype, torch.float32)
        pair = (2,) if self.is_complex else ()
        return {"h": torch.zeros(batch, *self.A_log.shape, *pair, device=device, dtype=wide)}

    def step(self, x_BE: Tensor, state: State) -> Tensor:
        h_BEN = torch.view_as_complex(state["h"]) if self.is_complex else state["h"]
        dt_BE, B_BN, C_BN = self._selected(x_BE)
        real = state["h"].dtype
        dtx_BE = (dt_BE * x_BE).to(real)
        h_BEN.mul_(torch.exp(dt_BE.to(real)[..., None] * self.A()))
        h_BEN.addcmul_(dtx_BE[..., None].to(h_BEN.dtype), B_BN.to(h_BEN.dtype)[:, None])
        weights_EN = self._read_weights()
        read_BEN = h_BEN if weights_EN is None else h_BEN * weights_EN
        if C_BN is None:
            y_BE = self._real(read_BEN.sum(-1))
        else:
            y_BE = self._real(torch.einsum("ben,bn->be", read_BEN, C_BN.to(h_BEN.dtype)))
        return y_BE.to(x_BE.dtype) + self.D.to(x_BE.dtype) * x_BE

    def op_flops(self, seq_len: int) -> float:
        if not self.select:
            return fft_conv_flops(seq_len, self.width) + 2.0 * self.d_state * self.width * seq_len
        # Nine a state (see FORWARD_OPS of the scan), a complex product counted as four real ones.
        return 9.0 * (2 if self.is_complex else 1) * self.width * self.d_state * seq_len
