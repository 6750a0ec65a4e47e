"""lm-eval's results of one task to a record's metrics, to lines for every item, and to a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from harness.statistics import Estimate, mean_estimate, wilson

_ACCURACIES = {"acc": "accuracy", "acc_norm": "acc_norm"}
"""lm-eval's names to the record's."""

Sample = Mapping[str, Any]
"""One item as lm-eval logs it (doc, arguments, filtered_resps, its metrics), with ``gold``: which request is right."""


def task_metrics(results: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """Accuracies with Wilson's interval, perplexity, bits per byte; standard errors are lm-eval's."""
    metrics: dict[str, Any] = {"n": len(samples)}
    for theirs, ours in _ACCURACIES.items():
        if theirs in samples[0]:
            correct = sum(int(sample[theirs]) for sample in samples)
            metrics[ours] = wilson(correct, len(samples)).as_dict() | _stderr(correct, len(samples))
    if "perplexity,none" in results:
        metrics["perplexity"] = _finite(
            {"value": results["perplexity,none"], "stderr": results.get("perplexity_stderr,none"), "n": len(samples)}
        )
    choices = [len(sample["arguments"]) for sample in samples]
    if min(choices) > 1:
        metrics["chance"] = float(np.mean([1 / count for count in choices]))
    metrics["bits_per_byte"] = _finite(bits_per_byte([_answer(sample) for sample in samples]).as_dict())
    return metrics


def _stderr(correct: int, n: int) -> dict[str, float]:
    """lm-eval's standard error of a mean over items: absent for a single item."""
    share = correct / n
    return {"stderr": math.sqrt(share * (1 - share) / (n - 1))} if n > 1 else {}


def _answer(sample: Sample) -> tuple[float, int]:
    """(nats, bytes) of the right answer, its leading space among them."""
    gold = sample["gold"]
    return float(sample["filtered_resps"][gold][0]), len(sample["arguments"][gold][1].encode())


def bits_per_byte(answers: Iterable[tuple[float, int]]) -> Estimate:
    """Bits per byte over all answers together, from ``(log-likelihood in nats, bytes)`` of each.

    The interval is that of a ratio of sums over independent items (delta method).

    >>> bits_per_byte([(-math.log(2) * 4, 2), (-math.log(2) * 4, 2)]).as_dict()
    {'value': 2.0, 'low': 2.0, 'high': 2.0, 'n': 2}
    """
    nats, num_bytes = np.array(list(answers), dtype=float).T
    bits = -nats / math.log(2)
    ratio = bits.sum() / num_bytes.sum()
    return mean_estimate(ratio + (bits - ratio * num_bytes) / num_bytes.mean())


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is unknown or unbounded (the interval of a single item): an absent figure is absent."""
    return {
        key: value
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def item_lines(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One object an item: what was asked (by hash), how every answer scored, and what came of it."""
    return [
        {
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            "gold": sample["gold"],
            "loglikelihood": [float(nats) for nats, _ in sample["filtered_resps"]],
            "greedy": [bool(greedy) for _, greedy in sample["filtered_resps"]],
            **{name: int(sample[name]) for name in _ACCURACIES if name in sample},
        }
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]


_COLUMNS = (
    "task",
    "data",
    "n",
    "acc [95 %]",
    "acc_norm [95 %]",
    "chance",
    "perplexity",
    "bits/byte",
    "cut",
    "tokens/s",
)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as a table for the terminal; what ended otherwise than well says so in its row."""
    rows = [_COLUMNS, *(_row(record) for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failed = [
        f"{record['trial']['task']}: {record['status']}: {(record.get('error') or {}).get('message', '')}"
        for record in records
        if record["status"] != "ok"
    ]
    return "\n".join(lines + failed)


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    trial, metrics = record["trial"], record["metrics"]
    source = trial["protocol"]["source"]
    data = source["kind"] if source["kind"] == "embedded" else PurePosixPath(source["name"]).name
    if record["status"] != "ok":
        return (trial["task"], data, record["status"], *[""] * (len(_COLUMNS) - 3))
    perplexity = metrics.get("perplexity", {})
    return (
        trial["task"],
        data,
        str(metrics["n"]),
        _interval(metrics.get("accuracy")),
        _interval(metrics.get("acc_norm")),
        f"{metrics['chance']:.3f}" if "chance" in metrics else "",
        " ± ".join(f"{perplexity[key]:.4g}" for key in ("value", "stderr") if key in perplexity),
        f"{metrics['bits_per_byte']['value']:.3f}",
        f"{metrics['truncated']}/{metrics['requests']}",
        # Absent where every answer was there from a run that was cut.
        f"{metrics['tokens_per_s']:.4g}" if "tokens_per_s" in metrics else "",
    )


def _interval(estimate: Mapping[str, float] | None) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" if estimate else ""
