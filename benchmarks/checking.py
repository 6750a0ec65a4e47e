"""``seqbench check``: a third party's model before it is measured, put to the conformance suite."""

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.conformance import Factory, Finding

DEFAULT_VOCAB_SIZE = 16
MIN_WIDTH = 80


def run_check(spec: str, *, vocab_size: int = DEFAULT_VOCAB_SIZE, only: Sequence[str] = (), device: str = "cpu") -> int:
    """Check the model that ``spec`` names and print a table of what was found.

    Args:
        spec: ``path/to/file.py:factory``, an entry point, or a name that ``seqbench list models`` shows.
        vocab_size: what the factory is called with.
        only: names of checks; all, if empty.
        device: where the models run.

    Returns:
        0: every check passed or was skipped with a reason; 1: at least one failed; 2: no model could be built
        (the exception is named on stderr).

    Raises:
        ValueError: there is no such file, factory, name or check.
    """
    from models.conformance import BuildError, run_checks

    try:
        factory = _load(spec)
        findings = run_checks(factory, vocab_size=vocab_size, only=only, device=device)
    except BuildError as error:
        print(f"seqbench: model {spec!r} cannot be built: {error}", file=sys.stderr)
        return 2
    print(findings_table(findings, width=shutil.get_terminal_size((120, 24)).columns))
    return 1 if any(finding.status in ("failed", "error") for finding in findings) else 0


def _load(spec: str) -> "Factory":
    """The factory; what its file raises while it is imported becomes a BuildError."""
    from models import find_factory
    from models.conformance import BuildError
    from models.conformance.subject import describe_error

    try:
        factory = find_factory(spec)
    except ValueError:
        raise
    except Exception as error:
        raise BuildError(f"{describe_error(error)}, while its file was imported") from error
    if not callable(factory):
        raise ValueError(f"model {spec!r} is {type(factory).__name__}, and not a factory called with vocab_size=…")
    return factory


def findings_table(findings: Sequence["Finding"], *, width: int) -> str:
    """A row a check, its detail wrapped to ``width`` columns, and a summary line.

    Raises:
        ValueError: no findings.
    """
    if not findings:
        raise ValueError("there are no findings to tabulate; run at least one check")
    names = max(len("check"), *(len(finding.check) for finding in findings))
    results = max(len("result"), *(len(finding.status) for finding in findings))
    indent = names + results + 4
    lines = [f"{'check':{names}}  {'result':{results}}  detail"]
    for finding in findings:
        head = f"{finding.check:{names}}  {finding.status:{results}}  "
        room = max(width, MIN_WIDTH)
        detail = textwrap.fill(
            finding.detail, room, initial_indent=head, subsequent_indent=" " * indent, break_on_hyphens=False
        )
        lines.append(detail or head.rstrip())
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence["Finding"]) -> str:
    """``14 passed, 1 failed, 1 skipped in 1.2 s``."""
    counts = Counter(finding.status for finding in findings)
    parts = [f"{counts[status]} {status}" for status in ("passed", "failed", "error", "skipped") if counts[status]]
    return f"{', '.join(parts)} in {sum(finding.seconds for finding in findings):.1f} s"
