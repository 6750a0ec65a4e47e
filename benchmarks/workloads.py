"""What a ``speed`` trial runs: one call of an operator, a block, a whole model, or of what measures a ceiling.

============  =====================================  ======================================================
level         forward                                train
============  =====================================  ======================================================
``operator``  the call, without gradients            forward and backward, gradients of all inputs
``block``     norm, mixer, residual, its MLP         forward and backward, gradients of weights and input
``model``     ids to logits                          forward, loss, backward, AdamW
``ceiling``   see :mod:`benchmarks.ceilings`         —
============  =====================================  ======================================================

The same function builds the real workload and, on fake tensors, the one whose cost is predicted.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ceilings import CEILINGS
from benchmarks.operator_costs import Cost, Shape
from benchmarks.operators import OPERATORS, Draw, find_operator, operator_of
from harness import Trial, Unsupported
from models import Model, SequenceModel, build_fake_model, build_model, find_factory
from models.ops.context import stands_for, without_data

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
    precision: str = ""
    sizes: Callable[[], dict[str, int]] = dict
    """``params`` and ``state_bytes`` of a model or block; asked for outside all timing."""
    cost: Cost | None = None
    """Of one call of an operator."""
    rate_of: tuple[float, str] | None = None
    """A ceiling's amount of one call, and the unit of its rate."""


def build_workload(trial: Trial, *, fake: bool = False, num_layers: int | None = None) -> Workload:
    """Build the workload of a ``speed`` trial on its device.

    With ``fake`` (inside a ``FakeTensorMode``) nothing is initialised, since nothing has data; a model is cut to its
    first ``num_layers`` blocks if that is given, so that the cost of all can be told from a few.

    Raises:
        Unsupported: a level, operator or ceiling that does not exist, or cannot run there; the message says why.
    """
    levels: dict[str, Callable[[Trial, bool], Workload]] = {
        "operator": _operator_workload,
        "block": _block_workload,
        "model": functools.partial(_model_workload, num_layers=num_layers),
        "ceiling": _ceiling_workload,
    }
    level = trial.protocol["level"]
    if level not in levels:
        raise Unsupported(f"level={level!r} is none of {', '.join(levels)}")
    return levels[level](trial, fake)


def _generator(trial: Trial, fake: bool, device: torch.device | str) -> torch.Generator | None:
    return None if fake else torch.Generator(device).manual_seed(trial.seed)


def _model_workload(trial: Trial, fake: bool, *, num_layers: int | None = None) -> Workload:
    device, dtype = torch.device(trial.device), DTYPES[trial.dtype]
    weights = _weight_dtype(trial)
    if num_layers is not None:
        assert fake
        model: Model = cut_model(trial, num_layers, weights)
        ids_BL = torch.zeros(trial.batch, trial.seq_len, dtype=torch.int64, device=device)
    elif fake:
        model = build_fake_model(trial.model, vocab_size=SPEED_VOCAB, device=trial.device, dtype=weights)
        ids_BL = torch.zeros(trial.batch, trial.seq_len, dtype=torch.int64, device=device)
    else:
        model = _initialised(trial, find_factory(trial.model), weights)
        generator = torch.Generator().manual_seed(trial.seed)
        ids_BL = torch.randint(SPEED_VOCAB, (trial.batch, trial.seq_len), generator=generator).to(device)

    def sizes() -> dict[str, int]:
        description = model.describe(trial.seq_len)
        return {"params": description.params, "state_bytes": trial.batch * description.state_bytes}

    if trial.direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return model(ids_BL)

        return Workload(call=forward, forward=forward, sizes=sizes, precision=f"{trial.dtype} weights")

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=0.1, fused=device.type == "cuda" and not fake
    )

    def loss_of_batch() -> Tensor:
        with _autocast(device, dtype):
            logits_BLV = model(ids_BL)
        return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten())

    def train_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of_batch().backward()
        optimizer.step()

    def check() -> None:
        with torch.no_grad():
            loss_of_batch()

    return Workload(call=train_step, forward=check, sizes=sizes, precision=_training_precision(trial))


def _weight_dtype(trial: Trial) -> torch.dtype:
    """Half-precision inference casts the weights once, as serving does. Training keeps float32 weights and casts in
    autocast: the recipe that the Mamba authors advise."""
    return DTYPES[trial.dtype] if trial.direction == "forward" else torch.float32


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _training_precision(trial: Trial) -> str:
    return trial.dtype if trial.dtype == "float32" else f"autocast {trial.dtype}, float32 weights"


def _initialised(trial: Trial, factory: Callable[..., Model], weights: torch.dtype) -> Model:
    """A model with weights, made where it will run: on a GPU that takes milliseconds in place of seconds.

    What keeps buffers, or draws on the CPU whatever its device, is built there and moved.
    """
    if trial.device != "cpu":
        with without_data():
            model = factory(vocab_size=SPEED_VOCAB)
        if not list(model.buffers()):
            try:
                model = model.to_empty(device=trial.device)
                model.init_weights(torch.Generator(trial.device).manual_seed(trial.seed))
                return model.cast(weights)
            except RuntimeError as error:
                if "generator" not in str(error):  # PyTorch's complaint about one of another device
                    raise
    return build_model(trial.model, vocab_size=SPEED_VOCAB, seed=trial.seed, device=trial.device, dtype=weights)


def _block_workload(trial: Trial, fake: bool) -> Workload:
    """The model's first block on random hidden states."""
    device, dtype = torch.device(trial.device), DTYPES[trial.dtype]
    weights = _weight_dtype(trial)
    model = cut_model(trial, 1, weights if fake else torch.float32)
    if not fake:
        whole = _shapes_of(trial)
        assert isinstance(whole, SequenceModel)  # or it were not cut
        with torch.no_grad():  # on the CPU: the same weights on every device, and one block is soon drawn
            model.blocks[0].init_weights(torch.Generator().manual_seed(trial.seed), num_layers=len(whole.blocks))
        model = model.to(device).cast(weights)
    block = model.blocks[0]
    shape = (trial.batch, trial.seq_len, block.norm.weight.shape[0])
    # In the dtype of a model's residual stream: the weights'.
    x_BLD = torch.randn(shape, device=device, dtype=weights, generator=_generator(trial, fake, device))

    def sizes() -> dict[str, int]:
        meta = torch.device("meta")
        state = block.mixer.init_state(trial.batch, trial.seq_len, device=meta, dtype=weights)
        return {
            "params": sum(p.numel() for p in block.parameters()),
            "state_bytes": sum(tensor.nbytes for tensor in state.values()),
        }

    if trial.direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return block(x_BLD)

        return Workload(call=forward, forward=forward, sizes=sizes, precision=f"{trial.dtype} weights")

    x_BLD.requires_grad_()
    gradient_BLD = torch.ones_like(x_BLD)

    def forward_backward() -> None:
        block.zero_grad(set_to_none=True)
        x_BLD.grad = None
        with _autocast(device, dtype):
            y_BLD = block(x_BLD)
        y_BLD.backward(gradient_BLD)

    def check() -> None:
        with torch.no_grad(), _autocast(device, dtype):
            block(x_BLD)

    return Workload(call=forward_backward, forward=check, sizes=sizes, precision=_training_precision(trial))


def _shapes_of(trial: Trial, dtype: torch.dtype = torch.float32) -> Model:
    """The trial's model without data, and unseen by whoever follows the storages of fake tensors."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch._C._DisableTorchDispatch(), without_data():
            return find_factory(trial.model)(vocab_size=SPEED_VOCAB)
    finally:
        torch.set_default_dtype(previous)


def cut_model(trial: Trial, num_layers: int, dtype: torch.dtype) -> SequenceModel:
    """The first blocks of a model with memory and without data. Raises Unsupported for what is not built of blocks."""
    model = _shapes_of(trial, dtype)
    if not isinstance(model, SequenceModel):
        raise Unsupported(f"{trial.model} is not built of blocks, so that there is none alone; use level: model")
    kept = model.blocks[:num_layers]
    if any(list(block.buffers()) for block in kept):
        raise Unsupported(f"a block of {trial.model} keeps buffers, which cannot be drawn anew; use level: model")
    model.backbone.layers = nn.ModuleList(kept)
    _materialise(model, "cpu")
    return model


def num_like_layers(trial: Trial) -> int:
    """How many blocks a model trial's model has, if they are all alike and keep no buffers; else 0."""
    model = _shapes_of(trial)
    if not isinstance(model, SequenceModel) or list(model.buffers()):
        return 0
    kinds = {
        (type(block.mixer), *((name, tuple(p.shape)) for name, p in block.named_parameters()))
        for block in model.blocks
    }  # fmt: skip
    return len(model.blocks) if len(kinds) == 1 else 0


def _materialise(model: nn.Module, device: str) -> None:
    """As ``Module.to_empty``, which fake tensors do not bear. Shared parameters stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
            setattr(module, name, made[id(parameter)])


def _operator_workload(trial: Trial, fake: bool) -> Workload:
    """The sequence-mixing operator alone: one by its name at the protocol's width, or a model's at its own."""
    device, dtype = torch.device(trial.device), DTYPES[trial.dtype]
    name, shape = operator_and_shape(trial)
    stood_for = stands_for(torch.empty(0, device=device))
    operator = find_operator(name, stood_for)
    time_last = operator.fused_scan and stood_for == "cuda"
    draw = Draw(device=device, dtype=dtype, generator=_generator(trial, fake, device), time_last=time_last)
    inputs = operator.draw(shape, draw)
    cost = operator.cost(shape, trial.direction == "train")

    if trial.direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return operator.call(*inputs)

        return Workload(call=forward, forward=forward, precision=trial.dtype, cost=cost)

    inputs = [tensor.requires_grad_() for tensor in inputs]
    with torch.no_grad():
        output_gradient = torch.ones_like(operator.call(*inputs))

    def forward_backward() -> None:
        for tensor in inputs:
            tensor.grad = None
        operator.call(*inputs).backward(output_gradient)

    def check() -> None:
        with torch.no_grad():
            operator.call(*inputs)

    return Workload(call=forward_backward, forward=check, precision=trial.dtype, cost=cost)


def operator_and_shape(trial: Trial) -> tuple[str, Shape]:
    """Which operator a trial means, and its sizes. Raises Unsupported where a model has none alone."""
    element_bytes = DTYPES[trial.dtype].itemsize
    shape = Shape(batch=trial.batch, seq_len=trial.seq_len, width=0, element_bytes=element_bytes)
    if "width" in trial.protocol:
        if trial.model not in OPERATORS:
            raise Unsupported(f"operator {trial.model!r} is none of {', '.join(OPERATORS)}")
        return trial.model, replace(shape, **{key: trial.protocol[key] for key in ("width", "d_state", "head_dim")})
    model = _shapes_of(trial)
    if not isinstance(model, SequenceModel):
        raise Unsupported(f"{trial.model} is not built of mixers, so that there is no operator alone; use level: model")
    return operator_of(model.blocks[0].mixer, shape)


def _ceiling_workload(trial: Trial, fake: bool) -> Workload:
    if trial.model not in CEILINGS:
        raise Unsupported(f"ceiling {trial.model!r} is none of {', '.join(CEILINGS)}")
    device = torch.device(trial.device)
    build = CEILINGS[trial.model]
    ceiling = build(trial.seq_len, device, DTYPES[trial.dtype], _generator(trial, fake, device))
    return Workload(
        call=ceiling.call, forward=ceiling.call, precision=trial.dtype, rate_of=(ceiling.amount, ceiling.unit)
    )
