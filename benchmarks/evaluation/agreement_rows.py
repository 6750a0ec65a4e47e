"""One model read by this suite's adapter and by lm-eval's own ``HFLM``: what differs, and how fast each is."""

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation.adapter import EvalLM
from benchmarks.evaluation.batching import TokenBudget
from benchmarks.evaluation.checkpoints import find_checkpoint
from benchmarks.evaluation.lm_harness import Instance, TemplateLM, evaluate, quiet
from benchmarks.evaluation.local_tasks import LocalTask
from benchmarks.evaluation.small_checkpoints import embedded_text
from models.pretrained.transformers_import import import_transformers

TOLERANCE_NATS = 1e-4
RELATIVE = 2e-6
"""Of a long text's sum, which ``HFLM`` makes in float32: beyond a thousand nats that is the coarser one."""
_PASSAGE = 1500
"""Characters of the texts that are scored whole: several windows of a small model."""
_NEW_TOKENS = 24


@dataclass(frozen=True)
class Subject:
    """One set of weights, and the folders in which the two sides read it."""

    model: str
    weights: str
    ours: Path
    theirs: Path
    tokenizer: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task on one model."""

    model: str
    weights: str
    task: str
    requests: int
    largest_difference: float
    """Of a request's log-likelihood in nats; of generated texts, the share that differs."""
    tolerance: float
    metrics_equal: bool
    metrics: str
    tokens: int
    ours_tokens_per_s: float
    hflm_tokens_per_s: float

    @property
    def agrees(self) -> bool:
        return self.metrics_equal and self.largest_difference <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How both sides are asked."""

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int | None = None
    """None for each side's automatic one."""
    limit: int | None = None
    repeats: int = 3
    """Timed turns of each side."""


def compare(subject: Subject, tasks: Sequence[LocalTask], settings: Settings) -> Iterator[Row]:
    """One row a task, then whole texts, then generated ones."""
    ours, theirs = _both(subject, settings, settings.batch_size)
    for task in tasks:
        yield _task_row(subject, task, ours, theirs, settings)
    text = embedded_text()
    passages = [text[start : start + _PASSAGE] for start in range(0, 4 * _PASSAGE, _PASSAGE)]
    whole = [_instance("loglikelihood_rolling", (passage,)) for passage in passages]
    yield _text_row(subject, "whole texts", whole, ours, theirs, settings.repeats)
    options = {"until": ["\n\n"], "max_gen_toks": _NEW_TOKENS, "do_sample": False}
    prompts = [_instance("generate_until", (passage[:200], dict(options))) for passage in passages]
    # Padding on the left, as HFLM generates, is not exact for recurrent models: one at a time, on both sides.
    yield _text_row(subject, "greedy texts", prompts, *_both(subject, settings, 1), settings.repeats)


def _both(subject: Subject, settings: Settings, batch_size: int | None) -> tuple[EvalLM, TemplateLM]:
    return (
        our_lm(subject, settings.device, batch_size, dtype=settings.dtype),
        hflm(subject, settings.device, batch_size, dtype=settings.dtype),
    )


def our_lm(
    subject: Subject, device: str, batch_size: int | None, *, dtype: str = "float32", max_length: int | None = None
) -> EvalLM:
    """This suite's adapter."""
    checkpoint = find_checkpoint(str(subject.ours), Path(), tokenizer=subject.tokenizer)
    model, _ = checkpoint.load(device, getattr(torch, dtype))
    budget = TokenBudget(batch_size=batch_size) if batch_size else TokenBudget.measured(model, torch.device(device))
    tokenizer = checkpoint.load_tokenizer()
    return EvalLM(model, tokenizer, budget=budget, max_length=max_length or checkpoint.max_length(tokenizer))


def hflm(
    subject: Subject, device: str, batch_size: int | None, *, dtype: str = "float32", max_length: int | None = None
) -> TemplateLM:
    """lm-eval's adapter of transformers, on the same weights."""
    import_transformers()  # before lm-eval imports it beside a broken torchaudio
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with quiet():
        return HFLM(
            pretrained=str(subject.theirs),
            tokenizer=subject.tokenizer,
            dtype=dtype,
            device=device,
            batch_size=batch_size or "auto",
            max_length=max_length,
        )


def _task_row(subject: Subject, task: LocalTask, ours: EvalLM, theirs: TemplateLM, settings: Settings) -> Row:
    answers = []
    requests: list[Instance] = []
    for lm in (ours, theirs):
        built = task.build()
        with quiet():
            answers.append(
                evaluate(
                    lm=lm,
                    task_dict={"tasks": {task.name: built}, "groups": {}},
                    limit=settings.limit,
                    bootstrap_iters=0,
                )
            )
        requests = built.instances
    nats = [
        [float(response[0]) for sample in samples for response in sample["filtered_resps"]]
        for samples in (sorted(answer["samples"][task.name], key=lambda s: s["doc_id"]) for answer in answers)
    ]
    metrics = [_metrics(answer["results"][task.name]) for answer in answers]
    tokens, speeds = _speeds("loglikelihood", requests, ours, theirs, settings.repeats)
    return Row(
        model=subject.model,
        weights=subject.weights,
        task=task.name,
        requests=len(requests),
        largest_difference=max(abs(a - b) for a, b in zip(*nats, strict=True)),
        tolerance=TOLERANCE_NATS,
        metrics_equal=metrics[0].keys() == metrics[1].keys()
        # Accuracies are counts; a perplexity carries the difference of its log-likelihoods.
        and all(abs(metrics[0][k] - v) <= (0 if "acc" in k else 1e-4 * v) for k, v in metrics[1].items()),
        metrics=" ".join(f"{name}={value:.4g}" for name, value in metrics[0].items()),
        tokens=tokens,
        ours_tokens_per_s=speeds[0],
        hflm_tokens_per_s=speeds[1],
    )


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    return {
        name.partition(",")[0]: float(value)
        for name, value in results.items()
        if name.endswith(",none") and "stderr" not in name and isinstance(value, int | float)
    }


def _text_row(
    subject: Subject, name: str, requests: Sequence[Instance], ours: EvalLM, theirs: TemplateLM, repeats: int
) -> Row:
    kind = requests[0].request_type
    with quiet():
        a, b = (getattr(lm, kind)(requests) for lm in (ours, theirs))
    if kind == "generate_until":
        difference, tolerance = sum(x != y for x, y in zip(a, b, strict=True)) / len(a), 0.0
        metrics = f"{sum(map(len, a))} characters"
    else:
        difference = max(abs(x - y) for x, y in zip(a, b, strict=True))
        tolerance = max(TOLERANCE_NATS, RELATIVE * max(map(abs, a)))
        metrics = f"nats={sum(a):.6g}"
    tokens, speeds = _speeds(kind, requests, ours, theirs, repeats)
    return Row(
        model=subject.model,
        weights=subject.weights,
        task=name,
        requests=len(requests),
        largest_difference=difference,
        tolerance=tolerance,
        metrics_equal=True,
        metrics=metrics,
        tokens=tokens,
        ours_tokens_per_s=speeds[0],
        hflm_tokens_per_s=speeds[1],
    )


def _instance(kind: str, arguments: tuple[Any, ...]) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def _speeds(
    kind: str, requests: Sequence[Instance], ours: EvalLM, theirs: TemplateLM, repeats: int
) -> tuple[int, list[float]]:
    """The tokens of the requests, and each side's median rate over its turns; both have answered them once before."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ours.take_counts()
    tokens = 0
    with quiet():
        for turn in range(repeats):
            sides = ((seconds[0], ours), (seconds[1], theirs))
            for taken, lm in sides if turn % 2 == 0 else sides[::-1]:
                started = time.perf_counter()
                getattr(lm, kind)(requests)
                taken.append(time.perf_counter() - started)
            tokens = ours.take_counts().tokens
    return tokens, [tokens / statistics.median(taken) for taken in seconds]
