"""What a measurement will cost, found without allocating anything.

The very code of the measurement runs on fake tensors, which have shapes and devices but no data,
while one dispatch mode follows the life of every storage and another counts FLOPs. What happens
inside a fused kernel is invisible here: its operator states closed forms instead, and what
kernels take for the time of a call is in :mod:`harness.kernel_scratch`.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from harness.kernel_scratch import SCRATCH
from harness.outcomes import Unpredictable

_NOT_COUNTED_HERE = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_backward,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
]
"""PyTorch counts causal attention as if it were full; the operator's closed form counts the triangle."""


class StorageTracker(TorchDispatchMode):
    """Follows the bytes held by the storages that operators return, and their peak, with what the kernels of
    ``device`` take beside them."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._scratch = SCRATCH.get(torch.device(device).type, {})
        self.held_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._follow(value)
        if scratch_bytes := self._scratch.get(func):
            self.peak_bytes = max(self.peak_bytes, self.held_bytes + scratch_bytes(args, result))
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = None
        nbytes = storage.nbytes()
        self.held_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        weakref.finalize(storage, self._release, nbytes)

    def _release(self, nbytes: int) -> None:
        self.held_bytes -= nbytes


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted cost of one call, after everything was built and warmed up."""

    peak_bytes: int
    flops: float
    """Of the operators that PyTorch's counter knows; closed forms of others are added by the caller."""


def predict(build: Callable[[], Callable[[], object]], *, device: str = "cpu") -> Prediction:
    """Run ``build`` and calls of what it returns on fake tensors, which stand for those of a ``device`` type.

    Memory is followed over two calls, because a training step's second one is the first to meet the optimizer's state.

    Raises:
        Unpredictable: what happens depends on a tensor's values.
    """
    try:
        return _predict(build, device)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise Unpredictable(f"memory and FLOPs are unknown before the run: {error.func} asks for values") from error


def _predict(build: Callable[[], Callable[[], object]], device: str) -> Prediction:
    uncounted = dict.fromkeys(_NOT_COUNTED_HERE, _no_flops)
    with FakeTensorMode():
        with StorageTracker(device) as storages:
            call = build()
            call()
            call()
        # A pass of its own: the counter decomposes operators, which changes what is held and when.
        with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:  # type: ignore[arg-type]
            call()
    return Prediction(peak_bytes=storages.peak_bytes, flops=float(counter.get_total_flops()))


def _no_flops(*_args: Any, **_kwargs: Any) -> int:
    return 0
