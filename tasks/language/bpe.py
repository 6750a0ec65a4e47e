"""A byte-level BPE tokenizer of a corpus's own: trained on its train split alone, kept in the cache, saved with models.

Every token stands for a string of bytes, the tokens of a text for its bytes, no more and no fewer: bits per token
become bits per byte by counting. There are no special tokens, as there is no such symbol in the text.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.base import TaskError
from tasks.cache import cache_dir, write_atomically

MIN_VOCAB, MAX_VOCAB = 257, 2**16
"""The 256 bytes and at least one merge; ids are kept in 16 bits."""
PIECE_CHARS = 2**20
"""A text is encoded so many characters at a time: of each token the library keeps more than a hundred bytes."""
FILE_NAME = "tokenizer.json"
"""In a checkpoint's folder, in the format of the ``tokenizers`` package."""


class BpeCodec:
    """A trained tokenizer. ``content`` is its file, ``sha256`` that file's."""

    def __init__(self, content: str) -> None:
        """Raises ValueError for what is no tokenizer of this kind."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # (the tokenizers package raises bare Exception)
            raise ValueError(f"not a tokenizer of the tokenizers package ({error})") from error
        self.content = content
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self._bytes = _bytes_by_id(self._tokenizer.get_vocab())

    @property
    def num_tokens(self) -> int:
        return len(self._bytes)

    def token_bytes(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """How many bytes each id stands for; 0 for ids that no token has."""
        return np.array([len(token) for token in self._bytes] + [0] * (vocab_size - self.num_tokens), np.int64)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """What the ids stand for; of an id that no token has, nothing."""
        return b"".join(self._bytes[i] for i in ids if i < self.num_tokens)

    def encode_long(self, text: str) -> npt.NDArray[np.uint16]:
        """As :meth:`encode`, piece by piece: a merge across the ends of two pieces is not made."""
        parts = [np.array(self.encode(piece), np.uint16) for piece in pieces(text)]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)


def pieces(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """A text in pieces of at most ``size`` characters, cut behind a line's end where there is one.

    >>> list(pieces("one\\ntwo\\nthree", 6))
    ['one\\n', 'two\\n', 'three']
    """
    start = 0
    while start < len(text):
        stop = min(start + size, len(text))
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop


def train(texts: Iterable[str], vocab_size: int) -> BpeCodec:
    """A tokenizer of at most ``vocab_size`` tokens; the same texts give the same one.

    Raises :class:`TaskError` for a size that ids of 16 bits, or the 256 bytes, do not fit.
    """
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise TaskError(
            f"language: vocab_size={vocab_size} of a BPE tokenizer is outside {MIN_VOCAB}..{MAX_VOCAB}; "
            "choose a size in that range, such as 4096"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return BpeCodec(tokenizer.to_str())


def load_or_train(texts: Iterable[str], vocab_size: int, identity: dict[str, Any]) -> BpeCodec:
    """The cached tokenizer of this identity; trained, and stored where possible, if there is none or it is damaged.

    Args:
        identity: what the texts depend on; JSON values. The size and the library's version are added to it.
    """
    from tokenizers import __version__

    key = json.dumps([identity, vocab_size, __version__], sort_keys=True)
    path = cache_dir() / "tokenizers" / f"bpe-{vocab_size}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    try:
        entry = json.loads(path.read_text())
        if hashlib.sha256(entry["tokenizer"].encode()).hexdigest() == entry["sha256"]:
            return BpeCodec(entry["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    codec = train(texts, vocab_size)
    write_atomically(path, json.dumps({"sha256": codec.sha256, "tokenizer": codec.content}).encode())
    return codec


def _bytes_by_id(vocabulary: dict[str, int]) -> list[bytes]:
    """The bytes of every token; raises ValueError unless the ids are 0, 1, … and all tokens byte-level ones."""
    byte_of = _byte_of_character()
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError("its token ids are not 0, 1, 2, … without gaps")
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    try:
        return [bytes(byte_of[character] for character in token) for token in tokens]
    except KeyError as error:
        raise ValueError(f"its tokens are not byte-level: {error.args[0]!r} stands for no byte") from error


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
