"""What text cannot carry is kept with its message, and sent again as it was: over /v1, on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.raw_upstream import RawUpstream, chunked

ON_BOTH = True
KEY = {"Authorization": "Bearer the-client-key-0"}
CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    {"id": "", "type": "function", "function": {"name": "g", "arguments": '{"a": 1}'}},
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,x"}}
QUESTION = {
    "role": "user",
    "content": [{"type": "text", "text": "what is it?"}, IMAGE, FILE],
}


def delta(finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return b"data: %s\n\n" % json.dumps({"model": "m", "choices": [choice]}).encode()


def calling() -> list[bytes]:
    """An answer that calls two tools, the second without an id."""
    pieces = [
        delta(tool_calls=[{"index": at, **call}]) for at, call in enumerate(CALLS)
    ]
    return chunked([*pieces, delta("tool_calls"), b"data: [DONE]\n\n"])


def saying(text: str) -> list[bytes]:
    return chunked([delta(content=text), delta("stop"), b"data: [DONE]\n\n"])


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    yield upstream
    upstream.close()


@pytest.fixture
def client(build: Callable[..., Flask], upstream: RawUpstream) -> FlaskClient:
    return build(
        openai_base_url=upstream.url,
        openai_model="m",
        authorization=("owner:the-client-key-0",),
    ).test_client()


def ask(client: FlaskClient, messages: list[Any], **fields: Any) -> Any:
    body = {"messages": messages, "conversation": "work", **fields}
    answer = client.post("/v1/chat/completions", json=body, headers=KEY)
    assert answer.status_code == 200, answer.text
    return answer.json["choices"][0]["message"]


def sent(upstream: RawUpstream) -> list[Any]:
    messages: list[Any] = json.loads(upstream.received[-1].body)["messages"]
    return messages


def test_images_calls_and_results_are_sent_again_as_they_were(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [calling(), saying("a tree"), saying("yes")]
    first = ask(client, [QUESTION])
    calls = first["tool_calls"]
    assert calls[0] == CALLS[0] and first["content"] is None
    assert calls[1]["id"].startswith("call_")  # its result must name it
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {at}"}
        for at, call in enumerate(calls)
    ]
    assert ask(client, results)["content"] == "a tree"
    assert sent(upstream) == [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
    ]
    assert ask(client, [{"role": "user", "content": "sure?"}])["content"] == "yes"
    assert sent(upstream)[1:] == [
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "a tree"},
        {"role": "user", "content": "sure?"},
    ]


def test_what_is_no_text_is_named_where_a_conversation_is_read(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [calling(), saying("a tree")]
    calls = ask(client, [QUESTION])["tool_calls"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "7"} for call in calls
    ]
    ask(client, results)
    markdown = client.get("/conversation/work?format=markdown", headers=KEY).text
    for words in ("what is it?\n\n[image]\n\n[file a.pdf]", "[calls f({})]", "a tree"):
        assert words in markdown
    tree = client.get("/conversation/work", headers=KEY).json["mapping"]
    roles = [
        node["message"]["author"]["role"] for node in tree.values() if node["message"]
    ]
    assert roles == ["user", "assistant", "tool", "assistant"]
    lines = client.get("/conversation/work?format=jsonl", headers=KEY).text
    assert json.loads(lines.splitlines()[2])["text"] == "7\n\n7"
    assert len(client.get("/conversations?q=what+is", headers=KEY).json) == 1


def test_a_result_cannot_be_gone_on_from(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [saying("x")]
    ask(client, [{"role": "user", "content": "hi"}])
    ask(client, [{"role": "tool", "tool_call_id": "c", "content": "7"}])
    tree = client.get("/conversation/work", headers=KEY).json["mapping"]
    [result] = [
        name
        for name, node in tree.items()
        if node["message"] and node["message"]["author"]["role"] == "tool"
    ]
    body = {
        "messages": [{"role": "user", "content": "on"}],
        "conversation_id": client.get("/conversations", headers=KEY).json[0]["id"],
        "parent_message_id": result,
    }
    answer = client.post("/v1/chat/completions", json=body, headers=KEY)
    assert answer.status_code == 400
    assert "names a question" in answer.json["error"]["message"]


def test_a_budget_never_parts_a_result_from_its_call(
    build: Callable[..., Flask], upstream: RawUpstream
) -> None:
    client = build(
        openai_base_url=upstream.url,
        openai_model="m",
        authorization=("owner:the-client-key-0",),
        history_budget=40,
    ).test_client()
    upstream.answers = [calling(), saying("done " * 20), saying("x")]
    calls = ask(client, [{"role": "user", "content": "begin"}])["tool_calls"]
    ask(client, [{"role": "tool", "tool_call_id": calls[0]["id"], "content": "7"}])
    ask(client, [{"role": "user", "content": "on"}])
    assert [message["role"] for message in sent(upstream)] == ["user"]


@pytest.mark.parametrize("disabled", [True, False])
def test_a_setting_says_whether_chats_are_kept_that_say_nothing(
    build: Callable[..., Flask], upstream: RawUpstream, disabled: bool
) -> None:
    client = build(
        openai_base_url=upstream.url,
        openai_model="m",
        authorization=("owner:the-client-key-0",),
        history_disabled=disabled,
    ).test_client()
    upstream.answers = [saying("x")]
    for says, kept in (({}, not disabled), ({"history_disabled": True}, False)):
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **says}
        answer = client.post(
            "/v1/chat/completions", json=body, headers=KEY, buffered=True
        )
        assert answer.status_code == 200
        assert ("conversation_id" in answer.text) is kept
    listed = client.get("/conversations", headers=KEY).json
    assert len(listed) == (0 if disabled else 1)
