"""Which checkpoint ``--model`` means: a folder, or the newest one of a registered model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evaluation.adapter import BYTE_VOCAB
from models import Model, find_factory
from models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError, load_checkpoint
from tasks.cache import file_sha256

TASK = "language"
"""What a model must have been trained on: its symbols are the bytes of text."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that can be scored; its weights are not loaded yet."""

    folder: Path
    model: str
    config: dict[str, Any]
    sha256: str
    """Of the weights' file."""

    def load(self, device: str) -> Model:
        """The model, in evaluation mode. Raises :class:`CheckpointError` for unfitting weights."""
        return load_checkpoint(self.folder, device=device)[0]


def find_checkpoint(named: str, runs: Path) -> Checkpoint:
    """The checkpoint that ``--model`` names. Raises :class:`CheckpointError`, or ValueError with near misses.

    Args:
        runs: where the checkpoints of a registered model are looked for (``results/runs``).
    """
    path = Path(named).expanduser()
    if path.exists():
        return _open(path)
    if "/" in named and ".py:" not in named:
        raise CheckpointError(
            f"--model {named}: no such folder. Name a checkpoint folder that a training trial wrote, or a model of "
            "`seqbench list models`; Hugging Face and mamba-ssm checkpoints cannot be read yet"
        )
    find_factory(named)  # says what is near to a mistyped name
    pattern = f"checkpoints/{named.replace('/', '_')}-{TASK}-*/{WEIGHTS_FILE}"
    found = sorted(runs.rglob(pattern), key=lambda weights: weights.stat().st_mtime)
    if not found:
        family = named.split("-", 1)[0] if ".py:" not in named else named
        raise CheckpointError(
            f"--model {named}: no checkpoint of it on {TASK} below {runs}; "
            f"run `seqbench run quick --tasks {TASK} --models {family}` first, or name a checkpoint folder"
        )
    return _open(found[-1].parent)


def _open(folder: Path) -> Checkpoint:
    config_path = folder / CONFIG_FILE
    try:
        config = json.loads(config_path.read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or "model" not in config or not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint of this suite: that is a folder with {CONFIG_FILE} (model, vocab_size) and "
            f"{WEIGHTS_FILE}, as `seqbench run` writes them below results/runs/SUITE/checkpoints. Hugging Face and "
            "mamba-ssm checkpoints cannot be read yet"
        )
    vocab_size, task = config.get("vocab_size"), config.get("task", TASK)
    if vocab_size != BYTE_VOCAB or task != TASK:
        raise CheckpointError(
            f"{folder}: a model of {vocab_size} symbols trained on {task}; zero-shot tasks need one of {BYTE_VOCAB} "
            f"symbols trained on {TASK}, whose symbols are bytes of text"
        )
    return Checkpoint(
        folder=folder, model=str(config["model"]), config=config, sha256=file_sha256(folder / WEIGHTS_FILE)
    )
