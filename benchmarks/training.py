"""The ``training`` benchmark: train at one length under a budget, score at many.

Every model gets the same budget of optimizer steps on the same examples. Scores stream over the
length and are reported as they come, so that a time limit costs only the lengths it cut off.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.scoring import score_at
from benchmarks.speed import describe_backend
from harness import NonFiniteLoss, Trial, Unsupported
from harness.memory import keep_freed_memory, memory_of
from harness.worker import Report
from models import Model, build_model
from models.checkpoint import save_checkpoint
from models.ops.context import observing
from tasks import ExampleStream, Task, TaskError, make_task
from tasks.base import IGNORE_INDEX

_CURVE_POINTS = 60
_MAX_LATENCY_SAMPLES = 50
_WARM_UP_STEPS = 5
VALIDATION_EXAMPLES = 64
SOLVED = 0.95
"""Accuracy on the validation split from which a probe counts as learned (``steps_to_threshold``)."""


@dataclass(kw_only=True)
class TrainingLog:
    """What training leaves behind."""

    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    validation_curve: list[tuple[int, float]] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    train_s: float = 0.0


def run_training(trial: Trial, context: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Train and score one ``training`` trial; see the record's contract for the units."""
    device = torch.device(trial.device)
    task = task_of(trial, context)
    try:
        example = task.sample(ExampleStream(seed=trial.seed), 1, trial.seq_len, device=device)
    except TaskError as error:  # the data are readable but too short: not the data's fault
        raise Unsupported(str(error)) from error
    model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed, device=trial.device)
    with observing() as kernels, torch.no_grad():
        model(example.inputs_BL)
    backend = describe_backend(kernels, trial.dtype, device)
    description = model.describe(trial.seq_len)
    metrics: dict[str, Any] = {
        "params": description.params,
        "state_bytes": description.state_bytes,
        "chance": task.chance,
        "source": {"name": task.provenance.name, "kind": task.provenance.kind, "note": task.provenance.note},
    }
    metrics |= _memory_of_a_step(trial, task, device)
    backend["host_allocator"] = keep_freed_memory()
    report({**metrics, "backend": backend})

    log = TrainingLog()
    train(model, task, trial, log)
    steps = trial.protocol["steps"]
    metrics |= {
        "train_s": round(log.train_s, 3),
        "train_tokens": steps * trial.batch * trial.seq_len,
        "latency_ms": [
            round(ms, 4) for ms in _evenly(log.step_ms[_WARM_UP_STEPS:] or log.step_ms, _MAX_LATENCY_SAMPLES)
        ],
        "tokens_per_s": steps * trial.batch * trial.seq_len / max(log.train_s, 1e-9),
        "loss_curve": log.loss_curve,
        "validation_curve": log.validation_curve,
    }
    learned_at = next((step for step, accuracy in log.validation_curve if accuracy >= SOLVED), None)
    if learned_at is not None and task.metric == "accuracy":
        metrics["steps_to_threshold"] = learned_at
    if context.get("checkpoints"):
        folder = (
            Path(context["checkpoints"]) / f"{trial.model.replace('/', '_')}-{trial.task}-{context['trial_id'][:12]}"
        )
        about = {"task": trial.task, "trial_id": context["trial_id"], "steps": steps, "train_len": trial.seq_len}
        save_checkpoint(model, folder, name=trial.model, about=about)
    report(metrics)

    scores: list[dict[str, Any]] = []
    deadline = time.monotonic() + trial.protocol["score_budget_s"]
    for seq_len in trial.protocol["score_lengths"]:
        scores.append(score_at(model, task, seq_len, trial.protocol, previous=scores, deadline=deadline, device=device))
        report({"scores": scores})
    metrics["scores"] = scores
    at_training_length = next((s for s in scores if s["seq_len"] == trial.seq_len and s["status"] == "ok"), {})
    metrics |= {k: at_training_length[k] for k in ("accuracy", "bits_per_token") if k in at_training_length}
    return {"metrics": metrics, "backend": backend}


def task_of(trial: Trial, context: Mapping[str, Any]) -> Task:
    """The trial's task, on the data that the run was pointed to."""
    assert trial.task is not None
    root, source = context.get("data_root"), context.get("sources", {}).get(trial.task)
    return make_task(
        trial.task,
        data_root=Path(root) if root else None,
        source=Path(source) if source else None,
        **trial.protocol.get("task_options", {}),
    )


def train(model: Model, task: Task, trial: Trial, log: TrainingLog) -> None:
    """Run the whole budget of steps. Raises :class:`NonFiniteLoss` at the first NaN or infinity."""
    protocol, device = trial.protocol, torch.device(trial.device)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, protocol["weight_decay"]), lr=protocol["lr"], betas=tuple(protocol["betas"]), fused=True
    )
    steps, curve_every = protocol["steps"], max(1, protocol["steps"] // _CURVE_POINTS)
    stream = ExampleStream(seed=trial.seed, split="train")
    for step in range(steps):
        started = time.perf_counter_ns()
        for group in optimizer.param_groups:
            group["lr"] = protocol["lr"] * _schedule(step, protocol)
        batch = task.sample(stream.skip(step * trial.batch), trial.batch, trial.seq_len, device=device)
        loss = loss_of(model, batch.inputs_BL, batch.targets_BL)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if protocol["grad_clip"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), protocol["grad_clip"])
        optimizer.step()
        loss_value = loss.item()  # also waits for the device, so that the step's time is whole
        log.step_ms.append((time.perf_counter_ns() - started) / 1e6)
        if not math.isfinite(loss_value):
            raise NonFiniteLoss(f"the loss is {loss_value} at step {step + 1} of {steps}; lower lr={protocol['lr']}")
        if (step + 1) % curve_every == 0 or step + 1 == steps:
            log.loss_curve.append((step + 1, round(loss_value, 5)))
            if task.metric == "accuracy":
                log.validation_curve.append((step + 1, _validation_accuracy(model, task, trial)))
    log.train_s = sum(log.step_ms) / 1e3


def parameter_groups(model: Model, weight_decay: float) -> list[dict[str, Any]]:
    """Decay acts on the matrices of linear layers; never on norms, biases, embeddings or state-space parameters."""
    decayed = [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def loss_of(model: Model, inputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """Mean cross-entropy (nats) over the scored positions; logits are made only for those."""
    scored_BL = targets_BL != IGNORE_INDEX
    hidden_SD = model.hidden(inputs_BL)[scored_BL]
    return F.cross_entropy(model.lm_head(hidden_SD).float(), targets_BL[scored_BL])


def _schedule(step: int, protocol: Mapping[str, Any]) -> float:
    """Linear warm-up, then constant or cosine to a tenth."""
    warm_up = min(1.0, (step + 1) / max(1, protocol["warmup_steps"]))
    if protocol["schedule"] == "constant":
        return warm_up
    return warm_up * (0.55 + 0.45 * math.cos(math.pi * step / protocol["steps"]))


@torch.no_grad()
def _validation_accuracy(model: Model, task: Task, trial: Trial) -> float:
    batch = task.sample(
        ExampleStream(seed=trial.seed, split="validation"), VALIDATION_EXAMPLES, trial.seq_len, device=trial.device
    )
    scored = batch.targets_BL != IGNORE_INDEX
    predicted = model.lm_head(model.hidden(batch.inputs_BL)[scored]).argmax(-1)
    return round((predicted == batch.targets_BL[scored]).float().mean().item(), 4)


def _memory_of_a_step(trial: Trial, task: Task, device: torch.device) -> dict[str, int]:
    """Allocator peak of model, optimizer and two steps, built afresh so that all of it is counted."""

    def two_steps() -> None:
        model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed, device=trial.device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for step in range(2):
            stream = ExampleStream(seed=trial.seed, start=step * trial.batch)
            batch = task.sample(stream, trial.batch, trial.seq_len, device=device)
            optimizer.zero_grad(set_to_none=True)
            loss_of(model, batch.inputs_BL, batch.targets_BL).backward()
            optimizer.step()

    return memory_of(two_steps, device)


def _evenly(values: list[float], count: int) -> list[float]:
    stride = max(1, math.ceil(len(values) / count))
    return values[::stride]
