"""The dialect of openai-api-server: dialogues in, lines out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.dialects import ndjson
from relay.domain import (
    Ask,
    Caller,
    Delta,
    Finished,
    Message,
    Reasoning,
    Reply,
    Restarted,
    Started,
)
from relay.errors import BadRequest, UpstreamCut

CALLER = Caller("owner", may_spend=True)
HI = {"role": "user", "content": "hi"}


def ask(**fields: Any) -> Ask:
    return ndjson.ask(fields, CALLER)


def test_a_dialogue_is_asked_whole_and_nothing_is_kept() -> None:
    parsed = ask(messages=[{"role": "system", "content": "s"}, HI, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "and?"}], model="m")  # fmt: skip
    assert parsed.preamble == (
        Message("system", "s"),
        Message("user", "hi"),
        Message("assistant", "ho"),
    )
    assert (parsed.prompt, parsed.model, parsed.keep, parsed.payloads) == (
        "and?",
        "m",
        False,
        (),
    )


def test_a_call_is_kept_only_if_it_asks_for_it() -> None:
    assert (
        ask(messages=[HI], history_disabled=False).keep
        and ask(messages=[HI], history_disabled="false").keep
    )
    assert not ask(messages=[HI], history_disabled=True).keep
    named = ask(
        messages=[{"role": "assistant", "content": "x"}, HI],
        conversation_id="c1",
        parent_message_id="p1",
    )
    assert named.keep and (named.conversation_id, named.parent_id, named.preamble) == (
        "c1",
        "p1",
        (),
    )


def test_unknown_fields_are_parameters_for_the_model() -> None:
    parsed = ask(
        messages=[HI],
        temperature=0,
        top_k=5,
        stream=True,
        timeout=1000,
        request_id="k",
        access_token="t",
        seed=None,
    )
    assert parsed.options == {"temperature": 0, "top_k": 5}
    assert (parsed.timeout, parsed.idempotency_key) == (1.0, "k")


FORMS = [
    {"messages": json.dumps([HI, {"role": "assistant", "content": "ho"}, HI])},
    {"messages[0][role]": "user", "messages[0][content]": "hi", "messages[2][role]": "user", "messages[2][content]": "hi",
     "messages[1][role]": "assistant", "messages[1][content]": "ho"},
]  # fmt: skip


@pytest.mark.parametrize("fields", FORMS)
def test_forms_are_understood(fields: dict[str, str]) -> None:
    parsed = ask(**fields)
    assert parsed.preamble == (Message("user", "hi"), Message("assistant", "ho"))
    assert parsed.prompt == "hi" and not parsed.options
    assert ask(prompt="just this").prompt == "just this"


def test_parts_that_are_not_text_are_passed_on_unchanged() -> None:
    parts = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "text", "text": "this?"},
    ]
    parsed = ask(messages=[{"role": "user", "content": parts}])
    assert parsed.prompt == "what is\nthis?"
    assert parsed.payloads == ({"role": "user", "content": parts},)
    tool = {"role": "tool", "content": "7", "tool_call_id": "1"}
    assert ask(messages=[HI, tool]).payloads == (tool,)


WRONG = [
    {},
    {"messages": []},
    {"messages": "not json"},
    {"messages": {"role": "user"}},
    {"messages": ["hi"]},
    {"messages": [{"content": "hi"}]},
    {"messages": [{"role": "bot", "content": "hi"}]},
    {"messages": [{"role": "user", "content": 3}]},
    {"messages": [{"role": "user", "content": " "}]},
    {"messages": [{"role": "user", "content": "a\0b"}]},
    {"messages": [HI], "timeout": "soon"},
    {"messages": [HI], "conversation_id": "a b"},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_invalid_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        ask(**fields)


def test_the_lines_are_those_of_the_document() -> None:
    lines = ndjson.Lines()
    wire = lines.print([Started("m")]) + lines.print(
        [Reasoning("hm"), Delta("hi "), Delta("你好\n")]
    )
    wire += (
        lines.keep_alive
        + lines.print([Restarted(), Delta("x"), Finished()])
        + lines.end(Reply("", "", ""))
    )
    assert wire.decode() == (
        '{"done":false,"error":false,"content":"hi 你好\\n"}\n\n'
        '{"done":false,"error":false,"content":"\\n\\nx"}\n{"done":true,"error":false,"content":"[DONE]"}'
    )
    assert lines.fail(UpstreamCut("Cut.")).decode() == (
        '{"done":false,"error":true,"content":"Cut."}\n{"done":true,"error":false,"content":"[DONE]"}'
    )
