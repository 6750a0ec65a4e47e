"""One function for every published checkpoint: where it is, which format it has, and the model of it.

========================  =============================================================  ================
``config.json`` has       written by                                                     model
========================  =============================================================  ================
``model``                 this suite (:mod:`models.checkpoint`)                          the suite's own
``d_model, n_layer``      mamba-ssm's ``save_pretrained``                                the suite's own
``model_type``            transformers: mamba, mamba2                                    the suite's own
``model_type``            transformers: gpt_neox, llama; mamba and mamba2 where asked    transformers'
========================  =============================================================  ================
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError, load_checkpoint
from models.model import Model
from models.pretrained.configs import Architecture, from_mamba_ssm, from_transformers
from models.pretrained.files import describe_files, find_weights, read_config, read_weights
from models.pretrained.hub import find_folder
from models.pretrained.native import load_native

NATIVE_TYPES = ("mamba", "mamba2")
WRAPPED_TYPES = ("gpt_neox", "llama", *NATIVE_TYPES)
IMPLEMENTATIONS = ("auto", "native", "transformers")


def load_pretrained(
    name_or_folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    implementation: str = "auto",
    hash_files: bool = False,
) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and facts about it.

    Args:
        name_or_folder: a folder, or ``owner/name`` on the Hugging Face hub, whose local cache is asked first.
        dtype: of the weights; the suite's own models keep those wide that act through exponentials.
        revision: commit, branch or tag on the hub.
        trust_remote_code: run the Python that a checkpoint brings along (``auto_map`` in its configuration).
        implementation: ``native`` (the suite's own model) or ``transformers``; ``auto`` takes the former where
            there is one.
        hash_files: whether the facts give every file's SHA-256, which reads them all once more.

    Returns:
        The model and a dict: ``format``, ``implementation``, ``architecture``, ``source``, ``folder``, ``revision``
        (None for a folder), ``params``, ``vocab_size`` (as the weights have it, padding included), ``tie``,
        ``dtype_on_disk`` and ``files``.

    Raises:
        CheckpointError: nothing there, damaged or foreign files, an architecture that is not supported. It names
            the file, the problem and the fix.
        ValueError: an unknown ``implementation``.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    device = torch.device(device)
    folder, commit = find_folder(name_or_folder, revision=revision, with_code=trust_remote_code)
    config = read_config(folder)
    if "auto_map" in config and not trust_remote_code:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: the checkpoint brings its own Python code (auto_map), which is not run unless "
            "asked for; read the code, then pass trust_remote_code=True"
        )
    if "model" in config and (folder / WEIGHTS_FILE).is_file():
        model, facts = _load_own(folder, config, device, dtype, implementation)
    else:
        model, facts = _load_foreign(folder, config, device, dtype, implementation)
    facts["files"] = describe_files([folder / CONFIG_FILE, *facts.pop("paths")], hashes=hash_files)
    return model.eval(), {
        "source": str(name_or_folder),
        "folder": str(folder),
        "revision": commit,
        "params": model.num_params,
        "vocab_size": model.vocab_size,
        **facts,
    }


def _load_own(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype, implementation: str
) -> tuple[Model, dict[str, Any]]:
    _refuse(implementation, "transformers", folder, "a checkpoint of this suite")
    model, _ = load_checkpoint(folder)
    on_disk = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    facts = {
        "format": "seqbench",
        "implementation": "native",
        "architecture": config["model"],
        "tie": bool(getattr(model, "tied", False)),
        "dtype_on_disk": on_disk,
        "paths": [folder / WEIGHTS_FILE],
    }
    return model.to(device).cast(dtype), facts


def _load_foreign(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype, implementation: str
) -> tuple[Model, dict[str, Any]]:
    path = folder / CONFIG_FILE
    model_type = config.get("model_type")
    facts: dict[str, Any]
    if model_type is None:
        if not {"d_model", "n_layer"} <= config.keys():
            raise CheckpointError(
                f"{path}: neither of this suite (model and {WEIGHTS_FILE}), nor of mamba-ssm (d_model, n_layer), "
                "nor of transformers (model_type); supported are these three"
            )
        _refuse(implementation, "transformers", folder, "a checkpoint of mamba-ssm")
        facts = {"format": "mamba-ssm", "implementation": "native"}
        architecture: Architecture | None = from_mamba_ssm(config, path)
    else:
        if "auto_map" not in config and model_type not in WRAPPED_TYPES:
            raise CheckpointError(
                f"{path}: model_type={model_type!r} is not supported; supported are {', '.join(sorted(WRAPPED_TYPES))}"
            )
        native = model_type in NATIVE_TYPES and "auto_map" not in config
        if not native:
            _refuse(implementation, "native", folder, f"a {model_type} model")
        native = native and implementation != "transformers"
        if "quantization_config" in config:
            raise CheckpointError(f"{path}: quantized weights are not supported; use the unquantized checkpoint")
        facts = {"format": "transformers", "implementation": "native" if native else "transformers"}
        architecture = from_transformers(config, path) if native else None
    paths = find_weights(folder)
    weights = read_weights(paths)
    facts |= {"dtype_on_disk": _float_dtypes(weights), "paths": paths}
    if architecture is not None:
        model: Model = load_native(architecture, weights, paths[0], device=device, dtype=dtype)
        return model, {**facts, "architecture": architecture.kind, "tie": architecture.tie}
    from models.pretrained.wrapping import load_wrapped

    model = load_wrapped(folder, config, weights, paths[0], device=device, dtype=dtype)
    return model, {**facts, "architecture": model_type, "tie": bool(model.config.tie_word_embeddings)}


def _refuse(implementation: str, impossible: str, folder: Path, what: str) -> None:
    if implementation == impossible:
        other = next(name for name in IMPLEMENTATIONS[1:] if name != impossible)
        raise CheckpointError(
            f"{folder} is {what}, for which there is no implementation={impossible!r}; leave it out, or pass {other!r}"
        )


def _float_dtypes(weights: dict[str, Tensor]) -> list[str]:
    return sorted({str(t.dtype).removeprefix("torch.") for t in weights.values() if t.dtype.is_floating_point})
