"""The paper's tables of probes: figures carried over, the verdict's rule, learning rates chosen by validation alone."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import record_builder as builder

from reports import frames, probe_figures, probe_tables
from reports.contrasts import SOLVED
from reports.drawing import PUBLISHED
from reports.probe_reference import FOLDER, paper_tables
from reports.probe_rows import Point, ProbeRow, Run, choose_lr, probe_rows
from reports.probe_verdicts import MARGIN, MIN_SHARE, agrees, judge_row
from reports.style import FAMILIES

HEADS, COPYING = paper_tables()
OPTIONS = {"vocab_size": 16, "loss": "answer"}


def probe(model, table=HEADS, seed=0, *, accuracy=None, steps=None, lr=None, validation=0.99, status="ok", **protocol):
    """A record of a probe trained as the paper says; scores are the paper's own unless given."""
    paper = table.rows.get(model)
    asked = paper.steps if paper else 204_800
    done = asked if steps is None else steps
    figures = (paper.printed if paper else {table.train_len: 0.5}) if accuracy is None else accuracy
    record = builder.training(
        model, table.task, seed, status, train_len=table.train_len, message="time is up" if status != "ok" else "",
        lr=lr or (paper.lr if paper else 1e-3), params=66_496, chance=1 / 15,
        scores=[score(seq_len, value) for seq_len, value in figures.items()],
        train_tokens=done * table.batch * table.train_len, validation_curve=[[done // 2, 0.1], [done, validation]],
    )  # fmt: skip
    record["trial"] |= {"batch": table.batch, "device": "cuda"}
    record["trial"]["protocol"] |= {
        "steps": asked, "optimizer": "adam", "weight_decay": 0.0, "task_options": OPTIONS, "loss": None,
        "validation_examples": 256, **protocol,
    }  # fmt: skip
    record["wall_s"] = 120.0
    return record


def score(seq_len, value):
    return {"seq_len": seq_len, "status": "ok", "accuracy": builder.share(value, 256), "examples": 256}


def training_of(*records):
    return frames.training_frame(frames.trials_frame(records, {"env-a": builder.ENVIRONMENT}))


def row_of(model, *records, table=HEADS) -> ProbeRow:
    (row,) = [row for row in probe_rows(training_of(*records), table) if row.model == model]
    return row


# ---- the published figures


@pytest.mark.parametrize("table", [HEADS, COPYING], ids=lambda table: table.task)
def test_rows_are_those_of_the_csv(table):
    with open(FOLDER / f"{table.task}.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert {cell["model"] for cell in cells} == {row.label for row in table.rows.values()}
    by_label = {row.label: row for row in table.rows.values()}
    for cell in cells:
        value = by_label[cell["model"]].accuracy[int(cell["seq_len"])]
        assert math.isnan(value) if cell["value"] == "OOM" else value == pytest.approx(float(cell["value"]) / 100)
    assert sum(len(row.accuracy) for row in table.rows.values()) == len(cells)


def test_known_cells_of_both_tables():
    rope, mamba = HEADS.rows["transformer-probe128"], HEADS.rows["mamba-probe64"]
    assert (rope.steps, rope.lr, rope.accuracy[512], rope.params) == (409_600, 2e-4, 0.836, "137K")
    assert max(rope.printed) == 2**14 and math.isnan(rope.accuracy[2**15])
    assert (mamba.steps, mamba.lr) == (204_800, 1e-3) and set(mamba.accuracy.values()) == {1.0}
    assert sorted(mamba.accuracy) == [2**power for power in range(6, 21)]
    assert COPYING.rows["s4d-probe64"].accuracy == {4096: pytest.approx(0.183)}
    assert {row.steps for row in COPYING.rows.values()} == {400_000}


def test_every_figure_of_table_11_is_a_share_of_256():
    # What docs/probes.md concludes the size of the paper's validation sets from; halves are rounded up.
    for row in HEADS.rows.values():
        for value in row.printed.values():
            assert abs(round(value * 256) / 256 - value) <= 0.00051, (row.label, value)


# ---- the rule


def test_the_papers_own_figures_are_reproduced_in_every_row():
    for table in (HEADS, COPYING):
        rows = probe_rows(training_of(*(probe(model, table) for model in table.rows)), table)
        assert {row.model: judge_row(row).verdict for row in rows} == dict.fromkeys(table.rows, "reproduced")


def test_one_wrong_length_differs_and_is_named():
    wrong = {**HEADS.rows["transformer-probe128"].printed, 512: 0.5, 4096: 0.9}
    judged = judge_row(row_of("transformer-probe128", probe("transformer-probe128", accuracy=wrong)))
    assert judged.verdict == "differs"
    assert judged.why.startswith("at 512: 50.0") and "7 of 9" in judged.why


def test_extrapolating_where_the_paper_fails_differs_too():
    good = dict.fromkeys(HEADS.rows["transformer-probe128"].printed, 1.0)
    assert judge_row(row_of("transformer-probe128", probe("transformer-probe128", accuracy=good))).verdict == "differs"


def point(mean, half=0.02):
    return Point(mean=mean, low=mean - half, high=mean + half, lowest=mean, highest=mean, num_seeds=1, examples=256)


@pytest.mark.parametrize(
    ("published", "ours", "agree"),
    [
        (1.0, SOLVED, True),
        (1.0, SOLVED - 0.001, False),  # within the margin, but not solved
        (0.90, SOLVED + 0.001, False),  # solved, which the paper does not
        (0.5, 0.5 + MARGIN + 0.019, True),
        (0.5, 0.5 + MARGIN + 0.021, False),
        (0.5, 0.5 - MARGIN - 0.021, False),
        (0.055, 0.098, True),  # both at chance
    ],
)
def test_where_a_length_agrees(published, ours, agree):
    assert agrees(published, point(ours)) is agree


def test_early_cuts_are_not_attempts_unless_they_solve_all():
    table, early, late = COPYING, int((MIN_SHARE - 0.01) * 400_000), int((MIN_SHARE + 0.01) * 400_000)
    for model, steps, verdict in (
        ("s4d-probe64", early, "not attempted"),
        ("s4d-probe64", late, "reproduced"),
        ("mamba-probe64", early, "reproduced"),
    ):
        judged = judge_row(row_of(model, probe(model, table, steps=steps), table=table))
        assert judged.verdict == verdict
        assert (f"seed 0 at {steps:,}" in judged.why) is True
    failing = probe("mamba-probe64", table, steps=early, accuracy={4096: 0.3})
    assert judge_row(row_of("mamba-probe64", failing, table=table)).verdict == "not attempted"
    failing = probe("mamba-probe64", table, steps=late, accuracy={4096: 0.3})
    assert judge_row(row_of("mamba-probe64", failing, table=table)).verdict == "differs"


def test_another_rate_than_the_papers_is_told():
    faster = judge_row(row_of("mamba-probe64", probe("mamba-probe64", COPYING, lr=1e-3), table=COPYING))
    assert faster.verdict == "reproduced" and "learning rate of 0.001, the paper's is 0.0001" in faster.why
    same = judge_row(row_of("mamba-probe64", probe("mamba-probe64", COPYING), table=COPYING))
    assert "learning rate" not in same.why


def test_a_cut_training_is_compared_by_its_last_validation():
    cut = probe("s4d-probe64", COPYING, steps=150_000, status="timeout", validation=0.2)
    cut["metrics"] |= {"scores": []}
    row = row_of("s4d-probe64", cut, table=COPYING)
    assert row.points[4096].mean == pytest.approx(0.2) and row.points[4096].examples == 256
    judged = judge_row(row)
    assert judged.verdict == "reproduced" and "validation split: seed 0 at 150,000" in judged.why
    # A run that failed for another reason has no score to stand in.
    row = row_of("s4d-probe64", {**cut, "status": "oom"}, table=COPYING)
    assert judge_row(row).verdict == "not attempted" and "seed 0 oom: time is up" in judge_row(row).why


def test_unscored_lengths_are_no_reproduction():
    short = {n: v for n, v in HEADS.rows["mamba-probe64"].printed.items() if n <= 2**18}
    judged = judge_row(row_of("mamba-probe64", probe("mamba-probe64", accuracy=short)))
    assert judged.verdict == "not attempted" and "13 of 15" in judged.why and "512K, 1M" in judged.why


def test_rows_without_a_record_are_not_attempted_and_models_without_a_row_not_judged():
    rows = probe_rows(training_of(probe("mamba-probe64"), probe("s4d-probe128")), HEADS)
    found = {row.model: judge_row(row).verdict for row in rows}
    assert found["mamba-probe64"] == "reproduced" and found["hyena-probe128"] == "not attempted"
    assert found["s4d-probe128"] is None and "mamba2-probe64" not in found


def test_trials_of_another_protocol_are_left_out():
    assert not probe_rows(training_of(*builder.sweep()), HEADS)
    other = probe("mamba-probe64")
    other["trial"]["batch"] = 16
    assert not probe_rows(training_of(other), HEADS)
    assert not probe_rows(training_of(probe("mamba-probe64", weight_decay=0.1)), HEADS)


def test_losses_are_rows_of_their_own():
    every = probe("mamba-probe64", task_options={**OPTIONS, "loss": "every"}, accuracy={256: 0.1})
    rows = [r for r in probe_rows(training_of(probe("mamba-probe64"), every), HEADS) if r.model == "mamba-probe64"]
    verdicts = {"loss every" in row.choices: judge_row(row).verdict for row in rows}
    assert len(rows) == 2 and verdicts == {False: "reproduced", True: "differs"}


# ---- seeds and learning rates


def test_means_intervals_and_successes_over_seeds():
    records = [probe("s4d-probe128", seed=seed, accuracy={256: value}) for seed, value in enumerate((1.0, 0.96, 0.5))]
    row = row_of("s4d-probe128", *records)
    at = row.points[256]
    assert at.mean == pytest.approx(0.82) and (at.lowest, at.highest, at.num_seeds) == (0.5, 1.0, 3)
    assert at.low == pytest.approx(sum(builder.share(v, 256)["low"] for v in (1.0, 0.96, 0.5)) / 3)
    assert row.num_solving(256) == 2
    table = probe_tables.verdicts_table([row], HEADS)
    assert table.loc[0, "Seeds that solve 256"].startswith("2 of 3 [20.8")


def test_solved_up_to_stops_at_the_first_gap():
    row = row_of("s4d-probe128", probe("s4d-probe128", accuracy={64: 0.1, 256: 1.0, 512: 0.97, 1024: 0.9, 2048: 1.0}))
    assert row.runs[0].solved_up_to(256) == 512


def test_the_learning_rate_is_chosen_on_validation_and_not_on_the_test():
    lucky = probe("s4d-probe128", lr=1e-3, validation=0.4, accuracy={256: 1.0})
    sound = probe("s4d-probe128", lr=2e-4, validation=0.6, accuracy={256: 0.5})
    row = row_of("s4d-probe128", lucky, sound)
    assert (row.lr, row.lrs) == (2e-4, (2e-4, 1e-3)) and row.points[256].mean == pytest.approx(0.5)
    assert row.device_s == 240.0  # of both


def test_ties_go_to_more_seeds_then_to_the_paper():
    (run,) = row_of("mamba-probe64", probe("mamba-probe64")).runs
    runs = [run, replace(run, lr=2e-4), replace(run, lr=2e-4, seed=1)]
    assert choose_lr(runs, 1e-3) == 2e-4
    assert choose_lr(runs[:2], 1e-3) == 1e-3 and choose_lr(runs[:2]) == 2e-4
    assert isinstance(run, Run)


def test_minutes_are_shared_by_the_seeds_of_a_process_and_grow_with_resumption():
    together = [probe("mamba-probe64", seed=seed) for seed in range(3)]
    for record in together:
        record["metrics"]["seeds_together"] = 3
    assert row_of("mamba-probe64", *together).device_s == pytest.approx(120.0)
    resumed = probe("mamba-probe64")
    resumed["metrics"]["train_s"] = 500.0
    assert row_of("mamba-probe64", resumed).device_s == pytest.approx(500.0)


def test_minutes_of_a_resumed_training_are_the_least_that_it_took():
    whole, resumed = probe("mamba-probe64"), probe("h3-probe128")
    resumed["metrics"] |= {"train_s": 600.0, "resumed_at": [4096]}
    rows = [row for row in probe_rows(training_of(whole, resumed), HEADS) if row.runs]
    minutes = probe_tables.verdicts_table(rows, HEADS).set_index("Model")["Minutes"]
    assert dict(minutes) == {"mamba-probe64": "2", "h3-probe128": "at least 10"}
    words = {True: "At least 12 GPU minutes in all", False: "2 GPU minutes in all"}
    for records in ([whole], [whole, resumed]):
        said = "".join(getattr(block, "text", "") for block in probe_tables.probe_blocks(training_of(*records)))
        assert words[len(records) > 1] in said and ("of a resumed" in said) == (len(records) > 1)
    # The other learning rate's run counts too.
    other = probe("mamba-probe64", lr=2e-4, validation=0.1)
    other["metrics"]["resumed_at"] = [4096]
    assert row_of("mamba-probe64", whole, other).resumed


# ---- tables and figures


def test_tables_show_both_sides_at_every_length():
    rows = probe_rows(training_of(probe("mamba-probe64"), probe("transformer-probe128")), HEADS)
    beside = probe_tables.beside_table(rows).set_index(["Model", "Whose (seeds)"])
    assert beside.loc[("transformer-probe128", "paper"), "512"] == "83.6"
    assert beside.loc[("transformer-probe128", "paper"), "32K"] == "oom"
    assert beside.loc[("transformer-probe128", "here (1)"), "512"] == "83.6"
    every = probe_tables.lengths_table(rows)
    assert set(every.loc[every["Model"] == "mamba-probe64", "Agrees"]) == {"yes"}
    verdicts = probe_tables.verdicts_table(rows, HEADS)
    assert verdicts.loc[0, "Parameters (paper's)"] == "66,496 (74K)"


def test_figures_hold_both_curves_and_need_scores():
    training = training_of(probe("mamba-probe64"), probe("h3-probe64", COPYING))
    drawings = {drawing.name: drawing for drawing in (job() for job in probe_figures.probe_jobs(training))}
    assert set(drawings) == {"paper-induction_heads", "paper-selective_copying"}
    data = drawings["paper-induction_heads"].data
    assert set(data.loc[data["mark"] == "published", "model"]) == set(HEADS.rows)
    assert len(data[(data["model"] == "mamba-probe64") & (data["mark"] == "measured")]) == 15
    assert not list(probe_figures.probe_jobs(training_of(*builder.sweep())))


def test_a_table_of_one_length_says_which_marks_are_seeds():
    training = training_of(*(probe("mamba-probe64", COPYING, seed=seed) for seed in range(2)))
    (job,) = probe_figures.probe_jobs(training)
    said = [text.get_text() for text in job().figure.legends[0].get_texts()]
    assert said[:2] == ["mean over seeds", "one seed"]


@pytest.fixture
def drawn():
    """Three seeds of Mamba, of which one fails everywhere; absolute positions with few examples at 32K."""
    few = {"min_examples": 256, "max_examples": 256, "score_tokens": 2**16}
    printed = HEADS.rows["mamba-probe64"].printed
    records = [probe("mamba-probe64", seed=seed, **few) for seed in range(2)]
    records.append(probe("mamba-probe64", seed=2, accuracy=dict.fromkeys(printed, 0.07), **few))
    absolute = probe("transformer_absolute-probe128", accuracy={256: 1.0, 2**15: 0.15}, **few)
    absolute["metrics"]["scores"][-1] |= {"examples": 32, "accuracy": builder.share(0.15, 32)}
    training = training_of(*records, absolute)
    (job,) = probe_figures.probe_jobs(training)
    return training, job()


def test_seeds_are_drawn_above_the_papers_marks(drawn):
    axes = drawn[1].figure.axes[0]
    (paper,) = [line for line in axes.get_lines() if line.get_color() == PUBLISHED]
    assert len(axes.collections) == 2  # the band and the seeds
    ours = [line for line in axes.get_lines() if line.get_color() == FAMILIES["mamba"][0]]
    assert ours and all(artist.get_zorder() > paper.get_zorder() for artist in [*ours, *axes.collections])
    seeds = {tuple(point) for point in axes.collections[-1].get_offsets().tolist()}
    assert {(seq_len, 1.0) for seq_len in HEADS.rows["mamba-probe64"].printed} <= seeds


def test_no_mark_is_cut_at_an_edge(drawn):
    sheet = drawn[1].figure
    sheet.draw_without_rendering()
    for axes in sheet.axes:
        panel = axes.get_window_extent()
        for line in axes.get_lines():
            if line.get_transform() != axes.transData or line.get_marker() == "None":
                continue
            half = math.sqrt(2) * line.get_markersize() / 2 * sheet.dpi / 72  # of a diamond
            for x, y in axes.transData.transform(line.get_xydata()):
                assert panel.x0 <= x - half and x + half <= panel.x1 and panel.y0 <= y - half and y + half <= panel.y1


def test_scores_of_few_examples_are_marked(drawn):
    training, drawing = drawn
    marked = drawing.data[drawing.data["mark"] == "few_examples"]
    assert [(row["model"], row["seq_len"]) for row in marked.to_dict("records")] == [
        ("transformer_absolute-probe128", 2**15)
    ]
    assert "32 of 256" in marked["note"].iloc[0]
    assert any("fewer examples" in text.get_text() for text in drawing.figure.legends[0].get_texts())
    rows = probe_rows(training, HEADS)
    cells = probe_tables.beside_table(rows).set_index(["Model", "Whose (seeds)"])
    assert cells.loc[("transformer_absolute-probe128", "here (1)"), "32K"] == f"15.0{probe_tables.FEW}"
    assert not cells.drop(columns="32K").astype(str).apply(lambda column: column.str.contains(r"\*")).any().any()
    every = probe_tables.lengths_table(rows)
    assert list(every.loc[every["Examples"].str.contains("of"), "Examples"]) == ["32 of 256"]
    texts = "".join(getattr(block, "text", "") for block in probe_tables.probe_blocks(training))
    assert probe_tables.FEW_TEXT in texts
    assert probe_tables.FEW_TEXT not in "".join(
        getattr(block, "text", "") for block in probe_tables.probe_blocks(training_of(probe("mamba-probe64")))
    )
