"""The optimizer of a training trial, and its learning rate as a function of the step."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from models import Model

_OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizer(model: Model, protocol: Mapping[str, Any], device: torch.device) -> torch.optim.Optimizer:
    """Fused Adam or AdamW, its state made already: a state can be put into it before the first step.

    On CUDA learning rates and step counts are tensors there, so that a captured step can be replayed.
    """
    on_gpu = device.type == "cuda"
    optimizer = _OPTIMIZERS[protocol["optimizer"]](
        parameter_groups(model, protocol["weight_decay"]),
        lr=torch.tensor(protocol["lr"], dtype=torch.float32, device=device) if on_gpu else protocol["lr"],
        betas=tuple(protocol["betas"]),
        fused=True,
        capturable=on_gpu,
    )
    _make_state(optimizer)
    return optimizer


@torch.no_grad()
def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """PyTorch makes an optimizer's state in its first step: take one, and put parameters and state back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
        for tensor in optimizer.state[parameter].values():
            tensor.zero_()
    optimizer.zero_grad(set_to_none=True)


def parameter_groups(model: Model, weight_decay: float) -> list[dict[str, Any]]:
    """Decay acts on the matrices of linear layers; never on norms, biases, embeddings or state-space parameters."""
    decayed = [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, protocol: Mapping[str, Any]) -> float:
    """Linear warm-up, then constant or cosine to ``final_lr``, or a tenth. ``step`` counts from 0."""
    warm_up = min(1.0, (step + 1) / max(1, protocol["warmup_steps"]))
    if protocol["schedule"] == "constant":
        return protocol["lr"] * warm_up
    cosine = math.cos(math.pi * step / protocol["steps"])
    if (final := protocol.get("final_lr")) is not None:
        return warm_up * (final + (protocol["lr"] - final) * (0.5 + 0.5 * cosine))
    return protocol["lr"] * (warm_up * (0.55 + 0.45 * cosine))
