"""What a configuration of mamba-ssm or of transformers says, in the terms of the suite's own Mamba and Mamba-2."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.base import RMS_NORM_EPS
from models.checkpoint import CheckpointError

CONV_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A stack of Mamba or Mamba-2 blocks. ``vocab_size`` is the padded one, as the weights have it."""

    kind: str
    d_model: int
    num_layers: int
    vocab_size: int
    tie: bool
    norm_eps: float
    d_state: int
    expand: int
    dt_rank: int = 0
    """Mamba alone."""
    head_dim: int = 0
    """Mamba-2 alone, as ``num_groups``."""
    num_groups: int = 1


@dataclass(frozen=True)
class Fields:
    """A configuration's entries, checked as they are read."""

    entries: Mapping[str, Any]
    path: Path
    fix: str
    """What helps where a value is not supported."""

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.entries.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: has no {key}; the configuration is not complete; download it again")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self.path}: {key}={value!r} must be a whole number of at least 1; {self.fix}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.entries.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.path}: {key}={value!r} must be a number above 0; download it again")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.entries.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key}={value!r} must be true or false; download it again")
        return value

    def require(self, supported: Mapping[str, Any], *, kind: str) -> None:
        """Raises :class:`CheckpointError` for an entry that is there and is not the one supported value."""
        for key, value in supported.items():
            found = self.entries.get(key, value)
            if _plain(found) != _plain(value):
                raise CheckpointError(
                    f"{self.path}: {key}={found!r} is not supported by the suite's own {kind}, which has "
                    f"{key}={value!r}; {self.fix}"
                )


def _plain(value: Any) -> Any:
    """JSON has no tuples and no infinity, for which transformers writes ``{"__float__": "Infinity"}``."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return math.inf if value == {"__float__": "Infinity"} else value


_MAMBA = {"d_conv": CONV_WIDTH, "conv_bias": True, "bias": False}
# They say nothing about the function that the weights are of: initialisation, and how to compute.
_MAMBA_ANY = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")
_MAMBA2 = {
    **_MAMBA,
    "D_has_hdim": False,
    "rmsnorm": True,
    "norm_before_gate": False,
    "dt_limit": (0.0, math.inf),
}
_MAMBA2_ANY = ("conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor", "chunk_size", "use_mem_eff_path")


def from_mamba_ssm(config: Mapping[str, Any], path: Path) -> Architecture:
    """Of mamba-ssm's ``MambaConfig``. Raises :class:`CheckpointError` naming a key that is not supported."""
    fields = Fields(config, path, "only mamba-ssm itself can run it")
    fields.require(
        {"rms_norm": True, "d_intermediate": 0, "attn_layer_idx": []}, kind="Mamba without attention and MLPs"
    )
    ssm_entries = config.get("ssm_cfg") or {}
    if not isinstance(ssm_entries, dict):
        raise CheckpointError(f"{path}: ssm_cfg={ssm_entries!r} must be an object; download it again")
    ssm = Fields(ssm_entries, path, fields.fix)
    layer = ssm_entries.get("layer", "Mamba1")
    d_model, vocab_size = fields.size("d_model"), fields.size("vocab_size")
    multiple = fields.size("pad_vocab_size_multiple", 8)
    common: dict[str, Any] = {
        "d_model": d_model,
        "num_layers": fields.size("n_layer"),
        "vocab_size": math.ceil(vocab_size / multiple) * multiple,
        "tie": fields.flag("tie_embeddings", True),
        "norm_eps": RMS_NORM_EPS,
        "expand": ssm.size("expand", 2),
    }
    if layer == "Mamba1":
        _only(ssm, {"layer", "d_state", "expand", "dt_rank", *_MAMBA, *_MAMBA_ANY}, "Mamba")
        ssm.require(_MAMBA, kind="Mamba")
        return Architecture(
            kind="mamba", d_state=ssm.size("d_state", 16), dt_rank=_dt_rank(ssm, "dt_rank", d_model), **common
        )
    if layer == "Mamba2":
        _only(ssm, {"layer", "d_state", "expand", "headdim", "ngroups", "d_ssm", *_MAMBA2, *_MAMBA2_ANY}, "Mamba-2")
        ssm.require(_MAMBA2, kind="Mamba-2")
        if ssm_entries.get("d_ssm") is not None:
            ssm.require({"d_ssm": common["expand"] * d_model}, kind="Mamba-2")
        return Architecture(
            kind="mamba2",
            d_state=ssm.size("d_state", 128),
            head_dim=ssm.size("headdim", 64),
            num_groups=ssm.size("ngroups", 1),
            **common,
        )
    raise CheckpointError(f"{path}: ssm_cfg.layer={layer!r} is not supported; supported are 'Mamba1' and 'Mamba2'")


def _only(fields: Fields, known: set[str], kind: str) -> None:
    if unknown := sorted(fields.entries.keys() - known):
        raise CheckpointError(
            f"{fields.path}: ssm_cfg.{unknown[0]}={fields.entries[unknown[0]]!r} is not known to the suite's own "
            f"{kind}, whose keys are {', '.join(sorted(known))}; {fields.fix}"
        )


def _dt_rank(fields: Fields, key: str, d_model: int) -> int:
    return math.ceil(d_model / 16) if fields.entries.get(key, "auto") == "auto" else fields.size(key)


def from_transformers(config: Mapping[str, Any], path: Path) -> Architecture:
    """Of transformers' ``MambaConfig`` or ``Mamba2Config``, absent entries being transformers' defaults."""
    fields = Fields(config, path, 'pass implementation="transformers"')
    second = config["model_type"] == "mamba2"
    kind = "Mamba-2" if second else "Mamba"
    fields.require(
        {"conv_kernel": CONV_WIDTH, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu"}, kind=kind
    )
    d_model, expand = fields.size("hidden_size", 4096 if second else 768), fields.size("expand", 2)
    fields.require({"intermediate_size": expand * d_model}, kind=kind)
    common: dict[str, Any] = {
        "d_model": d_model,
        "num_layers": fields.size("num_hidden_layers", 64 if second else 32),
        "vocab_size": fields.size("vocab_size", 32768 if second else 50280),
        "tie": fields.flag("tie_word_embeddings", not second),
        "expand": expand,
        "norm_eps": fields.number("layer_norm_epsilon", RMS_NORM_EPS),
    }
    if not second:
        dt_rank = _dt_rank(fields, "time_step_rank", d_model)
        return Architecture(kind="mamba", d_state=fields.size("state_size", 16), dt_rank=dt_rank, **common)
    # The norm before the gate has the suite's epsilon, whatever the others have.
    fields.require({"layer_norm_epsilon": RMS_NORM_EPS, "time_step_limit": (0.0, math.inf)}, kind=kind)
    head_dim = fields.size("head_dim", 64)
    fields.require({"num_heads": expand * d_model // head_dim}, kind=kind)
    return Architecture(
        kind="mamba2",
        d_state=fields.size("state_size", 128),
        head_dim=head_dim,
        num_groups=fields.size("n_groups", 8),
        **common,
    )
