"""Dealing documents to splits, and finding windows in them."""

import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.prepared import Document, RawDocument, build_corpus
from tasks.splits import deal_groups, split_documents
from tasks.windows import find_starts


def documents_of(sizes: dict[str, list[int]]) -> tuple[Document, ...]:
    raw = [
        RawDocument(name=f"{group}/{i}", group=group, tokens=np.zeros(size, np.uint8))
        for group, group_sizes in sizes.items()
        for i, size in enumerate(group_sizes)
    ]
    return build_corpus(raw).documents


def test_about_a_tenth_of_the_tokens_is_held_out_twice() -> None:
    sizes = {f"author {i}": 1000 + 37 * i for i in range(60)}
    dealt = deal_groups(sizes)
    total = sum(sizes.values())
    for split in ("validation", "test"):
        share = sum(size for group, size in sizes.items() if dealt[group] == split) / total
        assert 0.1 <= share <= 0.15
    assert dealt == deal_groups(dict(reversed(sizes.items()))), "the order of the groups does not matter"


@pytest.mark.parametrize("sizes", [[1, 1, 1], [100, 1, 1], [1, 100, 100], [5, 5, 5, 5, 5, 5], [1000, 1, 1, 1]])
def test_every_split_gets_a_group(sizes: list[int]) -> None:
    dealt = deal_groups({f"g{i}": size for i, size in enumerate(sizes)})
    assert set(dealt.values()) == set(SPLITS)
    assert len(dealt) == len(sizes)


def test_groups_stay_whole() -> None:
    splits, notes = split_documents(documents_of({f"s{i}": [10, 20, 30] for i in range(10)}))
    groups = [{document.group for document in splits[split]} for split in SPLITS]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert sum(len(splits[split]) for split in SPLITS) == 30
    assert notes == ()


def test_two_groups_are_cut_contiguously_and_it_is_noted() -> None:
    documents = documents_of({"a": [1000], "b": [500]})
    splits, notes = split_documents(documents)
    assert "contiguous split" in notes[0]
    assert [[document.length for document in splits[split]] for split in SPLITS] == [[800, 400], [100, 50], [100, 50]]
    spans = sorted((document.start, document.end) for split in SPLITS for document in splits[split])
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]], "nothing is lost or used twice"


def test_prescribed_split_is_followed_unless_it_leaves_one_empty() -> None:
    documents = documents_of({"a": [10], "b": [10], "c": [10]})
    splits, _ = split_documents(documents, {"a": "test", "b": "train", "c": "validation"})
    assert [splits[split][0].group for split in SPLITS] == ["b", "c", "a"]
    splits, _ = split_documents(documents, dict.fromkeys("abc", "train"))
    assert all(splits.values())


def test_starts_never_cross_documents() -> None:
    corpus = build_corpus(RawDocument(name=str(n), group=str(n), tokens=np.full(n, n, np.uint8)) for n in (10, 3, 7, 4))
    starts = find_starts(corpus, corpus.documents, 4, None)
    assert starts.num_starts == 7 + 0 + 4 + 1
    windows = [corpus.tokens[start : start + 4].tolist() for start in map(starts.start_at, range(starts.num_starts))]
    assert windows == [[10] * 4] * 7 + [[7] * 4] * 4 + [[4] * 4]


def test_mostly_unscored_windows_are_left_out_exactly() -> None:
    generator = np.random.default_rng(0)
    tokens = np.repeat(generator.choice([0, 4], 40), generator.integers(1, 9, 40)).astype(np.uint8)
    corpus = build_corpus([RawDocument(name="x", group="x", tokens=tokens)])
    starts = find_starts(corpus, corpus.documents, 9, unscored_token=4)
    expected = [s for s in range(len(tokens) - 8) if np.count_nonzero(tokens[s : s + 9] == 4) <= 4]
    assert [starts.start_at(i) for i in range(starts.num_starts)] == expected


def test_spaced_starts_share_no_stride() -> None:
    tokens = np.zeros(100, np.uint8)
    tokens[20:40] = 4
    corpus = build_corpus([RawDocument(name="x", group="x", tokens=tokens)])
    spaced = find_starts(corpus, corpus.documents, 11, unscored_token=4).spaced(10)
    assert spaced[0] == 0
    assert np.diff(spaced).min() >= 10
    assert len(spaced) >= 7
