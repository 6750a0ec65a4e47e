"""Raw audio in the report: the paper's figures carried over, groups of one protocol, and the ablation's rule."""

from __future__ import annotations

import csv
import math

import pytest
import record_builder as builder

from reports import audio_figures, audio_tables, frames
from reports.audio_reference import MAMBA_S4, REFERENCE, ablation_panels, context_curves
from reports.audio_rows import Bits, audio_groups, difference
from reports.audio_tables import EQUAL, effect
from reports.context_figures import published_points

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
