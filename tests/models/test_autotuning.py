"""Choices of an autotuner survive the process that made them; nothing here needs Triton."""

import json
import sys
import types
from dataclasses import dataclass, field

import pytest

from models.ops import autotuning


@dataclass(frozen=True)
class Config:
    block: int

    def __str__(self):
        return f"BLOCK: {self.block}"


@dataclass(eq=False)
class Kernel:
    configs: list = field(default_factory=lambda: [Config(16), Config(32)])
    cache: dict = field(default_factory=dict)
    fn: object = None


@pytest.fixture
def kernel(monkeypatch):
    module = types.ModuleType(f"{autotuning.PACKAGE}.ssd_test")
    module.kernel = module.same_kernel = Kernel()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.kernel


def test_a_later_process_takes_over_what_an_earlier_one_chose(kernel, tmp_path):
    path = tmp_path / "cache" / "choices.json"
    key = (64, 128, "torch.bfloat16")
    with autotuning.choices_remembered(path) as taken:
        assert not taken
        kernel.cache[key] = kernel.configs[1]
    kernel.cache = {}
    with autotuning.choices_remembered(path) as taken:
        assert taken
        assert kernel.cache == {key: kernel.configs[1]}
        kernel.cache[(1,)] = kernel.configs[0]
    kernel.cache = {}
    with autotuning.choices_remembered(path):
        assert kernel.cache == {key: kernel.configs[1], (1,): kernel.configs[0]}


def test_a_shipped_choice_holds_until_the_machine_has_made_its_own(kernel, tmp_path, monkeypatch):
    monkeypatch.setattr(autotuning, "SHIPPED", tmp_path / "shipped")
    name = f"{autotuning.PACKAGE}.ssd_test.kernel"
    autotuning.write_choices(tmp_path / "shipped/gpu.json", {name: [([64], "BLOCK: 16"), ([1], "BLOCK: 16")]})
    autotuning.write_choices(tmp_path / "cache/gpu.json", {name: [([64], "BLOCK: 32")]})
    for file, chosen in (("gpu.json", {(64,): kernel.configs[1], (1,): kernel.configs[0]}), ("other.json", {})):
        kernel.cache = {}
        with autotuning.choices_remembered(tmp_path / "cache" / file) as taken:
            assert taken == bool(chosen)
            assert kernel.cache == chosen


def test_another_choice_for_the_same_key_replaces_the_first(kernel, tmp_path):
    path = tmp_path / "choices.json"
    for config in kernel.configs:
        kernel.cache = {(64,): config}
        autotuning.write_choices(path, autotuning.choices(autotuning.autotuned_kernels()))
    (entries,) = json.loads(path.read_text()).values()
    assert entries == [[[64], "BLOCK: 32"]]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', '{"a": [1]}'])
def test_a_file_that_is_no_list_of_choices_counts_as_empty(kernel, tmp_path, content):
    path = tmp_path / "choices.json"
    path.write_text(content)
    with autotuning.choices_remembered(path) as taken:
        assert not taken
        assert kernel.cache == {}


def test_a_configuration_that_a_kernel_no_longer_has_is_passed_over(kernel):
    name = f"{autotuning.PACKAGE}.ssd_test.kernel"
    assert not autotuning.take_over({name: kernel}, {name: [([64], "BLOCK: 512")]})
    assert kernel.cache == {}


def test_a_folder_that_cannot_be_written_costs_time_only(kernel, tmp_path):
    (tmp_path / "file").write_text("")
    with autotuning.choices_remembered(tmp_path / "file" / "choices.json") as taken:
        kernel.cache[(64,)] = kernel.configs[0]
    assert not taken
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
