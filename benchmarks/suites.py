"""A suite: a YAML file that expands to trials. Unknown keys and names are errors with near misses."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness import Direction, Trial, parse_length, parse_lengths
from models import family, find_factory, model_names
from tasks.registry import task_entry

SUITES_FOLDER = Path(__file__).parent / "suites"


class SuiteError(ValueError):
    """A suite, or a selection from it, that makes no sense. The message names the place and the fix."""


def _lengths(value: object) -> object:
    return parse_lengths(value) if isinstance(value, str) else value


def _length(value: object) -> object:
    return parse_length(value) if isinstance(value, str) else value


Lengths = Annotated[list[int], BeforeValidator(_lengths), Field(min_length=1)]
Length = Annotated[int, BeforeValidator(_length), Field(gt=0)]
PerModel = float | dict[str, float]
"""One value, or one a family or model, with ``default`` for the others."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: list[str] = Field(min_length=1)
    batch: int = Field(default=1, gt=0)
    seeds: list[int] = [0]
    dtype: str = "auto"
    time_limit_s: float = Field(default=60, gt=0)


class SpeedEntry(_Entry):
    """Time and memory of one call against length."""

    kind: Literal["speed"]
    level: Literal["operator", "model"]
    directions: list[Direction] = Field(min_length=1)
    lengths: Lengths
    sample_budget_s: float = Field(default=1.0, gt=0)


class TrainingEntry(_Entry):
    """Train at one length under a budget of steps, score at many."""

    kind: Literal["training"]
    tasks: list[str] = Field(min_length=1)
    task_options: dict[str, Any] = {}
    seq_len: Length
    steps: int = Field(gt=0)
    lr: PerModel
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    grad_clip: float = Field(default=1.0, ge=0)
    score_lengths: Lengths
    score_tokens: int = Field(default=2**16, gt=0)
    score_regions: int = Field(default=8, gt=0)
    """Stretches of the test data, at least, each as long as the longest score, that every length is scored on."""
    min_examples: int = Field(default=4, gt=0)
    max_examples: int = Field(default=256, gt=0)
    score_budget_s: float = Field(default=60, gt=0)
    threads: int | None = Field(default=None, gt=0)
    """Threads of a trial; trials that state them run side by side where there are cores enough."""


class Suite(BaseModel):
    """A named list of entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    trials: list[Annotated[SpeedEntry | TrainingEntry, Field(discriminator="kind")]] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the command line picks from a suite, or puts in place of its values."""

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SuiteTrial:
    """A trial and what only its execution needs."""

    trial: Trial
    time_limit_s: float


def suite_names() -> list[str]:
    """The suites that come with seqbench."""
    return sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str) -> Suite:
    """A shipped suite by name, or any YAML file by path. Raises :class:`SuiteError`."""
    path = Path(name_or_path) if name_or_path.endswith((".yaml", ".yml")) else SUITES_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        raise SuiteError(f"unknown suite {name_or_path!r}{_near(name_or_path, suite_names())}; or give a .yaml file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SuiteError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise SuiteError(f"{path}: a suite is a mapping with name, description and trials")
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        raise SuiteError("\n".join(_explain(path, problem, content) for problem in error.errors())) from error
    for number, entry in enumerate(suite.trials):
        try:
            for model in entry.models:
                find_factory(model)
            for task in getattr(entry, "tasks", ()):
                task_entry(task)
        except ValueError as error:
            raise SuiteError(f"{path}, trials[{number}]: {error}") from error
    return suite


def _explain(path: Path, problem: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """One of pydantic's complaints in a sentence, with near misses for unknown keys."""
    location = [part for part in problem["loc"] if part not in ("speed", "training")]
    place = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known: Iterable[str] = Suite.model_fields
        if len(location) > 2:
            kind = content["trials"][location[1]].get("kind")
            known = (SpeedEntry if kind == "speed" else TrainingEntry).model_fields
        return f"{path}: unknown key {place!r}{_near(str(location[-1]), known)}"
    return f"{path}: {place}: {problem['msg']} (got {problem.get('input')!r:.80})"


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3) or names
    return f"; did you mean {', '.join(near)}?"


def expand(
    suite: Suite, selection: Selection, *, device: str, source_of: Mapping[str, Mapping[str, Any]]
) -> list[SuiteTrial]:
    """The trials that a suite and a selection stand for, in the suite's order, none twice.

    Args:
        device: ``cpu`` or ``cuda``, already resolved.
        source_of: identity of the data of every task; it becomes part of the trial's.
    """
    _check_selection(suite, selection)
    trials: dict[Trial, SuiteTrial] = {}
    for entry in suite.trials:
        for trial in _expand_entry(entry, selection, device, source_of):
            trials.setdefault(trial, SuiteTrial(trial=trial, time_limit_s=entry.time_limit_s))
    if not trials:
        raise SuiteError(
            f"nothing in suite {suite.name!r} matches the selection; `seqbench plan {suite.name}` shows what it holds"
        )
    return list(trials.values())


def _check_selection(suite: Suite, selection: Selection) -> None:
    tasks = sorted({task for entry in suite.trials for task in getattr(entry, "tasks", ())})
    for task in selection.tasks:
        if task not in tasks:
            raise SuiteError(f"suite {suite.name!r} has no task {task!r}{_near(task, tasks)}")
    for model in selection.models:
        if not any(_matches(model, known) for entry in suite.trials for known in entry.models):
            try:
                find_factory(model)
            except ValueError as error:
                families = sorted({family(name) for name in model_names()})
                raise SuiteError(f"{error} (families: {', '.join(families)})") from error


def _matches(wanted: str, name: str) -> bool:
    return wanted in (name, family(name))


def _selected_models(entry: SpeedEntry | TrainingEntry, wanted: Sequence[str]) -> list[str]:
    """The entry's models that are wanted, and wanted ones that no suite knows (a user's own)."""
    if not wanted:
        return list(entry.models)
    chosen: dict[str, None] = {}
    for name in wanted:
        matching = [model for model in entry.models if _matches(name, model)]
        for model in matching or ([name] if ".py:" in name or name in model_names() else []):
            chosen[model] = None
    return list(chosen)


def _expand_entry(
    entry: SpeedEntry | TrainingEntry, selection: Selection, device: str, source_of: Mapping[str, Mapping[str, Any]]
) -> Iterator[Trial]:
    models = _selected_models(entry, selection.models)
    seeds = selection.seeds or tuple(entry.seeds)
    if isinstance(entry, SpeedEntry):
        if selection.tasks:
            return
        dtype = entry.dtype if entry.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
        for direction in entry.directions:
            for model in models:
                for seq_len in selection.lengths or entry.lengths:
                    yield Trial(
                        kind="speed",
                        model=model,
                        task=None,
                        seq_len=seq_len,
                        batch=entry.batch,
                        dtype=dtype,
                        direction=direction,
                        device=device,
                        seed=seeds[0],
                        protocol={"level": entry.level, "sample_budget_s": entry.sample_budget_s},
                    )
        return
    score_lengths = sorted({entry.seq_len, *(selection.lengths or entry.score_lengths)})
    for task in entry.tasks:
        if selection.tasks and task not in selection.tasks:
            continue
        for model in models:
            for seed in seeds:
                yield Trial(
                    kind="training",
                    model=model,
                    task=task,
                    seq_len=entry.seq_len,
                    batch=entry.batch,
                    dtype=entry.dtype if entry.dtype != "auto" else "float32",
                    direction="train",
                    device=device,
                    seed=seed,
                    protocol=_training_protocol(entry, task, model, score_lengths, source_of),
                )


def _training_protocol(
    entry: TrainingEntry,
    task: str,
    model: str,
    score_lengths: Sequence[int],
    source_of: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    copied = (
        "steps", "weight_decay", "warmup_steps", "schedule", "grad_clip", "score_tokens", "score_regions",
        "min_examples", "max_examples", "score_budget_s", "task_options", "threads",
    )  # fmt: skip
    return {
        **{name: getattr(entry, name) for name in copied},
        "train_len": entry.seq_len,
        "optimizer": "adamw",
        "betas": list(entry.betas),
        "lr": _per_model(entry.lr, model),
        "score_lengths": list(score_lengths),
        "source": dict(source_of.get(task, {})),
    }


def _per_model(value: PerModel, model: str) -> float:
    if not isinstance(value, dict):
        return value
    for key in (model, family(model), "default"):
        if key in value:
            return value[key]
    raise SuiteError(f"lr gives no value for {model!r}; add it, its family, or default")
