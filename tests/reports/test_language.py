"""Language pretraining in the report: equal tokens and equal FLOPs, the paper's line, cut runs, figures and tables."""

from __future__ import annotations

import math

import pytest
import record_builder as builder

from reports import frames, language_figures, language_tables
from reports.language_reference import on_line, paper_line, paper_points
from reports.language_rows import LanguageGroup, language_groups

STEPS, BATCH, TRAIN_LEN = 1000, 16, 256
BPE = {"tokenizer": "bpe", "vocab_size": 4096}
PER_STEP = {"10m": 1e12, "25m": 3e12}
LENGTHS = (256, 1024, 4096)


def record(model, final, *, seed=0, options=None, cost=1.0, done=STEPS, per_token=1.0, status="ok", absent=()):
    """A training whose validation loss falls as a power of the step to ``final`` bits a token."""
    size = model.rpartition("-")[2]
    curve = [[s, final * math.log(2) * (STEPS / s) ** 0.1] for s in range(100, done + 1, 100)]
    scores = [
        {"seq_len": n, "status": "ok", "bits_per_token": builder.bits(final), "bits_by_position": [],
         "bits_per_byte": builder.bits(final / per_token)}
        for n in LENGTHS if n not in absent
    ]  # fmt: skip
    scores += [{"seq_len": n, "status": "skipped", "reason": "too slow"} for n in absent]
    made = builder.training(
        model, "language", seed, status, message="time is up" if status != "ok" else "", train_len=TRAIN_LEN,
        scores=scores, validation_loss_curve=curve, model_flops_per_step=cost * PER_STEP[size],
        train_tokens=done * BATCH * TRAIN_LEN, train_s=60.0, source={"name": "language v1", "sha256": "0" * 64},
    )  # fmt: skip
    made["trial"]["protocol"] |= {"steps": STEPS, "validation_loss": True, "task_options": options or {}}
    return made


def training_of(*records):
    return frames.training_frame(frames.trials_frame(records, {"env-a": builder.ENVIRONMENT}))


def group_of(*records) -> LanguageGroup:
    (group,) = language_groups(training_of(*records))
    return group


MODELS = (
    record("transformer-10m", 2.0), record("transformer-25m", 1.6), record("mamba-10m", 1.9, cost=0.8),
    record("mamba-25m", 1.55, cost=0.8),
)  # fmt: skip


# ---- the published line


def test_points_are_those_of_the_csv():
    at = {seq_len: [point for point in paper_points() if point.seq_len == seq_len] for seq_len in (2048, 8192)}
    assert (len(at[2048]), len(at[8192])) == (28, 25)  # RWKV and RetNet stop early at 8K
    (mamba,) = [point for point in at[2048] if (point.model, point.params) == ("Mamba", "125M")]
    assert (mamba.perplexity, mamba.flops) == (11.6, 1.97e18)


@pytest.mark.parametrize(
    ("seq_len", "expected"),
    [(2048, {"350M": 8.79, "760M": 7.29, "1.3B": 6.48}), (8192, {"350M": 9.01, "760M": 7.26, "1.3B": 6.35})],
)
def test_equal_flops_on_the_papers_own_line(seq_len, expected):
    line = paper_line("Transformer++", seq_len)
    for point in paper_points():
        if (point.model, point.seq_len) == ("Mamba", seq_len) and point.params in expected:
            value, outside = on_line(line, point.flops)
            assert value == pytest.approx(expected[point.params], abs=0.011)
            assert not outside


def test_a_line_goes_through_its_points_and_on_beyond_them():
    line = [(1e3, 4.0), (1e1, 16.0), (1e2, 8.0)]
    for flops, loss in line:
        assert on_line(line, flops) == (pytest.approx(loss), False)
    assert on_line(line, 10**1.5) == (pytest.approx(16 / 2**0.5), False)
    assert on_line(line, 1e4) == (pytest.approx(2.0), True)
    assert on_line(line, 1.0) == (pytest.approx(32.0), True)
    with pytest.raises(ValueError, match="1 points are no line"):
        on_line(line[:1], 1.0)


# ---- groups


def test_only_what_was_pretrained_belongs_here():
    assert not language_groups(training_of(*builder.sweep()))
    assert not language_tables.language_blocks(training_of(*builder.sweep()))
    assert not list(language_figures.language_jobs(training_of(*builder.sweep())))


def test_bytes_and_tokens_are_never_compared():
    both = (*MODELS, record("mamba-10m", 4.0, options=BPE, per_token=3.3), record("hyena-10m", 4.1, options=BPE))
    groups = language_groups(training_of(*both))
    assert [group.symbols for group in groups] == ["bytes", "BPE of 4,096 tokens"]
    assert [len(group.runs) for group in groups] == [4, 2]
    assert groups[0].bytes_per_token() == 1
    assert groups[1].reference_line() == []


def test_what_a_run_read_and_spent():
    (run,) = group_of(record("mamba-10m", 1.9, cost=0.8)).runs
    assert run.tokens == STEPS * BATCH * TRAIN_LEN
    assert run.flops == pytest.approx(0.8e12 * STEPS)
    assert run.loss == pytest.approx(1.9)
    assert run.finished


@pytest.mark.parametrize("done", [STEPS, 400])
def test_a_cut_runs_end_is_hollow_and_the_legend_says_so(done):
    drawing = language_figures.loss_figure(group_of(record("mamba-10m", 1.9, done=done)))
    ends = [line for line in drawing.figure.axes[0].lines if line.get_marker() != "None"]
    assert [line.get_markerfacecolor() == "white" for line in ends] == [done < STEPS]
    texts = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert ("cut before its last step" in texts) == (done < STEPS)


def test_losses_on_the_way_are_interpolated_in_the_logarithm():
    (run,) = group_of(record("mamba-10m", 1.9)).runs
    assert run.loss_at(5e14) == pytest.approx(1.9 * 2**0.1)
    between = run.loss_at(math.sqrt(4e14 * 5e14))
    assert between == pytest.approx((1.9 * 2.5**0.1 + 1.9 * 2**0.1) / 2)
    assert math.isnan(run.loss_at(2e15)) and math.isnan(run.loss_at(1e13))


def test_a_cut_run_is_on_no_line_and_says_so():
    cut = record("transformer-25m", 1.6, done=400, status="timeout")
    group = group_of(*MODELS[:1], *MODELS[2:], cut)
    assert group.reference_line() == [(pytest.approx(1e15), pytest.approx(2.0))]
    assert math.isnan(group.reference_loss("mamba-25m"))
    words = language_tables._words(group)
    assert "transformer-25m (last loss at step 400 of 1,000; time is up)" in words
    table = language_tables.models_table(group).set_index("Model")
    assert table.loc["transformer-25m", "Validation loss (bits per token)"].endswith("(cut)")
    assert "transformer-25m" not in set(language_tables.flops_table(group)["Model"])


def test_seeds_are_averaged():
    seeds = [record("transformer-10m", loss, seed=seed) for seed, loss in enumerate((2.0, 2.2))]
    group = group_of(*seeds, *MODELS[1:])
    assert group.reference_loss("mamba-10m") == pytest.approx(2.1)
    assert group.reference_line()[0][1] == pytest.approx(2.1)


# ---- tables


def test_differences_at_equal_tokens_and_at_equal_flops():
    table = language_tables.flops_table(group_of(*MODELS)).set_index("Model")
    assert table.loc["mamba-10m", "Difference"] == "-0.100"
    assert table.loc["transformer-10m", "Difference at equal FLOPs"] == "+0.000"
    line = [(1e15, 2.0), (3e15, 1.6)]
    column = "Transformer++, equal FLOPs (on the line)"
    assert table.loc["mamba-10m", column] == f"~{on_line(line, 0.8e15)[0]:.3f}", "below the smallest of the line"
    assert table.loc["mamba-25m", column] == f"{on_line(line, 2.4e15)[0]:.3f}"
    # On the way at what Mamba, the cheapest, spent in all.
    assert table.loc["mamba-10m", "On the way, at what all of 10m spent"].startswith("1.900 at 8.00e+14")
    assert table.loc["transformer-10m", "On the way, at what all of 10m spent"].startswith(f"{2.0 * 1.25**0.1:.3f}")


def test_one_size_has_no_line():
    table = language_tables.flops_table(group_of(MODELS[0], MODELS[2])).set_index("Model")
    assert set(table["Transformer++, equal FLOPs (on the line)"]) == {"–"}  # noqa: RUF001
    assert table.loc["mamba-10m", "Difference"] == "-0.100"


def test_lengths_mark_the_trained_one_and_leave_skipped_ones_out():
    group = group_of(record("mamba-10m", 1.9), record("transformer-10m", 2.0, absent=(4096,)))
    table = language_tables.lengths_table(group).set_index("Model")
    assert list(table.columns[1:]) == ["256 (trained)", "1K", "4K"]
    assert table.loc["transformer-10m", "4K"] == "–"  # noqa: RUF001
    assert table.loc["mamba-10m", "4K"] == "1.900 [1.890, 1.910]"


def test_the_paper_stands_beside_as_a_ratio_of_losses_alone():
    table = language_tables.paper_table([group_of(*MODELS)]).set_index("Family")
    assert list(table.index) == ["mamba", "transformer", "h3", "hyena"]
    assert table.loc["mamba", "Perplexity, 125M, 2K"] == "11.60"
    ratios = table["Loss over Transformer++'s"].astype(float)
    assert ratios["hyena"] == pytest.approx(math.log(16.913) / math.log(11.643), abs=5e-4)
    assert table.loc["mamba", "Here, bytes, 10m"] == "0.950"
    assert table.loc["hyena", "Here, bytes, 10m"] == "–"  # noqa: RUF001


# ---- figures


def test_models_that_one_presses_together_are_shown_nearer_too():
    def context(*records):
        drawings = (job() for job in language_figures.language_jobs(training_of(*records)))
        return next(d for d in drawings if d.name == "language-context")

    others = [record(f"{family}-10m", bits) for family, bits in (("mamba", 2.0), ("s4d", 2.1))]
    assert len(context(*others).figure.axes) == 1
    apart = record("transformer-10m", 2.05)
    apart["metrics"]["scores"][-1] |= {"bits_per_token": builder.bits(5.0), "bits_per_byte": builder.bits(5.0)}
    whole, near = context(*others, apart).figure.axes
    assert whole.get_ylim()[1] > 5 and 2.1 < near.get_ylim()[1] < 2.5 and near.get_ylim()[0] < 2.0


def test_figures_hold_what_was_measured():
    bpe = [record(f"{family}-10m", 5.0, options=BPE, per_token=2.5) for family in ("mamba", "transformer")]
    slow = record("hyena-10m", 2.1, absent=(4096,))
    drawings = {d.name: d for d in (job() for job in language_figures.language_jobs(training_of(*MODELS, slow, *bpe)))}
    assert set(drawings) == {"language-loss-bytes", "language-loss-BPE of 4,096 tokens", "language-context"}
    loss = drawings["language-loss-bytes"].data
    mine = loss[(loss["model"] == "mamba-25m") & (loss["mark"] == "flops")]
    assert mine["x"].max() == pytest.approx(2.4e15) and len(mine) == 10
    assert loss.loc[loss["mark"] == "tokens", "x"].max() == STEPS * BATCH * TRAIN_LEN
    context = drawings["language-context"].data
    assert context.loc[context["mark"] == "failed", "note"].tolist() == ["too slow"]
    by_bytes = context[(context["note"] == "BPE of 4,096 tokens") & (context["mark"] == "measured")]
    assert by_bytes["seq_len"].tolist() == [2.5 * n for n in LENGTHS] * 2 and set(by_bytes["value"]) == {2.0}
    for drawing in drawings.values():
        drawing.figure.draw_without_rendering()
