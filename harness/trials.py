"""A trial: one frozen, hashable specification of one measurement."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["training", "speed", "generation", "audio_generation", "eval"]
Direction = Literal["forward", "train"]
Status = Literal["ok", "oom", "timeout", "killed", "error", "unsupported", "skipped", "wrong"]
STATUSES: tuple[Status, ...] = get_args(Status)


def canonical_json(value: Any) -> str:
    """JSON with one spelling for equal values: what identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is measured. Two equal trials are the same measurement, whoever asks for it.

    ``task`` is None where a trial needs tokens but no question (kinds ``speed`` and ``generation``). ``protocol`` holds
    the choices that belong to the kind, as plain JSON values.
    """

    kind: Kind
    model: str
    task: str | None
    seq_len: int
    batch: int
    dtype: str
    direction: Direction
    device: str
    seed: int
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"protocol": dict(self.protocol)}

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "Trial":
        return cls(**spec)

    def trial_id(self, code_version: str) -> str:
        """64 hex digits: the specification and the version of the code that it uses."""
        identity = {"trial": self.as_dict(), "code": code_version}
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(canonical_json(self.as_dict()))

    def __str__(self) -> str:
        length = f"L={format_length(self.seq_len)}"
        if self.kind in ("generation", "audio_generation"):
            return f"{self.kind} {self.model} {self.protocol.get('loop', '')} {length} B={self.batch or 'most'}"
        what = self.task or f"{self.protocol.get('level', '')} {self.direction}".strip()
        batch = f" B={self.batch}" if self.kind == "speed" and self.batch != 1 else ""
        return f"{self.kind} {self.model} {what} {length}{batch}"


def format_length(seq_len: int) -> str:
    """1024 -> 1K, 2^20 -> 1M; other numbers as they are."""
    for unit, suffix in ((2**20, "M"), (2**10, "K")):
        if seq_len >= unit and seq_len % unit == 0:
            return f"{seq_len // unit}{suffix}"
    return str(seq_len)


def parse_length(text: str) -> int:
    """``1K`` -> 1024, ``1M`` -> 2^20, ``300`` -> 300. Raises ValueError naming the text."""
    cleaned = text.strip().upper()
    unit = {"K": 2**10, "M": 2**20}.get(cleaned[-1:], 1)
    digits = cleaned[:-1] if unit > 1 else cleaned
    if not digits.isdigit() or int(digits) == 0:
        raise ValueError(f"{text!r} is not a length; write 4096, 4K or 1M")
    return int(digits) * unit


def parse_lengths(text: str) -> list[int]:
    """``1K..16K`` (powers of two between), ``1K,3000``, or both mixed by commas; ascending."""
    lengths: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if not dots:
            lengths.add(parse_length(part))
            continue
        low, high = parse_length(first), parse_length(last)
        if low > high:
            raise ValueError(f"the range {part!r} runs backwards; write the smaller length first")
        while low <= high:
            lengths.add(low)
            low *= 2
    return sorted(lengths)
