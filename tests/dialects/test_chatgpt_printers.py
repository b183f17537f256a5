"""Web-format streams that are printed here: read by this service's own decoder, and by the rules of the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.citations import CitationFilter
from relay.dialects.chatgpt.answer import Answer
from relay.dialects.chatgpt.classic import SHARE, Classic, whole
from relay.dialects.chatgpt.delta import Edits
from relay.domain import Delta, Event, Finished, Reasoning, Started
from relay.errors import RateLimited, UpstreamCut, UpstreamFailed
from relay.turn import Printer
from relay.upstreams.chatgpt_web.classic import WebDecoder
from tests.printing import (
    ANSWER,
    BATCHES,
    CONVERSATION,
    QUESTION,
    STARTED,
    begun,
    deltas,
    printed,
    reply,
    text_of,
)

PRINTERS = [Classic, Edits]
Make = Callable[[Answer], Printer]


def decoded(wire: bytes, cuts: list[int] | None = None) -> list[Event]:
    """The events of a stream that arrives cut at these places."""
    decoder = WebDecoder()
    places = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts or [])})
    events = [
        event
        for start, end in zip(places, places[1:], strict=False)
        for event in decoder.feed(wire[start:end])
    ]
    return events + decoder.end()


def without_citations(text: str) -> str:
    citations = CitationFilter()
    return citations.feed(text) + citations.end()


def events_of(wire: bytes) -> list[dict[str, Any]]:
    """The objects of a classic stream, which has nothing but data lines and its end."""
    lines = wire.decode("ascii").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize("make", PRINTERS)
@settings(max_examples=1000, deadline=None)
@given(batches=BATCHES, cuts=st.lists(st.integers(0, 10**6), max_size=5))
def test_the_own_decoder_reads_any_text_however_it_is_cut(
    make: Make, batches: list[list[Event]], cuts: list[int]
) -> None:
    wire = b"".join(printed(make(begun()), batches))
    assert wire.isascii() and b"\x7f" not in wire and b"\r" not in wire
    events = decoded(wire, cuts)
    assert text_of([events]) == without_citations(text_of(batches))
    assert events[0] == Started("tiny-1", CONVERSATION)
    assert events[-1] == Finished("stop", ANSWER, "tiny-1")


def test_a_classic_event_has_the_message_with_all_of_its_text() -> None:
    pieces = printed(Classic(begun()), deltas(["Hé", ' "you"\n']))
    first, second, third, last = events_of(b"".join(pieces))
    assert [event["message"]["content"]["parts"] for event in (first, second, third)] == [[""], ["Hé"], ['Hé "you"\n']]  # fmt: skip
    assert first == {
        "message": {
            "id": ANSWER,
            "author": {"role": "assistant", "name": None, "metadata": {}},
            "create_time": 1683782781.5,
            "update_time": None,
            "content": {"content_type": "text", "parts": [""]},
            "status": "in_progress",
            "end_turn": None,
            "weight": 1.0,
            "metadata": {
                "message_type": "next",
                "model_slug": "tiny-1",
                "parent_id": QUESTION,
            },
            "recipient": "all",
            "channel": None,
        },
        "conversation_id": CONVERSATION,
        "error": None,
    }
    assert last["message"]["content"]["parts"] == ['Hé "you"\n']
    assert last["message"]["status"] == "finished_successfully"
    assert last["message"]["end_turn"] is True
    assert last["message"]["metadata"]["finish_details"] == {"type": "stop"}
    assert whole(begun(), reply("x"))["message"]["id"] == ANSWER


@pytest.mark.parametrize("make", PRINTERS)
def test_an_answer_that_stopped_for_its_length_says_so(make: Make) -> None:
    printer = make(begun())
    wire = printer.print([STARTED, Delta("Hi")]) + printer.end(reply("Hi", "length"))
    assert b'"finish_details":{"type":"max_tokens"}' in wire
    decoder = WebDecoder()
    assert text_of([[*decoder.feed(wire)]]) == "Hi"
    assert decoder.wants is not None, "such an answer is asked to go on"


@pytest.mark.parametrize("make", PRINTERS)
def test_a_failure_ends_the_stream_without_its_end_mark(make: Make) -> None:
    printer = make(begun())
    wire = printer.print([STARTED, Delta("Half an ans")])
    failed = printer.fail(RateLimited("Too many: ü"))
    assert failed is not None and b"[DONE]" not in failed and failed.isascii()
    event, line = failed.decode().split("\n\n")[:2]
    payload = json.loads(event.removeprefix("data: "))
    assert payload["message"] is None
    assert payload["conversation_id"] == CONVERSATION
    assert payload["error"] == payload["detail"]["message"] == "Too many: ü"
    assert line == "internal server error"
    with pytest.raises(UpstreamFailed, match="Too many: ü"):
        decoded(wire + failed)
    with pytest.raises(UpstreamCut):
        decoded(wire)
    with pytest.raises(UpstreamFailed, match="internal server error"):
        decoded(wire + b"internal server error\n\n")


@pytest.mark.parametrize("make", PRINTERS)
def test_a_failure_before_the_answer_names_no_conversation(make: Make) -> None:
    failed = make(begun()).fail(RateLimited("Too many"))
    assert failed is not None
    payload = json.loads(failed.split(b"\n\n")[0].removeprefix(b"data: "))
    assert payload["conversation_id"] is None and payload["error"] == "Too many"


@pytest.mark.parametrize("make", PRINTERS)
def test_what_is_not_stored_has_ids_of_its_own(make: Make) -> None:
    printer = make(begun())
    wire = printer.print([Started("tiny-1")])
    wire += printer.end(replace(reply(""), conversation_id="", message_id=""))
    started, finished = decoded(wire)
    assert isinstance(started, Started) and isinstance(finished, Finished)
    for identifier in (started.conversation_id, finished.message_id):
        assert identifier is not None and len(identifier) == 36
    assert started.conversation_id != CONVERSATION


@pytest.mark.parametrize("make", PRINTERS)
def test_the_id_that_is_known_only_in_the_end_counts(make: Make) -> None:
    printer = make(begun())
    wire = printer.print([Started("tiny-1", CONVERSATION), Delta("Hi")])
    events = decoded(wire + printer.end(reply("Hi")))
    assert events[-1] == Finished("stop", ANSWER, "tiny-1")
    assert text_of([events]) == "Hi"


@pytest.mark.parametrize("make", PRINTERS)
def test_reasoning_is_no_part_of_the_stream(make: Make) -> None:
    printer = make(begun())
    assert printer.print([STARTED])
    assert printer.print([Reasoning("hm")]) == b""
    assert printer.keep_alive == b"\n", "a comment would be a broken line"


def test_a_long_answer_is_not_sent_in_the_square_of_its_length() -> None:
    pieces = ["word " * 4] * 10_000
    sent = printed(Classic(begun()), deltas(pieces))
    length = sum(map(len, pieces))
    assert sum(map(len, sent)) < (SHARE + 8) * length + 4096 * 1000
    short = sum(map(len, pieces[:100]))
    assert all(sent[:100]) and short < 4096, "of a short one each piece is an event"


def test_what_waited_of_a_long_answer_comes_before_its_failure() -> None:
    printer = Classic(begun())
    printer.print([STARTED, Delta("x" * 10_000)])
    assert printer.print([Delta("the last words")]) == b""
    first = printer.fail(UpstreamCut()).split(b"\n\n")[0]
    text = json.loads(first.removeprefix(b"data: "))["message"]["content"]["parts"][0]
    assert text.endswith("the last words")


def test_edits_say_once_where_they_append() -> None:
    wire = b"".join(printed(Edits(begun()), deltas(["Blue", " and", " red"])))
    lines = [line for line in wire.decode().split("\n") if line]
    assert lines[:2] == ["event: delta_encoding", 'data: "v1"']
    frames = [json.loads(line[6:]) for line in lines[2:-1] if line.startswith("data:")]
    assert frames[1:4] == [
        {"p": "/message/content/parts/0", "o": "append", "v": "Blue"},
        {"v": " and"},
        {"v": " red"},
    ]
    assert frames[4]["o"] == "patch"
    assert frames[5] == {
        "type": "message_stream_complete",
        "conversation_id": CONVERSATION,
    }
    assert lines[-1] == "data: [DONE]"
