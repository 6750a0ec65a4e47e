"""The cache of tokenised corpora: hits, damage, rivals, and no cache at all."""

import threading
from pathlib import Path

import numpy as np
import pytest

from tasks.cache import file_sha256
from tasks.prepared import Corpus, RawDocument, build_corpus, load_or_build


class Builder:
    """Counts how often it was asked."""

    def __init__(self, size: int = 1000) -> None:
        self.num_calls, self.size = 0, size

    def __call__(self) -> Corpus:
        self.num_calls += 1
        tokens = (np.arange(self.size) % 7).astype(np.uint8)
        return build_corpus([RawDocument(name="x", group="g", tokens=tokens)], lambda: ("a note",))


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "prepared").iterdir() if not path.name.startswith("."))


def test_second_load_reads_the_cache(fresh_cache: Path) -> None:
    build = Builder()
    first, second = (load_or_build("t", {"k": 1}, build) for _ in range(2))
    assert build.num_calls == 1
    assert isinstance(second.tokens, np.memmap)
    assert np.array_equal(first.tokens, build().tokens)
    assert second.documents == first.documents
    assert second.notes == ("a note",)
    load_or_build("t", {"k": 2}, build)
    assert len(entries(fresh_cache)) == 2, "another identity is another entry"


@pytest.mark.parametrize("damage", ["truncate tokens", "flip a token", "break index", "no index", "no tokens"])
def test_damaged_entry_is_rebuilt(fresh_cache: Path, damage: str) -> None:
    build = Builder()
    load_or_build("t", {}, build)
    (entry,) = entries(fresh_cache)
    tokens, index = entry / "tokens.npy", entry / "index.json"
    content = bytearray(tokens.read_bytes())
    if damage == "truncate tokens":
        tokens.write_bytes(content[:-10])
    elif damage == "flip a token":
        content[-1] ^= 1
        tokens.write_bytes(content)
    elif damage == "break index":
        index.write_text(index.read_text()[:20])
    else:
        (index if damage == "no index" else tokens).unlink()
    rebuilt = load_or_build("t", {}, build)
    assert build.num_calls == 2
    assert np.array_equal(rebuilt.tokens, build().tokens)
    assert isinstance(load_or_build("t", {}, build).tokens, np.memmap)
    assert build.num_calls == 3, "one call was the test's own: the entry is whole again"
    assert len(list((fresh_cache / "prepared").iterdir())) == 1, "nothing is left lying about"


def test_concurrent_writers_agree(fresh_cache: Path) -> None:
    barrier = threading.Barrier(8)
    found: list[Corpus] = []

    def work() -> None:
        barrier.wait()
        found.append(load_or_build("t", {}, Builder(100_000)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(corpus.tokens, found[0].tokens) for corpus in found)
    assert len(list((fresh_cache / "prepared").iterdir())) == 1


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setenv("SEQBENCH_CACHE", str(blocked))
    corpus = load_or_build("t", {}, Builder())
    assert len(corpus.tokens) == 1000
    assert len(file_sha256(blocked)) == 64


def test_sha256_is_remembered_until_the_file_changes(fresh_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == expected
    (memo,) = (fresh_cache / "sha256").iterdir()
    memo.write_text("f" * 64)
    assert file_sha256(path) == "f" * 64, "read from the memo"
    path.write_bytes(b"abcd")
    assert file_sha256(path) not in (expected, "f" * 64)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.cache import cache_dir

    monkeypatch.delenv("SEQBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/seqbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "seqbench"
