"""What a run of the speed suite says, as blocks: all of its tables for the page, and the few for a page of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from reports import frames, generation, speed_tables, style
from reports.comparisons import best_attention, curves, device_alone, memory_points, slope_points
from reports.document import Block, Heading, Paragraph, Table
from reports.fits import MIN_POINTS_SINCE, MIN_SPAN, Slope, fit_slope_since, medians
from reports.frames import length_groups
from reports.generation import GENERATION_GROUP, subject
from reports.roofline import LIMIT_NOTE, ceilings_of
from reports.tables import measured_on

LONG_TABLE = 40  # rows; longer ones are folded
SLOPE_SINCE = 8192
COMPARED = ("selective_scan", "ssd", "fft_conv")
Part = tuple[str, str, pd.DataFrame]
"""A table with its title and the words above it."""

GENERATION_NOTE = "Tokens a second, prefill included; each model under its fastest loop."
SLOPE_NOTE = (
    f"Least squares in log-log over every measured length from {style.length(SLOPE_SINCE)} on ({MIN_POINTS_SINCE} at "
    f"least, that span a factor of {MIN_SPAN:.0f}), launch-bound points left out, with the 95 % t interval over the "
    "points: 1 is linear, 2 quadratic."
)


def speed_blocks(speed: pd.DataFrame, trials: pd.DataFrame) -> list[Block]:
    """Every table that only a run has that measured speed for its own sake; those without rows are left out."""
    generated, ceilings = frames.generation_frame(trials), frames.ceilings_frame(trials)
    parts = (
        *times_parts(speed),
        ("Crossovers of every pair", "", speed_tables.crossovers_table(speed)),
        (
            "Speedup over attention at each length",
            "Ratio of medians with its 95 % bootstrap interval over the samples.",
            speed_tables.speedups_table(speed),
        ),
        _torch_part(speed),
        ("Slopes from 8K on", SLOPE_NOTE, slopes_table(speed)),
        ("Ceilings of this device", "", speed_tables.ceilings_table(ceilings)),
        ("Operators and their own limits", LIMIT_NOTE, speed_tables.limits_table(speed, ceilings_of(ceilings))),
        (
            "Predicted beside measured peak memory",
            "Median over the lengths, with the smallest and the largest.",
            speed_tables.predictions_table(speed),
        ),
        ("Generation", "", speed_tables.generation_table(generated)),
        *batches_parts(generated),
        ("Generation: speedup over attention", GENERATION_NOTE, speed_tables.generation_speedups_table(generated)),
        _memory_part(speed),
    )
    return list(_blocks(parts, level=3, fold=True))


def summary_blocks(speed: pd.DataFrame, trials: pd.DataFrame) -> list[Block]:
    """The tables that a page of results needs, none of them folded; those without rows are left out."""
    generated, ceilings = frames.generation_frame(trials), frames.ceilings_frame(trials)
    parts = (
        *times_parts(speed),
        (
            "Crossovers",
            "Against the fastest attention at each length, or the attention model of the same size.",
            speed_tables.crossovers_table(speed, every_pair=False),
        ),
        _torch_part(speed),
        ("Slopes from 8K on", SLOPE_NOTE, slopes_table(speed)),
        *batches_parts(generated),
        ("Generation: speedup over attention", GENERATION_NOTE, speed_tables.generation_speedups_table(generated)),
        _memory_part(speed),
        ("Ceilings", "Measured in the same run.", speed_tables.ceilings_table(ceilings)),
        ("Share of its own limit", LIMIT_NOTE, speed_tables.limits_table(speed, ceilings_of(ceilings))),
    )
    return list(_blocks(parts, level=3, fold=False))


def times_parts(speed: pd.DataFrame) -> list[Part]:
    """A table of operators' times for each group at a constant batch that holds one of those compared."""
    groups = [
        rows
        for rows in length_groups(speed[speed["level"] == "operator"])
        if rows["tokens"].isna().all() and rows["model"].isin(COMPARED).any()
    ]
    words = "Median time of a call; in brackets how many times faster than the attention kernel that is fastest there."
    parts = []
    for rows in groups:
        measured = measured_on(rows.iloc[0])
        parts.append((f"Time of a call: {measured}", words, operator_times_table(rows)))
        if len(alone := device_alone(rows)):
            more = f"{words} Short calls without the host's time for launching them, as CUDA graphs replay them."
            parts.append((f"The device's time of a call: {measured}", more, operator_times_table(alone)))
    return parts


def operator_times_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Median times of one group at each length, with the ratio to the fastest attention; else how the trial ended."""
    by_model = curves(rows)
    attention, names = best_attention(by_model), [name for name in COMPARED if name in set(rows["model"])]
    kernels = [name for name in sorted(by_model) if style.is_attention(name)]
    table = []
    for seq_len in sorted(rows["seq_len"].unique()):
        cells: dict[str, str] = {"Length": style.length(seq_len)}
        for name in names:
            if seq_len in by_model.get(name, {}):
                time_ms = medians(by_model[name])[seq_len]
                ratio = medians(attention).get(seq_len, float("nan")) / time_ms
                cells[name] = style.milliseconds(time_ms) + (f" ({style.times(ratio)})" if ratio > 0 else "")
            else:
                cells[name] = _ended(rows, [name], seq_len)
        if seq_len in attention:
            best = next(name for name in kernels if by_model[name].get(seq_len) == attention[seq_len])
            cells["attention, fastest kernel"] = f"{style.milliseconds(medians(attention)[seq_len])} ({best})"
        else:
            tried = [name for name in sorted(set(rows["model"])) if style.is_attention(name)]
            cells["attention, fastest kernel"] = _ended(rows, tried, seq_len)
        table.append(cells)
    return pd.DataFrame(table)


def _ended(rows: pd.DataFrame, names: Sequence[str], seq_len: float) -> str:
    """How the trials at a length ended that have no figure; a dash where none was tried."""
    tried = rows[rows["model"].isin(names) & (rows["seq_len"] == seq_len) & (rows["status"] != "ok")]
    return ", ".join(sorted(set(tried["status"]))) or style.NONE


def slopes_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Powers of length by which time and peak memory grow from 8K on, of every series at a constant batch."""
    rows = []
    for group in length_groups(speed[speed["tokens"].isna()]):
        memory = memory_points(group)
        for model in sorted(set(curves(group)) | set(memory)):
            time = fit_slope_since(slope_points(group, model), SLOPE_SINCE)
            peak = fit_slope_since(memory.get(model, {}), SLOPE_SINCE)
            if time is None and peak is None:
                continue
            rows.append(
                {
                    "Measured": measured_on(group.iloc[0]),
                    "Series": model,
                    "Time": _interval(time),
                    "Lengths (time)": _lengths(time),
                    "Peak memory": _interval(peak),
                    "Lengths (memory)": _lengths(peak),
                }
            )
    return pd.DataFrame(rows)


def _interval(slope: Slope | None) -> str:
    """1.02 [0.98, 1.06]"""
    if slope is None:
        return style.NONE
    value, low, high = (f"{round(one, 2) + 0.0:.2f}" for one in (slope.value, slope.low, slope.high))
    return f"{value} [{low}, {high}]"


def _lengths(slope: Slope | None) -> str:
    return f"{slope.num_points}, {style.length(slope.start)}..{style.length(slope.stop)}" if slope else style.NONE


def batches_parts(generated: pd.DataFrame) -> list[Part]:
    """A table of throughput against batch for each protocol of generation."""
    parts = []
    for _, rows in generated.groupby(GENERATION_GROUP, dropna=False, sort=True):
        first = rows.iloc[0]
        title = (
            f"Generation: tokens/s at each batch ({first['scale']}, prompt {style.length(first['seq_len'])}, "
            f"{style.figure(first['new_tokens'])} new tokens, {first['dtype']})"
        )
        parts.append((title, "Prefill included.", generation_batches_table(rows)))
    return parts


def generation_batches_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Tokens a second of one protocol: a row a batch, a column a model and loop; else how the trial ended."""
    known = {(point.model, point.loop, point.batch): point.tokens_per_s for point in generation.throughputs(rows)}
    columns = sorted({(str(row["model"]), str(row["loop"])) for row in rows.to_dict("records")})
    sought = rows[rows["batch"] == 0]
    ended = {
        (str(row["model"]), str(row["loop"]), float(row["batch"])): str(row["status"])
        for row in rows[rows["status"] != "ok"].to_dict("records")
    }
    table = []
    for batch in sorted({*rows.loc[rows["batch"] > 0, "batch"], *(batch for *_, batch in known)}):
        cells = {"Batch": style.figure(batch)}
        for model, loop in columns:
            key = (model, loop, float(batch))
            cells[subject(model, loop)] = style.figure(known[key]) if key in known else ended.get(key, style.NONE)
        table.append(cells)
    if len(sought):
        largest = {"Batch": "largest that fits"}
        for model, loop in columns:
            own = sought[(sought["model"] == model) & (sought["loop"] == loop)]
            found = own["largest_batch"].max()
            largest[subject(model, loop)] = style.figure(found) if found > 0 else ", ".join(own["status"]) or style.NONE
        table.append(largest)
    return pd.DataFrame(table)


def _torch_part(speed: pd.DataFrame) -> Part:
    words = "Ratio of medians with its 95 % bootstrap interval over the samples."
    return "Speedup over the same operator in PyTorch", words, speed_tables.torch_speedups_table(speed)


def _memory_part(speed: pd.DataFrame) -> Part:
    words = "GB are 10^9 bytes here, as in the published table."
    return "Training memory against batch", words, speed_tables.batch_memory_table(speed)


def _blocks(parts: Sequence[Part], level: int, fold: bool) -> Iterator[Block]:
    for title, words, frame in parts:
        if len(frame):
            yield Heading(text=title, level=level)
            if words:
                yield Paragraph(text=words)
            yield Table(frame=frame, folded=f"All {len(frame)} rows" if fold and len(frame) > LONG_TABLE else "")
