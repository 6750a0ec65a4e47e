"""Checks on what the logits are and what they depend on.

Shape suffixes: B batch, L sequence length, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conformance.subject import Subject, cast, demand, difference, needs, short

LENGTHS = (1, 2, 3, 63, 64, 65, 257, 1000)
"""The shortest, and both sides of what implementations cut sequences at."""
CHANGED_AT = (0, 1, 63, 64, 65, 128, 198, 199)
"""Positions of 200: the beginning, borders of chunks, and near the end."""
NO_CHANGE = 1e-6
"""A token that moves its own logits by less is not read: those of the suite's tiny models move by more than 2e-2."""
DTYPE_LIMITS = {torch.float64: 1e-4, torch.bfloat16: 5e-2}
"""Relative difference to float32. Rounding of float32 is 6e-8, which sines of large phases multiply by hundreds;
that of bfloat16 is 4e-3, over two layers and a head."""
TF32_LIMIT = 5e-3
"""Instead of float64's on CUDA, where mamba-ssm's state space dual multiplies float32 in TF32: 5e-4 was seen."""
FRESH_LOSS_LIMIT = 0.15


@torch.no_grad()
def interface(subject: Subject) -> str:
    """``(B, L)`` ids give ``(B, L, V)`` logits in the weights' dtype, and ``lm_head(hidden(ids))`` the same ones."""
    model, ids_BL = subject.build(), subject.ids(2, 70)
    before_BL = ids_BL.clone()
    logits_BLV = model(ids_BL)
    demand(isinstance(logits_BLV, Tensor), f"forward returns {type(logits_BLV).__name__}, and not a tensor of logits")
    expected = (2, 70, subject.vocab_size)
    demand(logits_BLV.shape == expected, f"logits are {tuple(logits_BLV.shape)} where {expected} is expected")
    demand(logits_BLV.dtype == torch.float32, f"logits are {short(logits_BLV.dtype)} where weights are float32")
    demand(torch.equal(ids_BL, before_BL), "forward changes the ids that it is given")
    if not hasattr(model, "hidden"):
        return f"logits {expected}; no hidden and lm_head, so long evaluations cannot go in pieces"
    whole = needs(model, "lm_head", "vocab_size", "d_model")
    stated = whole.vocab_size
    demand(stated == subject.vocab_size, f"model.vocab_size is {stated}; built with {subject.vocab_size}")
    hidden_BLD = whole.hidden(ids_BL)
    wanted = (2, 70, whole.d_model)
    demand(hidden_BLD.shape == wanted, f"hidden(ids) is {tuple(hidden_BLD.shape)}; d_model says {wanted}")
    error = difference(whole.lm_head(hidden_BLD), logits_BLV)
    demand(error <= 1e-5, f"lm_head(hidden(ids)) differs from forward(ids) by {error:.2g}; limit 1e-5")
    return f"logits {expected}, width {whole.d_model}"


@torch.no_grad()
def length_sweep(subject: Subject) -> str:
    """Any length gives finite logits: suites go from a prompt of one token to whatever fits."""
    model = subject.build()
    for seq_len in LENGTHS:
        try:
            logits_BLV = model(subject.ids(2, seq_len))
        except Exception as raised:
            raised.add_note(f"at seq_len={seq_len}")
            raise
        expected = (2, seq_len, subject.vocab_size)
        demand(logits_BLV.shape == expected, f"seq_len={seq_len}: logits {tuple(logits_BLV.shape)}, not {expected}")
        bad = int((~logits_BLV.isfinite()).sum())
        demand(
            bad == 0,
            f"seq_len={seq_len}: {bad} of {logits_BLV.numel()} logits are not finite; allowed 0 (an exponential of "
            "something positive, a division by a product of decays, or memory that was never written)",
        )
    return f"lengths {', '.join(map(str, LENGTHS))}"


@torch.no_grad()
def causality(subject: Subject) -> str:
    """A token changes its own position's logits and none before: else the loss is of a task that is given away."""
    precise, ids_1L, largest = subject.precise(), subject.ids(1, 200), 0.0
    before_1LV = precise.model(ids_1L)
    for place in CHANGED_AT:
        changed_1L = ids_1L.clone()
        changed_1L[0, place] = (changed_1L[0, place] + 1) % subject.vocab_size
        after_1LV = precise.model(changed_1L)
        earlier = difference(after_1LV[:, :place], before_1LV[:, :place])
        largest = max(largest, earlier)
        demand(
            earlier <= precise.limit,
            f"changing token {place} of 200 changes logits before it by {earlier:.2g}; limit {precise.limit:g} "
            f"({precise.note}). Something looks ahead: attention without a mask, a convolution padded on both sides, "
            "or a normalisation over positions",
        )
        own = difference(after_1LV[:, place], before_1LV[:, place])
        demand(
            own > NO_CHANGE,
            f"changing token {place} of 200 moves its own logits by {own:.2g}; at least {NO_CHANGE:g} is expected. "
            "The position does not read its own token: an output late by one, or a mask that hides the diagonal",
        )
    return f"largest change before a changed token {largest:.1g} ({precise.note})"


@torch.no_grad()
def batch_invariance(subject: Subject) -> str:
    """A sequence's logits are the same alone and in any batch: else scores depend on the batch size."""
    precise, ids_BL = subject.precise(), subject.ids(5, 130)
    together_BLV = precise.model(ids_BL)
    error = max(difference(precise.model(ids_BL[b : b + 1]), together_BLV[b : b + 1]) for b in range(5))
    demand(
        error <= precise.limit,
        f"a sequence's logits differ by {error:.2g} between alone and a batch of 5; limit {precise.limit:g} "
        f"({precise.note}). Something mixes sequences: batch normalisation, a mean over the batch, a wrong reshape",
    )
    return f"alone and in a batch of 5 within {error:.1g} ({precise.note})"


@torch.no_grad()
def padding_invariance(subject: Subject) -> str:
    """Tokens on the right change nothing before them: else scores depend on how sequences are padded."""
    precise, ids_BL, largest = subject.precise(), subject.ids(2, 130), 0.0
    alone_BLV = precise.model(ids_BL)
    for padding in (1, 70, 130):
        for tail_BL in (torch.zeros_like(ids_BL), subject.ids(2, 130, seed=1)):
            padded_BL = torch.cat([ids_BL, tail_BL[:, :padding]], dim=1)
            error = difference(precise.model(padded_BL)[:, :130], alone_BLV)
            largest = max(largest, error)
            demand(
                error <= precise.limit,
                f"{padding} tokens after position 130 change logits before them by {error:.2g}; limit "
                f"{precise.limit:g} ({precise.note}). Something depends on the length: positions or a filter that "
                "stretch with it, statistics over positions, or a last chunk that is handled differently",
            )
    return f"1, 70 and 130 tokens behind 130: within {largest:.1g} ({precise.note})"


@torch.no_grad()
def determinism(subject: Subject) -> str:
    """The seed alone decides the weights, and a forward pass draws nothing: else runs cannot be repeated."""
    ids_BL = subject.ids(2, 70)
    model = subject.build(seed=3, global_seed=0)
    rng = _global_rng()
    first, second = model(ids_BL), model(ids_BL)
    demand(torch.equal(rng, _global_rng()), "forward draws from the global generator (dropout?); it must draw nothing")
    error = difference(second, first)
    demand(error == 0, f"two forward passes differ by {error:.2g}; limit 0: something is drawn, or kept between calls")
    if not hasattr(model, "init_weights"):
        return "two forward passes agree to the bit; no init_weights, so its weights are its constructor's"

    weights = model.state_dict()
    for name, tensor in subject.build(seed=3, global_seed=1).state_dict().items():
        demand(
            torch.equal(weights[name], tensor),
            f"{name} differs between two models of seed 3; init_weights must write it from its generator alone",
        )
    others = subject.build(seed=4).named_parameters()
    differ = any(not torch.equal(weights[name], tensor) for name, tensor in others)
    demand(differ, "seeds 3 and 4 give the same weights: init_weights does not draw from its generator")

    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.fill_(torch.nan)
    model = model.cpu()
    rng = _global_rng()
    needs(model, "init_weights").init_weights(torch.Generator().manual_seed(3))
    demand(torch.equal(rng, _global_rng()), "init_weights draws from the global generator; pass generator=generator")
    left = [name for name, parameter in trainable.items() if parameter.isnan().any()]
    demand(not left, f"init_weights leaves {', '.join(left)} as found; it must overwrite every parameter")
    return "weights by seed alone; two forward passes agree to the bit; global generator untouched"


def _global_rng() -> Tensor:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


@torch.no_grad()
def dtypes(subject: Subject) -> str:
    """The same weights in float64 and bfloat16 give nearly float32's logits, in that dtype: speed is measured in it.

    The model's own ``cast`` may keep weights wide that act through exponentials.
    """
    ids_BL, errors = subject.ids(2, 200), []
    reference_BLV = subject.build()(ids_BL).double()
    for dtype, limit in DTYPE_LIMITS.items():
        if subject.device.type == "cuda":
            limit = max(limit, TF32_LIMIT)
        try:
            logits_BLV = cast(subject.build(), dtype)(ids_BL)
        except Exception as raised:
            raised.add_note(f"in {short(dtype)}")
            raise
        demand(
            logits_BLV.dtype == dtype,
            f"cast to {short(dtype)}, logits are {short(logits_BLV.dtype)}; cast back after what needs float32",
        )
        error = float((logits_BLV.double() - reference_BLV).norm() / reference_BLV.norm())
        demand(
            error <= limit,
            f"{short(dtype)} differs from float32 by {error:.2g} of the logits' norm; limit {limit:g}. Keep states, "
            "exponentials and long sums in float32, and name parameters that act through them in wide_params",
        )
        errors.append(f"{short(dtype)} {error:.1g}")
    return f"relative difference to float32: {', '.join(errors)}"


@torch.no_grad()
def fresh_loss(subject: Subject) -> str:
    """An untrained model's loss on random tokens is near log V: else training begins by unlearning."""
    ids_BL = subject.ids(4, 256)
    logits_BLV = subject.build()(ids_BL)
    loss = float(F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten()))
    chance = math.log(subject.vocab_size)
    demand(
        abs(loss - chance) <= FRESH_LOSS_LIMIT * chance,
        f"loss is {loss:.3f} nats where chance is log {subject.vocab_size} = {chance:.3f}; limit "
        f"{FRESH_LOSS_LIMIT:.0%}. Logits are too large: draw the embedding smaller, or normalise before the head",
    )
    return f"{loss:.3f} nats; log {subject.vocab_size} = {chance:.3f}"
