"""Generated audio: every loop samples what whole forwards would, and what does not fit is refused with a reason."""

import json
import sys
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks import audio_generation as generation
from benchmarks.audio_generation import measure_memory, predicted_audio_generation, run_audio_generation, verify
from benchmarks.audio_generation_clips import MAX_CLIPS, prompt_and_real, score_speech, write_wav
from benchmarks.audio_generation_command import main
from benchmarks.audio_generation_loops import EagerSampler
from benchmarks.audio_generation_sampling import Sampling
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import SuiteError, load_suite
from benchmarks.training_start import identify
from harness import Trial, Unsupported, WrongOutput
from models import build_model
from models.checkpoint import save_checkpoint
from tasks import make_task
from tasks.audio.clips import SILENCE

NEW = 40


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task():
    return make_task("audio")


def make_trial(model="mamba_complex-unet1x4", **changes) -> Trial:
    protocol = {"start": "silence", "new_samples": NEW, "loop": "eager", "temperature": 1.0, "top_p": 1.0, "source": {}}
    protocol |= {name: changes.pop(name) for name in [*protocol, "init_from"] if name in changes}
    fields = dict(
        kind="audio_generation", model=model, task="audio", seq_len=1, batch=2, dtype="float32", direction="forward",
        device="cpu", seed=3, protocol=protocol,
    )  # fmt: skip
    return Trial(**(fields | changes))


def measure(trial: Trial, **context) -> dict:
    return run_audio_generation(trial, context, lambda metrics: None)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_senseless_sampling_is_refused_by_its_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value:g}"):
        Sampling(**wrong)
    with pytest.raises(Unsupported, match=name):
        predicted_audio_generation(make_trial(**wrong))


def test_a_trial_gives_the_metrics_of_the_schema_and_its_sound(tmp_path):
    trial = make_trial(batch=MAX_CLIPS + 1)
    result = measure(trial, clips=str(tmp_path / "audio"), trial_id="ab" * 32)
    metrics, backend = result["metrics"], result["backend"]
    assert len(metrics["step_ms"]) == generation.PARTS
    per_step = trial.batch * 1e3 / np.mean(metrics["step_ms"])
    assert metrics["samples_per_s"] == pytest.approx(per_step, rel=1e-3)
    assert metrics["real_time_factor"] == pytest.approx(metrics["samples_per_s"] / trial.batch / 16000)
    model = build_model(trial.model, vocab_size=256)
    assert metrics["params"] == model.num_params
    assert metrics["state_bytes"] == model.state_bytes(1 + NEW, batch=trial.batch)
    assert metrics["max_relative_error"] < 1e-3 and backend["cuda_graph"] is False
    assert metrics["weights"] == "random" and metrics["speech_metrics"]["status"] == "unsupported"
    assert [len(metrics["clips"][kind]) for kind in ("generated", "real")] == [MAX_CLIPS, MAX_CLIPS]
    files = sorted(path.name for path in (tmp_path / metrics["clips"]["folder"]).iterdir())
    assert files == sorted(entry["file"] for kind in ("generated", "real") for entry in metrics["clips"][kind])
    json.dumps(metrics, allow_nan=False)


def test_one_seed_gives_one_sound_and_another_gives_another(tmp_path):
    def sound(folder, seed):
        measure(make_trial(seed=seed), clips=str(tmp_path / folder), trial_id="ab" * 32)
        return next((tmp_path / folder).rglob("generated-0.wav")).read_bytes()

    assert sound("a", 3) == sound("b", 3) != sound("c", 4)


def test_a_step_that_is_wrong_late_or_from_the_start_gives_no_speed(monkeypatch):
    trial = make_trial("s4d-tiny")
    right = EagerSampler._advance

    def wrong_from(place):
        def advance(self):
            logits_BV = right(self)
            return logits_BV + 0.1 * logits_BV.abs().max() if self._done >= place else logits_BV

        monkeypatch.setattr(EagerSampler, "_advance", advance)

    wrong_from(20)
    with pytest.raises(WrongOutput, match="step 20"):
        measure(trial)
    monkeypatch.setattr(generation, "verify", lambda *_: 0.0)
    with pytest.raises(WrongOutput, match="last logits of sequence 0"):
        measure(trial)


def test_the_check_is_long_enough_that_a_unets_slowest_stage_is_heard(monkeypatch):
    trial = make_trial("mamba_complex-unet3x16")
    model = build_model(trial.model, vocab_size=256).eval()
    right, centre = model.backbone.step, len(model.backbone.poolings)

    def step(x_BD, states, ticks, depth=0):
        return right(x_BD, states, ticks, depth) if depth < centre else torch.zeros_like(x_BD)

    prompt_BL = torch.full((1, 1), SILENCE)
    assert verify(trial, model, prompt_BL, EagerSampler) < 1e-3
    monkeypatch.setattr(model.backbone, "step", step)
    with pytest.raises(WrongOutput, match="step 272"):
        verify(trial, model, prompt_BL, EagerSampler)


def test_prompts_are_real_and_the_real_clips_go_on_from_them(task):
    trial = make_trial(start="data", seq_len=500, batch=3)
    prompt_BL, real_KN = prompt_and_real(trial, task)
    assert prompt_BL.shape == (3, 500) and real_KN.shape == (3, NEW)
    starts = task.evaluation_windows("test", 500 - 1 + NEW, 3).starts
    for row, start in enumerate(starts):
        tokens = torch.from_numpy(task.corpus.tokens[start : start + 500 + NEW].astype(np.int64))
        assert torch.equal(torch.cat([prompt_BL[row], real_KN[row]]), tokens)
    silent_BL, _ = prompt_and_real(make_trial(seq_len=7), task)
    assert silent_BL.shape == (2, 7) and set(silent_BL.flatten().tolist()) == {SILENCE}


def test_real_clips_of_digits_are_whole_and_end_where_a_prompts_clip_does():
    digits = make_task("digits")
    _, real_KN = prompt_and_real(make_trial(task="digits", new_samples=16_000), digits)
    assert real_KN.shape == (2, 16_000)
    _, rest_KN = prompt_and_real(make_trial(task="digits", start="data", seq_len=12_000, new_samples=16_000), digits)
    assert rest_KN.shape == (2, 16_000 - 12_000 + 1)  # a sample of silence stands before every clip


@pytest.mark.parametrize("length", [63, 16_000])
def test_a_prompt_longer_than_the_clip_is_refused_with_the_limit(length):
    with pytest.raises(Unsupported, match=rf"prompt of {length} samples is outside 64\.\.15999"):
        measure(make_trial(task="digits", start="data", seq_len=length))


def test_digits_of_a_second_are_scored_where_there_is_a_classifier_and_the_record_says_why_not(monkeypatch):
    trial, heard = make_trial(task="digits", new_samples=16_000), []

    def score_clips(waveforms_NL, sample_rate):
        heard.append((tuple(waveforms_NL.shape), sample_rate))
        if len(waveforms_NL) < 33:
            raise ValueError("2 clips are too few")
        return {"fid": 1.5}

    tokens_BN = torch.full((33, 16_000), SILENCE)
    monkeypatch.setitem(sys.modules, "benchmarks.speech_metrics", SimpleNamespace(score_clips=score_clips))
    assert score_speech(trial, tokens_BN) == {"status": "ok", "fid": 1.5}
    assert heard == [((33, 16_000), 16_000)]
    assert score_speech(trial, tokens_BN[:2]) == {"status": "unsupported", "reason": "2 clips are too few"}
    assert score_speech(make_trial(), tokens_BN)["status"] == "unsupported"  # music
    monkeypatch.setitem(sys.modules, "benchmarks.speech_metrics", None)
    assert score_speech(trial, tokens_BN)["status"] == "unsupported"
    assert len(heard) == 2


def test_wav_files_hold_the_samples(tmp_path):
    waveform_N = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 2.0, 1 / 32767])
    write_wav(tmp_path / "a.wav", waveform_N)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.allclose(pcm / 32767, waveform_N.clamp(-1, 1), atol=0.5 / 32767)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def checkpoint(folder, task_name, vocab_size, model="mamba_complex-unet1x4"):
    about = {"task": task_name, "train_len": 4096, "seed": 0}
    saved = build_model(model, vocab_size=vocab_size, seed=9)
    save_checkpoint(saved, folder, name=model, about=about)
    return identify(folder, model=model, seq_len=4096, seed=0)


def test_a_checkpoint_of_dna_is_refused_with_both_vocabularies(tmp_path):
    named = checkpoint(tmp_path / "dna", "dna", 5)
    with pytest.raises(Unsupported, match=r"trained on dna with 5 tokens, audio has 256"):
        measure(make_trial(init_from=named), init_from=str(tmp_path / "dna"))


def test_a_checkpoints_weights_are_what_generates(tmp_path):
    named = checkpoint(tmp_path / "music", "audio", 256)
    trained = measure(
        make_trial(init_from=named), init_from=str(tmp_path / "music"), clips=str(tmp_path / "a"), trial_id="a" * 64
    )
    random = measure(make_trial(), clips=str(tmp_path / "b"), trial_id="b" * 64)
    assert (trained["metrics"]["weights"], random["metrics"]["weights"]) == ("trained", "random")
    clips = [next((tmp_path / part).rglob("generated-0.wav")).read_bytes() for part in "ab"]
    assert clips[0] != clips[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "language"}, "needs the 256 mu-law levels"),
        ({"task": "commands"}, "needs the 256 mu-law levels"),
        ({"new_samples": 8}, "new_samples=8"),
        ({"loop": "cuda_graph"}, "loop=cuda_graph needs a CUDA device"),
        ({"start": "noise"}, "start='noise'"),
        ({"direction": "train"}, "direction='train'"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_reason(changes, message):
    with pytest.raises(Unsupported, match=message):
        measure(make_trial(**changes))


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["mamba_complex-unet1x4", "s4d-unet1x4", "transformer-unet1x4"])
@pytest.mark.parametrize("start", [{"start": "data", "seq_len": 1024}, {"new_samples": 16_000}], ids=["long", "silent"])
def test_the_predicted_peak_is_close_to_the_measured(name, start, task):
    trial = make_trial(name, batch=4, **start)
    predicted = predicted_audio_generation(trial)
    model = build_model(name, vocab_size=256)
    _, measured, _ = measure_memory(trial, model, prompt_and_real(trial, task)[0], EagerSampler)
    assert predicted.peak_bytes == pytest.approx(measured["peak_alloc_bytes"], rel=0.25)
    whole = model.describe(trial.seq_len + trial.protocol["new_samples"])
    assert predicted.flops == pytest.approx(4 * whole.forward_flops, rel=0.25)


def test_a_record_names_the_kernels_of_the_prompt_and_of_a_step():
    backend = measure(make_trial(model="transformer-unet1x4", seq_len=8))["backend"]
    assert backend["step_attention"] == "sdpa-held" and backend["attention"].startswith("sdpa-")


def test_the_suite_expands_for_both_devices_and_its_models_have_equal_parameters():
    suite = load_suite("audio-generation")
    for device in ("cpu", "cuda"):
        trials = [
            item.trial for item in expand(suite, Selection(), device=device, source_of={"audio": {"sha256": "a"}})
        ]
        assert {trial.kind for trial in trials} == {"audio_generation"}
        for task in {trial.task for trial in trials}:
            models = {trial.model for trial in trials if trial.task == task}
            params = {build_model(model, vocab_size=256).num_params for model in models}
            assert max(params) <= 1.05 * min(params)
    starts = {(t.protocol["start"], t.seq_len) for t in trials}
    assert starts == {("silence", 1), ("data", 2**16)}
    assert {t.protocol["source"].get("sha256") for t in trials if t.task == "audio"} == {"a"}
    assert any("init_from" in t.protocol for t in trials)


def test_checkpoints_of_a_suite_need_the_length_that_they_were_trained_at(tmp_path):
    entry = {
        "kind": "audio_generation", "models": ["mamba-tiny"], "batches": [1], "loops": ["eager"], "init_from": "there",
    }  # fmt: skip
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "description": "", "trials": [entry]}))
    with pytest.raises(SuiteError, match="init_from needs seq_len"):
        load_suite(str(path))


def test_the_command_writes_a_record_and_wav_files_and_explains_wrong_input(tmp_path, capsys):
    out = tmp_path / "out"
    named = ["--device", "cpu", "--out", str(out), "--threads", "1"]
    assert main(["--model", "s4d-tiny", "--seconds", "0.005", "--seed", "2", *named]) == 0
    (record,) = map(json.loads, (out / "records.jsonl").read_text().splitlines())
    assert record["status"] == "ok" and record["trial"]["protocol"]["new_samples"] == 80
    assert (out / record["metrics"]["clips"]["folder"] / "generated-0.wav").is_file()
    assert main(["--checkpoint", str(tmp_path), *named]) == 2
    assert "is no checkpoint" in capsys.readouterr().err
    assert main(["--model", "s4d-tiny", "--temperature", "-1", *named]) == 2
    assert "temperature" in capsys.readouterr().err
