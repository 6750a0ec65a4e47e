"""Raw audio in the report: the paper's figures carried over, groups of one protocol, and the ablation's rule."""

from __future__ import annotations

import csv
import math

import pytest
import record_builder as builder

from reports import audio_figures, audio_tables, frames
from reports.audio_reference import ALL, MAMBA_S4, REFERENCE, ablation_panels, context_curves, row_labels
from reports.audio_rows import Bits, audio_groups, difference
from reports.audio_tables import EQUAL, effect
from reports.context_figures import published_points
from reports.document import Heading, Table
from reports.figures import all_figures

SOURCE = {"name": "audio v1", "kind": "data root", "sha256": "ab" * 32}


def trial(model, seq_len, value, seed=0, *, tokens=2**18, steps=400, status="ok", **protocol):
    score = {"seq_len": seq_len, "status": status}
    score |= {"bits_per_token": builder.bits(value)} if status == "ok" else {"reason": "too large"}
    record = builder.training(model, "audio", seed, train_len=seq_len, source=SOURCE, scores=[score])
    record["trial"] |= {"batch": tokens // seq_len, "device": "cuda"}
    record["trial"]["protocol"] |= {"steps": steps, **protocol}
    return record


def papers_own(*, add=0.0, seeds=(0,)):
    """Records that say what the paper does, but for a constant."""
    wanted = {(m, n): v for panel in reversed(ablation_panels()) for m, c in panel.rows.values() for n, v in c.items()}
    return [trial(model, seq_len, value + add, seed) for (model, seq_len), value in wanted.items() for seed in seeds]


def frames_of(records):
    training = frames.training_frame(frames.trials_frame(records, {"env-a": builder.ENVIRONMENT}))
    return training, frames.scores_frame(training)


def groups_of(*records):
    return audio_groups(*frames_of(records))


def test_every_figure_of_both_figures_of_the_paper_is_carried_over():
    with open(REFERENCE, newline="") as file:
        cells = [row for row in csv.DictReader(file) if row["claim_id"].startswith(("M1-fig7-", "M1-fig10"))]
    curves = [*context_curves().values(), *(curve for panel in ablation_panels() for _, curve in panel.rows.values())]
    assert sum(map(len, curves)) == len(cells) == 88
    left, right = ablation_panels()
    assert left.rows["S4+MLP"][1][2048] == 1.5011 and right.rows["+ complex"][1][2**18] == 1.2297
    assert context_curves()["mamba_complex-unet3x16"][958464] == 1.3108
    assert sum(map(len, published_points("audio").values())) == 16


def test_the_papers_own_figures_agree_at_every_length_whatever_the_level():
    (group,) = groups_of(*papers_own(add=1.7))
    tables = [audio_tables.steps_table(group, panel) for panel in ablation_panels()]
    # The purple curve of Fig. 10 was read twice; a step to it on the right is from the left's reading here.
    assert list(tables[0]["Agrees"]) == ["8 of 8"] * 4
    assert list(tables[1]["Agrees"])[:2] == ["8 of 8"] * 2
    assert tables[0]["2K"].iloc[0] == "+0.024 (+0.024)"


def test_an_order_upside_down_agrees_nowhere_that_the_paper_has_one():
    turned = papers_own()
    for record in turned:
        bits = record["metrics"]["scores"][0]["bits_per_token"]
        record["metrics"]["scores"][0]["bits_per_token"] = builder.bits(3 - bits["value"])
    (group,) = groups_of(*turned)
    assert list(audio_tables.steps_table(group, ablation_panels()[0])["Agrees"])[:3] == ["0 of 8"] * 3


@pytest.mark.parametrize(
    ("change", "low", "high", "expected"),
    [
        (-2 * EQUAL, math.nan, math.nan, "helps"),
        (2 * EQUAL, math.nan, math.nan, "hurts"),
        (0.9 * EQUAL, math.nan, math.nan, "even"),
        (-0.1, -0.3, 0.1, "even"),
        (-0.1, -0.15, -0.05, "helps"),
    ],
)
def test_what_a_step_does(change, low, high, expected):
    assert effect(change, low, high) == expected


def test_differences_are_of_the_same_seed():
    def bits(**seeds):
        values = {float(name[1:]): value for name, value in seeds.items()}
        return Bits(mean=sum(values.values()) / len(values), low=0, high=9, seeds=values)

    # Seeds lie far apart and their difference does not: the interval is the difference's.
    mean, low, high = difference(bits(s0=1.1, s1=2.1, s2=3.12), bits(s0=1.0, s1=2.0, s2=3.0))
    assert mean == pytest.approx(0.32 / 3) and 0.05 < low < mean < high < 0.15
    mean, low, _ = difference(bits(s0=1.1), bits(s0=1.0, s1=5.0))
    assert mean == pytest.approx(0.1) and math.isnan(low)


def test_trials_of_another_protocol_are_a_group_of_their_own():
    records = [
        trial(MAMBA_S4, n, 2.0, steps=s, tokens=t) for n in (2048, 4096) for s, t in ((400, 2**18), (200, 2**20))
    ]
    groups = groups_of(*records, *[trial(MAMBA_S4, 2048, 2.0, lr=5e-4)])
    assert sorted(g.choices.partition(",")[0] for g in groups) == [
        "200 steps of 1M samples",
        "400 steps of 256K samples",
    ]


def test_lengths_without_a_score_say_why():
    (group,) = groups_of(trial(MAMBA_S4, 2048, 2.0), trial(MAMBA_S4, 2**18, 0, status="oom"))
    assert group.absent == {MAMBA_S4: {2**18: "oom: too large"}}
    ours = audio_tables.beside_table(group).set_index("Whose (seeds)").loc["here (1)"]
    assert ours["256K"] == "oom" and ours["2K"].startswith("2.000 [")


def test_the_ablation_is_drawn_where_two_of_its_rows_are():
    records = papers_own(add=1.0, seeds=(0, 1))
    (job,) = audio_figures.audio_jobs(*frames_of(records))
    drawing = job()
    here = drawing.data[drawing.data["note"].str.startswith("here, all blocks") & (drawing.data["model"] == "S4+MLP")]
    paper = drawing.data[drawing.data["note"].str.startswith("the paper, all") & (drawing.data["model"] == "S4+MLP")]
    assert here["value"].tolist() == pytest.approx(paper["value"].tolist(), abs=1e-9) and len(here) == 8
    assert here["low"].notna().all() and paper["low"].isna().all()
    assert not list(audio_figures.audio_jobs(*frames_of([r for r in records if r["trial"]["model"] == MAMBA_S4])))
    assert not list(audio_figures.audio_jobs(*frames_of(builder.sweep())))


# ---- of a single length


def at_one_length(*, seeds=(0,), add=1.0, without=()):
    records = papers_own(add=add, seeds=seeds)
    return [r for r in records if r["trial"]["seq_len"] == 2**15 and r["trial"]["model"] not in without]


def test_an_ablation_of_one_length_has_its_tables_and_the_words_of_the_rule():
    blocks = audio_tables.audio_blocks(*frames_of(at_one_length()))
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    beside, steps = [block.frame for block in blocks if isinstance(block, Table)]
    assert headings == ["Raw audio: bits per sample at 32K"]
    assert set(beside["In the paper"]) == {
        label if panel.title == ALL else f"{label}, {panel.title}"
        for panel in ablation_panels() for label, (model, _) in panel.rows.items()
        if panel.title == ALL or model != MAMBA_S4
    }  # fmt: skip
    rows = steps[steps["Blocks"] == ALL]
    assert (rows["Here"] == rows["In the paper"]).all() and set(rows["Agrees"]) == {"1 of 1"}
    assert audio_tables.RULE in "".join(getattr(block, "text", "") for block in blocks)


def test_models_of_one_length_that_are_no_ablation_make_no_group():
    assert not groups_of(trial("mamba-tiny", 2048, 2.0), trial("s4d-tiny", 2048, 2.1))
    assert not groups_of(trial(MAMBA_S4, 2048, 2.0))
    assert len(groups_of(trial("s4d-unet8x4", 2048, 2.0), trial("mamba-unet8x4", 2048, 2.1))) == 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_at_one_length_every_row_is_a_line_of_points_with_intervals(seeds):
    records = at_one_length(seeds=seeds, without=["mamba_complex-unet8x4"])
    oom = trial("mamba-unet8x4", 2**15, 0, status="oom")
    records = [oom, *(r for r in records if r["trial"]["model"] != "mamba-unet8x4")]
    (job,) = audio_figures.audio_jobs(*frames_of(records))
    drawing = job()
    left, right = ablation_panels()
    here, paper = (drawing.data[drawing.data["note"].str.startswith(f"{w}, {ALL}")] for w in ("here", "the paper"))
    assert list(dict.fromkeys(here["model"])) == list(paper["model"]) == list(left.rows)
    measured = here[here["mark"] == "measured"]
    assert (measured["low"] <= measured["value"]).all() and (measured["value"] <= measured["high"]).all()
    assert (measured["low"] < measured["high"]).all() or len(seeds) > 1  # here seeds are alike
    assert (here["mark"] == "seed").sum() == (len(measured) * len(seeds) if len(seeds) > 1 else 0)
    failed = here[here["mark"] == "failed"].set_index("model")["status"]
    assert dict(failed) == {"Mamba (S6)": "oom", "+ complex": "not run"}
    assert paper["value"].tolist() == [curve[2**15] for _, curve in left.rows.values()]
    axes = drawing.figure.axes[0]
    names = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    assert names == [[label, model] for label, (model, _) in left.rows.items()]
    points = {(float(x), float(y)) for line in axes.get_lines() for x, y in zip(*line.get_data(), strict=True)}
    lines = {label: number for number, label in enumerate(left.rows)}
    assert {(row["value"], lines[row["model"]]) for row in measured.to_dict("records")} <= points
    assert len(drawing.figure.axes) == 4 and len(drawing.figure.axes[2].get_yticklabels()) == len(right.rows)


def test_legends_of_an_ablation_name_the_papers_rows():
    models = [model for panel in ablation_panels() for model in panel.models]
    assert row_labels(models)["mamba_complex-unet8x4"] == "mamba_complex-unet8x4: + complex"
    assert set(row_labels([*models, "mamba-tiny"])) == set(models)
    assert not row_labels(["mamba-unet8x4", "mamba_complex-unet3x16"])
    records = at_one_length()
    for record in records:
        bins = [{"start": start, "stop": 2 * start, **builder.bits(5.0, n=8)} for start in (64, 128)]
        record["metrics"]["scores"][0]["bits_by_position"] = bins
        record["metrics"]["loss_curve"] = [[step, 5.0 - step / 100] for step in range(5, 105, 5)]
    training, scores = frames_of(records)
    drawings = {d.name: d for d in all_figures(frames.speed_frame(training), training, scores)}
    for name in ("losses", "bits-audio", "positions-audio"):
        legend = [text.get_text() for text in drawings[name].figure.legends[0].get_texts()]
        assert set(row_labels(models).values()) <= set(legend), name
