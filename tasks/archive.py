"""Reads files one at a time out of plain files and archives. Nothing is ever unpacked to disk."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from tasks.base import TaskError

ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".zip")
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError)
"""What the standard library raises on damaged input (RuntimeError: an encrypted zip member)."""

MAX_MEMBER_BYTES = 4 << 30
"""A corpus file larger than this is a mistake or an archive bomb: it is refused before it is read."""

_CHUNK_BYTES = 1 << 20
_NOT_DATA = ("readme", "license", "licence", "copying", "attribution", "upstream_readme", "__macosx")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a source."""

    name: str
    """Path inside the source, with ``/``: groups (author, speaker, track) are read off it."""
    place: str
    """What an error message calls it."""
    data: bytes


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def strip_compression(name: str) -> str:
    """
    >>> strip_compression("chr1.fa.gz"), strip_compression("a.txt")
    ('chr1.fa', 'a.txt')
    """
    return name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in _COMPRESSED else name


def is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file found in a folder or archive is data: right ending, not hidden, not a licence or readme."""
    path = PurePosixPath(name)
    if any(part.startswith(".") or part.lower() == "__macosx" for part in path.parts):
        return False
    return strip_compression(path.name).lower().endswith(suffixes) and not path.name.lower().startswith(_NOT_DATA)


def read_members(path: Path, name: str, suffixes: tuple[str, ...]) -> Iterator[Member]:
    """The file itself, or the wanted files of an archive, in the archive's order.

    Links and special files are passed over; nothing they point to is read. Raises
    :class:`TaskError` where the file is damaged, or a member's name leaves the archive.
    """
    if not is_archive(path.name):
        yield Member(name=strip_compression(name), place=str(path), data=_read_file(path))
        return
    read = _read_zip if path.name.lower().endswith(".zip") else _read_tar
    last = "its start"
    members = read(path, suffixes)
    while True:
        try:
            member_name, data = next(members)
        except StopIteration:
            return
        except _DAMAGE as error:
            raise TaskError(
                f"{path}: the archive is damaged or truncated after {last} ({error or 'unexpected end'}); "
                "fetch it again"
            ) from error
        last = member_name = PurePosixPath(member_name).as_posix()  # drops a leading "./"
        place = f"{path}:{member_name}"
        with io.BytesIO(data) as raw:
            data = _decompress(raw, member_name, place) if strip_compression(member_name) != member_name else data
        yield Member(name=strip_compression(member_name), place=place, data=data)


def _read_tar(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            _check_name(path, info.name, info.size)
            if info.isreg() and is_wanted(info.name, suffixes):
                file = archive.extractfile(info)
                assert file is not None, "a regular member always opens"
                yield info.name, file.read()
        assert archive.fileobj is not None
        _check_tar_end(archive.fileobj)


def _check_tar_end(file: _Readable) -> None:
    """tarfile takes a damaged header for the end; a true end is followed by zero blocks and nothing else.

    Reading to the end also makes the decompressor compare its checksum.
    """
    num_tail_bytes = 0
    while chunk := file.read(_CHUNK_BYTES):
        num_tail_bytes += len(chunk)
        if chunk.count(0) != len(chunk):
            raise tarfile.ReadError("a member's header is damaged")
    if not num_tail_bytes:
        raise tarfile.ReadError("the end-of-archive mark is missing")


def _read_zip(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _check_name(path, info.filename, info.file_size)
            is_link = (info.external_attr >> 28) == 0o12
            if not info.is_dir() and not is_link and is_wanted(info.filename, suffixes):
                yield info.filename, archive.read(info)


def _check_name(path: Path, name: str, num_bytes: int) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise TaskError(f"{path}: member {name!r} points outside the archive; pack it again with relative names")
    if num_bytes > MAX_MEMBER_BYTES:
        raise TaskError(f"{path}: member {name!r} has {num_bytes} bytes (limit {MAX_MEMBER_BYTES}); split it")


def _read_file(path: Path) -> bytes:
    try:
        if strip_compression(path.name) != path.name:
            with path.open("rb") as raw:
                return _decompress(raw, path.name, str(path))
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error}); check its permissions") from error


def _decompress(raw: IO[bytes], name: str, place: str) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        with _COMPRESSED[PurePosixPath(name).suffix.lower()](raw, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                chunks.append(chunk)
                num_bytes += len(chunk)
                if num_bytes > MAX_MEMBER_BYTES:
                    raise TaskError(f"{place}: unpacks to more than {MAX_MEMBER_BYTES} bytes; split it")
    except _DAMAGE as error:
        line = 1 + sum(chunk.count(b"\n") for chunk in chunks)
        raise TaskError(
            f"{place}: the compressed file is damaged or truncated near line {line} "
            f"(after {num_bytes} bytes of content: {error}); fetch it again"
        ) from error
    return b"".join(chunks)
