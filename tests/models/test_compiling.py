"""Compilation ahead: who is killed, what is noted, and that the shares are the whole."""

import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

from models.ops import compiling
from models.ops.compiling import TooLong, compile_share, limit_s, run_within, why_not_compiled


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(compiling, "MAX_CHILDREN", 2)
    why_not_compiled.cache_clear()
    yield
    why_not_compiled.cache_clear()


def shell(script: str) -> tuple[str, ...]:
    """Its ``$1`` and ``$2`` are the share, and empty in the last child."""
    return "sh", "-c", script, "sh"


def asked_again(command: tuple[str, ...], *key: str) -> str:
    """As a process that starts later."""
    why_not_compiled.cache_clear()
    return why_not_compiled(command, key)


def test_at_the_limit_all_are_killed_with_their_children(tmp_path):
    mark = tmp_path / "alive"
    start = time.monotonic()
    with pytest.raises(TooLong, match=r"more than 0.5 s"):
        run_within([["true"], *[list(shell(f"(sleep 1.5; touch {mark}) & sleep 60"))] * 2], 0.5)
    time.sleep(max(0.0, 2.0 - (time.monotonic() - start)))
    assert not mark.exists()


def test_a_failure_says_why_and_leaves_the_others_alone():
    outcomes = run_within([[sys.executable, "-c", ""], list(shell("echo no such kernel >&2; exit 3")), ["true"]], 60)
    assert outcomes == [(0, ""), (3, "no such kernel"), (0, "")]


def test_shares_may_fail_but_the_last_child_must_not(tmp_path, capsys):
    log = tmp_path / "log"
    only_whole = shell(f'echo "$1/$2" >> {log}; test -z "$1" || {{ echo no room >&2; exit 5; }}')
    assert asked_again(only_whole) == ""
    assert "ended early, the first with exit status 5: no room" in capsys.readouterr().err
    shares = min(2, len(os.sched_getaffinity(0)))
    assert sorted(log.read_text().split()) == ["/", *(f"{i}/{shares}" for i in range(shares))]
    only_shares = shell('test -n "$1" || { echo out of memory >&2; exit 1; }')
    assert asked_again(only_shares) == "compiling its kernels failed with exit status 1: out of memory"


def test_what_was_left_out_is_compiled_once_the_choices_are_made(tmp_path):
    log = tmp_path / "log"
    waits = shell(f'echo "${{1:-run}}" >> {log}; test -z "$1" || grep -q run {log} || exit {compiling.LEFT_OUT}')
    assert asked_again(waits) == ""
    shares = [str(i) for i in range(min(2, len(os.sched_getaffinity(0))))]
    assert sorted(log.read_text().split()) == sorted([*shares, "run", *shares])


@pytest.mark.parametrize(("of_the_first", "ran"), [(compiling.ALL_CHOSEN, False), (0, True), (3, True)])
def test_where_all_choices_are_known_nothing_is_run(tmp_path, of_the_first, ran):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two shares")
    log = tmp_path / "log"
    script = f'echo "${{1:-run}}" >> {log}; case "$1" in 0) exit {of_the_first};; 1) exit {compiling.ALL_CHOSEN};; esac'
    assert asked_again(shell(script)) == ""
    assert ("run" in log.read_text().split()) is ran


def test_what_is_done_is_not_done_again_unless_a_version_changes(tmp_path):
    log = tmp_path / "log"
    command = shell(f"echo >> {log}")
    counts = []
    for key in ("triton 1", "triton 1", "triton 2"):
        assert asked_again(command, key) == ""
        counts.append(log.read_text().count("\n"))
    assert counts[0] == counts[1] < counts[2]


def test_a_failure_is_tried_again_by_the_next_process_only(tmp_path):
    mark = tmp_path / "mark"
    command = shell(f"test -e {mark}")
    assert "exit status 1" in asked_again(command)
    mark.touch()
    assert "exit status 1" in why_not_compiled(command, ())
    assert asked_again(command) == ""


def test_nobody_waits_for_the_same_limit_twice(tmp_path, monkeypatch):
    log, mark = tmp_path / "log", tmp_path / "mark"
    command = shell(f"echo >> {log}; test -e {mark} || sleep 60")
    monkeypatch.setenv(compiling.LIMIT_VARIABLE, "0.5")
    assert asked_again(command).startswith("compiling its kernels took more than 0.5 s now; set SEQBENCH_COMPILE")
    tried = log.read_text()
    assert "more than 0.5 s earlier" in asked_again(command)
    monkeypatch.setenv(compiling.LIMIT_VARIABLE, "0.25")
    assert "more than 0.5 s earlier" in asked_again(command)
    assert log.read_text() == tried
    mark.touch()
    monkeypatch.setenv(compiling.LIMIT_VARIABLE, "60")
    assert asked_again(command) == ""
    monkeypatch.setenv(compiling.LIMIT_VARIABLE, "0.25")
    assert asked_again(command) == ""


def test_a_torn_note_is_no_note(tmp_path):
    asked_again(shell("true"))
    (note,) = (tmp_path / "triton").iterdir()
    note.write_text('{"don')
    assert asked_again(shell("true")) == ""
    assert json.loads(note.read_text()) == {"done": True}


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_limit_must_be_a_number(text, monkeypatch):
    monkeypatch.setenv(compiling.LIMIT_VARIABLE, text)
    with pytest.raises(ValueError, match=f"SEQBENCH_COMPILE_LIMIT_S='{text}'"):
        limit_s()


class Config:
    """What is used of ``triton.Config``."""

    def __init__(self, num_warps: int) -> None:
        self.num_warps = num_warps

    def all_kwargs(self) -> dict[str, int]:
        return {"num_warps": self.num_warps}


class Compiled:
    """What a kernel's ``warmup`` returns: its launcher is built when it is asked for."""

    def __init__(self, built: list[int], num_warps: int) -> None:
        self.built, self.num_warps = built, num_warps

    @property
    def run(self) -> None:
        self.built.append(self.num_warps)


class Autotuned:
    """As a kernel under ``@triton.autotune``; the configuration of four warps does not compile."""

    arg_names = ("x", "size", "batch", "BLOCK", "num_warps")
    keys = ("size",)

    def __init__(self, num_configs: int) -> None:
        self.configs = [Config(n) for n in range(num_configs)]
        self.cache: dict[tuple[int, ...], Config] = {}
        self.compiled: list[int] = []
        self.launchers: list[int] = []
        self.fn = SimpleNamespace(warmup=self.warmup)

    def warmup(self, x: str, size: int, batch: int, *, grid: tuple[int], BLOCK: int, num_warps: int) -> Compiled:
        assert (x, grid, BLOCK) == ("x", (1,), 64)
        if num_warps == 4:
            raise RuntimeError("out of registers")
        self.compiled.append(num_warps)
        return Compiled(self.launchers, num_warps)

    def run(self, *args: object, **options: object) -> None:
        raise AssertionError("launched")

    def __getitem__(self, grid: tuple[int]):
        return lambda *args, **options: self.run(*args, grid=grid, warmup=False, **options)


def shares_of(num_children: int, calls: list[tuple[int, int]], chosen: dict[tuple[int, ...], Config]):
    """What each child compiles of a kernel of nine configurations and one of two, when each is called so."""
    shares, left_out, all_chosen = [], set(), set()
    for i in range(num_children):
        kernels = [Autotuned(size) for size in (9, 2)]
        for kernel in kernels:
            kernel.cache = chosen
        share = compile_share(kernels, i, num_children)
        for kernel in kernels:
            for size, batch in calls:
                kernel[(1,)]("x", size, batch, BLOCK=64)
        shares.append([kernel.compiled for kernel in kernels])
        assert all(kernel.launchers == kernel.compiled for kernel in kernels)
        left_out.add(share.left_out)
        all_chosen.add(share.all_chosen)
    assert all_chosen == {bool(chosen)}
    assert left_out == {not chosen and len({batch for _, batch in calls}) > 1}
    return shares


@pytest.mark.parametrize("chosen", [{}, {(128,): Config(7)}])
def test_a_caller_may_ask_which_configuration_ran(chosen):
    kernel = Autotuned(3)
    kernel.cache = chosen
    compile_share([kernel], 0, 1)
    kernel[(1,)]("x", 128, 1, BLOCK=64)
    assert kernel.best_config is (chosen[128,] if chosen else kernel.configs[0])


@pytest.mark.parametrize("num_children", [1, 2, 5, 12])
def test_shares_are_all_configurations_once_and_launch_nothing(num_children, capsys):
    shares = shares_of(num_children, [(128, 1)], {})
    assert sorted(config for nine, _ in shares for config in nine) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert sorted(config for _, two in shares for config in two) == [0, 1]
    assert "out of registers" in capsys.readouterr().err
    counts = [len(nine) + len(two) for nine, two in shares]
    assert max(counts) - min(counts) <= 2  # one of the eleven does not compile


def test_where_the_choice_is_known_it_alone_is_compiled_for_each_kind_of_shape():
    calls = [(128, 1), (128, 8), (128, 32), (128, 24), (128, 1)]  # 8 and 24 are one kind: Triton compiles them once
    shares = shares_of(2, calls, {(128,): Config(7)})
    # Three kinds, dealt out in turn; what is met again goes to the same child.
    assert [nine for nine, _ in shares] == [[7, 7, 7], [7, 7]]


def test_until_the_choice_is_known_one_shape_is_compiled_in_all_configurations():
    shares = shares_of(3, [(128, 1), (128, 8), (128, 32)], {})
    assert sorted(config for nine, _ in shares for config in nine) == [0, 1, 2, 3, 5, 6, 7, 8]
