"""SaShiMi's U-Net (Goel et al., "It's raw! Audio generation with state-space models", arXiv 2202.09729).

Two poolings by a factor p: blocks at the full rate, at 1/p with twice the width and at 1/p^2 with four times
the width, then back; as many blocks at each of the five stages. p samples side by side are one frame of the
next stage, a linear map there and one back. What a stage hands up is late by one of its frames, so that no
sample hears itself or what follows; and what entered a block on the way down is added on the way up.

Where SaShiMi is not followed: no weight normalisation and no biases in the poolings, root mean square norms,
and a head that shares the embedding's weights.

Shape suffixes: B batch, L samples, D width, l frames (L / p, rounded down), E width of the next stage,
p samples of a frame, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import RMS_NORM_EPS, State
from models.model import Backbone, Block, Description, Model, init_head
from models.ops.context import is_fake
from models.pooling import Pooling


class UNetBackbone(Backbone):
    """Embedding, the stages, final norm. ``layers`` holds the blocks in the order of the signal's way.

    Args:
        stages: blocks of the five stages: down, down, centre, up, up.
        poolings: between the first and the second, and between the second and the centre.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        stages: Sequence[Sequence[Block]],
        poolings: Sequence[Pooling],
        *,
        absolute_positions: bool,
        norm_eps: float,
    ) -> None:
        blocks = [block for stage in stages for block in stage]
        super().__init__(vocab_size, d_model, blocks, absolute_positions=absolute_positions, norm_eps=norm_eps)
        self.poolings = nn.ModuleList(poolings)
        self.stage_sizes = [len(stage) for stage in stages]

    def block(self, place: int) -> Block:
        return self.layers[place]  # type: ignore[return-value]

    def stage(self, index: int) -> range:
        """Places in ``layers`` of a stage's blocks."""
        start = sum(self.stage_sizes[:index])
        return range(start, start + self.stage_sizes[index])

    def _places(self, depth: int) -> tuple[range, range]:
        """Of the blocks on the way down and up at a depth; the centre has a way down alone."""
        if depth == len(self.poolings):
            return self.stage(depth), range(0)
        return self.stage(depth), self.stage(len(self.stage_sizes) - 1 - depth)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.norm_f(self._run(self.embed(ids_BL), 0, None))

    def prefill(self, ids_BL: Tensor, states: list[State]) -> Tensor:
        """As :meth:`forward`, before the final norm; fills ``states`` (see :meth:`UNet.init_state`)."""
        return self._run(self.embed(ids_BL), 0, states)

    def _run(self, x_BLD: Tensor, depth: int, states: list[State] | None) -> Tensor:
        """A stage with all that lies below it."""
        down, up = self._places(depth)
        skips = [x_BLD]
        for place in down:
            x_BLD = self._block(place, x_BLD, states)
            skips.append(x_BLD)
        if depth == len(self.poolings):
            return x_BLD + skips[0]
        x_BLD = self._below(x_BLD, depth, states) + skips.pop()
        for place in up:
            x_BLD = self._block(place, x_BLD, states) + skips.pop()
        return x_BLD

    def _block(self, place: int, x_BLD: Tensor, states: list[State] | None) -> Tensor:
        block = self.block(place)
        return block(x_BLD) if states is None else block.prefill(x_BLD, states[place])

    def _below(self, x_BLD: Tensor, depth: int, states: list[State] | None) -> Tensor:
        """What the stages below add, at this stage's rate; zeros while they have not heard a whole frame."""
        pooling: Pooling = self.poolings[depth]  # type: ignore[assignment]
        length = x_BLD.shape[1]
        if states is None:
            if length < pooling.factor:
                return torch.zeros_like(x_BLD)
            return pooling.up(self._run(pooling.down(x_BLD), depth + 1, None), length)
        state = states[len(self.layers) + depth]
        frames_BlE = pooling.prefill_down(x_BLD, state)
        if length >= pooling.factor:
            y_BlE = self._run(frames_BlE, depth + 1, states)
        else:
            self._forget_below(depth, states)
            y_BlE = frames_BlE
        return pooling.prefill_up(y_BlE, length, state)

    def _forget_below(self, depth: int, states: list[State]) -> None:
        """Empty the states of the stages below, which a prompt of less than a frame does not reach."""
        outer = {place for above in range(depth + 1) for way in self._places(above) for place in way}
        inner = [states[place] for place in range(len(self.layers)) if place not in outer]
        inner += states[len(self.layers) + depth + 1 : len(self.layers) + len(self.poolings)]
        for state in inner:
            for key, tensor in state.items():
                if key != "filter":  # Hyena's, which is no state
                    tensor.zero_()

    def step(self, x_BD: Tensor, states: list[State], ticks: int, depth: int = 0) -> Tensor:
        """One sample through a stage; of those below it, ``ticks`` finish a frame with it and take a step too."""
        down, up = self._places(depth)
        skips = [x_BD]
        for place in down:
            x_BD = self.block(place).step(x_BD, states[place])
            skips.append(x_BD)
        if depth == len(self.poolings):
            return x_BD + skips[0]
        pooling: Pooling = self.poolings[depth]  # type: ignore[assignment]
        state = states[len(self.layers) + depth]
        pooling.step_down(x_BD, state)
        x_BD = pooling.step_up(state) + skips.pop()
        for place in up:
            x_BD = self.block(place).step(x_BD, states[place]) + skips.pop()
        if ticks:
            pooling.finish_frame(self.step(pooling.frame(state), states, ticks - 1, depth + 1), state)
        return x_BD


class UNet(Model):
    """A model of tokens at the audio's rate whose inner blocks run at lower rates.

    Args:
        stages: blocks of the five stages, each as wide as its stage.
        factor: p, samples of a frame.

    Raises ValueError for ids of a wrong shape, and for absolute positions in other blocks than the first; ids outside
    the vocabulary are PyTorch's IndexError.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        stages: Sequence[Sequence[Block]],
        factor: int,
        tie_embeddings: bool = True,
        norm_eps: float = RMS_NORM_EPS,
    ) -> None:
        super().__init__()
        self.vocab_size, self.d_model, self.factor = vocab_size, d_model, factor
        num_poolings = len(stages) // 2
        poolings = [Pooling(d_model * 2**i, d_model * 2 ** (i + 1), factor) for i in range(num_poolings)]
        absolute = [_wants_absolute_positions(block) for stage in stages for block in stage]
        if any(absolute) and not absolute[0]:
            raise ValueError("absolute positions are added to the embeddings, which the first block must know of")
        self.backbone = UNetBackbone(
            vocab_size, d_model, stages, poolings, absolute_positions=absolute[0], norm_eps=norm_eps
        )
        head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            head.weight = self.backbone.embedding.weight
        self.lm_head = head

    @property
    def blocks(self) -> list[Block]:
        return list(self.backbone.layers)  # type: ignore[arg-type]

    @property
    def settling_len(self) -> int:
        """Samples after which every block has a part in the output: a frame of the lowest rate, and its delay."""
        return 2 * self._period(len(self.backbone.poolings))

    def _period(self, depth: int) -> int:
        """Samples between two steps at a depth."""
        return self.factor**depth

    def hidden(self, ids_BL: Tensor) -> Tensor:
        if ids_BL.dim() != 2 or ids_BL.shape[1] == 0:
            raise ValueError(f"ids of shape {tuple(ids_BL.shape)} are not (batch, seq_len) with seq_len >= 1")
        return self.backbone(ids_BL)

    def init_state(self, batch: int, max_len: int) -> list[State]:
        """A state a block, then one a pooling, then how many samples were heard: on the host, which decides by it."""
        weight = self.backbone.embedding.weight
        return self._empty_states(batch, max_len, weight.device, weight.dtype)

    def _empty_states(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> list[State]:
        states = [
            block.mixer.init_state(batch, max(1, max_len // self._period(depth)), device=device, dtype=dtype)
            for depth, block in self._blocks_by_depth()
        ]
        states += [pooling.init_state(batch, device=device, dtype=dtype) for pooling in self._poolings]
        host = torch.device("meta" if device.type == "meta" else "cpu")
        return [*states, {"num_heard": torch.zeros(1, dtype=torch.int64, device=host)}]

    @property
    def _poolings(self) -> list[Pooling]:
        return list(self.backbone.poolings)  # type: ignore[arg-type]

    def _blocks_by_depth(self) -> list[tuple[int, Block]]:
        last = len(self.backbone.stage_sizes) - 1
        depths = [min(i, last - i) for i, count in enumerate(self.backbone.stage_sizes) for _ in range(count)]
        return list(zip(depths, self.blocks, strict=True))

    def prefill(self, ids_BL: Tensor, states: list[State]) -> Tensor:
        x_BLD = self.backbone.prefill(ids_BL, states)
        states[-1]["num_heard"].fill_(ids_BL.shape[1])
        return self.lm_head(self.backbone.norm_f(x_BLD[:, -1]))

    def step(self, ids_B: Tensor, states: list[State]) -> Tensor:
        """As the others', but that the host must know the place: a graph captured from one step would be another's.

        :meth:`step_at` can be captured, once for each number of stages that take part.

        Raises:
            RuntimeError: while a CUDA graph is captured.
        """
        if ids_B.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("steps of a U-Net differ by their place: capture step_at for each value of ticks")
        num_heard_1 = states[-1]["num_heard"]
        num_heard_1 += 1
        # Without data every stage takes part: the most that a step can need.
        ticks = len(self._poolings) if is_fake(num_heard_1) else self.ticks_after(int(num_heard_1))
        return self.step_at(ids_B, states, ticks)

    def ticks_after(self, num_samples: int) -> int:
        """How many of the stages below the first finish a frame with this sample."""
        return sum(num_samples % self._period(depth + 1) == 0 for depth in range(len(self._poolings)))

    def step_at(self, ids_B: Tensor, states: list[State], ticks: int) -> Tensor:
        """A step in which ``ticks`` stages below the first take part. No value of it reaches the host."""
        x_BD = self.backbone.embed_next(ids_B, states[0])
        return self.lm_head(self.backbone.norm_f(self.backbone.step(x_BD, states, ticks)))

    def state_bytes(self, seq_len: int, *, batch: int = 1) -> int:
        dtype = self.backbone.embedding.weight.dtype
        states = self._empty_states(batch, seq_len, torch.device("meta"), dtype)
        return sum(tensor.nbytes for state in states for tensor in state.values())

    def describe(self, seq_len: int = 2048) -> Description:
        forward_flops = 2.0 * _matmul_params(self.lm_head) * seq_len
        for depth, block in self._blocks_by_depth():
            if frames := seq_len // self._period(depth):
                forward_flops += 2.0 * _matmul_params(block) * frames + block.mixer.op_flops(frames)
        for depth, pooling in enumerate(self._poolings):
            forward_flops += 2.0 * _matmul_params(pooling) * (seq_len // self._period(depth + 1))
        labels = dict.fromkeys(block.mixer.label for block in self.blocks)
        return Description(
            params=self.num_params,
            state_bytes=self.state_bytes(seq_len),
            forward_flops=forward_flops,
            flops_per_token=forward_flops / seq_len,
            mixer=f"U-Net of {' + '.join(labels)}",
            num_layers=len(self.blocks),
            d_model=self.d_model,
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """As a stack's; what a block writes is scaled by the number of all blocks."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02, generator=generator)
        for block in self.blocks:
            block.init_weights(generator, num_layers=len(self.blocks))
        for pooling in self._poolings:
            pooling.init_weights(generator)
        init_head(self.backbone, self.lm_head, generator)


def _matmul_params(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _wants_absolute_positions(block: Block) -> bool:
    return any(getattr(part, "positions", None) == "absolute" for part in block.modules())
