"""The embedded text: the prose inside CPython (the topics of ``help()``), some 460 kB on every machine.

It varies with the Python version, which is therefore part of its identity.
"""

import hashlib
import platform
from collections.abc import Iterator
from functools import cache

import numpy as np

from tasks.base import Split
from tasks.prepared import RawDocument

NOTE = (
    "embedded text: CPython's help topics, whole topics dealt to the splits and joined within each; "
    f"varies with the Python version ({platform.python_version()})"
)

SPLIT_OF_GROUP: dict[str, Split] = {
    "topics (train)": "train",
    "topics (validation)": "validation",
    "topics (test)": "test",
}
_SHARES = {"test": 0.30, "validation": 0.15}
"""More than the usual tenth, so that test windows of 64K tokens (and with most versions 128K) exist."""


@cache
def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return dict(topics)


def sha256() -> str:
    """Of the text and the Python version."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name, text in sorted(_topics().items()):
        digest.update(f"\x1f{name}\x1f{text}".encode())
    return digest.hexdigest()


def documents() -> Iterator[RawDocument]:
    """One document a split. Topics are dealt in the order of their names' sha256, which is as good as random."""
    order = sorted(_topics(), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    total = sum(len(text) for text in _topics().values())
    parts: dict[Split, list[str]] = {"test": [], "validation": [], "train": []}
    for name in order:
        split: Split = "train"
        for candidate in ("test", "validation"):
            if sum(map(len, parts[candidate])) < _SHARES[candidate] * total:
                split = candidate
                break
        parts[split].append(_topics()[name])
    for group, split in SPLIT_OF_GROUP.items():
        text = "\n\n".join(parts[split]).encode()
        yield RawDocument(name=group, group=group, tokens=np.frombuffer(text, dtype=np.uint8))
