"""Loops that sample audio: the host issues each step, or replays captured ones; a U-Net has a step a value of ticks.

A prompt's last logits give sample 0, and each of N - 1 steps one more. Everything that a step needs or leaves lies on
the device: the random numbers, the place among them, and the samples so far.

Shape suffixes: B batch, L prompt length, N new samples, V vocabulary.
"""

import time
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.audio_generation_sampling import Sampling, choose
from benchmarks.generation_loops import ran_out_of_memory
from harness import Trial, Unsupported
from models import Model
from models.unet import UNet

_WARM_UP_STEPS = 2
"""Before a capture, of each value of ticks: libraries set themselves up and kernels are compiled in the first call."""


class EagerSampler:
    """``prefill``, then ``step`` after ``step`` from Python; as often as is asked, and nothing is allocated anew.

    Args:
        model: on its device, in its dtype.
        prompt_BL: int64 ids on the same device.
        uniforms_BN: the random numbers, one a new sample.
    """

    description: ClassVar[str] = "eager: prefill and steps from Python"
    captured: ClassVar[bool] = False
    capture_ms: float | None = None
    """Warm-up steps and capture, on the host's clock; of a captured loop alone."""

    def __init__(self, model: Model, prompt_BL: Tensor, uniforms_BN: Tensor, sampling: Sampling) -> None:
        self.model, self.prompt_BL, self.sampling = model, prompt_BL, sampling
        self.device, self.new_samples = prompt_BL.device, uniforms_BN.shape[1]
        B, L = prompt_BL.shape
        with torch.no_grad():
            self._states = model.init_state(B, L + self.new_samples)
        self._uniforms_NB = uniforms_BN.T.contiguous().to(self.device)
        self._tokens_NB = prompt_BL.new_zeros(self.new_samples, B)
        self._ids_B = prompt_BL.new_zeros(B)
        self._place_1 = prompt_BL.new_zeros(1)
        self._done = 0  # new samples, on the host
        self.last_logits_BV: Tensor | None = None
        """Those that gave the newest sample; valid until the next step."""

    @property
    def tokens_BN(self) -> Tensor:
        """``(B, N)``: what was generated since the last prefill, zeros behind it."""
        return self._tokens_NB.T

    @torch.no_grad()
    def prefill(self) -> None:
        """Read the prompt, whatever was generated before, and draw sample 0."""
        self._place_1.zero_()
        self.last_logits_BV = self.model.prefill(self.prompt_BL, self._states)
        self._draw(self.last_logits_BV)
        self._done = 1

    def _draw(self, logits_BV: Tensor) -> None:
        uniforms_B = self._uniforms_NB.index_select(0, self._place_1)[0]
        self._ids_B.copy_(choose(logits_BV, uniforms_B, self.sampling))
        self._tokens_NB.index_copy_(0, self._place_1, self._ids_B[None])
        self._place_1 += 1

    def _advance(self) -> Tensor:
        """One step and its sample; returns the logits."""
        logits_BV = self.model.step(self._ids_B, self._states)
        self._draw(logits_BV)
        return logits_BV

    @torch.no_grad()
    def decode(self, steps: int) -> None:
        """So many samples more; there is room for N in all."""
        left = self.new_samples - self._done
        assert 0 <= steps <= left, (steps, left)
        for _ in range(steps):
            self.last_logits_BV = self._advance()
            self._done += 1

    def trace(self) -> list[Tensor]:
        """A whole generation, and the logits ``(B, V)`` that gave each of its samples."""
        self.prefill()
        traced = [self._newest_logits()]
        while self._done < self.new_samples:
            self.decode(1)
            traced.append(self._newest_logits())
        return traced

    def _newest_logits(self) -> Tensor:
        assert self.last_logits_BV is not None
        return self.last_logits_BV.clone()


class GraphSampler(EagerSampler):
    """The prefill from Python, and steps captured in CUDA graphs and replayed: one of a stack, three of a U-Net.

    Raises Unsupported for a step that cannot be captured.
    """

    description = "cuda_graph: prefill from Python, steps captured and replayed"
    captured = True

    def __init__(self, model: Model, prompt_BL: Tensor, uniforms_BN: Tensor, sampling: Sampling) -> None:
        super().__init__(model, prompt_BL, uniforms_BN, sampling)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        self._capture()
        torch.cuda.synchronize(self.device)
        self.capture_ms = 1e3 * (time.perf_counter() - began)

    def _ticks(self) -> list[int]:
        """What steps differ by: of a U-Net how many of its inner stages take part, of others nothing."""
        return list(range(len(self.model.backbone.poolings) + 1)) if isinstance(self.model, UNet) else [0]

    def _run(self, ticks: int) -> Tensor:
        """What is captured: a step of this kind and its sample, without a look at the place on the host."""
        if isinstance(self.model, UNet):
            logits_BV = self.model.step_at(self._ids_B, self._states, ticks)
        else:
            logits_BV = self.model.step(self._ids_B, self._states)
        self._draw(logits_BV)
        return logits_BV

    @torch.no_grad()
    def _capture(self) -> None:
        # These steps spoil the states, and the place; every prefill starts anew.
        stream, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for ticks in self._ticks():
                for _ in range(_WARM_UP_STEPS):
                    self._place_1.zero_()
                    for tensor in (t for state in self._states for t in state.values()):
                        tensor.zero_()  # an empty past: a short cache would soon be full
                    self._run(ticks)
        current.wait_stream(stream)
        pool = torch.cuda.graph_pool_handle()  # one graph runs at a time: they may share their memory
        for ticks in self._ticks():
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=pool):
                    logits_BV = self._run(ticks)
            except RuntimeError as error:
                if ran_out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise Unsupported(f"a step of this model cannot be captured in a CUDA graph ({reason})") from error
            self._graphs[ticks] = graph, logits_BV

    def _advance(self) -> Tensor:
        heard = self.prompt_BL.shape[1] + self._done  # samples with the one that this step reads
        ticks = self.model.ticks_after(heard) if isinstance(self.model, UNet) else 0
        graph, logits_BV = self._graphs[ticks]
        graph.replay()
        return logits_BV


SAMPLERS: dict[str, type[EagerSampler]] = {"eager": EagerSampler, "cuda_graph": GraphSampler}


def find_sampler(trial: Trial) -> type[EagerSampler]:
    """The loop that a trial names. Raises Unsupported for an unknown one, and for one that does not run here."""
    name = trial.protocol["loop"]
    if name not in SAMPLERS:
        raise Unsupported(f"loop={name!r} is not one of {', '.join(SAMPLERS)}")
    if name == "cuda_graph" and torch.device(trial.device).type != "cuda":
        raise Unsupported(f"loop=cuda_graph needs a CUDA device, this is {trial.device}; use loop: eager")
    return SAMPLERS[name]
