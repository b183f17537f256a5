"""The own routes before a strict OpenAI-compatible server: what is sent, what is remembered, how it fails."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.settings import SettingsError
from tests.openai_backend import USAGE, Mode, OpenAIBackend, error
from tests.replies import body_of
from tests.tokens import jwt

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}


@pytest.fixture
def service(build: Build, api: OpenAIBackend) -> Callable[..., FlaskClient]:
    def make(**settings: Any) -> FlaskClient:
        defaults = {
            "openai_base_url": api.url,
            "openai_api_key": ("sk-invented-1",),
            "authorization": ("the-client-key-0",),
        }
        return build(**{**defaults, **settings}).test_client()

    return make


Service = Callable[..., FlaskClient]


def ask(
    client: FlaskClient, headers: dict[str, str] = KEY, **fields: Any
) -> TestResponse:
    return client.post(
        "/ask", data={"msg": "hello", **fields}, headers=headers, buffered=True
    )


def sent(api: OpenAIBackend) -> Any:
    return api.completions[-1].body


def test_the_two_ids_carry_a_conversation(service: Service, api: OpenAIBackend) -> None:
    client = service()
    first = body_of(ask(client, msg="one", system="Be kind."))["data"]
    assert (
        first["message"] == "Turn 1. You said: one — 你好 🙂."
        and first["model"] == "tiny-1-2026"
    )
    assert (
        first["finish_details"] == "stop"
        and first["usage"] == USAGE
        and first["reasoning"] is None
    )
    ids = {"conversation_id": first["conversation_id"], "parent_id": first["parent_id"]}
    second = body_of(ask(client, msg="two", **ids))["data"]
    assert second["message"].startswith("Turn 2.")
    third = body_of(
        ask(service(), msg="three", conversation_id=ids["conversation_id"])
    )["data"]
    assert third["message"].startswith("Turn 3."), (
        "another process goes on by the id alone"
    )
    roles = [message["role"] for message in sent(api)["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    body_of(ask(client, msg="branch", **ids))
    assert [message["content"] for message in sent(api)["messages"]] == [
        "Be kind.",
        "one",
        first["message"],
        "branch",
    ]


def test_what_is_sent(service: Service, api: OpenAIBackend) -> None:
    client = service(
        openai_headers={"OpenAI-Project": "p"},
        openai_body={"seed": 7, "stream_options": None},
    )
    fields = {
        "temperature": "0.2",
        "stop": '["END"]',
        "user": "42",
        "proxy": "",
        "model": "tiny-2",
        "unheard": "of",
    }
    body_of(ask(client, headers={**KEY, "X-Request-Id": "mine"}, **fields))
    asked = api.completions[0]
    messages = [{"role": "user", "content": "hello"}]
    more = {"temperature": 0.2, "stop": ["END"], "user": "42", "seed": 7}
    assert asked.body == {
        "model": "tiny-2",
        "messages": messages,
        "stream": True,
        **more,
    }
    assert (
        asked.headers["authorization"] == "Bearer sk-invented-1"
        and asked.headers["user-agent"] == "chatgpt-webapi"
    )
    assert (
        asked.headers["x-request-id"] == "mine"
        and asked.headers["openai-project"] == "p"
    )
    assert len(api.asked) == 1


@pytest.mark.parametrize("field", [{"temperature": "warm"}, {"n": "2"}])
def test_invalid_parameters_are_refused(
    service: Service, api: OpenAIBackend, field: dict[str, str]
) -> None:
    answer = ask(service(), **field)
    assert (
        answer.status_code == 400
        and next(iter(field)) in answer.json["msg"]
        and not api.completions
    )


def test_a_parameter_that_the_server_refuses_is_reported_in_its_words(
    service: Service, api: OpenAIBackend
) -> None:
    answer = ask(
        service(), reasoning_effort="high", tools_of_mine="x", logit_bias='{"1": 2}'
    )
    assert (
        answer.status_code == 400
        and "unknown_parameter" in answer.json["msg"]
        and answer.json["source"] == "upstream"
    )


def test_without_a_model_the_first_listed_is_asked_and_remembered(
    service: Service, api: OpenAIBackend
) -> None:
    client = service()
    for _ in range(2):
        body_of(ask(client))
    assert [asked.path for asked in api.asked] == [
        "/v1/models",
        "/v1/chat/completions",
        "/v1/chat/completions",
    ]
    body_of(ask(service(openai_model="tiny-2")))
    assert sent(api)["model"] == "tiny-2" and len(api.asked) == 4


def test_a_server_that_lists_no_model(service: Service, api: OpenAIBackend) -> None:
    api.mode = Mode(models=())
    answer = ask(service())
    assert answer.status_code == 502 and "OPENAI_MODEL" in answer.json["msg"]
    assert body_of(service().get("/conversations", headers=KEY)) == [], (
        "nothing was asked, so nothing is kept"
    )


def test_a_server_without_keys(service: Service, api: OpenAIBackend) -> None:
    api.mode = Mode(keys=())
    client = service(openai_api_key=())
    body_of(ask(client))
    assert "authorization" not in api.completions[0].headers
    assert ask(client, headers={}).status_code == 401, "it is protected all the same"
    refused = ask(client, headers={"Authorization": "Bearer sk-somebodys"})
    assert refused.status_code == 401 and len(api.completions) == 1, (
        "such a server checks no key, so none is a pass to it"
    )


@pytest.mark.parametrize("model", ["tiny-1", ""])
def test_a_wrong_address_is_shown(
    service: Service, api: OpenAIBackend, model: str
) -> None:
    client = service(openai_base_url=f"{api.origin}/wrong", openai_model=model)
    message = ask(client).json["msg"]
    path = "/wrong/chat/completions" if model else "/wrong/models"
    assert f"It was asked at {api.origin}{path}. Is OPENAI_BASE_URL right?" in message


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize(
    ("message", "is_hinted"),
    [
        ("Not Found", True),
        ("Invalid URL (GET /v1/v1/models)", True),
        ("The model `x` does not exist", False),
        ('model "x" not found, try pulling it first', False),
    ],
)
def test_an_unknown_model_is_no_wrong_address(
    service: Service,
    api: OpenAIBackend,
    status: int,
    message: str,
    is_hinted: bool,
) -> None:
    body = json.dumps(error(message)).encode()
    api.mode = Mode(failing={"hello": (status, body)})
    answer = ask(service(openai_model="tiny-1"))
    assert answer.status_code == status and message in answer.json["msg"]
    assert ("Is OPENAI_BASE_URL right?" in answer.json["msg"]) == is_hinted


def test_an_upstream_that_wants_a_key_that_is_not_set(
    service: Service, api: OpenAIBackend, caplog: pytest.LogCaptureFixture
) -> None:
    message = ask(service(openai_api_key=())).json["msg"]
    assert message.startswith("The upstream asks for a key: ")
    assert message.endswith(" Set OPENAI_API_KEY.")
    assert "A request without OPENAI_API_KEY was rejected" in caplog.messages
    api.mode = Mode(keys=(), failing={"hello": (403, b"Forbidden")})
    message = ask(service(openai_api_key=(), openai_model="tiny-1")).json["msg"]
    assert message == "The upstream answered 403: Forbidden. Set OPENAI_API_KEY."
    # a header of the operator's may be a key, and so may the caller's own
    for settings in ({"openai_headers": {"api-key": "x"}}, {}):
        keyless = not settings
        client = service(
            openai_api_key=("sk-invented-1",) if keyless else (), **settings
        )
        assert "Set OPENAI_API_KEY" not in ask(client, model="tiny-1").json["msg"]


def test_a_rejected_key_is_named_by_its_number(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    ask(service(openai_api_key=("sk-wrong-0", "sk-invented-1")), model="tiny-1")
    assert "OPENAI_API_KEY number 1 was rejected" in caplog.messages
    assert "sk-" not in caplog.text


def test_a_callers_own_key_is_spent_alone(service: Service, api: OpenAIBackend) -> None:
    api.mode = Mode(keys=("sk-invented-1", "sk-own"))
    client = service(
        openai_headers={"OpenAI-Organization": "ours"}, allow_caller_tokens="any"
    )
    body_of(ask(client, headers={"Authorization": "Bearer sk-own"}, model="tiny-1"))
    headers = api.completions[0].headers
    assert (
        headers["authorization"] == "Bearer sk-own"
        and "openai-organization" not in headers
    )
    assert body_of(client.get("/conversations", headers=KEY)) == [], (
        "it is that key's conversation"
    )


def test_the_next_key_is_tried_after_a_refusal_and_only_then(
    service: Service, api: OpenAIBackend
) -> None:
    limit = json.dumps(
        error("Rate limit reached", "requests", "rate_limit_exceeded")
    ).encode()
    api.mode = Mode(
        keys=("sk-2",), refuse_tokens={"sk-2": (429, {"Retry-After": "30"}, limit)}
    )
    client = service(openai_api_key=("sk-1", "sk-2"), openai_model="tiny-1")
    answer = ask(client)
    assert (
        answer.status_code == 429
        and answer.headers["Retry-After"] == "30"
        and len(api.completions) == 2
    )
    again = ask(client)
    assert again.status_code == 429 and len(api.completions) == 3, (
        "one rests, so only the other is asked"
    )
    api.mode.refuse_tokens = {}
    assert ask(client, model="tiny-2").status_code == 200, "a limit is one of its model"
    api.mode.refusals = [(500, {}, json.dumps(error("boom", "server_error")).encode())]
    count = len(api.completions)
    assert (
        ask(client, model="tiny-2").status_code == 500
        and len(api.completions) == count + 1
    )


def test_no_message_quotes_the_key(service: Service, api: OpenAIBackend) -> None:
    key = "any.key-at_all/of+ours"
    quoted = json.dumps(error(f"No such key: {key}"), ensure_ascii=False).encode()
    event = b"data: " + json.dumps(error(f"bad {key}")).encode() + b"\n\n"
    client = service(openai_api_key=(key,), openai_model="tiny-1")
    for mode in (
        Mode(keys=(key,), refusals=[(401, {}, quoted)]),
        Mode(keys=(key,), raw=event),
    ):
        api.mode = mode
        answer = ask(client)
        assert (
            answer.status_code in (401, 502)
            and "..." in answer.json["msg"]
            and key not in answer.text
        )


def test_an_answer_may_hold_what_looks_like_the_key(
    service: Service, api: OpenAIBackend
) -> None:
    for mode in (Mode(streams=False), Mode()):
        mode.keys, mode.text = ("not-needed",), "A key is not-needed here."
        api.mode = mode
        assert (
            body_of(ask(service(openai_api_key=("not-needed",))))["data"]["message"]
            == mode.text
        )


def test_a_limit_of_the_listed_model_is_one_of_it(
    service: Service, api: OpenAIBackend
) -> None:
    api.mode = Mode(refusals=[(429, {"Retry-After": "30"}, b"{}")])
    client = service()
    assert ask(client).status_code == 429
    assert (
        ask(client).status_code == ask(client, model="tiny-1").status_code == 429
        and len(api.completions) == 1
    )
    assert ask(client, model="tiny-2").status_code == 200


def test_one_callers_refusal_is_not_passed_to_another(
    service: Service, api: OpenAIBackend
) -> None:
    quoting = json.dumps(
        error("Too much for: my diary", code="rate_limit_exceeded")
    ).encode()
    api.mode = Mode(refusals=[(429, {"Retry-After": "30"}, quoting)])
    client = service(
        openai_model="tiny-1",
        authorization=("alice:alices-client-key", "bob:bobs-client-key-1"),
    )
    assert (
        "my diary"
        in ask(client, headers={"Authorization": "alices-client-key"}).json["msg"]
    )
    other = ask(client, headers={"Authorization": "bobs-client-key-1"})
    assert (
        other.status_code == 429
        and "diary" not in other.text
        and int(other.headers["Retry-After"]) <= 30
    )
    assert len(api.completions) == 1


def test_no_message_shows_a_part_of_the_key(
    service: Service, api: OpenAIBackend
) -> None:
    answer = ask(service(openai_api_key=("sk-wrong-but-long-enough-9876",)))
    assert (
        answer.status_code == 401
        and answer.json["error"] == "token_rejected"
        and "9876" not in answer.text
    )


def test_reasoning_is_returned_apart_from_the_text(
    service: Service, api: OpenAIBackend
) -> None:
    api.mode = Mode(reasoning="Let me think about it.")
    client = service()
    data = body_of(ask(client))["data"]
    assert data["reasoning"] == "Let me think about it."
    assert data["message"].startswith("Turn 1.")
    stream = ask(client, stream="true").text
    assert 'event: reasoning\ndata: {"text":"Let m' in stream and stream.index(
        "reasoning"
    ) < stream.index("Turn")
    assert ask(client, stream="true", format="text").text.startswith("Turn 1.")
    assert ask(client, format="text").text.startswith("Turn 1.")


@pytest.mark.parametrize("route", ["/ask", "/send_message"])
def test_a_refusal_is_no_answer(
    service: Service, api: OpenAIBackend, route: str
) -> None:
    api.mode = Mode(refusal="I can't help with that.")
    client = service()
    answer = client.post(route, data={"prompt": "hello"}, headers=KEY)
    assert (
        answer.status_code == (403 if route == "/ask" else 500)
        and answer.headers["X-Error-Code"] == "refused"
    )
    assert "I can't help with that." in answer.text
    [item] = body_of(client.get("/conversations", headers=KEY))
    api.mode = Mode()
    assert (
        "Turn 1." in body_of(ask(client, conversation_id=item["id"]))["data"]["message"]
    ), "what was refused is not sent again"


NO_ANSWER = [
    (Mode(finish="content_filter"), 403, "blocked"),
    (Mode(finish="content_filter", text=""), 403, "blocked"),
    (Mode(finish="sensitive"), 403, "blocked"),
    (Mode(finish="insufficient_system_resource"), 502, "upstream_failed"),
    (Mode(finish="abort"), 502, "upstream_failed"),
    (Mode(finish="tool_calls", text=""), 502, "upstream_failed"),
    (Mode(finish="length", text=""), 502, "upstream_failed"),
    (Mode(finish=None), 502, "upstream_cut"),
    (Mode(finish=None, done=False), 502, "upstream_cut"),
    (Mode(cut_after=4), 502, "upstream_cut"),
    (Mode(cut_after=0), 502, "upstream_cut"),
    (Mode(raw=b"data: {garbage\n\n"), 502, "upstream_failed"),
    (Mode(raw=b"", content_type="application/json"), 502, "upstream_failed"),
    (Mode(raw=b"<html>hello</html>", content_type="text/html"), 502, "upstream_failed"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "status", "code"), NO_ANSWER)
@pytest.mark.parametrize("streamed", ["", "true"])
def test_a_response_without_an_answer_is_an_error_and_never_sent_again(
    service: Service,
    api: OpenAIBackend,
    mode: Mode,
    status: int,
    code: str,
    streamed: str,
) -> None:
    api.mode = copy.deepcopy(mode)
    client = service(openai_model="tiny-1")
    answer = ask(client, stream=streamed)
    if streamed and answer.status_code == 200:
        assert f'"error":"{code}"' in answer.text and "event: done" not in answer.text
    else:
        assert (answer.status_code, answer.json["error"]) == (status, code)
    assert len(api.completions) == 1
    [item] = body_of(client.get("/conversations", headers=KEY))
    api.mode = Mode()
    body_of(ask(client, conversation_id=item["id"], msg="again"))
    assert [message["content"] for message in sent(api)["messages"]] == ["again"]


ODD = [
    Mode(streams=False),
    Mode(done=False),
    Mode(usage=False),
    Mode(usage_with_last=True),
    Mode(crlf=True, pieces_of=1),
    Mode(pieces_of=3),
    Mode(content_type="application/octet-stream"),
]


@pytest.mark.parametrize("mode", ODD, ids=str)
def test_servers_that_differ_are_understood(
    service: Service, api: OpenAIBackend, mode: Mode
) -> None:
    api.mode = mode
    data = body_of(ask(service()))["data"]
    assert data["message"] == "Turn 1. You said: hello — 你好 🙂."
    assert data["usage"] == (USAGE if mode.usage else None)


def test_a_stop_for_length_is_reported(service: Service, api: OpenAIBackend) -> None:
    api.mode = Mode(finish="length")
    answer = ask(service(), max_tokens="3")
    assert (
        body_of(answer)["data"]["finish_details"] == "length"
        and answer.headers["X-Finish-Reason"] == "length"
    )


@pytest.mark.parametrize("reason", ["停止", "a\nb", "x\0y", "y" * 500])
def test_a_finish_reason_that_nobody_knows_is_a_stop(
    service: Service, api: OpenAIBackend, reason: str
) -> None:
    api.mode = Mode(finish=reason)
    client = service()
    answer = ask(client)
    assert body_of(answer)["data"]["finish_details"] == "stop"
    assert answer.headers["X-Finish-Reason"] == "stop"
    assert (
        body_of(
            ask(client, conversation_id=body_of(answer)["data"]["conversation_id"])
        )["code"]
        == 0
    )


def test_half_an_emoji_costs_no_answer(service: Service, api: OpenAIBackend) -> None:
    pieces = [
        b'{"content": "so \\ud83d"}',
        b'{"content": " \\\\ud83d \\ud83d\\ude00"}',
        b"{}",
    ]
    event = b'data: {"choices": [{"index": 0, "delta": %s, "finish_reason": %s}]}\n\n'
    api.mode = Mode(
        raw=b"".join(
            event % (piece, b'"stop"' if piece == b"{}" else b"null")
            for piece in pieces
        )
    )
    assert (
        body_of(ask(service(openai_model="tiny-1")))["data"]["message"]
        == "so \ufffd \\ud83d \U0001f600"
    )


def test_a_failure_says_which_conversation_has_the_question(
    service: Service, api: OpenAIBackend
) -> None:
    client = service(openai_model="tiny-1")
    api.mode = Mode(cut_after=4)
    answer = ask(client)
    [item] = body_of(client.get("/conversations", headers=KEY))
    assert answer.status_code == 502
    assert answer.headers["X-Conversation-Id"] == item["id"]
    api.mode = Mode(refusals=[(400, {}, b"{}")])
    assert "X-Conversation-Id" not in ask(client).headers, (
        "what was refused is not kept"
    )
    again = ask(client, conversation_id=item["id"], msg="again", system="too late")
    assert (
        "Turn 1." in body_of(again)["data"]["message"]
        and again.headers["X-Ignored-Parameters"] == "system"
    )


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(
    service: Service, api: OpenAIBackend
) -> None:
    client = service(history_budget=100)
    first = body_of(ask(client, msg="the first one", system="Be kind."))["data"]
    for number in range(2, 7):
        answer = ask(
            client, msg=f"question {number}", conversation_id=first["conversation_id"]
        )
        body_of(answer)
    contents = [message["content"] for message in sent(api)["messages"]]
    assert (
        contents[0] == "Be kind."
        and contents[-1] == "question 6"
        and "the first one" not in contents
    )
    assert len(contents) % 2 == 0, "whole turns"
    assert int(answer.headers["X-History-Dropped"]) == 12 - len(contents)
    streamed = ask(
        client, msg="x", conversation_id=first["conversation_id"], stream="true"
    )
    assert int(streamed.headers["X-History-Dropped"]) > 0
    assert "X-History-Dropped" not in ask(client).headers
    whole = body_of(
        client.get(f"/conversation/{first['conversation_id']}", headers=KEY)
    )
    assert len(whole["mapping"]) == 16, "what is not sent is kept all the same"


def test_upstreams_that_take_no_parameters_say_which_they_left_out(
    build: Build,
) -> None:
    answer = (
        build()
        .test_client()
        .post(
            "/ask", data={"msg": "x", "temperature": "0", "max_tokens": "5", "n": "1"}
        )
    )
    assert (
        body_of(answer)
        and answer.headers["X-Ignored-Parameters"] == "n, temperature"
        and answer.headers["X-Finish-Reason"] == "length"
    )


def test_the_settings_choose_it(build: Build, api: OpenAIBackend) -> None:
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        build(upstream="openai")
    client = build(openai_base_url=api.url, openai_api_key=("sk-invented-1",), access_token=("t",), authorization=("the-client-key-0",), upstream="openai").test_client()  # fmt: skip
    body_of(
        client.post(
            "/ask", data={"msg": "x"}, headers={"Authorization": "the-client-key-0"}
        )
    )
    assert len(api.completions) == 1
    refused = client.post(
        "/ask",
        data={"msg": "x", "reverse_proxy": api.url},
        headers={"Authorization": "the-client-key-0"},
    )
    assert refused.status_code == 403


def test_no_parameter_tells_a_gateway_where_to_go(
    service: Service, api: OpenAIBackend
) -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "api_base": "http://evil.example",
        "temperature": 1,
    }
    answer = service().post("/chat", json=body, headers=KEY, buffered=True)
    assert answer.status_code == 200 and set(sent(api)) == {
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
    }


def test_an_image_is_kept_as_it_was_sent(service: Service, api: OpenAIBackend) -> None:
    client = service()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    message = {"role": "user", "content": [{"type": "text", "text": "what?"}, image]}
    body = {"messages": [message], "history_disabled": False}
    first = client.post("/chat", json=body, headers=KEY, buffered=True)
    ask(client, conversation_id=first.headers["X-Conversation-Id"])
    sent = api.completions[-1].body["messages"]
    assert sent[0] == message and [part["role"] for part in sent] == [
        "user",
        "assistant",
        "user",
    ]


def test_each_conversation_gets_its_own_kind_of_credential(
    service: Service, api: OpenAIBackend
) -> None:
    for accepted in (True, "any"):
        client = service(allow_caller_tokens=accepted)
        first = body_of(ask(client))["data"]["conversation_id"]
        count = len(api.completions)
        answer = ask(client, conversation_id=first, access_token=jwt(sub="alice"))
        assert answer.status_code == 400 and len(api.completions) == count
        assert "access_token" in answer.json["msg"] or "API keys" in answer.json["msg"]


def test_a_client_key_is_made_for_it(
    build: Build, api: OpenAIBackend, tmp_path: Path
) -> None:
    build(openai_base_url=api.url)
    assert (tmp_path / "data" / "client_key").read_text().startswith("cw-")
