"""Every figure shows its data and nothing else, and every failure is on it."""

from __future__ import annotations

import math
import sys
from itertools import combinations, pairwise, product

import numpy as np
import pandas as pd
import pytest
import record_builder as builder
from matplotlib.lines import Line2D

from reports import frames, style
from reports.drawing import Drawing
from reports.figures import (
    accuracy_figure,
    all_figures,
    bits_figure,
    losses_figure,
    memory_figure,
    positions_figure,
    speedup_figure,
    time_figure,
)
from reports.logged_figures import FILLS, MARKS, SEED_WIDTH, validation_figure, validation_losses_figure
from reports.page import Section


@pytest.fixture(scope="module")
def drawings(section: Section) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in all_figures(section.speed, section.training, section.scores)}


def _points(array: object) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in np.asarray(array, dtype=float)}


def _drawn(drawing: Drawing) -> set[tuple[float, float]]:
    """Every point of every line and dot on the panels, less what spans an axis."""
    points: set[tuple[float, float]] = set()
    for axes in drawing.figure.axes:
        for line in axes.get_lines():
            if line.get_transform() == axes.transData:
                points |= _points(line.get_xydata())
        for dots in axes.collections:
            if dots.get_offset_transform() == axes.transData:
                points |= _points(dots.get_offsets())
    return {point for point in points if all(map(math.isfinite, point)) and point != (0.0, 0.0)}


def test_all_kinds_of_figures_are_drawn(drawings: dict[str, Drawing]) -> None:
    assert set(drawings) == {
        "accuracy-selective-copying",
        "accuracy-induction-heads",
        "bits-language",
        "bits-dna",
        "bits-audio",
        "positions-language",
        "positions-dna",
        "losses",
        *(f"{kind}-{point}" for kind in ("time", "memory", "speedup") for point in ("operator-forward", "model-train")),
    }


def test_a_figure_shows_exactly_its_data(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        data = drawing.data
        x = next(name for name in ("seq_len", "position", "step") if name in data)
        y = "loss" if "loss" in data else "value"
        shown = data[data["mark"].isin(["measured", "predicted", "seed", "loss"])]
        expected = {(float(a), float(b)) for a, b in zip(shown[x], shown[y], strict=True)}
        assert _drawn(drawing) == expected, drawing.name


def test_every_failed_trial_is_in_the_data_of_each_figure_of_its_group(
    section: Section, drawings: dict[str, Drawing]
) -> None:
    for row in section.speed[section.speed["status"] != "ok"].to_dict("records"):
        for kind in ("time", "memory", "speedup"):
            data = drawings[f"{kind}-{row['level']}-{row['direction']}"].data
            found = data[
                (data["mark"] == "failed") & (data["model"] == row["model"]) & (data["seq_len"] == row["seq_len"])
            ]
            assert list(found["status"]) == [row["status"]]
            assert row["error_message"] in found["note"].iloc[0]
    failed = section.training[section.training["status"] != "ok"]
    notes = " ".join(
        note for drawing in drawings.values() if "note" in drawing.data for note in drawing.data["note"].dropna()
    )
    assert all(trial_id[:8] in notes for trial_id in failed["trial_id"])


def test_every_mark_of_a_failure_is_on_the_rail(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        failed = drawing.data[drawing.data["mark"] == "failed"]
        rails = [child for axes in drawing.figure.axes for child in axes.child_axes]
        marks = sum(np.asarray(dots.get_offsets()).shape[0] for rail in rails for dots in rail.collections)
        assert marks == len(failed), drawing.name


def test_nothing_is_drawn_as_zero_or_as_measured_where_it_was_not(drawings: dict[str, Drawing]) -> None:
    for name, drawing in drawings.items():
        if name != "losses":
            assert (drawing.data["value"].dropna() > 0).all()
            assert set(drawing.data.loc[drawing.data["mark"] == "measured", "status"]) <= {"ok"}


def test_embedded_data_are_stamped_and_others_are_not(drawings: dict[str, Drawing]) -> None:
    for name, drawing in drawings.items():
        texts = " ".join(text.get_text() for text in drawing.figure.texts)
        expected = name in ("bits-language", "positions-language", "losses")
        assert (style.STAMP in texts) == expected, name
        assert (style.STAMP in drawing.caption) == expected, name


def test_no_text_is_clipped_and_the_legend_meets_no_panel(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        sheet = drawing.figure
        sheet.draw_without_rendering()
        (legend,) = sheet.legends
        below = legend.get_window_extent()
        for axes in sheet.axes:
            panel = axes.get_tightbbox()
            assert panel is not None
            assert panel.y0 >= below.y1, drawing.name
        for box in [below, *(text.get_window_extent() for text in sheet.texts)]:
            assert box.x0 >= 0, drawing.name
            assert box.x1 <= sheet.bbox.x1, drawing.name
            assert box.y0 >= 0, drawing.name
        labels = [label for label in sheet.axes[0].get_xticklabels() if label.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), drawing.name


def test_predictions_and_slopes_and_crossovers_are_named_in_the_legend(drawings: dict[str, Drawing]) -> None:
    legend = " ".join(text.get_text() for text in drawings["time-model-train"].figure.legends[0].get_texts())
    for phrase in ("predicted, not measured", "slope 1.0", "faster than transformer-tiny from", "oom", "skipped"):
        assert phrase in legend


def _speed(records: list[builder.Record]) -> pd.DataFrame:
    return frames.speed_frame(frames.trials_frame(records))


CROSSING = ("fft_conv", "selective_scan", "selective_scan_torch", "ssd")


@pytest.mark.parametrize(
    "crossed",
    [(1024, 1030, 1060, 1024), (31e3, 34e3, 32e3, 33e3), (2e5,) * 4, (1e6, 1.04e6, 1.02e6, 1e6), (2e3, 9e5, 2e5, 1e5)],
    ids=["shortest", "middle", "same", "longest", "apart"],
)
def test_names_of_crossovers_meet_no_other_no_line_and_no_edge(crossed: tuple[float, ...]) -> None:
    lengths = [2**power for power in range(10, 21)]
    times = {"attention": lengths, **{name: [at] * len(lengths) for name, at in zip(CROSSING, crossed, strict=True)}}
    records = [
        builder.speed(name, seq_len, latency=[time] * 5)
        for name in times
        for seq_len, time in zip(lengths, times[name], strict=True)
    ]
    sheet = time_figure(_speed(records)).figure
    sheet.draw_without_rendering()
    (axes,) = sheet.axes
    assert {name.get_text() for name in axes.texts} == set(CROSSING)
    names, panel = [name.get_window_extent() for name in axes.texts], axes.get_window_extent()
    upright = axes.get_xaxis_transform()
    lines = [line.get_window_extent() for line in axes.get_lines() if line.get_transform() == upright]
    assert len(lines) == len(names)
    assert not any(one.overlaps(other) for one, other in [*combinations(names, 2), *product(names, lines)])
    assert all(panel.containsx(x) and panel.containsy(y) for name in names for x, y in name.corners())


def test_a_figure_refuses_what_does_not_compare() -> None:
    frame = _speed([builder.speed("a", 1024, latency=[1.0], direction=name) for name in ("forward", "train")])
    with pytest.raises(ValueError, match="one group of comparable trials, not 2"):
        time_figure(frame)


def test_figures_of_failures_alone_say_that_nothing_was_measured() -> None:
    frame = _speed([builder.speed("a", 1024, "error", message="boom")])
    for drawing in (time_figure(frame), memory_figure(frame)):
        assert set(drawing.data["mark"]) == {"failed"}
        assert "nothing measured" in " ".join(text.get_text() for text in drawing.figure.axes[0].texts)


def test_there_is_no_speedup_without_attention() -> None:
    assert speedup_figure(_speed([builder.speed("mamba-tiny", 1024, latency=[1.0])])) is None


def test_seeds_are_shown_beside_their_mean() -> None:
    records = [builder.training("a", "dna", seed, bits_per_token=builder.bits(1.8 + 0.1 * seed)) for seed in range(3)]
    data = bits_figure(frames.scores_frame(frames.training_frame(frames.trials_frame(records)))).data
    measured = data[data["mark"] == "measured"].iloc[0]
    assert (measured["value"], measured["low"], measured["high"]) == pytest.approx((1.9, 1.79, 2.01))
    assert sorted(data.loc[data["mark"] == "seed", "value"]) == pytest.approx([1.8, 1.9, 2.0])


@pytest.mark.parametrize(("windows", "banded"), [(2, False), (3, True)])
def test_a_bin_of_too_few_windows_has_no_band(windows: int, banded: bool) -> None:
    bins = [{"start": 0, "stop": 64, **builder.bits(1.9, 2.5, n=windows)}]
    score = {"seq_len": 64, "status": "ok", "bits_per_token": builder.bits(1.9), "bits_by_position": bins}
    records = [builder.training("a", "dna", 0, scores=[score])]
    scores = frames.scores_frame(frames.training_frame(frames.trials_frame(records)))
    drawing = positions_figure(frames.positions_frame(scores))
    assert drawing is not None
    measured = drawing.data[drawing.data["mark"] == "measured"].iloc[0]
    assert measured["value"] == pytest.approx(1.9)
    assert math.isfinite(measured["low"]) == math.isfinite(measured["high"]) == banded


def test_looks_are_fixed_by_the_family() -> None:
    few, many = style.model_styles(["mamba-tiny"]), style.model_styles(["a-b", "mamba-tiny", "s4d-base", "zeta"])
    assert few["mamba-tiny"] == many["mamba-tiny"]
    assert len({(look.color, look.marker) for look in many.values()}) == 4


@pytest.mark.parametrize(
    "models",
    [
        ("mamba-unet8x4", "mamba_complex-unet8x4"),
        ("mamba-tiny", "mamba-small", "mamba_complex-tiny", "mamba_complex-small"),
        ("transformer-tiny", "transformer_alibi-tiny", "transformer_absolute-tiny", "transformer_xpos-tiny"),
        ("transformer-tiny", "gpt_neox-tiny", "pythia-160m", "llama-1b"),
        ("mamba_complex-tiny", "mamba_real-tiny"),
    ],
)
def test_relatives_in_one_figure_are_told_apart(models: tuple[str, ...]) -> None:
    looks = style.model_styles(models)
    assert len({look.marker for look in looks.values()}) == 1
    assert len({(look.color, str(look.line)) for look in looks.values()}) == len(models)
    for one, other in combinations(models, 2):
        if style.family(one) != style.family(other) and style.size(one) == style.size(other):
            assert looks[one].color != looks[other].color and looks[one].line != looks[other].line


def test_a_variant_without_relatives_has_its_familys_colour() -> None:
    alone = style.model_styles(["mamba_complex-unet3x16", "s4d-unet3x16"])["mamba_complex-unet3x16"]
    assert (alone.color, alone.marker) == style.FAMILIES["mamba"]


def _lab(color: str) -> np.ndarray:
    """CIE L*a*b* of #RRGGBB, in which a distance of 2 is just seen."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_families_that_are_not_fixed_are_far_from_the_baselines() -> None:
    for name, (other, _) in product(("mamba", "transformer", "s4d"), style.OTHERS):
        distance = np.linalg.norm(_lab(style.FAMILIES[name][0]) - _lab(other))
        assert distance > 25, (name, other, distance)


def _logged(seeds: int, points: int = 60) -> list[Drawing]:
    """Losses and accuracies of two models whose curves coincide."""
    curve = [[step, 1.0] for step in range(1, points + 1)]
    records = [
        builder.training(model, task, seed, loss_curve=curve, validation_curve=curve, validation_loss_curve=curve)
        for model, task, seed in product(
            ("mamba-tiny", "mamba_complex-tiny"), ("induction_heads", "audio"), range(seeds)
        )
    ]
    training = frames.training_frame(frames.trials_frame(records))
    found = (
        losses_figure(frames.losses_frame(training)),
        validation_losses_figure(frames.validation_losses_frame(training)),
        validation_figure(frames.validation_frame(training)),
    )
    assert None not in found
    return [drawing for drawing in found if drawing is not None]


@pytest.mark.parametrize("seeds", [1, 3])
def test_marks_of_logged_curves_stand_apart_and_are_those_of_the_legend(seeds: int) -> None:
    for drawing in _logged(seeds):
        shown = {(line.get_color(), line.get_marker()) for line in drawing.figure.legends[0].get_lines()}
        for axes in drawing.figure.axes:
            lines = axes.get_lines()
            assert len(lines) == 2 * seeds
            assert {(line.get_color(), line.get_marker()) for line in lines} <= shown
            places = [place for line in lines for place in line.get_markevery()]
            assert len(places) == len(set(places)) == len(lines) * MARKS
            for one, other in product(lines, lines):
                assert one.get_linewidth() >= other.get_linewidth() or one.get_zorder() > other.get_zorder()


def _filling(line: Line2D) -> tuple[str, bool]:
    return str(line.get_fillstyle()), line.get_markerfacecolor() == "white"


@pytest.mark.parametrize("seeds", [1, 2, 3, len(FILLS), len(FILLS) + 1])
def test_seeds_of_a_logged_curve_are_told_apart_where_the_legend_names_them(seeds: int) -> None:
    for drawing in _logged(seeds):
        legend = drawing.figure.legends[0]
        named = [text.get_text() for text in legend.get_texts() if text.get_text().startswith("seed ")]
        told = 1 < seeds <= len(FILLS)
        assert named == ([f"seed {seed}" for seed in range(seeds)] if told else [])
        for axes in drawing.figure.axes:
            fillings = {_filling(line) for line in axes.get_lines()}
            assert len(fillings) == (seeds if told else 1)
            assert all(line.get_linewidth() <= SEED_WIDTH for line in axes.get_lines()) or seeds == 1


def test_losses_have_a_unit() -> None:
    labels = {axes.get_title(loc="left"): axes.get_ylabel() for axes in _logged(1)[0].figure.axes}
    assert labels == {"Induction heads at 256": "Loss (nats)", "Audio at 256": "Loss (nats per sample)"}


@pytest.mark.parametrize(("task", "flagged"), [("induction_heads", True), ("species", False)])
def test_accuracies_of_fewer_examples_than_asked_for_are_marked(task: str, flagged: bool) -> None:
    scores = [
        {"seq_len": seq_len, "status": "ok", "accuracy": builder.share(0.5, n), "examples": n}
        for seq_len, n in ((256, 64), (1024, 16), (4096, 3))
    ]
    record = builder.training("a", task, scores=scores)
    record["trial"]["protocol"] |= {"min_examples": 4, "max_examples": 64, "score_tokens": 2**14}
    frame = frames.scores_frame(frames.training_frame(frames.trials_frame([record])))
    assert list(frame["few_examples"]) == [False, False, True]
    drawing = accuracy_figure(frame)
    assert list(drawing.data.loc[drawing.data["mark"] == "few_examples", "seq_len"]) == ([4096] if flagged else [])
    named = any("fewer examples" in text.get_text() for text in drawing.figure.legends[0].get_texts())
    assert named == flagged


def test_no_global_pyplot_state_is_touched(drawings: dict[str, Drawing]) -> None:
    assert drawings
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1024, "1K"),
        (2**20, "1M"),
        (3174, "3.1K"),
        (96, "96"),
        (1536, "1.5K"),
        (None, style.NONE),
        (math.nan, style.NONE),
    ],
)
def test_lengths_read_as_people_write_them(value: float | None, expected: str) -> None:
    assert style.length(value) == expected
