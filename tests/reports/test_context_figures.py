"""What a longer context is worth: own lengths alone, changes of each seed, intervals over seeds, published curves."""

from __future__ import annotations

import csv
import math

import numpy as np
import pandas as pd
import pytest
import record_builder as builder

from reports import frames
from reports.context_figures import FOLDER, context_figure, context_jobs, published_points, seed_interval
from reports.drawing import Drawing
from reports.figures import all_figures

SOURCE = {"name": "dna v1", "kind": "files", "sha256": "ab"}
BITS = {1024: 1.95, 4096: 1.93, 16384: 1.90}


def trial(seq_len, seed, status="ok", *, model="mamba-dna1m", task="dna", **scores):
    record = builder.training(
        model, task, seed, status, train_len=seq_len, source=SOURCE, message="out of time" if status != "ok" else "",
        scores=[{"seq_len": at, "status": "ok", **score} for at, score in scores.pop("at", {}).items()], **scores,
    )  # fmt: skip
    record["trial"]["batch"] = 2**20 // seq_len
    return record


def sweep(seeds=(0, 1, 2), model="mamba-dna1m"):
    """Trained at each length and scored at all; what is scored elsewhere is far off."""
    return [
        trial(
            seq_len, seed, model=model,
            at={at: {"bits_per_token": builder.bits(BITS[at] + 0.01 * seed + (at != seq_len))} for at in BITS},
        )
        for seq_len in BITS for seed in seeds
    ]  # fmt: skip


def scores_of(*records):
    trials = frames.trials_frame(records, {"env-a": builder.ENVIRONMENT})
    return frames.scores_frame(frames.training_frame(trials))


def figure_of(*records) -> Drawing:
    (job,) = context_jobs(scores_of(*records), {})
    drawing = job.func(job.args[0])  # type: ignore[attr-defined]
    assert isinstance(drawing, Drawing)
    return drawing


def measured(drawing: Drawing, panel: str) -> pd.DataFrame:
    data = drawing.data
    return data[(data["panel"] == panel) & (data["mark"] == "measured")].set_index("seq_len")


def test_each_length_is_that_of_its_own_training():
    levels = measured(figure_of(*sweep()), "bits")
    assert levels["value"].to_dict() == pytest.approx({at: value + 0.01 for at, value in BITS.items()})
    assert (levels["n"] == 3).all()
    low, high = seed_interval([0.0, 0.01, 0.02])
    assert (levels["high"] - levels["low"]).to_numpy() == pytest.approx(high - low)


def test_changes_are_each_seeds_own():
    changes = measured(figure_of(*sweep()), "change")
    assert changes["value"].to_dict() == pytest.approx({at: value - 1.95 for at, value in BITS.items()})
    # Seeds differ by a constant: their changes agree, which intervals of the levels do not show.
    assert (changes["high"] - changes["low"]).to_numpy() == pytest.approx(0, abs=1e-9)


def test_a_seed_that_lacks_the_shortest_length_has_no_change():
    records = [r for r in sweep() if not (r["trial"]["seed"] == 2 and r["trial"]["seq_len"] == 1024)]
    assert measured(figure_of(*records), "change")["n"].to_dict() == {1024: 2, 4096: 2, 16384: 2}


def test_one_seed_has_the_interval_over_windows_and_none_of_a_change():
    drawing = figure_of(*sweep(seeds=(0,)))
    levels, changes = measured(drawing, "bits"), measured(drawing, "change")
    assert (levels["high"] - levels["low"]).to_numpy() == pytest.approx(0.02)
    assert changes.loc[[4096, 16384], ["low", "high"]].isna().all(axis=None)


def test_where_others_have_several_seeds_one_alone_has_no_interval_and_a_band_of_no_width_is_a_bar():
    records = [*sweep(seeds=(0,)), *(record for record in sweep(seeds=(1,)) if record["trial"]["seq_len"] != 4096)]
    drawing = figure_of(*records)
    for panel, axes in zip(("bits", "change"), drawing.figure.axes, strict=True):
        has_interval = measured(drawing, panel)[["low", "high"]].notna().all(axis=1)
        assert has_interval.to_dict() == {1024: True, 4096: False, 16384: True}
        (bars,) = [lines for lines in axes.collections if type(lines).__name__ == "LineCollection"]
        assert [path.vertices[0][0] for path in bars.get_paths()] == [1024, 16384]


def test_a_band_wider_than_the_marks_does_not_rule_the_axis():
    drawing = figure_of(*sweep(seeds=(0, 1)))
    axes = drawing.figure.axes[0]
    levels, low, high = measured(drawing, "bits"), *axes.get_ylim()
    assert (levels["high"] - levels["low"]).min() > 1.5 * (high - low) / 2
    marks = drawing.data.loc[drawing.data["panel"] == "bits", "value"]
    assert low < marks.min() and marks.max() < high < levels["high"].max()


def test_failures_are_on_the_rail_and_trials_of_one_length_have_no_figure():
    drawing = figure_of(*sweep(), trial(65536, 0, "timeout"))
    failed = drawing.data[drawing.data["mark"] == "failed"]
    assert failed[["seq_len", "status"]].to_numpy().tolist() == [[65536.0, "timeout"]]
    assert not list(context_jobs(scores_of(*(r for r in sweep() if r["trial"]["seq_len"] == 1024)), {}))


def test_accuracies_stand_on_one_panel_with_the_published_and_no_panel_of_one_length_is_drawn_beside():
    records = [
        trial(seq_len, seed, task="species", chance=0.2, at={seq_len: {"accuracy": builder.share(0.4 + seed / 10, 60)}})
        for seq_len in (1024, 16384) for seed in (0, 1)
    ]  # fmt: skip
    drawing = figure_of(*records)
    assert measured(drawing, "accuracy")["value"].tolist() == pytest.approx([0.45, 0.45])
    published = drawing.data[drawing.data["mark"] == "published"]
    assert published["value"].between(0.2, 1).all() and published["seq_len"].max() == 2**20
    trials = frames.trials_frame(records, {"env-a": builder.ENVIRONMENT})
    training = frames.training_frame(trials)
    drawn = all_figures(frames.speed_frame(trials), training, frames.scores_frame(training))
    assert [d.name for d in drawn if "species" in d.name] == ["context-species"]


def test_scratch_and_pretrained_are_two_figures_and_models_with_their_own_rates_one():
    def one(seq_len, model, lr, start):
        at = {seq_len: {"accuracy": builder.share(0.5, 60)}}
        record = trial(seq_len, 0, task="species", model=model, lr=lr, at=at)
        if start:
            named = {"checkpoint": f"{model}-{seq_len}", "sha256": f"{model}{seq_len}"}
            record["trial"]["protocol"]["init_from"] = named
        return record

    models = {"mamba-dna1m": 1e-3, "hyena-dna1m": 2e-3}
    records = [
        one(seq_len, model, lr * (0.1 if start else 1), start)
        for seq_len in (1024, 4096) for model, lr in models.items() for start in (True, False)
    ]  # fmt: skip
    scores = scores_of(*records)
    assert set(scores["variant"]) == {"", "init_from a checkpoint"}
    assert len(list(context_jobs(scores, {}))) == 2


def test_published_curves_are_those_of_the_csv():
    with open(FOLDER / "dna.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["claim_id"].startswith("M1-fig5R-")]
    wanted = {
        (row["model"], int(row["seq_len"])): math.log2(float(row["value"])) for row in rows if row["params"] == "1.4M"
    }
    found = {
        (model, seq_len): value
        for name, curve in published_points("dna").items()
        for model in ("HyenaDNA", "Mamba") if f" {model} 1.4M" in name
        for seq_len, value in curve.items()
    }  # fmt: skip
    assert found == pytest.approx(wanted) and len(found) == 12
    assert found["Mamba", 2**20] < found["Mamba", 1024] and found["HyenaDNA", 2**20] > found["HyenaDNA", 1024]
    assert published_points("language") == {}


def test_published_changes_begin_at_nothing():
    drawing = figure_of(*sweep())
    grey = drawing.data[(drawing.data["mark"] == "published") & (drawing.data["seq_len"] == 1024)]
    assert len(grey) == 2 and set(grey["panel"]) == {"change"} and (grey["value"] == 0).all()
    assert "other data" in drawing.caption


def test_intervals_over_seeds_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 5, 10):
        ends = np.array([seed_interval(rng.normal(size=seeds).tolist()) for _ in range(2000)])
        covered = float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean())
        assert 0.93 < covered < 0.97, seeds
    assert all(map(math.isnan, seed_interval([1.0])))


def test_stand_in_data_are_stamped():
    source = SOURCE | {"kind": "embedded"}
    records = sweep()
    for record in records:
        record["trial"]["protocol"]["source"] = source
    assert "EMBEDDED" in context_figure(scores_of(*records).query("scored_len == train_len")).caption
