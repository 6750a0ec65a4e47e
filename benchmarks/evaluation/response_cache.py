"""A model's answers, kept as they come: what a killed evaluation had computed is not computed again.

lm-eval's own cache is not used: its keys leave out the model. Here a file belongs to one model (by its weights'
sha256), tokenizer, dtype, code version and task; its lines are requests, by the hash of their token ids, and answers.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.trials import canonical_json
from tasks import TaskError

Answer = list[Any] | str
"""``[log-likelihood in nats, whether greedy]``, or a generated text."""
_HEADER = "responses_of"


class ResponseCache:
    """The answers of one model on one task, in a file that grows with every batch.

    Several processes may append to one file: a batch is one write. A line that a kill tore is left out and its
    request asked again.

    Args:
        folder: of the files; made where it is missing.
        identity: what the answers depend on besides the request, as JSON values.

    Raises TaskError where the file cannot be read or written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        header = canonical_json({_HEADER: identity})
        self.path = folder / f"{hashlib.sha256(header.encode()).hexdigest()[:32]}.jsonl"
        self._answers: dict[str, Answer] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise self._unusable(error) from error
        first, *lines = content.split(b"\n")
        if first != header.encode():  # new, or torn within its first line
            self._write(header + "\n", fresh=True)
            lines = []
        elif not content.endswith(b"\n"):
            self._write("\n")
        for line in lines:
            self._read(line)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Sequence[Any]) -> Answer | None:
        """The answer to a request (its type, then what was asked), if it is known."""
        return self._answers.get(_key(request))

    def add(self, answered: Iterable[tuple[Sequence[Any], Answer]]) -> None:
        """Keep a batch's answers; they are with the operating system when this returns."""
        new = {_key(request): answer for request, answer in answered}
        self._answers |= new
        self._write("".join(json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in new.items()))

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, answer = entry["key"], entry["answer"]
        except (ValueError, KeyError, TypeError):
            return
        if isinstance(key, str) and isinstance(answer, list | str):
            self._answers[key] = answer

    def _write(self, text: str, *, fresh: bool = False) -> None:
        try:
            with self.path.open("wb" if fresh else "ab", buffering=0) as file:
                rest = memoryview(text.encode())
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> TaskError:
        return TaskError(
            f"{self.path}: cannot keep responses there ({error.strerror or error}); "
            "choose another folder with --out, or add --no-cache"
        )


def _key(request: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(request)).encode()).hexdigest()[:32]
