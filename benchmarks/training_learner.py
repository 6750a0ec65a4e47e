"""A model in training: its optimizer, its examples, its curves, and a step that can be captured in a CUDA graph.

Shape suffixes: B batch, L input length, N steps of a block, S steps of the whole training, P scored positions,
b sequences of a microbatch, D model width, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.answers import among, answers_of
from benchmarks.training_optimizer import build_optimizer, learning_rate
from benchmarks.training_stages import Stage, stages_of
from harness import NonFiniteLoss, Trial
from models import Model
from tasks import Batch, ExampleStream, Task
from tasks.base import IGNORE_INDEX

CURVE_POINTS = 60
VALIDATION_EXAMPLES = 64
THRESHOLD = 0.95
"""Accuracy on the validation set from which a probe counts as learned (``steps_to_threshold``)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_MAX_BLOCK = 256
_BLOCK_TOKENS = {"cpu": 2**18, "cuda": 2**21}
"""Examples of many steps are drawn together: a draw is some 250 small kernels whatever its size."""
_VALIDATION_TOKENS = 2**18
"""Validation examples are answered so many tokens at a time."""


@dataclass(kw_only=True)
class TrainingLog:
    """What a training leaves behind beside weights; kept across interruptions but for the samples of time."""

    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    validation_curve: list[tuple[int, float]] = field(default_factory=list)
    validation_loss_curve: list[tuple[int, float]] = field(default_factory=list)
    """Nats a token."""
    train_s: float = 0.0
    resumed_at: list[int] = field(default_factory=list)
    captured: dict[str, bool | str] = field(default_factory=dict)
    """How the last steps were issued: ``cuda_graph``, and why not (``eager_because``)."""
    step_ms: list[float] = field(default_factory=list)
    """On a CPU of every step, on CUDA of the mean step between two looks at the device. Of this process alone."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What did best on the validation set so far, in the host's memory."""

    step: int
    score: float
    """Accuracy, or the loss with its sign turned."""
    weights: dict[str, Tensor]


class Learner:
    """A model, its optimizer and its place in the stream of examples.

    Between :meth:`prepare`, which the host does, and the next one, :meth:`step` reads and writes tensors of the
    device alone, at places that a counter there gives: replaying it is the next step.

    Args:
        model: initialised, on ``trial.device``.
        block_steps: steps whose examples are drawn together; what fits :data:`_BLOCK_TOKENS` if not given.
    """

    def __init__(self, model: Model, task: Task, trial: Trial, *, block_steps: int | None = None) -> None:
        self.model, self.task, self.trial = model, task, trial
        self.device = torch.device(trial.device)
        self.protocol, self.steps = trial.protocol, trial.protocol["steps"]
        self.curve_every = trial.protocol.get("curve_every") or max(1, self.steps // CURVE_POINTS)
        self.log = TrainingLog()
        self.selected: Selected | None = None
        """None where the protocol does not ``select`` by validation."""
        self.failure: NonFiniteLoss | None = None
        self.done = 0
        """Steps taken."""
        self._checked = 0
        """Steps whose loss is known to be finite."""
        self._optimizer = build_optimizer(model, self.protocol, self.device)
        self._next_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._losses_S = torch.zeros(self.steps, device=self.device)
        self._scored = task.scored_positions("train")
        self._answers = answers_of(task, self.protocol)
        self.tokens = trial.batch * trial.seq_len
        """Of a step, whatever its stage."""
        fitting = min(_MAX_BLOCK, self.steps, max(1, _BLOCK_TOKENS[self.device.type] // self.tokens))
        self._block_steps = block_steps or fitting
        self._stages = stages_of(trial)
        self._stage = self._stages[0]
        self._block = -1
        self._inputs_NBL = self._targets_NBL = self._next_1
        self._lrs_S: Tensor | None = None
        if self.device.type == "cuda":
            rates = [learning_rate(step, self.protocol) for step in range(self.steps)]
            self._lrs_S = torch.tensor(rates, dtype=torch.float32, device=self.device)

    @property
    def finished(self) -> bool:
        return self.done == self.steps or self.failure is not None

    @property
    def stage(self) -> Stage:
        """That the next step belongs to: a captured step is one of its stage."""
        return next(stage for stage in self._stages if self.done < stage.end or stage.end == self.steps)

    def prepare(self) -> None:
        """The host's part of the next step: examples, where the last are used up; a CPU's learning rate."""
        if self.stage != self._stage:
            self._stage, self._block = self.stage, -1
            self.log.step_ms.clear()  # a speed is that of the last stage, at the trial's own length
            self._inputs_NBL = self._targets_NBL = self._next_1  # let go of before the next are drawn
        if (block := (self.done - self._stage.first) // self._block_steps) != self._block:
            self._draw(block)
        if self._lrs_S is None:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self.done, self.protocol)

    def _draw(self, block: int) -> None:
        steps, L = self._block_steps, self._stage.seq_len
        B = self.tokens // L
        stream = ExampleStream(seed=self.trial.seed, split="train", start=block * steps * B)
        batch = self.task.sample(stream, steps * B, L, device=self.device)
        inputs_NBL, targets_NBL = (t.unflatten(0, (steps, B)) for t in (batch.inputs_BL, batch.targets_BL))
        if self._block < 0:
            self._inputs_NBL, self._targets_NBL = inputs_NBL.contiguous(), targets_NBL.contiguous()
        else:  # a captured step reads these very tensors
            self._inputs_NBL.copy_(inputs_NBL)
            self._targets_NBL.copy_(targets_NBL)
        self._block = block

    def step(self) -> None:
        """One step on the device. No value of it reaches the host."""
        place_1 = (self._next_1 - self._stage.first) % self._block_steps
        inputs_BL, targets_BL = (t.index_select(0, place_1)[0] for t in (self._inputs_NBL, self._targets_NBL))
        if self._lrs_S is not None:
            for group in self._optimizer.param_groups:
                group["lr"].copy_(self._lrs_S.index_select(0, self._next_1)[0])
        self._optimizer.zero_grad(set_to_none=True)  # a captured backward then writes gradients and adds to none
        loss = self._backward(inputs_BL, targets_BL)
        if self.protocol["grad_clip"]:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.protocol["grad_clip"])
        self._optimizer.step()
        self._losses_S.index_copy_(0, self._next_1, loss.view(1))
        self._next_1 += 1

    def _backward(self, inputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """Gradients of the step's loss, and the loss; of ``microbatches`` one by one, for the memory of one."""
        parts = self.protocol.get("microbatches", 1)
        if parts == 1:
            with autocast(self.trial):
                loss = loss_of(self.model, inputs_BL, targets_BL, self._scored, answers=self._answers)
            loss.backward()
            return loss.detach()
        num_targets = (targets_BL[:, self._scored] != IGNORE_INDEX).sum()
        total = torch.zeros((), device=self.device)
        for inputs_bL, targets_bL in zip(inputs_BL.chunk(parts), targets_BL.chunk(parts), strict=True):
            with autocast(self.trial):
                loss = loss_of(
                    self.model, inputs_bL, targets_bL, self._scored, num_targets=num_targets, answers=self._answers
                )
            loss.backward()
            total += loss.detach()
        return total

    def drop_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def is_finite(self) -> bool:
        """Look at the losses since the last look; the first NaN or infinity becomes :attr:`failure`."""
        losses = self._losses_S[self._checked : self.done].cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            place = int(bad[0])
            self.failure = NonFiniteLoss(
                f"the loss is {float(losses[place])} at step {self._checked + place + 1} of {self.steps}; "
                f"lower lr={self.protocol['lr']}"
            )
            return False
        self._checked = self.done
        return True

    def add_to_curves(self) -> None:
        """The loss of the last step, and the accuracy on the validation set where the task has one."""
        self.log.loss_curve.append((self.done, round(float(self._losses_S[self.done - 1]), 5)))
        has_accuracy, selects = self.task.metric == "accuracy", self.protocol.get("select") == "validation"
        if has_accuracy:
            self.log.validation_curve.append((self.done, self._validation_accuracy()))
        if self.protocol.get("validation_loss") or (selects and not has_accuracy):
            self.log.validation_loss_curve.append((self.done, self._validation_loss()))
        if selects:
            score = self.log.validation_curve[-1][1] if has_accuracy else -self.log.validation_loss_curve[-1][1]
            if self.selected is None or score > self.selected.score:
                weights = {name: tensor.to("cpu", copy=True) for name, tensor in self._weights().items()}
                self.selected = Selected(step=self.done, score=score, weights=weights)

    @torch.no_grad()
    def take_selected(self) -> None:
        """Once trained: let the model have the weights that did best, where the protocol selects them."""
        if self.selected is not None:
            for name, tensor in self._weights().items():
                tensor.copy_(self.selected.weights[name])

    @cached_property
    def _validation_set(self) -> Batch:
        """Fixed: every model and every seed is validated on the same examples."""
        count = self.protocol.get("validation_examples", VALIDATION_EXAMPLES)
        stream = ExampleStream(seed=0, split="validation")
        return self.task.sample(stream, count, self.trial.seq_len, device=self.device)

    @torch.no_grad()
    def _validation_accuracy(self) -> float:
        batch = self._validation_set
        examples, positions = batch.inputs_BL.shape
        scored = self.task.scored_positions("validation")
        correct = total = 0
        for part in torch.arange(examples, device=self.device).split(max(1, _VALIDATION_TOKENS // positions)):
            with autocast(self.trial):
                logits_BPV = among(
                    self.model.lm_head(self.model.hidden(batch.inputs_BL[part])[:, scored]), self._answers
                )
            targets_BP = batch.targets_BL[part][:, scored]
            asked_BP = targets_BP != IGNORE_INDEX
            correct += int(((logits_BPV.argmax(-1) == targets_BP) & asked_BP).sum())
            total += int(asked_BP.sum())
        return round(correct / total, 4)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean over all targets of the validation set."""
        batch, scored = self._validation_set, self.task.scored_positions("validation")
        examples, positions = batch.inputs_BL.shape
        total_1 = torch.zeros(1, dtype=torch.float64, device=self.device)
        # Logits of a large vocabulary are most of the memory.
        at_once = max(1, _VALIDATION_TOKENS // positions * 256 // max(256, self.task.vocab_size))
        for part in torch.arange(examples, device=self.device).split(at_once):
            targets_BL = batch.targets_BL[part]
            with autocast(self.trial):
                mean = loss_of(self.model, batch.inputs_BL[part], targets_BL, scored, answers=self._answers)
            total_1 += mean.double() * (targets_BL[:, scored] != IGNORE_INDEX).sum()
        return round(float(total_1) / int((batch.targets_BL[:, scored] != IGNORE_INDEX).sum()), 5)

    def steps_to_threshold(self) -> int | None:
        """The first step of the validation curve at which the task was learned."""
        threshold = self.protocol.get("threshold", THRESHOLD)
        return next((step for step, accuracy in self.log.validation_curve if accuracy >= threshold), None)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name, as it lies on the device."""
        named = {"next": self._next_1, "losses": self._losses_S} | self._weights()
        for name, parameter in self.model.named_parameters():
            named |= {f"optimizer.{name}.{key}": value for key, value in self._optimizer.state[parameter].items()}
        return named

    def _weights(self) -> dict[str, Tensor]:
        named = {f"model.{name}": tensor.detach() for name, tensor in self.model.named_parameters()}
        return named | {f"buffer.{name}": tensor for name, tensor in self.model.named_buffers()}

    @torch.no_grad()
    def put_back(self, saved: Mapping[str, Tensor]) -> None:
        """Take over the values of :meth:`tensors`, in place. ValueError, and no change, if they do not fit."""
        own = self.tensors()
        wrong = sorted(own.keys() ^ saved.keys()) or [n for n, t in own.items() if t.shape != saved[n].shape]
        if wrong:
            raise ValueError(f"state of another model or protocol: {wrong[0]} does not fit")
        for name, tensor in own.items():
            tensor.copy_(saved[name])
        self.done = self._checked = int(self._next_1)


def autocast(trial: Trial) -> torch.autocast:
    """Half precision is autocast over float32 weights: the recipe that the Mamba authors advise."""
    return torch.autocast(torch.device(trial.device).type, dtype=DTYPES[trial.dtype], enabled=trial.dtype != "float32")


def loss_of(
    model: Model,
    inputs_BL: Tensor,
    targets_BL: Tensor,
    scored: slice,
    *,
    num_targets: Tensor | None = None,
    answers: range | None = None,
) -> Tensor:
    """Mean cross-entropy (nats) over the targets among the positions ``scored``; logits are made only for those.

    ``answers`` are the tokens that may answer, all if None. With ``num_targets`` it is the share of these sequences in
    the mean over so many targets.
    """
    hidden_XD = model.hidden(inputs_BL)[:, scored].flatten(0, 1)  # X = B P
    logits_XV, targets_X = among(model.lm_head(hidden_XD).float(), answers), targets_BL[:, scored].flatten()
    if num_targets is None:
        return F.cross_entropy(logits_XV, targets_X, ignore_index=IGNORE_INDEX)
    return F.cross_entropy(logits_XV, targets_X, ignore_index=IGNORE_INDEX, reduction="sum") / num_targets


def sampled_evenly(values: list[float], count: int) -> list[float]:
    """At most ``count`` of them, evenly spaced."""
    return values[:: max(1, math.ceil(len(values) / count))]


def training_facts(learner: Learner) -> dict[str, Any]:
    """What a record says of a training, finished or cut: curves, steps, tokens and time."""
    log = learner.log
    facts: dict[str, Any] = {
        "steps_done": learner.done,
        "train_tokens": learner.done * learner.tokens,
        "train_s": round(log.train_s, 3),
        "loss_curve": log.loss_curve,
        "validation_curve": log.validation_curve,
    }
    if log.validation_loss_curve:
        facts["validation_loss_curve"] = log.validation_loss_curve
    if learner.selected is not None:
        facts["selected_step"] = learner.selected.step
    if (learned_at := learner.steps_to_threshold()) is not None:
        facts["steps_to_threshold"] = learned_at
    if log.resumed_at:
        facts["resumed_at"] = log.resumed_at
    return facts
