"""What an operator tells whoever watches it: which kernel ran, what it costs, how wrong it is.

Operators call :func:`observe` once per call. Outside :func:`observing` that does nothing. Inside,
the kernel's name goes into the record, the operations that PyTorch's FLOP counter cannot see are
added up, and, where asked for, a slice of the real output is compared with a reference: that is how
no length is timed before its output is known to be right. A policy may choose which calls are compared,
since the reference of a long call takes long, and the like blocks of a model make many alike.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

Policy = Callable[[str, int], bool]
"""Whether a call is compared with its reference, by its operator and its place among that operator's calls, from 0."""


@dataclass(kw_only=True)
class OpReport:
    """Filled while the operators run."""

    verify: bool | Policy
    is_later: bool = False
    """Whether checks wait for :meth:`run_waiting`."""
    waiting: list[tuple[str, Callable[[], float]]] = field(default_factory=list)
    """Operators and checks that :meth:`run_waiting` runs; each holds what its call was given and what it gave."""
    calls: dict[str, int] = field(default_factory=dict)
    """Operator -> how often it ran."""
    checked_calls: dict[str, int] = field(default_factory=dict)
    """Operator -> how many of its calls were compared; 0 where each could have been and none was."""
    backends: dict[str, str] = field(default_factory=dict)
    """Operator -> kernel that ran."""
    errors: dict[str, float] = field(default_factory=dict)
    """Operator -> largest relative error of a checked slice."""
    forward_flops: float = 0.0
    backward_flops: float = 0.0

    def run_waiting(self) -> None:
        """Compare what waited for it, and let the tensors go."""
        while self.waiting:
            self.compare(*self.waiting.pop(0))

    def compare(self, op: str, check: Callable[[], float]) -> None:
        """Run a check of one call, and keep the operator's largest error."""
        # What a check computes with is checked in turn, but it is not what ran.
        with observing(verify=True) as nested, torch.no_grad():
            nested.errors[op] = check()
        for name, error in nested.errors.items():
            # A NaN must not lose against a number in max().
            previous = self.errors.get(name, 0.0)
            self.errors[name] = error if error != error or error > previous else previous

    def kernel_of(self, op: str) -> str:
        """What a message calls the kernel whose error is known."""
        return self.backends.get(op, "in another operator's reference")


_report: ContextVar[OpReport | None] = ContextVar("seqbench_op_report", default=None)


@contextmanager
def observing(*, verify: bool | Policy = False, later: bool = False) -> Iterator[OpReport]:
    """Collect what the operators report; with ``verify``, check a slice of every call's output, or of those that a
    policy chooses. With ``later`` checks wait for :meth:`OpReport.run_waiting`: calls take their own time then, and
    their tensors' memory is held."""
    report = OpReport(verify=verify, is_later=later)
    token = _report.set(report)
    try:
        yield report
    finally:
        _report.reset(token)


_predicted_device: ContextVar[str | None] = ContextVar("seqbench_predicted_device", default=None)


@contextmanager
def predicting(device: str) -> Iterator[None]:
    """Fake tensors within stand for tensors on ``device``, whatever device they say they are on."""
    token = _predicted_device.set(device)
    try:
        yield
    finally:
        _predicted_device.reset(token)


def stands_for(tensor: Tensor) -> str:
    """The device type whose kernels a fake tensor's memory is predicted for."""
    return _predicted_device.get() or tensor.device.type


def observe(
    op: str,
    backend: str,
    *,
    forward_flops: float = 0.0,
    backward_flops: float = 0.0,
    check: Callable[[], float] | None = None,
) -> None:
    """Tell the active report, if any, about one call of an operator.

    Args:
        op: the operator's name.
        backend: the kernel that ran.
        forward_flops, backward_flops: operations invisible to PyTorch's FLOP counter.
        check: recomputes a slice of the output by a reference and returns its relative error.
    """
    report = _report.get()
    if report is None:
        return
    index = report.calls.get(op, 0)
    report.calls[op] = index + 1
    report.backends[op] = backend
    report.forward_flops += forward_flops
    report.backward_flops += backward_flops
    if check is None or not report.verify:
        return
    chosen = report.verify is True or report.verify(op, index)
    report.checked_calls[op] = report.checked_calls.get(op, 0) + chosen
    if chosen and report.is_later:
        report.waiting.append((op, check))
    elif chosen:
        report.compare(op, check)


def is_fake(tensor: Tensor) -> bool:
    """Whether shapes are being propagated without data: kernels must not touch memory then."""
    return isinstance(tensor, FakeTensor) or tensor.device.type == "meta"


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """``||actual - reference|| / ||reference||`` in float64; NaN anywhere gives NaN."""
    actual, reference = actual.double(), reference.double()
    return float((actual - reference).norm() / reference.norm().clamp_min(1e-30))


@functools.cache
def why_missing(module: str) -> str:
    """Why an optional package's module does not import, or "" if it does."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module.partition('.')[0]} does not import ({error})"
    return ""


@contextmanager
def without_data() -> Iterator[None]:
    """Within, modules are built with shapes alone, on the meta device; weights are not drawn."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out the random fills of weights that have no data: for these PyTorch imports its compiler, which takes
    seconds in each process that builds a module."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
