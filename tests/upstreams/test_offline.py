from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain import Delta, Event, Finished, Message, Question, Started
from relay.errors import (
    BadRequest,
    RateLimited,
    RelayError,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.offline import WORDS, Offline, OfflineDecoder, rehearsed


def wire_of(*messages: Message) -> list[bytes]:
    """All that the offline server sends, piece by piece, until it ends or falls silent."""
    stream, _ = Offline().ask(Question(messages))
    pieces = []
    while piece := stream.read(0.01):
        pieces.append(piece)
    return pieces


def events_of(*pieces: bytes) -> list[Event]:
    decoder = OfflineDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def user(text: str) -> Message:
    return Message("user", text)


def test_it_says_what_it_is_and_knows_the_conversation() -> None:
    events = events_of(
        *wire_of(
            Message("system", "Be kind."),
            user("one"),
            Message("assistant", "1"),
            user("two  words\n"),
        )
    )
    assert events[0] == Started("offline") and events[-1] == Finished("stop")
    text = text_of(events)
    assert "offline responder" in text and "no model was asked" in text
    assert "Turn 2." in text and "System prompt: Be kind." in text
    assert "You said: two  words\n" in text and "Before that you said: one" in text
    assert len([event for event in events if isinstance(event, Delta)]) > 5


@pytest.mark.parametrize("prompt", ["héllo 你好 🙂", "a\u2028b\u0085c"])
def test_its_events_are_the_same_wherever_the_bytes_are_cut(prompt: str) -> None:
    wire = b"".join(wire_of(user(prompt)))
    whole = events_of(wire)
    assert prompt in text_of(whole)
    for cut in range(len(wire) + 1):
        assert events_of(wire[:cut], wire[cut:]) == whole


def test_a_refusal_is_rehearsed() -> None:
    with pytest.raises(UpstreamRefused) as refused:
        wire_of(user("offline:status=503"))
    assert refused.value.status == 503
    with pytest.raises(RateLimited) as limited:
        wire_of(user("please offline:limit=7 now"))
    assert (limited.value.status, limited.value.retry_after) == (429, 7)


def test_a_cut_and_silence_are_rehearsed() -> None:
    cut = events_of(*wire_of(user("offline:cut")))
    assert text_of(cut) and not any(isinstance(event, Finished) for event in cut)
    stream, _ = Offline().ask(Question((user("offline:silence"),)))
    while stream.read(0.01):
        pass
    assert stream.read(0.01) is None
    stream.interrupt()
    assert stream.read(60) == b""


def test_delay_pace_and_length_are_rehearsed() -> None:
    stream, _ = Offline().ask(Question((user("offline:delay=0.05 offline:pace=0.05"),)))
    assert stream.read(0.01) is None
    assert stream.read(1)
    assert stream.read(0.01) is None
    assert (
        100_000
        <= len(text_of(events_of(*wire_of(user("offline:long=100000")))))
        < 101_000
    )


@pytest.mark.parametrize(
    "word",
    [
        "nonsense",
        "status",
        "status=200",
        "delay=soon",
        "pace=1e9",
        "long=nan",
        "limit=-1",
    ],
)
def test_an_invalid_word_is_refused(word: str) -> None:
    with pytest.raises(BadRequest, match="offline:"):
        rehearsed(f"hello offline:{word}")


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_known(word: str) -> None:
    lowest, highest, _, _ = WORDS[word]
    assert rehearsed(f"offline:{word}={highest:g}") == {word: highest}


def test_an_end_without_its_end_is_a_cut() -> None:
    with pytest.raises(UpstreamCut):
        OfflineDecoder().end()


@pytest.mark.parametrize(
    "data", [b"data: {\n\n", b"data: {}\n\n", b"data: 5\n\n", b'data: {"text": 5}\n\n']
)
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        list(OfflineDecoder().feed(data))


@given(st.lists(st.binary(max_size=60)))
def test_no_bytes_break_the_decoder(pieces: list[bytes]) -> None:
    try:
        events_of(*pieces)
    except RelayError as error:
        assert error.source == "upstream"


@given(st.text(min_size=1, max_size=200).filter(lambda text: "offline:" not in text))
def test_any_prompt_is_repeated(prompt: str) -> None:
    assert f"You said: {prompt}" in text_of(events_of(*wire_of(user(prompt))))
