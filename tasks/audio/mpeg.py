"""Whether the frames of an mp3 file follow one another from the first to the last (ISO/IEC 11172-3 and 13818-3).

libsndfile, as every decoder, looks for the next frame behind what is none, and says nothing of what it left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.archive import Member
from tasks.base import TaskError

_HEADER = 4
_IN_A_ROW = 3
"""Frames that must follow one another to be taken for some: eleven bits of a header may stand anywhere by chance."""
_LAYER_3 = 1
_KBITS = {
    1: (None, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (None, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Of layer III by the header's index, in MPEG-1 and in MPEG-2 and 2.5; 0 is the free format, which states no length."""
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the two bits of the version: MPEG-1, 2 and 2.5."""
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
"""What may stand behind the last frame; ID3v2 may stand before any."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    kind: tuple[int, int]
    """Version and sample rate, which no file changes."""
    num_bytes: int


def check_frames(member: Member) -> None:
    """Raises TaskError where bytes between two frames are none, or the last frame is cut.

    A changed byte within a frame leaves no trace, since hardly a file has checksums. Files of another layer or of the
    free format are not looked at, nor what stands before the first frame.
    """
    data = member.data
    first = _first_frame(data)
    if first is None:
        return
    start, kind = first
    while start < len(data):
        frame = _frame_at(data, start)
        if frame is not None and frame.kind == kind:
            if start + frame.num_bytes > len(data):
                raise TaskError(
                    f"{member.place}: truncated: the mp3 frame at byte {start} has {len(data) - start} of its "
                    f"{frame.num_bytes} bytes; fetch it again"
                )
            start += frame.num_bytes
        elif data.startswith(b"ID3", start):
            start += _id3_bytes(data, start)
        elif data.startswith(_TAGS, start) or (after := _first_frame(data, start, kind)) is None:
            return
        else:
            raise TaskError(
                f"{member.place}: damaged: no mp3 frame at byte {start}, the next is at {after[0]}; fetch it again"
            )


def _first_frame(
    data: bytes, start: int = 0, kind: tuple[int, int] | None = None
) -> tuple[int, tuple[int, int]] | None:
    """Where some frames in a row begin, of one kind or of the given one, and the kind; None where nowhere."""
    if data.startswith(b"ID3", start):
        start += _id3_bytes(data, start)
    while (start := data.find(b"\xff", start)) >= 0:
        frames = list(_frames_from(data, start))
        if len(frames) == _IN_A_ROW and len({frame.kind for frame in frames}) == 1 and kind in (None, frames[0].kind):
            return start, frames[0].kind
        start += 1
    return None


def _frames_from(data: bytes, start: int) -> Iterator[_Frame]:
    for _ in range(_IN_A_ROW):
        frame = _frame_at(data, start)
        if frame is None:
            return
        yield frame
        start += frame.num_bytes


def _frame_at(data: bytes, start: int) -> _Frame | None:
    """By the header at this place; None where it is none of layer III with a length."""
    header = int.from_bytes(data[start : start + _HEADER], "big")
    version, layer = header >> 19 & 3, header >> 17 & 3
    bitrate, rate, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if len(data) < start + _HEADER or header >> 21 != 0x7FF or version == 1 or layer != _LAYER_3:
        return None
    if bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    kbits, rate_hz = _KBITS[1 if is_first else 2][bitrate], _RATES_HZ[version][rate]
    assert kbits is not None
    return _Frame(kind=(version, rate_hz), num_bytes=(144 if is_first else 72) * 1000 * kbits // rate_hz + padding)


def _id3_bytes(data: bytes, start: int) -> int:
    """Of an ID3v2 tag: ten of its header, seven bits of each byte of its size, ten of a footer."""
    size = 0
    for byte in data[start + 6 : start + 10]:
        size = size << 7 | byte & 127
    has_footer = len(data) > start + 5 and data[start + 5] & 16
    return 10 + size + (10 if has_footer else 0)
