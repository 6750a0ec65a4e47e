"""A run of every level of speed: its figures show their data, and its tables agree with the laws behind it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import record_builder as builder
import speed_records as speed_suite
from scipy.optimize import brentq

from benchmarks.listing import rows_of
from reports import frames, generation, published, speed_tables, style
from reports.comparisons import BEST, crossovers
from reports.drawing import Drawing
from reports.figures import all_figures
from reports.page import Section, sections_of, write_pages
from reports.roofline import ceilings_of, limits_frame
from reports.scaling import time_figure
from reports.speed_claims import judge_speed_claims

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module")
def records() -> list[builder.Record]:
    """Three models, every second length, no blocks: what the tests look at."""
    chosen = []
    for record in speed_suite.suite():
        trial = record["trial"]
        stack = trial["model"].endswith("-130m")
        if stack and (style.family(trial["model"]) not in ("mamba", "transformer", "s4d")):
            continue
        if trial["protocol"].get("level") == "block":
            continue
        chosen.append(record)
    return chosen


@pytest.fixture(scope="module")
def suite(records: list[builder.Record]) -> Section:
    (only,) = sections_of(records, {"env-a": speed_suite.ENVIRONMENT})
    return only


@pytest.fixture(scope="module")
def drawings(suite: Section) -> dict[str, Drawing]:
    found = all_figures(suite.speed, suite.training, suite.scores, suite.trials)
    return {drawing.name: drawing for drawing in found}


def _operators(suite: Section, direction: str = "forward", mode: str = "batch 1"):
    (rows,) = [
        rows
        for rows in frames.length_groups(suite.speed[suite.speed["level"] == "operator"])
        if rows["direction"].iloc[0] == direction and rows["mode"].iloc[0] == mode
    ]
    return rows


def test_every_kind_of_figure_is_drawn_and_single_lengths_are_not(drawings: dict[str, Drawing]) -> None:
    operator = ("operator-forward-width1024-state16", "operator-train-width1024-state16")
    model = ("model-forward-130m", "model-train-130m")
    tokens = tuple(f"{name}-64k-tokens-a-batch" for name in operator + model)
    assert set(drawings) == {
        *(f"time-{name}" for name in operator + model),
        *(f"time-device-{name}" for name in operator),
        *(f"{kind}-{name}" for kind in ("memory", "speedup", "throughput") for name in operator + model + tokens),
        *(f"share-{name}" for name in (*operator, *(name for name in tokens if "operator" in name))),
        *(f"roofline-{name}" for name in operator),
        *(f"predicted-peak-{level}" for level in ("operator", "model")),
        "batch-memory-130m-2048",
        "generation-throughput-1-4b-2048",
        "generation-phases-1-4b-2048",
        "state-130m",
    }


def test_a_figure_shows_its_data_and_every_failure(drawings: dict[str, Drawing]) -> None:
    for name, drawing in drawings.items():
        data = drawing.data
        x = next(key for key in ("seq_len", "batch", "flop_per_byte", "measured_bytes") if key in data)
        points = data[data["mark"].isin(["measured", "predicted", "published", "point"])]
        drawn: set[tuple[float, float]] = set()
        for axes in drawing.figure.axes:
            for line in axes.get_lines():
                drawn |= {(float(a), float(b)) for a, b in np.asarray(line.get_xydata(), dtype=float)}
            for dots in axes.collections:
                drawn |= {(float(a), float(b)) for a, b in np.asarray(dots.get_offsets(), dtype=float)}
        assert {(a, b) for a, b in zip(points[x], points["value"], strict=True)} <= drawn, name
        rails = [child for axes in drawing.figure.axes for child in axes.child_axes]
        marks = sum(np.asarray(dots.get_offsets()).shape[0] for rail in rails for dots in rail.collections)
        assert marks == (data["mark"] == "failed").sum(), name


@pytest.mark.parametrize(
    "name",
    [
        "time-operator-forward-width1024-state16",
        "speedup-operator-forward-width1024-state16",
        "share-operator-train-width1024-state16",
        "memory-model-train-130m",
        "roofline-operator-forward-width1024-state16",
        "predicted-peak-operator",
        "generation-throughput-1-4b-2048",
        "generation-phases-1-4b-2048",
        "batch-memory-130m-2048",
    ],
)
def test_no_text_is_clipped_and_nothing_overlaps(drawings: dict[str, Drawing], name: str) -> None:
    sheet = drawings[name].figure
    sheet.draw_without_rendering()
    (legend,) = sheet.legends
    below = legend.get_window_extent()
    title = min(text.get_window_extent().y0 for text in sheet.texts)
    assert below.x0 >= 0 and below.x1 <= sheet.bbox.x1 and below.y0 >= 0
    for axes in sheet.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.y0 >= below.y1
        assert box.y1 <= title + 1


def test_a_crowded_rail_leaves_the_title_free() -> None:
    records = [builder.speed(f"model{index}", 1024, "oom", message="no memory") for index in range(12)]
    sheet = time_figure(frames.speed_frame(frames.trials_frame(records))).figure
    sheet.draw_without_rendering()
    title = min(text.get_window_extent().y0 for text in sheet.texts)
    (rail,) = sheet.axes[0].child_axes
    assert rail.get_tightbbox().y1 <= title + 1


def test_launch_bound_and_few_samples_are_marked_and_left_out_of_slopes(
    suite: Section, drawings: dict[str, Drawing]
) -> None:
    rows, data = _operators(suite), drawings["time-operator-forward-width1024-state16"].data
    for mark in ("launch_bound", "few_samples"):
        flagged = rows[(rows["status"] == "ok") & rows[mark]]
        assert len(flagged)
        expected = set(zip(flagged["model"], flagged["seq_len"], strict=True))
        shown = data[data["mark"] == mark]
        assert set(zip(shown["model"], shown["seq_len"], strict=True)) == expected
    legend = " ".join(
        t.get_text() for t in drawings["time-operator-forward-width1024-state16"].figure.legends[0].get_texts()
    )
    assert "launch-bound" in legend and "few samples" in legend and "published, A100" in legend


def test_the_crossover_is_the_one_of_the_laws(suite: Section) -> None:
    def gap(log_length: float) -> float:
        length = math.exp(log_length)
        best = min(speed_suite.operator_ms(name, length) for name in speed_suite.ATTENTION_MS)
        return math.log(best / speed_suite.operator_ms("selective_scan", length))

    truth = math.exp(brentq(gap, math.log(2048), math.log(65536)))
    found = {model: cross for reference, model, cross in crossovers(_operators(suite)) if reference == BEST}
    cross = found["selective_scan"]
    assert cross.after == "selective_scan"
    # Interpolated between doublings of the length: within a few percent of the law itself.
    assert cross.length == pytest.approx(truth, rel=0.08)
    assert cross.low <= cross.length <= cross.high


def test_every_pair_is_in_the_tables(suite: Section) -> None:
    crossing = speed_tables.crossovers_table(suite.speed)
    operator = crossing[crossing["Measured"].str.startswith("operator, forward") & (crossing["Model"] == "ssd")]
    assert set(operator["Compared with"]) == {BEST, *speed_suite.ATTENTION_MS}
    assert {"mamba-130m", "s4d-130m"} <= set(crossing["Model"])
    assert not set(crossing["Model"]) & set(speed_suite.ATTENTION_MS)
    never = crossing[crossing["Crossover"] == style.NONE]
    assert len(never)
    assert never["Result"].str.startswith("no crossover in range").all()
    speedups = speed_tables.speedups_table(suite.speed)
    assert {"512", "1M"} <= set(speedups.columns)


def test_the_limit_is_the_longest_of_its_parts(suite: Section) -> None:
    ceilings = ceilings_of(frames.ceilings_frame(suite.trials))
    limits = limits_frame(_operators(suite), ceilings)
    for row in limits.to_dict("records"):
        counted = speed_suite.cost(row["model"], row["seq_len"], row["seq_len"], False)
        parts = {
            "bytes": counted["bytes"] / speed_suite.COPY,
            "flops": counted["flops"] / speed_suite.MATMUL,
            "exps": counted["exps"] / speed_suite.EXP,
        }
        assert row["limit_ms"] == pytest.approx(1e3 * max(parts.values()))
        assert parts[row["binds"]] == max(parts.values())
        assert row["share"] == pytest.approx(row["limit_ms"] / row["latency_median_ms"])


def test_without_a_ceiling_there_is_no_share(suite: Section) -> None:
    ceilings = ceilings_of(frames.ceilings_frame(suite.trials[suite.trials["model"] != "exp"]))
    limits = limits_frame(_operators(suite), ceilings)
    assert "selective_scan" not in set(limits["model"])  # it counts exponentials
    assert "fft_conv" in set(limits["model"])
    assert limits_frame(_operators(suite), ceilings_of(frames.ceilings_frame(suite.trials[:0]))).empty


def test_published_curves_are_shown_under_their_own_protocol_only(suite: Section) -> None:
    rows = _operators(suite)
    assert {point.curve for point in published.operator_times(rows)} == {
        f"published, A100: {name}" for name in ("FlashAttention-2", "Convolution", "Scan (PyTorch)", "Scan (ours)")
    }
    assert published.operator_times(_operators(suite, "train")) == []
    assert published.operator_times(_operators(suite, mode="64K tokens a batch")) == []
    for column, value in (("dtype", "float32"), ("width", 2048.0), ("d_state", 64.0), ("batch", 2.0)):
        assert published.operator_times(rows.assign(**{column: value})) == []


def test_published_figures_are_those_of_the_file() -> None:
    assert published.operator_time("FlashAttention-2", 131072) == pytest.approx(242, rel=0.01)
    bars = {(point.curve, point.x): point.value for point in published.throughputs()}
    assert bars["published, A100: Mamba 1.4B", 128.0] == 1814
    assert len(bars) == 14  # two of the sixteen ran out of memory
    assert {point.x for point in published.training_memory()} == {1, 2, 4, 8, 16, 32}


def test_generation_is_compared_at_equal_and_at_best_batches(suite: Section) -> None:
    generated = frames.generation_frame(suite.trials)
    found = generation.comparisons(generated)
    for where, fast, slow in found:
        assert style.is_attention(slow.model) and not style.is_attention(fast.model)
        assert where == "best" or fast.batch == slow.batch
        value, low, high = generation.speedup(fast, slow)
        assert low <= value <= high
        assert value == pytest.approx(fast.tokens_per_s / slow.tokens_per_s)
    best = {(fast.model, slow.loop): (fast.batch, slow.batch) for where, fast, slow in found if where == "best"}
    assert best["mamba-1.4b", "cuda_graph"] == (2048, 256)
    assert best["mamba-1.4b", "transformers"] == (2048, 64)
    table = speed_tables.generation_table(generated)
    assert set(table["Largest batch"]) == {"2,048", "1,024", "256", "64"}


def test_tokens_a_second_agree_with_the_records(suite: Section) -> None:
    generated = frames.generation_frame(suite.trials)
    recorded = {
        (row["model"], row["loop"], row["points_batch"]): row["tokens_per_s"] for row in generated.to_dict("records")
    }
    for point in generation.throughputs(generated):
        # The median of sums and the sum of medians differ by the samples' spread alone.
        assert point.tokens_per_s == pytest.approx(recorded[point.model, point.loop, point.batch], rel=0.03)


def test_operators_look_like_their_family_and_apart_from_each_other() -> None:
    looks = style.model_styles([*style.OPERATORS, "mamba-tiny", "transformer-tiny", "s4d-tiny", "mamba2-tiny"])
    for operator, model in (("selective_scan", "mamba"), ("attention", "transformer"), ("ssd", "mamba2")):
        assert looks[operator].color == looks[f"{model}-tiny"].color
    operators = [looks[name] for name in style.OPERATORS]
    assert len({(look.color, look.marker, str(look.line)) for look in operators}) == len(operators)
    assert style.DASHDOT != (0, (4, 3))


def test_families_have_colours_of_their_own() -> None:
    looks = style.model_styles([f"{name}-130m" for name in style.FAMILIES])
    assert len({look.color for look in looks.values()}) == len(style.FAMILIES)
    variants = style.model_styles(["transformer-tiny", "transformer_alibi-tiny", "transformer_xpos-tiny"])
    assert len({look.marker for look in variants.values()}) == 1
    assert len({str(look.line) for look in variants.values()}) == 3


def test_a_quick_run_has_none_of_these_sections(section: Section) -> None:
    assert section.claims == []
    assert not frames.has_speed_suite(section.trials)
    names = {d.name for d in all_figures(section.speed, section.training, section.scores, section.trials)}
    assert names == {d.name for d in all_figures(section.speed, section.training, section.scores)}


def test_the_page_holds_the_sections_that_have_records(records: list[builder.Record], tmp_path: Path) -> None:
    few = [r for r in records if r["trial"]["kind"] == "generation" or r["trial"]["protocol"].get("level") == "ceiling"]
    page = write_pages(few, {"env-a": speed_suite.ENVIRONMENT}, [], tmp_path, "c").read_text(encoding="utf-8")
    for phrase in (
        "Claims about speed and memory",
        "Conditions of the timings",
        "Ceilings of this device",
        "Generation: speedup over attention",
    ):
        assert phrase in page
    for phrase in ("Crossovers of every pair", "Training memory against batch"):
        assert phrase not in page
    assert (tmp_path / "figures" / "generation-throughput-1-4b-2048.png").is_file()


def test_few_samples_of_a_generation_and_launch_bound_points_of_a_roofline_are_marked(
    drawings: dict[str, Drawing],
) -> None:
    few = builder.generation(
        "mamba-1.4b", 4, prefill=[1.0] * 3, decode=[9.0] * 3, few_samples="3 of 5: outlasts", state_bytes=8
    )
    many = builder.generation("mamba-1.4b", 8, prefill=[1.0] * 5, decode=[9.0] * 5, state_bytes=16)
    frame = frames.generation_frame(frames.trials_frame([few, many]))
    for figure in (generation.throughput_figure(frame), generation.phases_figure(frame)):
        assert set(figure.data.loc[figure.data["mark"] == "few_samples", "batch"]) == {4}
        assert "few samples" in " ".join(text.get_text() for text in figure.figure.legends[0].get_texts())
    bound = builder.generation(
        "mamba-1.4b", 16, prefill=[1.0] * 5, decode=[9.0] * 5, host_ms=[9.5] * 5, launch_bound=True, state_bytes=32
    )
    ringed = generation.throughput_figure(frames.generation_frame(frames.trials_frame([few, many, bound]))).data
    assert set(ringed.loc[ringed["mark"] == "launch_bound", "batch"]) == {16}
    data = drawings["roofline-operator-forward-width1024-state16"].data
    measured = set(data.loc[data["mark"] == "measured", ["model", "flop_per_byte", "value"]].itertuples(index=False))
    bound = set(data.loc[data["mark"] == "launch_bound", ["model", "flop_per_byte", "value"]].itertuples(index=False))
    assert bound and bound < measured


def test_the_loops_of_one_model_look_apart_without_colour(suite: Section) -> None:
    looks = generation.subject_styles(frames.generation_frame(suite.trials))
    mine = [look for name, look in looks.items() if name.startswith("transformer-1.4b")]
    assert len({look.marker for look in mine}) == len(mine) > 1


def test_every_claim_is_listed() -> None:
    listed = {row[0] for row in rows_of("claims")[1:]}
    nothing = frames.trials_frame([], {})
    claims = judge_speed_claims(frames.speed_frame(nothing), frames.generation_frame(nothing))
    assert {claim.id for claim in claims} < listed
