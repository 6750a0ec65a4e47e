"""A byte-level model of the suite as lm-eval sees a language model.

Shape suffixes: B batch, L sequence length, D model width, V vocabulary, N scored positions of a batch.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.evaluation.lm_harness import Instance, TemplateLM, get_rolling_token_windows, make_disjoint_window
from harness import TrialFailure
from models import Model
from tasks import TaskError

BYTE_VOCAB = 256
NEWLINE = 10
"""Stands where lm-eval wants an end-of-text token, in front of an empty context. Training text has no
such token; a paragraph's end is the likeliest place to begin at, and byte 0 was never seen."""
MAX_LENGTH = 2048
MAX_NEW_TOKENS = 256
"""Of a generation request that names no ``max_gen_toks`` (lm-eval's own default)."""

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), their token ids): what TemplateLM makes of a request."""


class NonFiniteScore(TrialFailure):
    """The model gave a log-likelihood that is NaN or infinite."""


@dataclass(kw_only=True)
class Counts:
    """What the adapter did since it was last asked (:meth:`ByteLM.take_counts`)."""

    requests: int = 0
    truncated: int = 0
    """Requests whose context was cut on the left to fit ``max_length``."""
    tokens: int = 0
    """Read and generated; padding is not counted."""
    model_s: float = 0.0


class ByteLM(TemplateLM):
    """Log-likelihoods and greedy generation of a :class:`Model` over bytes.

    Results do not depend on the batch size or on the order of the requests, but for rounding: models
    are causal, so that padding on the right changes nothing to its left.

    Args:
        max_length: positions that the model reads at most. A longer context loses its beginning,
            which is counted.
        on_progress: called with (requests done, requests in all) after every batch.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 16,
        max_length: int = MAX_LENGTH,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        super().__init__()
        if model.vocab_size != BYTE_VOCAB:
            raise TaskError(f"vocabulary of {model.vocab_size}: text is scored by byte models of {BYTE_VOCAB} symbols")
        if batch_size < 1 or max_length < 2:
            raise TaskError(f"batch size {batch_size} and max length {max_length} must be at least 1 and 2")
        self.model = model.eval()
        self.batch_size, self.max_length = batch_size, max_length
        self._device = next(model.lm_head.parameters()).device
        self._on_progress = on_progress
        self._counts = Counts()

    def take_counts(self) -> Counts:
        """The counts since the last call; they begin anew."""
        taken, self._counts = self._counts, Counts()
        return taken

    @property
    def eot_token_id(self) -> int:
        return NEWLINE

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ARG002
        """UTF-8 bytes; there are no special tokens."""
        return list(string.encode())

    def tok_decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
        return bytes(tokens).decode(errors="replace")

    def _loglikelihood_tokens(
        self,
        requests: Sequence[TokenRequest],
        disable_tqdm: bool = False,  # noqa: ARG002 (lm-eval's signature)
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """``(log-likelihood in nats, whether greedy decoding would give it)`` of each continuation."""
        fitted = [self._fit(context, continuation) for _, context, continuation in requests]
        # By content below length, so that the batches do not depend on the order of the requests.
        order = sorted(range(len(fitted)), key=lambda i: (len(fitted[i][0]), fitted[i]), reverse=True)
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(fitted)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            for i, score in zip(chosen, self._score([fitted[i] for i in chosen]), strict=True):
                scores[i] = score
            self._on_progress(first + len(chosen), len(order))
        return scores

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """(what the model reads, what it should predict at the end of that), cut on the left where too long."""
        if len(continuation) > self.max_length:
            raise TaskError(
                f"a continuation of {len(continuation)} bytes is longer than the max length {self.max_length}; "
                "raise --max-length"
            )
        whole = context + continuation
        self._counts.requests += 1
        self._counts.truncated += len(whole) - 1 > self.max_length
        return whole[-(self.max_length + 1) : -1], continuation

    @torch.no_grad()
    def _score(self, batch: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        started = time.perf_counter()
        ids_BL = torch.zeros(len(batch), max(len(read) for read, _ in batch), dtype=torch.int64)
        for row, (read, _) in enumerate(batch):
            ids_BL[row, : len(read)] = torch.tensor(read)
        rows_N = torch.tensor([row for row, (_, wanted) in enumerate(batch) for _ in wanted], dtype=torch.int64)
        places_N = torch.tensor(
            [place for read, wanted in batch for place in range(len(read) - len(wanted), len(read))], dtype=torch.int64
        )
        targets_N = torch.tensor([token for _, wanted in batch for token in wanted], dtype=torch.int64)

        hidden_BLD = self.model.hidden(ids_BL.to(self._device))
        # The context's logits are never made: over a long context they are most of the memory.
        logits_NV = self.model.lm_head(hidden_BLD[rows_N.to(self._device), places_N.to(self._device)]).float()
        targets_N = targets_N.to(self._device)
        nats_N = F.log_softmax(logits_NV, dim=-1).gather(1, targets_N[:, None])[:, 0].double().cpu()
        greedy_N = (logits_NV.argmax(dim=-1) == targets_N).cpu()
        self._counts.model_s += time.perf_counter() - started
        self._counts.tokens += sum(len(read) for read, _ in batch)

        lengths = [len(wanted) for _, wanted in batch]
        pieces = zip(nats_N.split(lengths), greedy_N.split(lengths), strict=True)
        scores = [(float(nats.sum()), bool(greedy.all())) for nats, greedy in pieces]
        if not all(math.isfinite(nats) for nats, _ in scores):
            raise NonFiniteScore("the model gave a log-likelihood that is not finite; its weights have diverged")
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False, **_: Any) -> list[float]:
        """Log-likelihood of whole texts of any length, every byte scored once.

        Windows as lm-eval cuts them: disjoint stretches of ``max_length`` bytes, each read behind one
        byte of context (a newline before the first), so that a stretch's first bytes have little; the
        last stretch, being shorter, is read behind as much as fills a window.
        """
        windows: list[TokenRequest] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, cut):
                windows.append((("", ""), context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (nats, _greedy) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 (lm-eval's signature)
    ) -> list[str]:
        """Greedy continuations, each up to the first of its ``until`` strings, from the recurrent state.

        Raises TaskError for a request to sample: two runs must give the same text.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        prompts: list[list[int]] = []
        for i, request in enumerate(requests):
            context, options = request.args
            if options.get("do_sample"):
                raise TaskError("do_sample: true: generation is greedy here; set do_sample to false")
            num_new = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
            prompts.append(self._fit_prompt(context, num_new))
            # A state has no padding: prompts of one length are read together.
            groups[len(prompts[i]), num_new].append(i)
        texts = [""] * len(requests)
        for (_, num_new), members in groups.items():
            for first in range(0, len(members), self.batch_size):
                chosen = members[first : first + self.batch_size]
                stops = [_stops(requests[i].args[1]) for i in chosen]
                outputs = self._generate([prompts[i] for i in chosen], stops, num_new)
                for i, output in zip(chosen, outputs, strict=True):
                    texts[i] = output
        return texts

    def _fit_prompt(self, context: str, num_new: int) -> list[int]:
        room = self.max_length - num_new
        if num_new < 1 or room < 1:
            raise TaskError(
                f"max_gen_toks={num_new} leaves no prompt within the max length {self.max_length}; change one of them"
            )
        prompt = self.tok_encode(context) or [self.eot_token_id]
        self._counts.requests += 1
        self._counts.truncated += len(prompt) > room
        return prompt[-room:]

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]], stops: Sequence[list[bytes]], num_new: int) -> list[str]:
        started = time.perf_counter()
        ids_BL = torch.tensor(prompts, device=self._device)
        states = self.model.init_state(len(prompts), ids_BL.shape[1] + num_new)
        logits_BV = self.model.prefill(ids_BL, states)
        outputs = [bytearray() for _ in prompts]
        ends: list[int | None] = [None] * len(prompts)
        for position in range(num_new):
            next_B = logits_BV.argmax(dim=-1)
            for row, token in enumerate(next_B.tolist()):
                if ends[row] is None:
                    outputs[row].append(token)
                    ends[row] = min((at for s in stops[row] if (at := outputs[row].find(s)) >= 0), default=None)
            if position + 1 == num_new or all(end is not None for end in ends):
                break
            logits_BV = self.model.step(next_B, states)
        self._counts.model_s += time.perf_counter() - started
        self._counts.tokens += ids_BL.numel() + sum(map(len, outputs))
        return [self.tok_decode(output[:end]) for output, end in zip(outputs, ends, strict=True)]


def _stops(options: dict[str, Any]) -> list[bytes]:
    until = options.get("until") or []
    return [stop.encode() for stop in ([until] if isinstance(until, str) else until) if stop]
