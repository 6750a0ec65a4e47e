"""The ``training`` benchmark: train at one length under a budget, score at many.

Every model gets the same budget of optimizer steps on the same examples. Scores stream over the
length and are reported as they come, so that a time limit costs only the lengths it cut off. What a
time limit cuts in training itself is saved, and the same command goes on from there.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.answers import answers_of
from benchmarks.scoring import score_at
from benchmarks.speed import describe_backend
from benchmarks.training_learner import DTYPES, Learner, autocast, sampled_evenly, training_facts
from benchmarks.training_loop import train
from benchmarks.training_start import start_from_checkpoint
from benchmarks.training_state import load_state, save_state, state_path
from harness import CutShort, Trial, TrialFailure, Unsupported
from harness.memory import keep_freed_memory, memory_of
from harness.worker import Report
from models import build_model
from models.checkpoint import save_checkpoint
from models.ops.context import observing
from tasks import ExampleStream, Task, TaskError, make_task
from tasks.cache import write_atomically

_MAX_LATENCY_SAMPLES = 50
_WARM_UP_STEPS = 5
_STOP_SHARE, _MOST_STOP_S = 0.2, 10.0
"""How long before its time is up a training stops, to be saved: this share of the time, at most so long."""
_SCORING_SHARE = 0.25
"""Scoring does not begin in less than this share of the trial's time, or than its own budget."""


@dataclass(kw_only=True)
class _Member:
    """One trial of a process: alone, or with others that differ in the seed."""

    trial: Trial
    trial_id: str
    learner: Learner
    metrics: dict[str, Any]
    backend: dict[str, Any]
    resumed_from: int = 0
    failure: TrialFailure | None = None
    status: str | None = None
    error: dict[str, str] | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        part: dict[str, Any] = {"metrics": self.metrics, "backend": self.backend}
        if self.status:
            part["status"] = self.status
        if self.error:
            part["error"] = self.error
        return part


def run_training(trial: Trial, context: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Train and score one ``training`` trial, or several that differ in the seed.

    Args:
        context: ``trial_id``; of several, the others' ``companions`` (``trial`` and ``trial_id`` each); folders
            ``checkpoints`` and ``states``; ``deadline`` (``time.monotonic``), when the process is ended from outside.

    Returns:
        ``metrics`` and ``backend``; of several, each trial's own in ``metrics["by_trial"]``.
    """
    began, device = time.monotonic(), torch.device(trial.device)
    if trial.dtype not in DTYPES:
        raise Unsupported(f"dtype={trial.dtype!r}: training runs in {' or '.join(DTYPES)}")
    task = task_of(trial, context)
    members = _members(trial, task, context, device)
    together = len(members) > 1

    def publish() -> None:
        if together:
            report({"by_trial": {member.trial_id: member.as_dict() for member in members}})
        else:
            report({**members[0].metrics, "backend": members[0].backend})

    publish()
    deadline = context.get("deadline", math.inf)
    limit_s = deadline - began
    _train(members, context, deadline=deadline - min(_STOP_SHARE * limit_s, _MOST_STOP_S), publish=publish)
    if not together and members[0].failure is not None:
        raise members[0].failure
    for member in members:
        member.learner.take_selected()
    _save_checkpoints(members, context)
    wanted_s = min(len(members) * trial.protocol["score_budget_s"], _SCORING_SHARE * limit_s)
    trained_here = any(member.learner.done > member.resumed_from for member in members)  # else it would never score
    if trained_here and deadline - time.monotonic() < wanted_s:
        raise CutShort("all steps are taken, but no time is left to score; run the same command again to go on")
    for member in members:
        if member.failure is None:
            _score(member, task, device, publish)
    if together:
        return {"metrics": {"by_trial": {member.trial_id: member.as_dict() for member in members}}}
    return {"metrics": members[0].metrics, "backend": members[0].backend}


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


def _members(trial: Trial, task: Task, context: Mapping[str, Any], device: torch.device) -> list[_Member]:
    """The process's trials, each with its model; what does not depend on the seed is measured once."""
    try:
        example = task.sample(ExampleStream(seed=trial.seed), 1, trial.seq_len, device=device)
        answers_of(task, trial.protocol)
    except TaskError as error:  # data that are readable but too short, or a choice that is not this task's
        raise Unsupported(str(error)) from error
    model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed, device=trial.device)
    with observing() as kernels, torch.no_grad(), autocast(trial):
        model(example.inputs_BL)
    precision = trial.dtype if trial.dtype == "float32" else f"autocast {trial.dtype}, float32 weights"
    backend = describe_backend(kernels, precision, device)
    description = model.describe(trial.seq_len)
    metrics: dict[str, Any] = {
        "params": description.params,
        "state_bytes": description.state_bytes,
        "chance": task.chance,
        "source": {"name": task.provenance.name, "kind": task.provenance.kind, "note": task.provenance.note},
        # The model's own products and mixing, forward and twice as much backward; nothing that is computed again.
        "model_flops_per_step": 3.0 * trial.batch * description.forward_flops,
        "loss_on": "every position" if task.scored_positions("train") == slice(None) else "answers",
    }
    if task.provenance.tokenizer_sha256:
        metrics["source"]["tokenizer_sha256"] = task.provenance.tokenizer_sha256
    del model
    metrics |= _memory_of_a_step(trial, task, device)
    backend["host_allocator"] = keep_freed_memory()
    given = [(trial, context["trial_id"])]
    given += [(Trial.from_dict(other["trial"]), other["trial_id"]) for other in context.get("companions", ())]
    if len(given) > 1:
        metrics["seeds_together"] = len(given)
    members = []
    for own, trial_id in given:
        own_model = build_model(own.model, vocab_size=task.vocab_size, seed=own.seed, device=own.device)
        start_from_checkpoint(own_model, task, own, context.get("init_from"))
        learner = Learner(own_model, task, own)
        member = _Member(trial=own, trial_id=trial_id, learner=learner, metrics=dict(metrics), backend=dict(backend))
        if context.get("states"):
            ignored = load_state(learner, state_path(context["states"], trial_id), trial_id=trial_id)
            if ignored:
                member.metrics["state_ignored"] = ignored
        member.resumed_from = learner.done
        members.append(member)
    return members


def _train(members: list[_Member], context: Mapping[str, Any], *, deadline: float, publish: Callable[[], None]) -> None:
    """Whatever steps are left; leaves curves and times in the members' metrics, however it ends."""
    ids = {id(member.learner): member.trial_id for member in members}
    folder = context.get("states")

    def save(learner: Learner) -> None:
        trial_id = ids[id(learner)]
        save_state(learner, state_path(folder, trial_id), trial_id=trial_id)  # type: ignore[arg-type]

    try:
        train([member.learner for member in members], deadline=deadline, save=save if folder else None)
        for member in members:
            if folder and member.learner.failure is None and member.learner.done > member.resumed_from:
                save(member.learner)
    finally:
        for member in members:
            member.metrics |= training_facts(member.learner)
            member.backend |= member.learner.log.captured
            if len(members) == 1:
                member.metrics |= _times(member)
            if (failure := member.learner.failure) is not None:
                member.failure, member.status = failure, failure.status
                member.error = {"type": type(failure).__name__, "message": str(failure), "tail": ""}
        publish()


def _times(member: _Member) -> dict[str, Any]:
    """Of a trial that had the device to itself; those that shared it claim no speed of their own."""
    learner = member.learner
    if not learner.log.step_ms:
        return {}
    if learner.device.type == "cuda":
        samples = learner.log.step_ms
    else:
        samples = learner.log.step_ms[_WARM_UP_STEPS:] or learner.log.step_ms
    return {
        "latency_ms": [round(ms, 4) for ms in sampled_evenly(samples, _MAX_LATENCY_SAMPLES)],
        "tokens_per_s": learner.done * learner.trial.batch * learner.trial.seq_len / max(learner.log.train_s, 1e-9),
    }


def _save_checkpoints(members: list[_Member], context: Mapping[str, Any]) -> None:
    if not context.get("checkpoints"):
        return
    for member in members:
        if member.failure is None:
            trial = member.trial
            name = f"{trial.model.replace('/', '_')}-{trial.task}-{member.trial_id[:12]}"
            about = {
                "task": trial.task, "trial_id": member.trial_id, "steps": trial.protocol["steps"],
                "train_len": trial.seq_len, "seed": trial.seed,
            }  # fmt: skip
            if (selected := member.learner.selected) is not None:
                about["selected_step"] = selected.step
            if (tokenizer := member.learner.task.provenance.tokenizer_sha256) is not None:
                about["tokenizer_sha256"] = tokenizer
            folder = Path(context["checkpoints"]) / name
            for file, content in member.learner.task.checkpoint_files().items():
                write_atomically(folder / file, content.encode())
            save_checkpoint(member.learner.model, folder, name=trial.model, about=about)


def _score(member: _Member, task: Task, device: torch.device, publish: Callable[[], None]) -> None:
    """Score one trained model at every length; its metrics and status are then whole."""
    trial, metrics = member.trial, member.metrics
    deadline = time.monotonic() + trial.protocol["score_budget_s"]
    metrics["scores"] = member.scores
    for seq_len in trial.protocol["score_lengths"]:
        with autocast(trial):
            entry = score_at(
                member.learner.model, task, seq_len, trial.protocol,
                previous=member.scores, deadline=deadline, device=device,
            )  # fmt: skip
        member.scores.append(entry)
        publish()
    at_training_length = next((s for s in member.scores if s["seq_len"] == trial.seq_len and s["status"] == "ok"), {})
    figures = ("accuracy", "bits_per_token", "mcc", "balanced_accuracy")
    metrics |= {k: at_training_length[k] for k in figures if k in at_training_length}
    member.status = "ok"


def _memory_of_a_step(trial: Trial, task: Task, device: torch.device) -> dict[str, int]:
    """Allocator peak of model, optimizer and two steps at full length, built afresh so that all of it is counted."""
    trial = replace(trial, protocol={**trial.protocol, "length_warmup": []})

    def two_steps() -> None:
        model = build_model(trial.model, vocab_size=task.vocab_size, seed=trial.seed, device=trial.device)
        learner = Learner(model, task, trial, block_steps=1)
        for _ in range(min(2, learner.steps)):
            learner.prepare()
            learner.step()
            learner.done += 1

    return memory_of(two_steps, device)
