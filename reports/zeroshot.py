"""Zero-shot tasks: every model's figures beside its own row of the published table, and averages worked out again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from reports import style
from reports.document import Block, Heading, Paragraph, Table
from reports.frames import number
from reports.zeroshot_reference import AVERAGED, COLUMNS, SOURCE, PublishedModel, published_model, published_models

TITLE = "Zero-shot tasks"
METRICS = {"perplexity": "ppl", "accuracy": "acc", "acc_norm": "acc_norm"}
"""The record's names to lm-eval's."""
# The paper's choice first; of other tasks every metric.
ORDER = ["lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa"]
PAPER = {*COLUMNS.values(), ("openbookqa", "acc_norm")}
RULE = (
    "Value ± its standard error over items; the interval is Wilson's for accuracies and 1.96 standard errors of its "
    f"logarithm for perplexity. Published is the row of {SOURCE}, given only where the checkpoint's own name is that "
    "row's, and never for a model that this suite has trained. Difference is value minus published in our standard "
    "errors; the published figure's own error is not known and not in it, and items of another file or number are "
    "other items. Embedded items are not compared. Cut counts requests whose context was too long for the model."
)
OWN_FORMAT = "seqbench"
MAX_LOG = 600.0
"""Keeps the exponential of an interval that says nothing finite."""
MARK = "does not equal its row"


def zeroshot_blocks(trials: pd.DataFrame) -> list[Block]:
    """The part of a page about zero-shot tasks; empty where none was asked."""
    evaluated = trials[trials["kind"] == "eval"]
    if evaluated.empty:
        return []
    every = figures_table(evaluated)
    blocks: list[Block] = [
        Heading(text=TITLE, level=3),
        Paragraph(text=RULE),
        Table(frame=figures_table(evaluated, only_paper=True)),
        Table(frame=items_table(evaluated)),
        Table(frame=every, folded=f"All {len(every)} figures, every metric"),
    ]
    averages = averages_table(evaluated)
    if len(averages):
        blocks += [
            Paragraph(text=f"Average of the six accuracies that {SOURCE} averages ({_averaged()}), worked out again."),
            Table(frame=averages),
        ]
    if published_models():
        blocks.append(
            Table(
                frame=published_table(),
                folded=f"The published table ({SOURCE}), its averages worked out again; in percent",
            )
        )
    return blocks


def figures_table(evaluated: pd.DataFrame, only_paper: bool = False) -> pd.DataFrame:
    """A row a model, task and metric; a trial that failed has one row that says so.

    only_paper: of the tasks that the paper has, only the metric that it gives.
    """
    rows = []
    for trial in _ordered(evaluated):
        metrics = trial["zero_shot"]
        named = [metric for metric in METRICS if isinstance(metrics.get(metric), Mapping)]
        if only_paper and trial["task"] in ORDER:
            named = [metric for metric in named if (trial["task"], metric) in PAPER]
        published = _published(trial)
        for metric in named if trial["status"] == "ok" else [""]:
            rows.append(_row(trial, metric, published))
    columns = [
        "Model", "Task", "Metric", "Value", "95 % interval", "n", "Chance", "Cut", "Published", "Difference (s.e.)",
        "Items",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).fillna(style.NONE)


def _row(trial: Mapping[str, Any], metric: str, published: PublishedModel | None) -> dict[str, str]:
    metrics = trial["zero_shot"]
    row = {"Model": trial["name"], "Task": str(trial["task"]), "Items": _items(trial)}
    if not metric:
        return row | {"Value": str(trial["status"])}
    estimate = metrics[metric]
    value, stderr = number(estimate.get("value")), _stderr(estimate)
    show = _perplexity if metric == "perplexity" else style.percent
    theirs = published.values.get((str(trial["task"]), metric)) if published else None
    return row | {
        "Metric": METRICS[metric],
        "Value": show(value) + (f" ± {_error(stderr, metric)}" if math.isfinite(stderr) else ""),
        "95 % interval": _interval(estimate, stderr, metric),
        "n": style.figure(number(metrics.get("n")), 6),
        "Chance": style.NONE if metric == "perplexity" else style.percent(number(metrics.get("chance"))),
        "Cut": _cut(metrics),
        "Published": show(theirs) if theirs is not None else style.NONE,
        "Difference (s.e.)": _difference(value, theirs, stderr),
    }


def averages_table(evaluated: pd.DataFrame) -> pd.DataFrame:
    """Models that were asked all six tasks of the published average, on items that are not embedded."""
    rows = []
    for name, trials in evaluated.groupby(_names(evaluated), sort=True):
        found: dict[tuple[str, str], float] = {}
        variances: list[float] = []
        for trial in trials.to_dict("records"):
            for task, metric in AVERAGED:
                estimate = trial["zero_shot"].get(metric)
                if trial["task"] == task and trial["status"] == "ok" and estimate and not trial["embedded"]:
                    found[task, metric] = number(estimate.get("value"))
                    variances.append(_stderr(estimate) ** 2)
        if len(found) < len(AVERAGED):
            continue
        published = _published(trials.to_dict("records")[0])
        value = sum(found.values()) / len(found)
        stderr = math.sqrt(sum(variances)) / len(AVERAGED) if len(variances) == len(AVERAGED) else math.nan
        rows.append(
            {
                "Model": str(name),
                "Average": style.percent(value) + (f" ± {_error(stderr, 'accuracy')}" if stderr == stderr else ""),
                "Published row's mean": style.percent(published.average) if published else style.NONE,
                "Published average as printed": _printed(published) if published else style.NONE,
                "Difference from the mean (s.e.)": _difference(value, published.average if published else None, stderr),
            }
        )
    return pd.DataFrame(rows)


def published_table() -> pd.DataFrame:
    """Every row of the published table (accuracies in percent), its printed average beside the mean of its own row."""
    rows = []
    for model in published_models():
        cells = {
            f"{task} {METRICS[metric]}": style.figure(value if metric == "perplexity" else 100 * value, 4)
            for (task, metric), value in model.values.items()
        }
        rows.append({"Model": model.label, "Printed": _printed(model), "Mean": style.percent(model.average), **cells})
    return pd.DataFrame(rows)


def _printed(model: PublishedModel) -> str:
    mark = "" if model.is_consistent else f" ({MARK}: {100 * model.average:.2f})"
    return style.percent(model.printed_average) + mark


def _ordered(evaluated: pd.DataFrame) -> list[dict[Any, Any]]:
    rank = {task: place for place, task in enumerate(ORDER)}
    records = evaluated.assign(name=_names(evaluated)).to_dict("records")
    return sorted(records, key=lambda t: (t["name"], rank.get(t["task"], len(rank)), str(t["task"])))


def _published(trial: Mapping[Any, Any]) -> PublishedModel | None:
    """The row of a checkpoint's name; none for one that this suite has trained, or for embedded items."""
    about = trial["zero_shot"].get("checkpoint")
    # Only of a checkpoint that others have trained does a record say which format it came in.
    is_foreign = isinstance(about, Mapping) and about.get("format") not in (None, OWN_FORMAT)
    return published_model(str(trial["model"])) if is_foreign and not trial["embedded"] else None


def _names(evaluated: pd.DataFrame) -> pd.Series:
    """Each trial's model; checkpoints of one name are told apart by their tokenizers, or by their weights' sha256."""
    asked = [
        (str(trial["model"]), *_checkpoint(trial))
        for trial in evaluated[["model", "protocol", "zero_shot"]].to_dict("records")
    ]
    names = []
    for model, tokenizer, sha256 in asked:
        others = {(t, s) for m, t, s in asked if m == model} - {(tokenizer, sha256)}
        told_apart = tokenizer and all(tokenizer != other for other, _ in others)
        names.append(f"{model} ({tokenizer if told_apart else sha256[:8]})" if others else model)
    return pd.Series(names, index=evaluated.index)


def _checkpoint(trial: Mapping[Any, Any]) -> tuple[str, str]:
    """The name of its tokenizer, or "", and the sha256 of its weights."""
    about, identity = trial["zero_shot"].get("checkpoint"), trial["protocol"].get("checkpoint")
    return str((about or {}).get("tokenizer", "")), str((identity or {}).get("sha256"))


def items_table(evaluated: pd.DataFrame) -> pd.DataFrame:
    """Every task's items: where they are from, their sha256, and what is to be said of them."""
    rows = {
        (str(trial["task"]), str(trial["source"]), str(trial["source_sha256"]), str(trial["source_note"] or style.NONE))
        for trial in _ordered(evaluated)
    }
    return pd.DataFrame(sorted(rows), columns=["Task", "Items", "sha256", "Note"])


def _items(trial: Mapping[str, Any]) -> str:
    """The file's name; which items of it, where not all were asked."""
    if trial["embedded"]:
        return "embedded"
    limit = trial["protocol"].get("limit")
    return PurePosixPath(str(trial["source"])).name + (f", the first {limit}" if limit else "")


def _cut(metrics: Mapping[str, Any]) -> str:
    cut, requests = number(metrics.get("truncated")), number(metrics.get("requests"))
    return style.NONE if math.isnan(cut) else f"{cut:.0f} of {style.figure(requests, 6)}"


def _stderr(estimate: Mapping[str, Any]) -> float:
    """As recorded; of an accuracy without one, that of a mean of 0 and 1."""
    recorded, value, n = (number(estimate.get(key)) for key in ("stderr", "value", "n"))
    if math.isfinite(recorded):
        return recorded
    return math.sqrt(value * (1 - value) / (n - 1)) if n > 1 and 0 <= value <= 1 else math.nan


def _error(stderr: float, metric: str) -> str:
    if metric == "perplexity":
        return f"{stderr:.1e}" if stderr >= 1e6 else style.figure(stderr, 2)
    return f"{100 * stderr:.1f}"


def _interval(estimate: Mapping[str, Any], stderr: float, metric: str) -> str:
    low, high = number(estimate.get("low")), number(estimate.get("high"))
    if math.isfinite(low) and math.isfinite(high):
        return style.span(low, high, "percent")
    if metric != "perplexity" or not math.isfinite(stderr):
        return style.NONE
    value = number(estimate.get("value"))
    factor = math.exp(min(1.96 * stderr / value, MAX_LOG))
    return f"[{_perplexity(value / factor)}, {_perplexity(value * factor)}]"


def _perplexity(value: float) -> str:
    """Of a model that has not learnt the language it may be any power of ten."""
    return f"{value:.2e}" if value >= 1e6 else style.figure(value, 4)


def _difference(value: float, published: float | None, stderr: float) -> str:
    if published is None or not stderr > 0:
        return style.NONE
    return f"{(value - published) / stderr:+.1f}"


def _averaged() -> str:
    return ", ".join(f"{task} {METRICS[metric]}" for task, metric in AVERAGED)
