"""Scores of a trained model at one length: accuracy or bits per token, with interval, time and memory."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.answers import among, answers_of
from harness.confusion import balanced_accuracy, bootstrap, confusion, matthews
from harness.memory import available_memory_bytes, host_peak
from harness.outcomes import is_out_of_memory
from harness.statistics import Estimate, batch_means, clustered_proportion, mean_estimate, wilson
from models import Model
from tasks import Batch, ExampleStream, Task, TaskError
from tasks.base import IGNORE_INDEX
from tasks.corpus import CorpusTask

_BATCH_TOKENS = 2**14
"""Short examples are scored together up to this many tokens, long ones alone."""
_CUDA_BATCH_CHANNELS = 2**26
"""On CUDA up to so many tokens times channels, a quarter of a gigabyte in float32: a few long calls, not many short."""
_LONG_CALL_MS = 1e3
"""A call on CUDA that is predicted to last so long is not made a first time to warm up."""
_HEAD_TOKENS = 2**14
"""Logits are made for so many positions at a time: at 2^20 bytes they would take a gigabyte."""
_MIN_UNITS = 8
"""With fewer windows than this, an interval comes from stretches of the windows instead."""
_MEMORY_MARGIN = 0.8


def score_at(
    model: Model,
    task: Task,
    seq_len: int,
    protocol: Mapping[str, Any],
    *,
    previous: Sequence[Mapping[str, Any]],
    deadline: float,
    device: torch.device,
) -> dict[str, Any]:
    """One entry of a record's ``scores``. Its ``status`` is ``ok``, ``oom``, ``unsupported`` or ``skipped``.

    ``previous`` scores, of shorter lengths, say what this one will cost: one that would not end
    before ``deadline`` (``time.monotonic``) or not fit in memory is skipped, with the prediction.
    """
    entry: dict[str, Any] = {"seq_len": seq_len}
    expected = _growth(model, seq_len, previous)
    if refused := _refusal(expected, deadline, device):
        return entry | {"status": "skipped", "reason": refused} | expected
    try:
        batches = _batch_plan(model, task, seq_len, protocol, device)
        first = next(batches)
        if device.type == "cuda":
            if expected.get("predicted_latency_ms", 0.0) < _LONG_CALL_MS:
                _warm_up(model, first)
        else:
            batches = iter(list(batches))  # drawn now, so that the peak of memory is the model's
        with host_peak() as host:
            measured = _score(model, task, first, batches, seq_len, device, deadline, answers_of(task, protocol))
    except TaskError as error:
        return entry | {"status": "unsupported", "reason": str(error)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return entry | {"status": "oom", "reason": str(error).splitlines()[0]} | expected
    entry |= {"status": "ok"} | measured | expected
    return entry | host.as_dict()


def _growth(model: Model, seq_len: int, previous: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Predicted time and memory of one example, scaled by FLOPs and by length from the last score."""
    measured = [p for p in previous if p["status"] == "ok" and p.get("latency_ms")]
    if not measured:
        return {}
    last = max(measured, key=lambda p: p["seq_len"])
    flops = model.describe(seq_len).forward_flops / model.describe(last["seq_len"]).forward_flops
    per_example_ms = float(np.median(last["latency_ms"])) / last["batch"]
    expected = {"predicted_latency_ms": round(per_example_ms * flops, 3)}
    if "peak_rss_bytes" in last:
        per_token = (last["peak_rss_bytes"] - last["baseline_rss_bytes"]) / (last["batch"] * last["seq_len"])
        expected["predicted_rss_growth_bytes"] = int(max(0.0, per_token) * seq_len)
    return expected


def _refusal(expected: Mapping[str, float], deadline: float, device: torch.device) -> str:
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        return "the time for scoring was used up at shorter lengths; raise score_budget_s"
    if not expected:
        return ""
    needed_s = expected["predicted_latency_ms"] / 1e3
    if needed_s > remaining_s:
        return (
            f"one example is predicted to take {needed_s:.1f} s of the {remaining_s:.1f} s left; raise score_budget_s"
        )
    free = available_memory_bytes(torch.device("cpu")) * _MEMORY_MARGIN
    needed = expected.get("predicted_rss_growth_bytes", 0.0)
    if device.type == "cpu" and needed > free:
        return f"predicted to need {needed / 2**30:.1f} GiB where {free / 2**30:.1f} GiB are free"
    return ""


def _batch_plan(
    model: Model, task: Task, seq_len: int, protocol: Mapping[str, Any], device: torch.device
) -> Iterator[Batch]:
    """The examples scored at a length: a fixed number of tokens, so that every length costs alike."""
    count = max(protocol["min_examples"], min(protocol["max_examples"], protocol["score_tokens"] // seq_len))
    tokens = _BATCH_TOKENS if device.type == "cpu" else _CUDA_BATCH_CHANNELS // model.d_model
    per_batch = max(1, tokens // seq_len)
    if isinstance(task, CorpusTask):
        starts = _window_starts(task, seq_len, count, protocol)
        for first in range(0, len(starts), per_batch):
            yield task.windows(starts[first : first + per_batch], seq_len, device=device)
        return
    for start in range(0, count, per_batch):
        # The test set is fixed: its seed is not the trial's, so that every model answers the same.
        stream = ExampleStream(seed=0, split="test", start=start)
        yield task.sample(stream, min(per_batch, count - start), seq_len, device=device)


def _window_starts(task: CorpusTask, seq_len: int, count: int, protocol: Mapping[str, Any]) -> list[int]:
    """Up to ``count`` windows, evenly spaced over the same regions of the test data for every length.

    A region is as long as the longest length that can be scored, so that shorter windows see the same
    text with less context, and not other text. Raises TaskError where no window is long enough.
    """
    if task.label_tokens is not None:
        return list(task.evaluation_windows("test", seq_len, count).starts)
    possible = [length for length in protocol["score_lengths"] if length <= task.max_seq_len("test")]
    region_len = max([length for length in possible if length >= seq_len], default=seq_len)
    num_regions = max(protocol["score_regions"], protocol["score_tokens"] // region_len)
    regions = task.evaluation_windows("test", region_len, num_regions).starts
    tiles = [start + k * seq_len for start in regions for k in range(region_len // seq_len)]
    scored = [start for start in tiles if _has_targets(task, start, seq_len)]
    places = ((2 * np.arange(min(count, len(scored))) + 1) * len(scored)) // (2 * min(count, len(scored)))
    return [scored[place] for place in places]


def _has_targets(task: CorpusTask, start: int, seq_len: int) -> bool:
    """Whether a window is not made of unknown symbols alone."""
    if task.unscored_token is None:
        return True
    return bool((task.corpus.tokens[start + 1 : start + seq_len + 1] != task.unscored_token).any())


@torch.no_grad()
def _warm_up(model: Model, batch: Batch) -> None:
    """One example: kernels are chosen and compiled now, and the first time is not taken for the model's."""
    model.hidden(batch.inputs_BL[:1])


@torch.no_grad()
def _score(
    model: Model,
    task: Task,
    first: Batch,
    others: Iterator[Batch],
    seq_len: int,
    device: torch.device,
    deadline: float,
    answers: range | None,
) -> dict[str, Any]:
    latency_ms: list[float] = []
    correct_per_example: list[int] = []
    scored_per_example: list[int] = []
    nats: list[np.ndarray] = []
    num_bytes: list[np.ndarray] = []
    token_bytes = task.token_bytes if isinstance(task, CorpusTask) else None
    labels = task.label_tokens if isinstance(task, CorpusTask) else None
    asked: list[int] = []
    answered: list[int] = []
    held_bytes = 0
    if device.type == "cuda":
        held_bytes = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    for batch in chain([first], others):
        inputs_BL, targets_BL = batch.inputs_BL, batch.targets_BL
        started = _now_ns(device)
        hidden_BLD = model.hidden(inputs_BL)
        losses_BL, answers_BL = _losses(model, hidden_BLD, targets_BL, answers)
        latency_ms.append((_now_ns(device) - started) / 1e6)
        scored_BL = targets_BL != IGNORE_INDEX
        correct_per_example += ((answers_BL == targets_BL) & scored_BL).sum(1).tolist()
        scored_per_example += scored_BL.sum(1).tolist()
        if labels is not None:
            asked += targets_BL[scored_BL].tolist()
            answered += answers_BL[scored_BL].tolist()
        if task.metric == "bits_per_token":
            nats += list(losses_BL.masked_fill(~scored_BL, math.nan).cpu().numpy())
            if token_bytes is not None:  # all of a text's targets are scored
                num_bytes += list(token_bytes[targets_BL.cpu().numpy()])
        if time.monotonic() > deadline:
            break
    examples = len(correct_per_example)
    whole_batch = len(first.inputs_BL)
    full = latency_ms[: max(1, examples // whole_batch)]
    entry: dict[str, Any] = {
        "latency_ms": [round(ms, 4) for ms in full],
        "batch": whole_batch,
        "tokens_per_s": whole_batch * seq_len / (float(np.median(full)) / 1e3),
        "examples": examples,
    }
    if device.type == "cuda":
        entry["peak_alloc_bytes"] = torch.cuda.max_memory_allocated(device) - held_bytes
    if task.metric == "accuracy":
        num_asked = scored_per_example[0]
        estimate = (
            wilson(sum(correct_per_example), examples)
            if num_asked == 1
            else clustered_proportion(correct_per_example, num_asked)
        )
        return entry | {"accuracy": estimate.as_dict()} | (_class_scores(asked, answered, labels) if labels else {})
    bytes_EL = np.stack(num_bytes) if num_bytes else None
    return entry | _bits(np.stack(nats), sum(correct_per_example), sum(scored_per_example), bytes_EL)


def _now_ns(device: torch.device) -> int:
    """The host's clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()


def _losses(model: Model, hidden_BLD: Tensor, targets_BL: Tensor, answers: range | None) -> tuple[Tensor, Tensor]:
    """Loss in nats and likeliest token per position; logits only at scored positions and in pieces."""
    scored_S = (targets_BL != IGNORE_INDEX).flatten().nonzero().squeeze(1)
    hidden_SD, targets_S = hidden_BLD.flatten(0, 1), targets_BL.flatten()
    losses = torch.zeros(targets_S.shape, device=targets_S.device)
    answers_S = torch.zeros_like(targets_S)
    for places in scored_S.split(_HEAD_TOKENS):
        logits_SV = among(model.lm_head(hidden_SD[places]).float(), answers)
        losses[places] = F.cross_entropy(logits_SV, targets_S[places], reduction="none")
        answers_S[places] = logits_SV.argmax(-1)
    return losses.view_as(targets_BL), answers_S.view_as(targets_BL)


def _class_scores(asked: Sequence[int], answered: Sequence[int], labels: range) -> dict[str, Any]:
    """Figures that a frequent class cannot carry alone; a token that is no label counts as a wrong answer."""
    counts_KA = confusion(np.array(asked) - labels.start, np.array(answered) - labels.start, len(labels))
    return {
        "mcc": bootstrap(counts_KA, matthews).as_dict(),
        "balanced_accuracy": bootstrap(counts_KA, balanced_accuracy).as_dict(),
    }


def _bits(nats_EL: np.ndarray, correct: int, scored: int, bytes_EL: np.ndarray | None = None) -> dict[str, Any]:
    """Bits per token, and per byte of text, overall and by position, over E windows of length L (NaN: not scored)."""
    bits_EL = nats_EL / math.log(2)
    scored_E = ~np.isnan(bits_EL).all(axis=1)  # a window of DNA can be all N
    bits_EL, bytes_EL = bits_EL[scored_E], None if bytes_EL is None else bytes_EL[scored_E]
    means, unit = _unit_means(bits_EL)
    per_byte: dict[str, Any] = {}
    if bytes_EL is not None:
        estimate = ratio_estimate(means, _unit_means(bytes_EL)[0])
        per_byte["bits_per_byte"] = {**_finite(estimate.as_dict()), "unit": unit}
    by_position = []
    for start, stop in _position_ranges(bits_EL.shape[1]):
        part = bits_EL[:, start:stop]
        about: dict[str, Any] = {"start": start, "stop": stop}
        if len(units := _unit_means(part[~np.isnan(part).all(axis=1)])[0]):
            about |= _finite(mean_estimate(units).as_dict())
        if bytes_EL is not None:
            about["bits_per_byte"] = float(part.sum(dtype=np.float64) / bytes_EL[:, start:stop].sum())
        by_position.append(about)
    return {
        "bits_per_token": {**_finite(mean_estimate(means).as_dict()), "unit": unit},
        **per_byte,
        "bits_by_position": by_position,
        # The token accuracy comes without an interval: neighbouring tokens are not independent.
        "token_accuracy": correct / max(scored, 1),
    }


def ratio_estimate(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Sum over sum, with the interval of the ratio to first order: that of the units' deviations from it."""
    ratio = numerators.sum() / denominators.sum()
    return mean_estimate(ratio + (numerators - ratio * denominators) / denominators.mean())


def _unit_means(values_EL: np.ndarray) -> tuple[np.ndarray, str]:
    """Means of the independent units, which are windows; with too few of them, stretches of windows stand in.

    In every window something was scored; there may be no window, and then no unit.
    """
    examples, length = values_EL.shape
    if examples >= _MIN_UNITS or not examples:
        return np.nanmean(values_EL, axis=1), "window"
    stretches = max(1, min(length // 64, -(-_MIN_UNITS // examples)))
    means = [batch_means(row[~np.isnan(row)], stretches) for row in values_EL if (~np.isnan(row)).sum() >= stretches]
    return np.concatenate(means or [np.empty(0)]), f"stretch of {length // stretches} tokens"


def _position_ranges(seq_len: int) -> list[tuple[int, int]]:
    """0..64, 64..128, 128..256, … up to the length."""
    edges = [0, 64]
    while edges[-1] < seq_len:
        edges.append(min(2 * edges[-1], seq_len))
    return [(a, min(b, seq_len)) for a, b in pairwise(edges) if a < min(b, seq_len)]


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the bounds that one unit cannot give: an absent figure is absent."""
    return {k: v for k, v in fields.items() if not isinstance(v, float) or math.isfinite(v)}
