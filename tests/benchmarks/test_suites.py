"""Suites expand to what they say, and what they do not mean is an error that names the near miss."""

import hashlib

import pytest
import yaml

from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import SuiteError, load_suite, suite_names
from harness.trials import canonical_json
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


def test_a_model_of_one_entry_does_not_join_the_others():
    def chosen(name):
        trials = [
            item.trial for item in expand(load_suite("speed"), Selection(models=(name,)), device="cuda", source_of={})
        ]
        return {(t.kind, t.protocol.get("level")) for t in trials if t.model == name}

    assert chosen("mamba-130m") == {("speed", "block"), ("speed", "model")}
    assert chosen("mamba-370m") == {("speed", "block"), ("speed", "model"), ("generation", None)}  # a guest


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
    with pytest.raises(SuiteError, match=r"absent\.yaml is no file.*by name: .*quick"):
        load_suite(str(tmp_path / "absent.yaml"))
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


def test_time_limits_by_family_and_operator():
    limits = {
        item.trial.model: item.time_limit_s
        for item in expand(load_suite("speed"), Selection(), device="cuda", source_of={})
        if (item.trial.direction, item.trial.seq_len) == ("train", 2**16) and item.trial.protocol["level"] != "model"
    }
    assert {name: limits[name] for name in ("ssd", "mamba2-130m", "attention")} == {
        "ssd": 40,
        "mamba2-130m": 40,
        "attention": 20,
    }


@pytest.mark.parametrize(
    ("device", "digest"),
    [
        ("cpu", "db168194ab23f1723bb68f4ccd0fccbc46e85b4f436c18c3c6693c600d48619f"),
        ("cuda", "d557c4fbe2976b2ea44443064b9766bb66383c73056fe6a867e13822cc2c8115"),
    ],
)
def test_quick_means_the_trials_that_its_committed_records_are_of(device, digest):
    """What `quick` expands to is a contract with baselines: change the digest only with them."""
    trials = [item.trial.as_dict() for item in expand(load_suite("quick"), Selection(), device=device, source_of={})]
    assert hashlib.sha256(canonical_json(trials).encode()).hexdigest() == digest


def test_a_training_names_what_differs_from_the_first_protocol(tmp_path):
    def training(device, **chosen):
        path = write(tmp_path, lambda content: content["trials"][1].update(chosen))
        expanded = expand(load_suite(path), Selection(), device=device, source_of={})
        return next(item.trial for item in expanded if item.trial.kind == "training").protocol

    first = training("cuda")
    assert first["optimizer"] == "adamw"
    chosen = {"curve_every": 2, "validation_examples": 32, "threshold": 0.9, "tf32": False, "seeds_together": 3}
    assert training("cuda", optimizer="adam", **chosen) == first | chosen | {"optimizer": "adam"}
    on_cpu = training("cpu", **chosen)
    assert on_cpu["curve_every"] == 2
    assert not {"tf32", "seeds_together"} & on_cpu.keys(), "a CPU has neither"


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        ({"optimizer": "adam", "weight_decay": 0.1}, "adamw"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"validation_examples": 0}, "validation_examples"),
        ({"optimizer": "sgd"}, "optimizer"),
    ],
)
def test_training_choices_that_make_no_sense(tmp_path, chosen, part):
    with pytest.raises(SuiteError, match=part):
        load_suite(write(tmp_path, lambda content: content["trials"][1].update(chosen)))


OPERATOR = {
    "kind": "speed", "level": "operator", "operators": ["ssd", "attention_flash"], "width": 128,
    "directions": ["forward"], "lengths": "1K..4K",
}  # fmt: skip
GENERATION = {
    "kind": "generation", "models": ["mamba-tiny"], "loops": ["eager", "cuda_graph"], "batches": [0, 1, 4],
    "prompt": "1K", "new_tokens": 8,
}  # fmt: skip


def entries(*given):
    def change(content):
        content["trials"] = list(given)

    return change


def test_operators_by_name_carry_their_sizes(tmp_path):
    trials = trials_of(write(tmp_path, entries(OPERATOR)))
    assert [(t.model, t.seq_len) for t in trials][:3] == [("ssd", 1024), ("ssd", 2048), ("ssd", 4096)]
    sizes = {"level": "operator", "width": 128, "d_state": 16, "head_dim": 64, "sample_budget_s": 1.0}
    assert all(t.protocol == sizes for t in trials)


def test_constant_tokens_leave_longer_lengths_out(tmp_path):
    trials = trials_of(write(tmp_path, entries(OPERATOR | {"tokens": "2K", "operators": ["ssd"]})))
    assert {(t.seq_len, t.batch, t.protocol["tokens"]) for t in trials} == {(1024, 2, 2048), (2048, 1, 2048)}
    trials = trials_of(write(tmp_path, entries(OPERATOR | {"batches": [1, 8], "operators": ["ssd"]})))
    assert [t.batch for t in trials] == [1, 8] * 3


def test_one_file_serves_two_devices(tmp_path):
    path = write(tmp_path, entries(OPERATOR | {"devices": ["cuda"]}, OPERATOR | {"devices": ["cpu"], "width": 64}))
    for device, width, dtype in (("cpu", 64, "float32"), ("cuda", 128, "bfloat16")):
        trials = [i.trial for i in expand(load_suite(path), Selection(), device=device, source_of={})]
        assert {(t.protocol["width"], t.dtype, t.device) for t in trials} == {(width, dtype, device)}
    with pytest.raises(SuiteError, match="nothing in suite"):
        trials_of(write(tmp_path, entries(OPERATOR | {"devices": ["cuda"]})))


def test_generation_expands_loops_and_batches(tmp_path):
    trials = trials_of(write(tmp_path, entries(GENERATION)))
    assert [(t.protocol["loop"], t.batch) for t in trials] == [
        (x, b) for x in ("eager", "cuda_graph") for b in (0, 1, 4)
    ]
    assert {(t.kind, t.seq_len, t.direction, t.task) for t in trials} == {("generation", 1024, "forward", None)}
    assert "B=most" in str(trials[0])


def test_selectors_reach_operators_and_spare_ceilings(tmp_path):
    ceiling = {"kind": "speed", "level": "ceiling", "models": ["copy"], "directions": ["forward"], "lengths": "64K"}
    path = write(tmp_path, entries(OPERATOR, ceiling, GENERATION))
    assert {t.model for t in trials_of(path, models=("ssd",))} == {"ssd"}
    assert {t.model for t in trials_of(path, models=("mamba",))} == {"mamba-tiny"}
    by_length = trials_of(path, lengths=(2048,))
    assert {t.seq_len for t in by_length if t.model == "copy"} == {2**16}
    assert {t.seq_len for t in by_length if t.model != "copy"} == {2048}


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        (OPERATOR | {"operators": ["sdd"]}, ["sdd", "ssd", "trials[0]"]),
        (OPERATOR | {"operators": []}, ["either models or operators"]),
        (OPERATOR | {"models": ["mamba-tiny"]}, ["either models or operators"]),
        (OPERATOR | {"level": "block"}, ["level: operator", "block"]),
        (OPERATOR | {"width": 100}, ["width=100", "head_dim=64"]),
        (OPERATOR | {"batch": 2, "tokens": "2K"}, ["batch and tokens exclude"]),
        (OPERATOR | {"device": ["cpu"]}, ["'trials.0.device'", "devices"]),
        (OPERATOR | {"operators": [], "models": ["mamba-tiny"]}, ["width", "a model has its own"]),
        ({"kind": "speed", "level": "ceiling", "models": ["cpy"], "directions": ["forward"], "lengths": "1K"},
         ["unknown ceiling 'cpy'", "copy"]),
        ({"kind": "speed", "level": "ceiling", "models": ["copy"], "directions": ["train"], "lengths": "1K"},
         ["ceiling has direction forward"]),
        (GENERATION | {"loops": ["transformers"]}, ["transformers", "mamba-tiny", "gpt_neox"]),
        (GENERATION | {"models": ["gpt_neox-1.4b"]}, ["eager", "gpt_neox-1.4b"]),
        (GENERATION | {"models": ["mambo-tiny"]}, ["mambo-tiny", "mamba-tiny"]),
        (GENERATION | {"new_token": 8}, ["new_token", "new_tokens"]),
        (GENERATION | {"batches": [-1]}, ["batches", "greater than or equal to 0"]),
    ],
)  # fmt: skip
def test_mistakes_in_new_entries_name_the_place_and_the_fix(tmp_path, entry, parts):
    with pytest.raises(SuiteError) as caught:
        load_suite(write(tmp_path, entries(entry)))
    for part in parts:
        assert part in str(caught.value)
