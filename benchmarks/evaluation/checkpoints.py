"""Which checkpoint ``--model`` means: a folder of whichever format, a name on the hub, or a model of the suite."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation.adapter import MAX_LENGTH
from benchmarks.evaluation.tokenizers import (
    BYTE_VOCAB,
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
)
from models import Model, find_factory
from models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from models.pretrained import load_pretrained
from models.pretrained.configs import from_mamba_ssm
from models.pretrained.files import find_weights, read_config
from models.pretrained.hub import find_folder
from tasks.cache import combined_sha256, file_sha256
from tasks.language.bpe import FILE_NAME

TASK = "language"
"""What a model must have been trained on: its symbols are the bytes of text, or the tokens of its own BPE."""
MAMBA_SSM_TOKENIZER = "EleutherAI/gpt-neox-20b"
"""mamba-ssm's checkpoints come without one; this is what their authors trained and evaluated them with."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Of a transformers configuration, in lm-eval's order."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that can be scored; its weights are not loaded yet."""

    folder: Path
    model: str
    config: dict[str, Any]
    sha256: str
    """Of the weights' files, all of them; of a published checkpoint, its configuration and code too."""
    vocab_size: int | None
    """None where the configuration does not say."""
    own: bool = True
    """Whether the suite trained it."""
    tokenizer: str | None = None
    """The folder or name of a published checkpoint's tokenizer; the suite's own are bytes, or :attr:`bpe_file`."""
    bpe_file: Path | None = None
    trust_remote_code: bool = False

    def max_length(self, tokenizer: Tokenizer) -> int:
        """Positions that it was made for, as its configuration or its tokenizer says; else lm-eval's default."""
        found = [self.config[key] for key in _LENGTH_KEYS if isinstance(self.config.get(key), int)]
        return found[0] if found else tokenizer.max_length or MAX_LENGTH

    def load_tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises :class:`CheckpointError` for none, a damaged one, and one of another vocabulary."""
        tokenizer: Tokenizer = ByteTokenizer() if self.bpe_file is None else _own_bpe(self.bpe_file, self.config)
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer, trust_remote_code=self.trust_remote_code)
        if self.vocab_size is not None:
            check_vocabulary(tokenizer, self.vocab_size)
        return tokenizer

    def load(self, device: str, dtype: torch.dtype = torch.float32) -> tuple[Model, dict[str, Any]]:
        """The model, in evaluation mode, and what a record says of where it is from.

        Raises :class:`CheckpointError` for unfitting weights.
        """
        model, facts = load_pretrained(
            self.folder, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code
        )
        if self.own:
            return model, {key: value for key, value in self.config.items() if key not in ("model", "vocab_size")}
        return model, {key: facts[key] for key in ("format", "implementation", "architecture", "tie", "dtype_on_disk")}


def find_checkpoint(
    named: str, runs: Path, *, tokenizer: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """The checkpoint that ``--model`` names. Raises :class:`CheckpointError`, or ValueError with near misses.

    Args:
        runs: where the checkpoints of a registered model are looked for (``results/runs``).
        tokenizer: a folder or a name on the hub, instead of the checkpoint's own tokenizer.
    """
    path = Path(named).expanduser()
    if path.exists() or ("/" in named and ".py:" not in named):
        return _open(named, tokenizer, trust_remote_code)
    find_factory(named)  # says what is near to a mistyped name
    pattern = f"checkpoints/{named.replace('/', '_')}-{TASK}-*/{WEIGHTS_FILE}"
    found = sorted(runs.rglob(pattern), key=lambda weights: weights.stat().st_mtime)
    if not found:
        family = named.split("-", 1)[0] if ".py:" not in named else named
        raise CheckpointError(
            f"--model {named}: no checkpoint of it on {TASK} below {runs}; "
            f"run `seqbench run quick --tasks {TASK} --models {family}` first, or name a checkpoint folder"
        )
    return _open(str(found[-1].parent), tokenizer, trust_remote_code)


def _open(named: str, tokenizer: str | None, trust_remote_code: bool) -> Checkpoint:
    folder, _ = find_folder(named, revision=None, with_code=trust_remote_code)
    config = read_config(folder)
    if "model" in config and (folder / WEIGHTS_FILE).is_file():
        return _open_own(folder, config, tokenizer)
    if "auto_map" in config and not trust_remote_code:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: the checkpoint brings its own Python code (auto_map), which is not run unless "
            "asked for; read the code, then add --trust-remote-code"
        )
    from_hub = not Path(named).expanduser().exists()
    vocab_size = config.get("vocab_size")
    if "model_type" not in config and {"d_model", "n_layer"} <= config.keys():
        vocab_size = from_mamba_ssm(config, folder / CONFIG_FILE).vocab_size
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    if tokenizer is None and not has_tokenizer and "model_type" in config:
        raise CheckpointError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); copy it there, or name a folder or a "
            "name on the hub with --tokenizer"
        )
    own_code = folder.glob("*.py") if "auto_map" in config else ()
    files = [folder / CONFIG_FILE, *find_weights(folder), *own_code]
    return Checkpoint(
        folder=folder,
        model=named if from_hub else folder.resolve().name,
        config=config,
        sha256=combined_sha256([(file.name, file_sha256(file)) for file in files]),
        vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        own=False,
        tokenizer=tokenizer or (str(folder) if has_tokenizer else MAMBA_SSM_TOKENIZER),
        trust_remote_code=trust_remote_code,
    )


def _open_own(folder: Path, config: dict[str, Any], tokenizer: str | None) -> Checkpoint:
    vocab_size, task = config.get("vocab_size"), config.get("task", TASK)
    has_bpe = "tokenizer_sha256" in config
    if task != TASK or (vocab_size != BYTE_VOCAB and not has_bpe):
        raise CheckpointError(
            f"{folder}: a model of {vocab_size} symbols trained on {task}; zero-shot tasks need one of {BYTE_VOCAB} "
            f"symbols trained on {TASK}, whose symbols are bytes of text, or one with a BPE tokenizer of its own"
        )
    if tokenizer is not None:
        symbols = f"with its own {FILE_NAME}" if has_bpe else "on bytes"
        raise CheckpointError(f"--tokenizer {tokenizer}: {folder} was trained by this suite, {symbols}; leave it out")
    return Checkpoint(
        folder=folder,
        model=str(config["model"]),
        config=config,
        sha256=file_sha256(folder / WEIGHTS_FILE),
        vocab_size=vocab_size,
        bpe_file=folder / FILE_NAME if has_bpe else None,
    )


def _own_bpe(file: Path, config: Mapping[str, Any]) -> BpeTokenizer:
    """Raises :class:`CheckpointError` for no file, a damaged one, or that of another model."""
    tokenizer = BpeTokenizer(file)
    if tokenizer.file_sha256 != config["tokenizer_sha256"]:
        raise CheckpointError(
            f"{file}: its sha256 is {tokenizer.file_sha256[:12]}…, but the model was trained with the tokenizer "
            f"{str(config['tokenizer_sha256'])[:12]}…; copy the folder again from where it was trained"
        )
    return tokenizer
