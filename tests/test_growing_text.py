"""A text that comes in pieces: what is read is what was added, and takes little more."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from relay.growing_text import GrowingText

WITH_HALF_PAIRS = st.text(st.characters(codec=None, exclude_categories=()), max_size=3)


@given(
    WITH_HALF_PAIRS,
    st.lists(WITH_HALF_PAIRS, max_size=100),
    st.sets(st.integers(0, 100)),
)
def test_it_is_all_that_was_added(
    first: str, pieces: list[str], read_after: set[int]
) -> None:
    text = GrowingText(first)
    expected = first
    for number, piece in enumerate(pieces):
        text.append(piece)
        expected += piece
        assert text.length == len(expected)
        if number in read_after:
            assert text.text == expected
    assert text.text == expected == text.text


def test_two_halves_of_a_pair_stay_two() -> None:
    text = GrowingText()
    for half in ("\ud83d", "\ude00"):
        text.append(half)
    assert text.text == "\ud83d" + "\ude00"
    assert text.length == 2


def test_it_takes_little_more_than_its_text() -> None:
    text = GrowingText()
    for number in range(3000):
        text.append(f"{number:04d}")
    assert sys.getsizeof(text._more) < 1.2 * text.length
