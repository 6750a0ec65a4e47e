"""The state of a training on disk: cut anywhere and continued, it ends as if it had not been cut.

Bit for bit on a CPU; on a GPU as closely as two runs without a cut agree, since some of its kernels add in any order.
"""

import os
import pickle
from pathlib import Path

import torch

from benchmarks.training_learner import Learner, Selected, TrainingLog

_FORMAT = 2
_KEPT = ("loss_curve", "validation_curve", "validation_loss_curve", "train_s", "resumed_at", "captured")
"""Of the log; samples of time belong to the process that took them."""


def state_path(folder: str | Path, trial_id: str) -> Path:
    return Path(folder) / f"{trial_id}.pt"


def save_state(learner: Learner, path: Path, *, trial_id: str) -> None:
    """Write the state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": _FORMAT,
        "trial_id": trial_id,
        **{key: getattr(learner.log, key) for key in _KEPT},
        "tensors": {name: tensor.cpu() for name, tensor in learner.tensors().items()},
        "selected": learner.selected and vars(learner.selected),
    }
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(content, partial)
    partial.replace(path)


def load_state(learner: Learner, path: Path, *, trial_id: str) -> str:
    """Continue from a state, where there is one. Returns why a file that is there was not used, or "".

    A file that cannot be used costs the time of its steps and nothing else, so that training starts anew and the
    record says why: an error would stop every later run of the same command at the same place.
    """
    if not path.exists():
        return ""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != _FORMAT or content["trial_id"] != trial_id:
            return f"{path.name} is the state of another trial or version; training started anew"
        log = TrainingLog(**{key: content[key] for key in _KEPT})
        selected = content["selected"] and Selected(**content["selected"])
        learner.put_back(content["tensors"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{path.name} is corrupt or does not fit ({reason}); training started anew"
    log.resumed_at.append(learner.done)
    learner.log, learner.selected = log, selected
    return ""
