"""A suite: a YAML file of entries that stand for trials. Unknown keys and names are errors with near misses."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.ceilings import CEILINGS
from benchmarks.operators import OPERATORS
from benchmarks.suite_entries import ENTRIES, AudioGenerationEntry, Entry, GenerationEntry, SpeedEntry, TrainingEntry
from models import find_factory
from tasks.registry import task_entry

SUITES_FOLDER = Path(__file__).parent / "suites"


class SuiteError(ValueError):
    """A suite, or a selection from it, that makes no sense. The message names the place and the fix."""


class Suite(BaseModel):
    """A named list of entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    trials: list[Annotated[Entry, Field(discriminator="kind")]] = Field(min_length=1)


def suite_names() -> list[str]:
    """The suites that come with seqbench."""
    return sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str) -> Suite:
    """A shipped suite by name, or any YAML file by path. Raises :class:`SuiteError`."""
    is_path = name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path) if is_path else SUITES_FOLDER / f"{name_or_path}.yaml"
    if is_path and not path.is_file():
        raise SuiteError(f"{path} is no file; suites that come with seqbench go by name: {', '.join(suite_names())}")
    if not path.is_file():
        raise SuiteError(
            f"unknown suite {name_or_path!r}{near_misses(name_or_path, suite_names())}; or give a .yaml file"
        )
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
            check_entry(entry)
        except ValueError as error:
            raise SuiteError(f"{path}, trials[{number}]: {error}") from error
    return suite


def check_entry(entry: Entry) -> None:
    """Raises ValueError with the near misses of a name that does not exist."""
    if isinstance(entry, TrainingEntry | AudioGenerationEntry):
        for task in entry.tasks:
            task_entry(task)
    if isinstance(entry, GenerationEntry):
        _check_generation(entry)
    elif isinstance(entry, SpeedEntry) and (entry.operators or entry.level == "ceiling"):
        what, known = ("ceiling", list(CEILINGS)) if entry.level == "ceiling" else ("operator", list(OPERATORS))
        for name in entry.operators or entry.models:
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}{near_misses(name, known)}")
    else:
        for model in entry.models:
            find_factory(model)


def _check_generation(entry: GenerationEntry) -> None:
    """The plain loop of transformers runs models of that library, and the suite's loops the suite's own."""
    from benchmarks.generation_models import GPT_NEOX

    for model in entry.models:
        if model not in GPT_NEOX:
            find_factory(model)
        others = [loop for loop in entry.loops if (loop == "transformers") != (model in GPT_NEOX)]
        if others:
            raise ValueError(
                f"loop {others[0]!r} does not run {model!r}; transformers runs {', '.join(GPT_NEOX)}, "
                "cuda_graph and eager the suite's own models: use an entry each"
            )


def _explain(path: Path, problem: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """One of pydantic's complaints in a sentence, with near misses for unknown keys."""
    location = [part for part in problem["loc"] if part not in ENTRIES]
    place = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known: Iterable[str] = Suite.model_fields
        if len(location) > 2:
            known = ENTRIES[content["trials"][location[1]]["kind"]].model_fields
        return f"{path}: unknown key {place!r}{near_misses(str(location[-1]), known)}"
    return f"{path}: {place}: {problem['msg']} (got {problem.get('input')!r:.80})"


def near_misses(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(names)}"
