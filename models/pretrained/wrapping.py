"""Weights into a network of transformers, and the network into :class:`HuggingFaceModel`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import CONFIG_FILE, CheckpointError
from models.pretrained.files import check_keys
from models.pretrained.huggingface import HuggingFaceModel
from models.pretrained.transformers_import import import_transformers

PROBE_IDS = (1, 0, 2, 1)


def load_wrapped(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    where: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> HuggingFaceModel:
    """The network that ``config`` describes with these weights, which are taken out of ``weights`` as they are copied.

    A configuration with ``auto_map`` runs the checkpoint's own code: the caller must have asked for that.

    Raises :class:`CheckpointError` for a configuration that transformers refuses, and weights that do not fit it.
    """
    own_code = "auto_map" in config
    network_class, parsed = _resolve(folder, config) if own_code else _known(folder, config["model_type"])
    # Copies: what is read from a file is a view of it, and the file can change.
    copied = {name: _copied(weights.pop(name), dtype) for name in list(weights)}
    try:
        with _quietly():
            network, report = network_class.from_pretrained(
                None,
                config=parsed,
                state_dict=copied,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where}: does not fit {network_class.__name__} as {CONFIG_FILE} describes it: {_last(error)}; "
            "check that both come from one place"
        ) from error
    for name, found, expected in report["mismatched_keys"]:
        raise CheckpointError(
            f"{where}: {name} has shape {tuple(found)}, but the configuration asks for {tuple(expected)}; "
            f"check that {CONFIG_FILE} and weights come from one place"
        )
    check_keys(set(), set(report["missing_keys"]), where)
    check_keys(set(report["unexpected_keys"]), set(), where)
    try:
        model = HuggingFaceModel(network.to(device)).eval()
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    if own_code:
        _check_head(model, folder / CONFIG_FILE)
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bar, which would be among the suite's own output."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype=dtype if tensor.dtype.is_floating_point else tensor.dtype, copy=True)


def _known(folder: Path, model_type: str) -> tuple[Any, Any]:
    transformers = import_transformers()
    from huggingface_hub.errors import StrictDataclassError

    try:
        # From the file, whose spelling of infinity transformers alone knows; no code of the checkpoint is asked.
        parsed = transformers.CONFIG_MAPPING[model_type].from_pretrained(str(folder))
    except (StrictDataclassError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: transformers refuses it: {_last(error)}; download it again"
        ) from error
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(parsed)], parsed


def _resolve(folder: Path, config: dict[str, Any]) -> tuple[Any, Any]:
    """The classes that the checkpoint's own code defines."""
    transformers = import_transformers()
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = config["auto_map"].get("AutoModelForCausalLM") if isinstance(config["auto_map"], dict) else None
    if reference is None:
        raise CheckpointError(f"{folder / CONFIG_FILE}: its auto_map names no AutoModelForCausalLM; no language model")
    parsed = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return get_class_from_dynamic_module(reference, folder), parsed


@torch.no_grad()
def _check_head(model: HuggingFaceModel, path: Path) -> None:
    """Code of unknown origin may do more between its last hidden state and its logits than the head."""
    ids_BL = torch.tensor([PROBE_IDS], device=model._weight.device) % model.vocab_size
    expected = model.network(input_ids=ids_BL, use_cache=False).logits
    if not torch.allclose(model(ids_BL).to(expected.dtype), expected, rtol=1e-3, atol=1e-3):
        raise CheckpointError(
            f"{path}: the logits of its code are not its head on the last hidden state; not supported"
        )


def _last(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
