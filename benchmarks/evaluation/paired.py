"""Compares two evaluations item by item: ``python -m benchmarks.evaluation.paired A B``.

A and B are records of `seqbench eval`, of one model each; --models picks two models, also out of one folder.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.paired import Difference, McNemar, mcnemar, paired_difference
from harness.records import RECORDS_FILE, read_records

_OUTCOMES = ("acc", "acc_norm")
NATS = "nats_of_right_answer"
"""Negative log-likelihood of an item's right answer: tells models apart that answer at chance."""
METHOD = (
    "Difference: A minus B, with a 95 % percentile interval of 10,000 paired bootstrap resamples of the items. p: "
    "McNemar's exact two-sided binomial test on the items that one model alone answers rightly; mid-p gives half the "
    "weight to the observed split. Not corrected for the number of rows."
)


class ComparisonError(ValueError):
    """Two evaluations cannot be compared. The message names what differs and the fix."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model's outcomes on the items of one task, in the order of the file."""

    model: str
    task: str
    source: str
    place: Path
    items: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one task."""

    task: str
    metric: str
    a: float
    b: float
    difference: Difference
    test: McNemar | None
    """None for perplexity and nats."""


def read_evaluations(path: Path, model: str | None = None) -> dict[str, Evaluation]:
    """The newest evaluation of each task: ``{task: evaluation}``. Of checkpoints of one name the one asked last counts.

    Args:
        path: a records.jsonl, or a folder that holds one.
        model: which model's; may be left out where there is only one.

    Raises:
        ComparisonError: no such records, or several models and none named.
    """
    file = path / RECORDS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ComparisonError(f"{path}: no {RECORDS_FILE} there; name what `seqbench eval --out` wrote")
    records = [r for r in read_records([file])[0] if r["trial"]["kind"] == "eval" and r["status"] == "ok"]
    models = sorted({str(r["trial"]["model"]) for r in records})
    if model is not None and model not in models:
        raise ComparisonError(f"{file}: no evaluation of {model!r}; there are {', '.join(models) or 'none'}")
    if model is None and len(models) != 1:
        raise ComparisonError(
            f"{file}: holds evaluations of {len(models)} models ({', '.join(models) or 'none'}); "
            "name two with --models A,B"
        )
    chosen = [r for r in records if r["trial"]["model"] == (model or models[0])]
    chosen.sort(key=lambda record: str(record["started_at"]))
    last = chosen[-1]["trial"]["protocol"]["checkpoint"]
    chosen = [r for r in chosen if r["trial"]["protocol"]["checkpoint"] == last]
    return {str(r["trial"]["task"]): _evaluation(r, file.parent) for r in chosen}


def _evaluation(record: Mapping[str, Any], folder: Path) -> Evaluation:
    trial = record["trial"]
    place = folder / str(record["metrics"].get("items"))
    try:
        items = tuple(json.loads(line) for line in place.read_text().splitlines())
    except (OSError, ValueError) as error:
        raise ComparisonError(
            f"{place}: the outcomes of {trial['task']} cannot be read ({error}); keep the folder items/ beside the "
            "records, or run the evaluation again"
        ) from error
    source = trial["protocol"]["source"]
    named = f"{source['name']} ({str(source['sha256'])[:8]})"
    return Evaluation(model=str(trial["model"]), task=str(trial["task"]), source=named, place=place, items=items)


def compare(a: Evaluation, b: Evaluation) -> list[Comparison]:
    """Every metric that both have. Raises :class:`ComparisonError` unless the items are the same."""
    _check_same_items(a, b)
    if len(a.items) < 2:
        raise ComparisonError(f"{a.task}: one item has no interval; evaluate more of them")
    found = []
    for metric in _OUTCOMES:
        if metric in a.items[0] and metric in b.items[0]:
            right_a, right_b = ([float(item[metric]) for item in side.items] for side in (a, b))
            found.append(
                Comparison(
                    task=a.task, metric=metric, a=float(np.mean(right_a)), b=float(np.mean(right_b)),
                    difference=paired_difference(right_a, right_b), test=mcnemar(right_a, right_b),
                )
            )  # fmt: skip
    nats_a, nats_b = ([-float(item["loglikelihood"][item["gold"]]) for item in side.items] for side in (a, b))
    statistics: dict[str, Callable[[Any], Any] | None] = {NATS: None}
    if all(len(item["loglikelihood"]) == 1 for item in a.items):
        statistics = {"perplexity": np.exp} | statistics
    for metric, statistic in statistics.items():
        means = [float((statistic or float)(np.mean(nats))) for nats in (nats_a, nats_b)]
        found.append(
            Comparison(
                task=a.task, metric=metric, a=means[0], b=means[1],
                difference=paired_difference(nats_a, nats_b, statistic=statistic), test=None,
            )
        )  # fmt: skip
    return found


def _check_same_items(a: Evaluation, b: Evaluation) -> None:
    hashes_a, hashes_b = ([str(item["doc_hash"]) for item in side.items] for side in (a, b))
    if hashes_a == hashes_b:
        return
    shared = len(set(hashes_a) & set(hashes_b))
    raise ComparisonError(
        f"{a.task}: the items are not the same: {a.model} has {len(hashes_a)} of {a.source}, {b.model} has "
        f"{len(hashes_b)} of {b.source}, {shared} are in both; evaluate both models on one file with the same --limit"
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """For the terminal."""
    columns = ("task", "metric", "n", "A", "B", "A - B [95 %]", "s.e.", "A only", "B only", "p", "mid-p")
    rows = [columns, *(_row(comparison) for comparison in comparisons)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(found: Comparison) -> tuple[str, ...]:
    d, test = found.difference, found.test
    form = ".4g" if test is None else ".4f"
    tested = ("", "", "", "") if test is None else (
        str(test.only_a), str(test.only_b), f"{test.p:.3g}", f"{test.mid_p:.3g}"
    )  # fmt: skip
    return (
        found.task, found.metric, str(d.n), f"{found.a:{form}}", f"{found.b:{form}}",
        f"{d.value:+{form}} [{d.low:+{form}}, {d.high:+{form}}]", f"{d.stderr:.2g}", *tested,
    )  # fmt: skip


def compare_records(path_a: Path, path_b: Path, models: Sequence[str] = ()) -> tuple[str, str, list[Comparison]]:
    """The two models' names, and every task that both were asked. Raises :class:`ComparisonError`."""
    if len(models) not in (0, 2):
        raise ComparisonError(f"--models {','.join(models)}: names {len(models)} models; name two, A,B")
    a = read_evaluations(path_a, models[0] if models else None)
    b = read_evaluations(path_b, models[1] if models else None)
    both = [task for task in a if task in b]
    if not both:
        raise ComparisonError(f"no task in both: {', '.join(a)} in {path_a}; {', '.join(b)} in {path_b}")
    found = [comparison for task in both for comparison in compare(a[task], b[task])]
    return a[both[0]].model, b[both[0]].model, found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.paired", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A", help="records of model A: a records.jsonl or its folder")
    parser.add_argument("b", type=Path, metavar="B", help="records of model B; may be the same folder")
    parser.add_argument("--models", default="", metavar="A,B", help="the two models, where a folder holds several")
    given = parser.parse_args(arguments)
    try:
        name_a, name_b, found = compare_records(given.a, given.b, [m for m in given.models.split(",") if m])
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"A: {name_a} ({given.a})\nB: {name_b} ({given.b})\n\n{comparison_table(found)}\n\n{METHOD}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
