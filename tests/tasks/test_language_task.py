"""Text of the user's own: what is read, and what is refused."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import SPLITS, CorpusTask, ExampleStream, TaskError, make_task

pytestmark = pytest.mark.usefixtures("fresh_cache")


def language(source: Path, **options: Any) -> CorpusTask:
    task = make_task("language", source=source, **options)
    assert isinstance(task, CorpusTask)
    return task


def test_bytes_are_kept(tmp_path: Path) -> None:
    text = "Grüße, 世界!\r\n".encode() * 200
    (tmp_path / "a.txt").write_bytes(text)
    task = language(tmp_path / "a.txt")
    assert task.corpus.tokens.tobytes() == text
    assert task.provenance.kind == "user"
    assert task.provenance.files == ("a.txt",)
    assert "contiguous split" in task.provenance.note


def test_novels_are_split_by_author(tmp_path: Path) -> None:
    archive_path = tmp_path / "novels.tar.xz"
    with tarfile.open(archive_path, "w:xz") as archive:
        for author in range(8):
            for year in (1850, 1860, 1870):
                info = tarfile.TarInfo(f"corpus/Author{author}_Title_{year}.txt")
                info.size = 500
                archive.addfile(info, io.BytesIO(b"x" * 500))
    task = language(archive_path)
    groups = [{document.group for document in task.splits[split]} for split in SPLITS]
    assert set().union(*groups) == {f"Author{author}" for author in range(8)}
    assert sum(map(len, groups)) == 8
    assert task.provenance.note == ""


def test_strict_refuses_what_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"a" * 500 + b"\xe9" + b"b" * 500)
    assert len(language(path).corpus.tokens) == 1001
    with pytest.raises(TaskError, match=r"latin1\.txt: not UTF-8 at byte offset 500 \(byte 0xe9\)"):
        language(path, strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\0text", "NUL byte at offset 4"),
        ("text".encode("utf-16"), "NUL byte at offset 3"),
        (bytes(range(1, 32)) * 20, "it looks binary"),
    ],
)
def test_binary_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message) as error:
        language(path)
    assert str(path) in str(error.value)


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(TaskError, match=r"nothing to read in empty\.txt .*empty"):
        language(tmp_path)
    (tmp_path / "full.txt").write_bytes(b"x" * 1000)
    assert "skipped 1 empty file(s): empty.txt" in language(tmp_path).provenance.note


def test_archive_without_text(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        archive.addfile(info, io.BytesIO())
    with pytest.raises(TaskError, match=r"no file in it ends in \.txt"):
        language(tmp_path / "x.tar")


def test_too_short_for_the_length(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_bytes(b"x" * 300)
    with pytest.raises(TaskError, match=r"seq_len=64 needs a document of 65 tokens.*'short.txt\[270:300\]' with 30"):
        language(tmp_path).sample(ExampleStream(split="test"), 1, 64)


def test_windows_are_drawn_uniformly_over_all_places(tmp_path: Path) -> None:
    for name, size in (("a", 70), ("b", 30), ("c", 70), ("d", 170), ("e", 70), ("f", 120)):
        (tmp_path / f"{name}.txt").write_bytes(bytes([ord(name)]) * size)
    task = language(tmp_path)
    places = {d.name: d.length - 64 for d in task.splits["train"] if d.length > 64}
    drawn = task.sample(ExampleStream(), 4000, 64).inputs_BL[:, 0].numpy()
    for name, num_places in places.items():
        share = num_places / sum(places.values())
        sigma = (share * (1 - share) / 4000) ** 0.5
        assert abs(np.mean(drawn == ord(name[0])) - share) <= 5 * sigma
