"""Loops that generate: the host issues each step, replays a captured one, or leaves it all to transformers.

All decode greedily, and all decode the same: a prompt's last logits give token 0, and each of N steps one more, so that
``decode`` is N steps wherever it is timed.

Shape suffixes: B batch, L prompt length, N new tokens, V vocabulary.
"""

import functools
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import Trial, Unsupported
from harness.clocks import MIN_SAMPLES, issue_times_ms, time_once_ms
from harness.outcomes import is_out_of_memory
from models import Model
from models.pretrained.huggingface import HuggingFaceModel

PROBE_STEPS = 2
_WARM_UP_STEPS = 2
"""Before a capture: libraries set themselves up and kernels are compiled in the first call of each."""


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
    """Warm-up steps and capture, on the host's clock; of a captured loop alone."""

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
    def sample_ms(self) -> tuple[float, float]:
        """Milliseconds of a prefill, and of the N steps after one, by the device's clock."""

    def issue_ms(self, budget_s: float) -> list[tuple[float, float]]:  # noqa: ARG002
        """Host milliseconds to issue a prefill, and one step after it, to an idle device, within about ``budget_s``.

        Empty where there is no such time: on a CPU, and in transformers, which asks the device at each token whether
        it was the last, so that the host's time is the device's.
        """
        return []

    @abstractmethod
    def trace(self) -> list[Tensor]:
        """A whole generation, and the logits ``(B, V)`` that gave each of its N + 1 tokens."""

    @abstractmethod
    def probe(self) -> tuple[Tensor, Tensor]:
        """The memory of a whole generation in a few steps' time; the prompt that was read, and its tokens."""


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

    @torch.no_grad()
    def decode(self, steps: int | None = None) -> None:
        """Steps after a prefill: N, or fewer."""
        for i in range(1, (self.new_tokens if steps is None else steps) + 1):
            self._advance()
            self._tokens_NB[i].copy_(self._ids_B)

    def sample_ms(self) -> tuple[float, float]:
        return time_once_ms(self.prefill, self.device), time_once_ms(self.decode, self.device)

    def issue_ms(self, budget_s: float) -> list[tuple[float, float]]:
        if self.device.type != "cuda":
            return []
        synchronize = functools.partial(torch.cuda.synchronize, self.device)
        prefill_ms = issue_times_ms(self.prefill, synchronize, budget_s=budget_s / 2)
        # The states have room for N steps after the last prefill. One at a time: N would fill the queue of launches.
        one_step = functools.partial(self.decode, 1)
        most = min(MIN_SAMPLES, self.new_tokens)
        step_ms = issue_times_ms(one_step, synchronize, budget_s=budget_s / 2, most=most)
        return list(zip(prefill_ms, step_ms, strict=False))

    @torch.no_grad()
    def trace(self) -> list[Tensor]:
        traced = [self.prefill().clone()]
        for i in range(1, self.new_tokens + 1):
            traced.append(self._advance().clone())
            self._tokens_NB[i].copy_(self._ids_B)
        return traced

    def probe(self) -> tuple[Tensor, Tensor]:
        steps = min(PROBE_STEPS, self.new_tokens)
        self.prefill()
        self.decode(steps)
        return self.prompt_BL, self.tokens_BN[:, : steps + 1]


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
            for _ in range(min(_WARM_UP_STEPS, self.prompt_BL.shape[1] + self.new_tokens)):
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

    def sample_ms(self) -> tuple[float, float]:
        prefill_ms, total_ms = time_once_ms(self.prefill, self.device), time_once_ms(self.decode, self.device)
        return prefill_ms, total_ms - prefill_ms

    def trace(self) -> list[Tensor]:
        result = self._generate(self.prompt_BL, self.new_tokens + 1, return_dict_in_generate=True, output_logits=True)
        self._tokens_BN = result.sequences[:, self.prompt_BL.shape[1] :]
        return list(result.logits)

    def probe(self) -> tuple[Tensor, Tensor]:
        # The cache is longest at the end: a prompt that much longer, and few steps.
        steps = min(PROBE_STEPS, self.new_tokens)
        prompt_BL = F.pad(self.prompt_BL, (0, self.new_tokens - steps))
        return prompt_BL, self._generate(prompt_BL, steps + 1)[:, prompt_BL.shape[1] :]


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
