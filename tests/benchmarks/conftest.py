"""A suite that runs in seconds, and the real command in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

SMALL_SUITE = """
name: small
description: a few seconds of everything
trials:
  - {kind: speed, level: operator, directions: [forward, train], models: [mamba-tiny, transformer-tiny, s4d-tiny],
     lengths: 1K..2K, time_limit_s: 60, sample_budget_s: 0.05}
  - {kind: training, tasks: [induction_heads], models: [mamba-tiny, s4d-tiny], seq_len: 64, batch: 4, steps: 3,
     lr: 1.0e-3, score_lengths: "64,256", score_tokens: 1024, min_examples: 2, time_limit_s: 60, threads: 1}
"""


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, an empty cache and no data but what is embedded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SEQBENCH_DATA", raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_SUITE)
    return path


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The command's environment: no data, and a cache of its own for everything but the compiled kernel."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SEQBENCH_")}
    return kept | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def seqbench(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``seqbench WORDS`` in an empty folder."""

    def run(*words: object, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks", *map(str, words)],
            capture_output=True, text=True, timeout=timeout, cwd=tmp_path, env=environment | variables, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def seqbench_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``seqbench``, in this process: only the first run has to import PyTorch where trials are forked."""
    from benchmarks.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        said = capfd.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return run
