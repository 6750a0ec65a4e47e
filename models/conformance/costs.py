"""Checks on what a model says about its cost, and on what tells it without running.

Shape suffixes: B batch, L sequence length, V vocabulary.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models.conformance.learning import loss_of
from models.conformance.subject import CheckFailed, NotApplicable, Subject, demand, describe_error, needs
from models.ops.context import observing, without_data

FLOPS_LEN = 512
FLOPS_LIMIT = 0.1
KERNEL_LEN = 1000
KERNEL_LIMITS = {"cpu": 1e-5, "cuda": 5e-3}
"""Relative error of a checked slice in float32, against float64. On a CPU the suite's own operators stay under 1e-6; on
CUDA mamba-ssm's state space dual multiplies in TF32, which keeps eleven bits."""


@torch.no_grad()
def flops(subject: Subject) -> str:
    """``describe`` states the operations that run: what models are matched by, and time limits are planned with.

    Counted: the products that PyTorch's counter sees, and what operators report by ``models.ops.context.observe``.
    """
    if subject.device.type != "cpu":
        raise NotApplicable("stated are the operations of the plain forms, which run on a CPU: use --device cpu")
    model = needs(subject.build(), "describe")
    stated = model.describe(FLOPS_LEN).forward_flops
    with observing() as report, FlopCounterMode(display=False) as counter:
        model(subject.ids(1, FLOPS_LEN))
    seen = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in seen.items() if "attention" in str(op))
    products = sum(seen.values()) - attention
    if "attention" in report.backends:
        attention = 0  # the suite's operator has reported it
    # PyTorch counts causal attention as if it were full; a model may state the triangle that is needed.
    low, high = (products + report.forward_flops + share * attention for share in (0.5, 1.0))
    ok = low * (1 - FLOPS_LIMIT) <= stated <= high * (1 + FLOPS_LIMIT)
    ran = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
    demand(
        ok,
        f"describe({FLOPS_LEN}).forward_flops is {stated:,.0f}; {ran} ran ({products:,} counted by PyTorch, "
        f"{report.forward_flops:,.0f} reported by operators); limit {FLOPS_LIMIT:.0%}. Multiply-adds count twice; "
        "op_flops is for one sequence without projections; report scans by models.ops.context.observe",
    )
    return f"{stated / FLOPS_LEN:,.0f} a token at {FLOPS_LEN}, {stated / ((low + high) / 2) - 1:+.1%} of what ran"


@torch.no_grad()
def kernels_named(subject: Subject) -> str:
    """The suite's operators say which kernel ran, and a slice of each agrees with float64: no speed of wrong output."""
    model = subject.build()
    with observing(verify=True) as report:
        model(subject.ids(1, KERNEL_LEN))
    if not report.backends:
        raise NotApplicable("it uses none of the suite's operators (models.ops), so that none can be checked")
    for op, kernel in report.backends.items():
        demand(bool(kernel), f"operator {op} reports no kernel's name; pass it to models.ops.context.observe")
    limit = KERNEL_LIMITS[subject.device.type]
    for op, error in report.errors.items():
        demand(
            error <= limit,
            f"operator {op} ({report.backends.get(op, 'nested')}) differs from its float64 reference by {error:.2g} at "
            f"{KERNEL_LEN} positions; limit {limit:g}",
        )
    return "; ".join(
        f"{op}: {kernel} " + (f"({report.errors[op]:.1g})" if op in report.errors else "(no check of its own)")
        for op, kernel in report.backends.items()
    )


def fake(subject: Subject) -> str:
    """It is built, trains and steps on tensors without data: so ``seqbench plan`` predicts memory."""
    real = subject.build()
    stage = "being built"
    try:
        with torch.random.fork_rng(), FakeTensorMode(), torch.device(subject.device):
            model: Any = subject.factory(vocab_size=subject.vocab_size)
            stage = "a forward pass"
            ids_BL = torch.zeros(2, 129, dtype=torch.int64)
            logits_BLV = model(ids_BL)
            stage = "a backward pass"
            loss_of(model, ids_BL).backward()
            if hasattr(model, "init_state"):
                stage = "prefill and step"
                with torch.no_grad():
                    states = model.init_state(2, 129)
                    model.prefill(ids_BL[:, :64], states)
                    model.step(ids_BL[:, 64], states)
            stage = "building on the meta device"
        with torch.random.fork_rng(), without_data():
            described: Any = subject.factory(vocab_size=subject.vocab_size)
    except (RuntimeError, NotImplementedError) as error:
        raise CheckFailed(
            f"{stage} fails without data: {describe_error(error)}. No .item(), .tolist(), numpy, or Python branches on "
            "values; create tensors on the inputs' device"
        ) from error
    expected = (2, 129, subject.vocab_size)
    demand(
        isinstance(logits_BLV, FakeTensor) and logits_BLV.shape == expected,
        f"fake ids give {type(logits_BLV).__name__} {tuple(logits_BLV.shape)}, not a FakeTensor {expected}",
    )
    if hasattr(described, "describe"):
        same = described.describe(300) == needs(real, "describe").describe(300)
        demand(same, "describe(300) on the meta device differs from the real model's; count from shapes alone")
    return "built, trained and stepped on fake tensors; described on the meta device"
