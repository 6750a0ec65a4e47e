"""The checkpoint that a training starts from: found by what it is a model of, identified by its sha256.

Vocabularies: a checkpoint fits a task whose tokens are its own, or begin with them (``extends_vocab`` of the task).
Rows of the embedding and of the head that it does not have start at the mean of those that it has, plus what the
trial's seed drew: no new token is likelier than another, and the old ones are not likelier than all of them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness import Trial, Unsupported
from models import Model
from models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError, load_checkpoint
from tasks import Task


def identify(folder: Path, *, model: str, seq_len: int, seed: int) -> dict[str, Any]:
    """What a trial's protocol says of its checkpoint: the name of its folder, and the sha256 of its weights.

    Of several that fit, the newest. Where none does, ``missing`` says what to run: the trial is then unsupported, and
    another trial once there is one.

    Args:
        folder: of checkpoints, or a checkpoint itself.
    """
    wanted = {"model": model, "train_len": seq_len, "seed": seed}
    found = [path for path in (folder, *sorted(folder.glob("*"))) if wanted.items() <= _config(path).items()]
    if not found:
        return {"checkpoint": None, "sha256": None, "missing": f"{folder} holds no checkpoint with {_words(wanted)}"}
    weights = max(found, key=lambda path: (path / WEIGHTS_FILE).stat().st_mtime_ns) / WEIGHTS_FILE
    return {"checkpoint": weights.parent.name, "sha256": _sha256(weights)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(folder: Path) -> Mapping[str, Any]:
    """Empty for what is no checkpoint."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and (folder / WEIGHTS_FILE).is_file() else {}


def _words(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in wanted.items())


def start_from_checkpoint(model: Model, task: Task, trial: Trial, folder: str | Path | None) -> None:
    """Put the weights into ``model`` that the trial's protocol names; nothing where it names none.

    Raises:
        Unsupported: no checkpoint, other weights than were planned with, or another vocabulary.
    """
    named = trial.protocol.get("init_from")
    if named is None:
        return
    if named["sha256"] is None:
        raise Unsupported(f"init_from: {named['missing']}; train it first, or leave init_from out")
    if folder is None:
        raise Unsupported("init_from: the run was not told where the checkpoints lie; run the suite by its command")
    path = Path(folder) if Path(folder).name == named["checkpoint"] else Path(folder) / named["checkpoint"]
    try:
        if _sha256(path / WEIGHTS_FILE) != named["sha256"]:
            raise Unsupported(f"init_from: {path.name} has changed since the trial was planned; run the command again")
        saved, config = load_checkpoint(path)
    except (CheckpointError, OSError) as error:
        raise Unsupported(f"init_from: {error}; train it again") from error
    own, extended = (task.name, task.vocab_size), task.extends_vocab
    other = (str(config.get("task")), saved.vocab_size)
    if other not in (own, extended):
        raise Unsupported(
            f"init_from: vocabularies differ: {path.name} was trained on {other[0]} with {other[1]} tokens, "
            f"{own[0]} has {own[1]}"
            + (f", the first {extended[1]} of them those of {extended[0]}" if extended else "")
            + "; name checkpoints of that task"
        )
    _copy(saved, model, path.name)


@torch.no_grad()
def _copy(saved: Model, model: Model, name: str) -> None:
    """All weights; of a matrix with a row a token, the rows that the checkpoint has."""
    given, parameters = dict(saved.named_parameters()), dict(model.named_parameters())
    if given.keys() != parameters.keys():
        raise Unsupported(f"init_from: {name} is another model: {sorted(given.keys() ^ parameters.keys())[0]}")
    for key, parameter in parameters.items():
        rows = given[key]
        grows = rows.dim() > 0 and rows.shape[0] == saved.vocab_size and parameter.shape[0] == model.vocab_size
        if rows.shape != parameter.shape and not (grows and rows.shape[1:] == parameter.shape[1:]):
            raise Unsupported(f"init_from: {name} is another model: {key} has shape {tuple(rows.shape)}")
        if rows.shape == parameter.shape:
            parameter.copy_(rows)
        else:
            parameter[: len(rows)] = rows.to(parameter.device)
            parameter[len(rows) :] += rows.mean(0).to(parameter.device)
