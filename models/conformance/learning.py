"""Checks on parameters and gradients. Shape suffixes: B batch, L sequence length, V vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conformance.subject import NotApplicable, Subject, demand, needs

GRADIENT_NORM = (1e-2, 1e2)
"""Of the mean loss, over all parameters. The suite's tiny models lie between 0.7 and 3.3."""
LEARNING_LEN = 96
RELATIVE_LIMIT, ABSOLUTE_LIMIT = 1e-5, 1e-9
"""Of a directional derivative; the absolute one is the rounding of the losses that are subtracted."""
EPSILON = 1e-4
"""Length of a parameter's displacement. Errors: EPSILON^4 from the stencil, 1e-15 / EPSILON from rounding."""


def parameters(subject: Subject) -> str:
    """Each parameter is counted and learns: a finite gradient that is not zero, of a sane norm at the beginning.

    A model in which some take part only after more positions says so by its ``settling_len``.
    """
    model = subject.build()
    seq_len = max(LEARNING_LEN, getattr(model, "settling_len", 0) + 1)
    count = sum(p.numel() for p in model.parameters())
    if hasattr(model, "describe"):
        described = needs(model, "describe").describe(128).params
        demand(described == count, f"describe().params is {described:,}; the model has {count:,} parameters")
    loss_of(model, subject.ids(2, seq_len + 1)).backward()
    squares = 0.0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        if gradient is None:
            demand(False, f"{name} gets no gradient: it is not used, or a detach() or no_grad() cuts it off")
            continue
        bad = int((~gradient.isfinite()).sum())
        demand(
            bad == 0,
            f"{bad} of {gradient.numel()} gradients of {name} are not finite at {seq_len} positions; allowed 0",
        )
        demand(bool(gradient.any()), f"the gradient of {name} is zero throughout: what it enters is multiplied by zero")
        squares += float(gradient.double().square().sum())
    low, high = GRADIENT_NORM
    norm = squares**0.5
    demand(
        low <= norm <= high,
        f"the gradient's norm at initialisation is {norm:.3g}; limits {low:g} to {high:g}. Scale what writes to the "
        "residual stream by its depth, and keep decays below 1",
    )
    return f"{count:,}, all learn; gradient norm {norm:.2g} at {seq_len} positions"


def gradcheck(subject: Subject) -> str:
    """Autograd's gradient of each parameter is the loss's slope, by finite differences: wrong ones train, but badly."""
    precise = subject.precise()
    if precise.dtype != torch.float64:
        raise NotApplicable(f"finite differences need float64, and it ran in {precise.note}")
    model, ids_BL = precise.model, subject.ids(1, 71)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss_of(model, ids_BL), list(trained.values()), allow_unused=True)
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
        direction /= direction.norm()
        if gradient is not None and gradient.any():  # along it as well: a random direction alone sees little of it
            direction += gradient / gradient.norm()
            direction /= direction.norm()
        stated = 0.0 if gradient is None else float((gradient * direction).sum())
        slope = _slope(model, ids_BL, parameter, direction)
        error = abs(stated - slope) / max(abs(slope), ABSOLUTE_LIMIT / RELATIVE_LIMIT)
        largest = max(largest, error)
        demand(
            error <= RELATIVE_LIMIT,
            f"along a direction of {name} autograd's derivative is {stated:.8g}, the slope {slope:.8g}: relative "
            f"difference {error:.2g}, limit {RELATIVE_LIMIT:g}. A wrong backward() of your own, a detach() on one of "
            "several ways, or weights changed in place",
        )
    return f"{len(trained)} parameters, relative difference at most {largest:.1g}"


def loss_of(model: nn.Module, ids_BL: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    return F.cross_entropy(model(ids_BL[:, :-1]).flatten(0, 1), ids_BL[:, 1:].flatten())


@torch.no_grad()
def _slope(model: nn.Module, ids_BL: Tensor, parameter: nn.Parameter, direction: Tensor) -> float:
    """Derivative along ``direction``: four losses, fourth order."""
    original = parameter.detach().clone()

    def displaced_loss(distance: float) -> float:
        parameter.copy_(original + distance * direction)
        return float(loss_of(model, ids_BL))

    near = displaced_loss(EPSILON) - displaced_loss(-EPSILON)
    far = displaced_loss(2 * EPSILON) - displaced_loss(-2 * EPSILON)
    parameter.copy_(original)
    return (8 * near - far) / (12 * EPSILON)
