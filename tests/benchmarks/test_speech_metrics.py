"""Generated speech is scored in the right order, the classifier is what it says, and bad clips are refused."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.speech_metrics import COLUMNS, DEFAULT_TABLE, main, read_folder, score_clips, table_rows
from benchmarks.speech_metrics_classifier import ABOUT, DEFAULT_FOLDER, WEIGHTS, as_heard, hear, load_classifier
from benchmarks.speech_metrics_training import Protocol, disturb, mask, train_classifier
from tasks import TaskError
from tasks.audio.clips import CLIP_LEN, DIGITS
from tasks.audio.embedded_speech import word_documents
from tasks.audio.waveform import SAMPLE_RATE_HZ, mu_law_decode

soundfile = pytest.importorskip("soundfile")

SOURCES = ("fsdd", "speech_commands_v001_sample")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SEQBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "speech-cache"))


def clips(num: int = 40, seed: int = 0, *, rms: float = 0.1) -> torch.Tensor:
    return (rms * torch.randn(num, CLIP_LEN, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def write_digits(folder: Path, *, speakers: str = "", num: int = 12) -> Path:
    """The embedded vowels as recordings of digits, a few made-up speakers."""
    for raw in word_documents(DIGITS):
        speaker = int(raw.group[-2:])
        if speaker < num:
            path = folder / f"{speakers}{raw.name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, mu_law_decode(torch.from_numpy(raw.tokens).long()).numpy(), SAMPLE_RATE_HZ)
    return folder


# ---- the committed classifier


def test_the_committed_classifier_is_small_whole_and_says_how_good_it_is():
    trained = load_classifier()
    about = trained.about
    assert (DEFAULT_FOLDER / WEIGHTS).stat().st_size < 1e6
    assert about["num_parameters"] == sum(p.numel() for p in trained.network.parameters())
    accuracy = about["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"] and accuracy["value"] > 0.9
    assert all(re.fullmatch("[0-9a-f]{64}", source["sha256"]) for source in about["sources"])
    tested = {name for source in about["sources"] for name in source["test"]["by_speaker"]}
    assert len(tested) == about["test_speakers"] and about["train_speakers"] > len(tested)
    assert trained.reference.num_items == about["train_clips"]


def test_noise_and_silence_score_badly_and_alike_clips_have_no_inception():
    noise = score_clips(clips(), SAMPLE_RATE_HZ)
    silence = score_clips(torch.zeros(40, CLIP_LEN), SAMPLE_RATE_HZ)
    assert silence["inception_score"] == pytest.approx(1)
    assert silence["modified_inception_score"] == pytest.approx(1)
    for scores in (noise, silence):
        assert scores["fid"] > 1 and scores["inception_score"] < 3 and scores["am_score"] > 0.5
        assert scores["clips"] == 40 and len(scores["classifier_sha256"]) == 64


@pytest.mark.conformance
def test_real_digits_score_best(real_sources):
    trained = load_classifier()
    rows = {(row["clips_of"], row["against"]): row for row in table_rows(trained, real_sources)}
    halves = rows["half of the training clips", "the other half"]
    test = rows["test speakers", "all training clips"]
    noise, silence, repeated = (
        rows[what, "all training clips"] for what in ("white noise", "silence", "one training clip, repeated")
    )
    assert halves["fid"] < test["fid"] < min(noise["fid"], silence["fid"], repeated["fid"])
    assert halves["fid"] < 0.02 * min(noise["fid"], silence["fid"])
    assert 9 < halves["inception_score"] < 10 and test["inception_score"] > 7.5
    assert max(row["inception_score"] for row in (noise, silence, repeated)) < 2
    assert halves["modified_inception_score"] > test["modified_inception_score"] > noise["modified_inception_score"]
    assert halves["am_score"] < test["am_score"] < min(noise["am_score"], silence["am_score"], repeated["am_score"])
    assert repeated["inception_score"] == pytest.approx(1)
    # So few clips score worse than all, by more than nothing and less than noise does.
    ends = [rows[f"test speakers, {end} of 200 draws", "all training clips"] for end in ("2.5 %", "median", "97.5 %")]
    assert ends[0]["fid"] < ends[1]["fid"] < ends[2]["fid"] < noise["fid"] and ends[1]["fid"] > test["fid"]
    assert {row["clips"] for row in ends} == {64}


@pytest.fixture(scope="module")
def real_sources() -> list[Path]:
    named = os.environ.get("SEQBENCH_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    sources = [root / "audio" / name for name in SOURCES]
    if missing := [source for source in sources if not source.is_dir()]:
        pytest.skip(f"no real digits: {missing[0]} is missing")
    return sources


def test_the_committed_table_has_the_known_sets():
    lines = DEFAULT_TABLE.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.partition(",")[0] for line in lines[1:5]] == [
        "half of the training clips", "half of the training clips", "test speakers", "white noise",
    ]  # fmt: skip


# ---- what is refused


@pytest.mark.parametrize(
    ("waveforms", "rate", "message"),
    [
        (clips(), 8_000, "sample_rate=8000 Hz: clips are scored at 16000 Hz"),
        (clips(32), SAMPLE_RATE_HZ, r"32 item\(s\) are too few for the covariance of 32 features; give 33 or more"),
        (clips() * 20, SAMPLE_RATE_HZ, r"a sample of size .* is beyond \[-1, 1\]"),
        (torch.zeros(40, CLIP_LEN + 1), SAMPLE_RATE_HZ, r"clips of 16001 samples are longer than a second"),
        (torch.zeros(CLIP_LEN), SAMPLE_RATE_HZ, r"shape \(16000,\) are not \(clips, samples\)"),
        (torch.zeros(40, 0), SAMPLE_RATE_HZ, r"shape \(40, 0\) are not"),
    ],
)
def test_clips_that_cannot_be_scored(waveforms, rate, message):
    with pytest.raises(ValueError, match=message):
        score_clips(waveforms, rate)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_placed(bad):
    waveforms = clips()
    waveforms[7, 123] = bad
    with pytest.raises(ValueError, match="clip 7: sample 123 is not a finite number"):
        score_clips(waveforms, SAMPLE_RATE_HZ)


def test_folders(tmp_path):
    with pytest.raises(TaskError, match="no recording"):
        read_folder(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.full((8_000, 2), 0.25), 16_000, subtype="PCM_24")
    soundfile.write(tmp_path / "b.flac", np.full(4_000, 0.25), 8_000)
    heard = read_folder(tmp_path)
    assert heard.shape == (2, CLIP_LEN)
    assert (heard[:, :8_000] == 0).all() and float(heard[:, 9_000:15_000].sub(0.25).abs().max()) < 1e-3
    (tmp_path / "c.wav").write_bytes(b"")
    with pytest.raises(TaskError, match=r"c\.wav: 0 bytes"):
        read_folder(tmp_path)
    soundfile.write(tmp_path / "c.wav", np.zeros(16_001), 16_000)
    with pytest.raises(TaskError, match=r"c\.wav: 16001 samples at 16000 Hz are not 1 to 16000"):
        read_folder(tmp_path)


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert main(["score", str(tmp_path)]) == 2
    assert "no recording" in capsys.readouterr().err
    assert main(["train", "--source", str(tmp_path / "none"), "--classifier", str(tmp_path)]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["train", "--source", str(tmp_path), "--classifier", str(tmp_path), "--epochs", "0"]) == 2
    assert "epochs=0 is below 1" in capsys.readouterr().err


# ---- training


@pytest.fixture(scope="module")
def trained_on_vowels(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vowels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQBENCH_CACHE", str(root / "cache"))
        train_classifier([write_digits(root / "digits")], root / "classifier", Protocol(epochs=12), say=lambda _: None)
    return root


def test_training_learns_and_what_is_saved_answers_alike(trained_on_vowels):
    folder = trained_on_vowels / "classifier"
    first, second = load_classifier(folder), load_classifier(folder)
    assert first.about["train_accuracy"]["value"] > 0.25, "0.1 by chance"
    assert first.about["train_speakers"] + first.about["test_speakers"] == 12
    heard = as_heard(clips(3), SAMPLE_RATE_HZ)
    assert torch.equal(hear(first.network, heard)[1], hear(second.network, heard)[1])
    scores = score_clips(clips(), SAMPLE_RATE_HZ, folder=folder)
    assert scores["classifier_sha256"] == json.loads((folder / ABOUT).read_text())["weights_sha256"]


def test_the_control_tells_words_apart_that_can_be(tmp_path):
    source, out = write_digits(tmp_path / "words"), tmp_path / "control.json"
    assert main(["commands", "--source", str(source), "--out", str(out), "--epochs", "12"]) == 0
    found = json.loads(out.read_text())
    assert found["words"] == sorted(DIGITS) and found["chance"] <= 0.2
    assert (
        found["accuracy"]["test"]["n"] == found["clips"]["test"] and found["accuracy"]["test"]["low"] > found["chance"]
    )
    assert sum(found["clips"].values()) == 120 and found["source"]["sha256"]


def test_more_words_than_the_control_has_answers(tmp_path, capsys):
    for raw in word_documents((*DIGITS, "ten")):
        path = tmp_path / "words" / raw.name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, mu_law_decode(torch.from_numpy(raw.tokens).long()).numpy(), SAMPLE_RATE_HZ)
    assert main(["commands", "--source", str(tmp_path / "words"), "--out", str(tmp_path / "none.json")]) == 2
    assert "has 10 answers, 11 words were found; give a source of fewer" in capsys.readouterr().err


def test_no_classifier_and_damaged_ones(trained_on_vowels, tmp_path):
    with pytest.raises(ValueError, match=r"no classifier \(classifier\.json is missing\); train one"):
        load_classifier(tmp_path)
    for name in (WEIGHTS, ABOUT):
        (tmp_path / name).write_bytes((trained_on_vowels / "classifier" / name).read_bytes())
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match="its sha256 is"):
        load_classifier(tmp_path)
    (tmp_path / ABOUT).write_text("{")
    with pytest.raises(ValueError, match="not a classifier of this version"):
        load_classifier(tmp_path)


def test_nobody_is_trained_on_and_tested(tmp_path):
    two = write_digits(tmp_path / "two", num=2)
    with pytest.raises(TaskError, match=r"speaker0\d.* would be trained on and tested"):
        train_classifier([two], tmp_path / "classifier", Protocol(epochs=1))
    assert not (tmp_path / "classifier").exists()


def test_disturbed_clips_stay_clips_and_undisturbed_places_are_kept():
    rng = torch.Generator().manual_seed(0)
    heard = clips(4, rms=0.3)
    changed = disturb(heard, rng)
    assert changed.shape == heard.shape and bool(torch.isfinite(changed).all()) and float(changed.abs().max()) <= 1
    assert torch.equal(
        disturb(heard, torch.Generator().manual_seed(5)), disturb(heard, torch.Generator().manual_seed(5))
    )
    spectrogram = torch.ones(200, 40, 101)
    masked = mask(spectrogram, rng)
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    assert 0.3 < float((masked[:, 30:].amax((1, 2)) == 0).float().mean()) < 0.7, "half lose what lies above 4 kHz"
    assert bool((masked[:, :24].amax((1, 2)) == 1).all())


def test_silence_has_an_empty_spectrogram():
    network = load_classifier().network
    spoken, silent = (network.spectrogram(as_heard(waves, SAMPLE_RATE_HZ)) for waves in (clips(1), torch.zeros(1, 9)))
    assert float(silent.max()) < 0.01 < 0.3 < float(spoken.mean())
