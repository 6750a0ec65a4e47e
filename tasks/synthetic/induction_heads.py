"""Induction heads: recall what followed a special token (Mamba, Sec. 4.1.2 and App. E.1)."""

from typing import Literal

import torch
from torch import Tensor

from tasks.base import Batch, ExampleStream, TaskError, check_seq_len
from tasks.random import random_words, uniform_below
from tasks.synthetic.probe import LossConvention, Probe, example_indices


class InductionHeads(Probe):
    """Recall the token that followed the special token.

    ``vocab_size - 1`` is the special token. It stands once early on, followed by the token to
    remember, and once at the very end, where that token is the answer; everything else is random
    filler, which never holds the special token. ``place="early"`` puts the first one into the first
    half, so that the distance to bridge grows with the length; ``"anywhere"`` draws it uniformly.

    >>> task = InductionHeads(vocab_size=4)
    >>> batch = task.sample(ExampleStream(seed=0), 2, 64)
    >>> batch.inputs_BL[:, -1].tolist(), (batch.inputs_BL == 3).sum(dim=1).tolist()
    ([3, 3], [2, 2])
    >>> first = batch.inputs_BL[0].tolist().index(3)
    >>> first < 32 and batch.inputs_BL[0, first + 1] == batch.targets_BL[0, -1]
    tensor(True)
    """

    name = "induction_heads"
    version = 1

    def __init__(
        self,
        *,
        vocab_size: int = 16,
        loss: LossConvention = "answer",
        place: Literal["early", "anywhere"] = "early",
    ) -> None:
        super().__init__(loss=loss)
        if vocab_size < 3:
            raise TaskError(f"{self.name}: vocab_size={vocab_size} leaves nothing to remember; use 3 or more")
        if place not in ("early", "anywhere"):
            raise TaskError(f"{self.name}: place={place!r} is neither 'early' nor 'anywhere'")
        self.vocab_size, self.place = vocab_size, place

    @property
    def num_answers(self) -> int:
        return 1

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1)

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        check_seq_len(self.name, seq_len)
        key, examples_B = self._key(rng, seq_len), example_indices(rng, batch, device)
        special = self.vocab_size - 1
        # One place must remain for the remembered token, and one for the question at the end.
        num_places = seq_len // 2 if self.place == "early" else seq_len - 2
        place_B1 = uniform_below(random_words(key, examples_B, 1, stream=0), num_places)

        inputs_BL = uniform_below(random_words(key, examples_B, seq_len, stream=1), special)
        answer_B1 = inputs_BL.gather(1, place_B1 + 1)
        inputs_BL.scatter_(1, place_B1, special)
        inputs_BL[:, -1] = special
        return Batch(inputs_BL=inputs_BL, targets_BL=self._targets(inputs_BL, answer_B1, train=rng.split == "train"))

    def solve(self, inputs_BL: Tensor) -> Tensor:
        first_B1 = (inputs_BL == self.vocab_size - 1).int().argmax(dim=1, keepdim=True)
        return inputs_BL.gather(1, first_B1 + 1)
