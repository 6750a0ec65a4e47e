"""The version of the code that a trial uses: a digest that comments and docstrings do not change."""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

_SUFFIXES = {".py", ".cpp"}


def code_version(paths: Iterable[Path]) -> str:
    """16 hex digits over the Python and C++ sources among ``paths`` (files, or folders recursively)."""
    files = sorted({file for path in paths for file in _sources(path)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(_file_digest(file, file.stat().st_mtime_ns))
    return digest.hexdigest()[:16]


def _sources(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return (file for file in path.rglob("*") if file.suffix in _SUFFIXES)


@functools.lru_cache(maxsize=1024)
def _file_digest(file: Path, _mtime_ns: int) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".py":
        tree = ast.parse(content)
        for node in ast.walk(tree):
            _drop_docstring(node)
        content = ast.dump(tree).encode()
    return hashlib.sha256(file.name.encode() + b"\0" + content).digest()


def _drop_docstring(node: ast.AST) -> None:
    """Expression statements that are bare strings have no effect: docstrings, and notes below names."""
    body = getattr(node, "body", None)
    if isinstance(body, list):
        node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
