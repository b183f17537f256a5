"""A text that comes in pieces: what is read is what was added, and a long one is few strings."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from relay.growing_text import MOST_PIECES, GrowingText


@given(
    st.text(),
    st.lists(st.text(max_size=3), max_size=5 * MOST_PIECES),
    st.sets(st.integers(0, 5 * MOST_PIECES)),
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


def test_a_long_one_takes_little_more_than_its_text() -> None:
    text = GrowingText()
    for number in range(100 * MOST_PIECES):
        text.append(f"{number:04d}")
    size = sum(map(sys.getsizeof, text._pieces)) + sys.getsizeof(text._pieces)
    assert size < 1.6 * text.length
