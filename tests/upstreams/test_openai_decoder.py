"""The stream of chat/completions, in all the ways in which servers write it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain import Delta, Event, Finished, Reasoning, Refusal, Started
from relay.errors import (
    RateLimited,
    RelayError,
    TokenRejected,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.openai.decoder import OpenAIDecoder
from tests.openai_backend import USAGE, Mode, chunks

TEXT = "Hello — 你好 🙂\u2028\x85 end."


def fed(wire: bytes, size: int = 0) -> list[Event]:
    decoder = OpenAIDecoder()
    pieces = (
        [wire[at : at + size] for at in range(0, len(wire), size)] if size else [wire]
    )
    events: list[Event] = []
    for piece in pieces:
        if not any(isinstance(event, Finished) for event in events):
            events += decoder.feed(piece)
    return (
        events
        if any(isinstance(event, Finished) for event in events)
        else [*events, *decoder.end()]
    )


def told(events: list[Event]) -> tuple[str, str, str, Finished]:
    """Text, reasoning, refusal and the end."""
    assert isinstance(events[0], Started)
    texts = [
        "".join(event.text for event in events if isinstance(event, kind))
        for kind in (Delta, Reasoning, Refusal)
    ]  # type: ignore[arg-type]
    last = next(event for event in events if isinstance(event, Finished))
    return texts[0], texts[1], texts[2], last


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> str:
    return f"data: {json.dumps({'model': 'm', 'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}], **more})}\n\n"


MODES = [
    pytest.param(Mode(), id="as OpenAI"),
    pytest.param(Mode(done=False), id="no DONE"),
    pytest.param(Mode(usage_with_last=True), id="usage with the last chunk"),
    pytest.param(Mode(usage_with_last=True, done=False), id="as the smallest servers"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crlf", [False, True])
def test_an_answer_is_read_whole_and_cut_anywhere(mode: Mode, crlf: bool) -> None:
    wire = "".join(chunks("tiny", TEXT, mode))
    encoded = (wire.replace("\n", "\r\n") if crlf else wire).encode()
    for size in (0, 1, 2, 3, 7, 64):
        assert told(fed(encoded, size)) == (
            TEXT,
            "",
            "",
            Finished("stop", model="tiny-2026", usage=USAGE),
        )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(name: str) -> None:
    events = fed(
        "".join(
            chunks("tiny", TEXT, Mode(reasoning="I think.", reasoning_field=name))
        ).encode()
    )
    assert told(events)[:2] == (TEXT, "I think.")
    kinds = [type(event) for event in events]
    assert kinds.index(Reasoning) < kinds.index(Delta)


def test_the_same_thought_under_two_names_is_one() -> None:
    events = fed(
        (
            chunk({"reasoning": "a", "reasoning_content": "a"})
            + chunk({"content": "b"}, "stop")
        ).encode()
    )
    assert told(events)[:2] == ("b", "a")


def test_parts_as_mistral_has_them() -> None:
    thinking = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Hi"},
    ]
    assert told(fed((chunk({"content": thinking}) + chunk({}, "stop")).encode()))[
        :2
    ] == ("Hi", "hm")


def test_a_refusal_is_no_text() -> None:
    events = fed(
        "".join(
            chunks("tiny", "never", Mode(refusal="I can't help with that."))
        ).encode()
    )
    assert told(events)[:3] == ("", "", "I can't help with that.")


@pytest.mark.parametrize(
    "reason", ["stop", "length", "tool_calls", "content_filter", "function_call"]
)
def test_the_finish_reason_is_passed_on(reason: str) -> None:
    assert (
        told(fed((chunk({"content": "x"}) + chunk({}, reason)).encode()))[3].reason
        == reason
    )


def test_only_the_first_choice_is_followed_and_oddities_do_no_harm() -> None:
    wire = (
        chunk({"content": "a"})
        + "data: "
        + json.dumps({"choices": [{"index": 1, "delta": {"content": "no"}}]})
        + "\n\n"
    )
    wire += 'data: {"choices": [], "prompt_filter_results": []}\n\n: OPENROUTER PROCESSING\n\nretry: 3\n\nid: 4\n\n'
    wire += (
        chunk({"content": None})
        + chunk({"content": "b", "tool_calls": [{"index": 0}]})
        + chunk(None, None)
        + chunk({}, "stop")
    )
    wire += 'data: {"choices": null}\n\ndata: {"choices": [null, 3]}\n\n'
    assert told(fed(wire.encode()))[0] == "ab"


def test_what_comes_after_the_finish_reason_is_not_missed() -> None:
    decoder = OpenAIDecoder()
    decoder.feed(chunk({"content": "a"}).encode())
    assert not decoder.settled
    decoder.feed(chunk({}, "stop").encode())
    assert decoder.settled and decoder.end() == [
        Finished("stop", model="m", usage=None)
    ]


def test_what_comes_after_the_end_is_left_alone() -> None:
    wire = (
        chunk({"content": "a"}) + chunk({}, "stop") + "data: [DONE]\n\ndata: bye\n\n"
    ).encode()
    for size in (0, 1, len(wire) - 5):
        assert told(fed(wire, size))[0] == "a"


@pytest.mark.parametrize("finish", [None, "", 3])
@pytest.mark.parametrize("done", ["data: [DONE]\n\n", ""])
def test_a_stream_without_its_finish_reason_is_an_error(finish: Any, done: str) -> None:
    with pytest.raises(UpstreamCut, match="finish reason"):
        fed((chunk({"content": "half of it"}, finish) + done).encode())


def test_a_stream_that_is_cut_anywhere_is_no_answer() -> None:
    wire = "".join(chunks("tiny", TEXT, Mode(done=False, usage=False))).encode()
    last = wire.rindex(b"data:")
    for end in range(last + 8):
        with pytest.raises(UpstreamCut):
            fed(wire[:end])


FAILURES: list[tuple[str, type[RelayError], str]] = [
    ('data: {"error": {"message": "The server had an error", "type": "server_error", "code": null}}\n\n', UpstreamFailed, "had an error"),
    ('event: error\ndata: {"message": "Overloaded"}\n\n', UpstreamFailed, "Overloaded"),
    ('data: {"object": "error", "message": "out of memory", "code": 500}\n\n', UpstreamFailed, "out of memory"),
    ('{"error": {"message": "no event at all"}}\n\n', UpstreamFailed, "no event at all"),
    ('data: {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}\n\n', RateLimited, "slow down"),
    ('data: {"error": {"message": "Provider returned error", "code": 429}}\n\n', RateLimited, "Provider"),
    ('data: {"error": {"message": "nope", "code": "invalid_api_key"}}\n\n', TokenRejected, "nope"),
    ('data: {"error": {"message": "too long", "code": 400}}\n\n', UpstreamRefused, "too long"),
    ('data: {"error": "just text"}\n\n', UpstreamFailed, "just text"),
    ("data: not json\n\n", UpstreamFailed, "no JSON"),
    ("data: [1]\n\n", UpstreamFailed, "no JSON"),
    (chunk({}, "error"), UpstreamFailed, "gave up"),
    (chunk({}, "network_error"), UpstreamFailed, "network_error"),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "error", "says"), FAILURES)
@pytest.mark.parametrize("before", ["", chunk({"content": "so far"})])
def test_failures_within_the_stream(
    before: str, wire: str, error: type[RelayError], says: str
) -> None:
    with pytest.raises(error, match=says):
        fed((before + wire).encode())


@given(st.binary(max_size=300), st.integers(1, 40))
def test_garbage_never_raises_anything_else(wire: bytes, size: int) -> None:
    try:
        fed(wire, size)
    except RelayError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 500) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["choices", "delta", "message", "content", "error", "code", "usage", "finish_reason",
                                       "index", "object", "text", "thinking", "refusal", "reasoning", "model"]), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(st.lists(JSON, max_size=5))
def test_no_json_of_any_shape_raises_anything_else(values: list[Any]) -> None:
    try:
        fed("".join(f"data: {json.dumps(value)}\n\n" for value in values).encode())
    except RelayError:
        pass
