"""What the probes share: the two published loss conventions and the key of an example."""

from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from tasks.base import IGNORE_INDEX, ExampleStream, Modality, Provenance, Split, Task, TaskError
from tasks.random import derive_key

LossConvention = Literal["answer", "every"]
"""``answer``: only the answer is scored. ``every``: the next token is a target everywhere else too."""


class Probe(Task):
    """A generated task whose answer is certain. Scored by accuracy on the answer positions."""

    modality: ClassVar[Modality] = "synthetic"
    metric = "accuracy"

    def __init__(self, *, loss: LossConvention = "answer") -> None:
        if loss not in get_args(LossConvention):
            raise TaskError(f"{self.name}: loss={loss!r} is not one of {get_args(LossConvention)}")
        self.loss: LossConvention = loss
        self.provenance = Provenance(name=f"{self.name} v{self.version}", kind="generator")

    def _key(self, rng: ExampleStream, seq_len: int) -> tuple[int, int]:
        return derive_key(self.name, self.version, rng.seed, rng.split, seq_len)

    def _targets(self, inputs_BL: Tensor, answers_BK: Tensor, *, train: bool) -> Tensor:
        """Answers at the last K positions; elsewhere nothing, or the next token in training."""
        num_answers = answers_BK.shape[1]
        targets_BL = torch.full_like(inputs_BL, IGNORE_INDEX)
        if self.loss == "every" and train:
            targets_BL[:, :-1] = inputs_BL[:, 1:]
        targets_BL[:, -num_answers:] = answers_BK
        return targets_BL

    @property
    @abstractmethod
    def num_answers(self) -> int:
        """K: how many of an example's last positions ask something."""

    def scored_positions(self, split: Split) -> slice:
        return slice(None) if self.loss == "every" and split == "train" else slice(-self.num_answers, None)

    @abstractmethod
    def solve(self, inputs_BL: Tensor) -> Tensor:
        """The oracle: the answers ``(B, K)``, read off the inputs alone. Conformance runs it."""


def example_indices(rng: ExampleStream, batch: int, device: torch.device | str) -> Tensor:
    """int64 ``(B,)``: which examples a call draws."""
    return torch.arange(rng.start, rng.start + batch, dtype=torch.int64, device=device)
