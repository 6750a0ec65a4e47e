"""The embedded music: a few made-up pieces for machines that have no recordings.

Chords and melodies of decaying harmonics. Phrases return after many seconds, so that long context helps.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from tasks.audio.waveform import SAMPLE_RATE_HZ, tokens_from_synthesis
from tasks.base import Split
from tasks.prepared import RawDocument
from tasks.random import derive_key, philox

NOTE = "embedded synthetic music: additive synthesis, no recording"

VERSION = 1
"""Raised whenever the sound changes."""

_PIECES: dict[str, tuple[Split, float]] = {
    "piece 1": ("train", 24.0),
    "piece 2": ("train", 24.0),
    "piece 3": ("validation", 16.0),
    "piece 4": ("test", 66.0),
}
"""Split and length in seconds. The test piece holds one window of 2^20 samples (65.5 s)."""

SPLIT_OF_GROUP: dict[str, Split] = {name: split for name, (split, _) in _PIECES.items()}

_BEAT_S = 0.25
_NOTE_S = 1.2
_BEATS_PER_PHRASE = 16
_NUM_PHRASES = 4
_NUM_HARMONICS = 6
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_CHORD_ROOTS = (0, 3, 4, 5)
"""Degrees I, IV, V, VI."""

Float64Array = npt.NDArray[np.float64]
Note = tuple[int, int]
"""MIDI pitch and loudness in 1..4."""


def sha256() -> str:
    """Of the recipe's version: the sound is a pure function of it (a test keeps its own sha256)."""
    return hashlib.sha256(f"seqbench embedded music v{VERSION}".encode()).hexdigest()


def documents() -> Iterator[RawDocument]:
    for name, (_, length_s) in _PIECES.items():
        waveform_L = _play(name, int(length_s * SAMPLE_RATE_HZ))
        yield RawDocument(name=name, group=name, tokens=tokens_from_synthesis(waveform_L))


def _play(name: str, num_samples: int) -> Float64Array:
    beat_len = int(_BEAT_S * SAMPLE_RATE_HZ)
    phrases = [_compose(f"{name} phrase {i}") for i in range(_NUM_PHRASES)]
    order = _words(f"{name} order", 64) % _NUM_PHRASES
    waveform_L = np.zeros(num_samples)
    sounds: dict[Note, Float64Array] = {}
    for beat in range(num_samples // beat_len + 1):
        for note in phrases[order[beat // _BEATS_PER_PHRASE]][beat % _BEATS_PER_PHRASE]:
            if note not in sounds:
                sounds[note] = _strike(*note)
            room = waveform_L[beat * beat_len :][: len(sounds[note])]
            room += sounds[note][: len(room)]
    return waveform_L


def _compose(purpose: str) -> list[list[Note]]:
    """The notes that start on each beat of a phrase: a chord every four beats, a melody over it."""
    words = _words(purpose, 3 * _BEATS_PER_PHRASE).reshape(-1, 3).tolist()
    tonic = 48 + words[0][2] % 5
    phrase: list[list[Note]] = []
    degree = 7
    root = 0
    for beat, (chord, step, accent) in enumerate(words):
        notes: list[Note] = []
        if beat % 4 == 0:
            root = _CHORD_ROOTS[chord % len(_CHORD_ROOTS)]
            notes += [(_pitch(tonic, root + third), 2) for third in (0, 2, 4)]
        if accent % 4:
            degree = min(max(degree + step % 5 - 2, 5), 16)
            notes.append((_pitch(tonic, degree), 1 + accent % 4))
        phrase.append(notes)
    return phrase


def _pitch(tonic: int, degree: int) -> int:
    return tonic + 12 * (degree // 7) + _SCALE[degree % 7]


def _strike(pitch: int, loudness: int) -> Float64Array:
    """One note: harmonics that decay faster the higher they are."""
    frequency_hz = 440 * 2 ** ((pitch - 69) / 12)
    time_s = np.arange(int(_NOTE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    sound_L = np.zeros(len(time_s))
    for harmonic in range(1, _NUM_HARMONICS + 1):
        if harmonic * frequency_hz < SAMPLE_RATE_HZ / 2:
            decay_L = np.exp(-time_s * (2 + harmonic)) / harmonic**1.5
            sound_L += decay_L * np.sin(2 * np.pi * harmonic * frequency_hz * time_s)
    # Fade both ends, so that a note neither clicks at its start nor at its end.
    edge = np.minimum(1, np.minimum(time_s / 0.004, (time_s[-1] - time_s) / 0.05))
    faded_L: Float64Array = loudness * sound_L * edge
    return faded_L


def _words(purpose: str, count: int) -> npt.NDArray[np.int64]:
    counters = torch.arange((count + 3) // 4, dtype=torch.int64)
    words = philox(derive_key("embedded music", VERSION, purpose), (counters, 0, 0, 0))
    flat: npt.NDArray[np.int64] = torch.stack(words, dim=-1).flatten()[:count].numpy()
    return flat
