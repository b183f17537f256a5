"""The own routes: what their fields ask, and how answers, streams and errors are printed."""

from __future__ import annotations

from typing import Any

import pytest

from relay.dialects import fields, form
from relay.dialects.policy import text_only
from relay.domain import (
    Caller,
    Delta,
    Finished,
    Message,
    Reasoning,
    Reply,
    Restarted,
    Started,
    ToolCall,
)
from relay.errors import BadRequest, Blocked, Refused, RelayError, UpstreamFailed

CALLER = Caller("owner", may_spend=True)


def test_all_fields_of_both_routes_are_understood() -> None:
    values: dict[str, Any] = {
        "prompt": "hello", "prompt_prefix": "Say it in Chinese.", "prompt_suffix": " Now.", "timeout": "1500",
        "conversation_id": "WEB:6ab9dd70-d4a8-83ea", "parent_message_id": "p.1", "model": "m", "system": "s",
        "access_token": "t", "reverse_proxy": "https://proxy.example/api", "proxy": "", "unknown": [1],
    }  # fmt: skip
    ask = form.SEND_MESSAGE.ask(values, CALLER)
    assert ask.prompt == "Say it in Chinese.\nhello Now."
    assert (ask.timeout, ask.model, ask.preamble) == (
        1.5,
        "m",
        (Message("system", "s"),),
    )
    assert (ask.conversation_id, ask.parent_id) == ("WEB:6ab9dd70-d4a8-83ea", "p.1")
    assert ask.reverse_proxy == "https://proxy.example/api"


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_field_is_an_absent_one(empty: str | None) -> None:
    names = (
        "conversation_id",
        "parent_id",
        "timeout",
        "model",
        "system",
        "stream",
        "prompt_prefix",
        "reverse_proxy",
    )
    values: dict[str, Any] = {"msg": "hello", **dict.fromkeys(names, empty)}
    ask = form.ASK.ask(values, CALLER)
    assert (ask.conversation_id, ask.parent_id, ask.timeout, ask.model) == (
        None,
        None,
        None,
        None,
    )
    assert not fields.flag_of(values, "stream")


REPLY = Reply("Hello, 你", "c1", "a1", "m", "stop")


def test_answers_have_exactly_the_documented_keys() -> None:
    assert form.SEND_MESSAGE.answer(REPLY) == {
        "text": "Hello, 你",
        "conversation_id": "c1",
        "parent_message_id": "a1",
    }
    payload = form.ASK.answer(REPLY)
    assert payload["code"] == 0
    assert {
        "message": "Hello, 你",
        "parent_id": "a1",
        "conversation_id": "c1",
    }.items() <= payload["data"].items()


PRINTED = [
    pytest.param(
        form.Events(form.SEND_MESSAGE), b'data: {"text":"He\\nl"}\n\n', id="events"
    ),
    pytest.param(form.Raw(), b"He\nl", id="raw"),
]


@pytest.mark.parametrize(("printer", "wire"), PRINTED)
def test_a_batch_is_printed_as_one_piece(
    printer: form.Events | form.Raw, wire: bytes
) -> None:
    assert printer.print([Started("m"), Delta("He\n"), Delta(""), Delta("l")]) == wire
    assert printer.print([Started("m")]) == printer.print([Finished()]) == b""


def test_the_end_of_a_stream() -> None:
    events = form.Events(form.SEND_MESSAGE)
    done = b'event: done\ndata: {"text":"Hello, \xe4\xbd\xa0","conversation_id":"c1","parent_message_id":"a1"}\n\n'
    assert events.end(REPLY) == done
    assert (
        events.fail(BadRequest("No.")) == b'event: error\ndata: {"message":"No."}\n\n'
    )
    assert (form.Raw().end(REPLY), form.Raw().fail(BadRequest("No."))) == (b"\n", None)


def test_a_restart_voids_the_text_of_its_batch_and_reasoning_stands_apart() -> None:
    batch = [Delta("no"), Reasoning("hm"), Restarted(), Delta("yes")]
    assert form.Events(form.ASK).print(batch) == (
        b'event: restart\ndata: {}\n\nevent: reasoning\ndata: {"text":"hm"}\n\n'
        b'data: {"text":"yes"}\n\n'
    )


NO_TEXT = [
    (Reply("", "c", "m", refusal="I can't."), Refused, "I can't."),
    (Reply("half", "c", "m", finish_reason="content_filter"), Blocked, "filter"),
    (Reply("", "c", "m", finish_reason="length"), UpstreamFailed, "tokens"),
    (
        Reply(
            "",
            "c",
            "m",
            finish_reason="tool_calls",
            tool_calls=(ToolCall(0, "1", "f"),),
        ),
        UpstreamFailed,
        "tool",
    ),
]


@pytest.mark.parametrize(("reply", "error", "message"), NO_TEXT)
def test_an_answer_without_text_is_an_error_by_the_dialects_policy(
    reply: Reply, error: type[RelayError], message: str
) -> None:
    with pytest.raises(error, match=message):
        text_only(reply)
    text_only(Reply("text", "c", "m", finish_reason="length"))
    text_only(Reply("", "c", "m"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("convesation_id", "conversation_id"),
        ("ConversationID", "conversation_id"),
        ("conversation_Id", "conversation_id"),
        ("conversations", "conversation"),
        ("conversation_name", "conversation"),
        ("parent_massage_id", "parent_message_id"),
        ("parent", "parent_id"),
        ("requestId", "request_id"),
        ("request-id", "request_id"),
    ],
)
def test_a_misspelt_place_is_an_error_that_says_what_was_meant(
    name: str, meant: str
) -> None:
    with pytest.raises(
        BadRequest, match=f"{name}: {meant} was probably meant"
    ) as found:
        form.ASK.ask({"msg": "hi", name: "x"}, CALLER)
    assert name not in found.value.reason


def test_a_misspelt_prompt_is_an_error_that_says_so() -> None:
    with pytest.raises(BadRequest, match="promt: prompt was probably meant"):
        form.ASK.ask({"promt": "hi"}, CALLER)


def test_unknown_fields_are_named_as_ignored() -> None:
    fields = {"msg": "hi", "mdoel": "gpt", "empty": "", "messageId": "m", "lang": None}
    assert form.ASK.ask(fields, CALLER).ignored == ("messageId", "mdoel")


def test_a_raw_stream_ends_with_one_line_end() -> None:
    reply = Reply("x", "c", "m")
    printer = form.Raw()
    assert printer.print([Delta("a"), Delta("b")]) + printer.end(reply) == b"ab\n"
    printer = form.Raw()
    assert printer.print([Delta("a\n")]) + printer.print([]) + printer.end(reply) == (
        b"a\n"
    )
