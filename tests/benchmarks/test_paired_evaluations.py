"""Two evaluations compared item by item, from the records and outcomes that they leave behind."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from benchmarks.evaluation.paired import NATS, ComparisonError, compare, compare_records, main, read_evaluations


def write_evaluation(
    folder: Path,
    model: str,
    task: str,
    items: list[dict[str, Any]],
    *,
    started_at: str = "2025-01-01T00:00:00+00:00",
    checkpoint: str = "c0",
) -> None:
    """A record and its outcomes as `seqbench eval` writes them."""
    trial_id = f"{model}-{task}-{started_at}".encode().hex()[:64]
    (folder / "items").mkdir(parents=True, exist_ok=True)
    (folder / "items" / f"{trial_id}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    source = {"name": f"{task}.jsonl", "kind": "files", "sha256": "ab" * 32, "note": ""}
    protocol = {"source": source, "checkpoint": {"sha256": checkpoint * 32}}
    record = {
        "schema": 1, "trial_id": trial_id, "status": "ok", "env_id": "x", "started_at": started_at, "wall_s": 1.0,
        "trial": {"kind": "eval", "model": model, "task": task, "protocol": protocol},
        "metrics": {"items": f"items/{trial_id}.jsonl"}, "backend": {},
    }  # fmt: skip
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def choices(outcomes: list[int], **more: list[int]) -> list[dict[str, Any]]:
    return [
        {"doc_id": i, "doc_hash": f"hash {i}", "gold": 0, "loglikelihood": [-1.0, -2.0], "acc": outcome,
         **{name: values[i] for name, values in more.items()}}
        for i, outcome in enumerate(outcomes)
    ]  # fmt: skip


def words(nats: list[float]) -> list[dict[str, Any]]:
    return [
        {"doc_id": i, "doc_hash": f"hash {i}", "gold": 0, "loglikelihood": [value], "acc": int(value > -1)}
        for i, value in enumerate(nats)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a, b = [1] * 30 + [0] * 10, [1] * 18 + [0] * 20 + [1] * 2
    write_evaluation(tmp_path, "one", "piqa", choices(a, acc_norm=b))
    write_evaluation(tmp_path, "other", "piqa", choices(b, acc_norm=b))
    write_evaluation(tmp_path, "one", "lambada_openai", words([-0.5, -1.5, -2.5, -3.0]))
    write_evaluation(tmp_path, "other", "lambada_openai", words([-1.0, -2.0, -3.0, -3.5]))
    write_evaluation(tmp_path, "other", "copa", choices([1, 0]))
    return tmp_path


def test_every_metric_of_every_task_in_both_is_compared(folder: Path):
    a, b, found = compare_records(folder, folder, ["one", "other"])
    assert (a, b) == ("one", "other")
    assert [(c.task, c.metric) for c in found] == [
        ("piqa", "acc"), ("piqa", "acc_norm"), ("piqa", NATS),
        ("lambada_openai", "acc"), ("lambada_openai", "perplexity"), ("lambada_openai", NATS),
    ]  # fmt: skip
    acc, acc_norm, answer, _, perplexity, word = found
    assert acc.test is not None and (acc.test.only_a, acc.test.only_b) == (12, 2)
    assert acc.test.p == pytest.approx(binomtest(2, 14, 0.5).pvalue)
    assert acc.difference.value == pytest.approx(10 / 40) and acc.difference.low > 0
    assert acc_norm.difference.value == 0 and acc_norm.test is not None and acc_norm.test.p == 1
    assert (answer.a, answer.b, answer.difference.value) == (1.0, 1.0, 0.0), "the right answer's, not the likeliest's"
    assert (word.a, word.b) == (pytest.approx(7.5 / 4), pytest.approx(9.5 / 4))
    assert perplexity.test is None and perplexity.difference.high < 0
    assert perplexity.a == pytest.approx(math.exp(7.5 / 4)) and perplexity.b == pytest.approx(math.exp(9.5 / 4))
    assert perplexity.difference.value == pytest.approx(perplexity.a - perplexity.b)


def test_swapping_the_models_turns_the_sign(folder: Path):
    forth = compare_records(folder, folder, ["one", "other"])[2]
    back = compare_records(folder, folder, ["other", "one"])[2]
    for x, y in zip(forth, back, strict=True):
        assert x.difference.value == -y.difference.value
        assert x.difference.low == pytest.approx(-y.difference.high)
        assert (x.test and x.test.p) == (y.test and y.test.p)


def test_the_newest_evaluation_of_a_task_counts(folder: Path):
    write_evaluation(folder, "one", "piqa", choices([0] * 40), started_at="2025-02-01T00:00:00+00:00")
    write_evaluation(folder, "one", "piqa", choices([1] * 40), started_at="2024-02-01T00:00:00+00:00")
    assert sum(item["acc"] for item in read_evaluations(folder, "one")["piqa"].items) == 0


def test_checkpoints_of_one_name_are_not_mixed(folder: Path):
    later = {"started_at": "2025-02-01T00:00:00+00:00", "checkpoint": "c1"}
    write_evaluation(folder, "one", "piqa", choices([0] * 40), **later)
    assert list(read_evaluations(folder, "one")) == ["piqa"]  # the other task was asked of another checkpoint
    assert list(read_evaluations(folder, "other")) == ["piqa", "lambada_openai", "copa"]


@pytest.mark.parametrize(
    "items",
    [choices([1] * 39), [{**item, "doc_hash": "another"} for item in choices([1] * 40)], choices([1] * 40)[::-1]],
)
def test_other_items_are_refused(folder: Path, items: list[dict[str, Any]]):
    write_evaluation(folder, "third", "piqa", items)
    a, b = read_evaluations(folder, "one")["piqa"], read_evaluations(folder, "third")["piqa"]
    with pytest.raises(ComparisonError, match=r"piqa: the items are not the same: one has 40 of piqa\.jsonl.*--limit"):
        compare(a, b)


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for models, message in (
        ([], r"2 models \(one, other\); name two with --models A,B"),
        (["one"], "names 1 models"),
        (["one", "nobody"], "no evaluation of 'nobody'; there are one, other"),
    ):
        with pytest.raises(ComparisonError, match=message):
            compare_records(folder, folder, models)
    with pytest.raises(ComparisonError, match=r"no records\.jsonl there"):
        read_evaluations(tmp_path / "nowhere")
    lonely = tmp_path / "lonely"
    write_evaluation(lonely, "third", "siqa", choices([1, 0]))
    assert main([str(folder), str(lonely), "--models", "one,third"]) == 2
    assert "no task in both: piqa, lambada_openai" in capsys.readouterr().err
    for path in (lonely / "items").iterdir():
        path.unlink()
    with pytest.raises(ComparisonError, match="items/ beside the"):
        read_evaluations(lonely)


def test_the_command_prints_a_table_and_its_method(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(folder), str(folder), "--models", "one,other"]) == 0
    printed = capsys.readouterr().out
    assert "A: one" in printed and "McNemar's exact two-sided binomial test" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("piqa") and " acc " in line]
    assert row.split()[2:5] == ["40", "0.7500", "0.5000"] and row.split()[-4:-2] == ["12", "2"]
