"""The plan: every trial of a suite with its identity and predicted cost, before anything runs."""

import contextlib
import functools
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.speed import MIN_CALLS
from benchmarks.suite_trials import SuiteTrial
from benchmarks.workloads import build_workload, num_like_layers
from harness import Trial, TrialFailure
from harness.code_version import code_version
from harness.outcomes import Unpredictable
from harness.prediction import Prediction, predict
from harness.trials import canonical_json
from harness.units import PlannedTrial
from models import build_fake_model
from models.ops import scan_kernel
from models.ops.context import observing, predicting
from models.ops.selective_scan import force_backend
from tasks import Task, make_task
from tasks.cache import cache_dir, write_atomically
from tasks.language.text import DEFAULT_BPE_VOCAB

ROOT = Path(__file__).parent.parent
_START_S = {"cpu": 0.4, "cuda": 1.2}
"""Fork, build, and exit: what a trial costs however short its calls are. On a GPU also the driver's start."""
_SMALL_STEP_S = {"cpu": 2e-3, "cuda": 5e-4}
"""About what a recurrent step takes however small it is, where the host or a graph issues its many kernels."""
_NOT_IN_SPEED_KEY = frozenset({"sample_budget_s"})
_MODULES = {
    "speed": ("speed", "workloads", "operators", "operator_costs", "ceilings"),
    "generation": ("generation*", "workloads"),
    "audio_generation": ("audio_generation*", "generation*", "training_start", "speech_metrics*", "workloads"),
    "training": ("training*", "scoring"),
}
"""The modules of benchmarks/ that a kind's measurement uses, beside the worker's."""
_FEW_LAYERS = (2, 4)
"""Of a model of more layers, all alike, these are run on fake tensors, and a line through both gives the whole."""
_TWO_BATCHES = (8, 16)
_MAX_WORKERS, _TRIALS_A_WORKER = 16, 16
"""Costs are predicted side by side where cores and trials are many: a worker imports PyTorch first."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run is given beside its suite; reaches every worker, belongs to no trial's identity."""

    cores: tuple[int, ...]
    data_root: Path | None = None
    sources: Mapping[str, Path] | None = None
    checkpoints: Path | None = None
    """Where trained models are kept; None keeps none."""
    states: Path | None = None
    """Where the state of a training that was cut is kept; None: it cannot be continued."""
    clips: Path | None = None
    """Where generated sound is kept; None keeps none."""

    def payload(self) -> dict[str, Any]:
        return {
            "data_root": str(self.data_root) if self.data_root else None,
            "checkpoints": str(self.checkpoints) if self.checkpoints else None,
            "states": str(self.states) if self.states else None,
            "clips": str(self.clips) if self.clips else None,
            "sources": {task: str(path) for task, path in (self.sources or {}).items()},
        }


def plan_trials(trials: Sequence[SuiteTrial], settings: RunSettings) -> list[PlannedTrial]:
    """Plan trials, cheap ones first. Nothing is allocated: costs come from fake tensors."""
    torch.set_num_threads(len(settings.cores))  # scratch buffers of CPU kernels grow with it
    scan_kernel.ensure_built()  # so that no trial's clock or fork sees the compiler
    ids = trial_ids(trials)
    costs = _costs([item.trial for item in trials], ids, num_cores=len(settings.cores))
    planned = [_plan(item, settings, trial_id, cost) for item, trial_id, cost in zip(trials, ids, costs, strict=True)]
    return sorted(planned, key=_expense)


def trial_ids(trials: Sequence[SuiteTrial]) -> list[str]:
    """Identities, which the code that a trial uses is part of."""
    versions: dict[tuple[object, ...], str] = {}  # a look at some 200 files, the same for most trials
    ids = []
    for trial in (item.trial for item in trials):
        key = (trial.kind, trial.task is None, trial.model.rpartition(":")[0])
        if key not in versions:
            versions[key] = code_version(code_of(trial))
        ids.append(trial.trial_id(versions[key]))
    return ids


def _expense(plan: PlannedTrial) -> tuple[bool, float]:
    """Order of the run: cheap trials first, then those whose cost nobody knows."""
    return plan.flops is None and not plan.unsupported, (plan.flops or 0.0) * plan.calls + 1e9 * plan.extra_s


def _plan(item: SuiteTrial, settings: RunSettings, trial_id: str, cost: Prediction | str | None) -> PlannedTrial:
    trial = item.trial
    plan = PlannedTrial(
        trial=trial,
        trial_id=trial_id,
        time_limit_s=item.time_limit_s,
        num_threads=trial.protocol.get("threads"),
        payload=settings.payload() | ({"init_from": str(Path(item.init_from).resolve())} if item.init_from else {}),
        together=_together_key(trial),
        max_together=trial.protocol.get("seeds_together", 1),
        speed_key=_speed_key(trial),
        extra_s=_START_S[trial.device],
        whole_device=trial.kind == "generation" and trial.batch == 0 and trial.device == "cuda",
    )
    if isinstance(cost, str):
        return replace(plan, unsupported=cost)
    if cost is None:
        return plan
    calls = MIN_CALLS[trial.device][trial.direction]
    extra_s = _START_S[trial.device]
    if trial.kind == "training":
        calls = trial.protocol["steps"] + 2.0
        extra_s += 0.3 * trial.protocol["score_budget_s"]
    if trial.kind == "audio_generation":  # the prediction is of a whole generation, whose steps are small
        calls = 1.0
        extra_s += trial.protocol["new_samples"] * _SMALL_STEP_S[trial.device]
    return replace(plan, predicted_peak_bytes=cost.peak_bytes, flops=cost.flops, calls=calls, extra_s=extra_s)


def _costs(trials: Sequence[Trial], ids: Sequence[str], *, num_cores: int) -> list[Prediction | str | None]:
    """What each trial costs, or why it cannot be run; None where that shows only when it runs."""
    unknown = sum(not _cost_path(trial_id).exists() for trial_id in ids)
    workers = min(_MAX_WORKERS, num_cores, unknown // _TRIALS_A_WORKER)
    if workers < 4:
        return [_cost_or_refusal(*known) for known in zip(trials, ids, strict=True)]
    # By the server that the trials will be forked from, which has imported PyTorch.
    server = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, server, torch.set_num_threads, (num_cores,)) as pool:
        # Those of a key share their work within a process. The generations, by far the longest, are begun first.
        groups: dict[str, list[int]] = {}
        for i, trial in enumerate(trials):
            groups.setdefault(trial.model if trial.kind == "generation" else f"{trial.model} {i}", []).append(i)
        order = sorted(groups.values(), key=lambda group: trials[group[0]].kind != "generation")
        parts = pool.map(_costs_of, [[(trials[i], ids[i]) for i in group] for group in order])
        costs: dict[int, Prediction | str | None] = {}
        for group, part in zip(order, parts, strict=True):
            costs.update(zip(group, part, strict=True))
    return [costs[i] for i in range(len(trials))]


def _costs_of(group: Sequence[tuple[Trial, str]]) -> list[Prediction | str | None]:
    return [_cost_or_refusal(trial, trial_id) for trial, trial_id in group]


def _cost_or_refusal(trial: Trial, trial_id: str) -> Prediction | str | None:
    try:
        return remembered_cost(trial, trial_id)
    except Unpredictable:
        return None
    except TrialFailure as failure:
        return str(failure)


def _together_key(trial: Trial) -> str:
    """Trials that differ in the seed alone, where the protocol lets seeds share a process."""
    if trial.protocol.get("seeds_together", 1) < 2:
        return ""
    return canonical_json({key: value for key, value in trial.as_dict().items() if key != "seed"})


def _speed_key(trial: Trial) -> str:
    """Trials that run the same code on the same widths; lengths and batches are what a rate is carried over."""
    what = trial.task
    if what is None:
        settings = {key: value for key, value in trial.protocol.items() if key not in _NOT_IN_SPEED_KEY}
        what = json.dumps(settings, sort_keys=True)
    return f"{trial.kind} {trial.model} {what} {trial.direction} {trial.dtype} {trial.device}"


def code_of(trial: Trial) -> list[Path]:
    """The sources that a trial's result depends on: what its identity is hashed from."""
    packages = [ROOT / "models", ROOT / "harness"]
    if trial.task is not None:
        packages.append(ROOT / "tasks")
    own = [Path(trial.model.rpartition(":")[0])] if ".py:" in trial.model else []
    names = ("worker", *_MODULES[trial.kind])
    return packages + [path for name in names for path in sorted((ROOT / "benchmarks").glob(f"{name}.py"))] + own


def remembered_cost(trial: Trial, trial_id: str) -> Prediction:
    """:func:`predicted_cost`, kept in the cache: a tenth of a second a trial adds up over a suite.

    The trial's identity covers the code; the version of PyTorch, the number of threads (scratch
    buffers grow with it) and whether the scan's kernel was built do the rest.
    """
    path = _cost_path(trial_id)
    try:
        known = json.loads(path.read_text())
        return Prediction(peak_bytes=int(known["peak_bytes"]), flops=float(known["flops"]))
    except (OSError, ValueError, KeyError, TypeError):
        prediction = predicted_cost(trial)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        write_atomically(path, json.dumps(asdict(prediction)).encode())
    return prediction


def _cost_path(trial_id: str) -> Path:
    scan = "chunked" if scan_kernel.ensure_built() else "kernel"
    return cache_dir() / "predictions" / f"{trial_id[:32]}-{torch.__version__}-{torch.get_num_threads()}-{scan}.json"


def predicted_cost(trial: Trial) -> Prediction:
    """Peak bytes and FLOPs of one call: PyTorch's count and the operators' closed forms together.

    A layer more adds as much again, so that of a deep model a few layers are enough. On CUDA the whole fused block is
    counted as its parts around the fused scan, which hold more: the peak of a train step is an upper estimate there.
    """
    if trial.kind == "generation":
        return _predicted_generation(trial)
    if trial.kind == "audio_generation":
        from benchmarks.audio_generation import predicted_audio_generation  # few plans need what it imports

        return predicted_audio_generation(trial)
    if trial.kind == "speed" and trial.protocol["level"] == "model":
        num_layers = num_like_layers(trial)
        if num_layers > _FEW_LAYERS[1]:
            return _on_line(_FEW_LAYERS, [_predicted(trial, num_layers=n) for n in _FEW_LAYERS], num_layers)
    return _predicted(trial)


def _predicted_generation(trial: Trial) -> Prediction:
    """On CUDA of any batch from two, since a sequence more adds as much again there; on a CPU, whose operators cut
    large batches into pieces, of this very batch."""
    if trial.device != "cuda":
        return _generation_cost(trial)
    costs = [_generation_cost(replace(trial, batch=batch)) for batch in _TWO_BATCHES]
    return _on_line(_TWO_BATCHES, costs, trial.batch or 1)


@functools.lru_cache(maxsize=64)
def _generation_cost(trial: Trial) -> Prediction:
    from benchmarks.generation import predicted_generation  # few plans need what it imports

    return predicted_generation(trial)


def _on_line(places: tuple[int, int], predictions: Sequence[Prediction], place: int) -> Prediction:
    """What the line through two predictions gives at a third place."""
    low, high = predictions
    steps = (place - places[0]) / (places[1] - places[0])
    return Prediction(
        peak_bytes=round(low.peak_bytes + steps * (high.peak_bytes - low.peak_bytes)),
        flops=low.flops + steps * (high.flops - low.flops),
    )


def _predicted(trial: Trial, *, num_layers: int | None = None) -> Prediction:
    # Fake CUDA tensors would start CUDA in this process; shapes, and so bytes, are the same without.
    fused = force_backend("mamba-ssm") if trial.device == "cuda" else nullcontext()
    device, trial = trial.device, replace(trial, device="cpu")
    build: Callable[[], Callable[[], object]] = (
        (lambda: build_workload(trial, fake=True, num_layers=num_layers).call)
        if trial.kind == "speed"
        else partial(_training_step, trial, _vocab_size(trial), _scored(trial))  # a task is made of real tensors
    )
    counted: list[float] = []

    def build_observed() -> Callable[[], object]:
        call = build()

        def observed() -> None:
            with observing() as report:
                call()
            backward = report.backward_flops if trial.direction == "train" else 0.0
            counted.append(report.forward_flops + backward)

        return observed

    with fused, predicting(device):
        prediction = predict(build_observed, device=device)
    return replace(prediction, flops=prediction.flops + counted[-1])


def _training_step(trial: Trial, vocab_size: int, scored: slice) -> Callable[[], object]:
    """One optimizer step of a ``training`` trial, on tokens that nobody looks at."""
    model = build_fake_model(trial.model, vocab_size=vocab_size, device=trial.device)
    optimizer = torch.optim.AdamW(model.parameters())  # the fused one keeps the same state
    ids_BL = torch.zeros(trial.batch, trial.seq_len, dtype=torch.int64, device=trial.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for ids_bL in ids_BL.chunk(trial.protocol.get("microbatches", 1)):
            logits = model.lm_head(model.hidden(ids_bL)[:, scored]).float()
            F.cross_entropy(logits.flatten(0, 1), ids_bL[:, scored].flatten()).backward()
            del logits  # or they would lie beside the next ones
        optimizer.step()

    return step


_VOCAB_SIZES: dict[str, int] = {"language": 256, "dna": 5, "audio": 256, "speech": 256}


def _vocab_size(trial: Trial) -> int:
    """Of the task; the data-set tasks' are known without reading their data."""
    assert trial.task is not None
    options = trial.protocol.get("task_options", {})
    if trial.task == "language" and options.get("tokenizer") == "bpe":
        return int(options.get("vocab_size") or DEFAULT_BPE_VOCAB)
    if trial.task in _VOCAB_SIZES:
        return _VOCAB_SIZES[trial.task]
    return _task(trial).vocab_size


def _scored(trial: Trial) -> slice:
    return slice(None) if trial.task in _VOCAB_SIZES else _task(trial).scored_positions("train")


def _task(trial: Trial) -> Task:
    assert trial.task is not None
    return make_task(trial.task, **trial.protocol.get("task_options", {}))
