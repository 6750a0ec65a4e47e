"""Loops that generate: the host issues each step, replays a captured one, or leaves it all to transformers.

All decode greedily, and all decode the same: a prompt's last logits give token 0, and each of N steps one more, so that
``decode`` is N steps wherever it is timed.

Shape suffixes: B batch, L prompt length, N new tokens, V vocabulary.
"""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness import Trial, Unsupported
from harness.clocks import time_and_issue_ms, time_once_ms
from harness.outcomes import is_out_of_memory
from models import Model
from models.pretrained.huggingface import HuggingFaceModel

_WARM_UP_STEPS = 2
"""Before a capture: libraries set themselves up and kernels are compiled in the first call of each."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generation by the device's clock, in milliseconds: a prefill, and the N steps after it.

    The host's times are those of issuing a prefill, and one step after it, to an idle device. There are none on a CPU,
    nor in transformers, which asks the device at each token whether it was the last: the host's time is the device's.
    """

    prefill_ms: float
    decode_ms: float
    prefill_host_ms: float | None = None
    step_host_ms: float | None = None

    @property
    def total_ms(self) -> float:
        return self.prefill_ms + self.decode_ms


class Loop(ABC):
    """Generation from one prompt, as often as is asked; nothing is allocated anew for our own models' states.

    Args:
        model: on its device, in its dtype.
        prompt_BL: int64 ids on the same device.
        new_tokens: N, at least 1.
    """

    description: ClassVar[str]
    captured: ClassVar[bool] = False
    capture_ms: float | None = None
    """Warm-up steps, capture and a first replay, on the host's clock; of a captured loop alone."""

    def __init__(self, model: Model, prompt_BL: Tensor, new_tokens: int) -> None:
        self.model, self.prompt_BL, self.new_tokens = model, prompt_BL, new_tokens
        self.device = prompt_BL.device

    @property
    @abstractmethod
    def tokens_BN(self) -> Tensor:
        """``(B, N + 1)`` ids of the last generation, the prompt's own successor first."""

    @abstractmethod
    def prefill(self) -> object:
        """Read the prompt, whatever was generated before."""

    @abstractmethod
    def decode(self) -> None:
        """N steps after a prefill; transformers, which keeps nothing from call to call, reads the prompt again."""

    @abstractmethod
    def sample(self) -> Sample:
        """Time a whole generation."""

    def as_sample(self, prefill_ms: float, decode_ms: float) -> Sample:
        """What a ``prefill`` and a ``decode`` that took so long come to; the host's times were not taken."""
        return Sample(prefill_ms=prefill_ms, decode_ms=decode_ms)

    @abstractmethod
    def trace(self) -> list[Tensor]:
        """A whole generation, and the logits ``(B, V)`` that gave each of its N + 1 tokens."""


class EagerLoop(Loop):
    """``prefill``, then ``step`` after ``step`` from Python."""

    description = "eager: prefill and steps from Python"

    def __init__(self, model: Model, prompt_BL: Tensor, new_tokens: int) -> None:
        super().__init__(model, prompt_BL, new_tokens)
        B, L = prompt_BL.shape
        with torch.no_grad():
            self._states = model.init_state(B, L + new_tokens)
        self._ids_B = prompt_BL.new_zeros(B)
        self._tokens_NB = prompt_BL.new_zeros(new_tokens + 1, B)

    @property
    def tokens_BN(self) -> Tensor:
        return self._tokens_NB.T

    @torch.no_grad()
    def prefill(self) -> Tensor:
        logits_BV = self.model.prefill(self.prompt_BL, self._states)
        self._ids_B.copy_(logits_BV.argmax(dim=-1))
        self._tokens_NB[0].copy_(self._ids_B)
        return logits_BV

    def _advance(self) -> Tensor:
        """One step; its logits, valid until the next."""
        logits_BV = self.model.step(self._ids_B, self._states)
        self._ids_B.copy_(logits_BV.argmax(dim=-1))
        return logits_BV

    def decode(self) -> None:
        self._steps(1, self.new_tokens)

    @torch.no_grad()
    def _steps(self, first: int, last: int) -> None:
        for i in range(first, last + 1):
            self._advance()
            self._tokens_NB[i].copy_(self._ids_B)

    def sample(self) -> Sample:
        prefill_ms, prefill_host_ms = time_and_issue_ms(self.prefill, self.device)
        issued_ms: list[float] = []

        def decode() -> None:
            # The first step alone finds the device idle; all of them would fill the queue of launches.
            began = time.perf_counter_ns()
            self._steps(1, 1)
            issued_ms.append((time.perf_counter_ns() - began) / 1e6)
            self._steps(2, self.new_tokens)

        decode_ms = time_once_ms(decode, self.device)
        step_host_ms = None if prefill_host_ms is None else issued_ms[0]
        return Sample(
            prefill_ms=prefill_ms, decode_ms=decode_ms, prefill_host_ms=prefill_host_ms, step_host_ms=step_host_ms
        )

    @torch.no_grad()
    def trace(self) -> list[Tensor]:
        traced = [self.prefill().clone()]
        for i in range(1, self.new_tokens + 1):
            traced.append(self._advance().clone())
            self._tokens_NB[i].copy_(self._ids_B)
        return traced


class GraphLoop(EagerLoop):
    """The prefill from Python, and one step captured in a CUDA graph and replayed: no host time between kernels.

    Raises Unsupported for a step that cannot be captured.
    """

    description = "cuda_graph: prefill from Python, one step captured and replayed"
    captured = True

    def __init__(self, model: Model, prompt_BL: Tensor, new_tokens: int) -> None:
        super().__init__(model, prompt_BL, new_tokens)
        torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        self._capture()
        torch.cuda.synchronize(self.device)
        self.capture_ms = 1e3 * (time.perf_counter() - began)

    @torch.no_grad()
    def _capture(self) -> None:
        # These steps spoil the states; every prefill starts from empty ones.
        stream, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(min(_WARM_UP_STEPS, self.prompt_BL.shape[1] + self.new_tokens - 1)):
                super()._advance()
        current.wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self._logits_BV = super()._advance()
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            raise Unsupported(f"a step of this model cannot be captured in a CUDA graph ({_first_line(error)})") from (
                error
            )
        self._graph.replay()  # the first takes the graph to the device, which is no step's work

    def _advance(self) -> Tensor:
        self._graph.replay()
        return self._logits_BV


class TransformersLoop(Loop):
    """``generate`` of transformers as it comes: its own loop, and a cache that grows by concatenation."""

    description = (
        "transformers generate, dynamic cache; prefill is max_new_tokens=1, decode is a whole generation less a prefill"
    )

    def __init__(self, model: Model, prompt_BL: Tensor, new_tokens: int) -> None:
        super().__init__(model, prompt_BL, new_tokens)
        assert isinstance(model, HuggingFaceModel)
        self._network: Any = model.network
        self._tokens_BN = prompt_BL[:, :0]

    @property
    def tokens_BN(self) -> Tensor:
        return self._tokens_BN

    @torch.no_grad()
    def _generate(self, prompt_BL: Tensor, count: int, **options: Any) -> Any:
        return self._network.generate(
            prompt_BL,
            attention_mask=torch.ones_like(prompt_BL),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            use_cache=True,
            **options,
        )

    def prefill(self) -> None:
        self._generate(self.prompt_BL, 1)

    def decode(self) -> None:
        self._tokens_BN = self._generate(self.prompt_BL, self.new_tokens + 1)[:, self.prompt_BL.shape[1] :]

    def sample(self) -> Sample:
        return self.as_sample(time_once_ms(self.prefill, self.device), time_once_ms(self.decode, self.device))

    def as_sample(self, prefill_ms: float, decode_ms: float) -> Sample:
        return Sample(prefill_ms=prefill_ms, decode_ms=decode_ms - prefill_ms)  # a decode reads the prompt again

    def trace(self) -> list[Tensor]:
        result = self._generate(self.prompt_BL, self.new_tokens + 1, return_dict_in_generate=True, output_logits=True)
        self._tokens_BN = result.sequences[:, self.prompt_BL.shape[1] :]
        return list(result.logits)


LOOPS: dict[str, type[Loop]] = {"eager": EagerLoop, "cuda_graph": GraphLoop, "transformers": TransformersLoop}


def find_loop(trial: Trial, *, wrapped: bool) -> type[Loop]:
    """The loop that a trial names; ``wrapped`` says whether its model is one of transformers.

    Raises Unsupported for an unknown loop, and for one that cannot run this model or on this device.
    """
    name = trial.protocol["loop"]
    if name not in LOOPS:
        raise Unsupported(f"loop={name!r} is not one of {', '.join(LOOPS)}")
    if name == "cuda_graph" and torch.device(trial.device).type != "cuda":
        raise Unsupported(f"loop=cuda_graph needs a CUDA device, this is {trial.device}; use loop: eager")
    if name == "transformers" and not wrapped:
        raise Unsupported(f"loop=transformers: {trial.model} is no model of transformers; use loop: eager")
    return LOOPS[name]


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether it, or what it hides, says so: the end of a failed capture raises an error of its own."""
    return error is not None and (is_out_of_memory(error) or ran_out_of_memory(error.__context__))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
