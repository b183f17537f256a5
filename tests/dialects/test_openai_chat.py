"""Chat completions: what requests ask, and answers, streams and errors as OpenAI's own SDK types have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject

from relay import errors as failures
from relay.dialects import bodies
from relay.dialects.openai import chat, errors, parameters
from relay.dialects.openai.usage import prompt_tokens_of
from relay.domain import (
    Ask,
    Caller,
    Delta,
    Event,
    Message,
    Reasoning,
    Refusal,
    Reply,
    Restarted,
    Started,
    ToolCall,
)
from relay.errors import BadRequest, ModelNotFound, RelayError, Unsupported, UpstreamCut
from relay.window import estimate_tokens
from tests.error_tree import members

CALLER = Caller("owner", may_spend=True)
HI = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:x"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}  # fmt: skip
TOOL = {"role": "tool", "content": "7", "tool_call_id": "call_1"}
CREATED = 1_795_000_000


def ask(*, options: bool = False, key: str | None = None, **fields: Any) -> Ask:
    return chat.ask({"messages": [HI], **fields}, CALLER, key, accepts_options=options)


# What a request asks


@pytest.mark.parametrize("options", [False, True])
def test_the_last_message_is_the_question_and_nothing_is_kept(options: bool) -> None:
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "s"},
        HI,
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]},
    ]  # fmt: skip
    parsed = ask(options=options, messages=messages, model="m", key='"k"')
    assert parsed.preamble == (
        Message("developer", "d"),
        Message("system", "s"),
        Message("user", "hi"),
        Message("assistant", "ho"),
    )
    assert (parsed.prompt, parsed.model, parsed.keep) == ("and\nnow?", "m", False)
    assert (parsed.idempotency_key, parsed.ignored) == ("k", ())
    assert parsed.payloads == ((messages[-1],) if options else ())
    assert prompt_tokens_of(parsed) == sum(
        estimate_tokens(message) for message in (*parsed.preamble, parsed.question)
    )


def test_a_request_is_kept_only_if_it_says_so() -> None:
    dialogue = [{"role": "system", "content": "s"}, HI]
    for fields in ({"conversation": "tea"}, {"history_disabled": False}):
        parsed = ask(messages=dialogue, **fields)
        assert (parsed.keep, len(parsed.preamble)) == (True, 1)
        assert parsed.ignored == ()
    assert ask(conversation="tea").conversation_name == "tea"
    assert not ask(history_disabled=True).keep
    known = ask(messages=dialogue, conversation_id="c1", parent_message_id="p1")
    assert (known.keep, known.conversation_id, known.parent_id) == (True, "c1", "p1")
    assert (known.preamble, known.ignored) == ((), (chat.PREAMBLE_FIELD,))
    assert ask(conversation_id="c1").ignored == ()


def test_an_answer_of_any_kind_is_one() -> None:
    for reply in (
        Reply("", "", "", refusal="no"),
        Reply("", "", "", finish_reason="content_filter"),
        Reply("", "", "", finish_reason="tool_calls", tool_calls=(ToolCall(0),)),
    ):
        ask().check(reply)


def test_where_the_upstream_takes_parameters_all_unknown_fields_are_some() -> None:
    fields = {"temperature": 0, "stop": "1", "tools": [{"type": "new"}], "user": "u", "brand_new": {"a": [None]}, "n": 1,
              "response_format": {"type": "json_object"}, "max_tokens": 5}  # fmt: skip
    own = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "seed": None, "history_disabled": True,
           "api_key": "secret-key", "request_id": "k"}  # fmt: skip
    parsed = ask(options=True, **fields, **own)
    assert parsed.options == fields
    assert (parsed.ignored, parsed.idempotency_key) == (("api_key",), "k")


def test_elsewhere_what_has_no_effect_is_named() -> None:
    parsed = ask(
        temperature=0,
        seed=None,
        metadata={},
        user="u",
        model="m",
        stream=True,
        stream_options={"include_usage": False},
        n=1,
        logprobs=False,
        tools=[],
        functions=None,
        modalities=["text"],
        audio=None,
        response_format={"type": "text"},
        max_tokens=5,
        stop=["a"],
        messageId="x",
        api_key="secret-key",
        brand_new=1,
    )
    assert parsed.ignored == (
        "messageId",
        "api_key",
        "brand_new",
        "metadata",
        "temperature",
    )
    assert parsed.options == {"max_tokens": 5, "stop": ["a"]}


def test_no_parameter_of_the_api_is_taken_for_a_misspelt_place() -> None:
    names = (
        "frequency_penalty function_call logit_bias moderation parallel_tool_calls prediction presence_penalty "
        "prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort safety_identifier service_tier "
        "store tool_choice top_logprobs top_p verbosity web_search_options top_k min_p"
    ).split()
    fields: dict[str, Any] = dict.fromkeys(names, 1)
    assert set(ask(**fields).ignored) == set(names)
    assert ask(options=True, **fields).options == fields
    for accepts_options in (False, True):
        with pytest.raises(BadRequest, match="conversation_id was probably meant"):
            ask(options=accepts_options, convesation_id="c1")


def test_what_an_sdk_sends_back_of_an_answer_is_understood() -> None:
    answer = chat.completion(Reply("ho", "c", "m"), ask(), created=CREATED)
    empty = {"audio": None, "function_call": None, "tool_calls": None}
    again = {**answer["choices"][0]["message"], **empty}
    parsed = ask(messages=[HI, again, HI])
    assert parsed.preamble[1] == Message("assistant", "ho")
    assert parsed.ignored == ()
    refused = {"role": "assistant", "content": None, "refusal": "I can't."}
    assert ask(messages=[HI, refused, HI]).preamble[1].text == "I can't."
    named = {**HI, "name": "Ann", "x\n": 1}
    assert ask(messages=[named]).ignored == ("messages.name", "messages.x\n")


def test_what_the_answer_is_cut_by_is_left_as_it_came() -> None:
    limits = {"max_tokens": 7, "max_completion_tokens": 5, "stop": "1"}
    for accepts_options in (False, True):
        assert ask(options=accepts_options, **limits).options == limits
    parsed = ask(max_tokens=None, stop="")
    assert (parsed.options, parsed.ignored) == ({}, ())


def test_messages_that_text_cannot_carry_pass_where_they_can_and_are_not_kept() -> None:
    picture = {"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE]}
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    parsed = ask(options=True, messages=[picture, called, TOOL])
    assert [message.payloads for message in parsed.preamble] == [(picture,), (called,)]
    assert (parsed.payloads, parsed.prompt) == ((TOOL,), "7")
    assert ask(options=True, messages=[picture]).prompt == "what?"
    alone = {"role": "user", "content": [IMAGE]}
    assert ask(options=True, messages=[alone]).payloads == (alone,)


NO_TEXT: list[tuple[list[dict[str, Any]], str]] = [
    ([{"role": "user", "content": [IMAGE]}], "messages[0].content[0]"),
    (
        [HI, {"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}],
        "messages[1].content[1]",
    ),
    (
        [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}, HI],
        "messages[1].tool_calls",
    ),
    (
        [HI, {"role": "assistant", "content": None, "function_call": {"name": "f"}}],
        "messages[1].function_call",
    ),
    (
        [HI, {"role": "assistant", "content": "x", "audio": {"id": "a"}}, HI],
        "messages[1].audio",
    ),
    ([HI, TOOL], "messages[1].role"),
    ([{"role": "function", "name": "f", "content": "7"}, HI], "messages[0].role"),
]


@pytest.mark.parametrize(("messages", "place"), NO_TEXT)
def test_elsewhere_they_are_refused_with_their_place(
    messages: list[Any], place: str
) -> None:
    with pytest.raises(Unsupported, match="The upstream takes") as found:
        ask(messages=messages)
    assert found.value.parameter == place
    assert "leave images, files and tools out" in found.value.message


def test_results_of_tools_that_follow_each_other_are_one_question() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    other = {**TOOL, "tool_call_id": "other", "content": "8"}
    parsed = ask(options=True, messages=[HI, called, TOOL, other], conversation="tea")
    assert parsed.question == Message("tool", "7\n\n8", (TOOL, other))
    assert parsed.keep and [message.role for message in parsed.preamble] == [
        "user",
        "assistant",
    ]
    thanks = {"role": "user", "content": "and now?"}
    parsed = ask(options=True, messages=[called, TOOL, thanks], conversation_id="c1")
    assert parsed.question.payloads == (TOOL, thanks)
    assert parsed.question.role == "tool" and parsed.ignored == (chat.PREAMBLE_FIELD,)


NEVER = [
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
]
NO_API = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format",
    ),
]


@pytest.mark.parametrize(("fields", "parameter"), NEVER + NO_API)
def test_what_an_answer_must_not_lack_is_refused(
    fields: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(Unsupported, match="leave ") as found:
        ask(**fields)
    assert found.value.parameter == parameter
    assert parameter in found.value.message
    assert errors.body(found.value)["error"]["param"] == parameter
    assert errors.body(found.value)["error"]["code"] == "unsupported_parameter"
    if (fields, parameter) in NEVER:
        with pytest.raises(Unsupported):
            ask(options=True, **fields)
    else:
        assert ask(options=True, **fields).options == fields


BAD_MESSAGES = [
    (None, "missing"),
    ({}, "must be a list"),
    ("hi", "must be a list"),
    (7, "must be a list"),
    ([], "empty"),
    ([HI] * 10_001, "more than 10000"),
    ([None], r"messages\[0\] must be an object"),
    (["hi"], r"messages\[0\] must be an object"),
    ([[HI]], r"messages\[0\] must be an object"),
    ([{}], r"messages\[0\]\.role must be one of"),
    ([{"content": "hi"}], r"\.role must be one of"),
    ([{"role": "bot", "content": "hi"}], r"\.role must be one of"),
    ([{"role": ["user"], "content": "hi"}], r"\.role must be one of"),
    ([{"role": {"user": 1}, "content": "hi"}], r"\.role must be one of"),
    ([{"role": "user"}], r"\.content is missing"),
    ([{"role": "user", "content": None}], r"\.content is missing"),
    ([HI, {"role": "assistant", "content": None}, HI], r"\[1\]\.content is missing"),
    (
        [HI, {"role": "assistant", "content": None, "refusal": 7}, HI],
        "content is missing",
    ),
    ([{"role": "user", "content": 7}], r"\.content must be text, or a list"),
    ([{"role": "user", "content": {"text": "hi"}}], r"\.content must be text"),
    ([{"role": "user", "content": []}], r"\.content must be text"),
    ([{"role": "user", "content": ["hi"]}], r"\.content\[0\] must be an object"),
    ([{"role": "user", "content": [None]}], r"\.content\[0\] must be an object"),
    ([{"role": "user", "content": [{"text": "hi"}]}], r"\.content\[0\] must be an"),
    ([{"role": "user", "content": [{"type": ["text"]}]}], r"\.content\[0\] must be"),
    ([{"role": "user", "content": [{"type": "text"}]}], r"\[0\]\.text must be text"),
    ([{"role": "user", "content": [{"type": "text", "text": 7}]}], r"\.text must be"),
    ([{"role": "user", "content": "a\0b"}], "NUL"),
    ([{"role": "user", "content": [{"type": "text", "text": "\0"}]}], "NUL"),
    ([{"role": "system", "content": "\0"}, HI], "NUL"),
    ([HI, {"role": "assistant", "content": None, "refusal": "\0"}, HI], "NUL"),
    ([{"role": "user", "content": " \n"}], "nothing was asked"),
    ([HI, {"role": "assistant", "content": "ho"}], "its role must be user"),
    ([HI, {"role": "system", "content": "s"}], "its role must be user"),
    ([HI, {"role": "developer", "content": "s"}], "its role must be user"),
    (
        [HI, {"role": "assistant", "content": "ho", "name": "x"}],
        "its role must be user",
    ),
]


@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize(("messages", "sentence"), BAD_MESSAGES)
def test_wrong_messages_are_refused_with_a_sentence(
    messages: Any, sentence: str, options: bool
) -> None:
    with pytest.raises(BadRequest, match=sentence) as found:
        ask(options=options, messages=messages)
    assert type(found.value) is BadRequest


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    *(({"n": value}, "n must be a whole") for value in (0, -1, "2", 1.5, True, [])),
    *(({"logprobs": value}, "logprobs must be true or") for value in (5, [], "x")),
    *(({"modalities": value}, "modalities must be a list") for value in ("text", 7)),
    *(({name: value}, f"{name} must be a list") for name in ("tools", "functions") for value in ({"a": 1}, "x", 7)),
    *(({"response_format": value}, "response_format must be an object") for value in ("text", [], {}, {"type": 7})),
    *(({"stream_options": value}, "stream_options must be an object") for value in (True, "x", [])),
    ({"stream_options": {"include_usage": "x"}}, "include_usage must be true or"),
    ({"model": 7}, "model must be text"),
    ({"model": "a\0"}, "NUL"),
    ({"conversation_id": "a b"}, "is no id"),
    ({"conversation_id": "c1", "conversation": "tea"}, "Send one of"),
    ({"conversation": ""}, "of your own choosing"),
    ({"parent_message_id": ["p"]}, "must be text"),
    ({"history_disabled": "x"}, "history_disabled must be true or"),
    ({"request_id": ""}, "idempotency key"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sentence"), BAD_FIELDS, ids=str)
def test_wrong_fields_are_refused_with_a_sentence(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence) as found:
        ask(**fields)
    assert type(found.value) is BadRequest


def test_a_request_that_is_nested_too_deep_is_refused() -> None:
    nested = "[" * 500 + "]" * 500
    for name in ("messages", "brand_new", "stop", "tools"):
        body = json.dumps({"messages": [HI], name: 0}).replace(" 0", nested)
        if name == "messages":
            body = f'{{"messages": {nested}}}'
        with pytest.raises(BadRequest, match="nested more than"):
            bodies.read("application/json", body.encode())
    # and one that was not read as JSON
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for accepts_options in (False, True):
        with pytest.raises(BadRequest):
            ask(options=accepts_options, messages=[{"role": "user", "content": deep}])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted(parameters.OWN_FIELDS | parameters._HONOURED)) | st.text()  # fmt: skip
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "refusal", "x"]), JSON)
    | st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "system"]), "content": JSON})
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    fields=st.dictionaries(NAMES, JSON), messages=MESSAGES | JSON, options=st.booleans()
)
def test_whatever_is_sent_is_an_ask_or_a_bad_request(
    fields: dict[str, Any], messages: Any, options: bool
) -> None:
    payload = {**fields, "messages": messages}
    try:
        parsed = chat.ask(payload, CALLER, None, accepts_options=options)
    except BadRequest as error:
        assert error.message
        return
    assert parsed.prompt.strip() or parsed.payloads
    assert options or set(parsed.options) <= set(parameters.LIMITS)


# What is printed

ASKED = ask(messages=[{"role": "user", "content": "a" * 20}], model="asked")
assert prompt_tokens_of(ASKED) == 9


def frames(wire: bytes) -> list[Any]:
    """The data of a stream's events; `[DONE]` as it is."""
    events = wire.decode().split("\n\n")
    assert events.pop() == ""
    data = [line.removeprefix("data: ") for line in events if not line.startswith(":")]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def chunks_of(wire: bytes) -> list[ChatCompletionChunk]:
    """A whole stream's chunks, each as the SDK's type has it, and no field more."""
    data = frames(wire)
    assert data.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in data]
    for chunk in chunks:
        assert set(chunk.model_extra or ()) <= {"conversation_id", "message_id"}
        for choice in chunk.choices:
            assert not choice.model_extra
            assert set(choice.delta.model_extra or ()) <= {"reasoning_content"}
    return chunks


def stream(include_usage: bool = False) -> chat.Chunks:
    payload = {"stream_options": {"include_usage": include_usage}}
    return chat.Chunks.of(payload, ASKED, created=CREATED)


def test_a_stream_is_that_of_the_api_byte_for_byte() -> None:
    printer = stream(include_usage=True)
    wire = printer.print([Started("m"), Delta("你"), Delta("好")])
    wire += printer.keep_alive + printer.end(Reply("你好", "", "", usage={"prompt_tokens": 9, "completion_tokens": 2}))  # fmt: skip
    name = frames(wire)[0]["id"]
    head = f'data: {{"id":"{name}","object":"chat.completion.chunk","created":{CREATED},"model":"m","choices":['
    assert len(name) == len("chatcmpl-") + 32
    assert wire.decode() == (
        f'{head}{{"index":0,"delta":{{"role":"assistant","content":"","refusal":null}},"logprobs":null,"finish_reason":null}}],"usage":null}}\n\n'
        f'{head}{{"index":0,"delta":{{"content":"你好"}},"logprobs":null,"finish_reason":null}}],"usage":null}}\n\n'
        ": keep-alive\n\n"
        f'{head}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],"usage":null}}\n\n'
        f'{head}],"usage":{{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_without_being_asked_no_chunk_has_a_usage() -> None:
    printer = stream()
    wire = printer.print([Started(), Delta("x")]) + printer.end(Reply("x", "c", "m1"))
    assert b"usage" not in wire
    *_, last = frames(wire)[:-1]
    assert (last["conversation_id"], last["message_id"]) == ("c", "m1")
    assert last["model"] == "asked"
    assert not parameters.includes_usage({})
    assert parameters.includes_usage({"stream_options": {"include_usage": True}})


def test_an_answer_without_events_has_its_role_too() -> None:
    first, last = chunks_of(stream().end(Reply("", "", "", finish_reason="length")))
    assert first.choices[0].delta.role == "assistant"
    assert last.choices[0].finish_reason == "length"


def test_calls_of_tools_come_in_pieces() -> None:
    printer = stream()
    wire = printer.print(
        [ToolCall(0, "a", "f"), ToolCall(0, arguments='{"x"'), ToolCall(1, name="g")]
    )
    wire += printer.print([ToolCall(0, "a", "f", ":1}"), ToolCall(1, arguments="{}")])
    reply = Reply("", "", "", finish_reason="tool_calls")
    pieces = [
        call
        for chunk in chunks_of(wire + printer.end(reply))
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    by_index: dict[int, str] = {}
    for piece in pieces:
        assert piece.function is not None
        is_first = piece.index not in by_index
        assert (piece.id is not None) == (piece.type is not None) == is_first
        assert (piece.function.name is not None) == is_first
        text = by_index.get(piece.index, "")
        by_index[piece.index] = text + (piece.function.arguments or "")
    assert by_index == {0: '{"x":1}', 1: "{}"}
    assert pieces[0].id == "a"
    assert pieces[2].id, "a call without an id gets one"


@pytest.mark.parametrize("begins", [False, True])
def test_a_failure_is_an_event_that_the_sdk_raises(begins: bool) -> None:
    printer = stream(include_usage=True)
    wire = printer.print([Started("m"), Delta("half")]) if begins else b""
    wire += printer.fail(UpstreamCut("Cut."))
    assert b"[DONE]" not in wire
    assert b'"finish_reason":"' not in wire
    assert frames(wire)[-1] == {
        "error": {
            "message": "Cut.",
            "type": "server_error",
            "param": None,
            "code": "upstream_cut",
        }
    }


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
EVENTS = st.lists(
    st.builds(Delta, TEXT)
    | st.builds(Reasoning, TEXT)
    | st.builds(Refusal, TEXT)
    | st.just(Restarted())
    | st.builds(ToolCall, st.integers(0, 2), st.just("id"), st.just("f"), TEXT)
)


def printed(events: list[Event], cuts: list[int], printer: chat.Chunks) -> bytes:
    """The events as they are printed in batches that end at the cuts."""
    wire = b""
    start = 0
    for cut in [*sorted(cuts), len(events)]:
        if events[start:cut]:
            wire += printer.print(events[start:cut])
        start = max(start, cut)
    return wire


def texts(wire: bytes) -> dict[str, str]:
    """What a client joins: text, reasoning, refusal, and the arguments of each call."""
    joined: dict[str, str] = {}
    for chunk in chunks_of(wire):
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            calls = delta.pop("tool_calls", [])
            named = {f"call {call['index']}": call["function"]["arguments"] for call in calls}  # fmt: skip
            for name, text in {**delta, **named}.items():
                joined[name] = joined.get(name, "") + text
    assert joined.pop("role") == "assistant"
    return {name: text for name, text in joined.items() if text}


def expected(events: list[Event]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for event in events:
        match event:
            case Delta(text):
                name = "content"
            case Restarted():
                name, text = "content", "\n\n"
            case Reasoning(text):
                name = "reasoning_content"
            case Refusal(text):
                name = "refusal"
            case ToolCall(index=index, arguments=text):
                name = f"call {index}"
            case _:
                continue
        joined[name] = joined.get(name, "") + text
    return {name: text for name, text in joined.items() if text}


@settings(deadline=None, max_examples=60)
@given(
    events=EVENTS, cuts=st.lists(st.integers(0, 20)), usage=st.booleans(), fails=st.booleans()
)  # fmt: skip
def test_however_events_are_cut_the_text_and_the_frame_are_the_same(
    events: list[Event], cuts: list[int], usage: bool, fails: bool
) -> None:
    events = [Started("m"), *events]
    printer = stream(include_usage=usage)
    wire = printed(events, cuts, printer)
    if fails:
        wire += printer.fail(UpstreamCut())
        assert b"[DONE]" not in wire.replace(b'"[DONE]"', b"")
        assert "error" in frames(wire)[-1]
        return
    wire += printer.end(Reply("", "c", "m1", "m"))
    chunks = chunks_of(wire)
    assert texts(wire) == expected(events)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    roles = [choice.delta.role for chunk in chunks for choice in chunk.choices]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"] == reasons[-1:]
    assert [bool(chunk.choices) for chunk in chunks].count(False) == usage
    assert (chunks[-1].usage is not None) == usage
    keys = ["usage" in frame for frame in frames(wire)[:-1]]
    assert keys == [usage] * len(keys)


def whole(reply: Reply) -> ChatCompletion:
    """A whole answer as the SDK's type has it, and no field more."""
    value = chat.completion(reply, ASKED, created=CREATED)
    parsed = ChatCompletion.model_validate_json(json.dumps(value), strict=True)
    assert set(parsed.model_extra or ()) <= {"conversation_id", "message_id"}
    [choice] = parsed.choices
    assert not choice.model_extra
    assert set(choice.message.model_extra or ()) <= {"reasoning_content"}
    return parsed


def test_a_whole_answer_is_that_of_the_api() -> None:
    value = chat.completion(Reply("Hello", "", "", "m"), ASKED, created=CREATED)
    assert len(value.pop("id")) == len("chatcmpl-") + 32
    assert value == {
        "object": "chat.completion",
        "created": CREATED,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": None,
    }
    assert whole(Reply("", "", "")).choices[0].message.content == ""


def test_a_whole_answer_of_another_kind() -> None:
    calls = (ToolCall(0, "a", "f", '{"x":1}'), ToolCall(2, "", "g", "{}"))
    reply = Reply("", "c", "m1", None, "tool_calls", "hmm hmm", "", calls)
    answer = whole(reply)
    message = answer.choices[0].message
    assert answer.model == "asked"
    assert answer.model_extra == {"conversation_id": "c", "message_id": "m1"}
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.model_extra == {"reasoning_content": "hmm hmm"}
    first, second = message.tool_calls or ()
    assert first.model_dump() == {
        "id": "a",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x":1}'},
    }
    assert second.id
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None and details.reasoning_tokens == 2
    assert answer.usage.completion_tokens > 2
    refused = whole(Reply("", "", "", refusal="I can't.")).choices[0]
    assert (refused.message.content, refused.message.refusal) == (None, "I can't.")


USAGES: list[tuple[Any, tuple[int, int, int]]] = [
    ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, (3, 4, 9)),
    ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4, 7)),
    ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 1.5}, (3, 4, 7)),
    ({"prompt_tokens": 3}, (9, 2, 11)),
    ({"prompt_tokens": None, "completion_tokens": 4}, (9, 2, 11)),
    ({"prompt_tokens": True, "completion_tokens": 4}, (9, 2, 11)),
    (None, (9, 2, 11)),
    ({}, (9, 2, 11)),
]
DETAILS: list[Any] = [
    {"prompt_tokens_details": 7, "completion_tokens_details": None},
    {"prompt_tokens_details": {"cached_tokens": 1.5}},
    {"prompt_tokens_details": {"cached_tokens": None, "audio_tokens": 2}},
]


@pytest.mark.parametrize(("usage", "counts"), USAGES)
def test_the_usage_is_the_upstreams_or_else_counted(
    usage: Any, counts: tuple[int, int, int]
) -> None:
    for details in ({}, *DETAILS):
        both = usage and {**usage, **details, "cost": 0.5}
        reply = Reply("Hello", "", "", usage=both)
        value = chat.completion(reply, ASKED, created=CREATED)["usage"]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert tuple(value[name] for name in names) == counts
        whole(reply)
        printer = stream(include_usage=True)
        assert chunks_of(printer.end(reply))[-1].usage is not None


TYPES = {403: "permission_error", 429: "rate_limit_exceeded"}


@pytest.mark.parametrize("member", members(), ids=lambda member: member.__name__)
def test_every_error_has_the_apis_shape(member: type[RelayError]) -> None:
    arguments: dict[str, Any] = {}
    if issubclass(member, Unsupported):
        arguments = {"parameter": "n"}
    elif member is failures.UpstreamRefused:
        arguments = {"status": 402}
    error = (
        member(30) if member is failures.StillAnswering else member("No.", **arguments)
    )  # type: ignore[arg-type]
    body = errors.body(error)
    assert list(body) == ["error"]
    parsed = ErrorObject.model_validate(body["error"], strict=True)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (errors.status(error), parsed.message) == (error.status, error.message)
    if member is failures.Unauthorized:
        assert parsed.code == "invalid_api_key"
    else:
        assert parsed.code == member.code
    usual = "server_error" if error.status >= 500 else "invalid_request_error"
    assert parsed.type == TYPES.get(error.status, usual)
    assert parsed.param == error.parameter


def test_an_unknown_model_is_the_fields_fault() -> None:
    error = ModelNotFound("There is no model gpt-9.", quoted="gpt-9")
    assert (error.status, error.code, error.reason) == (
        404,
        "model_not_found",
        "There is no model ....",
    )
    assert errors.body(error)["error"]["param"] == "model"
