"""Every way in which a measurement can end gets a status of its own, and the next one still runs."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from harness import Trial
from harness.supervisor import Outcome, Supervisor
from harness.worker import Limits

TARGET = "tests.harness.measurements:behave"


@pytest.fixture(scope="module")
def supervisor() -> Supervisor:
    return Supervisor(TARGET)


def trial_that(behaviour: str) -> Trial:
    return Trial(
        kind="speed", model="m", task=None, seq_len=64, batch=1, dtype="float32", direction="forward", device="cpu",
        seed=0, protocol={"behaviour": behaviour},
    )  # fmt: skip


def run(
    supervisor: Supervisor,
    behaviour: str,
    *,
    time_s: float = 30,
    address_space: int | None = None,
    whole_device: bool = False,
) -> Outcome:
    payload = {"trial": trial_that(behaviour).as_dict()}
    limits = Limits(time_s=time_s, address_space_bytes=address_space, whole_device=whole_device)
    return supervisor.run(payload, limits)


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


@pytest.fixture
def prepared() -> Iterator[Callable[[str], Supervisor]]:
    """Supervisors whose next process warms up meanwhile."""
    made: list[Supervisor] = []

    def make(warm_up: str) -> Supervisor:
        made.append(Supervisor(TARGET, warm_up=f"tests.harness.measurements:{warm_up}", little_bytes=2**32))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.close()


def test_the_next_process_warms_up_meanwhile_and_nobody_reports_before_it_has(prepared):
    supervisor = prepared("warm_up")
    first, second, third = (run(supervisor, "times").metrics for _ in range(3))
    assert first["warmed_at"] is None  # nobody was there to wait for
    assert first["began"] < second["warmed_at"] < first["alone_from"]
    assert second["began"] < third["warmed_at"] < second["alone_from"]


def test_nobody_leaves_or_gets_ready_beside_who_needs_the_whole_device(prepared):
    supervisor = prepared("warm_up")
    leaving = run(supervisor, "leave_slowly").metrics["pid"]
    assert _is_alive(leaving)
    run(supervisor, "times", whole_device=True)
    assert not supervisor._running and not _is_alive(leaving)
    first, second = (run(supervisor, "times").metrics for _ in range(2))
    assert first["warmed_at"] is None
    assert first["began"] < second["warmed_at"]


def test_who_held_little_leaves_while_the_next_one_prepares_and_is_gone_before_it_reports(prepared):
    supervisor = prepared("warm_up")
    leaving = run(supervisor, "leave_slowly").metrics["pid"]
    assert _is_alive(leaving)
    assert run(supervisor, "times").status == "ok"
    assert not _is_alive(leaving)
    last = run(supervisor, "leave_slowly").metrics["pid"]
    supervisor.close()
    assert not _is_alive(last)
    assert not supervisor._running


def test_who_held_much_is_gone_before_the_next_one_begins(prepared):
    supervisor = prepared("warm_up")
    assert not _is_alive(run(supervisor, "leave_slowly_with_much").metrics["pid"])


def test_a_process_that_dies_warming_up_is_replaced_by_a_cold_one(prepared):
    supervisor = prepared("warm_up_that_fails")
    assert [run(supervisor, "succeed").status for _ in range(3)] == ["ok"] * 3


def test_a_process_that_waits_in_vain_is_ended(prepared):
    supervisor = prepared("warm_up")
    run(supervisor, "succeed")
    (waiting,) = supervisor._running
    supervisor.close()
    assert not _is_alive(waiting)
    assert run(supervisor, "succeed").status == "ok"
