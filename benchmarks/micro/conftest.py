"""One thread, embedded data and caches of the session's own; the environment goes into the JSON."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.micro.pieces import ROOT
from harness.environment import fingerprint


@pytest.fixture(scope="session", autouse=True)
def _same_conditions() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SEQBENCH_DATA", "SEQBENCH_DOWNLOAD"):
            patch.delenv(name, raising=False)
        yield
    torch.set_num_threads(threads)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """The suite's own fingerprint: the gate compares times of like machines only."""
    env_id, environment = fingerprint(ROOT, device="cpu", num_threads=1)
    machine_info["seqbench"] = {"env_id": env_id, "environment": environment}
