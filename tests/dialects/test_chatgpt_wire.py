"""What is looked at, and changed, of requests and answers that pass to ChatGPT's backend as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.dialects.chatgpt import errors, wire
from relay.errors import (
    NoConversation,
    RateLimited,
    UpstreamCut,
)
from tests.chatgpt_backend import classic, data, delta
from tests.error_tree import members
from tests.growth import assert_grows_at_most, processor_seconds

QUESTION = {
    "id": "q1",
    "author": {"role": "user"},
    "content": {"content_type": "text", "parts": ["hi"]},
    "status": "finished_successfully",
}
ANSWER = {
    "id": "a1",
    "author": {"role": "assistant"},
    "content": {
        "content_type": "text",
        "parts": ['It says "[DONE]" and {"type":"message_stream_complete"} — 你好'],
    },
    "status": "finished_successfully",
    "end_turn": True,
    "metadata": {},
}
HAND_OFF = data({"type": "stream_handoff", "conversation_id": "c1", "options": []})
COMPLETE = data({"type": "message_stream_complete", "conversation_id": "c1"})


def stream_of(encode: Any, done: bool = True) -> bytes:
    return "".join(encode("c1", [QUESTION, ANSWER], done)).encode()


def pass_through(pieces: list[bytes]) -> tuple[wire.EventWatch, bytes]:
    """A watch that has read the pieces, and what it passed on of them."""
    watch = wire.EventWatch()
    passed = b"".join(watch.feed(piece) for piece in pieces)
    rest = watch.end()
    return watch, passed + (rest if watch.is_whole else b"")


@pytest.mark.parametrize("encode", [classic, delta])
@given(sizes=st.lists(st.integers(1, 400), max_size=30))
def test_a_whole_stream_passes_byte_for_byte_however_it_is_cut_into_pieces(
    encode: Any, sizes: list[int]
) -> None:
    whole = stream_of(encode)
    pieces = []
    rest = whole
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    watch, passed = pass_through([*pieces, rest])
    assert watch.is_whole and passed == whole


NOISY = (
    b": comment\n\n",
    b"event: ping\r\ndata: 2023-08-01 10:20:30.123456\r\n\r\n",
    b"data: 2023-08-01 10:20:30.123456\n\n",
    b"event: ping\n\n",
)
KEPT = (
    b'{"detail": "event: no event"}\n\n',
    b'data: {"message": "\\nevent: x"}\n\n',
    b'data: {"message": 1}\r\n\r\n',
    b"data: [DONE]\n\n",
)


@given(
    events=st.lists(st.sampled_from((*NOISY, *KEPT)), min_size=1, max_size=20),
    sizes=st.lists(st.integers(1, 40), max_size=30),
)
def test_a_client_of_the_classic_format_gets_data_lines_alone(
    events: list[bytes], sizes: list[int]
) -> None:
    whole = b"".join(events)
    watch = wire.EventWatch(is_classic=True)
    passed = b""
    for size in sizes:
        passed += watch.feed(whole[:size])
        whole = whole[size:]
    passed += watch.feed(whole) + watch.end()
    assert passed == b"".join(event for event in events if event in KEPT)
    named = b'event: x\n: why\ndata: {"a": 1}\n\n'
    assert wire.EventWatch(is_classic=True).feed(named) == b'data: {"a": 1}\n\n'
    assert wire.EventWatch().feed(named) == named


def test_a_classic_stream_is_whole_at_its_end_mark_alone() -> None:
    whole = stream_of(classic)
    mark = whole.index(b"data: [DONE]\n\n")
    for end in range(mark + len(b"data: [DONE]")):
        watch, passed = pass_through([whole[:end]])
        assert not watch.is_whole and whole.startswith(passed)
    assert pass_through([whole[: mark + len(b"data: [DONE]")]])[0].is_whole


@pytest.mark.parametrize("mark", [HAND_OFF, COMPLETE, "data: [DONE]\n\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_each_end_mark_ends_a_stream(mark: str, line_end: str) -> None:
    stream = (stream_of(delta, done=False).decode() + mark).replace("\n", line_end)
    assert pass_through([stream.encode()])[0].is_whole


@pytest.mark.parametrize(
    "event",
    [
        'data: {"message":null,"error":"broken"}\n\n',
        'data: {"detail":"Invalid conversation body"}\n\n',
        'event: delta\ndata: {"v":"[DONE]"}\n\n',
        'data: {"v":{"type":"message_stream_complete"}}\n\n',
        'data: ["stream_handoff"]\n\n',
        "data: stream_handoff\n\n",
        ": [DONE]\n\n",
        "event: [DONE]\n\n",
    ],
)
def test_nothing_else_ends_a_stream(event: str) -> None:
    assert not pass_through([event.encode()])[0].is_whole


def test_the_keep_alive_is_a_blank_line_between_events() -> None:
    watch = wire.EventWatch()
    assert watch.keep_alive == b"\n" and watch.is_between_events
    watch.feed(b'data: {"a"')
    assert not watch.is_between_events
    watch.feed(b": 1}\n\n")
    assert watch.is_between_events


@pytest.mark.parametrize("kind", members(), ids=lambda kind: kind.__name__)
def test_every_failure_is_one_event_in_ascii_without_an_end_mark(kind: Any) -> None:
    error = kind.__new__(kind)
    error.message = 'Es ging "nicht" — 你好 🙂 [DONE]'
    events = wire.EventWatch().fail(error)
    assert events.isascii()
    event, crash, rest = events.split(b"\n\n")
    payload = json.loads(event.removeprefix(b"data: "))
    assert payload["message"] is None and payload["error"] == error.message
    assert (crash, rest) == (b"internal server error", b"")
    assert not pass_through([events])[0].is_whole


def test_errors_have_both_clients_fields() -> None:
    error = RateLimited("Wait.", retry_after=5)
    detail = {"message": "Wait.", "code": "rate_limited"}
    assert errors.body(error) == {"errorMessage": "Wait.", "detail": detail}
    assert errors.body(NoConversation())["detail"]["code"] == "conversation_not_found"
    assert errors.event(UpstreamCut(), "c1")["conversation_id"] == "c1"


TURN = {
    "action": "next",
    "messages": [QUESTION],
    "parent_message_id": "p1",
    "conversation_id": "c1",
    "model": "auto",
}


def repaired(body: bytes) -> bytes:
    return wire.repaired(body, wire.read(body), "new-id")


@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_what_needs_no_repair_passes_byte_for_byte(space: str) -> None:
    body = f"{space}{json.dumps(TURN, indent=3, ensure_ascii=False)}{space}".encode()
    assert repaired(body) == body
    of_one_role = {**TURN, "messages": [{**QUESTION, "role": "user"}]}
    assert (
        repaired(json.dumps(of_one_role).encode()) == json.dumps(of_one_role).encode()
    )
    for messages in (None, [], "x", [1]):
        body = json.dumps({**TURN, "messages": messages}).encode()
        assert repaired(body) == body


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"conversation_id": ""}, {"conversation_id": ...}),
        ({"parent_message_id": ""}, {"parent_message_id": "new-id"}),
        ({"parent_message_id": None}, {"parent_message_id": "new-id"}),
        ({"parent_message_id": ...}, {"parent_message_id": "new-id"}),
        (
            {"messages": [{"id": "q", "role": "system", "content": {}}]},
            {"messages": [{"id": "q", "author": {"role": "system"}, "content": {}}]},
        ),
        (
            {"messages": [{"id": "q", "author": {"name": "x"}}, QUESTION]},
            {
                "messages": [
                    {"id": "q", "author": {"name": "x", "role": "user"}},
                    QUESTION,
                ]
            },
        ),
        (
            {"messages": [{"author": {"role": ""}}]},
            {"messages": [{"author": {"role": "user"}}]},
        ),
    ],
)
def test_a_body_is_repaired_and_nothing_else_changes(
    change: dict[str, Any], expected: dict[str, Any]
) -> None:
    exact = {"big": 12345678901234567890123, "text": "你\ud83d"}
    sent = {**TURN, **exact, **change}
    sent = {name: value for name, value in sent.items() if value is not ...}
    wanted = {**TURN, **exact, **change, **expected}
    wanted = {name: value for name, value in wanted.items() if value is not ...}
    body = json.dumps(sent).replace("\\ud83d", "").encode()
    wanted["text"] = "你"
    result = repaired(body)
    assert json.loads(result) == wanted and result.isascii()


def test_an_empty_body_is_repaired_too() -> None:
    assert json.loads(repaired(b"")) == {"parent_message_id": "new-id"}


def test_what_the_index_needs_of_a_body() -> None:
    assert wire.conversation_id_of(TURN) == "c1"
    assert wire.conversation_id_of({"conversation_id": ""}) is None
    assert wire.prompt_of(TURN) == "hi"
    for broken in ({}, {"messages": [1]}, {"messages": [{"content": {"parts": 1}}]}):
        assert wire.prompt_of(broken) == ""
    assert wire.known_ids(TURN) == {"q1", "p1"}
    assert wire.known_ids({"messages": [1, {"id": 5}]}) == frozenset()
    assert wire.is_kept(TURN)
    assert not wire.is_kept({"history_and_training_disabled": True})


LARGE_EVENTS = {
    "lines like an end": lambda number: b"data:[DONE]x\n" * number,
    "one line in small pieces": lambda number: b"data:" + b"x" * 12 * number,
}


@pytest.mark.parametrize("make", LARGE_EVENTS.values(), ids=LARGE_EVENTS)
def test_a_large_event_is_watched_in_linear_time(make: Callable[[int], bytes]) -> None:
    def seconds(number: int) -> float:
        watch = wire.EventWatch()
        event = make(number) + b"\n\n"
        pieces = [event[at : at + 512] for at in range(0, len(event), 512)]
        return processor_seconds(lambda: [watch.feed(piece) for piece in pieces])

    assert_grows_at_most(3, seconds, 100_000, 200_000)
