"""Pinned downloads: a file is known by its address and its sha256, and refused if they disagree."""

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tasks.base import TaskError
from tasks.cache import cache_dir, file_sha256, write_atomically

_TIMEOUT_S = 30
"""Between two packets, not for the whole file."""


class DownloadError(Exception):
    """The network did not deliver. The caller goes on with the next source and says so."""


@dataclass(frozen=True, kw_only=True)
class PinnedFile:
    """A public file at a fixed commit."""

    name: str
    url: str
    sha256: str

    @property
    def cached(self) -> Path:
        return cache_dir() / "downloads" / self.sha256[:16] / self.name

    def is_cached(self) -> bool:
        """Whether the file lies in the cache, whole and unchanged."""
        return self.cached.is_file() and file_sha256(self.cached) == self.sha256


def downloads_allowed() -> bool:
    """Only with ``SEQBENCH_DOWNLOAD=1``, so that an offline run never waits for a network."""
    return os.environ.get("SEQBENCH_DOWNLOAD", "") == "1"


def download(file: PinnedFile) -> Path:
    """Fetch one file into the cache, and give its path.

    Raises:
        DownloadError: no network, no such address, or a cache that cannot be written.
        TaskError: what came is not what was pinned.
    """
    if file.is_cached():
        return file.cached
    request = urllib.request.Request(file.url, headers={"User-Agent": "seqbench"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            content = response.read()
    except OSError as error:  # URLError, HTTPError and timeouts are OSErrors
        raise DownloadError(f"{file.url}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise TaskError(
            f"{file.url}: sha256 {found} is not the pinned {file.sha256}; "
            "put the right file under the data root, or name your own with --source"
        )
    if not write_atomically(file.cached, content):
        raise DownloadError(f"{file.url}: the cache folder {cache_dir()} cannot be written")
    return file.cached
