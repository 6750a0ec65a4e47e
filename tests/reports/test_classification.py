"""Matthews correlation over seeds: means, spreads, one seed's interval, and what has no score."""

from __future__ import annotations

import pytest
import record_builder as builder

from reports import figures, frames
from reports.classification import classification_blocks, classification_table
from reports.classification_figures import classification_jobs
from reports.classification_pairs import models_table, ways_table
from reports.document import Table

SOURCE = {"name": "gue v1", "kind": "files", "sha256": "ab"}


def trial(seed, mcc=None, *, model="mamba-dna1m", dataset="tf/0", task="gue", pretrained=False, status="ok"):
    figures = {} if mcc is None else {
        "accuracy": builder.share(0.5 + mcc / 2, 400),
        "mcc": {"value": mcc, "low": mcc - 0.1, "high": mcc + 0.1, "n": 400},
        "balanced_accuracy": builder.share(0.5 + mcc / 2, 400),
    }  # fmt: skip
    scores = [{"seq_len": 128, "status": "ok", **figures}] if figures else []
    record = builder.training(
        model, task, seed, status, train_len=128, source=SOURCE, scores=scores, chance=0.52,
        message="" if status == "ok" else "no checkpoint",
    )  # fmt: skip
    record["trial"]["protocol"] |= {"task_options": {"dataset": dataset}, "steps": 2000}
    if pretrained:
        record["trial"]["protocol"]["init_from"] = {"checkpoint": "x", "sha256": "y"}
    return record


def training_of(*records):
    return frames.training_frame(frames.trials_frame(records, {"env-a": builder.ENVIRONMENT}))


def test_a_line_is_the_mean_and_the_spread_over_seeds():
    table = classification_table(training_of(*(trial(seed, 0.4 + 0.1 * seed) for seed in range(3))))
    (line,) = table.to_dict("records")
    assert line["MCC"] == "0.500 ± 0.100"
    assert (line["Seeds"], line["Items"], line["Length"], line["Start"]) == ("3 of 3", "400", "128", "scratch")
    assert line["Balanced accuracy"].startswith("0.750 ± 0.050") and line["Majority"].startswith("52")


def test_one_seed_has_the_interval_over_items():
    (line,) = classification_table(training_of(trial(0, 0.4))).to_dict("records")
    assert line["MCC"] == "0.400 [0.300, 0.500]"


def test_data_sets_models_and_starts_have_lines_of_their_own_and_failures_say_so():
    table = classification_table(
        training_of(
            trial(0, 0.4), trial(0, 0.5, dataset="mouse/0"), trial(0, 0.6, model="s4d-dna1m"),
            trial(0, pretrained=True, status="unsupported"), trial(1, 0.2),
        )
    )  # fmt: skip
    assert len(table) == 4
    (pretrained,) = table[table["Start"] == "pretrained"].to_dict("records")
    assert (pretrained["MCC"], pretrained["Seeds"]) == ("unsupported", "0 of 1")
    mine = table[(table["Data set"] == "tf/0") & (table["Model"] == "mamba-dna1m") & (table["Start"] == "scratch")]
    assert mine["MCC"].tolist() == ["0.300 ± 0.141"]


def test_controls_at_another_rate_and_among_the_labels_have_lines_of_their_own():
    def control(rate, **more):
        record = trial(0, 0.3)
        record["trial"]["protocol"] |= {"lr": rate, **more}
        return record

    table = classification_table(training_of(control(2e-3), control(4e-4), control(4e-4, answers="labels")))
    assert table[["Rate", "Answers among"]].apply(tuple, axis=1).tolist() == [
        ("0.0004", "all tokens"), ("0.0004", "labels"), ("0.002", "all tokens"),
    ]  # fmt: skip


def test_a_panel_is_named_by_the_option_that_differs_and_not_by_how_trials_were_run_together():
    records = [trial(0, 0.4), trial(0, 0.5, dataset="mouse/0")]
    records[1]["trial"]["protocol"]["seeds_together"] = 5
    assert set(training_of(*records)["variant"]) == {"dataset tf/0", "dataset mouse/0"}


def test_blocks_are_one_a_task_and_none_without_such_trials():
    blocks = classification_blocks(training_of(trial(0, 0.4), trial(0, 0.3, task="vertebrates")))
    assert sum(isinstance(block, Table) for block in blocks) == 2
    assert classification_blocks(training_of(builder.training("mamba-tiny", "dna"))) == []


@pytest.mark.parametrize("mcc", [None, float("nan")])
def test_a_trial_without_a_correlation_is_no_zero(mcc):
    (line,) = classification_table(training_of(trial(0, mcc))).to_dict("records")
    assert line["MCC"] == "no score" and line["Seeds"] == "0 of 1"


def drawn(*records):
    (job,) = classification_jobs(training_of(*records))
    return job()


def test_the_figure_has_a_panel_a_data_set_and_the_same_lines_in_each():
    drawing = drawn(
        trial(0, 0.4), trial(1, 0.6), trial(0, 0.5, pretrained=True), trial(0, 0.3, dataset="mouse/0"),
        trial(0, 0.2, model="s4d-dna1m"),
    )  # fmt: skip
    panels = drawing.figure.axes
    assert [axis.get_title(loc="left").splitlines()[0] for axis in panels] == ["mouse/0", "tf/0"]
    first, second = ([label.get_text() for label in axis.get_yticklabels()] for axis in panels)
    assert [label.partition("\n")[0] for label in first] == [
        "mamba-dna1m, scratch", "mamba-dna1m, pretrained", "s4d-dna1m, scratch",
    ]  # fmt: skip
    assert set(second) == {""} and panels[0].get_ylim() == panels[1].get_ylim()
    means = drawing.data[drawing.data["mark"] == "mean"]
    assert sorted(means["value"]) == pytest.approx([0.2, 0.3, 0.5, 0.5])
    of_two = means[means["n"] == 2]
    assert of_two["value"].tolist() == pytest.approx([0.5]) and of_two["low"].isna().all()
    assert drawing.data.loc[drawing.data["mark"] == "seed", "value"].tolist() == pytest.approx([0.4, 0.6])
    alone = means[means["n"] == 1]
    assert (alone["high"] - alone["low"]).tolist() == pytest.approx([0.2] * 3)


def test_a_protocol_of_other_steps_has_a_panel_of_its_own():
    shorter = trial(0, 0.3)
    shorter["trial"]["protocol"]["steps"] = 600
    titles = [axis.get_title(loc="left") for axis in drawn(trial(0, 0.4), shorter).figure.axes]
    assert titles == ["tf/0\nGUE, 128 bases, 2,000 steps", "tf/0\nGUE, 128 bases, 600 steps"]


def test_what_has_no_score_is_named_in_its_place_and_nothing_is_drawn_of_failures_alone():
    failed = trial(0, pretrained=True, status="unsupported")
    (row,) = drawn(trial(0, 0.4), failed).data.query("mark == 'failed'").to_dict("records")
    assert (row["status"], row["model"]) == ("unsupported", "mamba-dna1m")
    assert list(classification_jobs(training_of(failed))) == []
    assert list(classification_jobs(training_of(builder.training("mamba-tiny", "dna")))) == []


def test_one_length_needs_no_figure_against_length():
    trials = frames.trials_frame([trial(0, 0.4), trial(1, 0.6)], {"env-a": builder.ENVIRONMENT})
    training = frames.training_frame(trials)
    names = [
        one.name for one in figures.all_figures(frames.speed_frame(trials), training, frames.scores_frame(training))
    ]
    assert "classification" in names and not any(name.startswith("accuracy") for name in names)


def test_ways_are_compared_from_one_to_the_next_over_the_seeds_that_both_have():
    records = [trial(seed, 0.2 + 0.1 * seed) for seed in range(3)]
    records += [trial(seed, 0.5 + 0.2 * seed, pretrained=True) for seed in range(2)]
    lower = trial(1, 0.4)
    lower["trial"]["protocol"]["answers"] = "labels"
    (to_labels, to_pretrained) = ways_table(training_of(*records, lower)).to_dict("records")
    assert (to_labels["To"], to_labels["Difference"]) == ("scratch, 0.001, labels", "+0.100")
    assert to_pretrained["From"] == to_labels["To"] and to_pretrained["Difference"] == "+0.300"
    (change,) = ways_table(training_of(*records)).to_dict("records")
    # 0.3 and 0.4: Student's t of one degree of freedom, 12.706, times 0.05.
    assert (change["Difference"], change["Seeds"]) == ("+0.350 [-0.285, +0.985]", "2")


def test_models_are_compared_where_they_were_trained_alike():
    table = models_table(
        training_of(
            trial(0, 0.6), trial(0, 0.2, model="s4d-dna1m"), trial(0, 0.5, model="hyena-dna1m", pretrained=True),
            trial(0, 0.1, dataset="mouse/0"), trial(1, status="error"),
        )
    )  # fmt: skip
    (line,) = table.to_dict("records")
    assert (line["Model"], line["Less"], line["Difference"]) == ("mamba-dna1m", "s4d-dna1m", "+0.400")


def test_seeds_that_no_two_have_in_common_are_no_difference():
    (line,) = models_table(training_of(trial(0, 0.6), trial(1, 0.2, model="s4d-dna1m"))).to_dict("records")
    assert (line["Difference"], line["Seeds"]) == ("\N{EN DASH}", "0")
