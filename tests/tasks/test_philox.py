"""Counter-based randomness: the published vectors, and what the tasks rely on."""

import pytest
import torch

from tasks.random import derive_key, distinct_sorted, philox, random_words, uniform_below

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # Random123's kat_vectors, philox4x32 10
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES), (ONES,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(key: tuple[int, int], counter: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox(key, counter)) == expected


def test_words_do_not_depend_on_the_batch() -> None:
    key = derive_key("test")
    whole = random_words(key, torch.arange(10), 7)
    assert torch.equal(whole[4:6], random_words(key, torch.arange(4, 6), 7))
    assert torch.equal(whole[:, :3], random_words(key, torch.arange(10), 3))


def test_examples_beyond_32_bits_differ() -> None:
    words = random_words(derive_key("test"), torch.tensor([1, 1 + 2**32]), 4)
    assert not torch.equal(words[0], words[1])


def test_words_are_uniform() -> None:
    words = random_words(derive_key("uniform"), torch.arange(64), 1024)
    counts = torch.bincount(uniform_below(words, 16).flatten(), minlength=16).double()
    expected = counts.sum() / 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 45  # 15 degrees of freedom: exceeded once in 10^4


def test_distinct_sorted_is_a_uniform_subset() -> None:
    places = distinct_sorted(derive_key("subset"), torch.arange(6000), 3, 6, stream=0)
    assert bool((places[:, 1:] > places[:, :-1]).all())
    codes = (1 << places).sum(dim=1)
    counts = torch.unique(codes, return_counts=True)[1].double()
    assert len(counts) == 20
    assert float(((counts - 300) ** 2 / 300).sum()) < 50  # 19 degrees of freedom
