"""Checks on the recurrent form: prompts, steps and states.

Shape suffixes: B batch, L sequence length, V vocabulary.
"""

import torch

from models.conformance.subject import Subject, demand, difference, needs, tensors_of

PROMPTS = (1, 2, 3, 63, 64, 65, 250, 256)
"""Both sides of what implementations cut sequences at; steps after 250 go across 256, where windows wrap."""
STEPS_AFTER_PROMPT, STEPS_FROM_EMPTY = 10, 72
RECURRENT = ("init_state", "prefill", "step")


@torch.no_grad()
def step_equals_parallel(subject: Subject) -> str:
    """Steps, after a prompt or from an empty state, give forward's logits: else generation is another model."""
    precise = subject.precise()
    model = needs(precise.model, *RECURRENT)
    max_len = PROMPTS[-1] + STEPS_AFTER_PROMPT
    ids_BL, largest = subject.ids(2, max_len), 0.0
    full_BLV = model(ids_BL)

    def compare(logits_BV: torch.Tensor, place: int, what: str) -> None:
        nonlocal largest
        error = difference(logits_BV, full_BLV[:, place])
        largest = max(largest, error)
        demand(
            error <= precise.limit,
            f"{what}: logits of position {place} differ from the whole forward's by {error:.2g}; limit "
            f"{precise.limit:g} ({precise.note}). A state that is late by one or not filled by prefill, a window that "
            "wraps wrongly, or something in float32 that follows the weights' dtype elsewhere",
        )

    for prompt in (0, *PROMPTS):
        states = model.init_state(2, max_len)
        if prompt:
            compare(model.prefill(ids_BL[:, :prompt], states), prompt - 1, f"prefill of {prompt}")
        what = f"step after a prefill of {prompt}" if prompt else "step from the empty state"
        for place in range(prompt, prompt + (STEPS_AFTER_PROMPT if prompt else STEPS_FROM_EMPTY)):
            compare(model.step(ids_BL[:, place], states), place, what)
    return f"from empty and after prompts of {', '.join(map(str, PROMPTS))}: within {largest:.1g} ({precise.note})"


@torch.no_grad()
def state_in_place(subject: Subject) -> str:
    """``prefill`` and ``step`` write into the tensors they are given: a captured CUDA graph replays their addresses."""
    model = needs(subject.build(), *RECURRENT)
    ids_BL, states = subject.ids(2, 12), model.init_state(2, 12)
    originals = tensors_of(states)
    demand(bool(originals), "init_state returns no tensor; without a state, step cannot know the past")
    shapes = [(t.data_ptr(), t.shape, t.dtype) for t in originals]
    contents = [t.clone() for t in originals]
    # Hold the first ones: the addresses of freed tensors may be given out again.
    model.prefill(ids_BL[:, :4], states)
    for place in range(4, 12):
        model.step(ids_BL[:, place], states)
        now = tensors_of(states)
        demand(
            len(now) == len(originals),
            f"the states hold {len(now)} tensors at position {place}, {len(originals)} at first; allocate all at once",
        )
        for i, (tensor, (address, shape, dtype)) in enumerate(zip(now, shapes, strict=True)):
            demand(
                tensor.shape == shape and tensor.dtype == dtype,
                f"state tensor {i} is {tuple(tensor.shape)} {tensor.dtype} at position {place}, {tuple(shape)} {dtype} "
                "at first; allocate it for max_len and keep its dtype",
            )
            demand(
                tensor.data_ptr() == address,
                f"state tensor {i} of shape {tuple(shape)} moved to another address by position {place}; write with "
                "copy_(), mul_(), index_copy_() instead of assigning a new tensor",
            )
    changed = any(not torch.equal(t, content) for t, content in zip(originals, contents, strict=True))
    demand(changed, "no state tensor has changed after 12 positions: step keeps its past elsewhere, or not at all")
    return f"{len(originals)} tensors at fixed addresses"


@torch.no_grad()
def state_bytes(subject: Subject) -> str:
    """``state_bytes`` and ``describe`` say what ``init_state`` allocates: the figure that memory is compared by."""
    model = needs(subject.build(), "init_state", "state_bytes", "describe")
    said = 0
    for seq_len, batch in ((1, 1), (64, 3), (1000, 1), (1000, 2)):
        real = sum(t.nbytes for t in tensors_of(model.init_state(batch, seq_len)))
        said = model.state_bytes(seq_len, batch=batch)
        demand(
            said == real,
            f"state_bytes({seq_len}, batch={batch}) says {said:,} B; init_state allocates {real:,} B. Sum over the "
            "tensors of init_state on the meta device, as models.base.SequenceModel does",
        )
        described = model.describe(seq_len).state_bytes
        alone = model.state_bytes(seq_len)
        demand(
            described == alone, f"describe({seq_len}).state_bytes is {described:,}; state_bytes({seq_len}) is {alone:,}"
        )
    return f"{model.state_bytes(64):,} B at 64 positions, {model.state_bytes(1000):,} B at 1,000"
