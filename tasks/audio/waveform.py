"""Sound files to mu-law tokens: decode, mix to mono, resample to 16 kHz, quantise to 8 bits.

Shape suffixes: C channels, L samples.
"""

import io
import zlib
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.archive import Member
from tasks.audio.chunks import find_samples
from tasks.audio.mpeg import check_frames
from tasks.audio.torchaudio_import import import_torchaudio
from tasks.base import TaskError
from tasks.prepared import TokenArray

SAMPLE_RATE_HZ = 16_000
NUM_LEVELS = 256
_MU = NUM_LEVELS - 1

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""No recording is outside: such a header is damaged, and resampling from it would exhaust the memory."""

_MAX_RATIO_TERM = 640
"""Odd rates are approximated by a ratio whose denominator is at most this: torchaudio's filter bank
grows with it. All usual rates are exact (44.1 kHz is 441/160); others err by under 2e-6."""

_SHORTEST_SHARE = 0.99
"""An mp3's header only estimates its length; fewer samples than this share mean one that was cut between frames."""


def mu_law_encode(waveform_L: Tensor) -> TokenArray:
    """Samples in [-1, 1] (others are clipped) to 256 levels, mu = 255; silence is 128.

    The formula of ``torchaudio.functional.mu_law_encoding`` (ITU-T G.711 without its segments).

    >>> mu_law_encode(torch.tensor([-1.0, 0.0, 0.01, 1.0])).tolist()
    [0, 128, 157, 255]
    """
    clipped_L = waveform_L.clamp(-1, 1)
    mu = torch.tensor(_MU, dtype=clipped_L.dtype)
    squeezed_L = torch.sign(clipped_L) * torch.log1p(mu * torch.abs(clipped_L)) / torch.log1p(mu)
    tokens: TokenArray = ((squeezed_L + 1) / 2 * mu + 0.5).to(torch.uint8).numpy()
    return tokens


def mu_law_decode(tokens: Tensor) -> Tensor:
    """Levels in a tensor of any shape to samples in [-1, 1]."""
    decoded: Tensor = import_torchaudio().functional.mu_law_decoding(tokens, NUM_LEVELS)
    return decoded


def resample(waveform_L: Tensor, rate_hz: int) -> Tensor:
    """To 16 kHz by a windowed-sinc filter (Kaiser, 64 zero crossings): nothing above 8 kHz folds back."""
    if rate_hz == SAMPLE_RATE_HZ or not len(waveform_L):
        return waveform_L
    ratio = Fraction(rate_hz, SAMPLE_RATE_HZ).limit_denominator(_MAX_RATIO_TERM)
    resampled_L: Tensor = import_torchaudio().functional.resample(
        waveform_L,
        ratio.numerator,
        ratio.denominator,
        lowpass_filter_width=64,
        # resampy's "kaiser_best", as torchaudio's own documentation gives it
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return resampled_L


def read_waveform(member: Member) -> tuple[Tensor, int]:
    """One sound file: mono float32 samples ``(L,)`` at their own rate, and that rate in Hz.

    Raises:
        TaskError: not a sound file, damaged, truncated, or with an impossible sample rate.
    """
    soundfile = _import_soundfile()
    data = _checked(member)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate_hz, num_stated, container = file.samplerate, file.frames, file.format
            _check_rate(member, rate_hz)
            samples_LC = file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise TaskError(
            f"{member.place}: cannot be decoded as audio ({reason}); "
            "it is damaged, truncated, or neither wav, flac, ogg nor mp3"
        ) from error
    required = num_stated * (_SHORTEST_SHARE if container.startswith("MP") else 1)
    if len(samples_LC) < required:
        raise TaskError(
            f"{member.place}: truncated: its header states {num_stated} samples, {len(samples_LC)} are there; "
            "fetch it again"
        )
    waveform_L = torch.from_numpy(samples_LC.mean(axis=1))
    if not bool(torch.isfinite(waveform_L).all()):
        first = int(torch.nonzero(~torch.isfinite(waveform_L))[0])
        raise TaskError(f"{member.place}: sample {first} is not a finite number; export the file again")
    return waveform_L, rate_hz


def _import_soundfile() -> Any:
    try:
        return import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: the wheel without libsndfile
        raise TaskError(f"reading sound files needs soundfile ({error}); pip install soundfile") from error


def _check_rate(member: Member, rate_hz: int) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise TaskError(
            f"{member.place}: sample rate {rate_hz} Hz is outside {MIN_RATE_HZ}..{MAX_RATE_HZ}; its header is damaged"
        )


def _checked(member: Member) -> bytes:
    """The file as libsndfile shall read it.

    libsndfile reads a truncated wav, W64, AIFF or mp3 without a word, finds no samples in a truncated ogg, and none in
    a wav whose size was never written, as a recorder that streams leaves it: that one is read until its end.
    """
    data = member.data
    if not data:
        raise TaskError(f"{member.place}: 0 bytes, not even a header; fetch it again")
    if samples := find_samples(member):
        if samples.rate_hz is not None:
            _check_rate(member, samples.rate_hz)
        samples.check_whole(member)
        return samples.with_size(data)
    if data[:4] == b"OggS":
        _check_pages(member)
    elif data[:3] == b"ID3" or data[:1] == b"\xff" or member.name.lower().endswith(".mp3"):
        check_frames(member)
    return data


def _check_pages(member: Member) -> None:
    """Raises TaskError for an ogg file that ends before its last page, or one of whose pages was changed: of those
    libsndfile leaves out what follows, without a word. The format is RFC 3533's."""
    data, start, is_last = member.data, 0, False
    while data[start : start + 4] == b"OggS":
        num_segments = data[start + 26] if len(data) > start + 26 else 0
        body = start + 27 + num_segments
        stop = body + sum(data[start + 27 : body])
        if len(data) < max(stop, start + 27):
            raise TaskError(f"{member.place}: truncated: the ogg stream has no whole last page; fetch it again")
        stated = int.from_bytes(data[start + 22 : start + 26], "little")
        if _ogg_checksum(data[start : start + 22] + bytes(4) + data[start + 26 : stop]) != stated:
            raise TaskError(
                f"{member.place}: damaged: the ogg page at byte {start} differs from its checksum; fetch it again"
            )
        is_last, start = bool(data[start + 5] & 4), stop
    if not is_last:
        what = f"damaged: no ogg page at byte {start}" if start < len(data) else "truncated: no last ogg page"
        raise TaskError(f"{member.place}: {what}; fetch it again")


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """zlib's polynomial, with every byte and the result the other way round, and from zero on."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def tokens_from_file(member: Member, notes: set[str]) -> TokenArray:
    """The mu-law tokens of one sound file; notes its rate where it was not 16 kHz."""
    waveform_L, rate_hz = read_waveform(member)
    if rate_hz != SAMPLE_RATE_HZ:
        notes.add(f"resampled from {rate_hz} Hz to {SAMPLE_RATE_HZ} Hz")
    return mu_law_encode(resample(waveform_L, rate_hz))


def tokens_from_synthesis(waveform_L: np.typing.NDArray[np.float64], *, peak: float = 0.7) -> TokenArray:
    """The mu-law tokens of generated sound, scaled to ``peak``."""
    scaled_L = waveform_L * (peak / np.abs(waveform_L).max())
    return mu_law_encode(torch.from_numpy(scaled_L))
