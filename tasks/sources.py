"""Which files a data-set task reads: the user's, the data root's, the cache's, a download, or none (embedded).

Resolving is cheap: it lists and hashes files (an unchanged file once only) and decodes nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.archive import ARCHIVE_SUFFIXES, is_archive, is_wanted
from tasks.base import Provenance, TaskError
from tasks.cache import combined_sha256, file_sha256
from tasks.download import DownloadError, PinnedFile, download, downloads_allowed

SourceKind = Literal["embedded", "data root", "cache", "download", "user"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A way in which a task's files may lie under the data root."""

    name: str
    globs: tuple[str, ...]
    needs_all: bool = False
    """Whether every glob must find something."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What a task reads, and where it may lie."""

    task: str
    suffixes: tuple[str, ...]
    """Endings of the files that are data, lower case, without ``.gz``."""
    layouts: tuple[Layout, ...]
    """In order of preference."""
    downloads: tuple[PinnedFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    path: Path
    name: str
    """Relative to the source; never holds the user's folders, so that it may stand in a record."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ResolvedSource:
    """The files that will be read. No files: the task's embedded sample."""

    kind: SourceKind
    layout: str = ""
    files: tuple[SourceFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        assert self.files, "an embedded sample's identity is the task's own"
        return combined_sha256([(file.name, file.sha256) for file in self.files])

    def provenance(self, *, name: str, embedded_sha256: str, notes: tuple[str, ...] = ()) -> Provenance:
        """What a record says of it."""
        return Provenance(
            name=name,
            kind=self.kind,
            sha256=self.sha256 if self.files else embedded_sha256,
            note="; ".join(dict.fromkeys(self.notes + notes)),
            files=tuple(file.name for file in self.files),
        )


def resolve_source(spec: SourceSpec, *, data_root: Path | None = None, source: Path | None = None) -> ResolvedSource:
    """Find a task's files: ``source``, else the data root, else the cache, else a download, else none.

    Args:
        data_root: folder laid out as ``language/ dna/ audio/``; ``$SEQBENCH_DATA`` unless given.
        source: the user's own file, folder or archive.

    Raises:
        TaskError: a named path does not exist, or holds nothing that the task reads.
    """
    if source is not None:
        return _user_source(spec, Path(source).expanduser())
    notes: tuple[str, ...] = ()
    if root := _data_root(data_root):
        if found := _from_data_root(spec, root):
            return found
        notes += (f"the data root holds no files for {spec.task}",)
    if spec.downloads and all(file.is_cached() for file in spec.downloads):
        return _pinned(spec, "cache", notes)
    if spec.downloads and downloads_allowed():
        try:
            for file in spec.downloads:
                download(file)
            return _pinned(spec, "download", notes)
        except DownloadError as error:
            notes += (f"download failed ({error})",)
    return ResolvedSource(kind="embedded", layout="embedded", notes=notes)


def _data_root(given: Path | None) -> Path | None:
    named, origin = (given, "--data") if given is not None else (os.environ.get("SEQBENCH_DATA"), "SEQBENCH_DATA")
    if not named:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        raise TaskError(f"{origin}={root}: no such folder; name one laid out as language/ dna/ audio/, or leave it out")
    return root


def _user_source(spec: SourceSpec, source: Path) -> ResolvedSource:
    if not source.exists():
        raise TaskError(f"--source {spec.task}={source}: no such file or folder; check the path")
    if not source.is_dir():
        return ResolvedSource(kind="user", layout="user", files=_source_files([source], source.parent))
    names = [(path, path.relative_to(source).as_posix()) for path in source.rglob("*") if path.is_file()]
    paths = [path for path, name in names if is_wanted(name, spec.suffixes + ARCHIVE_SUFFIXES)]
    if not paths:
        raise TaskError(
            f"--source {spec.task}={source}: none of its {len(names)} files ends in one of "
            f"{' '.join(spec.suffixes)} or is an archive ({' '.join(ARCHIVE_SUFFIXES)}); name the right folder"
        )
    return ResolvedSource(kind="user", layout="user", files=_source_files(paths, source))


def _from_data_root(spec: SourceSpec, root: Path) -> ResolvedSource | None:
    for layout in spec.layouts:
        found = [[path for path in root.glob(glob) if _is_data(path, root, spec)] for glob in layout.globs]
        if all(found) if layout.needs_all else any(found):
            paths = sorted({path for paths in found for path in paths})
            return ResolvedSource(kind="data root", layout=layout.name, files=_source_files(paths, root))
    return None


def _is_data(path: Path, root: Path, spec: SourceSpec) -> bool:
    name = path.relative_to(root).as_posix()
    return path.is_file() and (is_archive(name) or is_wanted(name, spec.suffixes))


def _pinned(spec: SourceSpec, kind: Literal["cache", "download"], notes: tuple[str, ...]) -> ResolvedSource:
    files = tuple(SourceFile(path=file.cached, name=file.name, sha256=file.sha256) for file in spec.downloads)
    return ResolvedSource(kind=kind, layout="pinned", files=files, notes=notes)


def _source_files(paths: list[Path], base: Path) -> tuple[SourceFile, ...]:
    try:
        return tuple(
            SourceFile(path=path, name=path.relative_to(base).as_posix(), sha256=file_sha256(path))
            for path in sorted(paths)
        )
    except OSError as error:
        raise TaskError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error


def fetch_downloads(spec: SourceSpec) -> tuple[Path, ...]:
    """Fetch a task's pinned files into the cache now (``make data``), whatever ``SEQBENCH_DOWNLOAD`` says.

    Raises :class:`TaskError` where the network does not deliver.
    """
    try:
        return tuple(download(file) for file in spec.downloads)
    except DownloadError as error:
        raise TaskError(f"{spec.task}: download failed ({error}); check the network, or use --data") from error
