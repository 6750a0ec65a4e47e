"""What a model is: token ids in, logits out; plus a recurrent step.

A model is a stack of blocks, each ``x + mixer(norm(x))`` and then, where it has one, ``x + mlp(norm(x))``.
Shape suffixes: B batch, L sequence length, D model width, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor, nn

from models.base import RMS_NORM_EPS, GatedMLP, Mixer, RMSNorm, State, init_linear
from models.ops.positions import sinusoids


class Block(nn.Module):
    """Pre-norm residual connections around a mixer and, where ``d_mlp`` is positive, an MLP."""

    def __init__(self, d_model: int, mixer: Mixer, d_mlp: int, *, norm_eps: float = RMS_NORM_EPS) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model, eps=norm_eps)
        self.mixer = mixer
        if d_mlp:
            self.norm2 = RMSNorm(d_model, eps=norm_eps)
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

    def init_weights(self, generator: torch.Generator, *, num_layers: int) -> None:
        """From ``generator``; what writes to the residual stream is scaled down with its depth, as mamba-ssm does."""
        residual_scale = 1 / math.sqrt((2 if self.has_mlp else 1) * num_layers)
        self.mixer.init_weights(generator)
        for norm in (m for m in self.modules() if isinstance(m, RMSNorm)):
            nn.init.ones_(norm.weight)
        if self.has_mlp:
            init_linear(self.mlp.fc1, generator)
            init_linear(self.mlp.fc2, generator)
            self.mlp.fc2.weight.mul_(residual_scale)
        out_proj = getattr(self.mixer, "out_proj", None)
        if isinstance(out_proj, nn.Linear):
            out_proj.weight.mul_(residual_scale)


class Backbone(nn.Module):
    """Embedding, blocks, final norm; sinusoidal positions are added to the embeddings where asked for."""

    def __init__(
        self, vocab_size: int, d_model: int, layers: list[Block], *, absolute_positions: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(layers)
        self.norm_f = RMSNorm(d_model, eps=norm_eps)
        self.absolute_positions = absolute_positions

    def embed(self, ids_BL: Tensor) -> Tensor:
        """``(B, L, D)`` of a sequence from its first position on."""
        x_BLD = self.embedding(ids_BL)
        return self._add_positions(x_BLD, torch.arange(ids_BL.shape[1], device=ids_BL.device))

    def embed_next(self, ids_B: Tensor, state: State) -> Tensor:
        """``(B, D)`` of one token at the position that the first block's state has reached."""
        x_BD = self.embedding(ids_B)
        return self._add_positions(x_BD, state["length"]) if self.absolute_positions else x_BD

    def _add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoids(positions, x.shape[-1]).to(x.dtype) if self.absolute_positions else x

    def forward(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.embed(ids_BL)
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


class Model(nn.Module, ABC):
    """What every trial works with: token ids in, logits out; plus ``prefill`` and ``step`` for generation.

    :class:`SequenceModel` is the suite's own; a third party's may be any subclass with these methods.
    """

    vocab_size: int
    d_model: int
    lm_head: nn.Module
    """Final hidden states ``(…, D)`` to logits ``(…, V)``."""

    @abstractmethod
    def hidden(self, ids_BL: Tensor) -> Tensor:
        """``(B, L)`` ids to ``(B, L, D)`` final hidden states: what long evaluations stream from."""

    def forward(self, ids_BL: Tensor) -> Tensor:
        """``(B, L)`` int64 ids to ``(B, L, V)`` logits for the next token."""
        return self.lm_head(self.hidden(ids_BL))

    @abstractmethod
    def init_state(self, batch: int, max_len: int) -> list[State]:
        """Empty states, one a block, for generation up to ``max_len`` positions."""

    @abstractmethod
    def prefill(self, ids_BL: Tensor, states: list[State]) -> Tensor:
        """Read a prompt: returns the last position's logits ``(B, V)``, fills ``states`` in place."""

    @abstractmethod
    def step(self, ids_B: Tensor, states: list[State]) -> Tensor:
        """One token a sequence: ``(B,)`` ids to ``(B, V)`` logits; updates ``states`` in place."""

    @abstractmethod
    def state_bytes(self, seq_len: int, *, batch: int = 1) -> int:
        """Bytes of recurrent state after ``seq_len`` positions."""

    @abstractmethod
    def describe(self, seq_len: int = 2048) -> Description:
        """Counts at one length; see :class:`Description` for units."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Overwrite every parameter from ``generator``: the same seed gives the same model anywhere."""

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def cast(self, dtype: torch.dtype) -> Self:
        """Weights to ``dtype``, in place, but for those that a mixer keeps wide (:attr:`Mixer.wide_params`)."""
        half = torch.finfo(dtype).bits < 32
        mixers = [module for module in self.modules() if half and isinstance(module, Mixer)]
        kept = {id(p) for mixer in mixers for name, p in mixer.named_parameters() if name in mixer.wide_params}
        for parameter in self.parameters():
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(dtype)
        for module in self.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN wants the weights of a layer side by side
                module.flatten_parameters()
        return self


class SequenceModel(Model):
    """Embedding, blocks of mixers and MLPs, a tied head.

    Args:
        mixers: one a block.
        d_mlp: hidden width of the blocks' MLPs, 0 for none; one for all blocks, or one each.
        tie_embeddings: whether the head shares the embedding's weights.

    Raises ValueError for ids of a wrong shape; ids outside the vocabulary are PyTorch's IndexError.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        mixers: Sequence[Mixer],
        d_mlp: int | Sequence[int] = 0,
        tie_embeddings: bool = True,
        norm_eps: float = RMS_NORM_EPS,
    ) -> None:
        super().__init__()
        self.vocab_size, self.d_model = vocab_size, d_model
        widths = [d_mlp] * len(mixers) if isinstance(d_mlp, int) else d_mlp
        blocks = [Block(d_model, m, width, norm_eps=norm_eps) for m, width in zip(mixers, widths, strict=True)]
        absolute = any(getattr(part, "positions", None) == "absolute" for mixer in mixers for part in mixer.modules())
        self.backbone = Backbone(vocab_size, d_model, blocks, absolute_positions=absolute, norm_eps=norm_eps)
        head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            head.weight = self.backbone.embedding.weight
        self.lm_head = head

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding's weights."""
        return self.lm_head.weight is self.backbone.embedding.weight

    @property
    def blocks(self) -> list[Block]:
        return list(self.backbone.layers)  # type: ignore[arg-type]

    def hidden(self, ids_BL: Tensor) -> Tensor:
        if ids_BL.dim() != 2 or ids_BL.shape[1] == 0:
            raise ValueError(f"ids of shape {tuple(ids_BL.shape)} are not (batch, seq_len) with seq_len >= 1")
        return self.backbone(ids_BL)

    def init_state(self, batch: int, max_len: int) -> list[State]:
        weight = self.backbone.embedding.weight
        return [b.mixer.init_state(batch, max_len, device=weight.device, dtype=weight.dtype) for b in self.blocks]

    def prefill(self, ids_BL: Tensor, states: list[State]) -> Tensor:
        x_BLD = self.backbone.embed(ids_BL)
        for block, state in zip(self.blocks, states, strict=True):
            x_BLD = block.prefill(x_BLD, state)
        return self.lm_head(self.backbone.norm_f(x_BLD[:, -1]))

    def step(self, ids_B: Tensor, states: list[State]) -> Tensor:
        x_BD = self.backbone.embed_next(ids_B, states[0])
        for block, state in zip(self.blocks, states, strict=True):
            x_BD = block.step(x_BD, state)
        return self.lm_head(self.backbone.norm_f(x_BD))

    def state_bytes(self, seq_len: int, *, batch: int = 1) -> int:
        dtype = self.backbone.embedding.weight.dtype
        states = (b.mixer.init_state(batch, seq_len, device=torch.device("meta"), dtype=dtype) for b in self.blocks)
        return sum(tensor.nbytes for state in states for tensor in state.values())

    def describe(self, seq_len: int = 2048) -> Description:
        matmul_params = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        mixing = sum(block.mixer.op_flops(seq_len) for block in self.blocks)
        forward_flops = 2.0 * matmul_params * seq_len + mixing
        labels = dict.fromkeys(block.mixer.label for block in self.blocks)
        return Description(
            params=self.num_params,
            state_bytes=self.state_bytes(seq_len),
            forward_flops=forward_flops,
            flops_per_token=forward_flops / seq_len,
            mixer=" + ".join(labels),
            num_layers=len(self.blocks),
            d_model=self.d_model,
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """As mamba-ssm does: normal(0, 0.02) embedding, PyTorch's default for linear layers."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02, generator=generator)
        for block in self.blocks:
            block.init_weights(generator, num_layers=len(self.blocks))
        init_head(self.backbone, self.lm_head, generator)


def init_head(backbone: Backbone, lm_head: nn.Module, generator: torch.Generator) -> None:
    """The final norm, and the head unless it is the embedding."""
    nn.init.ones_(backbone.norm_f.weight)
    assert isinstance(lm_head, nn.Linear)
    if lm_head.weight is not backbone.embedding.weight:
        init_linear(lm_head, generator)
