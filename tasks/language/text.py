"""Language as bytes: UTF-8 as it is, 256 symbols, no tokenizer to choose."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from tasks.archive import Member
from tasks.base import Split, TaskError
from tasks.corpus import CorpusTask
from tasks.download import PinnedFile
from tasks.language import embedded
from tasks.prepared import RawDocument
from tasks.sources import Layout, SourceSpec

_NOVEL = re.compile(r"(?P<author>[^_]+)_.+_\d{4}$")
"""``Author_Title_Year``, as in the 100 English Novels."""

_MAX_CONTROL = 0.1
"""Text has tabs and line ends but hardly another control byte; a tenth of them is a binary file."""

_TEXT_CONTROLS = (0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1A, 0x1B)


class Language(CorpusTask):
    """Predict the next byte of text.

    Splits are by author where files are named ``Author_Title_Year.txt``, by file elsewhere.

    >>> from tasks.base import ExampleStream
    >>> task = Language()
    >>> batch = task.sample(ExampleStream(seed=0), 1, 64)
    >>> bool((batch.inputs_BL[:, 1:] == batch.targets_BL[:, :-1]).all())
    True
    >>> windows = task.evaluation_windows("test", 1024, 8)
    >>> len(windows), windows.num_possible > 50
    (8, True)
    """

    name = "language"
    version = 1
    modality = "language"
    vocab_size = 256
    embedded_note = embedded.NOTE
    spec = SourceSpec(
        task="language",
        suffixes=(".txt", ".text"),
        layouts=(
            Layout(name="english_novels", globs=("language/english_novels/*.tar.xz",)),
            Layout(name="text", globs=("language/**/*",)),
        ),
        downloads=(
            PinnedFile(
                name="tinyshakespeare.txt",
                url="https://raw.githubusercontent.com/karpathy/char-rnn/"
                "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
                sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    )

    def __init__(self, *, data_root: Path | None = None, source: Path | None = None, strict: bool = False) -> None:
        """``strict`` refuses bytes that are not UTF-8; otherwise bytes are bytes."""
        self.strict = strict
        super().__init__(data_root=data_root, source=source)

    def preparation_options(self) -> dict[str, str | int | float | bool]:
        return {"strict": self.strict}

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:  # noqa: ARG002
        check_text(member, strict=self.strict)
        yield RawDocument(
            name=member.name, group=author_of(member.name), tokens=np.frombuffer(member.data, dtype=np.uint8)
        )

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded.documents()

    def fixed_splits(self) -> Mapping[str, Split] | None:
        return embedded.SPLIT_OF_GROUP if self.layout == "embedded" else None


def author_of(name: str) -> str:
    """
    >>> author_of("corpus/Austen_Emma_1815.txt"), author_of("notes/today.txt")
    ('Austen', 'notes/today.txt')
    """
    match = _NOVEL.match(PurePosixPath(name).stem)
    return match["author"] if match else name


def check_text(member: Member, *, strict: bool) -> None:
    """Raise :class:`TaskError` for what is not text: NUL bytes, many control bytes, or (strict) not UTF-8."""
    if (place := member.data.find(0)) >= 0:
        raise TaskError(
            f"{member.place}: NUL byte at offset {place}: a binary file or UTF-16; convert it to UTF-8 text"
        )
    counts = np.bincount(np.frombuffer(member.data, dtype=np.uint8), minlength=32)[:32]
    counts[list(_TEXT_CONTROLS)] = 0
    if counts.sum() > _MAX_CONTROL * len(member.data):
        raise TaskError(
            f"{member.place}: {counts.sum() / len(member.data):.0%} of its bytes are control characters "
            f"(limit {_MAX_CONTROL:.0%}): it looks binary; name a text file"
        )
    if strict:
        try:
            member.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{member.place}: not UTF-8 at byte offset {error.start} (byte 0x{member.data[error.start]:02x}); "
                "convert the file, or leave strict out"
            ) from error
