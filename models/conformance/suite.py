"""The checks by name, and their run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from models.conformance import costs, generation, learning, outputs
from models.conformance.subject import CheckFailed, Factory, NotApplicable, Subject, describe_error

Check = Callable[[Subject], str]
"""Returns what it found; raises CheckFailed or NotApplicable."""
Status = Literal["passed", "failed", "skipped", "error"]

CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        outputs.interface,
        outputs.length_sweep,
        outputs.causality,
        outputs.batch_invariance,
        outputs.padding_invariance,
        outputs.determinism,
        generation.step_equals_parallel,
        generation.state_in_place,
        generation.state_bytes,
        learning.parameters,
        learning.gradcheck,
        outputs.dtypes,
        costs.flops,
        outputs.fresh_loss,
        costs.kernels_named,
        costs.fake,
    )
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one check."""

    check: str
    status: Status
    detail: str
    """What was measured; of a failure, the value, the limit and the likely cause."""
    seconds: float


def run_checks(
    factory: Factory, *, vocab_size: int = 16, only: Sequence[str] = (), device: str = "cpu"
) -> list[Finding]:
    """Put a factory's models to the checks named in ``only``, or to all.

    Raises:
        ValueError: a check that does not exist, or a vocabulary of less than two tokens.
        BuildError: the factory or ``init_weights`` raised.
    """
    if unknown := [name for name in only if name not in CHECKS]:
        raise ValueError(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if vocab_size < 2:
        raise ValueError(f"vocab_size={vocab_size} must be at least 2: checks change one token into another")
    subject = Subject(factory=factory, vocab_size=vocab_size, device=torch.device(device))
    subject.build()
    return [_run(name, subject) for name in CHECKS if not only or name in only]


def _run(name: str, subject: Subject) -> Finding:
    start = time.perf_counter()
    status: Status = "passed"
    try:
        detail = CHECKS[name](subject)
    except CheckFailed as failure:
        status, detail = "failed", str(failure)
    except NotApplicable as reason:
        status, detail = "skipped", str(reason)
    except Exception as error:  # noqa: BLE001 (a stranger's model may raise anything; it becomes a status)
        status, detail = "error", describe_error(error)
    return Finding(check=name, status=status, detail=detail, seconds=time.perf_counter() - start)
