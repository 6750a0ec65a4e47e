"""Which tokens may answer: all of the vocabulary, or a classification task's labels alone.

Labels are tokens after a data set's own, so that a model of the data fits. Of all tokens a pretrained model first
unlearns to go on with the data; among the labels alone it starts as one with a head of its own does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tasks import Task, TaskError
from tasks.corpus import CorpusTask


def answers_of(task: Task, protocol: Mapping[str, Any]) -> range | None:
    """The tokens that a protocol lets answer; None for all.

    Raises:
        TaskError: ``answers: labels`` of a task that has none.
    """
    if protocol.get("answers", "all") == "all":
        return None
    classes = task.answer_tokens if isinstance(task, CorpusTask) else None
    if classes is None:
        raise TaskError(f"{task.name} asks for no class, which answers: labels needs; leave that out")
    return classes


def among(logits_XV: Tensor, answers: range | None) -> Tensor:
    """Logits ``(..., V)`` that leave no chance to what may not answer."""
    if answers is None:
        return logits_XV
    tokens_V = torch.arange(logits_XV.shape[-1], device=logits_XV.device)
    return logits_XV.masked_fill((tokens_V < answers.start) | (tokens_V >= answers.stop), -torch.inf)
