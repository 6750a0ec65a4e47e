"""Generation: throughput against batch, prefill and decode apart, and the bytes that a sequence's state takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports import fits, style
from reports.batch_figures import add_failed, draw_batches
from reports.drawing import (
    Drawing,
    Rows,
    Styles,
    add_legend,
    draw_curves,
    length_axis,
    new_figure,
    value_axis,
)
from reports.published import NEW_TOKENS, PROMPT, PublishedPoint

GENERATION_GROUP = ["section", "seq_len", "new_tokens", "dtype", "scale", "variant"]
LOOPS = {"cuda_graph": "CUDA graph", "eager": "eager", "transformers": "plain transformers"}
LOOP_ORDER = {"cuda_graph": 0, "eager": 1, "transformers": 2}
LIBRARY_MARKER = "v"  # of the library's plain loop: its model is attention too, and colour and marker would coincide


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Generation by one model and loop at one batch: samples of all new tokens together, prefill included, in ms."""

    model: str
    loop: str
    batch: float
    new_tokens: float
    total_ms: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        return 1e3 * self.batch * self.new_tokens / float(pd.Series(self.total_ms).median())


def subject(model: str, loop: object) -> str:
    """A model and its loop as one name."""
    return f"{model} ({LOOPS.get(str(loop), str(loop))})"


def with_subjects(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `subject`: a curve of a figure."""
    named = [subject(row["model"], row["loop"]) for row in frame.to_dict("records")]
    return frame.assign(subject=pd.Series(named, index=frame.index, dtype=object))


def subject_styles(frame: pd.DataFrame) -> dict[str, style.ModelStyle]:
    """The model's colour and marker; the line, and for the library's loop the marker too, says which loop."""
    looks = style.model_styles(frame["model"])
    lines = ("-", style.DASHDOT, style.DOTTED)
    return {
        subject(row["model"], row["loop"]): style.ModelStyle(
            color=looks[row["model"]].color,
            marker=LIBRARY_MARKER if row["loop"] == "transformers" else looks[row["model"]].marker,
            line=lines[LOOP_ORDER.get(str(row["loop"]), 0)],
        )
        for row in frame.to_dict("records")
    }


def throughputs(frame: pd.DataFrame) -> list[Throughput]:
    """Every measured point of a group, by model, loop and batch; a search's point stands at the batch it found."""
    found: dict[tuple[str, str, float], Throughput] = {}
    ordered = frame[frame["status"] == "ok"].sort_values("batch", ascending=False)
    for row in ordered.to_dict("records"):  # a search (batch 0) comes last and does not replace a trial of that batch
        key = (row["model"], str(row["loop"]), row["points_batch"])
        new_tokens = row["new_tokens"]
        pairs = tuple(map(sum, zip(row["prefill_ms"], row["decode_ms"], strict=False)))
        if key not in found and pairs and key[2] > 0 and new_tokens > 0:
            found[key] = Throughput(
                model=key[0], loop=key[1], batch=key[2], new_tokens=new_tokens, total_ms=pairs
            )  # fmt: skip
    return sorted(found.values(), key=lambda point: (point.model, point.loop, point.batch))


def speedup(fast: Throughput, slow: Throughput) -> tuple[float, float, float]:
    """Ratio of tokens/s with its 95 % bootstrap interval over the samples."""
    scale = fast.batch * fast.new_tokens / (slow.batch * slow.new_tokens)
    value, low, high = fits.ratio_interval(slow.total_ms, fast.total_ms)
    return scale * value, scale * low, scale * high


def throughput_figure(frame: pd.DataFrame, published: Sequence[PublishedPoint] = ()) -> Drawing:
    """New tokens a second (prefill included) against batch, a curve a model and loop, beside the published bars."""
    frame = with_subjects(frame)
    rows = Rows(x="batch")
    for point in throughputs(frame):
        rate = 1e3 * point.batch * point.new_tokens
        low, high = (rate / end for end in pd.Series(point.total_ms).quantile([0.75, 0.25]))
        rows.add(
            subject(point.model, point.loop), "measured", point.batch, point.tokens_per_s, low=low, high=high,
            n=len(point.total_ms), status="ok",
        )  # fmt: skip
    _add_flags(rows, frame, "few_samples", "launch_bound")
    labels = {}
    for row in frame[(frame["status"] == "ok") & (frame["largest_batch"] > 0)].to_dict("records"):
        labels[row["subject"]] = f"{row['subject']} \N{MIDDLE DOT} largest batch {row['largest_batch']:.0f}"
    add_failed(rows, frame, "points_batch", "subject")
    for published_point in published:
        rows.add(None, "published", published_point.x, published_point.value, note=published_point.curve)
    first = frame.iloc[0]
    caption = (
        f"Batch times {style.figure(first['new_tokens'])} new tokens over the medians of prefill and decode together; "
        "bands are quartiles. The line says the loop: solid under a CUDA graph, dash-dotted eager, dotted with "
        "triangles the plain generate of transformers. The largest batch that fits was found by search."
    )
    caption += f" {published[0].caption}" if published else ""
    return _against_batch(
        [("New tokens/s, prefill included (K = 1,000)", rows)], frame, labels, "throughput",
        "Generation throughput against batch", caption,
    )  # fmt: skip


def phases_figure(frame: pd.DataFrame) -> Drawing:
    """Prefill (prompt tokens a second) and decode (new tokens a second) apart, against batch."""
    frame = with_subjects(frame)
    panels = []
    for phase, label in (("prefill", "Prompt tokens/s (K = 1,000)"), ("decode", "New tokens/s (K = 1,000)")):
        rows = Rows(x="batch")
        for row in frame[(frame["status"] == "ok") & (frame["points_batch"] > 0)].to_dict("records"):
            tokens = row["points_batch"] * (row["seq_len"] if phase == "prefill" else row["new_tokens"])
            if row[f"{phase}_ms"] and tokens > 0:
                slow, middle, fast = pd.Series(row[f"{phase}_ms"]).quantile([0.75, 0.5, 0.25])
                rows.add(
                    row["subject"], "measured", row["points_batch"], 1e3 * tokens / middle, low=1e3 * tokens / slow,
                    high=1e3 * tokens / fast, n=len(row[f"{phase}_ms"]), status="ok", note=phase,
                )  # fmt: skip
        _add_flags(rows, frame, "few_samples")
        panels.append((label, rows))
    caption = (
        "Left: prompt tokens a second while the prompt is read. Right: new tokens a second while tokens are made one "
        "at a time. Medians with quartiles. Batches that have no figure stand on the rail of the throughput figure."
    )
    return _against_batch(panels, frame, {}, "phases", "Generation: prefill and decode apart", caption)


def _add_flags(rows: Rows, frame: pd.DataFrame, *flags: str) -> None:
    """Repeats the points that a flag is true of under its mark; a search's as the batch it found."""
    measured = [row for row in rows.rows if row["mark"] == "measured"]
    for flag in flags:
        flagged = frame[(frame["status"] == "ok") & frame[flag]]
        points = {(row["subject"], row["points_batch"]) for row in flagged.to_dict("records")}
        for row in measured:
            if (row["model"], row["batch"]) in points:
                rows.add(row["model"], flag, row["batch"], row["value"])


def _against_batch(
    panels: Sequence[tuple[str, Rows]], frame: pd.DataFrame, labels: dict[str, str], name: str, title: str, caption: str
) -> Drawing:
    first = frame.iloc[0]
    return draw_batches(
        panels, subject_styles(frame), labels, first, unit="rate",
        what=f"prompt {style.length(first['seq_len'])}, {style.figure(first['new_tokens'])} new tokens",
        name=f"generation-{name}-{first['scale']}-{first['seq_len']:.0f}", title=title, caption=caption,
    )  # fmt: skip


def state_points(trials: pd.DataFrame) -> dict[str, dict[float, float]]:
    """model -> length -> bytes of one sequence's state, as the records of models and of generation say."""
    known = trials[(trials["state_bytes"] > 0) & ((trials["level"] == "model") | (trials["kind"] == "generation"))]
    found: dict[str, dict[float, float]] = {}
    for row in known.to_dict("records"):
        generated = row["kind"] == "generation"
        batch = row["batch"] if row["batch"] > 0 else row["largest_batch"]
        seq_len = row["seq_len"] + (row["new_tokens"] if generated else 0)
        if batch > 0 and seq_len > 0:
            lengths = found.setdefault(row["model"], {})
            lengths.setdefault(seq_len, row["state_bytes"] / batch)
    return found


def state_figure(trials: pd.DataFrame, scale: str) -> Drawing | None:
    """Bytes of one sequence's state against its length, of the models of one size; None below two lengths."""
    mine = trials[trials["scale"] == scale]
    by_model = state_points(mine)
    if len({seq_len for lengths in by_model.values() for seq_len in lengths}) < 2:
        return None
    styles: Styles = style.model_styles(by_model)
    rows = Rows()
    for model, lengths in by_model.items():
        for seq_len, value in sorted(lengths.items()):
            rows.add(model, "measured", seq_len, value, status="ok", note="bytes of the state of one sequence")
    data = rows.frame()
    title = "State of one sequence against its length"
    sheet, (axes,) = new_figure(title, f"{mine['section'].iloc[0]} \N{MIDDLE DOT} {scale}")
    length_axis(axes, data["seq_len"].tolist())
    value_axis(axes, "State of a sequence", "bytes", data["value"].tolist())
    draw_curves(axes, data, styles)
    add_legend(sheet, data, styles, {})
    caption = "Bytes that must be kept between two new tokens, of one sequence: a recurrent state, or keys and values."
    return Drawing(name=f"state-{scale}", title=title, caption=caption, figure=sheet, data=data)


def follows_published(frame: pd.DataFrame) -> bool:
    """Whether a group follows the published protocol: prompt and new tokens."""
    first = frame.iloc[0]
    return bool(first["seq_len"] == PROMPT and first["new_tokens"] == NEW_TOKENS)


def comparisons(frame: pd.DataFrame) -> list[tuple[str, Throughput, Throughput]]:
    """(where, other, attention) at each shared batch, and at each one's best batch ("best").

    Every model that does not attend, under its fastest loop, against attention under each of its loops.
    """
    points = throughputs(frame)
    by_subject: dict[tuple[str, str], dict[float, Throughput]] = {}
    for point in points:
        by_subject.setdefault((point.model, point.loop), {})[point.batch] = point
    best = {key: max(batches.values(), key=lambda point: point.tokens_per_s) for key, batches in by_subject.items()}
    found = []
    for model in sorted({name for name, _ in by_subject if not style.is_attention(name)}):
        key = max((one for one in by_subject if one[0] == model), key=lambda one: best[one].tokens_per_s)
        for other in sorted(by_subject):
            if style.is_attention(other[0]):
                shared = sorted(set(by_subject[key]) & set(by_subject[other]))
                found += [(f"batch {batch:.0f}", by_subject[key][batch], by_subject[other][batch]) for batch in shared]
                found.append(("best", best[key], best[other]))
    return found
