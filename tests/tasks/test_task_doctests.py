"""The worked examples in the tasks' docstrings."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import tasks

MODULES = [module.name for module in pkgutil.walk_packages(tasks.__path__, "tasks.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.failed == 0


def test_every_task_has_a_worked_example() -> None:
    for entry in tasks.TASKS.values():
        assert ">>>" in (entry.load().__doc__ or ""), entry.name
