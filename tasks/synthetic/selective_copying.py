"""Selective copying: remember the data tokens, ignore the noise between them (Mamba, Sec. 4.1.1).

The layout follows the public reproduction of the paper's protocol (App. E.1 leaves it open): data
tokens at random places of a noise segment, then as many markers, at which the data are asked for in
order. An LTI model cannot tell data from noise, because its filter does not see the content.
"""

from typing import Literal

import torch
from torch import Tensor

from tasks.base import Batch, ExampleStream, TaskError, check_seq_len
from tasks.random import distinct_sorted, random_words, uniform_below
from tasks.synthetic.probe import LossConvention, Probe, example_indices

NOISE = 0


class SelectiveCopying(Probe):
    """Copy the data tokens scattered in noise, in order.

    Token 0 is noise, ``vocab_size - 1`` the marker, the rest are data. Of ``seq_len`` positions the
    last ``num_data`` are markers; in the others ``num_data`` data tokens lie at random places.
    ``length_of="noise"`` counts as the public reproduction does: ``seq_len`` noise slots, so that
    the input is ``seq_len + 2 * num_data`` long.

    >>> task = SelectiveCopying(vocab_size=6, num_data=3)
    >>> batch = task.sample(ExampleStream(seed=0), 1, 64)
    >>> batch.inputs_BL[0, -3:].tolist(), batch.targets_BL[0, :-3].unique().tolist()
    ([5, 5, 5], [-100])
    >>> data = batch.inputs_BL[0, :-3]
    >>> data[data > 0].tolist() == batch.targets_BL[0, -3:].tolist()
    True
    """

    name = "selective_copying"
    version = 1

    def __init__(
        self,
        *,
        vocab_size: int = 16,
        num_data: int = 16,
        loss: LossConvention = "answer",
        length_of: Literal["input", "noise"] = "input",
    ) -> None:
        super().__init__(loss=loss)
        if vocab_size < 4:
            raise TaskError(f"{self.name}: vocab_size={vocab_size} leaves fewer than two data tokens; use 4 or more")
        if num_data < 1:
            raise TaskError(f"{self.name}: num_data={num_data} must be at least 1")
        if length_of not in ("input", "noise"):
            raise TaskError(f"{self.name}: length_of={length_of!r} is neither 'input' nor 'noise'")
        self.vocab_size, self.num_data, self.length_of = vocab_size, num_data, length_of

    @property
    def num_answers(self) -> int:
        return self.num_data

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        check_seq_len(self.name, seq_len, minimum=max(64, 2 * self.num_data))
        body_len = seq_len + self.num_data if self.length_of == "noise" else seq_len - self.num_data
        key, examples_B = self._key(rng, seq_len), example_indices(rng, batch, device)
        places_BK = distinct_sorted(key, examples_B, self.num_data, body_len, stream=0)
        words_BK = random_words(key, examples_B, self.num_data, stream=1)
        data_BK = 1 + uniform_below(words_BK, self.vocab_size - 2)

        inputs_BL = torch.full((batch, body_len + self.num_data), NOISE, dtype=torch.int64, device=device)
        inputs_BL[:, body_len:] = self.vocab_size - 1
        inputs_BL.scatter_(1, places_BK, data_BK)
        return Batch(inputs_BL=inputs_BL, targets_BL=self._targets(inputs_BL, data_BK, train=rng.split == "train"))

    def solve(self, inputs_BL: Tensor) -> Tensor:
        is_data_BL = (inputs_BL != NOISE) & (inputs_BL != self.vocab_size - 1)
        return inputs_BL[is_data_BL].view(len(inputs_BL), self.num_data)
