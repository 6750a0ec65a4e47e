"""Clips of single words: labels, one second, published lists and rule, speakers apart, formats and damage."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import SPLITS, CorpusTask, ExampleStream, TaskError, make_task
from tasks.audio.clips import CLIP_LEN, DIGITS, SILENCE, WordClips, published_split, word_of
from tasks.audio.commands import Commands
from tasks.audio.digits import Digits
from tasks.audio.waveform import mu_law_decode, mu_law_encode
from tasks.base import IGNORE_INDEX
from tests.tasks.test_audio_tasks import encode, tone

pytestmark = pytest.mark.usefixtures("fresh_cache")

soundfile = pytest.importorskip("soundfile")

WORDS = ("left", "no", "yes")


def commands(**options) -> Commands:
    task = make_task("commands", **options)
    assert isinstance(task, Commands)
    return task


def digits(**options) -> Digits:
    task = make_task("digits", **options)
    assert isinstance(task, Digits)
    return task


def speaker(i: int) -> str:
    return f"{i:08x}"


def write_words(folder: Path, *, words=WORDS, num_speakers: int = 40, length_s: float = 1.0) -> Path:
    """A constant of its own for every word, so that a clip's word is plain."""
    for level, word in enumerate(words):
        (folder / word).mkdir(parents=True, exist_ok=True)
        for i in range(num_speakers):
            clip = np.full(int(16_000 * length_s), (level + 1) / 8)
            (folder / word / f"{speaker(i)}_nohash_0.wav").write_bytes(encode(clip))
    return folder


def write_fsdd(folder: Path, speakers=("ann", "bob", "cyd"), *, num_samples: int = 4000) -> Path:
    folder.mkdir(exist_ok=True)
    for digit in range(10):
        for name in speakers:
            sound = np.full(num_samples, (digit + 1) / 16)
            (folder / f"{digit}_{name}_0.wav").write_bytes(encode(sound, 8_000))
    return folder


# ---- labels and lengths


@pytest.mark.parametrize("split", SPLITS)
def test_the_label_is_the_word_and_stands_at_the_last_position_alone(tmp_path: Path, split) -> None:
    task = commands(source=write_words(tmp_path))
    assert task.words == WORDS and task.vocab_size == 256 + 3
    batch = task.sample(ExampleStream(split=split), 30, CLIP_LEN)
    assert (batch.targets_BL[:, :-1] == IGNORE_INDEX).all()
    levels = [int(mu_law_encode(torch.tensor([(i + 1) / 8]))[0]) for i in range(3)]
    heard = [levels.index(int(level)) for level in batch.inputs_BL[:, -1]]
    assert batch.targets_BL[:, -1].tolist() == [256 + label for label in heard]
    assert set(heard) == {0, 1, 2}


def test_training_clips_are_moved_and_silence_fills_the_gap(tmp_path: Path) -> None:
    source, shift = write_words(tmp_path), 1600
    still, moving = commands(source=source), commands(source=source, shift=shift)
    one, other = (task.sample(ExampleStream(), 40, CLIP_LEN) for task in (still, moving))
    assert torch.equal(one.targets_BL, other.targets_BL), "the clips are the same"
    gaps = set()
    for clip_L, moved_L in zip(one.inputs_BL, other.inputs_BL, strict=True):
        silent_L = moved_L == 128
        heard = silent_L.logical_not().nonzero().flatten()
        assert moved_L[heard].unique().tolist() == clip_L.unique().tolist()
        assert len(heard) == heard[-1] - heard[0] + 1, "in one piece"
        gaps.add(int(silent_L.sum()) * (1 if silent_L[0] else -1))
    assert len(gaps) > 35 and min(gaps) < -800 and max(gaps) > 800 and max(map(abs, gaps)) <= shift
    rest = moving.sample(ExampleStream(start=17), 23, CLIP_LEN)
    assert torch.equal(rest.inputs_BL, other.inputs_BL[17:]), "however many are drawn together"
    for split in ("validation", "test"):
        one, other = (task.sample(ExampleStream(split=split), 9, 1000) for task in (still, moving))
        assert torch.equal(one.inputs_BL, other.inputs_BL)


def test_short_windows_move_within_their_clip_and_beyond_it_into_silence(tmp_path: Path) -> None:
    task = commands(source=write_words(tmp_path), shift=CLIP_LEN - 1)
    inputs_BL = task.sample(ExampleStream(), 60, 500).inputs_BL
    assert (inputs_BL == 128).all(1).any() and (inputs_BL != 128).all(1).any()


@pytest.mark.parametrize("shift", [-1, CLIP_LEN, 0.5, "1600"])
def test_a_shift_that_is_none_is_refused(shift) -> None:
    with pytest.raises(TaskError, match=f"shift={shift!r} must be a number of samples from 0 to 15999"):
        commands(shift=shift)


def test_words_choose_and_order_the_classes(tmp_path: Path) -> None:
    task = commands(source=write_words(tmp_path), words=["yes", "left"])
    assert task.words == ("yes", "left") and task.vocab_size == 258
    assert {word_of(clip.name) for clip in task.clips} == {"yes", "left"}
    assert "left out 40 clip(s) of other words" in task.provenance.note


def test_all_test_clips_are_scored_once_and_chance_is_the_best_constant_answer(tmp_path: Path) -> None:
    task = commands(source=write_words(tmp_path))
    windows = task.evaluation_windows("test", CLIP_LEN, 10_000)
    assert len(windows) == windows.num_possible == len(task.splits["test"]) == len(set(windows.starts))
    labels = np.concatenate([batch.targets_BL[:, -1].numpy() for batch in windows.batches(7)])
    assert np.bincount(labels - 256).max() / len(labels) == pytest.approx(task.chance)
    few = task.evaluation_windows("test", CLIP_LEN, 3)
    assert sorted(batch for batch in next(few.batches(3)).targets_BL[:, -1].tolist()) == [256, 257, 258]


def test_short_clips_get_silence_in_front_and_long_ones_lose_their_end(tmp_path: Path) -> None:
    write_words(tmp_path, words=("no",), length_s=0.25)
    write_words(tmp_path, words=("yes",), length_s=1.5)
    task = commands(source=tmp_path)
    for clip in task.clips:
        tokens = task.corpus.tokens_of(clip)
        assert len(tokens) == CLIP_LEN
        spoken = CLIP_LEN // 4 if word_of(clip.name) == "no" else CLIP_LEN
        assert (tokens[: CLIP_LEN - spoken] == SILENCE).all() and (tokens[CLIP_LEN - spoken :] != SILENCE).all()
    assert "40 clip(s) shorter than a second have silence in front (37.5% of all samples)" in task.provenance.note
    assert "40 clip(s) longer than a second lose their end" in task.provenance.note


def test_all_of_a_digits_samples_are_targets_and_the_first_input_is_silence(tmp_path: Path) -> None:
    task = digits(source=write_words(tmp_path, words=DIGITS, num_speakers=30))
    assert task.max_seq_len("test") == CLIP_LEN
    windows = task.evaluation_windows("test", CLIP_LEN, 10_000)
    assert len(windows) == len(task.splits["test"])
    batch = next(windows.batches(1))
    assert batch.inputs_BL[0, 0] == SILENCE
    (clip,) = [clip for clip in task.clips if clip.start == windows.starts[0]]
    assert (batch.targets_BL[0].numpy() == task.corpus.tokens_of(clip)[1:]).all()


@pytest.mark.parametrize("seq_len", [CLIP_LEN + 1, 2**15])
def test_no_length_is_longer_than_a_clip(seq_len: int) -> None:
    with pytest.raises(TaskError, match=rf"seq_len={seq_len} is longer than a clip of 16000"):
        commands().sample(ExampleStream(), 1, seq_len)


# ---- splits


def test_the_published_rule_and_lists_agree_and_lists_win(tmp_path: Path) -> None:
    task = commands(source=write_words(tmp_path))
    assert "splits by the published rule (SHA-1)" in task.provenance.note
    for split in SPLITS:
        assert {published_split(clip.group) for clip in task.splits[split]} == {split}
    # Lists that say otherwise are followed, with the line ends of any system.
    of_validation = "".join(f"{word}/{speaker(i)}_nohash_0.wav\r\n" for word in WORDS for i in (1, 2))
    (tmp_path / "validation_list.txt").write_bytes(of_validation.encode())
    (tmp_path / "testing_list.txt").write_text("".join(f"{word}/{speaker(3)}_nohash_0.wav\n" for word in WORDS))
    listed = commands(source=tmp_path)
    assert "splits by the published lists" in listed.provenance.note
    assert {clip.group for clip in listed.splits["validation"]} == {speaker(1), speaker(2)}
    assert {clip.group for clip in listed.splits["test"]} == {speaker(3)}
    assert sum(len(listed.splits[split]) for split in SPLITS) == 120


def test_a_tenth_of_many_speakers_is_held_out_each() -> None:
    found = [published_split(speaker(i)) for i in range(4000)]
    assert found.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)
    assert found.count("test") / 4000 == pytest.approx(0.1, abs=0.02)


def test_where_the_rule_leaves_a_split_empty_speakers_are_dealt(tmp_path: Path) -> None:
    of_test = [speaker(i) for i in range(400) if published_split(speaker(i)) == "test"][:12]
    for word in WORDS:
        (tmp_path / word).mkdir()
        for name in of_test:
            (tmp_path / word / f"{name}_nohash_0.wav").write_bytes(encode(tone(200, 16_000)))
    task = commands(source=tmp_path)
    assert "the published rule (SHA-1) leaves train and validation empty: speakers dealt" in task.provenance.note
    groups = [{clip.group for clip in task.splits[split]} for split in SPLITS]
    assert all(groups) and sum(map(len, groups)) == 12


def test_two_speakers_cannot_be_held_apart_and_the_note_says_so(tmp_path: Path) -> None:
    task = digits(source=write_fsdd(tmp_path, ("ann", "bob")))
    assert "only 2 speaker(s), who stand in all splits" in task.provenance.note
    assert {clip.length for split in SPLITS for clip in task.splits[split]} == {CLIP_LEN + 1}, "no clip is cut"


def test_background_noise_is_left_out_and_words_without_training_clips_are_named(tmp_path: Path) -> None:
    write_words(tmp_path, num_speakers=30)
    (tmp_path / "_background_noise_").mkdir()
    (tmp_path / "_background_noise_" / "hum.wav").write_bytes(encode(tone(50, 16_000)))
    held_out = next(speaker(i) for i in range(100) if published_split(speaker(i)) == "test")
    (tmp_path / "zebra").mkdir()
    (tmp_path / "zebra" / f"{held_out}_nohash_0.wav").write_bytes(encode(tone(50, 16_000)))
    note = commands(source=tmp_path).provenance.note
    assert "left out 1 file(s) of _background_noise_" in note and "empty" not in note
    assert "no training clip of zebra" in note


# ---- sources


def test_fsdd_is_digits_of_8_khz_by_speaker(tmp_path: Path) -> None:
    task = digits(source=write_fsdd(tmp_path))
    assert "resampled from 8000 Hz to 16000 Hz" in task.provenance.note
    assert {clip.group for clip in task.clips} == {"ann", "bob", "cyd"}
    assert [task.label_of(clip) for clip in task.clips] == [int(clip.name[0]) for clip in task.clips]
    groups = [{clip.group for clip in task.splits[split]} for split in SPLITS]
    assert [len(group) for group in groups] == [1, 1, 1]


@pytest.mark.parametrize("ending", ["tar.xz", "tar.gz", "tar"])
def test_an_archive_reads_as_its_folder(tmp_path: Path, ending: str) -> None:
    folder = write_words(tmp_path / "speech_commands_v0.02", num_speakers=12)
    for name in ("validation_list.txt", "testing_list.txt"):
        who = speaker(3 if name.startswith("v") else 4)
        (folder / name).write_text("".join(f"{word}/{who}_nohash_0.wav\n" for word in WORDS))
    archive = tmp_path / f"sc.{ending}"
    with tarfile.open(archive, f"w:{ending.removeprefix('tar').removeprefix('.')}") as tar:
        tar.add(folder, "./speech_commands_v0.02")
    packed, plain = commands(source=archive), commands(source=folder)
    assert {split: sorted(clip.group for clip in packed.splits[split]) for split in SPLITS} == {
        split: sorted(clip.group for clip in plain.splits[split]) for split in SPLITS
    }
    assert "published lists" in packed.provenance.note


def test_torchaudios_folder_is_found_below_the_data_root(tmp_path: Path) -> None:
    write_words(
        tmp_path / "audio" / "SpeechCommands" / "speech_commands_v0.02", words=(*DIGITS, "yes"), num_speakers=30
    )
    task, words = digits(data_root=tmp_path), commands(data_root=tmp_path, words="digits")
    assert (task.layout, words.layout) == ("SC09", "speech_commands")
    assert words.words == DIGITS
    assert not any("yes" in name for name in task.provenance.files)


# ---- formats and damage, through the task


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_any_depth_channels_and_rate_give_a_second_of_the_sound(
    tmp_path: Path, subtype: str, channels: int, rate_hz: int
) -> None:
    for word in ("no", "yes"):
        (tmp_path / word).mkdir()
        for i in range(3):
            sound = tone(440, rate_hz, length_s=1)
            data = encode(np.stack([sound] * channels, 1), rate_hz, subtype=subtype)
            (tmp_path / word / f"{speaker(i)}_nohash_0.wav").write_bytes(data)
    task = commands(source=tmp_path)
    wanted = tone(440, 16_000, length_s=1)
    for clip in task.clips:
        heard = mu_law_decode(torch.from_numpy(task.corpus.tokens_of(clip).copy()).long()).numpy()
        assert np.abs(heard - wanted)[1000:-1000].max() < 0.03


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "0 bytes"), (b"no sound at all" * 50, "cannot be decoded"), (encode(tone(440, 16_000))[:900], "truncated")],
)
def test_a_damaged_clip_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    write_words(tmp_path, num_speakers=3)
    (tmp_path / "yes" / f"{speaker(9)}_nohash_0.wav").write_bytes(data)
    with pytest.raises(TaskError, match=rf"yes/{speaker(9)}_nohash_0\.wav: .*{reason}"):
        commands(source=tmp_path)


def test_a_clip_without_samples_is_left_out(tmp_path: Path) -> None:
    write_words(tmp_path, num_speakers=20)
    (tmp_path / "yes" / f"{speaker(99)}_nohash_0.wav").write_bytes(encode(np.zeros(0)))
    task = commands(source=tmp_path)
    assert len(task.clips) == 60 and "skipped 1 empty file(s)" in task.provenance.note


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["yes", "zero"], "no clip of zero; the source has yes among"),
        ("vowels", "words='vowels' is neither 'digits' nor a list"),
        ([True, False], "words holds True, which is no text; in YAML put"),
        (["yes"], "must be two or more different words"),
        (["yes", "yes"], "must be two or more different words"),
        ("digits", r"nothing to read in .*left out 120 clip\(s\) of other words"),
    ],
)
def test_wrong_words(tmp_path: Path, words, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        commands(source=write_words(tmp_path), words=words)


def test_one_word_is_no_choice(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="only clips of yes were found"):
        commands(source=write_words(tmp_path, words=("yes",)))


def test_more_words_than_the_embedded_sample_has() -> None:
    with pytest.raises(TaskError, match="embedded sample has 25 words, 26 were asked for"):
        commands(words=[f"word{i}" for i in range(26)])


# ---- real recordings


@pytest.mark.parametrize(("name", "num_words"), [("commands", 10), ("digits", 10)])
def test_real_clips_have_speakers_apart(real_data: Path, name: str, num_words: int) -> None:
    task = make_task(name, data_root=real_data)
    assert isinstance(task, CorpusTask)
    if task.layout == "embedded":
        pytest.skip(f"the data root has no {name}")
    assert isinstance(task, WordClips) and len(task.words) == num_words
    groups = [{clip.group for clip in task.splits[split]} for split in SPLITS]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups))
    assert task.max_seq_len("test") == CLIP_LEN
    spoken = [np.std(task.corpus.tokens_of(clip)) for clip in task.clips]
    assert min(spoken) > 0, "no clip is silent"
