"""What the exact tier computes: figures of models, tasks and seeded trainings that need no clock and no GPU.

Each figure is the same on every machine, or nearly; which depend on a version, and how far they may move, stands in
exact_tolerances.toml. To be so they are made on one thread, with the portable scan, and from generators and embedded
samples alone: :func:`prepare_process` sees to that, for good, so it belongs into a process of the tier's own.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.exact_compare import Value
from benchmarks.plan import predicted_cost
from benchmarks.scoring import score_at
from benchmarks.suite_entries import TrainingEntry
from benchmarks.training_learner import Learner
from benchmarks.training_loop import train
from benchmarks.workloads import build_workload
from harness import Direction, Trial, Unsupported, format_length
from harness.outcomes import Unpredictable
from models import MODELS, SequenceModel, build_model, find_factory
from models.ops.context import without_data
from models.ops.selective_scan import force_backend
from tasks import SPLITS, TASKS, ExampleStream, make_task

SIZES = ("tiny", "130m")
LENGTHS = (512, 2048)
DEVICES, LARGE_DEVICES = ("cpu", "cuda"), ("cuda",)
"""For which costs are predicted; nobody trains large models on a CPU."""
DIRECTIONS: tuple[Direction, ...] = ("forward", "train")
COUNTED_LENGTH = 64
"""Operators are counted in calls that really run, on a CPU."""
VOCAB = 256
SMALL_PARAMS = 10_000_000
"""Beyond it costs are predicted of the first block alone, which is soon done, and no call is run."""
TRAINED_MODELS = ("mamba-tiny", "transformer-tiny", "s4d-tiny")
TRAINED_TASKS = ("selective_copying", "induction_heads", "dna")
TRAINED_STEPS = 5
SCORED_LENGTHS = (64, 256)
_HASHED_EXAMPLES, _HASHED_LENGTH = 4, 256


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: of what (a model, ``task language``, …), which, and under which conditions."""

    subject: str
    metric: str
    at: str
    value: Value


def prepare_process(cache: str) -> None:
    """One thread, no data but embedded samples, an empty cache (a pinned download may lie in the user's)."""
    for name in ("SEQBENCH_DATA", "SEQBENCH_DOWNLOAD"):
        os.environ.pop(name, None)
    os.environ["SEQBENCH_CACHE"] = cache
    torch.set_num_threads(1)  # scratch buffers of CPU kernels, and so predicted peaks, grow with threads


def subjects() -> tuple[str, ...]:
    """All that the golden file holds: every listed model of :data:`SIZES`, every task, the trainings."""
    models = [name for name in MODELS if name.endswith(tuple(f"-{size}" for size in SIZES))]
    trainings = [f"training {task} {model}" for task in TRAINED_TASKS for model in TRAINED_MODELS]
    return (*models, *(f"task {name}" for name in TASKS), *trainings)


def figures_of(subject: str) -> list[Figure]:
    """Every figure of one subject. Raises ValueError for a model that nobody knows."""
    kind, _, rest = subject.partition(" ")
    with force_backend("chunked"):  # the compiled scan is there on some machines only, and tested elsewhere
        if kind == "task" and rest:
            found = _task_figures(rest)
        elif kind == "training" and rest:
            found = _training_figures(*rest.split(" "))
        else:
            found = _model_figures(subject)
        return [Figure(subject=subject, metric=metric, at=at, value=_short(value)) for metric, at, value in found]


_Found = Iterator[tuple[str, str, Value]]


def _short(value: Value) -> Value:
    """Six digits are more than any band asks for; counts are whole."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else float(f"{value:.6g}")


# --- models --------------------------------------------------------------------------------------------------------


def _model_figures(name: str) -> _Found:
    with without_data():
        model = find_factory(name)(vocab_size=VOCAB)
    yield "params", f"vocabulary of {VOCAB}", model.num_params
    for seq_len in LENGTHS:
        description, at = model.describe(seq_len), f"L={format_length(seq_len)}"
        yield "forward_flops", at, description.forward_flops
        yield "state_bytes", at, description.state_bytes
        yield "state_bytes_per_token", at, description.state_bytes / seq_len
    is_small = model.num_params <= SMALL_PARAMS
    level = "model" if is_small or not isinstance(model, SequenceModel) else "block"
    for device in DEVICES if is_small else LARGE_DEVICES:
        for direction in DIRECTIONS:
            for seq_len in LENGTHS:
                yield from _predictions(_trial(name, level, direction, seq_len, device))
    if is_small:
        for direction in DIRECTIONS:
            yield "operators", f"{direction} L={COUNTED_LENGTH}", _operators(name, direction)


def _trial(name: str, level: str, direction: Direction, seq_len: int, device: str = "cpu") -> Trial:
    return Trial(
        kind="speed", model=name, task=None, seq_len=seq_len, batch=1, dtype="float32",
        direction=direction, device=device, seed=0, protocol={"level": level},
    )  # fmt: skip


def _predictions(trial: Trial) -> _Found:
    at = f"{trial.protocol['level']} {trial.direction} {trial.device} L={format_length(trial.seq_len)}"
    try:
        cost = predicted_cost(trial)
    except (Unpredictable, Unsupported) as failure:
        yield "predicted_peak_bytes", at, f"none: {failure}"
        return
    yield "predicted_peak_bytes", at, cost.peak_bytes
    yield "predicted_flops", at, cost.flops


class _Counter(TorchDispatchMode):
    """How many of PyTorch's operators are called; those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operators(name: str, direction: Direction) -> int:
    """Of the second call: a train step's first one makes the optimizer's state."""
    call = build_workload(_trial(name, "model", direction, COUNTED_LENGTH)).call
    call()
    with _Counter() as counter:
        call()
    return counter.count


# --- tasks ---------------------------------------------------------------------------------------------------------


def _task_figures(name: str) -> _Found:
    task = make_task(name)
    # The embedded text is CPython's own, so that its hash means something within one version of it only.
    metric = "text_sha256" if task.provenance.kind == "embedded" and name == "language" else "examples_sha256"
    for split in SPLITS:
        batch = task.sample(ExampleStream(seed=0, split=split), _HASHED_EXAMPLES, _HASHED_LENGTH)
        content = batch.inputs_BL.numpy().tobytes() + batch.targets_BL.numpy().tobytes()
        at = f"{split}, {_HASHED_EXAMPLES} of L={_HASHED_LENGTH}, seed 0, version {task.version}"
        yield metric, at, hashlib.sha256(content).hexdigest()


# --- seeded trainings ----------------------------------------------------------------------------------------------


def _training_figures(task_name: str, model_name: str) -> _Found:
    """The loss of every step, then what the model scores: the same code that a ``training`` trial runs."""
    protocol = _protocol(task_name)
    trial = Trial(
        kind="training", model=model_name, task=task_name, seq_len=64, batch=16, dtype="float32",
        direction="train", device="cpu", seed=0, protocol=protocol,
    )  # fmt: skip
    task = make_task(task_name)
    learner = Learner(build_model(model_name, vocab_size=task.vocab_size, seed=0), task, trial)
    train([learner])
    for step, loss in learner.log.loss_curve:
        yield "loss", f"step {step}", loss
    for seq_len in SCORED_LENGTHS:
        entry = score_at(
            learner.model, task, seq_len, protocol, previous=(), deadline=math.inf, device=torch.device("cpu")
        )
        yield task.metric, f"L={seq_len}", entry[task.metric]["value"]


def _protocol(task_name: str) -> Mapping[str, Any]:
    """A suite's own defaults, with few steps and few examples."""
    entry = TrainingEntry(
        kind="training", tasks=[task_name], models=list(TRAINED_MODELS), seq_len=64, batch=16, lr=1e-3,
        steps=TRAINED_STEPS, curve_every=1, validation_examples=16, score_lengths=list(SCORED_LENGTHS),
        score_tokens=2**14, max_examples=128, score_regions=4,
    )  # fmt: skip
    return entry.model_dump(warnings=False, exclude_none=True)
