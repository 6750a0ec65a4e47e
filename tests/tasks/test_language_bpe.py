"""The BPE of the language task: no text is lost, only the train split is seen, the same every time."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import SPLITS, CorpusTask, ExampleStream, TaskError, make_task
from tasks.language import Language, bpe
from tasks.language.embedded import documents

pytestmark = pytest.mark.usefixtures("fresh_cache")
VOCAB = 400
PROSE = "It was the best of times, it was the worst of times; it was the age of wisdom.\n"
NASTY = [
    "", " ", "\n", "Grüße, 世界!\r\n\tend", "a\u0000b", "\u202e\ufeff", "emoji 👩‍👩‍👧", "   leading and trailing   ",
    "é" * 50, "Ġ and Ċ are letters too",
]  # fmt: skip


@pytest.fixture(scope="module")
def codec() -> bpe.BpeCodec:
    return bpe.train([PROSE * 50], VOCAB)


def novels(folder: Path, change: str = "", of: tuple[str, ...] = ()) -> Path:
    """Twelve authors of one novel each; those of ``of`` have another text of the same length."""
    folder.mkdir(exist_ok=True)
    for i in range(12):
        name = f"Author{i}_Title_18{i + 10}.txt"
        text = (PROSE + f"Chapter {i} of a novel by number {i}.\n") * 30
        if name in of:
            text = (change * len(text))[: len(text)]
        (folder / name).write_text(text)
    return folder


def language(source: Path | None = None, **options: Any) -> Language:
    task = make_task("language", source=source, **{"tokenizer": "bpe", "vocab_size": VOCAB, **options})
    assert isinstance(task, Language)
    return task


def sha256_of(task: CorpusTask) -> str:
    assert task.provenance.tokenizer_sha256 is not None
    return task.provenance.tokenizer_sha256


@pytest.mark.parametrize("text", NASTY)
def test_tokens_are_the_texts_bytes(codec: bpe.BpeCodec, text: str) -> None:
    ids = codec.encode(text)
    assert codec.decode_bytes(ids) == text.encode()
    assert codec.token_bytes(VOCAB)[ids].sum() == len(text.encode())


def test_a_long_text_is_encoded_in_pieces_without_loss(codec: bpe.BpeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Größe ist relativ.\n" * 20 + "x" * 300
    whole = codec.encode_long(text)
    assert whole.tolist() == codec.encode(text)
    monkeypatch.setattr(bpe.pieces, "__defaults__", (37,))
    cut = codec.encode_long(text)
    assert codec.decode_bytes(cut.tolist()) == codec.decode_bytes(whole.tolist()) == text.encode()
    assert len(cut) >= len(whole)


def test_the_same_text_gives_the_same_tokenizer_in_any_process(codec: bpe.BpeCodec) -> None:
    program = f"from tasks.language import bpe; print(bpe.train([{PROSE!r} * 50], {VOCAB}).sha256)"
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert found.stdout.strip() == codec.sha256
    assert bpe.train([PROSE * 49 + "other words"], VOCAB).sha256 != codec.sha256


def test_it_is_trained_on_the_train_split_alone(tmp_path: Path) -> None:
    task = language(novels(tmp_path / "same"))
    names = {split: tuple(d.name for d in task.splits[split]) for split in SPLITS}
    held_out = names["validation"] + names["test"]
    assert held_out and names["train"]
    other = language(novels(tmp_path / "held out differs", "zq vx zq jk ", held_out))
    assert {split: tuple(d.name for d in other.splits[split]) for split in SPLITS} == names
    assert sha256_of(other) == sha256_of(task)
    assert not np.array_equal(other.corpus.tokens, task.corpus.tokens)
    trained = language(novels(tmp_path / "train differs", "zq vx zq jk ", names["train"]))
    assert sha256_of(trained) != sha256_of(task)


@pytest.mark.parametrize("layout", ["embedded", "novels", "one file"])
def test_both_forms_hold_the_same_text_in_the_same_splits(layout: str, tmp_path: Path) -> None:
    source = None
    if layout == "novels":
        source = novels(tmp_path)
    elif layout == "one file":
        source = tmp_path / "one.txt"
        source.write_text("Größe 世界 und so weiter. " * 400)
    task, in_bytes = language(source), make_task("language", source=source)
    assert isinstance(in_bytes, CorpusTask) and task.codec is not None
    for split in SPLITS:
        ours, theirs = task.splits[split], in_bytes.splits[split]
        assert [d.name for d in ours] == [d.name for d in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            text = task.codec.decode_bytes(task.corpus.tokens_of(mine).tolist())
            data = in_bytes.corpus.tokens_of(other).tobytes()
            assert text in data and len(data) - len(text) <= (6 if layout == "one file" else 0), (
                "at most cut characters"
            )
            assert task.token_bytes[task.corpus.tokens_of(mine)].sum() == len(text)
    assert len(task.corpus.tokens) < 0.8 * len(in_bytes.corpus.tokens)


def test_windows_are_ids_of_the_vocabulary() -> None:
    task = language()
    batch = task.sample(ExampleStream(split="test"), 4, 128)
    assert bool((batch.inputs_BL[:, 1:] == batch.targets_BL[:, :-1]).all())
    assert int(batch.inputs_BL.max()) >= 256, "merges occur"
    assert int(batch.inputs_BL.min()) >= 0 and int(batch.inputs_BL.max()) < task.vocab_size == VOCAB
    assert 0 < task.chance < 0.2


def test_a_second_task_neither_trains_nor_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = language()
    monkeypatch.setattr(bpe, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(bpe.BpeCodec, "encode_long", lambda *_: pytest.fail("encoded again"))
    second = language()
    assert sha256_of(second) == sha256_of(first)
    assert np.array_equal(second.corpus.tokens, first.corpus.tokens)


@pytest.mark.parametrize("damage", ["truncated", "another token", "no JSON", "empty"])
def test_a_damaged_cached_tokenizer_is_trained_again(damage: str, fresh_cache: Path) -> None:
    texts = [document.tokens.tobytes().decode()[:20_000] for document in documents()]
    first = bpe.load_or_train(texts, VOCAB, {"text": 1})
    (path,) = (fresh_cache / "tokenizers").iterdir()
    whole = path.read_text()
    spoiled = {"truncated": whole[:-40], "another token": whole.replace("th", "ht"), "no JSON": "x", "empty": ""}
    path.write_text(spoiled[damage])
    assert bpe.load_or_train(texts, VOCAB, {"text": 1}).sha256 == first.sha256
    assert path.read_text() == whole
    bpe.load_or_train(texts, VOCAB, {"text": 2})
    assert len(list((fresh_cache / "tokenizers").iterdir())) == 2, "another identity is another entry"


def test_a_text_without_enough_merges_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab " * 3000)
    task = language(tmp_path / "a.txt", vocab_size=4096)
    assert task.codec is not None and task.codec.num_tokens < task.vocab_size == 4096
    assert f"the train split gave {task.codec.num_tokens} of 4096 tokens" in task.provenance.note
    assert len(task.token_bytes) == 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256}, r"vocab_size=256 .* outside 257\.\.65536.*such as 4096"),
        ({"vocab_size": 2**16 + 1}, r"vocab_size=65537"),
        ({"tokenizer": "bytes", "vocab_size": 4096}, r"vocab_size=4096, but there are 256 bytes; add tokenizer: bpe"),
        ({"tokenizer": "wordpiece"}, r"unknown tokenizer 'wordpiece'; it is 'bytes' or 'bpe'"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        language(**options)


def test_text_that_is_not_utf8_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"a" * 3000 + b"\xe9" + b"b" * 3000)
    with pytest.raises(TaskError, match=r"latin1\.txt.*not UTF-8 at byte offset 3000 \(byte 0xe9\).*leave tokenizer"):
        language(tmp_path / "latin1.txt")


def test_bytes_are_what_they_were() -> None:
    task = make_task("language")
    assert task.vocab_size == 256 and task.checkpoint_files() == {}
    assert task.provenance.tokenizer_sha256 is None
    assert set(language().checkpoint_files()) == {"tokenizer.json"}
