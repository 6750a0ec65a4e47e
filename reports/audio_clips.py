"""Records of generated audio, and the clips beside them that a page can play: few enough, and not too many bytes."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from reports import frames, style

KIND = "audio_generation"
MAX_CLIPS = 8
"""Of a model, and of the real ones beside it."""
MAX_BYTES = 5_000_000
"""Of all clips of a page together, as they stand in it: four characters for three bytes."""
REAL = "real"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A wav file that is there. ``who``: :data:`REAL`, or the model with its sampling."""

    who: str
    number: int
    path: Path

    @cached_property
    def wav(self) -> bytes:
        return self.path.read_bytes()

    @property
    def page_bytes(self) -> int:
        return 4 * -(-len(self.wav) // 3)

    def samples(self) -> tuple[np.ndarray, int]:
        """``(L,)`` float64 in [-1, 1], and the rate in Hz."""
        with wave.open(io.BytesIO(self.wav)) as file:
            pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
            return pcm / 2**15, file.getframerate()


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """What can be listened to side by side: one environment, one task, one kind of start."""

    section: str
    task: str
    start: str
    embedded: bool
    real: Sequence[Clip]
    generated: Sequence[Clip]
    left_out: int = 0
    """Clips that lie beside the records and are over the limits of a page."""

    @property
    def title(self) -> str:
        return f"{self.task}, {self.start}"

    def by_who(self) -> dict[str, list[Clip]]:
        """Real ones first, then each model's."""
        found: dict[str, list[Clip]] = {}
        for clip in (*self.real, *self.generated):
            found.setdefault(clip.who, []).append(clip)
        return found


def audio_records(records: Sequence[frames.Record], environments: frames.Environments) -> list[frames.Record]:
    """The newest record of every trial that generated audio, however it ended."""
    kept, _ = frames.latest([r for r in records if (r.get("trial") or {}).get("kind") == KIND], environments)
    return sorted(kept, key=lambda record: (section_of(record, environments), str(record["trial"])))


def section_of(record: frames.Record, environments: frames.Environments) -> str:
    env_id = str(record.get("env_id"))
    return frames.section_label(environments.get(env_id, {}), env_id, str(record["trial"].get("device")))


def start_of(record: frames.Record) -> str:
    trial = record["trial"]
    if (trial.get("protocol") or {}).get("start") == "data":
        return f"continuing {style.length(trial['seq_len'])} real samples"
    return "from silence"


def clip_groups(records: Sequence[frames.Record], environments: frames.Environments) -> list[ClipGroup]:
    """The clips of trained models within the limits of a page; what random weights give is noise and not played."""
    found: dict[tuple[str, str, str], ClipGroup] = {}
    for record in audio_records(records, environments):
        metrics = record.get("metrics") or {}
        if record.get("status") != "ok" or metrics.get("weights") != "trained":
            continue
        real, generated = _clips(record, "real", REAL), _clips(record, "generated", _who(record))
        key = section_of(record, environments), str(record["trial"]["task"]), start_of(record)
        group = found.get(key)
        if group is None:
            embedded = (metrics.get("source") or {}).get("kind") == "embedded"
            group = ClipGroup(section=key[0], task=key[1], start=key[2], embedded=embedded, real=[], generated=[])
        # All trials of a group have the same windows of the test data, of which a larger batch keeps more.
        longer = max(real, group.real, key=len)
        found[key] = replace(group, real=longer, generated=[*group.generated, *generated])
    return _within_limits(list(found.values()))


def _who(record: frames.Record) -> str:
    trial = record["trial"]
    protocol = trial.get("protocol") or {}
    said = [f"{name} {protocol[key]:g}" for key, name in (("temperature", "T"), ("top_p", "top-p")) if key in protocol]
    return ", ".join([str(trial["model"]), *(text for text in said if not text.endswith(" 1"))])


def _clips(record: frames.Record, kind: str, who: str) -> list[Clip]:
    """Those whose files lie beside the records; a shard's records lie a folder deeper."""
    said = (record.get("metrics") or {}).get("clips") or {}
    folder = Path(str(record.get("records_path", "."))).parent
    clips = []
    for number, entry in enumerate(said.get(kind, ())):
        name = Path(str(said.get("folder"))) / Path(str(entry.get("file"))).name
        places = [place / name for place in (folder, folder.parent) if ".." not in name.parts]
        if path := next((place for place in places if place.is_file()), None):
            clips.append(Clip(who=who, number=number, path=path))
    return clips


def _within_limits(groups: Sequence[ClipGroup]) -> list[ClipGroup]:
    """At most :data:`MAX_CLIPS` of each, first ones first everywhere, until the page is full."""
    kept: set[int] = set()
    num_kept: dict[tuple[int, str], int] = {}
    left = MAX_BYTES
    for place, clip in _in_turns(groups):
        count = num_kept.get((place, _model(clip)), 0)
        if count < MAX_CLIPS and clip.page_bytes <= left:
            left -= clip.page_bytes
            kept.add(id(clip))
            num_kept[place, _model(clip)] = count + 1
    limited = []
    for group in groups:
        real, generated = ([c for c in clips if id(c) in kept] for clips in (group.real, group.generated))
        left_out = len(group.real) + len(group.generated) - len(real) - len(generated)
        limited.append(replace(group, real=real, generated=generated, left_out=left_out))
    return [group for group in limited if group.real or group.generated]


def _model(clip: Clip) -> str:
    """Limits are a model's, whatever it was sampled with."""
    return clip.who.partition(",")[0]


def _in_turns(groups: Sequence[ClipGroup]) -> Iterator[tuple[int, Clip]]:
    """Every group's first clip of each, then the second ones."""
    every = [(place, clip) for place, group in enumerate(groups) for clip in (*group.real, *group.generated)]
    yield from sorted(every, key=lambda pair: pair[1].number)
