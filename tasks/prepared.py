"""Tokenised corpora on disk: decoding archives and mp3 in each of dozens of short processes is too slow.

An entry is a folder with ``tokens.npy`` (memory-mapped when read) and ``index.json``. It is written
under another name and renamed, so that a reader sees a whole entry or none, and of two writers one wins.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.cache import cache_dir

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_TOKEN_TYPES = (np.uint8, np.uint16)

_FORMAT = 2
"""Raised when the layout of an entry changes, or what of a file is read into one; part of its key."""


@dataclass(frozen=True, kw_only=True)
class RawDocument:
    """A document as a reader of files gives it."""

    name: str
    group: str
    """Documents of one group never stand in different splits: an author, a chromosome, a speaker."""
    tokens: TokenArray


@dataclass(frozen=True, kw_only=True)
class Document:
    """Where a document lies in its corpus's token array."""

    name: str
    group: str
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All documents of a source in one array of uint8 or uint16, memory-mapped where the cache could be written."""

    tokens: TokenArray
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()

    def tokens_of(self, document: Document) -> TokenArray:
        return self.tokens[document.start : document.end]


def build_corpus(documents: Iterable[RawDocument], notes: Callable[[], tuple[str, ...]] = tuple) -> Corpus:
    """Join documents in memory. ``notes`` is asked last, when every document has been read."""
    placed: list[Document] = []
    arrays: list[npt.NDArray[Any]] = []
    start = 0
    for raw in documents:
        placed.append(Document(name=raw.name, group=raw.group, start=start, length=len(raw.tokens)))
        arrays.append(raw.tokens)
        start += len(raw.tokens)
    tokens: TokenArray = np.concatenate(arrays) if arrays else np.zeros(0, np.uint8)
    return Corpus(tokens=tokens, documents=tuple(placed), notes=notes())


def load_or_build(label: str, identity: dict[str, Any], build: Callable[[], Corpus]) -> Corpus:
    """The cached corpus of this identity; built, and stored where possible, if there is none or it is damaged.

    Args:
        label: readable start of the entry's name.
        identity: everything that the tokens depend on (sources, task version, options); JSON values.
        build: reads the sources.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, identity], sort_keys=True).encode()).hexdigest()
    entry = cache_dir() / "prepared" / f"{label}-{digest[:24]}"
    if (cached := _read(entry)) is not None:
        return cached
    corpus = build()
    _write(entry, corpus)
    stored = _read(entry)
    return corpus if stored is None else stored


def _read(entry: Path) -> Corpus | None:
    """None where there is no entry, or it is not what was written."""
    try:
        index = json.loads((entry / "index.json").read_text())
        tokens = np.load(entry / "tokens.npy", mmap_mode="r", allow_pickle=False)
        documents = tuple(Document(**document) for document in index["documents"])
        if tokens.dtype not in _TOKEN_TYPES or tokens.ndim != 1 or _checksum(tokens) != index["crc32"]:
            return None
        return Corpus(tokens=tokens, documents=documents, notes=tuple(index["notes"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _checksum(tokens: TokenArray) -> int:
    return zlib.crc32(tokens.data)


def _write(entry: Path, corpus: Corpus) -> None:
    """Store an entry. A cache that cannot be written is done without."""
    if not len(corpus.tokens):
        return  # an empty file cannot be memory-mapped
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".writing-"))
    except OSError:
        return
    try:
        np.save(temporary / "tokens.npy", corpus.tokens, allow_pickle=False)
        index = {
            "crc32": _checksum(corpus.tokens),
            "documents": [asdict(document) for document in corpus.documents],
            "notes": list(corpus.notes),
        }
        (temporary / "index.json").write_text(json.dumps(index))
        if entry.exists() and _read(entry) is None:  # damaged: out of the way, in one step
            os.replace(entry, temporary / "damaged")
        os.rename(temporary, entry)  # fails if another writer was first: its entry is as good
        shutil.rmtree(entry / "damaged", ignore_errors=True)
    except OSError:
        pass
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
