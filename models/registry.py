"""The models by name: the suite's own, third parties' entry points, and factories in a file."""

import difflib
import importlib.util
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import torch

from models.model import Model
from models.presets import AUDIO_MODELS, FAMILIES, MIXERS, PROBE_MODELS, SIZES, WHOLE_BLOCKS, WIRINGS, build, parse

Factory = Callable[..., Model]
"""Called with ``vocab_size=…``; returns a model whose weights are then initialised from a seed."""


def _factory(name: str) -> Factory:
    parsed = parse(name)
    assert parsed is not None, name
    (mixer, wiring), size, centre = parsed
    return partial(build, mixer, wiring, size, centre=centre)


PUBLISHED_SIZES = ("370m", "790m", "1.4b", "2.8b")
_LISTED = [
    *(f"{family}-{size}" for size in ("tiny", "130m") for family in FAMILIES),
    *PROBE_MODELS,
    *AUDIO_MODELS,
    *(f"{family}-dna1m" for family in ("mamba", "hyena", "s4d", "transformer")),
    *(f"{family}-10m" for family in ("mamba", "mamba2", "transformer", "s4d", "h3", "hyena")),
    *(f"{family}-25m" for family in ("mamba", "mamba2", "transformer")),
    *(f"{family}-{size}" for size in PUBLISHED_SIZES for family in ("mamba", "mamba2", "transformer")),
]
MODELS: dict[str, Factory] = {name: _factory(name) for name in _LISTED}
"""What ``seqbench list models`` shows. Any family has any size, and any mixer any wiring (``s6.h3-tiny``), too."""


def family(name: str) -> str:
    """``mamba`` of ``mamba-tiny``: what colours and comparisons go by."""
    return name.split("-", 1)[0]


def model_names() -> list[str]:
    """All listed names, third parties' entry points among them."""
    return [*MODELS, *entry_points(group="seqbench.models").names]


def find_factory(name: str) -> Factory:
    """The factory of a name, of an entry point, or of ``path/to/file.py:factory``.

    Raises ValueError naming the near misses.
    """
    if name in MODELS:
        return MODELS[name]
    if ".py:" in name:
        return _factory_from_file(name)
    if parse(name):
        return _factory(name)
    third_party = entry_points(group="seqbench.models")
    if name in third_party.names:
        return third_party[name].load()
    raise ValueError(_unknown(name))


def _unknown(name: str) -> str:
    head, _, size = name.partition("-")
    mixer, dot, wiring = head.partition(".")
    if mixer in WHOLE_BLOCKS and wiring in WIRINGS:
        return f"model {name!r}: {mixer} is a block with a wiring of its own; use {mixer}-{size or 'tiny'}"
    if dot and mixer in MIXERS and wiring in WIRINGS:
        return f"model {name!r}: there is no size {size!r}; sizes are {', '.join(SIZES)}"
    if dot:
        return (
            f"unknown model {name!r}: MIXER.WIRING-SIZE has mixers {', '.join(MIXERS)}; wirings {', '.join(WIRINGS)}; "
            f"sizes {', '.join(SIZES)}"
        )
    known = [*MODELS, *entry_points(group="seqbench.models").names]
    near = difflib.get_close_matches(name, known, n=3)
    guess = f" did you mean {', '.join(near)}?" if near else ""
    return f"unknown model {name!r};{guess} `seqbench list models` shows all"


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
) -> Model:
    """A freshly initialised model. The same seed gives the same weights on every device."""
    model = find_factory(name)(vocab_size=vocab_size)
    model.init_weights(torch.Generator().manual_seed(seed))
    # Cast first: float32 weights of a large model would be the GPU's peak.
    return model.cast(dtype).to(device)


def build_fake_model(name: str, *, vocab_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The same shapes without data, for use inside a ``FakeTensorMode``; nothing is initialised there."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return find_factory(name)(vocab_size=vocab_size)
    finally:
        torch.set_default_dtype(previous)
