"""The tables of a run that measures speed for its own sake: frames of text, as in reports.tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from reports import fits, generation, style
from reports.comparisons import Curves, crossover_text, crossovers, curves, device_alone, references_for
from reports.frames import BATCH_GROUP, batch_sweeps, length_groups
from reports.generation import GENERATION_GROUP, LOOPS
from reports.published import training_memory
from reports.roofline import Ceilings, binding_text, limits_frame
from reports.speed_figures import compares_with_published_memory, peak_ratios
from reports.tables import measured_on


def crossovers_table(speed: pd.DataFrame, every_pair: bool = True) -> pd.DataFrame:
    """Every pair of something that attends and something that does not, and from which length on who is faster.

    Without every_pair only the reference of each: the fastest attention kernel, or the attention model of its size.
    """
    rows = []
    groups = length_groups(speed)
    for group, whose in [(g, "") for g in groups] + [(device_alone(g), ", the device alone") for g in groups]:
        for reference, model, cross in crossovers(group, every_pair):
            if cross.length is None:
                result = f"no crossover in range: {crossover_text(cross, reference, model)}"
            else:
                result = crossover_text(cross, reference, model)
            rows.append(
                {
                    "Measured": measured_on(group.iloc[0]) + whose,
                    "Model": model,
                    "Compared with": reference,
                    "Crossover": style.length(cross.length),
                    "95 % interval": style.span(cross.low, cross.high) if cross.length else style.NONE,
                    "Result": result,
                }
            )
    return pd.DataFrame(rows, columns=["Measured", "Model", "Compared with", "Crossover", "95 % interval", "Result"])


def speedups_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Speedup over each kind of attention at each shared length, with the 95 % interval of the ratio of medians."""
    return _ratios_table(speed, references_for)


def torch_speedups_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Speedup of each operator over its own form in PyTorch at each shared length, with the same interval."""

    def own_torch(model: str, by_model: Curves) -> References:
        slow = f"{model}_torch"
        return [(slow, by_model[slow])] if slow in by_model else []

    return _ratios_table(speed[speed["level"] == "operator"], own_torch)


References = list[tuple[str, dict[float, tuple[float, ...]]]]
"""Names and curves that a model is compared with."""


def _ratios_table(speed: pd.DataFrame, references: Callable[[str, Curves], References]) -> pd.DataFrame:
    rows, lengths = [], sorted(speed["seq_len"].dropna().unique())
    for group in length_groups(speed):
        by_model = curves(group)
        for model in sorted(by_model):
            for reference, slow in references(model, by_model):
                shared = sorted(set(slow) & set(by_model[model]))
                ratios = {x: fits.ratio_interval(slow[x], by_model[model][x]) for x in shared}
                cells = {style.length(x): ratio_text(ratios[x]) if x in ratios else style.NONE for x in lengths}
                if shared:
                    rows.append(
                        {"Measured": measured_on(group.iloc[0]), "Model": model, "Compared with": reference} | cells
                    )
    return pd.DataFrame(rows)


def ratio_text(ratio: tuple[float, float, float]) -> str:
    """2.5x [2.4, 2.6]."""
    value, low, high = ratio
    return f"{style.times(value)} [{style.figure(low)}, {style.figure(high)}]"


def ceilings_table(ceilings: pd.DataFrame) -> pd.DataFrame:
    """The ceilings measured in this run."""
    rows = [
        {
            "Ceiling": row["model"],
            "Status": row["status"],
            "dtype": row["dtype"],
            "Size": style.figure(row["seq_len"]),
            "Rate": f"{style.rate(row['rate'])}{row['rate_unit'] or ''}" if row["rate"] > 0 else style.NONE,
        }
        for row in ceilings.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["Ceiling", "Status", "dtype", "Size", "Rate"])


def limits_table(speed: pd.DataFrame, ceilings: Ceilings) -> pd.DataFrame:
    """Per operator: what binds, and the share of its own limit at its shortest, middle and longest length."""
    rows = []
    for group in length_groups(speed[speed["level"] == "operator"]):
        limits = limits_frame(group, ceilings)
        for model, mine in limits.groupby("model"):
            ordered = mine.sort_values("seq_len").to_dict("records")
            chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
            best = max(ordered, key=lambda row: row["share"])
            rows.append(
                {
                    "Measured": measured_on(group.iloc[0]),
                    "Operator": str(model),
                    "What binds": binding_text(mine),
                    **{
                        name: _share_at(row)
                        for name, row in zip(("Shortest", "Middle", "Longest", "Best"), [*chosen, best], strict=True)
                    },
                    "Limit at the longest": style.milliseconds(ordered[-1]["limit_ms"]),
                    "Measured there": style.milliseconds(ordered[-1]["latency_median_ms"]),
                }
            )
    return pd.DataFrame(rows)


def _share_at(row: Any) -> str:
    return f"{style.percent(row['share'])} at {style.length(row['seq_len'])}"


def predictions_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Predicted over measured peak memory of every curve, forward and training."""
    rows = []
    for group in length_groups(speed):
        for model, mine in peak_ratios(group).groupby("model"):
            worst = max(mine.to_dict("records"), key=lambda row: abs(math.log(row["peak_ratio"])))
            rows.append(
                {
                    "Measured": measured_on(group.iloc[0]),
                    "Model": str(model),
                    "Predicted / measured": f"{style.figure(mine['peak_ratio'].median())} "
                    f"({style.figure(mine['peak_ratio'].min())} to {style.figure(mine['peak_ratio'].max())})",
                    "Lengths": str(mine["seq_len"].nunique()),
                    "Farthest from 1": f"{style.figure(worst['peak_ratio'])} at {style.length(worst['seq_len'])}: "
                    f"{style.num_bytes(worst['predicted_peak_bytes'])} for {style.num_bytes(worst['memory_bytes'])}",
                    "Memory": str(worst["memory_basis"]),
                }
            )
    return pd.DataFrame(rows)


def generation_table(generated: pd.DataFrame) -> pd.DataFrame:
    """Per model and loop: best throughput, largest batch, state of a sequence, first call and capture."""
    rows = []
    for _, group in generated.groupby(GENERATION_GROUP, dropna=False, sort=True):
        points = generation.throughputs(group)
        for (model, loop), mine in group.groupby(["model", "loop"], dropna=False):
            own = [point for point in points if (point.model, point.loop) == (model, str(loop))]
            best = max(own, key=lambda point: point.tokens_per_s, default=None)
            at_one = [point for point in own if point.batch == 1]
            searched = mine.loc[mine["largest_batch"] > 0, "largest_batch"]
            per_sequence = (mine["state_bytes"] / mine["points_batch"]).dropna()
            first = mine.iloc[0]
            rows.append(
                {
                    "Model": str(model),
                    "Loop": LOOPS.get(str(loop), str(loop)),
                    "Prompt": style.length(first["seq_len"]),
                    "New tokens": style.figure(first["new_tokens"]),
                    "dtype": str(first["dtype"]),
                    "Parameters": style.figure(mine["params"].max()),
                    "Tokens/s at batch 1": style.figure(at_one[0].tokens_per_s) if at_one else style.NONE,
                    "Best tokens/s": f"{style.figure(best.tokens_per_s)} at batch {best.batch:.0f}"
                    if best
                    else style.NONE,
                    "Largest batch": style.figure(searched.max()) if len(searched) else style.NONE,
                    "State of a sequence": style.num_bytes(per_sequence.max()) if len(per_sequence) else style.NONE,
                    "Capture": style.milliseconds(mine["capture_ms"].median()),
                }
            )
    return pd.DataFrame(rows)


def generation_speedups_table(generated: pd.DataFrame) -> pd.DataFrame:
    """Throughput over attention's, at equal batch and at each one's best."""
    rows = []
    for _, group in generated.groupby(GENERATION_GROUP, dropna=False, sort=True):
        for where, fast, slow in generation.comparisons(group):
            at = f"best (batch {fast.batch:.0f} and {slow.batch:.0f})" if where == "best" else where
            rows.append(
                {
                    "Model": generation.subject(fast.model, fast.loop),
                    "Compared with": generation.subject(slow.model, slow.loop),
                    "Prompt": style.length(float(group["seq_len"].iloc[0])),
                    "At": at,
                    "Speedup": ratio_text(generation.speedup(fast, slow)),
                    "Tokens/s": f"{style.figure(fast.tokens_per_s)} and {style.figure(slow.tokens_per_s)}",
                }
            )
    return pd.DataFrame(rows)


def batch_memory_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Peak memory of training against batch, measured beside published."""
    rows = []
    swept = batch_sweeps(speed)
    for _, group in swept.groupby(BATCH_GROUP, dropna=False, sort=True):
        published = training_memory() if compares_with_published_memory(group) else []
        for model, mine in group.groupby("model"):
            known = {point.x: point.value for point in published if style.kin(str(model)) in point.curve.lower()}
            for batch, trial in mine.groupby("batch"):
                peak, first = trial["memory_bytes"].max(), trial.iloc[0]
                rows.append(
                    {
                        "Model": str(model),
                        "Length": style.length(first["seq_len"]),
                        "Batch": style.figure(first["batch"]),
                        "Status": str(first["status"]),
                        "Peak (predicted)": f"{_gb(peak)} ({_gb(first['predicted_peak_bytes'])})",
                        "Published, A100": _gb(known.get(float(str(batch)), math.nan)),
                        "Memory": str(first["memory_basis"]),
                    }
                )
    return pd.DataFrame(rows)


def _gb(value: float) -> str:
    """GB as published figures have them: 10^9 bytes."""
    return f"{value / 1e9:.1f} GB" if math.isfinite(value) else style.NONE
