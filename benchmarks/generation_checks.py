"""Correct before fast: what a loop generates against the whole forward of the same model.

Shape suffixes: B batch, L prompt length, N new tokens, V vocabulary.
"""

import torch
from torch import Tensor

from benchmarks.generation_loops import Loop
from benchmarks.speed import TOLERANCES, operator_tolerance
from harness import Trial, WrongOutput
from models import Model
from models.ops.context import observing, relative_error

CHECKED_PROMPT, CHECKED_STEPS = 256, 16


def prompt_ids(trial: Trial, model: Model, batch: int) -> Tensor:
    """``(B, L)`` random ids of the trial's seed, on its device."""
    generator = torch.Generator().manual_seed(trial.seed)
    prompt_BL = torch.randint(model.vocab_size, (batch, trial.seq_len), generator=generator)
    return prompt_BL.to(trial.device)


def tolerance(trial: Trial, model: Model) -> float:
    """Of logits: an operator's, times the square root of the number of blocks, whose roundings add up like a walk.

    In bfloat16 steps and forward of 12 to 48 random blocks were up to 0.031 apart on a CPU. A state that misses one
    token of 32 makes 0.6 to 1.3 in a recurrence or convolution, but 0.05 to 0.2 in random attention, which averages
    over its past: there half precision hides such a fault, and the conformance checks in float64 are what finds it.
    """
    dtype = trial.dtype
    # TF32 products have float16's mantissa.
    if dtype == "float32" and trial.device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        dtype = "float16"
    return TOLERANCES[dtype] * max(1.0, model.describe(1).num_layers ** 0.5)


@torch.no_grad()
def verify(trial: Trial, model: Model, loop_class: type[Loop]) -> dict[str, float]:
    """Compare every logit that a short generation of one sequence decides by with those of the whole forward.

    The prefill's operators are compared with their references too, and the loop must start anew with each prefill.

    Raises:
        WrongOutput: beyond the tolerance of the dtype.
    """
    steps = min(CHECKED_STEPS, trial.protocol["new_tokens"])
    prompt_BL = prompt_ids(trial, model, 1)[:, :CHECKED_PROMPT]
    loop = loop_class(model, prompt_BL, steps)
    with observing(verify=True) as checked:
        first = loop.trace()
    for operator, error in checked.errors.items():
        what = f"{operator} ({checked.kernel_of(operator)})"
        demand(error, operator_tolerance(trial), what, "its reference", trial)
    traces = first, loop.trace()  # the second from used states
    ids_BL = torch.cat([prompt_BL, loop.tokens_BN[:, :-1]], dim=1)
    forward_BNV = last_logits(model, ids_BL, steps + 1)
    errors = dict(checked.errors)
    for trace, what in zip(traces, ("", " in the second generation of a loop"), strict=True):
        for i, logits_BV in enumerate(trace):
            error = relative_error(logits_BV, forward_BNV[:, i])
            place = f"the logits of {'the prefill' if i == 0 else f'step {i}'}{what}"
            demand(error, tolerance(trial, model), place, "the whole forward's", trial)
            errors["logits"] = max(errors.get("logits", 0.0), error)
    return errors


@torch.no_grad()
def check_tokens(trial: Trial, model: Model, prompt_BL: Tensor, tokens_BN: Tensor) -> float:
    """Whether the tokens of the first and the last sequence are those that a forward on each alone would choose.

    Two logits that are equal but for rounding may change places, so the gap between the largest and the chosen one
    is looked at: as a share of the largest one's distance from the mean.

    Raises:
        WrongOutput: a gap that two roundings of the dtype's tolerance do not explain.
    """
    largest, limit = 0.0, 2 * tolerance(trial, model)
    for row in sorted({0, len(prompt_BL) - 1}):
        own = slice(row, row + 1)
        ids_BL = torch.cat([prompt_BL[own], tokens_BN[own, :-1]], dim=1)
        logits_BNV = last_logits(model, ids_BL, tokens_BN.shape[1]).float()
        best_BN = logits_BNV.amax(dim=-1)
        gap_BN = best_BN - logits_BNV.gather(2, tokens_BN[own, :, None]).squeeze(2)
        error = float((gap_BN / (best_BN - logits_BNV.mean(dim=-1))).max())  # a NaN stays one
        what = f"a token of sequence {row} of {len(prompt_BL)}"
        demand(error, limit, what, "the whole forward's choice", trial)
        largest = max(largest, error)
    return largest


def last_logits(model: Model, ids_BL: Tensor, count: int) -> Tensor:
    """``(B, count, V)`` at the last positions."""
    return model.lm_head(model.hidden(ids_BL)[:, -count:])


def demand(error: float, limit: float, what: str, reference: str, trial: Trial) -> None:
    """Raise WrongOutput where ``error`` is above ``limit``."""
    if not error <= limit:  # a NaN is not below any limit
        raise WrongOutput(
            f"{what} differs from {reference} by {error:.3g} with the loop {trial.protocol['loop']}, where "
            f"{trial.dtype} allows {limit:.3g}; no speed is given"
        )
