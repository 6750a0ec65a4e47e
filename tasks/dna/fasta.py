"""FASTA to tokens: A C G T N are 0 1 2 3 4."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tasks.archive import Member
from tasks.base import TaskError
from tasks.prepared import TokenArray

ALPHABET = "ACGTN"
UNKNOWN = ALPHABET.index("N")

_AMBIGUOUS = "RYSWKMBDHV"
"""IUPAC codes for more than one base: read as N."""

_SPACE, _FOREIGN = 254, 255


def _lookup_table() -> TokenArray:
    table = np.full(256, _FOREIGN, np.uint8)
    codes = {letter: ALPHABET.index(letter) for letter in ALPHABET} | {"U": ALPHABET.index("T")}
    for letter, code in (codes | dict.fromkeys(_AMBIGUOUS, UNKNOWN)).items():
        table[ord(letter)] = table[ord(letter.lower())] = code  # lower case is a soft mask: the base is the same
    table[[ord(space) for space in " \t\n"]] = _SPACE
    return table


_TOKEN_OF_BYTE = _lookup_table()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sequence of a FASTA file."""

    id: str
    """The header's first word."""
    tokens_L: TokenArray


def parse_fasta(member: Member) -> Iterator[Record]:
    """The records of a FASTA file, one after another, never joined.

    Takes upper and lower case, U for T, IUPAC codes, and the line ends of all systems.

    Raises:
        TaskError: text before the first ``>``, or a character that is no base; names file and line.

    >>> member = Member(name="x", place="x", data=b">a b\\nacgu\\nRN\\n>c\\nA")
    >>> [(record.id, record.tokens_L.tolist()) for record in parse_fasta(member)]
    [('a', [0, 1, 2, 3, 4, 4]), ('c', [0])]
    """
    data = member.data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    start = len(data) - len(data.lstrip())
    if start == len(data):
        return
    if data[start : start + 1] != b">":
        line = data.count(b"\n", 0, start) + 1
        shown = data[start : start + 20].split(b"\n")[0].decode("ascii", "replace")
        raise TaskError(f"{member.place}: line {line}: FASTA starts with '>', not {shown!r}; add a header line")
    number = 0
    while start < len(data):
        number += 1
        following = data.find(b"\n>", start)
        end = len(data) if following < 0 else following + 1
        header_end = data.find(b"\n", start, end)
        header_end = end if header_end < 0 else header_end
        words = data[start + 1 : header_end].decode("utf-8", "replace").split()
        yield Record(
            id=words[0] if words else f"record {number}", tokens_L=_tokens(member.place, data, header_end, end)
        )
        start = end


def _tokens(place: str, data: bytes, start: int, end: int) -> TokenArray:
    def where(offset: int) -> str:
        line = data.count(b"\n", 0, start + offset) + 1
        return f"{place}: line {line}"

    return encode_bases(memoryview(data)[start:end], where)


def encode_bases(data: bytes | memoryview, where: Callable[[int], str]) -> TokenArray:
    """Bases to tokens; spaces and line ends are dropped.

    Raises :class:`TaskError` for a character that is no base; ``where`` names the place of its offset.
    """
    tokens_L = _TOKEN_OF_BYTE[np.frombuffer(data, dtype=np.uint8)]
    foreign = np.flatnonzero(tokens_L == _FOREIGN)
    if len(foreign):
        offset = int(foreign[0])
        character = bytes(data[offset : offset + 4]).decode("utf-8", "replace")[0]
        raise TaskError(
            f"{where(offset)}: {character!r} is not a base; allowed are ACGTU, N and the IUPAC codes "
            f"{_AMBIGUOUS}, in upper or lower case; remove it or name another file"
        )
    bases_L: TokenArray = tokens_L[tokens_L != _SPACE]
    return bases_L
