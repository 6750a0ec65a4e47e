"""What a model is: token ids in, logits out; plus a recurrent step.

A model is a stack of blocks; a block wires a mixer: ``x + mixer(norm(x))``, then, where the block
has one, ``x + mlp(norm(x))``. The names of the parameters are those of mamba-ssm's
``MambaLMHeadModel``, so that a Mamba built here loads its checkpoints and the other way round.

Shape suffixes: B batch, L sequence length, D model width, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]
"""One mixer's recurrent state. Its tensors have a fixed shape and are updated in place."""

RMS_NORM_EPS = 1e-5


class Mixer(nn.Module, ABC):
    """What mixes information along the sequence."""

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

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Overwrite every parameter from ``generator``."""


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich, 2019), without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), RMS_NORM_EPS)


class GatedMLP(nn.Module):
    """SwiGLU: ``W2 (silu(W1 x) * W3 x)`` (Shazeer, 2020), without biases. F is the hidden width."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * d_hidden, bias=False)
        self.fc2 = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        value_BLF, gate_BLF = self.fc1(x_BLD).chunk(2, dim=-1)
        return self.fc2(value_BLF * F.silu(gate_BLF))  # (B, L, D)


class Block(nn.Module):
    """Pre-norm residual wiring of a mixer and, where ``d_mlp`` is positive, an MLP."""

    def __init__(self, d_model: int, mixer: Mixer, d_mlp: int) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = mixer
        if d_mlp:
            self.norm2 = RMSNorm(d_model)
            self.mlp = GatedMLP(d_model, d_mlp)
        self.has_mlp = d_mlp > 0

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm2(x)) if self.has_mlp else x

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._mlp(x_BLD + self.mixer(self.norm(x_BLD)))

    def prefill(self, x_BLD: Tensor, state: State) -> Tensor:
        return self._mlp(x_BLD + self.mixer.prefill(self.norm(x_BLD), state))

    def step(self, x_BD: Tensor, state: State) -> Tensor:
        return self._mlp(x_BD + self.mixer.step(self.norm(x_BD), state))


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, vocab_size: int, d_model: int, layers: list[Block]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(layers)
        self.norm_f = RMSNorm(d_model)

    def forward(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.embedding(ids_BL)
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        return self.norm_f(x_BLD)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model is made of, at one length."""

    params: int
    state_bytes: int
    """Recurrent state of one sequence after ``seq_len`` positions, as generation holds it."""
    forward_flops: float
    """Of one sequence of ``seq_len`` tokens; multiply-adds count twice."""
    flops_per_token: float
    mixer: str
    num_layers: int
    d_model: int

    def as_dict(self) -> dict[str, int | float | str]:
        return asdict(self)


class SequenceModel(nn.Module):
    """Token ids in, logits out; plus ``prefill`` and ``step`` for generation.

    Raises ValueError for ids of a wrong shape; ids outside the vocabulary are PyTorch's IndexError.
    """

    def __init__(self, *, vocab_size: int, d_model: int, mixers: list[Mixer], d_mlp: int = 0) -> None:
        super().__init__()
        self.vocab_size, self.d_model = vocab_size, d_model
        self.backbone = Backbone(vocab_size, d_model, [Block(d_model, mixer, d_mlp) for mixer in mixers])
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight

    @property
    def blocks(self) -> list[Block]:
        return list(self.backbone.layers)  # type: ignore[arg-type]

    def hidden(self, ids_BL: Tensor) -> Tensor:
        """``(B, L)`` ids to ``(B, L, D)`` final hidden states: what long evaluations stream from."""
        if ids_BL.dim() != 2 or ids_BL.shape[1] == 0:
            raise ValueError(f"ids of shape {tuple(ids_BL.shape)} are not (batch, seq_len) with seq_len >= 1")
        return self.backbone(ids_BL)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """``(B, L)`` int64 ids to ``(B, L, V)`` logits for the next token."""
        return self.lm_head(self.hidden(ids_BL))

    def init_state(self, batch: int, max_len: int) -> list[State]:
        """Empty states, one a block, for generation up to ``max_len`` positions."""
        weight = self.lm_head.weight
        return [b.mixer.init_state(batch, max_len, device=weight.device, dtype=weight.dtype) for b in self.blocks]

    def prefill(self, ids_BL: Tensor, states: list[State]) -> Tensor:
        """Read a prompt: returns the last position's logits ``(B, V)``, fills ``states`` in place."""
        x_BLD = self.backbone.embedding(ids_BL)
        for block, state in zip(self.blocks, states, strict=True):
            x_BLD = block.prefill(x_BLD, state)
        return self.lm_head(self.backbone.norm_f(x_BLD[:, -1]))

    def step(self, ids_B: Tensor, states: list[State]) -> Tensor:
        """One token a sequence: ``(B,)`` ids to ``(B, V)`` logits; updates ``states`` in place."""
        x_BD = self.backbone.embedding(ids_B)
        for block, state in zip(self.blocks, states, strict=True):
            x_BD = block.step(x_BD, state)
        return self.lm_head(self.backbone.norm_f(x_BD))

    def cast(self, dtype: torch.dtype) -> "SequenceModel":
        """Weights to ``dtype``, in place, but for those that a mixer keeps wide (:attr:`Mixer.wide_params`)."""
        half = torch.finfo(dtype).bits < 32
        for module in self.modules():
            keep = module.wide_params if half and isinstance(module, Mixer) else ()
            for name, parameter in module.named_parameters(recurse=False):
                if name not in keep:
                    parameter.data = parameter.data.to(dtype)
        return self

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def state_bytes(self, seq_len: int, *, batch: int = 1) -> int:
        """Bytes of recurrent state after ``seq_len`` positions."""
        dtype = self.lm_head.weight.dtype
        states = (b.mixer.init_state(batch, seq_len, device=torch.device("meta"), dtype=dtype) for b in self.blocks)
        return sum(tensor.nbytes for state in states for tensor in state.values())

    def describe(self, seq_len: int = 2048) -> Description:
        """Counts at one length; see :class:`Description` for units."""
        matmul_params = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        mixing = sum(block.mixer.op_flops(seq_len) for block in self.blocks)
        forward_flops = 2.0 * matmul_params * seq_len + mixing
        return Description(
            params=self.num_params,
            state_bytes=self.state_bytes(seq_len),
            forward_flops=forward_flops,
            flops_per_token=forward_flops / seq_len,
            mixer=type(self.blocks[0].mixer).__name__,
            num_layers=len(self.blocks),
            d_model=self.d_model,
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Overwrite every parameter from ``generator``: the same seed gives the same model anywhere.

        As mamba-ssm does: normal(0, 0.02) embedding, PyTorch's default for linear layers, and the
        projections that write to the residual stream scaled down with its depth.
        """
        nn.init.normal_(self.backbone.embedding.weight, std=0.02, generator=generator)
        writes_per_block = 2 if self.blocks[0].has_mlp else 1
        residual_scale = 1 / math.sqrt(writes_per_block * len(self.blocks))
        for block in self.blocks:
            block.mixer.init_weights(generator)
            for norm in (m for m in block.modules() if isinstance(m, RMSNorm)):
                nn.init.ones_(norm.weight)
            if block.has_mlp:
                init_linear(block.mlp.fc1, generator)
                init_linear(block.mlp.fc2, generator)
                block.mlp.fc2.weight.mul_(residual_scale)
            out_proj = getattr(block.mixer, "out_proj", None)
            if isinstance(out_proj, nn.Linear):
                out_proj.weight.mul_(residual_scale)
        nn.init.ones_(self.backbone.norm_f.weight)


def init_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's default initialisation of a linear layer, from an explicit generator; zero bias."""
    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
