"""Responses: what requests ask, and answers and streams as OpenAI's own SDK types have them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from relay.dialects.openai import items, response_parameters, responses
from relay.dialects.openai.response_events import ResponseEvents
from relay.domain import (
    Ask,
    Caller,
    Delta,
    Event,
    FinishReason,
    Message,
    Node,
    Reasoning,
    Refusal,
    Reply,
    Restarted,
    Started,
    StoredTurn,
    ToolCall,
)
from relay.errors import BadRequest, RateLimited, RelayError, Unsupported, UpstreamCut
from relay.tables.messages import payloads_of
from tests.growth import assert_grows_at_most, processor_seconds

CALLER = Caller("owner", may_spend=True)
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CONVERSATION = "11111111-1111-4111-8111-111111111111"
QUESTION = "22222222-2222-4222-8222-222222222222"
ANSWER = "33333333-3333-4333-8333-333333333333"
HEX = ANSWER.replace("-", "")
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}  # fmt: skip
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": None}  # fmt: skip


def ask(options: bool = True, more: dict[str, Any] | None = None, **fields: Any) -> Ask:
    payload = {"input": "hello", **fields}
    return responses.ask(payload, CALLER, None, accepts_options=options, **more or {})


def dialogue(*sent: Any, options: bool = True, **more: Any) -> list[dict[str, Any]]:
    """The messages that a chat completion of these items has."""
    asked = ask(options, input=list(sent), **more)
    return [
        dict(payload)
        for message in (*asked.preamble, asked.question)
        for payload in message.as_sent
    ]


def message(role: str, *texts: str) -> dict[str, Any]:
    parts = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "id": "msg_x", "role": role, "content": parts}


# What clients send


def test_codex_sends_the_whole_dialogue_and_stores_nothing() -> None:
    fields = {
        "model": "own",
        "stream": True,
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
    }
    call = {**CALL, "status": "completed", "id": "fc_1"}
    output = {**OUTPUT, "id": "fco_1"}
    sent = [
        message("developer", "be brief"),
        message("developer", "a", "b"),
        message("user", "env"),
        message("user", "go"),
        REASONING,
        call,
        output,
    ]
    assert dialogue(*sent, **fields) == [
        {"role": "developer", "content": "be brief"},
        {"role": "developer", "content": "a\nb"},
        {"role": "user", "content": "env"},
        {"role": "user", "content": "go"},
        CALLED,
        RESULT,
    ]
    asked = ask(input=sent, **fields)
    assert (asked.keep, asked.keep_here, asked.model) == (False, False, "own")
    function = {name: TOOL[name] for name in TOOL if name != "type"}
    assert asked.options == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    assert set(asked.ignored) == {
        *("include", "prompt_cache_key", "client_metadata", "input.reasoning")
    }


def test_the_agents_sdk_leaves_types_out_and_sends_empty_lists() -> None:
    fields = {
        "include": [],
        "tools": [],
        "instructions": "Be kind.",
        "text": {
            "format": {
                "type": "json_schema",
                "name": "final_output",
                "schema": {"type": "object"},
                "strict": True,
            }
        },
    }
    asked = ask(input=[{"content": "hi", "role": "user"}], **fields)
    assert (asked.prompt, asked.instructions) == ("hi", "Be kind.")
    assert (asked.ignored, asked.keep, asked.keep_here) == ((), True, True)
    schema = {"name": "final_output", "schema": {"type": "object"}, "strict": True}
    assert asked.options == {
        "response_format": {"type": "json_schema", "json_schema": schema}
    }
    answer = {
        "id": "msg_2",
        "content": [
            {"annotations": [], "text": "ho", "type": "output_text", "logprobs": []}
        ],
        "role": "assistant",
        "status": "completed",
        "type": "message",
    }
    again = dialogue(
        {"content": "hi", "role": "user"}, answer, {"content": "and?", "role": "user"}
    )
    assert again == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "and?"},
    ]


def test_an_image_and_a_file_become_parts() -> None:
    content = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": "data:x", "detail": "auto"},
        {"type": "input_image", "image_url": "data:y"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:z"},
    ]
    [sent] = dialogue({"role": "user", "content": content})
    assert sent["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:x", "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": "data:y"}},
        {"type": "file", "file": {"file_data": "data:z", "filename": "a.pdf"}},
    ]


def test_a_text_and_the_calls_after_it_are_one_message_whatever_their_order() -> None:
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "wait"}]}
    one = {**CALLED, "content": "wait"}
    for order in ([said, CALL], [CALL, said], [said, REASONING, CALL]):
        assert dialogue(message("user", "hi"), *order, OUTPUT) == [
            {"role": "user", "content": "hi"},
            one,
            RESULT,
        ]
    second = {**CALL, "call_id": "c2"}
    sent = dialogue(
        message("user", "hi"), CALL, second, OUTPUT, {**OUTPUT, "call_id": "c2"}
    )
    assert [len(each.get("tool_calls", ())) for each in sent] == [0, 2, 0, 0]


def stored(answer: str = "ho", **more: Any) -> StoredTurn:
    question = Node(QUESTION, None, "user", "hi", "whole", 1.0)
    fields = {"finish_reason": "stop", "model": "m", **more}
    status = fields.pop("status", "whole")
    node = Node(ANSWER, QUESTION, "assistant", answer, status, 2.0, **fields)
    return StoredTurn(CONVERSATION, question, node)


def reference(name: str) -> dict[str, str]:
    return {"type": "item_reference", "id": name}


def test_a_reference_stands_for_its_item_once() -> None:
    turn = stored(payloads=({**CALLED, "content": "ho"},))
    known = {"more": {"known": {ANSWER: turn}}}
    hi, now = message("user", "hi"), message("user", "now?")
    sent = [hi, reference(f"rs_{HEX}"), reference(f"msg_{HEX}")]
    assert items.referenced([*sent, now]) == {ANSWER}
    assert dialogue(*sent, now, **known)[1:] == [
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "now?"},
    ]
    # a stream whose reasoning and text alternated had several messages
    pieces = [hi, reference(f"msg_{HEX}"), reference(f"msg_{HEX}_3"), now]
    assert [each["content"] for each in dialogue(*pieces, **known)] == ["hi", "ho", "now?"]  # fmt: skip
    calls = [*sent, reference(f"fc_{HEX}_0"), OUTPUT]
    assert dialogue(*calls, **known)[1:] == [{**CALLED, "content": "ho"}, RESULT]
    for name in (f"fc_{HEX}_1", "msg_x", f"msg_{'0' * 32}", f"resp_{HEX}"):
        with pytest.raises(BadRequest, match="not stored here"):
            dialogue(hi, reference(name), now, **known)
    odd = stored(payloads=({"role": "assistant", "content": [{"type": "text", "text": "ha"}], "refusal": 5},))  # fmt: skip
    given = dialogue(hi, reference(f"msg_{HEX}"), now, more={"known": {ANSWER: odd}})
    assert given[1] == {"role": "assistant", "content": "ha"}
    assert is_response(responses.stored(odd)).output_text == "ha"
    broken = {"more": {"known": {ANSWER: stored(status="broken")}}}
    with pytest.raises(BadRequest, match="not stored here"):
        dialogue(hi, reference(f"msg_{HEX}"), now, **broken)


def test_a_text_upstream_gets_texts() -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    sent = [message("developer", "d"), message("user", "a"), refused, message("user", "b")]  # fmt: skip
    asked = ask(options=False, input=sent)
    assert asked.preamble == (
        Message("developer", "d"),
        Message("user", "a"),
        Message("assistant", "no"),
    )
    known = {ANSWER: stored("", payloads=({"role": "assistant", "content": None, "refusal": "no"},))}  # fmt: skip
    given = [message("user", "a"), reference(f"msg_{HEX}"), message("user", "b")]
    referred = ask(options=False, input=given, more={"known": known})
    assert referred.preamble[1] == Message("assistant", "no")


def test_where_a_response_belongs() -> None:
    turn = stored()
    two = [message("system", "s"), message("user", "b")]
    asked = ask(input=two, previous_response_id=f"resp_{HEX}", more={"previous": turn})
    assert (asked.conversation_id, asked.parent_id) == (CONVERSATION, ANSWER)
    assert (asked.preamble, asked.prompt) == ((Message("system", "s"),), "b")
    path = (Message("user", "hi"), Message("assistant", "ho"))
    apart = ask(input=two, store=False, more={"previous": turn, "path": path})
    assert (apart.conversation_id, apart.keep) == (None, False)
    assert (apart.path, apart.preamble) == (path, (Message("system", "s"),))
    named = ask(conversation={"id": "room 7"})
    assert named.conversation_name == "room 7"
    assert named.echo is not None and named.echo["conversation"] == {"id": "room 7"}
    assert responses.previous_of({"previous_response_id": None}) is None


# What is refused


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [TOOL, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": [{"type": "namespace", "tools": [TOOL]}]}, "tools[0]"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}}, "tool_choice.tools[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"type": "additional_tools", "role": "developer"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{**OUTPUT, "output": [{"type": "input_image", "image_url": "u"}]}]}, "input[0]"),
        ({"conversation_id": "c"}, "conversation_id"),
        ({"parent_message_id": "c"}, "parent_message_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    fields: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(Unsupported) as raised:
        ask(**fields)
    assert raised.value.parameter == parameter


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": [CALL]}, "input[0]"),
        ({"input": [OUTPUT]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}, "input[0].content[0]"),
        ({"input": [reference(f"fc_{HEX}_0")], "more": {"known": {ANSWER: stored()}}}, "input[0]"),
    ],
)  # fmt: skip
def test_what_a_text_upstream_cannot_do_is_refused_by_name(
    fields: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(Unsupported) as raised:
        ask(options=False, **fields)
    assert raised.value.parameter == parameter


@pytest.mark.parametrize(
    "fields",
    [
        {"input": None},
        {"input": ""},
        {"input": []},
        {"input": 7},
        {"input": ["hi"]},
        {"input": [{}]},
        {"input": [{"role": "tool", "content": "x"}]},
        {"input": [{"role": ["user"], "content": "x"}]},
        {"input": [{"role": "user", "content": "a\0b"}]},
        {"input": [{"role": "user", "content": []}]},
        {"input": [{"role": "user", "content": [5]}]},
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        {"input": [{**CALL, "arguments": {}}]},
        {"input": [{**OUTPUT, "call_id": None}]},
        {"input": [{**OUTPUT, "output": 5}]},
        {"input": [message("user", "hi")] * (items.MOST_ITEMS + 1)},
        {"input": [message("assistant", "hi")]},
        {"max_output_tokens": 0},
        {"max_output_tokens": True},
        {"max_output_tokens": "5"},
        {"include": 5},
        {"include": {}},
        {"temperature": "warm"},
        {"temperature": True},
        {"tools": ""},
        {"tools": {}},
        {"tools": [7]},
        {"tools": [{**TOOL, "name": None}]},
        {"tools": [{**TOOL, "parameters": "{}"}]},
        {"tools": [{**TOOL, "strict": "yes"}]},
        {"tool_choice": 5},
        {"tool_choice": "any"},
        {"tool_choice": {}},
        {"tool_choice": {"type": "function", "name": 5}},
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": 5}},
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [5]}},
        {"text": []},
        {"text": {"format": "text"}},
        {"text": {"format": {"type": ["text"]}}},
        {"text": {"format": {"type": "json_schema"}}},
        {"text": {"verbosity": 1}},
        {"reasoning": ""},
        {"reasoning": {"effort": {}}},
        {"metadata": {"a": 1}},
        {"truncation": True},
        {"background": 0},
        {"parallel_tool_calls": "x"},
        {"instructions": []},
        {"instructions": "a\0"},
        {"model": 5},
        {"store": []},
        {"conversation": {}},
        {"conversation": {"id": 5}},
        {"conversation": ""},
        {"conversation": "tea", "store": False},
        {"previous_response_id": 5},
        {"stream_options": 5},
    ],
)
@pytest.mark.parametrize("options", [True, False])
def test_odd_values_are_refused(fields: dict[str, Any], options: bool) -> None:
    with pytest.raises(BadRequest):
        payload = {"input": "hello", **fields}
        responses.previous_of(payload)
        ask(options, **fields)


def test_an_item_list_that_is_too_long_is_refused_before_its_references_are_read() -> (
    None
):
    with pytest.raises(BadRequest):
        items.referenced([reference(f"msg_{HEX}")] * (items.MOST_ITEMS + 1))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "function", "message", "input_text", "json_schema", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "id", "name", "format", "schema", "output", "call_id", "arguments", "tools", "mode", "effort", "summary", "detail", "image_url", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)  # fmt: skip
FIELDS = sorted({*response_parameters._READ, *response_parameters._TYPES, "seed"})
ITEM = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "item_reference"])
    },
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | JSON,
        "content": st.text(max_size=5)
        | JSON
        | st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image", "input_file", "input_audio"])},
                optional={name: JSON | st.text(max_size=4) for name in ("text", "refusal", "image_url", "detail", "file_data", "input_audio")},
            ),
            max_size=3,
        ),
        **{name: st.text(max_size=5) | JSON for name in ("call_id", "name", "arguments", "output")},
        "id": JSON | st.sampled_from([f"msg_{HEX}", f"rs_{HEX}", f"fc_{HEX}_0", f"fc_{HEX}_9999"]),
    },
)  # fmt: skip
FINAL = st.lists(ITEM, max_size=4).map(lambda some: [*some, message("user", "x")])


@settings(max_examples=600, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    sent=FINAL | JSON | st.just("hello"),
    options=st.booleans(),
)
def test_any_json_is_an_ask_or_an_error_of_ours(
    fields: dict[str, Any], sent: Any, options: bool
) -> None:
    payload = {**fields, "input": sent}
    turn = stored(payloads=({**CALLED, "content": "ho"},))
    try:
        responses.previous_of(payload)
        items.referenced(sent)
        asked = responses.ask(
            payload, CALLER, None, accepts_options=options, known={ANSWER: turn}
        )
    except RelayError as error:
        assert error.status == 400
        return
    assert isinstance(asked, Ask)
    for each in (*asked.preamble, asked.question):
        assert options or not each.payloads
    reply = Reply("ho", "", "")
    json.dumps(responses.whole(reply, asked))


# What is answered


def is_response(payload: dict[str, Any]) -> Response:
    return Response.model_validate_json(json.dumps(payload), strict=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"}},
        {"reasoning": {"effort": "low", "summary": "auto"}, "temperature": 1, "top_p": 0.5},
        {"metadata": {"a": "b"}, "user": "u", "instructions": "i", "max_output_tokens": 5},
        {"truncation": "auto", "service_tier": "flex", "store": False, "model": "m"},
        {"store": "true", "stream": "false", "conversation": "tea"},
        {"previous_response_id": f"resp_{HEX}", "background": False, "top_logprobs": 0},
    ],
)  # fmt: skip
def test_a_whole_answer_shows_its_request(fields: dict[str, Any]) -> None:
    reply = Reply("ho", CONVERSATION, ANSWER, model="m-1")
    payload = responses.whole(reply, ask(**fields, more={"created": 7}))
    whole = is_response(payload)
    assert (whole.id, whole.status, whole.output_text) == (f"resp_{HEX}", "completed", "ho")  # fmt: skip
    assert (whole.created_at, whole.model) == (7, "m-1")
    assert "prompt_tokens" not in payload
    for name, value in fields.items():
        if name not in ("conversation", "store", "model", "stream"):
            assert payload[name] == value


def test_allowed_tools_are_those_of_chat_completions() -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "f"}],
    }
    options = ask(tools=[TOOL], tool_choice=choice).options
    named = [{"type": "function", "function": {"name": "f"}}]
    assert options["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": named},
    }
    named_choice = {"type": "function", "name": "f"}
    options = ask(tools=[TOOL], tool_choice=named_choice).options
    assert options["tool_choice"] == named[0]
    assert ask(max_output_tokens=5, reasoning={"effort": "low"}).options == {
        "max_tokens": 5,
        "reasoning_effort": "low",
    }
    assert ask(options=False, max_output_tokens=5).options == {"max_tokens": 5}


def test_a_broken_and_an_open_answer_are_told_as_such() -> None:
    broken = is_response(responses.stored(stored("ha", status="broken", finish_reason="upstream_cut")))  # fmt: skip
    assert broken.status == "failed" and broken.error is not None
    assert broken.output[0].status == "incomplete"  # type: ignore[union-attr]
    bare = is_response(responses.stored(stored("", status="broken", finish_reason=None)))  # fmt: skip
    assert bare.output == []
    running = is_response(responses.stored(stored("", status="open", model=None)))
    assert (running.status, running.output) == ("in_progress", [])


def test_what_a_stored_answer_was_asked() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    payloads = (
        {"role": "system", "content": "s"},
        {**CALLED, "content": "w"},
        RESULT,
        {"role": "assistant", "content": "", "refusal": "no"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, image]},
    )
    first = Node("44444444-4444-4444-8444-444444444444", None, "system", "first", "whole", 1.0)  # fmt: skip
    turn = stored()
    question = replace(turn.question, payloads=payloads)
    turn = replace(turn, question=question, preamble=(first,))
    listed = responses.input_list(turn, order="asc", limit=100, after="")
    page = ResponseItemList.model_validate_json(json.dumps(listed), strict=True)
    kinds = [(item.type, getattr(item, "role", "")) for item in page.data]
    assert kinds == [
        ("message", "system"),
        ("message", "system"),
        ("message", "assistant"),
        ("function_call", ""),
        ("function_call_output", ""),
        ("message", "assistant"),
        ("message", "user"),
    ]
    assert listed["data"][5]["content"] == [{"type": "refusal", "refusal": "no"}]
    assert listed["data"][6]["content"][1] == {
        "type": "input_image",
        "image_url": "data:x",
        "detail": "auto",
    }
    ids = [item["id"] for item in listed["data"]]
    assert len(set(ids)) == 7
    seen: list[str] = []
    after = ""
    while True:
        page_of = responses.input_list(turn, order="desc", limit=2, after=after)
        seen += [item["id"] for item in page_of["data"]]
        if not page_of["has_more"]:
            break
        after = page_of["last_id"]
    assert seen == ids[::-1]
    with pytest.raises(BadRequest):
        responses.input_list(turn, order="asc", limit=2, after="msg_unknown")


@given(
    payload=st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "function", "system"])},
        optional={
            "tool_calls": JSON | st.lists(JSON, max_size=2),
            "tool_call_id": st.text(max_size=3),
            "content": st.none()
            | st.text(max_size=4)
            | st.lists(
                st.fixed_dictionaries(
                    {"type": st.sampled_from(["text", "image_url", "file", "new"])},
                    optional={"image_url": JSON, "file": JSON},
                ),
                min_size=1,
                max_size=2,
            ),
        },
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_messages_of_chat_completions_are_items_whatever_they_hold(
    payload: dict[str, Any],
) -> None:
    turn = stored()
    turn = replace(turn, question=replace(turn.question, payloads=(payload,)))
    listed = responses.input_list(turn, order="asc", limit=100, after="")
    assert len(listed["data"]) >= 1
    json.dumps(listed)


# What is streamed


def printed(
    batch: list[Event], reply: Reply, asked: Ask | None = None
) -> list[dict[str, Any]]:
    printer = ResponseEvents.of(asked or ask())
    return events_of(printer.print(batch) + printer.end(reply))


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the SDK's types, in their order and with their names."""
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_json(json.dumps(event), strict=True)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def reply_of(events: list[Event], reason: FinishReason, usage: Any) -> Reply:
    """The reply that a turn makes of events."""
    text = reasoning = refusal = ""
    calls: dict[int, ToolCall] = {}
    for event in events:
        match event:
            case Restarted():
                text = ""
            case Delta(piece):
                text += piece
            case Reasoning(piece):
                reasoning += piece
            case Refusal(piece):
                refusal += piece
            case ToolCall(index):
                known = calls.get(index)
                arguments = (known.arguments if known else "") + event.arguments
                calls[index] = replace(known or event, arguments=arguments)
    return Reply(
        text,
        CONVERSATION,
        ANSWER,
        "m-1",
        reason,
        reasoning,
        refusal,
        tuple(calls.values()),
        usage,
    )


PIECES = st.text("ab é🙂\n", max_size=3)
EVENT = st.one_of(
    PIECES.map(Delta),
    PIECES.map(Delta),
    PIECES.map(Reasoning),
    PIECES.map(Refusal),
    st.builds(ToolCall, st.integers(0, 3), st.sampled_from(["c1", "c2"]), st.just("f"), PIECES),
    st.just(Restarted()),
)  # fmt: skip
USAGES = st.sampled_from(
    [
        None,
        {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
        {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": None},
        {"completion_tokens": 5},
    ]
)  # fmt: skip
REASONS = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


def check_items(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The items that a stream has finished, by their index: what was added is what was said and done."""
    opened: dict[int, dict[str, Any]] = {}
    said: dict[int, str] = {}
    done: dict[int, dict[str, Any]] = {}
    for event in events:
        at = event.get("output_index")
        if event["type"] == "response.output_item.added":
            assert at == len(opened)
            opened[at] = event["item"]
            said[at] = ""
        elif event["type"] == "response.output_item.done":
            assert at not in done and event["item"]["id"] == opened[at]["id"]
            done[at] = event["item"]
        elif at is not None:
            assert at not in done and event["item_id"] == opened[at]["id"]
            if event["type"].endswith(".delta"):
                said[at] += event["delta"]
            for name in ("text", "refusal", "arguments"):
                if event["type"].endswith(".done") and name in event:
                    assert event[name] == said[at]
    assert set(done) == set(opened)
    for at, item in done.items():
        assert text_of(item) == said[at]
    return done


def text_of(item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or ()
    texts = (part.get("text", part.get("refusal")) for part in parts)
    return item.get("arguments", "") + "".join(texts)


@settings(max_examples=500, deadline=None)
@given(
    events=st.lists(EVENT, max_size=12),
    reason=REASONS,
    usage=USAGES,
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_any_stream_is_a_response(
    events: list[Event], reason: FinishReason, usage: Any, cuts: list[int]
) -> None:
    asked = ask(tools=[TOOL], metadata={"a": "b"}, more={"created": 5})
    reply = reply_of(events, reason, usage)
    printer = ResponseEvents.of(asked)
    stream = printer.print([Started("m-0", answer_id=ANSWER)])
    start = 0
    for end in [*sorted(cuts), len(events)]:
        stream += printer.print(events[start:end])
        start = max(start, end)
    sent = events_of(stream + printer.end(reply))
    assert [event["type"] for event in sent[:2]] == ["response.created", "response.in_progress"]  # fmt: skip
    done = check_items(sent)
    last = sent[-1]["response"]
    status = "incomplete" if reason in responses.INCOMPLETE else "completed"
    assert (sent[-1]["type"], last["status"]) == (f"response.{status}", status)
    assert {event["response"]["id"] for event in sent if "response" in event} == {f"resp_{HEX}"}  # fmt: skip
    node = Node(
        ANSWER,
        QUESTION,
        "assistant",
        reply.text,
        "whole",
        2.0,
        reply.model,
        reply.finish_reason,
        reply.reasoning or None,
        payloads_of(reply),
        reply.usage,
        asked.echo,
    )
    turn = replace(stored(), answer=node)
    assert last == responses.stored(turn) == responses.whole(reply, asked)
    whole_item = last["output"][-1]
    if status == "incomplete":
        assert whole_item["status"] == "incomplete"
    for name, kind in (("fc", "function_call"), ("rs", "reasoning")):
        ended = [item for item in done.values() if item["type"] == kind]
        listed = [item for item in last["output"] if item["type"] == kind]
        assert "".join(map(text_of, ended)) == "".join(map(text_of, listed)), name
        if kind == "function_call":
            assert ended == listed


@pytest.mark.parametrize(
    "events",
    [
        [Delta("a"), Delta("b")],
        [Reasoning("r"), Delta("a")],
        [Reasoning("r"), Delta("a"), ToolCall(0, "c1", "f", "{"), ToolCall(1, "c2", "f"), ToolCall(0, arguments="}")],
        [ToolCall(1, "c1", "f", "{}")],
        [ToolCall(1, "c1", "f", "{"), ToolCall(0, "c2", "g", "{}"), ToolCall(1, arguments="}")],
        [Refusal("no")],
        [Reasoning("r")],
        [],
    ],
)  # fmt: skip
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_items_of_a_usual_stream_are_those_of_the_whole(
    events: list[Event], reason: FinishReason
) -> None:
    reply = reply_of(events, reason, None)
    sent = printed([Started(answer_id=ANSWER), *events], reply)
    assert list(check_items(sent).values()) == sent[-1]["response"]["output"]


def test_a_cut_call_is_not_told_as_whole() -> None:
    events: list[Event] = [ToolCall(0, "c1", "f", '{"a": 1}'), ToolCall(1, "c2", "f", '{"a": ')]  # fmt: skip
    sent = printed(events, reply_of(events, "length", None))
    done = [event["item"] for event in sent if event["type"] == "response.output_item.done"]  # fmt: skip
    assert [item["status"] for item in done] == ["completed", "incomplete"]
    assert sent[-1]["type"] == "response.incomplete"


def test_text_that_became_void_is_no_part_of_the_whole() -> None:
    events: list[Event] = [Delta("no"), Restarted(), Delta("yes")]
    sent = printed([Started(answer_id=ANSWER), *events], reply_of(events, "stop", None))
    done = check_items(sent)
    assert [item["status"] for item in done.values()] == ["incomplete", "completed"]
    assert is_response(sent[-1]["response"]).output_text == "yes"


@pytest.mark.parametrize(
    ("error", "code"),
    [(UpstreamCut(), "server_error"), (RateLimited("slow"), "rate_limit_exceeded")],
)
@pytest.mark.parametrize("begun", [True, False])
def test_a_failed_stream_says_so_twice(
    error: RelayError, code: str, begun: bool
) -> None:
    printer = ResponseEvents.of(ask())
    batch: list[Event] = [Started(), Delta("a"), ToolCall(0, "c1", "f", "{")]
    stream = printer.print(batch) if begun else b""
    stream += printer.fail(error)
    *blocks, last, empty = stream.split(b"\n\n")
    events = events_of(b"\n\n".join([*blocks, b""]))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": code, "message": error.message}
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == error.code
    assert empty == b"" and b"response.completed" not in stream


def test_a_call_in_many_pieces_takes_linear_time() -> None:
    def seconds(number: int) -> float:
        def run() -> None:
            printer = ResponseEvents({})
            printer.print([Started("m"), ToolCall(0, "c", "f", "")])
            for _ in range(number):
                printer.print([ToolCall(0, arguments="x" * 5000)])

        return processor_seconds(run)

    assert_grows_at_most(3, seconds, 2000, 4000)
