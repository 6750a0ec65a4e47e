"""Generated audio in the report: what a sample costs, players beside the real clips, and spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports import frames, style
from reports.audio_clips import MAX_BYTES, MAX_CLIPS, ClipGroup, audio_records, clip_groups, section_of, start_of
from reports.audio_reference import SOURCE, published_speech
from reports.audio_spectrograms import spectrogram_figure
from reports.document import Block, Heading, Paragraph, Sound, Sounds, Table

TITLE = "Raw audio, generated"
_LOOPS = {"cuda_graph": "CUDA graphs", "eager": "eager"}
_SCORES = {"fid": "FID", "inception_score": "IS", "modified_inception_score": "mIS", "am_score": "AM"}
_PUBLISHED = {"fid": "FID", "is": "IS", "mis": "mIS", "am": "AM"}


def audio_generation_blocks(
    records: Sequence[frames.Record], environments: frames.Environments, out_dir: Path
) -> list[Block]:
    """The section of generated audio; empty where no record is of that kind.

    Clips that are played are written to ``out_dir/audio`` too, and spectrograms to ``out_dir/figures``.
    """
    from reports.saving import save_figures

    found = audio_records(style.clean(list(records)), style.clean(dict(environments)))
    if not found:
        return []
    blocks: list[Block] = [
        Heading(text=TITLE),
        Paragraph(
            text="Samples a second are those of all sequences together, without the reading of the prompt; over "
            "attention, which keeps a cache of the full length, at the same batch, start and loop; times real "
            "time is one sequence's, 1 being as fast as it plays. Logits of a short generation and of the last sample "
            "were compared with the whole forward's before a speed is given. Random weights say how fast, not how good."
        ),
        Table(frame=cost_table(found, environments)),
    ]
    scores = speech_table(found, environments)
    if len(scores):
        blocks += [
            Paragraph(
                text="Generated digits, heard by the suite's own classifier. The published rows below were trained on "
                "SC09 and heard by another: the order of models may be compared, a score may not."
            ),
            Table(frame=pd.concat([scores, published_speech_table()], ignore_index=True)),
        ]
    groups = clip_groups(found, environments)
    for group in groups:
        blocks += [
            Heading(text=f"To be listened to: {group.title}", level=3),
            Paragraph(text=_about(group)),
            Sounds(rows=_write_sounds(group, out_dir / "audio")),
        ]
    return blocks + save_figures([partial(spectrogram_figure, group) for group in groups], out_dir / "figures")


def _about(group: ClipGroup) -> str:
    text = f"{group.section}. Clips of the test split above, the models' below: the first of each, none was chosen."
    if group.start != "from silence":
        text += " A column goes on from the same real sound, which is not played."
    if group.left_out:
        text += (
            f" {group.left_out} more lie beside the records: a page plays at most {MAX_CLIPS} a model and "
            f"{MAX_BYTES / 1e6:g} MB in all."
        )
    return text


def _write_sounds(group: ClipGroup, folder: Path) -> dict[str, list[Sound]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Sound]] = {}
    for who, clips in group.by_who().items():
        for clip in clips:
            # Named by what it holds: two sections may have clips of one model.
            name = f"{clip.path.parent.name}-{clip.path.name}"
            (folder / name).write_bytes(clip.wav)
            rows.setdefault(who, []).append(Sound(name=name, wav=clip.wav))
    return rows


def cost_table(records: Sequence[frames.Record], environments: frames.Environments) -> pd.DataFrame:
    """A line a trial, those that failed too; its rate over that of attention at the same batch, start and loop."""
    attention = {
        _setting(record, environments): _samples_per_s(record)
        for record in records
        if style.is_attention(record["trial"]["model"])
    }
    lines = []
    for record in records:
        trial, metrics = record["trial"], record.get("metrics") or {}
        protocol, error = trial.get("protocol") or {}, record.get("error") or {}
        memory = metrics.get("peak_alloc_bytes")
        lines.append(
            {
                "Where": section_of(record, environments),
                "Model": str(trial["model"]),
                "Status": str(record.get("status")),
                "Start": start_of(record),
                "Batch": str(trial["batch"]),
                "Loop": f"{_LOOPS.get(str(protocol.get('loop')), str(protocol.get('loop')))}, {trial['dtype']}",
                "Samples/s": style.rate(_samples_per_s(record)),
                "Over attention": _times(
                    _samples_per_s(record) / attention.get(_setting(record, environments), float("nan"))
                ),
                "Times real time": style.figure(frames.number(metrics.get("real_time_factor"))),
                "A step": _quartiles(metrics.get("step_ms")),
                "Prompt read in": style.milliseconds(_first(metrics.get("prefill_ms"))),
                "Peak memory": style.num_bytes(frames.number(memory)),
                "State a sequence": style.num_bytes(frames.number(metrics.get("state_bytes")) / trial["batch"]),
                "Weights": f"{metrics.get('weights', style.NONE)}, {metrics.get('params', 0):,} parameters",
                "Why": str(error.get("message") or ""),
            }
        )
    return pd.DataFrame(lines)


def _samples_per_s(record: frames.Record) -> float:
    return frames.number((record.get("metrics") or {}).get("samples_per_s"))


def _setting(record: frames.Record, environments: frames.Environments) -> tuple[object, ...]:
    """What two generations must share to be compared."""
    trial = record["trial"]
    protocol = trial.get("protocol") or {}
    where = section_of(record, environments)
    return where, start_of(record), trial["batch"], protocol.get("loop"), protocol.get("new_samples"), trial["dtype"]


def _times(ratio: float) -> str:
    return style.NONE if np.isnan(ratio) else f"{ratio:.2f}x"


def _quartiles(value: Any) -> str:
    samples = frames.samples(value)
    if not samples:
        return style.NONE
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return f"{style.milliseconds(middle)} [{style.figure(low)}, {style.figure(high)}]"


def _first(value: Any) -> float:
    samples = frames.samples(value)
    return samples[0] if samples else float("nan")


def speech_table(records: Sequence[frames.Record], environments: frames.Environments) -> pd.DataFrame:
    """Scores of generated digits; a line a trial that has them. FID and AM are better where lower."""
    lines = []
    for record in records:
        scores = (record.get("metrics") or {}).get("speech_metrics") or {}
        if record.get("status") == "ok" and scores.get("status") == "ok":
            figures = {name: style.figure(frames.number(scores.get(key))) for key, name in _SCORES.items()}
            who = {"Where": section_of(record, environments), "Model": str(record["trial"]["model"])}
            lines.append(who | figures | {"Clips": str(scores.get("clips", style.NONE))})
    return pd.DataFrame(lines)


def published_speech_table() -> pd.DataFrame:
    """Table 4 of the paper in the columns of :func:`speech_table`; its NLL belongs to trainings."""
    where = f"published, {SOURCE}, table 4"
    lines = [
        {"Where": where, "Model": row["model"] + ("" if row["params"] == "-" else f", {row['params']}")}
        | {name: row.get(key, style.NONE) for key, name in _PUBLISHED.items()}
        | {"Clips": style.NONE}
        for row in published_speech()
    ]
    return pd.DataFrame(lines)
