"""The zero-shot tables: what stands beside a published row and what does not, and the averages that do not add up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import record_builder as builder

from reports import frames, style
from reports.page import speed_markdown, write_pages
from reports.zeroshot import averages_table, figures_table, items_table, published_table, zeroshot_blocks
from reports.zeroshot_reference import AVERAGED, published_model, published_models

FILE = {"name": "language/items.jsonl", "kind": "files", "sha256": "ab" * 32, "note": ""}
EMBEDDED = {"name": "sample", "kind": "embedded", "sha256": "cd" * 32, "note": "8 items; too few"}
MAMBA_370M = {
    "lambada_openai": {"accuracy": 0.556}, "hellaswag": {"acc_norm": 0.465}, "piqa": {"accuracy": 0.695},
    "arc_easy": {"accuracy": 0.551}, "arc_challenge": {"acc_norm": 0.28}, "winogrande": {"accuracy": 0.553},
}  # fmt: skip


def evaluation(
    model: str,
    task: str,
    shares: dict[str, float],
    *,
    n: int = 401,
    source: dict[str, str] | None = None,
    status: str = "ok",
    checkpoint: dict[str, Any] | None = None,
    **metrics: Any,
) -> builder.Record:
    """One record as `seqbench eval` writes it."""
    figures = {
        name: builder.share(value, n) | {"stderr": math.sqrt(value * (1 - value) / (n - 1))}
        for name, value in shares.items()
    }
    trial = {
        "kind": "eval", "model": model, "task": task, "seq_len": 2048, "batch": 16, "dtype": "float32",
        "direction": "forward", "device": "cpu", "seed": 0,
        "protocol": {"checkpoint": {"sha256": "ef" * 32}, "source": dict(source or FILE), "limit": None,
                     "num_fewshot": 0, "lm_eval": "0.4.13"},
    }  # fmt: skip
    origin = checkpoint or {"format": "mamba_ssm", "implementation": "native"}
    about = {"n": n, "truncated": 3, "requests": 2 * n, "tokens_per_s": 1e4, "checkpoint": origin}
    measured: dict[str, Any] = {**about, **figures, **metrics} if status == "ok" else {"checkpoint": origin}
    return builder._record(trial, status, "too long", "env-a", "2025-05-04T10:00:00Z", measured, {"mixer": "torch"})


def table_of(records: list[builder.Record], **options: Any) -> pd.DataFrame:
    trials = frames.trials_frame(records, {"env-a": builder.ENVIRONMENT})
    return figures_table(trials[trials["kind"] == "eval"], **options)


def test_a_published_checkpoint_stands_beside_its_own_row_with_the_difference_in_standard_errors() -> None:
    row = table_of([evaluation("state-spaces/mamba-370m", "piqa", {"accuracy": 0.655}, chance=0.5)]).iloc[0]
    stderr = math.sqrt(0.655 * 0.345 / 400)
    assert row["Published"] == "69.5\N{NO-BREAK SPACE}%"
    assert float(row["Difference (s.e.)"]) == pytest.approx((0.655 - 0.695) / stderr, abs=0.05)
    assert row["Value"] == f"65.5\N{NO-BREAK SPACE}% ± {100 * stderr:.1f}"
    assert (row["n"], row["Cut"], row["Chance"]) == ("401", "3 of 802", "50.0\N{NO-BREAK SPACE}%")
    assert row["Items"] == "items.jsonl"


@pytest.mark.parametrize(
    ("model", "checkpoint", "source"),
    [
        ("mamba-tiny", None, FILE),
        ("mamba-370m", {"task": "language", "steps": 100}, FILE),  # trained by this suite: another model
        ("my-mamba-370m", None, FILE),
        ("state-spaces/mamba-370m", None, EMBEDDED),
    ],
)
def test_no_other_model_and_no_embedded_item_is_compared(
    model: str, checkpoint: dict[str, Any] | None, source: dict[str, str]
) -> None:
    row = table_of([evaluation(model, "piqa", {"accuracy": 0.6}, checkpoint=checkpoint, source=source)]).iloc[0]
    assert row["Published"] == row["Difference (s.e.)"] == style.NONE
    assert (row["Items"] == "embedded") == (source is EMBEDDED)


def test_checkpoints_of_one_name_are_told_apart() -> None:
    def asked(tokenizer: str, sha256: str) -> builder.Record:
        record = evaluation("one", "piqa", {"accuracy": 0.6}, checkpoint={"tokenizer": tokenizer})
        record["trial"]["protocol"]["checkpoint"] = {"sha256": sha256 * 32}
        return record

    def names(*records: builder.Record) -> list[str]:
        return list(table_of(list(records))["Model"])

    assert names(asked("bytes", "a0")) == ["one"]
    assert names(asked("bytes", "a0"), asked("bpe", "b0")) == ["one (bpe)", "one (bytes)"]
    assert names(asked("bytes", "a0"), asked("bytes", "b0")) == ["one (a0a0a0a0)", "one (b0b0b0b0)"]


def test_names_of_checkpoints_are_read_as_the_papers() -> None:
    for name, label in (
        ("state-spaces/mamba-130m", "Mamba-130M"), ("/models/mamba-2.8b-hf/", "Mamba-2.8B"),
        ("EleutherAI/gpt-neo-1.3B", "GPT-Neo 1.3B"), ("facebook/opt-6.7b", "OPT-6.7B"),
    ):  # fmt: skip
        found = published_model(name)
        assert found is not None and found.label == label
    for name in ("mamba-tiny", "state-spaces/mamba2-130m", "mamba-130m-finetuned", ""):
        assert published_model(name) is None


def test_exactly_the_two_averages_that_disagree_are_marked() -> None:
    wrong = {model.label: round(100 * model.average, 2) for model in published_models() if not model.is_consistent}
    assert wrong == {"Mamba-370M": 51.67, "Mamba-790M": 56.12}
    assert len(published_models()) == 24
    marked = published_table().set_index("Model")["Printed"]
    assert marked["Mamba-370M"] == "50.0\N{NO-BREAK SPACE}% (does not equal its row: 51.67)"
    assert marked["Mamba-130M"] == "44.7\N{NO-BREAK SPACE}%"
    assert marked.str.contains("does not").sum() == 2


def test_items_are_named_once_with_their_whole_sha256_and_their_note() -> None:
    records = [evaluation(model, "piqa", {"accuracy": 0.5}) for model in ("mamba-tiny", "s4d-tiny")]
    records.append(evaluation("mamba-tiny", "copa", {"accuracy": 0.5}, source=EMBEDDED))
    rows = items_table(frames.trials_frame(records, {})).to_dict("records")
    assert [row["sha256"] for row in rows] == ["cd" * 32, "ab" * 32]
    assert rows[0]["Note"] == "8 items; too few" and rows[1]["Items"] == "language/items.jsonl"


def test_an_average_needs_all_six_tasks_of_real_items() -> None:
    records = [evaluation("state-spaces/mamba-370m", task, shares) for task, shares in MAMBA_370M.items()]
    trials = frames.trials_frame(records, {"env-a": builder.ENVIRONMENT})
    (row,) = averages_table(trials).to_dict("records")
    errors = [math.sqrt(v * (1 - v) / 400) for shares in MAMBA_370M.values() for v in shares.values()]
    assert row["Average"] == f"51.7\N{NO-BREAK SPACE}% ± {100 * math.hypot(*errors) / len(AVERAGED):.1f}"
    assert "does not equal its row: 51.67" in row["Published average as printed"]
    assert float(row["Difference from the mean (s.e.)"]) == 0
    fewer = frames.trials_frame(records[1:], {"env-a": builder.ENVIRONMENT})
    assert averages_table(fewer).empty
    sample = evaluation("state-spaces/mamba-370m", "lambada_openai", {"accuracy": 0.5}, source=EMBEDDED)
    assert averages_table(frames.trials_frame([*records[1:], sample], {"env-a": builder.ENVIRONMENT})).empty


def test_the_papers_metric_comes_first_and_every_metric_is_kept() -> None:
    records = [
        evaluation("mamba-tiny", "winogrande", {"accuracy": 0.5}),
        evaluation("mamba-tiny", "hellaswag", {"accuracy": 0.3, "acc_norm": 0.4}),
        evaluation("mamba-tiny", "copa", {"accuracy": 0.6}),
        evaluation("mamba-tiny", "lambada_openai", {"accuracy": 0.2}, perplexity={"value": 3e9, "stderr": 2e8, "n": 9}),
        evaluation("mamba-tiny", "piqa", {}, status="unsupported"),
    ]
    short = table_of(records, only_paper=True)
    assert list(zip(short["Task"], short["Metric"], strict=True)) == [
        ("lambada_openai", "ppl"), ("lambada_openai", "acc"), ("hellaswag", "acc_norm"), ("piqa", style.NONE),
        ("winogrande", "acc"), ("copa", "acc"),
    ]  # fmt: skip
    assert short["Value"][3] == "unsupported" and short["Value"][0] == "3.00e+09 ± 2.0e+08"
    assert len(table_of(records)) == len(short) + 1


def test_the_page_and_the_text_show_the_tables_and_other_pages_do_not(tmp_path: Path) -> None:
    records = [evaluation("state-spaces/mamba-370m", task, shares) for task, shares in MAMBA_370M.items()]
    page = write_pages(records, {"env-a": builder.ENVIRONMENT}, [], tmp_path, "seqbench report x").read_text()
    assert "<h3>Zero-shot tasks</h3>" in page and page.count("does not equal its row: 51.67") == 2
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    text = speed_markdown([folder])
    assert "### Zero-shot tasks" in text and "does not equal its row" in text
    assert zeroshot_blocks(frames.trials_frame(builder.sweep(), {"env-a": builder.ENVIRONMENT})) == []
