"""Language as bytes, which need no tokenizer, or as the tokens of a BPE that is trained on the train split."""

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from tasks.archive import Member
from tasks.base import SPLITS, Split, TaskError
from tasks.corpus import CorpusTask
from tasks.download import PinnedFile
from tasks.language import bpe, embedded
from tasks.prepared import Corpus, Document, RawDocument, build_corpus, load_or_build
from tasks.sources import Layout, ResolvedSource, SourceSpec
from tasks.splits import Splits, split_documents

_NOVEL = re.compile(r"(?P<author>[^_]+)_.+_\d{4}$")
"""``Author_Title_Year``, as in the 100 English Novels."""

_MAX_CONTROL = 0.1
"""Text has tabs and line ends but hardly another control byte; a tenth of them is a binary file."""

BYTE_VOCAB, DEFAULT_BPE_VOCAB = 256, 4096

_TEXT_CONTROLS = (0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1A, 0x1B)


class Language(CorpusTask):
    """Predict the next byte of text.

    Splits are by author where files are named ``Author_Title_Year.txt``, by file elsewhere. With
    ``tokenizer="bpe"`` the symbols are the tokens of a byte-level BPE of ``vocab_size`` (4096) tokens,
    trained on the train split alone. The splits are those of the bytes, so that both forms hold the same text.

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

    def __init__(
        self,
        *,
        data_root: Path | None = None,
        source: Path | None = None,
        strict: bool = False,
        tokenizer: Literal["bytes", "bpe"] = "bytes",
        vocab_size: int | None = None,
    ) -> None:
        """
        Args:
            strict: refuse bytes that are not UTF-8; otherwise bytes are bytes. A BPE needs UTF-8 in any case.
            vocab_size: of the BPE. Where the text gives fewer merges, the last ids stay unused, and a note says so.
        """
        self.strict, self.tokenizer = strict, tokenizer
        self.vocab_size = _vocab_size(tokenizer, vocab_size)
        self.token_bytes = np.ones(BYTE_VOCAB, np.int64)
        self.codec: bpe.BpeCodec | None = None
        super().__init__(data_root=data_root, source=source)
        if self.codec is not None:
            self.token_bytes = self.codec.token_bytes(self.vocab_size)
            self.provenance = replace(self.provenance, tokenizer_sha256=self.codec.sha256)

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
        if self.codec is not None:  # the bytes' splits, which the groups' names begin with
            return {d.group: _split_of(d.group) for d in self.corpus.documents}
        return embedded.SPLIT_OF_GROUP if self.layout == "embedded" else None

    def checkpoint_files(self) -> Mapping[str, str]:
        return {} if self.codec is None else {bpe.FILE_NAME: self.codec.content}

    def _load(self, resolved: ResolvedSource) -> Corpus:
        corpus = super()._load(resolved)
        if self.tokenizer == "bytes":
            return corpus
        splits, notes = split_documents(corpus.documents, self.fixed_splits())
        identity = self.identity_of(resolved)
        train = (text_of(corpus, document) for document in splits["train"])
        self.codec = codec = bpe.load_or_train(train, self.vocab_size, identity)
        if codec.num_tokens < self.vocab_size:
            notes += (f"the train split gave {codec.num_tokens} of {self.vocab_size} tokens; the other ids are unused",)
        return load_or_build(
            f"{self.name}-v{self.version}-bpe",
            identity | {"tokenizer": codec.sha256, "vocab_size": self.vocab_size},
            lambda: build_corpus(_encoded(corpus, splits, codec), lambda: corpus.notes + notes),
        )


def _vocab_size(tokenizer: str, asked: int | None) -> int:
    if tokenizer == "bpe":
        return DEFAULT_BPE_VOCAB if asked is None else asked
    if tokenizer != "bytes":
        raise TaskError(f"language: unknown tokenizer {tokenizer!r}; it is 'bytes' or 'bpe'")
    if asked not in (None, BYTE_VOCAB):
        raise TaskError(f"language: vocab_size={asked}, but there are {BYTE_VOCAB} bytes; add tokenizer: bpe")
    return BYTE_VOCAB


def _encoded(corpus: Corpus, splits: Splits, codec: bpe.BpeCodec) -> Iterator[RawDocument]:
    for split, documents in splits.items():
        for document in documents:
            tokens = codec.encode_long(text_of(corpus, document))
            yield RawDocument(name=document.name, group=f"{split}: {document.group}", tokens=tokens)


def _split_of(group: str) -> Split:
    return next(split for split in SPLITS if group.startswith(f"{split}: "))


def text_of(corpus: Corpus, document: Document) -> str:
    """The text of a document of bytes, without the parts of characters at its ends that a cut has left there.

    Raises :class:`TaskError` where it is not UTF-8.
    """
    data = corpus.tokens_of(document).tobytes()
    start = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data[start:], final=False)
    except UnicodeDecodeError as error:
        place = start + error.start
        raise TaskError(
            f"{document.name}: not UTF-8 at byte offset {place} (byte 0x{data[place]:02x}); a BPE tokenizer reads "
            "text: convert the file, or leave tokenizer: bpe out"
        ) from error


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
