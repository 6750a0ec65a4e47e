"""The models by name: a family and a size, ``mamba-tiny`` … Sizes of one name have equal parameters.

Within a size every family is sized to the same number of parameters as Mamba (within 5 %), without
the embedding, so that a comparison is one of mixers and not of capacity.
"""

import difflib
import importlib.util
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import torch

from models.base import SequenceModel
from models.mamba import mamba
from models.s4d import s4d
from models.transformer import transformer

Factory = Callable[..., SequenceModel]
"""Called with ``vocab_size=…``; returns a model whose weights are then initialised from a seed."""

MODELS: dict[str, Factory] = {
    # The width and depth of the paper's synthetic probes (App. E.1): d_model 64, two layers.
    "mamba-tiny": partial(mamba, d_model=64, num_layers=2),
    "transformer-tiny": partial(transformer, d_model=64, num_layers=2, num_heads=4, d_mlp=84),
    "s4d-tiny": partial(s4d, d_model=64, num_layers=2, d_mlp=84),
    # The smallest published checkpoint's shape; two Mamba blocks are one Transformer layer.
    "mamba-130m": partial(mamba, d_model=768, num_layers=24),
    "transformer-130m": partial(transformer, d_model=768, num_layers=12, num_heads=12, d_mlp=2248),
    "s4d-130m": partial(s4d, d_model=768, num_layers=12, d_mlp=2752),
}


def family(name: str) -> str:
    """``mamba`` of ``mamba-tiny``: what colours and comparisons go by."""
    return name.split("-", 1)[0]


def model_names() -> list[str]:
    """All registered names, third parties' entry points among them."""
    return [*MODELS, *entry_points(group="seqbench.models").names]


def find_factory(name: str) -> Factory:
    """The factory of a registered name, of an entry point, or of ``path/to/file.py:factory``.

    Raises ValueError naming the near misses.
    """
    if name in MODELS:
        return MODELS[name]
    if ".py:" in name:
        return _factory_from_file(name)
    third_party = entry_points(group="seqbench.models")
    if name in third_party.names:
        return third_party[name].load()
    known = [*MODELS, *third_party.names]
    near = difflib.get_close_matches(name, known, n=3) or known
    raise ValueError(f"unknown model {name!r}; did you mean {', '.join(near)}? `seqbench list models` shows all")


def _factory_from_file(spec: str) -> Factory:
    path_text, _, attribute = spec.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise ValueError(f"model {spec!r}: no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"seqbench_user_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ValueError(f"model {spec!r}: {path} has no {attribute!r}; it defines {', '.join(public)}")
    return getattr(module, attribute)


def build_model(
    name: str, *, vocab_size: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> SequenceModel:
    """A freshly initialised model. The same seed gives the same weights on every device."""
    model = find_factory(name)(vocab_size=vocab_size)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.to(device).cast(dtype)


def build_fake_model(
    name: str, *, vocab_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> SequenceModel:
    """The same shapes without data, for use inside a ``FakeTensorMode``; nothing is initialised there."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return find_factory(name)(vocab_size=vocab_size)
    finally:
        torch.set_default_dtype(previous)
