"""A cache of the session's own, no data root unless a test asks for one, and the real data where they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tasks import Task, make_task

_BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data"
_NAMED = os.environ.get("SEQBENCH_DATA")


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SEQBENCH_DATA", raising=False)
        patch.delenv("SEQBENCH_DOWNLOAD", raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = Path(_NAMED) if _NAMED else _BESIDE_CHECKOUT
    if not root.is_dir():
        pytest.skip(f"no real data: neither SEQBENCH_DATA nor {_BESIDE_CHECKOUT}")
    return root


@pytest.fixture(scope="session")
def embedded_tasks() -> dict[str, Task]:
    """Every task with a cache of tasks made once: a task holds no state that a test could change."""
    from tasks import TASKS

    return {name: make_task(name) for name in TASKS}


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "fresh-cache"
    monkeypatch.setenv("SEQBENCH_CACHE", str(cache))
    return cache
