"""Sound: decoding, resampling, quantisation, and damaged files."""

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tasks import SPLITS, CorpusTask, ExampleStream, TaskError, make_task
from tasks.archive import Member
from tasks.audio.mpeg import check_frames
from tasks.audio.torchaudio_import import import_torchaudio
from tasks.audio.waveform import mu_law_encode, read_waveform, resample

pytestmark = pytest.mark.usefixtures("fresh_cache")

soundfile = pytest.importorskip("soundfile")


def tone(frequency_hz: float, rate_hz: int, length_s: float = 0.5, amplitude: float = 0.5) -> npt.NDArray[np.float64]:
    signal: npt.NDArray[np.float64] = amplitude * np.sin(
        2 * np.pi * frequency_hz * np.arange(int(rate_hz * length_s)) / rate_hz
    )
    return signal


def encode(samples: npt.NDArray[np.float64], rate_hz: int = 16_000, container: str = "WAV", **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, **options)
    return buffer.getvalue()


def member_of(data: bytes, name: str = "x.wav") -> Member:
    return Member(name=name, place=f"/data/{name}", data=data)


def music(source: Path) -> CorpusTask:
    task = make_task("audio", source=source)
    assert isinstance(task, CorpusTask)
    return task


def test_mu_law_agrees_with_torchaudio_on_every_16_bit_sample() -> None:
    samples = torch.arange(-32768, 32768).float() / 32768
    ours = torch.from_numpy(mu_law_encode(samples)).long()
    assert torch.equal(ours, import_torchaudio().transforms.MuLawEncoding(256)(samples))
    decoded = import_torchaudio().transforms.MuLawDecoding(256)(ours)
    assert float((decoded - samples).abs().max()) < 0.025
    assert mu_law_encode(torch.tensor([-3.0, 3.0])).tolist() == [0, 255], "clipped"


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 44_101, 96_000])
def test_resampling_keeps_a_tones_frequency_and_amplitude(rate_hz: int) -> None:
    resampled = resample(torch.from_numpy(tone(1000, rate_hz)).float(), rate_hz).numpy()
    assert abs(len(resampled) - 8000) <= 1
    inner = resampled[1000:7000]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert np.argmax(spectrum) * 16_000 / len(inner) == pytest.approx(1000, abs=3)
    assert np.sqrt(2 * np.mean(inner**2)) == pytest.approx(0.5, rel=0.005)


@pytest.mark.parametrize(
    ("rate_hz", "frequency_hz"), [(44_100, 9_000), (44_100, 15_000), (48_000, 8_500), (48_000, 20_000)]
)
def test_tones_above_8_khz_are_removed(rate_hz: int, frequency_hz: int) -> None:
    resampled = resample(torch.from_numpy(tone(frequency_hz, rate_hz)).float(), rate_hz).numpy()
    assert np.abs(resampled[500:-500]).max() < 0.001


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.01),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_formats(container: str, subtype: str, tolerance: float) -> None:
    samples = tone(440, 16_000, length_s=1)
    waveform, rate_hz = read_waveform(member_of(encode(samples, container=container, subtype=subtype)))
    assert rate_hz == 16_000
    inner = waveform.numpy()[2000:14_000]
    assert np.sqrt(2 * np.mean(inner**2)) == pytest.approx(0.5, rel=0.02)
    if container != "MP3":  # its encoder delays the sound
        assert np.abs(inner - samples[2000:14_000]).max() < tolerance


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(440, 16_000), -tone(440, 16_000)], axis=1)
    waveform, _ = read_waveform(member_of(encode(stereo)))
    assert float(waveform.abs().max()) < 1e-3


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files(container: str, share: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
    data = encode(noise, container=container)
    with pytest.raises(TaskError, match=r"/data/x\.wav: .*truncated"):
        read_waveform(member_of(data[: int(share * len(data))]))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("container", "options", "num_header_bytes"),
    [
        ("WAV", {}, 44),
        ("WAV", {"endian": "BIG"}, 44),
        ("RF64", {}, 104),
        ("W64", {}, 104),
        ("AIFF", {}, 54),
        ("AIFF", {"endian": "LITTLE"}, 72),
        ("CAF", {}, 4096),
        ("CAF", {"endian": "LITTLE"}, 4096),
    ],
)
def test_a_file_cut_in_half_tells_its_frames(
    container: str, options: dict[str, Any], num_header_bytes: int, channels: int
) -> None:
    data = encode(np.stack([tone(440, 16_000)] * channels, 1), container=container, **options)
    assert len(read_waveform(member_of(data, "x"))[0]) == 8000
    found = (len(data) // 2 - num_header_bytes) // (2 * channels)
    with pytest.raises(TaskError, match=rf"/data/x: truncated: .*\(8000 frames stated, {found} there\)"):
        read_waveform(member_of(data[: len(data) // 2], "x"))
    with pytest.raises(TaskError, match=r"/data/x: truncated: the \w+ file has no \w+ chunk"):
        read_waveform(member_of(data[: num_header_bytes - 26], "x"))


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize(("container", "endian"), [("AU", "BIG"), ("AU", "LITTLE"), ("CAF", "BIG")])
def test_a_cut_au_or_caf_file_tells_its_frames_whatever_they_are(container: str, endian: str, subtype: str) -> None:
    data = encode(tone(440, 16_000), container=container, subtype=subtype, endian=endian)
    assert len(read_waveform(member_of(data, "x"))[0]) == 8000
    with pytest.raises(TaskError, match=r"/data/x: truncated: .*\(8000 frames stated, 7999 there\)"):
        read_waveform(member_of(data[:-1], "x"))


def test_au_without_a_length_is_whole_and_one_without_a_header_is_cut() -> None:
    data = bytearray(encode(tone(440, 16_000), container="AU"))
    whole = read_waveform(member_of(bytes(data), "x"))[0]
    struct.pack_into(">I", data, 8, 0xFFFFFFFF)
    assert torch.equal(read_waveform(member_of(bytes(data), "x"))[0], whole)
    with pytest.raises(TaskError, match="/data/x: truncated: the AU file has no whole header"):
        read_waveform(member_of(bytes(data[:20]), "x"))


@pytest.mark.parametrize(("container", "subtype"), [("W64", "IMA_ADPCM"), ("AIFF", "IMA_ADPCM"), ("AIFF", "ULAW")])
def test_a_cut_file_of_compressed_samples_tells_its_bytes(container: str, subtype: str) -> None:
    data = encode(tone(440, 16_000), container=container, subtype=subtype)
    assert len(read_waveform(member_of(data, "x"))[0]) >= 8000
    with pytest.raises(TaskError, match=r"/data/x: truncated: its header states \d+ bytes of samples, \d+ are there"):
        read_waveform(member_of(data[: len(data) // 2], "x"))


@pytest.mark.parametrize("container", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_empty_recordings_of_all_containers_are_read(container: str) -> None:
    assert len(read_waveform(member_of(encode(np.zeros(0), container=container), "x"))[0]) == 0


@pytest.mark.parametrize("data", [b"", b"RIFF", b"not a sound at all" * 50, b"RIFF\x24\0\0\0WAVEfmt "])
def test_corrupt_files(data: bytes) -> None:
    with pytest.raises(TaskError, match=r"/data/x\.wav: "):
        read_waveform(member_of(data))


@pytest.mark.parametrize("rate_hz", [0, 1, 999, 768_001, 2**32 - 1])
def test_nonsensical_rates(rate_hz: int) -> None:
    data = bytearray(encode(tone(440, 16_000)))
    struct.pack_into("<I", data, 24, rate_hz)
    with pytest.raises(TaskError, match=rf"sample rate {rate_hz} Hz is outside 1000\.\.768000"):
        read_waveform(member_of(bytes(data)))


def test_non_finite_samples() -> None:
    samples = tone(440, 16_000)
    samples[100] = np.nan
    with pytest.raises(TaskError, match="sample 100 is not a finite number"):
        read_waveform(member_of(encode(samples, subtype="FLOAT")))


@pytest.mark.parametrize("file_size", [0, 8, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_streamed_wav_without_a_length_is_whole(endian: str, size: int, file_size: int) -> None:
    samples = tone(440, 16_000)
    samples[:100] = 0
    data = bytearray(encode(samples, endian=endian))
    whole = read_waveform(member_of(bytes(data)))[0]
    order = "<I" if endian == "LITTLE" else ">I"
    struct.pack_into(order, data, data.find(b"data") + 4, size)
    struct.pack_into(order, data, 4, file_size)
    assert torch.equal(read_waveform(member_of(bytes(data)))[0], whole)


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_streamed_rf64_without_a_length_is_whole(size: int) -> None:
    data = bytearray(encode(tone(440, 16_000), container="RF64"))
    struct.pack_into("<Q", data, data.find(b"ds64") + 16, size)
    assert len(read_waveform(member_of(bytes(data)))[0]) == 8000


def test_a_wav_of_no_samples_before_another_chunk_is_empty() -> None:
    data = encode(np.zeros(0)) + b"LIST\x0c\0\0\0INFOISFT\0\0\0\0"
    assert len(read_waveform(member_of(data))[0]) == 0


def test_tracks_are_groups_and_other_rates_are_noted(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"track{i}.flac").write_bytes(encode(tone(300 + i, 44_100), 44_100, "FLAC"))
    task = music(tmp_path)
    assert {document.group for document in task.corpus.documents} == {f"track{i}.flac" for i in range(4)}
    assert "resampled from 44100 Hz to 16000 Hz" in task.provenance.note


def test_silence_is_allowed_and_nothing_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(encode(np.zeros(0)))
    with pytest.raises(TaskError, match=r"nothing to read in empty\.wav"):
        music(tmp_path)
    (tmp_path / "silence.wav").write_bytes(encode(np.zeros(4000)))
    task = music(tmp_path)
    assert set(task.corpus.tokens.tolist()) == {128}
    assert task.chance == 1
    assert "skipped 1 empty file(s): empty.wav" in task.provenance.note


def test_truncated_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.wav").write_bytes(encode(tone(440, 16_000)))
    (tmp_path / "bad.wav").write_bytes(encode(tone(440, 16_000))[:1000])
    with pytest.raises(TaskError, match=r"bad\.wav: truncated: its header states 16000 bytes of samples, 956 are"):
        music(tmp_path)


def test_speakers_are_groups(tmp_path: Path) -> None:
    for word in ("yes", "no"):
        (tmp_path / word).mkdir()
        for speaker in range(5):
            (tmp_path / word / f"{speaker:08x}_nohash_0.wav").write_bytes(encode(tone(200, 16_000)))
    (tmp_path / "_background_noise_").mkdir()
    (tmp_path / "_background_noise_" / "hum.wav").write_bytes(encode(tone(50, 16_000)))
    task = make_task("speech", source=tmp_path)
    assert isinstance(task, CorpusTask)
    groups = [{document.group for document in task.splits[split]} for split in SPLITS]
    assert set().union(*groups) == {f"{speaker:08x}" for speaker in range(5)}
    assert sum(map(len, groups)) == 5
    assert "left out _background_noise_" in task.provenance.note


def test_embedded_speech_has_ten_speakers_or_more() -> None:
    task = make_task("speech")
    assert isinstance(task, CorpusTask)
    assert len({document.group for document in task.corpus.documents}) >= 10
    assert {document.length for document in task.corpus.documents} == {16_000}


# ---- one recording in pieces


def pieces(folder: Path, count: int, name: str = "out{:03d}.wav") -> Path:
    for i in range(count):
        (folder / name.format(i)).write_bytes(encode(np.full(500 + i, (i % 7) / 7)))
    return folder


def test_pieces_are_split_in_their_order_and_read_as_one(tmp_path: Path) -> None:
    task = make_task("audio", source=pieces(tmp_path, 50), files="pieces")
    assert isinstance(task, CorpusTask)
    train, validation, test = ([*task.splits[split]] for split in SPLITS)
    assert "44 / 3 / 3 pieces" in task.provenance.note, "88, 6 and 6 %"
    assert [len(split) for split in (train, validation, test)] == [1, 1, 1]
    assert train[0].start == 0 and test[0].start + test[0].length == len(task.corpus.tokens)
    assert train[0].length == sum(500 + i for i in range(44))
    # No sample is in two splits or in none, and a window crosses the border of two pieces.
    assert (validation[0].start, test[0].start) == (train[0].length, train[0].length + validation[0].length)
    assert task.max_seq_len("test") == 500 * 3 + 47 + 48 + 49 - 1
    assert len(np.unique(task.corpus.tokens_of(test[0]))) == 3


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pieces(tmp_path: Path, count: int) -> None:
    with pytest.raises(TaskError, match=rf"at least 3 pieces, one a split; {count} are there"):
        make_task("audio", source=pieces(tmp_path, count), files="pieces")


def test_pieces_whose_names_do_not_sort(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"'out11\.wav' comes before 'out2\.wav'; pad the numbers"):
        make_task("audio", source=pieces(tmp_path, 12, "out{}.wav"), files="pieces")


def test_files_are_tracks_or_pieces() -> None:
    with pytest.raises(TaskError, match="files='albums' is neither 'tracks' nor 'pieces'"):
        make_task("audio", files="albums")


# ---- every way in which a recording comes, through the task


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 48_000])
def test_any_depth_channels_and_rate_give_the_tokens_of_the_sound(
    tmp_path: Path, subtype: str, channels: int, rate_hz: int
) -> None:
    signal = tone(440, rate_hz, length_s=1)
    (tmp_path / "x.wav").write_bytes(encode(np.stack([signal] * channels, 1), rate_hz, subtype=subtype))
    task = music(tmp_path)
    tokens = torch.from_numpy(task.corpus.tokens.astype(np.int64))
    assert abs(len(tokens) - 16_000) <= 1
    decoded = import_torchaudio().transforms.MuLawDecoding(256)(tokens).numpy()[1000:15_000]
    wanted = tone(440, 16_000, length_s=1)[1000:15_000]
    # Half a level of mu-law at this amplitude, the coarser of the two quantisations, and the filter's edge.
    assert np.abs(decoded - wanted).max() < 0.03
    assert (f"resampled from {rate_hz} Hz" in task.provenance.note) == (rate_hz != 16_000)


@pytest.mark.parametrize(("samples", "extreme"), [(3.0, 255), (-3.0, 0)])
def test_floats_beyond_full_scale_are_clipped(tmp_path: Path, samples: float, extreme: int) -> None:
    (tmp_path / "loud.wav").write_bytes(encode(np.full(1000, samples), subtype="FLOAT"))
    assert set(music(tmp_path).corpus.tokens.tolist()) == {extreme}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.wav", b"", "0 bytes"),
        ("text.mp3", b"no sound here\n" * 100, "cannot be decoded as audio"),
        ("header.flac", b"fLaC", "cannot be decoded as audio"),
        ("page.ogg", b"OggS", "truncated"),
    ],
)
def test_a_damaged_file_among_good_ones_is_named_with_its_folder(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "good.wav").write_bytes(encode(tone(440, 16_000)))
    (tmp_path / "album" / name).write_bytes(data)
    with pytest.raises(TaskError, match=rf"album/{name}: .*{reason}"):
        music(tmp_path)


def mp3(rate_hz: int = 16_000, channels: int = 1) -> bytes:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (2 * rate_hz, channels))
    return encode(noise, rate_hz, container="MP3")


ID3 = b"ID3\x04\0\0\0\0\0\x05title"


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_whose_frames_do_not_follow_one_another_is_damaged(rate_hz: int, channels: int) -> None:
    data = mp3(rate_hz, channels)
    inside = data.find(data[:2], len(data) // 2) + 20
    for whole in (data, ID3 + data, data + data, data + ID3 + data, data + b"TAG" + bytes(125), data + bytes(500)):
        check_frames(member_of(whole))
    first, second = data[:inside], data[inside:]
    for damaged in (first + b"junk" * 10 + second, first + second[40:], ID3 + first + data):
        with pytest.raises(TaskError, match=r"/data/x\.wav: damaged: no mp3 frame at byte \d+, the next is at \d+"):
            check_frames(member_of(damaged))
    with pytest.raises(TaskError, match=r"truncated: the mp3 frame at byte \d+ has \d+ of its \d+ bytes"):
        check_frames(member_of(data[:-30]))


def test_a_changed_header_of_an_mp3_frame_is_found() -> None:
    data = bytearray(mp3())
    places = [place for place in range(len(data) // 2, len(data) - 1) if data[place : place + 2] == data[:2]]
    data[places[0]] = 0
    with pytest.raises(TaskError, match=f"damaged: no mp3 frame at byte {places[0]}, the next is at {places[1]}"):
        read_waveform(member_of(bytes(data)))


def ogg(length_s: float = 4.0) -> bytes:
    """Noise, so that there are pages."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, int(16_000 * length_s))
    return encode(noise, container="OGG", subtype="VORBIS")


def pages_of(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(b"OggS", data)]


def test_a_whole_ogg_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "x.ogg").write_bytes(ogg() + b"a tag of an editor's")
    assert len(music(tmp_path).corpus.tokens) == 64_000


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_an_ogg_with_a_changed_byte_names_the_page(tmp_path: Path, place: float) -> None:
    data = bytearray(ogg())
    data[int(place * len(data))] ^= 0x10
    page = max(start for start in pages_of(ogg()) if start <= place * len(data))
    (tmp_path / "x.ogg").write_bytes(data)
    with pytest.raises(TaskError, match=rf"x\.ogg: damaged: the ogg page at byte {page} "):
        music(tmp_path)


def test_an_ogg_that_lacks_pages_is_truncated_wherever_it_ends(tmp_path: Path) -> None:
    data = ogg()
    *_, before, last = pages_of(data)
    for stop, reason in ((last, "no last ogg page"), (last - 1, "no whole last page"), (before + 20, "no whole last")):
        (tmp_path / "x.ogg").write_bytes(data[:stop])
        with pytest.raises(TaskError, match=rf"x\.ogg: truncated: .*{reason}"):
            music(tmp_path)
    (tmp_path / "x.ogg").write_bytes(data[:last] + b"?" + data[last:])
    with pytest.raises(TaskError, match=rf"x\.ogg: damaged: no ogg page at byte {last}"):
        music(tmp_path)


def test_a_clip_of_one_sample_is_too_short_to_train_on_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "click.wav").write_bytes(encode(np.array([0.5])))
    with pytest.raises(TaskError, match=r"click\.wav"):
        music(tmp_path).sample(ExampleStream(seed=0), 1, 64)
