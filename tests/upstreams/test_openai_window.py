"""What a server does to a conversation in silence: a window that is too small, a role that it does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from tests.openai_backend import Mode, OpenAIBackend
from tests.replies import body_of

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}


def service(build: Build, api: OpenAIBackend, **settings: Any) -> Any:
    given = {
        "openai_base_url": api.url,
        "openai_api_key": ("sk-invented-1",),
        "openai_model": "tiny-1",
        "authorization": ("the-client-key-0",),
    }
    return build(**{**given, **settings}).test_client()


def answer_with(usage: dict[str, Any] | None) -> bytes:
    first = {"choices": [{"index": 0, "delta": {"content": "Yes."}}]}
    last = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": usage,
    }
    events = [b"data: " + json.dumps(event).encode() for event in (first, last)]
    return b"\n\n".join([*events, b"data: [DONE]", b""])


WINDOWS = [
    # characters that are asked, prompt tokens that the server counts -> whether a line in the log says so
    pytest.param(40_000, 4096, True, id="cut-to-its-window"),
    pytest.param(40_000, 9800, False, id="read-whole"),
    pytest.param(40_000, 5200, False, id="another-tokenizer"),
    pytest.param(400, 30, False, id="too-short-to-tell"),
    pytest.param(40_000, 0, False, id="not-counted"),
    pytest.param(40_000, None, False, id="no-usage"),
]


@pytest.mark.parametrize(("characters", "counted", "warned"), WINDOWS)
def test_a_conversation_that_was_cut_in_silence_is_one_line_in_the_log(
    build: Build,
    api: OpenAIBackend,
    caplog: pytest.LogCaptureFixture,
    characters: int,
    counted: int | None,
    warned: bool,
) -> None:
    usage = None if counted is None else {"prompt_tokens": counted, "total_tokens": 9}
    api.mode = Mode(raw=answer_with(usage))
    client = service(build, api)
    body_of(client.post("/ask", data={"msg": "x" * characters}, headers=KEY))
    lines = [line for line in caplog.messages if "OLLAMA_CONTEXT_LENGTH" in line]
    assert len(lines) == (1 if warned else 0)
    assert not warned or str(counted) in lines[0]
    assert "xxx" not in caplog.text


def test_the_developer_role_is_system_to_every_server_but_openai(
    build: Build, api: OpenAIBackend
) -> None:
    dialogue = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]
    client = service(build, api)
    client.post("/chat", json={"messages": dialogue}, headers=KEY, buffered=True)
    roles = [message["role"] for message in api.completions[0].body["messages"]]
    assert roles == ["system", "user"]


def test_deltas_before_an_error_in_one_packet_reach_the_caller(
    build: Build, api: OpenAIBackend
) -> None:
    deltas = [
        {"choices": [{"index": 0, "delta": {"content": word}}]} for word in "abcd"
    ]
    failure = {"error": {"message": "The engine stopped.", "type": "server_error"}}
    events = [f"data: {json.dumps(event)}\n\n" for event in (*deltas, failure)]
    api.mode = Mode(raw="".join(events).encode())
    client = service(build, api)
    answer = client.post(
        "/ask", data={"msg": "x", "stream": "1"}, headers=KEY, buffered=True
    )
    assert answer.status_code == 200 and 'data: {"text":"abcd"}' in answer.text
    assert "The engine stopped." in answer.text and "event: done" not in answer.text
    [row] = body_of(client.get("/conversations", headers=KEY))
    tree = body_of(client.get(f"/conversation/{row['id']}", headers=KEY))
    texts = [
        node["message"]["content"]["parts"][0]
        for node in tree["mapping"].values()
        if node["message"]
    ]
    assert texts == ["x", "abcd"], "what came is kept as the broken answer"


def test_a_key_of_anthropic_is_no_key_of_openai(
    build: Build, api: OpenAIBackend
) -> None:
    client = service(build, api)
    stranger = {"Authorization": "Bearer sk-ant-invented"}
    answer = client.post("/ask", data={"msg": "x"}, headers=stranger)
    assert answer.status_code == 401 and api.asked == []


def test_readyz_lists_who_rests(build: Build, api: OpenAIBackend) -> None:
    api.mode = Mode(refusals=[(429, {"Retry-After": "604800"}, b"{}")])
    client = service(build, api)
    assert client.post("/ask", data={"msg": "x"}, headers=KEY).status_code == 429
    [resting] = body_of(client.get("/readyz", headers=KEY))["resting"]["openai"]
    assert resting["model"] == "tiny-1" and resting["until"].startswith("20")
    assert "sk-invented" not in json.dumps(resting)
