"""Text to token ids: bytes or their own BPE for the suite's models, a checkpoint's own tokenizer for published ones.

Special tokens are treated as lm-eval's ``HFLM`` treats those of causal models, so that the two read the same ids.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from models.checkpoint import CheckpointError
from models.pretrained.hub import find_tokenizer_folder
from models.pretrained.transformers_import import import_transformers
from tasks.language.bpe import BpeCodec

BYTE_VOCAB = 256
NEWLINE = 10
PADDING, PADDING_SHARE = 64, 0.1
"""Ids of a model's vocabulary that no token stands for: the larger of a number and a share. Vocabularies are padded to
a round number: 16 for 12 tokens (HyenaDNA), 51,200 for some 50,300 (phi-2)."""
UNKNOWN_LENGTH = 10**9
"""transformers gives a tokenizer without a limit one of 1e30."""


class Tokenizer(Protocol):
    """What the adapter needs of a tokenizer."""

    name: str
    sha256: str
    """Of everything that decides which ids a text becomes: part of a cached answer's identity."""
    unit: str
    """What an id stands for, in messages: ``bytes`` or ``tokens``."""
    size: int
    """One above the largest id that it gives."""
    eot_id: int
    prefix_id: int
    """Stands in front of an empty context, and of a whole text."""
    end_id: int | None
    """Ends a generation."""
    max_length: int | None
    """How many ids its model reads at most, where it says so."""

    def encode(self, text: str, *, add_special: bool | None = None) -> list[int]:
        """Ids; with the special tokens that the tokenizer adds by itself, if ``add_special`` is None."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text, without special tokens."""


class ByteTokenizer:
    """UTF-8 bytes; there are no special tokens.

    A newline stands where lm-eval wants an end-of-text token. Training text has no such token; a paragraph's end is
    the likeliest place to begin at, and byte 0 was never seen.
    """

    name, unit, size = "bytes", "bytes", BYTE_VOCAB
    eot_id = prefix_id = NEWLINE
    end_id: int | None = None
    max_length: int | None = None
    sha256 = hashlib.sha256(b"UTF-8 bytes, newline in front").hexdigest()

    def encode(self, text: str, *, add_special: bool | None = None) -> list[int]:  # noqa: ARG002 (the protocol's)
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
        return bytes(ids).decode(errors="replace")


class BpeTokenizer:
    """The BPE that the suite trained for a model, read from the model's folder. As of bytes, a newline is in front.

    Raises :class:`CheckpointError` for a file that is none.
    """

    unit = "tokens"
    end_id: int | None = None
    max_length: int | None = None

    def __init__(self, path: Path) -> None:
        try:
            self._codec = BpeCodec(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: {error}; copy the folder again from where the model was trained, or train it anew"
            ) from error
        self.file_sha256 = self._codec.sha256
        self.size = self._codec.num_tokens
        self.name = f"bpe-{self.size}"
        (self.eot_id,) = self._codec.encode("\n")
        self.prefix_id: int = self.eot_id
        self.sha256 = hashlib.sha256(f"newline in front {self._codec.content}".encode()).hexdigest()

    def encode(self, text: str, *, add_special: bool | None = None) -> list[int]:  # noqa: ARG002 (the protocol's)
        return self._codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are not UTF-8 become U+FFFD."""
        return self._codec.decode_bytes(ids).decode(errors="replace")


class HuggingFaceTokenizer:
    """A tokenizer of transformers.

    Raises :class:`CheckpointError` for one that names neither an end-of-text nor a begin-of-text token.
    """

    unit = "tokens"

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name, self._tokenizer = name, tokenizer
        eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        if eos is None and bos is None:
            raise CheckpointError(
                f"the tokenizer {name} names no eos_token and no bos_token; an empty context needs one: "
                "add them to its tokenizer_config.json"
            )
        self.prefix_id: int = eos if bos is None else bos
        self.eot_id: int = bos if eos is None else eos
        self.end_id: int | None = eos
        vocabulary = tokenizer.get_vocab()
        self.size = max(vocabulary.values(), default=-1) + 1
        limit = getattr(tokenizer, "model_max_length", None)
        self.max_length = int(limit) if limit is not None and limit < UNKNOWN_LENGTH else None
        self._prefix: str = tokenizer.decode(self.prefix_id)
        self.sha256 = hashlib.sha256(self._identity(vocabulary).encode()).hexdigest()

    def _identity(self, vocabulary: dict[str, int]) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend is not None else json.dumps([type(self._tokenizer).__name__, vocabulary])
        return f"{self.prefix_id} {self.end_id} {self.encode('x')} {rules}"

    def encode(self, text: str, *, add_special: bool | None = None) -> list[int]:
        if add_special is None and text.startswith(self._prefix):
            add_special = False  # it has its begin-of-text token already
        options = {} if add_special is None else {"add_special_tokens": add_special}
        # Too long a text is cut by the adapter, which counts it: no warning here.
        return list(self._tokenizer.encode(text, verbose=False, **options))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def load_tokenizer(named: str | Path, *, trust_remote_code: bool = False) -> HuggingFaceTokenizer:
    """The tokenizer of a folder or of a name on the Hugging Face hub, whose local cache is asked first.

    Raises :class:`CheckpointError`, naming the folder and the fix, where there is none, or a damaged one.
    """
    try:
        folder = find_tokenizer_folder(named, with_code=trust_remote_code)
    except CheckpointError as error:
        raise CheckpointError(f"tokenizer {error}, with --tokenizer FOLDER") from error
    transformers = import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # (the tokenizers package raises bare Exception for a damaged file)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        fix = "name a folder or a name on the hub that has tokenizer.json with --tokenizer"
        if "trust_remote_code" in str(error):
            fix = "it brings its own Python code; read that, then add --trust-remote-code"
        raise CheckpointError(f"no tokenizer can be read from {folder} ({reason}); {fix}") from error
    return HuggingFaceTokenizer(tokenizer, str(named))


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises :class:`CheckpointError` if the tokenizer gives ids that a model of ``vocab_size`` does not have, or so
    few of those it has that padding to a round number does not explain it."""
    too_few = vocab_size - tokenizer.size > max(PADDING, PADDING_SHARE * vocab_size)
    if tokenizer.size > vocab_size or too_few:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} tokens, but the model knows {vocab_size}: it is not "
            "the one that the model was trained with; name that one with --tokenizer FOLDER|NAME"
        )
