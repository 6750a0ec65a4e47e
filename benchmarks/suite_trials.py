"""The trials that a suite stands for, all of them or a selection."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.suite_entries import AudioGenerationEntry, Entry, GenerationEntry, PerModel, SpeedEntry, TrainingEntry
from benchmarks.suites import Suite, SuiteError, near_misses
from benchmarks.training_start import identify
from harness import Trial
from models import family, find_factory, model_names


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the command line picks from a suite, or puts in place of its values."""

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    guests: frozenset[str] = frozenset()
    """Of the models, those that the suite does not know; :func:`expand` finds them. They join every fitting entry."""


@dataclass(frozen=True, kw_only=True)
class SuiteTrial:
    """A trial and what only its execution needs."""

    trial: Trial
    time_limit_s: float
    init_from: str | None = None
    """Where the checkpoint lies that the trial's protocol names."""


def expand(
    suite: Suite, selection: Selection, *, device: str, source_of: Mapping[str, Mapping[str, Any]]
) -> list[SuiteTrial]:
    """The trials that a suite and a selection stand for, in the suite's order, none twice.

    Args:
        device: ``cpu`` or ``cuda``, already resolved.
        source_of: identity of the data of every task; it becomes part of the trial's.
    """
    _check_selection(suite, selection)
    known = [name for entry in suite.trials for name in _names(entry)]
    guests = frozenset(name for name in selection.models if not any(_matches(name, model) for model in known))
    selection = replace(selection, guests=guests)
    trials: dict[Trial, SuiteTrial] = {}
    for entry in (entry for entry in suite.trials if device in entry.devices):
        for trial in _expand_entry(entry, selection, device, source_of):
            time_limit_s = _per_model("time_limit_s", entry.time_limit_s, trial.model)
            start = getattr(entry, "init_from", None)
            folder = None if start is None else start.folder
            trials.setdefault(trial, SuiteTrial(trial=trial, time_limit_s=time_limit_s, init_from=folder))
    if not trials:
        raise SuiteError(
            f"nothing in suite {suite.name!r} matches the selection; `seqbench plan {suite.name}` shows what it holds"
        )
    return list(trials.values())


def _check_selection(suite: Suite, selection: Selection) -> None:
    tasks = sorted({task for entry in suite.trials for task in getattr(entry, "tasks", ())})
    for task in selection.tasks:
        if task not in tasks:
            raise SuiteError(f"suite {suite.name!r} has no task {task!r}{near_misses(task, tasks)}")
    for model in selection.models:
        if not any(_matches(model, known) for entry in suite.trials for known in _names(entry)):
            try:
                find_factory(model)
            except ValueError as error:
                families = sorted({family(name) for name in model_names()})
                raise SuiteError(f"{error} (families: {', '.join(families)})") from error


def _matches(wanted: str, name: str) -> bool:
    return wanted in (name, family(name))


def _names(entry: Entry) -> list[str]:
    """What the entry's trials call their model: models, ceilings, or operators."""
    return list(getattr(entry, "operators", ()) or entry.models)


def _selected_models(entry: Entry, selection: Selection) -> list[str]:
    """The entry's models that are wanted, and wanted ones that the suite does not know (a user's own)."""
    if not selection.models:
        return _names(entry)
    takes_others = not isinstance(entry, SpeedEntry) or (not entry.operators and entry.level != "ceiling")
    if isinstance(entry, GenerationEntry):
        takes_others = "transformers" not in entry.loops
    chosen: dict[str, None] = {}
    for name in selection.models:
        matching = [model for model in _names(entry) if _matches(name, model)]
        joins = takes_others and name in selection.guests and (".py:" in name or name in model_names())
        for model in matching or ([name] if joins else []):
            chosen[model] = None
    return list(chosen)


def _expand_entry(
    entry: Entry, selection: Selection, device: str, source_of: Mapping[str, Mapping[str, Any]]
) -> Iterator[Trial]:
    if isinstance(entry, TrainingEntry):
        yield from _training_trials(entry, selection, device, source_of)
    elif isinstance(entry, AudioGenerationEntry):
        yield from _audio_generation_trials(entry, selection, device, source_of)
    elif not selection.tasks:  # they ask no task anything
        expand_one = _speed_trials if isinstance(entry, SpeedEntry) else _generation_trials
        yield from expand_one(entry, selection, device)  # type: ignore[arg-type]


def _dtype(entry: Entry, device: str) -> str:
    return entry.dtype if entry.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"


def _speed_trials(entry: SpeedEntry, selection: Selection, device: str) -> Iterator[Trial]:
    # A ceiling's length is its own measure, which the trials' lengths do not stand in for.
    lengths = entry.lengths if entry.level == "ceiling" else selection.lengths or entry.lengths
    protocol: dict[str, Any] = {"level": entry.level, "sample_budget_s": entry.sample_budget_s}
    if entry.operators:
        protocol |= {"width": entry.width, "d_state": entry.d_state, "head_dim": entry.head_dim}
    if entry.tokens:
        protocol["tokens"] = entry.tokens
    for direction in entry.directions:
        for model in _selected_models(entry, selection):
            for seq_len in lengths:
                batches = [entry.tokens // seq_len] if entry.tokens else entry.batches or [entry.batch]
                for batch in filter(None, batches):  # a length above the tokens has no batch
                    yield Trial(
                        kind="speed",
                        model=model,
                        task=None,
                        seq_len=seq_len,
                        batch=batch,
                        dtype=_dtype(entry, device),
                        direction=direction,
                        device=device,
                        seed=(selection.seeds or entry.seeds)[0],
                        protocol=dict(protocol),
                    )


def _generation_trials(entry: GenerationEntry, selection: Selection, device: str) -> Iterator[Trial]:
    for loop in entry.loops:
        for model in _selected_models(entry, selection):
            for prompt in selection.lengths or (entry.prompt,):
                for batch in entry.batches:
                    yield Trial(
                        kind="generation",
                        model=model,
                        task=None,
                        seq_len=prompt,
                        batch=batch,
                        dtype=_dtype(entry, device),
                        direction="forward",
                        device=device,
                        seed=(selection.seeds or entry.seeds)[0],
                        protocol={
                            "new_tokens": entry.new_tokens, "loop": loop, "sample_budget_s": entry.sample_budget_s,
                        },
                    )  # fmt: skip


def _audio_generation_trials(
    entry: AudioGenerationEntry, selection: Selection, device: str, source_of: Mapping[str, Mapping[str, Any]]
) -> Iterator[Trial]:
    copied = ("start", "new_samples", "temperature", "top_p")
    seeds, prompts = selection.seeds or entry.seeds, selection.lengths or (entry.prompt,)
    tasks = [task for task in entry.tasks if not selection.tasks or task in selection.tasks]
    models = _selected_models(entry, selection)
    for task, loop, model, prompt, batch, seed in product(tasks, entry.loops, models, prompts, entry.batches, seeds):
        protocol = {name: getattr(entry, name) for name in copied} | {"loop": loop}
        if start := entry.init_from:
            trained = {"seq_len": start.seq_len or prompt, "seed": seed if start.seed is None else start.seed}
            protocol["init_from"] = identify(Path(start.folder), model=model, **trained)
        yield Trial(
            kind="audio_generation",
            model=model,
            task=task,
            seq_len=prompt,
            batch=batch,
            dtype=_dtype(entry, device),
            direction="forward",
            device=device,
            seed=seed,
            protocol=protocol | {"source": dict(source_of.get(task, {}))},
        )


def _training_trials(
    entry: TrainingEntry, selection: Selection, device: str, source_of: Mapping[str, Mapping[str, Any]]
) -> Iterator[Trial]:
    for seq_len in entry.train_lengths:
        scored = entry.score_lengths or []
        if entry.lengths is None:
            scored = list(selection.lengths) or scored
        elif selection.lengths and seq_len not in selection.lengths:
            continue
        score_lengths = sorted({seq_len, *scored})
        for task in entry.tasks:
            if selection.tasks and task not in selection.tasks:
                continue
            for model in _selected_models(entry, selection):
                for seed in selection.seeds or entry.seeds:
                    protocol = _training_protocol(entry, task, model, seq_len, score_lengths, source_of, device)
                    if start := entry.init_from:
                        protocol["init_from"] = identify(
                            Path(start.folder),
                            model=model,
                            seq_len=start.seq_len or seq_len,
                            seed=seed if start.seed is None else start.seed,
                        )
                    yield Trial(
                        kind="training",
                        model=model,
                        task=task,
                        seq_len=seq_len,
                        batch=entry.batch_at(seq_len),
                        dtype=entry.dtype if entry.dtype != "auto" else "float32",
                        direction="train",
                        device=device,
                        seed=seed,
                        protocol=protocol,
                    )


_NAMED_IF_CHOSEN = (
    "tf32", "curve_every", "validation_examples", "validation_loss", "select", "answers", "threshold",
    "seeds_together", "final_lr",
)  # fmt: skip
"""Choices that protocols did not have at first: naming their defaults would part every trial from its baseline."""


def _default(name: str) -> Any:
    return TrainingEntry.model_fields[name].default


def _training_protocol(
    entry: TrainingEntry,
    task: str,
    model: str,
    seq_len: int,
    score_lengths: Sequence[int],
    source_of: Mapping[str, Mapping[str, Any]],
    device: str,
) -> dict[str, Any]:
    """Every choice by name; those of :data:`_NAMED_IF_CHOSEN` are left out at their defaults."""
    copied = (
        "steps", "weight_decay", "warmup_steps", "schedule", "grad_clip", "score_tokens", "score_regions",
        "min_examples", "max_examples", "score_budget_s", "task_options", "threads",
    )  # fmt: skip
    chosen = {name: getattr(entry, name) for name in _NAMED_IF_CHOSEN if getattr(entry, name) != _default(name)}
    if device == "cpu":  # it has neither
        chosen = {name: value for name, value in chosen.items() if name not in ("seeds_together", "tf32")}
    if stages := entry.stages_at(seq_len):
        chosen["length_warmup"] = stages
    if (parts := min(entry.microbatches, entry.batch_at(seq_len))) > 1:
        chosen["microbatches"] = parts
    return {
        **{name: getattr(entry, name) for name in copied},
        **chosen,
        "train_len": seq_len,
        "optimizer": entry.optimizer,
        "betas": list(entry.betas),
        "lr": _per_model("lr", entry.lr, model),
        "score_lengths": list(score_lengths),
        "source": dict(source_of.get(task, {})),
    }


def _per_model(name: str, value: PerModel, model: str) -> float:
    if not isinstance(value, dict):
        return value
    for key in (model, family(model), "default"):
        if key in value:
            return value[key]
    raise SuiteError(f"{name} gives no value for {model!r}; add it, its family, or default")
