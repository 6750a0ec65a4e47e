"""Greedy texts from a recurrent state or a KV cache.

Shape suffixes: B batch, L sequence length, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.evaluation.tokenizers import Tokenizer
from models import Model
from tasks import TaskError

MAX_NEW_TOKENS = 256
"""Of a request that names no number (lm-eval's own default)."""
_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for it, the first that is there counts."""


def generation_options(options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """(number of new tokens, stop strings) of a request. Raises TaskError for one that wants sampling."""
    temperature = float(options.get("temperature") or 0.0)
    if options.get("do_sample", temperature > 0):
        raise TaskError(
            f"do_sample={options.get('do_sample')}, temperature={temperature}: generation is greedy here; "
            "set do_sample to false"
        )
    given = [options[name] for name in _COUNTS if options.get(name) is not None]
    until = options.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    return int(given[0]) if given else MAX_NEW_TOKENS, tuple(stop for stop in stops if stop)


@torch.no_grad()
def greedy_texts(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[Sequence[str]],
    *,
    num_new: int,
) -> tuple[list[str], int]:
    """Continuations of prompts of one length, and how many tokens were read and made for them.

    A text ends before the first of its stop strings, at the tokenizer's end-of-text token, or after ``num_new``
    tokens.
    """
    ids_BL = torch.tensor([list(prompt) for prompt in prompts], device=next(model.lm_head.parameters()).device)
    states = model.init_state(len(prompts), ids_BL.shape[1] + num_new)
    logits_BV = model.prefill(ids_BL, states)
    outputs: list[list[int]] = [[] for _ in prompts]
    texts: list[str | None] = [None] * len(prompts)
    for position in range(num_new):
        next_B = logits_BV.argmax(dim=-1)
        for row, token in enumerate(next_B.tolist()):
            if texts[row] is None:
                outputs[row].append(token)
                texts[row] = _finished(tokenizer, outputs[row], stops[row])
        if position + 1 == num_new or all(text is not None for text in texts):
            break
        logits_BV = model.step(next_B, states)
    num_tokens = ids_BL.numel() + sum(map(len, outputs))
    decoded = (tokenizer.decode(output) if text is None else text for text, output in zip(texts, outputs, strict=True))
    return list(decoded), num_tokens


def _finished(tokenizer: Tokenizer, output: list[int], stops: Sequence[str]) -> str | None:
    """The text, if it has come to its end."""
    if output[-1] == tokenizer.end_id:
        return tokenizer.decode(output[:-1])
    if not stops:
        return None
    # The whole text, since a stop string may lie across tokens and a character across several.
    text = tokenizer.decode(output)
    ends = [end for stop in stops if (end := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else None
