"""What is checked: a factory, and how its models are built, cast and fed.

Shape suffixes: B batch, L sequence length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Factory = Callable[..., nn.Module]
"""Called with ``vocab_size=…``; a :class:`models.base.Model`, or any module from ids to logits."""

FLOAT64_LIMIT, FLOAT32_LIMIT = 1e-9, 1e-4
"""Largest difference between two ways to the same logits. The suite's tiny models stay under 1e-14 in float64;
float32 sums of a thousand terms differ by some 1e-6 with their order alone."""


class CheckFailed(Exception):
    """The model does not do what a check demands; the message names the value, the limit and the likely cause."""


class NotApplicable(Exception):
    """The model has nothing for a check to look at; the message says what is missing."""


class BuildError(Exception):
    """The factory, or ``init_weights``, raised, or what it returned is no module."""


@dataclass(frozen=True, kw_only=True)
class Precise:
    """A model in the widest dtype it runs in."""

    model: nn.Module
    limit: float
    dtype: torch.dtype
    note: str
    """How the limit is to be read, for the finding."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A factory with the vocabulary and the device that its models are checked with."""

    factory: Factory
    vocab_size: int
    device: torch.device

    def build(self, *, seed: int = 0, dtype: torch.dtype = torch.float32, global_seed: int = 0) -> nn.Module:
        """A freshly initialised model. The global generator stands at ``global_seed`` before, and as it was after.

        A module without ``init_weights`` is as its constructor leaves it.

        Raises:
            BuildError: naming what was raised.
        """
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            try:
                model = self.factory(vocab_size=self.vocab_size)
                if isinstance(model, nn.Module) and hasattr(model, "init_weights"):
                    needs(model, "init_weights").init_weights(torch.Generator().manual_seed(seed))
            except Exception as error:
                raise BuildError(f"{describe_error(error)}, while it was built") from error
        if not isinstance(model, nn.Module):
            raise BuildError(f"it returned {type(model).__name__}, and not a torch.nn.Module")
        return cast(model.to(self.device), dtype)

    def precise(self) -> Precise:
        """A model in float64, or in float32 where it does not run in float64."""
        try:
            model = self.build(dtype=torch.float64)
            with torch.no_grad():
                dtype = model(self.ids(1, 2)).dtype
            why = "" if dtype == torch.float64 else f"its logits are {short(dtype)}"
        except Exception as error:  # noqa: BLE001 (whatever a kernel says to float64; it stands in the note)
            why = describe_error(error)
        if not why:
            return Precise(model=model, limit=FLOAT64_LIMIT, dtype=torch.float64, note="float64")
        note = f"float32, since it does not run in float64: {why}"
        return Precise(model=self.build(), limit=FLOAT32_LIMIT, dtype=torch.float32, note=note)

    def ids(self, batch: int, seq_len: int, *, seed: int = 0) -> Tensor:
        """``(B, L)`` random ids."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.vocab_size, (batch, seq_len), generator=generator).to(self.device)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """By the model's own ``cast``, which keeps some weights wide, where it has one."""
    return needs(model, "cast").cast(dtype) if hasattr(model, "cast") else model.to(dtype)


def needs(model: nn.Module, *methods: str) -> Any:
    """The model, if it has the methods of :class:`models.base.Model` named; else the check does not apply."""
    missing = [name for name in methods if not hasattr(model, name)]
    if missing:
        raise NotApplicable(f"{type(model).__name__} has no {', '.join(missing)} (see models.base.Model)")
    return model


def tensors_of(states: Any) -> list[Tensor]:
    """All tensors of the states of a model, in a fixed order."""
    return [leaf for leaf in tree_leaves(states) if isinstance(leaf, Tensor)]


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, divided by the largest expected value where that exceeds 1; NaN is infinite."""
    if actual.shape != expected.shape:
        raise CheckFailed(f"shape {tuple(actual.shape)} where {tuple(expected.shape)} is expected")
    if actual.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp_min(1)
    return float(((actual - expected).abs().max() / scale).nan_to_num(nan=torch.inf))


def demand(ok: bool, message: str) -> None:
    """Fail the check with ``message`` unless ``ok``."""
    if not ok:
        raise CheckFailed(message)


def short(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def describe_error(error: BaseException) -> str:
    """An exception's class, the first line of its message, and its notes."""
    message = (str(error).strip().splitlines() or [""])[0]
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {message}{notes}" if message else f"{type(error).__name__}{notes}"
