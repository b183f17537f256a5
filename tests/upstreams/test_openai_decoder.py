"""The stream of chat/completions, in all the ways in which servers write it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain import (
    Delta,
    Event,
    Finished,
    Reasoning,
    Refusal,
    Started,
    ToolCall,
)
from relay.errors import (
    RateLimited,
    RelayError,
    TokenRejected,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.openai.decoder import FAILURE_REASONS, OpenAIDecoder
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


def parts_of(events: list[Event]) -> tuple[str, str, str, Finished]:
    """Text, reasoning, refusal and the end."""
    assert isinstance(events[0], Started)
    texts = [
        "".join(event.text for event in events if isinstance(event, kind))
        for kind in (Delta, Reasoning, Refusal)
    ]
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
        assert parts_of(fed(encoded, size)) == (
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
    assert parts_of(events)[:2] == (TEXT, "I think.")
    kinds = [type(event) for event in events]
    assert kinds.index(Reasoning) < kinds.index(Delta)


def test_the_same_thought_under_two_names_is_one() -> None:
    events = fed(
        (
            chunk({"reasoning": "a", "reasoning_content": "a"})
            + chunk({"content": "b"}, "stop")
        ).encode()
    )
    assert parts_of(events)[:2] == ("b", "a")


def test_parts_as_mistral_has_them() -> None:
    thinking = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Hi"},
    ]
    assert parts_of(fed((chunk({"content": thinking}) + chunk({}, "stop")).encode()))[
        :2
    ] == ("Hi", "hm")


def test_a_refusal_is_no_text() -> None:
    events = fed(
        "".join(
            chunks("tiny", "never", Mode(refusal="I can't help with that."))
        ).encode()
    )
    assert parts_of(events)[:3] == ("", "", "I can't help with that.")


REASONS = [
    *((reason, "stop") for reason in ("stop", "eos", "end_turn", "stop_sequence", "complete", "STOP", "of a new kind")),
    *((reason, "length") for reason in ("length", "max_tokens", "model_length", "max_output_tokens", "MAX_TOKENS")),
    *((reason, "tool_calls") for reason in ("tool_calls", "function_call", "tool_use")),
    *((reason, "content_filter") for reason in ("content_filter", "sensitive", "SAFETY", "recitation", "blocklist",
                                                "prohibited_content", "spii")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "expected"), REASONS)
def test_finish_reasons_are_of_one_vocabulary(reason: str, expected: str) -> None:
    wire = chunk({"content": "x"}) + chunk({}, reason)
    assert parts_of(fed(wire.encode()))[3].reason == expected


@pytest.mark.parametrize("reason", FAILURE_REASONS)
def test_a_server_that_gave_up_is_an_error_after_its_last_text(reason: str) -> None:
    decoder = OpenAIDecoder()
    events = decoder.feed(chunk({"content": "x"}, reason).encode())
    assert [next(events), next(events)] == [Started("m"), Delta("x")]
    with pytest.raises(UpstreamFailed, match=f"gave up .*{reason}"):
        next(events)


def test_the_pieces_of_tool_calls() -> None:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}  # fmt: skip
    other = {"index": 1, "id": "call_2", "function": {"name": "now", "arguments": "{}"}}
    wire = (
        chunk({"role": "assistant", "content": None, "tool_calls": [first]})
        + chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]})
        + chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}, other]})
        + chunk({}, "tool_calls")
    )
    for size in (0, 1):
        assert fed(wire.encode(), size) == [
            Started("m"),
            ToolCall(0, "call_1", "add", ""),
            ToolCall(0, arguments='{"a": '),
            ToolCall(0, arguments="1}"),
            ToolCall(1, "call_2", "now", "{}"),
            Finished("tool_calls", model="m"),
        ]


def test_whole_tool_calls_have_their_position_as_index() -> None:
    calls = [
        {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c2", "function": {"name": "now", "arguments": {"in": "UTC"}}},
    ]
    choice = {"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}
    wire = f"data: {json.dumps({'choices': [choice]})}\n\n"
    assert fed(wire.encode())[1:-1] == [
        ToolCall(0, "c1", "add", '{"a": 1}'),
        ToolCall(1, "c2", "now", '{"in":"UTC"}'),
    ]


def test_a_function_call_of_the_older_api() -> None:
    wire = (
        chunk({"function_call": {"name": "add", "arguments": ""}})
        + chunk({"function_call": {"arguments": "{}"}})
        + chunk({"function_call": None}, "function_call")
    )
    assert fed(wire.encode())[1:] == [
        ToolCall(0, "", "add", ""),
        ToolCall(0, arguments="{}"),
        Finished("tool_calls", model="m"),
    ]


def test_tool_calls_of_odd_forms_do_no_harm() -> None:
    odd: list[Any] = [None, 3, {"index": -1}, {"index": True}, {"index": "x", "id": "c"}, {"function": 5}]  # fmt: skip
    wire = chunk({"tool_calls": odd}) + chunk({"tool_calls": 7, "function_call": []})
    wire += chunk({"content": "a"}, "stop")
    assert fed(wire.encode())[1:-1] == [ToolCall(4, "c"), Delta("a")]


def test_arguments_that_are_nested_too_deep_are_an_error() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    wire = chunk({"tool_calls": [{"function": {"name": "f", "arguments": deep}}]})
    with pytest.raises(UpstreamFailed, match="too deep"):
        fed(wire.encode())


def test_events_before_an_error_in_the_same_piece_are_given_first() -> None:
    decoder = OpenAIDecoder()
    deltas = "".join(chunk({"content": text}) for text in "abcd")
    failure = 'data: {"error": {"message": "Overloaded"}}\n\n'
    events: list[Event] = []
    with pytest.raises(UpstreamFailed, match="Overloaded"):
        for event in decoder.feed((deltas + failure).encode()):
            events.append(event)
    assert events == [Started("m"), *(Delta(text) for text in "abcd")]


def test_a_credential_is_never_quoted() -> None:
    decoder = OpenAIDecoder(lambda text: text.replace(b"s3cret", b"..."))
    for message in ("bad key s3cret", "x" * 1190 + " s3cret"):
        wire = f"data: {json.dumps({'error': {'message': message}})}\n\n"
        with pytest.raises(UpstreamFailed) as raised:
            list(decoder.feed(wire.encode()))
        assert "s3c" not in raised.value.message


@pytest.mark.parametrize("depth", [254, 990, 5000])
def test_an_error_of_any_depth_is_an_error(depth: int) -> None:
    for inner in ("[" * depth + "]" * depth, '{"error":' * depth + "1" + "}" * depth):
        for name in ("message", "code", "type", "error"):
            wire = f'data: {{"error": {{"{name}": {inner}}}}}\n\n'
            with pytest.raises(UpstreamFailed):
                fed(wire.encode())


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
    assert parts_of(fed(wire.encode()))[0] == "ab"


def test_what_comes_after_the_finish_reason_is_not_missed() -> None:
    decoder = OpenAIDecoder()
    list(decoder.feed(chunk({"content": "a"}).encode()))
    assert not decoder.complete
    list(decoder.feed(chunk({}, "stop").encode()))
    assert decoder.complete and decoder.end() == [
        Finished("stop", model="m", usage=None)
    ]


def test_what_comes_after_the_end_is_left_alone() -> None:
    wire = (
        chunk({"content": "a"}) + chunk({}, "stop") + "data: [DONE]\n\ndata: bye\n\n"
    ).encode()
    for size in (0, 1, len(wire) - 5):
        assert parts_of(fed(wire, size))[0] == "a"
    decoder = OpenAIDecoder()
    list(decoder.feed(wire))
    assert list(decoder.feed(b"data: bye\n\n")) == decoder.end() == []


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


@pytest.mark.parametrize(("wire", "error", "message"), FAILURES)
@pytest.mark.parametrize("before", ["", chunk({"content": "so far"})])
def test_failures_within_the_stream(
    before: str, wire: str, error: type[RelayError], message: str
) -> None:
    with pytest.raises(error, match=message):
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
                                       "index", "object", "text", "tool_calls", "function", "arguments", "function_call", "thinking", "refusal", "reasoning", "model"]), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(st.lists(JSON, max_size=5))
def test_no_json_of_any_shape_raises_anything_else(values: list[Any]) -> None:
    try:
        fed("".join(f"data: {json.dumps(value)}\n\n" for value in values).encode())
    except RelayError:
        pass
