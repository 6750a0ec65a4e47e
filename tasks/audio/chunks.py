"""Where the samples of a wav (RIFF, RIFX, RF64), W64, AIFF, AU or CAF file lie, by its own header.

libsndfile reads what is there of a file that was cut, and says nothing of the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.archive import Member
from tasks.base import TaskError

_UNKNOWN_32, _UNKNOWN_64 = 2**32 - 1, 2**64 - 1
_W64_HEADER = 24
"""Bytes of a W64 chunk's header, which its size counts."""
_UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)
"""Format tags whose blocks are frames: PCM, float, A-law, mu-law, and the extensible form of these."""
_AU_SAMPLE_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
"""Of an AU file's encodings: mu-law, PCM of 8 to 32 bits, float, double, A-law."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A file's chunk of samples."""

    start: int
    """Offset of the first byte."""
    num_stated: int | None
    """Bytes by the header; None: until the end of the file, as a recorder writes that streams."""
    frame_bytes: int | None
    """Bytes of a frame (one sample of every channel); None where frames are compressed."""
    rate_hz: int | None = None
    size_field: slice | None = None
    """Where the header has the size, if libsndfile does not take a missing one for the end of the file."""
    order: Literal["little", "big"] = "little"

    def check_whole(self, member: Member) -> None:
        """Raises TaskError where fewer bytes are there than the header states."""
        num_there = max(0, len(member.data) - self.start)
        if self.num_stated is None or self.num_stated <= num_there:
            return
        frames = ""
        if self.frame_bytes:
            frames = f" ({self.num_stated // self.frame_bytes} frames stated, {num_there // self.frame_bytes} there)"
        raise TaskError(
            f"{member.place}: truncated: its header states {self.num_stated} bytes of samples, "
            f"{num_there} are there{frames}; fetch it again"
        )

    def with_size(self, data: bytes) -> bytes:
        """The file with its size in the header, where that was missing."""
        if self.num_stated is not None or self.size_field is None:
            return data
        width = self.size_field.stop - self.size_field.start
        size = min(len(data) - self.start, 256**width - 1)
        return data[: self.size_field.start] + size.to_bytes(width, self.order) + data[self.size_field.stop :]


def find_samples(member: Member) -> Samples | None:
    """The samples of a file; None for other containers. Raises TaskError where the header names none.

    >>> form = b"fmt \\x10\\0\\0\\0" + bytes([1, 0, 1, 0, 0x80, 0x3E, 0, 0, 0, 0x7D, 0, 0, 2, 0, 16, 0])
    >>> found = find_samples(Member(name="x", place="x", data=b"RIFF....WAVE" + form + b"data\\4\\0\\0\\0ab"))
    >>> found.start, found.num_stated, found.frame_bytes, found.rate_hz
    (44, 4, 2, 16000)
    """
    data = member.data
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
        return _of_wav(member, "big" if data[:4] == b"RIFX" else "little")
    if data[:4] == b"riff" and data[24:28] == b"wave":
        return _of_w64(member)
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return _of_aiff(member)
    if data[:4] in (b".snd", b"dns."):
        return _of_au(member, "big" if data[:4] == b".snd" else "little")
    if data[:4] == b"caff":
        return _of_caf(member)
    return None


def _of_wav(member: Member, order: Literal["little", "big"]) -> Samples:
    data = member.data
    rate_hz = frame_bytes = long_size_at = None
    for chunk_id, start, size in _chunks(data, 12, order):
        if chunk_id == b"ds64":
            long_size_at = start + 8  # EBU Tech 3306: after the file's own size
        elif chunk_id == b"fmt ":
            rate_hz, frame_bytes = _format(data[start : start + 16], order)
        elif chunk_id == b"data":
            field = slice(start - 4, start)
            if size == _UNKNOWN_32 and long_size_at is not None:
                field = slice(long_size_at, long_size_at + 8)
                size = int.from_bytes(data[field], order)
                is_open = size == _UNKNOWN_64
            else:
                is_open = size == _UNKNOWN_32
            # A size of 0 is of a recorder that streams, too, but where nothing or only other chunks follow.
            is_open = is_open or (size == 0 and not _is_chunks(data, start, order))
            return Samples(
                start=start, num_stated=None if is_open else size, frame_bytes=frame_bytes, rate_hz=rate_hz,
                size_field=field, order=order,
            )  # fmt: skip
    raise TaskError(f"{member.place}: truncated: the wav file has no data chunk; fetch it again")


def _of_w64(member: Member) -> Samples:
    data, offset = member.data, 40
    rate_hz = frame_bytes = None
    while offset + _W64_HEADER <= len(data):
        start, size = offset + _W64_HEADER, int.from_bytes(data[offset + 16 : offset + _W64_HEADER], "little")
        if data[offset : offset + 4] == b"fmt ":
            rate_hz, frame_bytes = _format(data[start : start + 16], "little")
        elif data[offset : offset + 4] == b"data":
            is_open = size <= _W64_HEADER or size == _UNKNOWN_64
            num_stated = None if is_open else size - _W64_HEADER
            return Samples(start=start, num_stated=num_stated, frame_bytes=frame_bytes, rate_hz=rate_hz)
        offset += max(size + -size % 8, _W64_HEADER)
    raise TaskError(f"{member.place}: truncated: the W64 file has no data chunk; fetch it again")


def _of_aiff(member: Member) -> Samples | None:
    data = member.data
    num_frames = frame_bytes = 0
    for chunk_id, start, size in _chunks(data, 12, "big"):
        if chunk_id == b"COMM":
            num_channels = int.from_bytes(data[start : start + 2], "big")
            num_frames = int.from_bytes(data[start + 2 : start + 6], "big")
            frame_bytes = num_channels * -(-int.from_bytes(data[start + 6 : start + 8], "big") // 8)
        elif chunk_id == b"SSND":
            skipped = 8 + int.from_bytes(data[start : start + 4], "big")  # two words, and what the first says
            num_stated = None if size in (0, _UNKNOWN_32) else max(0, size - skipped)
            is_plain = num_stated == num_frames * frame_bytes
            return Samples(
                start=start + skipped, num_stated=num_stated, frame_bytes=frame_bytes if is_plain else None, order="big"
            )
    if num_frames == 0 and frame_bytes:
        return None  # an empty recording needs no chunk of samples
    raise TaskError(f"{member.place}: truncated: the AIFF file has no SSND chunk; fetch it again")


def _of_au(member: Member, order: Literal["little", "big"]) -> Samples:
    if len(member.data) < 24:
        raise TaskError(f"{member.place}: truncated: the AU file has no whole header; fetch it again")
    fields = [int.from_bytes(member.data[i : i + 4], order) for i in range(4, 24, 4)]
    start, size, encoding, rate_hz, num_channels = fields
    frame_bytes = _AU_SAMPLE_BYTES.get(encoding, 0) * num_channels
    return Samples(
        start=start, num_stated=None if size == _UNKNOWN_32 else size, frame_bytes=frame_bytes or None,
        rate_hz=rate_hz, order=order,
    )  # fmt: skip


def _of_caf(member: Member) -> Samples:
    data, offset = member.data, 8
    frame_bytes = None
    while offset + 12 <= len(data):
        start, size = offset + 12, int.from_bytes(data[offset + 4 : offset + 12], "big")
        if data[offset : offset + 4] == b"desc":
            packet_bytes, packet_frames = (int.from_bytes(data[start + i : start + i + 4], "big") for i in (16, 20))
            frame_bytes = packet_bytes if packet_frames == 1 else None
        elif data[offset : offset + 4] == b"data":
            # A word that counts edits comes before the samples.
            num_stated = None if size == _UNKNOWN_64 else max(0, size - 4)
            return Samples(start=start + 4, num_stated=num_stated, frame_bytes=frame_bytes or None, order="big")
        offset = start + size
    raise TaskError(f"{member.place}: truncated: the CAF file has no data chunk; fetch it again")


def _chunks(data: bytes, offset: int, order: Literal["little", "big"]) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each chunk; the last may end beyond the file."""
    while offset + 8 <= len(data):
        size = int.from_bytes(data[offset + 4 : offset + 8], order)
        yield data[offset : offset + 4], offset + 8, size
        offset += 8 + size + (size & 1)


def _is_chunks(data: bytes, offset: int, order: Literal["little", "big"]) -> bool:
    """Whether the file from ``offset`` to its end is whole chunks with readable names, or nothing."""
    end = offset
    for chunk_id, start, size in _chunks(data, offset, order):
        if not (chunk_id.isascii() and chunk_id.decode("ascii").isprintable()):
            return False
        end = start + size
    return end in (len(data), len(data) - 1)  # the last chunk's padding is often left out


def _format(fields: bytes, order: Literal["little", "big"]) -> tuple[int | None, int | None]:
    """Rate and bytes of a frame from a ``fmt`` chunk."""
    if len(fields) < 16:
        return None, None
    is_plain = int.from_bytes(fields[:2], order) in _UNCOMPRESSED
    return int.from_bytes(fields[4:8], order), int.from_bytes(fields[12:14], order) if is_plain else None
