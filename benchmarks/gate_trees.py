"""Two commits checked out side by side, each with an environment that can run it.

The working tree becomes a commit of its own for that (through a temporary index; branches and the real index stay as
they are), so that both sides are equally far from whatever lies about in a checkout.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKING_TREE = "working tree"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INSTALL_LIMIT_S = 3600


class TreeError(ValueError):
    """A side cannot be checked out, installed or run. The message says which, and the fix."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One side: a checkout, and the Python that runs it."""

    side: str
    """``base`` or ``candidate``."""
    label: str
    """What the command line called it, with its commit."""
    path: Path
    python: Path

    def environment(self) -> dict[str, str]:
        """Variables of its processes: its own packages first, one thread."""
        own = {"PYTHONPATH": str(self.path), **dict.fromkeys(_THREAD_VARIABLES, "1")}
        return {**os.environ, **own}


@contextmanager
def two_trees(base: str, candidate: str) -> Iterator[tuple[Tree, Tree, list[str]]]:
    """Base, candidate, and what a reader must know of how they run. Refs, or :data:`WORKING_TREE`.

    The folders' names are equally long, since the length of a path moves a process's stack.

    Raises:
        TreeError: no repository, no such ref, or an environment that cannot be installed.
    """
    root = repository_root()
    commits = {"base": _commit_of(root, base), "candidate": _commit_of(root, candidate)}
    labels = {"base": base, "candidate": candidate}
    with tempfile.TemporaryDirectory(prefix="seqbench-gate-") as folder:
        paths = {"base": Path(folder, "a"), "candidate": Path(folder, "b")}
        try:
            for side, path in paths.items():
                _git(root, "worktree", "add", "--quiet", "--detach", str(path), commits[side])
            pythons, note = _environments(paths)
            base_tree, candidate_tree = (
                Tree(side=s, label=f"{labels[s]} ({commits[s][:10]})", path=paths[s], python=pythons[s]) for s in paths
            )
            yield base_tree, candidate_tree, [note]
        finally:
            for path in paths.values():
                shutil.rmtree(path, ignore_errors=True)
            _git(root, "worktree", "prune")


def repository_root() -> Path:
    """The checkout that the current folder is in. Raises TreeError outside of one."""
    try:
        return Path(_git(Path.cwd(), "rev-parse", "--show-toplevel"))
    except TreeError as error:
        raise TreeError(f"{Path.cwd()} is in no git repository, so that no ref can be checked out there") from error


def is_ref(text: str) -> bool:
    """Whether git knows a commit by this name here."""
    try:
        return bool(text) and bool(_commit_of(Path.cwd(), text))
    except TreeError:
        return False


def _commit_of(root: Path, ref: str) -> str:
    if ref == WORKING_TREE:
        return _snapshot(root)
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except TreeError as error:
        raise TreeError(
            f"{ref!r} is no git ref here; fetch it first (git fetch origin main, then origin/main)"
        ) from error


def _snapshot(root: Path) -> str:
    """A commit of the working tree as it is, with files that git does not know and does not ignore."""
    with tempfile.TemporaryDirectory(prefix="seqbench-index-") as folder:
        variables = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        head = _git(root, "rev-parse", "HEAD")
        _git(root, "read-tree", head, variables=variables)
        _git(root, "add", "--all", variables=variables)
        tree = _git(root, "write-tree", variables=variables)
    identity = {f"GIT_{who}_{what}": "seqbench" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return _git(root, "commit-tree", tree, "-p", head, "-m", "working tree", variables=identity)


def _git(folder: Path, *words: str, variables: dict[str, str] | None = None) -> str:
    """What git prints. Raises TreeError with its complaint."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, check=False, timeout=600, env={**os.environ, **(variables or {})},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise TreeError("git is not installed, and refs cannot be checked out without it") from error
    if result.returncode:
        raise TreeError(f"git {' '.join(words[:2])} failed: {result.stderr.strip()}")
    return result.stdout.strip()


def _environments(paths: dict[str, Path]) -> tuple[dict[str, Path], str]:
    """The Python of each side, and a sentence about it."""
    asked = {side: dependencies(path) for side, path in paths.items()}
    if asked["base"] == asked["candidate"]:
        shared = f"both sides run in {sys.prefix}: they ask for the same dependencies"
        return dict.fromkeys(paths, Path(sys.executable)), shared
    pythons = {side: _install(path, path.with_name(f"venv-{path.name}")) for side, path in paths.items()}
    return pythons, "each side runs in an environment of its own, installed anew: they ask for other dependencies"


def dependencies(tree: Path) -> dict[str, Any]:
    """What an installation of a tree depends on; equal for trees that one environment serves."""
    project: dict[str, Any] = {}
    if (path := tree / "pyproject.toml").exists():
        project = tomllib.loads(path.read_text()).get("project", {})
    constraints = tree / "constraints.txt"
    names = ("requires-python", "dependencies", "optional-dependencies")
    return {
        **{name: project.get(name) for name in names},
        "constraints": constraints.read_text() if constraints.exists() else None,
    }


def _install(tree: Path, venv: Path) -> Path:
    python = venv / "bin" / "python"
    constraints = ["-c", str(tree / "constraints.txt")] if (tree / "constraints.txt").exists() else []
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(venv)], [*pip, *constraints, "-e", str(tree)]):
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_LIMIT_S)
        if result.returncode:
            tail = "\n".join(result.stderr.splitlines()[-10:])
            raise TreeError(f"the environment of {tree.name} cannot be installed:\n{tail}")
    return python
