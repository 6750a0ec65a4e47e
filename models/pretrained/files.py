"""Reading the files of a checkpoint folder, whoever wrote them: tensors and JSON, never a program.

Whatever is wrong with a file is a :class:`CheckpointError` that names the file, what is wrong, and what helps.
"""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import CONFIG_FILE, CheckpointError

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order of preference; a sharded checkpoint has an index by the same name with ``.index.json``."""
INDEX_SUFFIX = ".index.json"
_AGAIN = "download it again"
_HEAD_BYTES = 512


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``. Raises :class:`CheckpointError` where there is none, or no JSON object in it."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {CONFIG_FILE}; pass the folder that holds it")
    config = _read_json(path)
    if not config:
        raise CheckpointError(f"{path}: an empty configuration; {_AGAIN}")
    return config


def find_weights(folder: Path) -> list[Path]:
    """The files that hold the weights, all of them there: one, or the shards that an index names.

    Raises :class:`CheckpointError` for a folder without weights, a bad index, and missing shards.
    """
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / (name + INDEX_SUFFIX)
        if index.is_file():
            return _shards(index)
    named = ", ".join([*SINGLE_FILES, *(name + INDEX_SUFFIX for name in SINGLE_FILES)])
    raise CheckpointError(f"{folder} has no weights: none of {named}; download them into it")


def read_weights(paths: list[Path]) -> dict[str, Tensor]:
    """All tensors by name, on the CPU and, where the format allows it, still in the files until they are copied.

    Raises :class:`CheckpointError` for files that are damaged, no weights at all, or hold more than tensors, and
    for a tensor that two files hold.
    """
    weights: dict[str, Tensor] = {}
    for path in paths:
        part = read_tensors(path)
        if twice := sorted(weights.keys() & part.keys()):
            raise CheckpointError(f"{path}: {_some(twice)} in another shard too; the checkpoint contradicts itself")
        weights |= part
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file; see :func:`read_weights`."""
    _refuse_impostors(path)
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__} that is no flat dictionary of tensors, so no state_dict(); "
            "save the model's state_dict() alone"
        )
    return dict(content)


def describe_files(paths: list[Path], *, hashes: bool) -> list[dict[str, Any]]:
    """Name and size in bytes of each file, with ``hashes`` its SHA-256 too (reads it all)."""
    described: list[dict[str, Any]] = []
    for path in paths:
        about: dict[str, Any] = {"name": path.name, "bytes": path.stat().st_size}
        if hashes:
            with path.open("rb") as file:
                about["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        described.append(about)
    return described


def check_keys(found: set[str], expected: set[str], where: Path) -> None:
    """Raises :class:`CheckpointError` unless the weights have just the expected names."""
    if missing := sorted(expected - found):
        raise CheckpointError(
            f"{where}: {_some(missing)} missing; the checkpoint is partial, or of another architecture than its "
            f"{CONFIG_FILE} says; {_AGAIN}"
        )
    if unexpected := sorted(found - expected):
        raise CheckpointError(
            f"{where}: {_some(unexpected)} unexpected; the weights are of another architecture than "
            f"{CONFIG_FILE} says; check that both come from one place"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" is" if len(names) == 1 else " are")


def _read_json(path: Path) -> dict[str, Any]:
    _refuse_impostors(path)
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({_reason(error)}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object; {_AGAIN}")
    return content


def _shards(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensors to files; {_AGAIN}")
    names = sorted(set(weight_map.values()))
    suffix = Path(index.name.removesuffix(INDEX_SUFFIX)).suffix
    # A name that leads out of the folder would read files that nobody downloaded.
    if wrong := [name for name in names if Path(name).name != name or Path(name).suffix != suffix]:
        raise CheckpointError(f"{index}: {wrong[0]!r} is not the name of a {suffix} file beside it; {_AGAIN}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index.parent / missing[0]}: missing shard, 1 of {len(missing)}; download it too")
    return [index.parent / name for name in names]


def _refuse_impostors(path: Path) -> None:
    """What commonly lies where a file should be: nothing, a pointer of Git LFS, an error page."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).lstrip().lower()
    if not head:
        raise CheckpointError(f"{path}: empty; {_AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` there")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: a web page, not the file itself; {_AGAIN}, from the address of the raw file")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs safetensors ({error}); pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: corrupt, truncated or no safetensors file ({_reason(error)}); {_AGAIN}"
        ) from error


def _read_pickle(path: Path) -> Any:
    # Files from before torch 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch's own message suggests to load it all the same; what it met is at the end.
        met = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        raise CheckpointError(
            f"{path}: not loaded, because it holds more than tensors, which could be code, or is corrupt "
            f"({met[0] if met else 'not a pickle'}); use a safetensors version of it, or one that holds only the "
            "state_dict()"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: corrupt, truncated or not PyTorch weights ({_reason(error)}); {_AGAIN}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
