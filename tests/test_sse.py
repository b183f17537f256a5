from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import sse
from relay.errors import UpstreamFailed
from relay.sse import Parser

CASES = [
    pytest.param(b"data: a\n\n", [("message", "a")], id="lf"),
    pytest.param(b"data: a\r\n\r\n", [("message", "a")], id="crlf"),
    pytest.param(b"data: a\r\r", [("message", "a")], id="cr"),
    pytest.param(
        b"data: a\r\n\ndata: b\n\r\n", [("message", "a"), ("message", "b")], id="mixed"
    ),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [("message", "a")], id="bom"),
    pytest.param(b"data:a\ndata: b\n\n", [("message", "a\nb")], id="two-lines"),
    pytest.param(
        b"event: ping\ndata: a\n\ndata: b\n\n",
        [("ping", "a"), ("message", "b")],
        id="name",
    ),
    pytest.param(
        b": comment\n\ndata: a\nid: 1\nretry: 5\nwhat: ever\n\n",
        [("message", "a")],
        id="others",
    ),
    pytest.param(b"data\n\n", [("message", "")], id="no-colon"),
    pytest.param(b"data:  a\n\n", [("message", " a")], id="one-space-only"),
    pytest.param(b"event: ping\n\n", [], id="no-data"),
    pytest.param(b"data: a\n", [], id="not-closed"),
    pytest.param(
        "data: 你\u2028好\u0085🙂\n\n".encode(),
        [("message", "你\u2028好\u0085🙂")],
        id="only-real-line-ends",
    ),
    pytest.param(b"data: \xff\n\n", [("message", "\ufffd")], id="broken-utf-8"),
]


def parsed(*pieces: bytes) -> list[tuple[str, str]]:
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(("wire", "events"), CASES)
def test_events_are_read(wire: bytes, events: list[tuple[str, str]]) -> None:
    assert parsed(wire) == events


@pytest.mark.parametrize(("wire", "events"), CASES)
def test_events_are_the_same_wherever_the_bytes_are_cut(
    wire: bytes, events: list[tuple[str, str]]
) -> None:
    for cut in range(len(wire) + 1):
        assert parsed(wire[:cut], wire[cut:]) == events
    assert parsed(*(wire[at : at + 1] for at in range(len(wire)))) == events


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "done"]),
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n")),
        ),
        max_size=5,
    )
)
def test_what_is_printed_is_read_back(events: list[tuple[str, str]]) -> None:
    wire = b"".join(
        sse.event(data.encode(), name) + sse.KEEP_ALIVE for name, data in events
    )
    assert parsed(wire) == [(name or "message", data) for name, data in events]


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_break_the_parser(wire: bytes, cut: int) -> None:
    assert parsed(wire[:cut], wire[cut:]) == parsed(wire)


def test_an_endless_event_is_refused() -> None:
    parser = Parser(longest=100)
    with pytest.raises(UpstreamFailed, match="more than 100 bytes"):
        for _ in range(20):
            list(parser.feed(b"data: 0123456789\n" if _ % 2 else b"data: 012"))


def test_a_megabyte_in_one_event() -> None:
    parser = Parser()
    assert list(parser.feed(b"data: ")) == []
    for _ in range(1024):
        assert list(parser.feed(b"x" * 1024)) == []
    assert list(parser.feed(b"\n\n")) == [("message", "x" * 1024 * 1024)]


def test_events_before_an_endless_one_are_given_first() -> None:
    events = Parser(longest=100).feed(b"data: a\n\ndata: b\n\ndata: " + b"x" * 200)
    assert [next(events)[1], next(events)[1]] == ["a", "b"]
    with pytest.raises(UpstreamFailed, match="more than 100 bytes"):
        next(events)
