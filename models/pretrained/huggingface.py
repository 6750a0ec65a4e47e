"""A causal language model of transformers behind the suite's interface, with states of fixed shape.

The state of a block is a flat dict of tensors, as with the suite's own models; a cache of transformers is put
together around them at every call. Its attention then reads and writes in place, so that a step can be captured
in a CUDA graph and replayed.

Shape suffixes: B batch, L sequence length, D hidden size, V vocabulary.
"""

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn

from models.base import State
from models.model import Description, Model
from models.ops.attention import causal_attention_flops
from models.ops.context import observe, relative_error
from models.ops.ssd import ssd_flops

RECURRENT_TYPES = ("mamba", "mamba2")
CHECKED_LEN = 64
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class HuggingFaceModel(Model):
    """A wrapper around ``network``, a causal language model of transformers, in evaluation mode.

    Attention has a static key-value cache; Mamba and Mamba-2 have the windows of their convolutions and their
    states, each as transformers has them. In half precision the weights are all cast, as transformers does it.

    Raises ValueError for networks whose cache has another form (sliding windows, latent or hybrid attention).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        self.lm_head: nn.Module = network.get_output_embeddings()
        if getattr(self.config, "sliding_window", None) or getattr(self.config, "attention_chunk_size", None):
            raise ValueError(
                f"{type(network).__name__} attends to a window; only full attention has a static cache here"
            )
        self.vocab_size, self.d_model = self.lm_head.weight.shape  # type: ignore[misc,assignment]
        self.num_layers: int = self.config.num_hidden_layers
        self.is_recurrent = self.config.model_type in RECURRENT_TYPES
        self._backend = f"transformers {type(network).__name__}, {self.config._attn_implementation} attention"
        if self.is_recurrent:
            # transformers calls mamba-ssm's kernels wherever they import.
            self._has_kernels = importlib.util.find_spec("mamba_ssm") is not None
            self._backend = f"transformers {type(network).__name__}, {'mamba-ssm' if self._has_kernels else 'PyTorch'}"

    @property
    def _weight(self) -> Tensor:
        return self.lm_head.weight  # type: ignore[return-value]

    def _final(self, ids_BL: Tensor, **options: Any) -> Tensor:
        """``(B, L, D)`` behind the final norm, in the head's dtype (residuals may be wider)."""
        output = self.network.base_model(input_ids=ids_BL, **options)
        return output.last_hidden_state.to(self._weight.dtype)

    def hidden(self, ids_BL: Tensor) -> Tensor:
        if ids_BL.dim() != 2 or ids_BL.shape[1] == 0:
            raise ValueError(f"ids of shape {tuple(ids_BL.shape)} are not (batch, seq_len) with seq_len >= 1")
        hidden_BLD = self._final(ids_BL, use_cache=False)
        B, L = ids_BL.shape
        flops = B * self.num_layers * self._unseen_flops(L)
        observe(
            "network" if self.is_recurrent else "attention",
            self._backend,
            forward_flops=flops,
            # Five products against two in attention; a scan's steps about as often again.
            backward_flops=2.5 * flops,
            # transformers' computation is its own reference; its beginning, run alone, must be the same.
            check=lambda: relative_error(
                hidden_BLD[:, :CHECKED_LEN], self._final(ids_BL[:, :CHECKED_LEN], use_cache=False)
            ),
        )
        return hidden_BLD

    # ----------------------------------------------------------------------------------------------
    # Generation

    def _shapes(self, batch: int, max_len: int, dtype: torch.dtype) -> Shapes:
        """Of one block's state."""
        c = self.config
        if self.is_recurrent:
            inner = int(c.expand * c.hidden_size)
            second = c.model_type == "mamba2"
            channels = inner + 2 * c.n_groups * c.state_size if second else inner
            state = (batch, c.num_heads, c.head_dim, c.state_size) if second else (batch, inner, c.state_size)
            # Mamba-2's scan is in float32 there, whatever the weights are in.
            wide = torch.float32 if second else torch.promote_types(dtype, torch.float32)
            return {"conv": ((batch, channels, c.conv_kernel), dtype), "h": (state, wide)}
        keys = (batch, self._num_kv_heads, max_len, self._head_dim)
        return {"keys": (keys, dtype), "values": (keys, dtype), "length": ((), torch.int64)}

    @property
    def _num_kv_heads(self) -> int:
        return getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads

    @property
    def _head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.d_model // self.config.num_attention_heads

    def init_state(self, batch: int, max_len: int) -> list[State]:
        shapes, device = self._shapes(batch, max_len, self._weight.dtype), self._weight.device
        return [
            {key: torch.zeros(shape, dtype=dtype, device=device) for key, (shape, dtype) in shapes.items()}
            for _ in range(self.num_layers)
        ]

    def state_bytes(self, seq_len: int, *, batch: int = 1) -> int:
        shapes = self._shapes(batch, seq_len, self._weight.dtype).values()
        return self.num_layers * sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)

    def _cache(self, states: list[State], *, is_empty: bool) -> Any:
        """transformers' cache with the tensors of ``states`` as its storage."""
        from transformers.cache_utils import Cache, LinearAttentionLayer, StaticLayer

        class EmptyLayer(StaticLayer):
            """Its length is known without a look at the tensor: no wait for the device, and fake tensors will do."""

            def get_seq_length(self) -> int:
                return 0

        layers: list[Any] = []
        for state in states:
            if self.is_recurrent:
                layer: Any = LinearAttentionLayer()
                layer.conv_states[0], layer.recurrent_states[0] = state["conv"], state["h"]
                layer.is_conv_states_initialized[0] = layer.is_recurrent_states_initialized[0] = True
                layer.conv_kernel_size[0] = state["conv"].shape[-1]
                # Zeros are an empty past: a step then needs no prefill.
                layer.has_previous_state[0] = not is_empty
                source = state["conv"]
            else:
                source = state["keys"]
                layer = (EmptyLayer if is_empty else StaticLayer)(max_cache_len=source.shape[2])
                layer.keys, layer.values, layer.cumulative_length = source, state["values"], state["length"]
                layer.batch_size, layer.num_heads, _, layer.k_head_dim = source.shape
                layer.v_head_dim, layer.is_initialized = layer.k_head_dim, True
            layer.dtype, layer.device = source.dtype, source.device
            layers.append(layer)
        return Cache(layers=layers)

    def _advance(self, ids_BL: Tensor, states: list[State], *, is_empty: bool) -> Tensor:
        key = "cache_params" if self.is_recurrent else "past_key_values"
        options = {key: self._cache(states, is_empty=is_empty), "use_cache": True}
        return self.lm_head(self._final(ids_BL, **options)[:, -1])  # (B, V)

    def prefill(self, ids_BL: Tensor, states: list[State]) -> Tensor:
        if not self.is_recurrent and ids_BL.shape[1] > (room := states[0]["keys"].shape[2]):
            raise ValueError(f"a prompt of {ids_BL.shape[1]} tokens does not fit the cache of {room}; raise max_len")
        for state in states:
            if "length" in state:
                state["length"].zero_()
        return self._advance(ids_BL, states, is_empty=True)

    def step(self, ids_B: Tensor, states: list[State]) -> Tensor:
        return self._advance(ids_B[:, None], states, is_empty=False)

    # ----------------------------------------------------------------------------------------------
    # Counts

    def _mixing_flops(self, seq_len: int) -> float:
        """Of one block and one sequence, without the linear layers."""
        c = self.config
        if not self.is_recurrent:
            return causal_attention_flops(seq_len, c.num_attention_heads * self._head_dim)
        inner = int(c.expand * c.hidden_size)
        if c.model_type == "mamba":
            return (9.0 * inner * c.state_size + 2.0 * c.conv_kernel * inner) * seq_len
        # Without kernels B and C are repeated for every head before anything is multiplied.
        groups = c.n_groups if self._has_kernels else c.num_heads
        options = {"heads": c.num_heads, "head_dim": c.head_dim, "d_state": c.state_size, "groups": groups}
        channels = inner + 2 * c.n_groups * c.state_size
        return ssd_flops(seq_len=seq_len, chunk=c.chunk_size, **options)[0] + 2.0 * c.conv_kernel * channels * seq_len

    def _unseen_flops(self, seq_len: int) -> float:
        """Those of :meth:`_mixing_flops` that PyTorch's counter does not see, or is told to leave to the operators."""
        if not self.is_recurrent or self._has_kernels:
            return self._mixing_flops(seq_len)
        c = self.config
        # Of Mamba's nine operations a state, reading it out is a product of matrices; Mamba-2's are nearly all.
        return 7.0 * int(c.expand * c.hidden_size) * c.state_size * seq_len if c.model_type == "mamba" else 0.0

    def describe(self, seq_len: int = 2048) -> Description:
        linear = sum(m.weight.numel() for m in self.network.modules() if isinstance(m, nn.Linear))
        forward_flops = 2.0 * linear * seq_len + self.num_layers * self._mixing_flops(seq_len)
        return Description(
            params=self.num_params,
            state_bytes=self.state_bytes(seq_len),
            forward_flops=forward_flops,
            flops_per_token=forward_flops / seq_len,
            mixer=f"{self.config.model_type} of transformers",
            num_layers=self.num_layers,
            d_model=self.d_model,
        )

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Raises ValueError: these weights are given."""
        raise ValueError("pretrained weights are not initialised from a seed; build a model of the suite's own instead")
