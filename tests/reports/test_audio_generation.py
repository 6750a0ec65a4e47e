"""Generated audio in the report: players within limits, real clips beside, spectrograms that show what is there."""

from __future__ import annotations

import base64
import re
import wave

import numpy as np
import pytest
import record_builder as builder

from reports import audio_clips
from reports.audio_clips import MAX_BYTES, MAX_CLIPS, clip_groups
from reports.audio_generation import cost_table, published_speech_table
from reports.audio_spectrograms import RANGE_DB, WINDOW, level_db, spectrogram_figure
from reports.page import write_pages

ENVIRONMENTS = {"env-a": builder.ENVIRONMENT}
RATE_HZ = 16_000


def write_wav(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())


def tone(hz, num_samples=RATE_HZ // 4):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(num_samples) / RATE_HZ)


def record(folder, model, *, clips=2, weights="trained", status="ok", num_samples=RATE_HZ // 4, **changes):
    """A record of generation and, where it is ok, its wav files: the model hums at 1 kHz, the real ones at 3 kHz."""
    protocol = {"start": "silence", "new_samples": num_samples, "loop": "eager", "temperature": 1.0, "top_p": 1.0}
    trial = {
        "kind": "audio_generation", "model": model, "task": "audio", "seq_len": 1, "batch": clips, "dtype": "float32",
        "direction": "forward", "device": "cpu", "seed": 0, "protocol": protocol | changes.pop("protocol", {}),
    } | changes  # fmt: skip
    name = f"audio/{model}-{protocol_text(trial)}"
    kept = {"folder": name, "sample_rate_hz": RATE_HZ}
    for kind, hz in (("generated", 1000), ("real", 3000)):
        kept[kind] = [{"file": f"{kind}-{number}.wav", "rms": 0.35} for number in range(clips)]
        for entry in kept[kind] if status == "ok" else ():
            write_wav(folder / name / entry["file"], tone(hz, num_samples))
    metrics = {
        "samples_per_s": 12_500.0, "real_time_factor": 0.39, "step_ms": [0.16] * 8, "prefill_ms": [3.0],
        "peak_alloc_bytes": 2**20, "state_bytes": 2048, "params": 291_000, "weights": weights, "clips": kept,
        "source": {"name": "audio v1", "kind": "data root"},
    } if status == "ok" else {}  # fmt: skip
    made = builder._record(
        trial, status, "out of memory" if status == "oom" else "", "env-a", "2025-05-01", metrics, {}
    )
    return made | {"records_path": str(folder / "records.jsonl")}


def protocol_text(trial):
    return "-".join(str(trial["protocol"][key]) for key in ("start", "temperature", "top_p"))


def page_of(records, folder):
    return write_pages(records, ENVIRONMENTS, [], folder, "seqbench report x").read_text()


def players(page):
    return [base64.b64decode(data) for data in re.findall(r'<audio controls src="data:audio/wav;base64,([^"]+)"', page)]


def test_a_page_plays_the_models_clips_and_the_real_ones_beside(tmp_path):
    records = [record(tmp_path, "mamba_complex-unet1x4"), record(tmp_path, "s4d-unet1x4")]
    page = page_of(records, tmp_path / "report")
    found = players(page)
    files = sorted(path.read_bytes() for path in (tmp_path / "audio").rglob("*.wav"))
    assert len(found) == 6  # two real ones, once, and two a model
    assert set(found) == set(files)
    assert 'alt="Spectrograms: audio, from silence"' in page
    markdown = (tmp_path / "report" / "report.md").read_text()
    linked = re.findall(r"\]\((audio/[^)]+)\)", markdown)
    assert len(linked) == 6 and all((tmp_path / "report" / name).is_file() for name in linked)


def test_no_more_than_the_limit_is_played_of_a_model_whatever_it_was_sampled_with(tmp_path):
    records = [
        record(tmp_path, "mamba_complex-unet1x4", clips=6, protocol={"temperature": temperature})
        for temperature in (0.8, 1.0)
    ]
    (group,) = clip_groups(records, ENVIRONMENTS)
    assert len(group.generated) == MAX_CLIPS and len(group.real) == 6
    assert {clip.who for clip in group.generated} == {"mamba_complex-unet1x4", "mamba_complex-unet1x4, T 0.8"}
    assert group.left_out == 4
    assert len(players(page_of(records, tmp_path / "report"))) == MAX_CLIPS + 6


def test_a_page_holds_no_more_than_its_bytes_and_begins_with_everyones_first(tmp_path, monkeypatch):
    models = ("a-unet1x4", "b-unet1x4", "c-unet1x4")
    records = [record(tmp_path, model, clips=8) for model in models]
    one = clip_groups(records, ENVIRONMENTS)[0].real[0].page_bytes
    monkeypatch.setattr(audio_clips, "MAX_BYTES", 6 * one)
    (group,) = clip_groups(records, ENVIRONMENTS)
    numbers = {who: [clip.number for clip in clips] for who, clips in group.by_who().items()}
    assert sorted(map(len, numbers.values())) == [1, 1, 2, 2] and all(found[0] == 0 for found in numbers.values())
    embedded = sum(4 * -(-len(wav) // 3) for wav in players(page_of(records, tmp_path / "report")))
    assert embedded <= 6 * one and MAX_BYTES <= 5_000_000


def test_random_weights_and_failures_stand_in_the_table_and_are_not_played(tmp_path):
    records = [
        record(tmp_path, "mamba_complex-unet1x4", weights="random"),
        record(tmp_path, "transformer-unet1x4", status="oom"),
    ]
    page = page_of(records, tmp_path / "report")
    assert not players(page) and "out of memory" in page
    table = cost_table(records, ENVIRONMENTS).set_index("Model")
    assert table.loc["mamba_complex-unet1x4", "Samples/s"] == "12.5 K"
    assert table.loc["transformer-unet1x4", "Samples/s"] == "\N{EN DASH}"
    assert table.loc["transformer-unet1x4", "Status"] == "oom"


def test_rates_stand_over_those_of_attention_in_the_same_setting(tmp_path):
    models = ["mamba_complex-unet1x4", "s4d-unet1x4", "transformer-unet1x4"]
    records = [record(tmp_path, model, weights="random") for model in models]
    records[2]["metrics"]["samples_per_s"] = 5_000.0
    alone = record(tmp_path, "mamba_complex-unet1x4", clips=1, weights="random")
    table = cost_table([*records, alone], ENVIRONMENTS)
    assert table["Over attention"].tolist() == ["2.50x", "2.50x", "1.00x", "\N{EN DASH}"]


def test_scores_of_digits_stand_above_the_papers(tmp_path):
    made = record(tmp_path, "mamba-unet8x4", task="digits")
    figures = {"fid": 3.5, "inception_score": 4.5, "modified_inception_score": 20.5, "am_score": 0.75, "clips": 64}
    made["metrics"]["speech_metrics"] = {"status": "ok"} | figures
    page = page_of([made], tmp_path / "report")
    ours, theirs = page.index(">20.5</td>"), page.index("Mamba, 6.1M")
    assert ours < theirs and ">88.54</td>" in page and "a score may not" in page
    table = published_speech_table().set_index("Model")
    assert len(table) == 10
    assert dict(table.loc["Mamba, 24.3M", ["FID", "IS", "mIS", "AM"]]) == {
        "FID": "0.67", "IS": "7.33", "mIS": "144.9", "AM": "0.36",
    }  # fmt: skip
    assert table.loc["WaveGAN, 19.1M", "FID"] == "2.03"


def test_files_that_are_gone_or_lie_elsewhere_are_left_out(tmp_path):
    gone, kept = record(tmp_path, "a-unet1x4"), record(tmp_path, "b-unet1x4")
    for path in (tmp_path / gone["metrics"]["clips"]["folder"]).iterdir():
        path.unlink()
    write_wav(tmp_path.parent / "outside.wav", tone(500))
    kept["metrics"]["clips"] |= {"folder": "../", "generated": [{"file": "../outside.wav"}]}
    assert clip_groups([gone, kept], ENVIRONMENTS) == []


def test_other_reports_have_no_section_of_generated_audio(tmp_path):
    page = page_of([builder.speed("mamba-tiny", 1024, latency=[1.0] * 5)], tmp_path)
    assert "Raw audio, generated" not in page and not players(page)


@pytest.mark.parametrize("hz", [1000, 3000])
def test_a_spectrogram_has_its_power_where_the_tone_is(tmp_path, hz):
    write_wav(tmp_path / "tone.wav", tone(hz))
    level, seconds, top_khz = level_db(audio_clips.Clip(who="x", number=0, path=tmp_path / "tone.wav"))
    assert (seconds, top_khz) == (0.25, 8.0)
    loudest_hz = level.mean(axis=1).argmax() * RATE_HZ / WINDOW
    assert loudest_hz == pytest.approx(hz, abs=RATE_HZ / WINDOW)
    assert level.max() == pytest.approx(20 * np.log10(0.25), abs=0.5)  # half the amplitude, at each of two frequencies


def test_the_figure_has_the_real_clips_above_on_one_scale_and_the_stamp_of_stand_in_data(tmp_path):
    made = record(tmp_path, "mamba_complex-unet1x4")
    made["metrics"]["source"]["kind"] = "embedded"
    (group,) = clip_groups([made], ENVIRONMENTS)
    drawing = spectrogram_figure(group)
    images = [axes.images[0] for axes in drawing.figure.axes if axes.images]
    assert len(images) == 4
    assert {image.get_clim() for image in images} == {(images[0].get_clim()[1] - RANGE_DB, images[0].get_clim()[1])}
    assert any("EMBEDDED" in text.get_text() for text in drawing.figure.texts)
    loudest = drawing.data.loc[drawing.data.groupby("who")["mean_db"].idxmax()].set_index("who")["khz"]
    assert loudest["real"] == pytest.approx(3, abs=0.05)
    assert loudest["mamba_complex-unet1x4"] == pytest.approx(1, abs=0.05)


def test_clips_shorter_than_a_window_have_no_spectrogram(tmp_path):
    (group,) = clip_groups([record(tmp_path, "a-unet1x4", num_samples=WINDOW - 1)], ENVIRONMENTS)
    assert spectrogram_figure(group) is None
