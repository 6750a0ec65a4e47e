"""Every way in which a measurement can end gets a status of its own, and the next one still runs."""

import os
import time

import pytest

from harness import Trial
from harness.supervisor import Outcome, Supervisor
from harness.worker import Limits


@pytest.fixture(scope="module")
def supervisor() -> Supervisor:
    return Supervisor("tests.harness.measurements:behave")


def trial_that(behaviour: str) -> Trial:
    return Trial(
        kind="speed", model="m", task=None, seq_len=64, batch=1, dtype="float32", direction="forward", device="cpu",
        seed=0, protocol={"behaviour": behaviour},
    )  # fmt: skip


def run(supervisor: Supervisor, behaviour: str, *, time_s: float = 30, address_space: int | None = None) -> Outcome:
    payload = {"trial": trial_that(behaviour).as_dict()}
    return supervisor.run(payload, Limits(time_s=time_s, address_space_bytes=address_space))


def test_success_keeps_partial_and_final_metrics(supervisor):
    outcome = run(supervisor, "succeed")
    assert outcome.status == "ok"
    assert outcome.metrics == {"params": 7, "latency_ms": [1.0, 2.0, 3.0]}
    assert outcome.backend == {"mixer": "test"}
    assert outcome.error is None


@pytest.mark.parametrize(
    ("behaviour", "status", "kind", "part"),
    [
        ("raise", "error", "ZeroDivisionError", "the message of the exception"),
        ("nan", "error", "NonFiniteLoss", "lower lr"),
        ("unsupported", "unsupported", "Unsupported", "no kernel"),
        ("wrong", "wrong", "WrongOutput", "differs"),
        ("kill_itself", "killed", "SIGKILL", "SIGKILL"),
        ("exit_silently", "error", "NoOutcome", "code 3"),
    ],
)
def test_failures_are_typed(supervisor, behaviour, status, kind, part):
    outcome = run(supervisor, behaviour)
    assert outcome.status == status
    assert outcome.error is not None
    assert outcome.error["type"] == kind
    assert part in outcome.error["message"]


def test_the_tail_of_stderr_is_kept(supervisor):
    outcome = run(supervisor, "print_to_stderr")
    assert outcome.error is not None
    assert "a line of diagnosis" in outcome.error["tail"]
    assert "told on stderr" in outcome.error["tail"]


def test_time_limit_kills_and_keeps_what_was_measured(supervisor):
    outcome = run(supervisor, "sleep", time_s=1.0)
    assert outcome.status == "timeout"
    assert outcome.metrics == {"params": 5}
    assert outcome.error is not None
    assert "1 s" in outcome.error["message"]
    assert outcome.wall_s < 10


def test_the_whole_process_group_is_killed(supervisor):
    outcome = run(supervisor, "ignore_termination_and_fork", time_s=1.5)
    assert outcome.status == "timeout"
    grandchild = outcome.metrics["grandchild"]
    for _ in range(100):
        if not _is_alive(grandchild):
            return
        time.sleep(0.05)
    pytest.fail(f"process {grandchild} outlived its group")


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_address_space_limit_is_out_of_memory(supervisor):
    outcome = run(supervisor, "allocate", address_space=6 * 2**30)
    assert outcome.status == "oom"
    assert run(supervisor, "succeed").status == "ok"


def test_every_run_has_a_fresh_process_and_group(supervisor):
    first, second = run(supervisor, "pid"), run(supervisor, "pid")
    assert first.metrics["pid"] != second.metrics["pid"]
    assert first.metrics["pid"] == first.metrics["group"]
    assert first.metrics["pid"] != os.getpid()
