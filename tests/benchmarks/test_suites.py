"""Suites expand to what they say, and what they do not mean is an error that names the near miss."""

import pytest
import yaml

from benchmarks.suites import Selection, SuiteError, expand, load_suite, suite_names
from tests.benchmarks.conftest import SMALL_SUITE


def write(tmp_path, change=lambda content: None) -> str:
    content = yaml.safe_load(SMALL_SUITE)
    change(content)
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def trials_of(path: str, **selection):
    expanded = expand(load_suite(path), Selection(**selection), device="cpu", source_of={"induction_heads": {"a": 1}})
    return [item.trial for item in expanded]


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_load_and_expand(name):
    assert trials_of(name)


def test_a_suite_expands_to_every_combination_once(tmp_path):
    trials = trials_of(write(tmp_path))
    assert len(trials) == len(set(trials)) == 3 * 2 * 2 + 2
    training = [t for t in trials if t.kind == "training"]
    assert {t.model for t in training} == {"mamba-tiny", "s4d-tiny"}
    assert all(t.protocol["source"] == {"a": 1} and t.protocol["score_lengths"] == [64, 256] for t in training)


def test_selectors(tmp_path):
    path = write(tmp_path)
    assert {t.model for t in trials_of(path, models=("mamba",))} == {"mamba-tiny"}
    assert {t.kind for t in trials_of(path, tasks=("induction_heads",))} == {"training"}
    assert {t.seq_len for t in trials_of(path, lengths=(4096,)) if t.kind == "speed"} == {4096}
    assert {t.protocol["score_lengths"][-1] for t in trials_of(path, lengths=(512,)) if t.kind == "training"} == {512}
    assert sorted(t.seed for t in trials_of(path, tasks=("induction_heads",), models=("s4d",), seeds=(0, 1))) == [0, 1]


def test_a_users_own_model_runs_beside_or_instead(tmp_path):
    (tmp_path / "mine.py").write_text("def build(vocab_size):\n    ...\n")
    spec = f"{tmp_path}/mine.py:build"
    assert {t.model for t in trials_of(write(tmp_path), models=(spec,))} == {spec}
    assert {t.model for t in trials_of(write(tmp_path), models=("mamba", spec))} == {"mamba-tiny", spec}


def _set(key, value, entry=None):
    def change(content):
        (content if entry is None else content["trials"][entry])[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_set("trails", []), ["'trails'", "trials"]),
        (_set("lenghts", "1K", 0), ["lenghts", "lengths", "trials.0"]),
        (_set("models", ["mamba-tinny"], 0), ["mamba-tinny", "mamba-tiny", "trials[0]"]),
        (_set("tasks", ["induction_head"], 1), ["induction_head", "induction_heads"]),
        (_set("lengths", "8K..1K", 0), ["8K..1K", "runs backwards"]),
        (_set("batch", 0, 0), ["batch", "greater than 0"]),
        (_set("kind", "sped", 0), ["sped", "speed"]),
        (_set("steps", "many", 1), ["steps", "many"]),
    ],
)
def test_mistakes_name_the_place_and_the_fix(tmp_path, change, parts):
    with pytest.raises(SuiteError) as caught:
        load_suite(write(tmp_path, change))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("selection", "part"),
    [
        ({"tasks": ("languge",)}, "induction_heads"),
        ({"models": ("mambo",)}, "mamba"),
        ({"tasks": ("induction_heads",), "models": ("transformer",)}, "nothing in suite"),
    ],
)
def test_selections_that_match_nothing(tmp_path, selection, part):
    with pytest.raises(SuiteError, match=part):
        trials_of(write(tmp_path), **selection)


def test_unknown_suite_and_broken_yaml(tmp_path):
    with pytest.raises(SuiteError, match="quick"):
        load_suite("quik")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(SuiteError, match="not valid YAML"):
        load_suite(str(tmp_path / "broken.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(SuiteError, match="mapping"):
        load_suite(str(tmp_path / "list.yaml"))


def test_learning_rates_by_model(tmp_path):
    trials = trials_of(write(tmp_path, _set("lr", {"mamba": 0.5, "default": 0.25}, 1)))
    rates = {t.model: t.protocol["lr"] for t in trials if t.kind == "training"}
    assert rates == {"mamba-tiny": 0.5, "s4d-tiny": 0.25}
    with pytest.raises(SuiteError, match="s4d-tiny"):
        trials_of(write(tmp_path, _set("lr", {"mamba": 0.5}, 1)))
