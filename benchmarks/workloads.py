"""What a ``speed`` trial runs: one call of an operator or of a whole model, forward or train step.

The same function builds the real workload and, on fake tensors, the one whose cost is predicted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operators import operator_inputs
from harness import Trial, Unsupported
from models import Model, SequenceModel, build_fake_model, build_model, find_factory

SPEED_VOCAB = 16
"""Speed does not depend on what the tokens mean; a small vocabulary keeps the head out of the way."""
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

Call = Callable[[], object]


@dataclass(kw_only=True)
class Workload:
    """A call to measure, and the same computation as one that can be checked."""

    call: Call
    forward: Call
    """The forward pass alone, without gradients: what is verified before anything is timed."""
    model: Model | None = None
    precision: str = ""


def build_workload(trial: Trial, *, fake: bool = False) -> Workload:
    """Build the workload of a ``speed`` trial on its device.

    With ``fake`` (inside a ``FakeTensorMode``) nothing is initialised, since nothing has data.
    """
    level = trial.protocol["level"]
    if level == "model":
        return _model_workload(trial, fake)
    if level == "operator":
        return _operator_workload(trial, fake)
    raise Unsupported(f"level={level!r} is neither 'operator' nor 'model'")


def _model_workload(trial: Trial, fake: bool) -> Workload:
    device, dtype = torch.device(trial.device), DTYPES[trial.dtype]
    # Half-precision inference casts the weights once, as serving does. Training keeps float32
    # weights and casts in autocast: the recipe that the Mamba authors advise.
    weights = dtype if trial.direction == "forward" else torch.float32
    if fake:
        model = build_fake_model(trial.model, vocab_size=SPEED_VOCAB, device=trial.device, dtype=weights)
        ids_BL = torch.zeros(trial.batch, trial.seq_len, dtype=torch.int64, device=device)
    else:
        model = build_model(trial.model, vocab_size=SPEED_VOCAB, seed=trial.seed, device=trial.device, dtype=weights)
        generator = torch.Generator().manual_seed(trial.seed)
        ids_BL = torch.randint(SPEED_VOCAB, (trial.batch, trial.seq_len), generator=generator).to(device)

    if trial.direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return model(ids_BL)

        return Workload(call=forward, forward=forward, model=model, precision=f"{trial.dtype} weights")

    mixed = dtype != torch.float32
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=0.1, fused=device.type == "cuda" and not fake
    )

    def loss_of_batch() -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=mixed):
            logits_BLV = model(ids_BL)
        return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten())

    def train_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of_batch().backward()
        optimizer.step()

    def check() -> None:
        with torch.no_grad():
            loss_of_batch()

    precision = f"autocast {trial.dtype}, float32 weights" if mixed else trial.dtype
    return Workload(call=train_step, forward=check, model=model, precision=precision)


def _operator_workload(trial: Trial, fake: bool) -> Workload:
    """The sequence-mixing operator alone, on random inputs of the model's own width."""
    device, dtype = torch.device(trial.device), DTYPES[trial.dtype]
    with torch.device("meta"):
        model = find_factory(trial.model)(vocab_size=SPEED_VOCAB)
    if not isinstance(model, SequenceModel):
        raise Unsupported(f"{trial.model} is not built of mixers, so that there is no operator alone; use level: model")
    mixer = model.blocks[0].mixer
    generator = None if fake else torch.Generator().manual_seed(trial.seed)
    inputs, operator = operator_inputs(mixer, trial, generator)
    inputs = [tensor.to(device, tensor.dtype if tensor.dtype != torch.float32 else dtype) for tensor in inputs]

    if trial.direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return operator(*inputs)

        return Workload(call=forward, forward=forward, precision=trial.dtype)

    inputs = [tensor.requires_grad_() for tensor in inputs]
    output_gradient = torch.ones_like(operator(*inputs))

    def forward_backward() -> None:
        for tensor in inputs:
            tensor.grad = None
        operator(*inputs).backward(output_gradient)

    def check() -> None:
        with torch.no_grad():
            operator(*inputs)

    return Workload(call=forward_backward, forward=check, precision=trial.dtype)
