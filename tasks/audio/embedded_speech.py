"""The embedded speech: made-up one-second utterances, for machines that have no recordings.

A source-filter model: a train of glottal pulses, and noise, shaped by the resonances of two vowels.
Speakers differ in pitch and in the length of their vocal tract.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.audio.waveform import SAMPLE_RATE_HZ, tokens_from_synthesis
from tasks.prepared import RawDocument
from tasks.random import derive_key, philox

NOTE = "embedded synthetic speech: source-filter vowels, no recording"

VERSION = 1
"""Raised whenever the sound changes."""

_NUM_SPEAKERS, _NUM_CLIPS = 12, 8
_CLIP_LEN = SAMPLE_RATE_HZ

_FORMANTS_HZ = np.array(
    [[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]], dtype=np.float64
)
"""a, i, u, e, o of men, after Peterson and Barney, "Control methods used in a study of the vowels" (1952)."""

MOST_WORDS = len(_FORMANTS_HZ) ** 2
"""As many pairs of vowels."""

_BANDWIDTHS_HZ = np.array([80.0, 100.0, 140.0])

Float64Array = npt.NDArray[np.float64]


def sha256() -> str:
    """Of the recipe's version: the sound is a pure function of it (a test keeps its own sha256)."""
    return hashlib.sha256(f"seqbench embedded speech v{VERSION}".encode()).hexdigest()


def documents() -> Iterator[RawDocument]:
    """Eight clips of each of twelve speakers."""
    for speaker in range(_NUM_SPEAKERS):
        for clip in range(_NUM_CLIPS):
            name = f"speaker{speaker:02d}_nohash_{clip}"
            tokens = tokens_from_synthesis(_utter(speaker, clip))
            yield RawDocument(name=name, group=f"speaker{speaker:02d}", tokens=tokens)


def word_documents(words: Sequence[str]) -> Iterator[RawDocument]:
    """A clip of each word by each of twelve speakers: word ``i`` is the ``i``-th pair of vowels."""
    assert len(words) <= MOST_WORDS, words
    for i, word in enumerate(words):
        for speaker in range(_NUM_SPEAKERS):
            tokens = tokens_from_synthesis(_utter(speaker, _NUM_CLIPS + i, divmod(i, len(_FORMANTS_HZ))))
            name = f"{word}/speaker{speaker:02d}_nohash_0.wav"
            yield RawDocument(name=name, group=f"speaker{speaker:02d}", tokens=tokens)


def _utter(speaker: int, clip: int, vowels: tuple[int, int] | None = None) -> Float64Array:
    """A second of two vowels, drawn for the clip unless they are given."""
    pitch_hz, tract = 90 + 130 * _uniform(f"speaker {speaker}", 2)[0], 0.9 + 0.3 * _uniform(f"speaker {speaker}", 2)[1]
    draws = _uniform(f"clip {speaker} {clip}", 8)
    time = np.arange(_CLIP_LEN) / _CLIP_LEN

    glide_hz = pitch_hz * (1 + 0.2 * (draws[0] - 0.5) * time + 0.01 * np.sin(2 * np.pi * 5 * time))
    phase = np.cumsum(glide_hz) / SAMPLE_RATE_HZ
    pulses = np.diff(np.floor(phase), prepend=0.0)
    noise = _uniform(f"noise {speaker} {clip}", _CLIP_LEN) - 0.5

    heard = [_FORMANTS_HZ[vowel] * tract for vowel in vowels or (int(draws[1] * 5), int(draws[2] * 5))]
    spoken = [np.fft.irfft(np.fft.rfft(pulses + 0.02 * noise) * _tract(vowel), _CLIP_LEN) for vowel in heard]
    blend = 1 / (1 + np.exp(-(time - 0.4 - 0.2 * draws[3]) * 40))
    begin, end = 0.08 + 0.15 * draws[4], 0.75 + 0.2 * draws[5]
    envelope = np.clip((time - begin) / 0.05, 0, 1) * np.clip((end - time) / 0.1, 0, 1)
    utterance = envelope * ((1 - blend) * spoken[0] + blend * spoken[1])
    hiss = 0.1 * np.exp(-(((time - begin) / 0.03) ** 2)) + 0.001
    mixed: Float64Array = utterance + np.abs(utterance).max() * hiss * noise
    return mixed


def _tract(formants_hz: Float64Array) -> npt.NDArray[Any]:
    """Complex frequency response: glottis (12 dB an octave down), lips (6 dB up), resonators in a row."""
    s = 2j * np.pi * np.fft.rfftfreq(_CLIP_LEN, 1 / SAMPLE_RATE_HZ)
    glottis, lips = 1 / (1 + s / (2 * np.pi * 200)) ** 2, s / (2 * np.pi * 200)
    response: npt.NDArray[Any] = glottis * lips
    for center_hz, width_hz in zip(formants_hz, _BANDWIDTHS_HZ, strict=True):
        pole = 2 * np.pi * (-width_hz / 2 + 1j * center_hz)
        response = response * abs(pole) ** 2 / ((s - pole) * (s - pole.conjugate()))
    return response


def _uniform(purpose: str, count: int) -> Float64Array:
    """``count`` numbers in [0, 1) for a named purpose."""
    counters = torch.arange((count + 3) // 4, dtype=torch.int64)
    words = philox(derive_key("embedded speech", VERSION, purpose), (counters, 0, 0, 0))
    flat: Float64Array = torch.stack(words, dim=-1).flatten()[:count].numpy() / 2**32
    return flat
