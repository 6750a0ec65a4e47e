"""The cache folder, and the sha256 of files without reading an unchanged file twice."""

import hashlib
import os
import tempfile
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def cache_dir() -> Path:
    """``$SEQBENCH_CACHE``, else ``$XDG_CACHE_HOME/seqbench``, else ``~/.cache/seqbench``. May not exist yet."""
    if named := os.environ.get("SEQBENCH_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "seqbench"


def file_sha256(path: Path) -> str:
    """The sha256 of a file; remembered by (path, size, mtime_ns), so that planning stays cheap."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_dir() / "sha256" / key
    try:
        known = memo.read_text()
    except (OSError, UnicodeDecodeError):
        known = ""
    if len(known) == 64:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    write_atomically(memo, digest.hexdigest().encode())
    return digest.hexdigest()


def combined_sha256(parts: list[tuple[str, str]]) -> str:
    """One sha256 for several (name, sha256) pairs; a single pair keeps its own."""
    if len(parts) == 1:
        return parts[0][1]
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_atomically(path: Path, content: bytes) -> bool:
    """Write a whole file or none; False where the cache cannot be written (it is then done without)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    except OSError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        return False
    return True
