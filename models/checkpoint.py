"""Checkpoints of the suite's own models: a folder with ``config.json`` and ``model.pt``.

Only tensors are ever loaded (``weights_only=True``): a hostile file is an error, not a program.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.model import Model
from models.registry import find_factory

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.pt"


class CheckpointError(ValueError):
    """A folder is no checkpoint, or a damaged one. The message names the file and the fix."""


def save_checkpoint(model: Model, folder: Path, *, name: str, about: Mapping[str, Any] | None = None) -> None:
    """Write a model's weights and what is needed to build it again; whole or not at all.

    Args:
        name: the model's registered name (or ``path/to/file.py:factory``).
        about: facts that travel along (task, trial id, steps), as JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": name, "vocab_size": model.vocab_size, **(about or {})}
    weights_partial, config_partial = (folder / f"{f}.{os.getpid()}.tmp" for f in (WEIGHTS_FILE, CONFIG_FILE))
    torch.save(model.state_dict(), weights_partial)
    config_partial.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    weights_partial.replace(folder / WEIGHTS_FILE)
    config_partial.replace(folder / CONFIG_FILE)


def load_checkpoint(folder: Path, *, device: str = "cpu") -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint folder, in evaluation mode, and its ``config.json``.

    Raises :class:`CheckpointError` for a folder that is none, and for corrupt or unfitting weights.
    """
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(f"{folder} is no checkpoint: it has no {path.name}")
    try:
        config = json.loads(config_path.read_text())
        name, vocab_size = config["model"], config["vocab_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config_path}: not a configuration with model and vocab_size ({error})") from error
    try:
        model = find_factory(name)(vocab_size=vocab_size)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config_path}: no model {name!r} with vocab_size={vocab_size!r}: {error}") from error
    try:
        state = torch.load(weights_path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{weights_path}: corrupt, or not the weights of {name}: {reason}") from error
    return model.to(device).eval(), config
