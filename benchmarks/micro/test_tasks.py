"""Drawing a batch of every task: generators, and windows of the embedded samples."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.pieces import measure, micro_trial
from tasks import TASKS, ExampleStream, make_task

BATCH, SEQ_LEN = 64, 1024


@pytest.mark.parametrize("task_name", list(TASKS))
def test_draw(benchmark: BenchmarkFixture, task_name: str) -> None:
    task = make_task(task_name)
    trial = micro_trial("task_draw", seq_len=SEQ_LEN, batch=BATCH, task=task_name, protocol={"version": task.version})
    stream = ExampleStream(seed=trial.seed)
    measure(benchmark, trial, lambda: task.sample(stream, BATCH, SEQ_LEN))
