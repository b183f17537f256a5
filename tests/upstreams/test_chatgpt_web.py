"""The own routes against a strict ChatGPT backend: what is sent, what is read, how it fails, whose account is spent."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.accounts import Account, AccountPool
from relay.domain import Message, Question
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from relay.upstreams.chatgpt_web import ChatGPTWeb
from relay.upstreams.chatgpt_web.backend import Backend as WebBackend
from relay.upstreams.chatgpt_web.body import place
from relay.upstreams.http import Limits
from tests.chatgpt_backend import Backend, Mode
from tests.openai_backend import OpenAIBackend
from tests.replies import body_of
from tests.tokens import jwt
from tests.upstreams.test_web_failures import CHALLENGE, EXPIRED, FASTAPI

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}


@pytest.fixture
def service(build: Build, backend: Backend) -> Callable[..., FlaskClient]:
    def make(**settings: Any) -> FlaskClient:
        defaults = {
            "reverse_proxy": backend.url,
            "access_token": ("token-1",),
            "authorization": ("the-client-key-0",),
        }
        return build(**{**defaults, **settings}).test_client()

    return make


def post(
    client: FlaskClient,
    route: str = "/send_message",
    headers: dict[str, str] = KEY,
    **fields: Any,
) -> TestResponse:
    prompt = {"/send_message": "prompt", "/ask": "msg"}[route]
    return client.post(
        route, data={prompt: "hello", **fields}, headers=headers, buffered=True
    )


OWN = jwt(sub="their-own")
ENCODINGS = ["classic", "delta"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_conversation_goes_on_branches_and_is_remembered(
    service: Callable[..., FlaskClient], backend: Backend, encoding: str
) -> None:
    backend.mode = Mode(encoding=encoding)
    client = service()
    first = body_of(post(client, prompt="one"))
    assert first["text"] == "Turn 1. You said: one — 你好 🙂."
    assert first["conversation_id"] in backend.trees
    second = body_of(post(client, **{**first, "prompt": "two"}))
    assert "Turn 2. You said: two" in second["text"]
    third = body_of(
        post(service(), prompt="three", conversation_id=first["conversation_id"])
    )
    assert "Turn 3." in third["text"], "another process knows where to go on"
    body_of(post(client, **{**first, "prompt": "branch"}))
    tree = backend.trees[first["conversation_id"]]["mapping"]
    assert len(tree[first["parent_message_id"]]["children"]) == 2
    assert len(backend.turns) == 4 and len(backend.asked) == 4, (
        "one POST an ask, and nothing else"
    )


def test_what_is_sent(service: Callable[..., FlaskClient], backend: Backend) -> None:
    client = service(
        chatgpt_headers={"Oai-Language": "en", "user-agent": "Custom"},
        chatgpt_body={"x": 1, "model": "m"},
    )
    first = body_of(
        post(client, system="Be kind.", headers={**KEY, "X-Request-Id": "mine"})
    )
    asked = backend.turns[0]
    assert (
        asked.path == "/backend-api/conversation"
        and asked.headers["authorization"] == "Bearer token-1"
    )
    assert (
        asked.headers["user-agent"] == "Custom"
        and asked.headers["oai-language"] == "en"
    )
    assert (
        asked.headers["x-request-id"] == "mine"
        and asked.body["x"] == 1
        and asked.body["model"] == "m"
    )
    assert [message["author"]["role"] for message in asked.body["messages"]] == [
        "system",
        "user",
    ]
    assert (
        "conversation_id" not in asked.body
        and asked.body["history_and_training_disabled"] is False
    )
    body_of(post(client, **{**first, "prompt": "more"}))
    assert backend.turns[1].body["conversation_id"] == first["conversation_id"]
    assert backend.turns[1].body["parent_message_id"] == first["parent_message_id"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [0, 1, 3, 1000])
@pytest.mark.parametrize("crlf", [False, True])
def test_every_framing_gives_the_same_answer(
    service: Callable[..., FlaskClient],
    backend: Backend,
    encoding: str,
    size: int,
    crlf: bool,
) -> None:
    backend.mode = Mode(encoding=encoding, pieces_of=size, crlf=crlf)
    assert body_of(post(service()))["text"] == "Turn 1. You said: hello — 你好 🙂."
    streamed = post(service(), route="/ask", stream="true").text
    pieces = [
        json.loads(line[6:])["text"]
        for line in streamed.splitlines()
        if line.startswith('data: {"text"')
    ]
    assert (
        "".join(pieces) == "Turn 1. You said: hello — 你好 🙂."
        and "event: done" in streamed
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_answer_that_stopped_for_its_length_comes_whole(
    service: Callable[..., FlaskClient], backend: Backend, encoding: str
) -> None:
    backend.mode = Mode(encoding=encoding, length_stops=2)
    client = service()
    reply = body_of(post(client))
    assert (
        reply["text"]
        == "Turn 1. You said: hello — 你好 🙂. and more and the rest of it."
    )
    assert [asked.body["action"] for asked in backend.turns] == [
        "next",
        "continue",
        "continue",
    ]
    assert "Turn 2." in body_of(post(client, **{**reply, "prompt": "on"}))["text"]


def test_the_rest_of_an_answer_is_asked_of_no_other_account(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    limit = (429, {**JSON, "Retry-After": "60"}, b'{"detail": "Slow down"}')
    backend.mode = Mode(length_stops=1, refuse_rest=limit)
    text = post(
        service(access_token=("token-1", "token-2")), route="/ask", stream="true"
    ).text
    assert '"error":"rate_limited"' in text
    assert "Turn 1." in text
    assert "event: done" not in text
    assert (
        len({asked.headers["authorization"] for asked in backend.turns}) == 1
        and len(backend.turns) == 2
    )


def test_a_handed_off_answer_is_polled_for(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(hand_off=True, polls=1)
    assert body_of(post(service()))["text"] == "Turn 1. You said: hello — 你好 🙂."
    assert [asked.method for asked in backend.asked] == ["POST", "GET", "GET"]


def test_a_poll_that_fails_is_repeated_for_it_asks_nothing_twice(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(hand_off=True, polls=0, missed_polls=1)
    assert body_of(post(service()))["text"] == "Turn 1. You said: hello — 你好 🙂."
    assert [asked.method for asked in backend.asked] == ["POST", "GET", "GET"]


def test_a_stream_whose_type_is_not_named_is_read_all_the_same(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    for content_type in ("text/plain", "application/octet-stream"):
        backend.mode = Mode(content_type=content_type, pace=0.02)
        assert body_of(post(service()))["text"] == "Turn 1. You said: hello — 你好 🙂."


def test_a_conversation_without_a_known_parent_goes_on_at_its_newest(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    conversation_id, _, answer = backend.add_turn(
        "token-1",
        {"action": "next", "messages": [user("before")], "parent_message_id": "x"},
    )
    reply = body_of(post(service(), conversation_id=conversation_id))
    assert "Turn 2." in reply["text"]
    assert backend.turns[0].body["parent_message_id"] == answer["id"]


def user(text: str) -> dict[str, Any]:
    return {
        "id": f"id-of-{text}",
        "author": {"role": "user"},
        "content": {"content_type": "text", "parts": [text]},
    }


JSON = {"Content-Type": "application/json"}
PAGE = {"Content-Type": "text/html"}
REFUSALS: list[tuple[str, int, dict[str, str], Any, int, str]] = [
    ("expired", 401, JSON, EXPIRED, 401, "token_rejected"),
    ("challenge", 403, PAGE, CHALLENGE, 403, "challenged"),
    ("forbidden", 403, JSON, {"detail": "Unusual activity"}, 403, "upstream_refused"),
    (
        "unknown",
        404,
        JSON,
        {"detail": "Conversation not found"},
        404,
        "upstream_refused",
    ),
    (
        "too-long",
        413,
        JSON,
        {"detail": {"message": "too long"}},
        413,
        "upstream_refused",
    ),
    ("invalid", 422, JSON, FASTAPI, 422, "upstream_refused"),
    (
        "clears-in",
        429,
        JSON,
        {"detail": {"message": "cap", "clears_in": 60}},
        429,
        "rate_limited",
    ),
    (
        "retry-after",
        429,
        {**JSON, "Retry-After": "20"},
        {"detail": "Slow down"},
        429,
        "rate_limited",
    ),
    (
        "server-error",
        500,
        JSON,
        {"detail": "Internal Server Error"},
        500,
        "upstream_refused",
    ),
    ("gateway", 502, PAGE, b"<html>502</html>", 502, "upstream_refused"),
    ("redirect", 302, {"Location": "http://127.0.0.1:1/"}, b"", 502, "upstream_failed"),
    ("page", 200, PAGE, b"<html>Welcome</html>", 502, "upstream_failed"),
    ("wss", 200, JSON, {"wss_url": "wss://x"}, 502, "upstream_failed"),
    ("empty", 200, JSON, b"", 502, "upstream_failed"),
]


@pytest.mark.parametrize("route", ["/send_message", "/ask"])
@pytest.mark.parametrize("stream", ["", "true"], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("name", "status", "headers", "body", "as_status", "code"),
    REFUSALS,
    ids=[row[0] for row in REFUSALS],
)
def test_every_refusal_on_every_route(
    service: Callable[..., FlaskClient], backend: Backend, route: str, stream: str,
    name: str, status: int, headers: dict[str, str], body: Any, as_status: int, code: str,
) -> None:  # fmt: skip
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    backend.mode = Mode(refusals=[(status, headers, payload)])
    answer = post(service(), route=route, stream=stream)
    assert answer.status_code == (500 if route == "/send_message" else as_status)
    assert (
        answer.headers["X-Error-Code"] == code
        and answer.headers["X-Error-Source"] == "upstream"
    )
    assert set(answer.json) == (
        {"message"} if route == "/send_message" else {"code", "msg", "error", "source"}
    )
    assert "token-1" not in answer.text and len(backend.turns) == 1, "never asked twice"


BREAKS = [
    ("cut", Mode(cut_after=4), "upstream_cut"),
    ("cut-at-once", Mode(cut_after=0), "upstream_cut"),
    ("stalled", Mode(stall_after=4), "upstream_timeout"),
    ("quiet", Mode(quiet=30), "upstream_timeout"),
    ("slow-head", Mode(delay=30), "upstream_timeout"),
    ("empty", Mode(raw=b""), "upstream_cut"),
    ("done-only", Mode(raw=b"data: [DONE]\n\n"), "upstream_cut"),
    ("garbage", Mode(raw=b"\x00\xff garbage"), "upstream_cut"),
    (
        "error-event",
        Mode(raw=b'data: {"message":null,"error":"Something went wrong"}\n\n'),
        "upstream_failed",
    ),
    ("crash", Mode(raw=b"internal server error\n\n"), "upstream_failed"),
]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("stream", ["", "true"], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("mode", "code"), [row[1:] for row in BREAKS], ids=[row[0] for row in BREAKS]
)
def test_half_an_answer_is_never_delivered_as_a_whole_one(
    service: Callable[..., FlaskClient],
    backend: Backend,
    mode: Mode,
    code: str,
    stream: str,
    encoding: str,
) -> None:
    mode.encoding = encoding
    backend.mode = mode
    client = service(first_byte_timeout=0.4, read_timeout=0.4)
    answer = post(client, route="/ask", stream=stream)
    if answer.status_code == 200:
        assert (
            stream
            and "event: done" not in answer.text
            and f'"error":"{code}"' in answer.text
        )
    else:
        assert answer.json["error"] == code and answer.json["source"] == "upstream"
    assert len(backend.turns) == 1
    backend.mode = Mode()
    assert post(client, route="/ask").status_code == 200


def test_an_end_that_never_comes_costs_no_answer(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(encoding="classic", done=False)
    assert "Turn 1." in body_of(post(service()))["text"]
    backend.mode = Mode(encoding="delta", stall_after=12)
    text = post(service(read_timeout=1), route="/ask", stream="true").text
    assert "event: done" in text or "upstream_timeout" in text


def test_a_limited_account_rests_and_another_answers(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    limit = (429, {**JSON, "Retry-After": "60"}, b'{"detail": "Slow down"}')
    client = service(access_token=("token-1", "token-2"))
    backend.mode = Mode(refuse_tokens={"token-1": limit})
    for _ in range(4):
        body_of(post(client))
    tokens = [asked.headers["authorization"] for asked in backend.turns]
    assert tokens.count("Bearer token-1") == 1 and tokens.count("Bearer token-2") == 4
    backend.mode.refuse_tokens["token-2"] = limit
    answer = post(client, route="/ask")
    assert (answer.status_code, answer.json["error"]) == (429, "rate_limited")
    assert 50 <= int(answer.headers["Retry-After"]) <= 60


def test_a_conversation_stays_at_its_account(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service(access_token=("token-1", "token-2"))
    for _ in range(3):
        first = body_of(post(client))
        owner = backend.owners[first["conversation_id"]]
        assert (
            "Turn 2."
            in body_of(post(client, conversation_id=first["conversation_id"]))["text"]
        )
        assert backend.turns[-1].headers["authorization"] == f"Bearer {owner}"
    gone = post(
        service(access_token=("token-3", "token-4")),
        route="/ask",
        conversation_id=first["conversation_id"],
    )
    assert (gone.status_code, gone.json["error"]) == (
        409,
        "upstream_gone",
    ) and "account" in gone.json["msg"]


def test_an_account_that_takes_one_message_at_a_time_is_waited_for(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(one_at_a_time=True, delay=0.4)
    app = service().application
    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(lambda n: post(app.test_client(), prompt=f"q{n}"), range(3))
        )
    assert [f"q{n}" in body_of(answer)["text"] for n, answer in enumerate(answers)] == [
        True
    ] * 3
    assert len(backend.trees) == 3
    backend.running.add("token-1")
    late = post(service(), route="/ask", timeout="300")
    assert (late.status_code, late.json["error"]) == (429, "one_at_a_time")


def test_the_asks_of_an_account_can_be_bounded(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(one_at_a_time=True, delay=0.1)
    app = service(account_concurrency=1).application
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda n: post(app.test_client(), prompt=f"q{n}"), range(4))
        )
    assert (
        all(answer.status_code == 200 for answer in answers) and len(backend.turns) == 4
    ), "never one too many"


def test_a_question_counts_as_asked_from_the_moment_it_is_sent_off(
    backend: Backend,
) -> None:
    pool = AccountPool((account := Account.of("token-1"),))
    transport = DirectTransport(DirectDialer(5))
    web_backend = WebBackend(
        transport, (place(backend.url),), pool, limits=Limits(concurrency=1)
    )
    pool.take(account, 1)
    stream, _ = ChatGPTWeb(web_backend).ask(
        Question(
            (Message("user", "hello"),),
            question_id="11111111-1111-4111-8111-111111111111",
        )
    )
    assert stream.read(0.2) is None and not stream.dispatched, (
        "the account has enough to do"
    )
    pool.leave(account)
    backend.running.add("token-1")
    backend.mode = Mode(one_at_a_time=True)
    assert (
        stream.read(0.5) is None and not stream.dispatched and len(backend.turns) == 1
    ), "it was refused"
    backend.running.clear()
    while not (piece := stream.read(5)):
        assert piece is None
    assert stream.dispatched and len(backend.turns) > 1
    stream.close()
    transport.close()


def test_what_is_neither_a_key_nor_a_token_is_sent_to_nobody(
    build: Build, api: OpenAIBackend, backend: Backend
) -> None:
    settings = {
        "openai_base_url": api.url,
        "chatgpt_base_url": (backend.url,),
        "authorization": ("a:the-client-key-0", "b:others-client-key"),
    }
    client = build(**settings).test_client()
    for mistyped in (
        "the-client-key-0y",
        "sk-theirs",
    ):  # a server that is not OpenAI itself may check none
        for route in ("/ask", "/chat", "/conversations", "/readyz"):
            method = (
                client.get if route in ("/conversations", "/readyz") else client.post
            )
            for request in (
                {"headers": {"Authorization": f"Bearer {mistyped}"}},
                {"data": {"access_token": mistyped}},
            ):
                answer = method(route, **request)
                assert (answer.status_code, answer.headers["X-Error-Code"]) == (
                    401,
                    "unauthorized",
                )
                assert mistyped not in answer.text
    assert not api.asked and not backend.asked
    settings |= {"openai_api_key": ("sk-invented-1",), "allow_caller_tokens": "any"}
    client = build(**settings).test_client()
    own = {"Authorization": "Bearer sk-theirs"}
    assert (
        body_of(client.get("/conversations", headers=own)) == [] and not backend.asked
    ), "it is not ChatGPT's to see"
    body_of(post(client, headers={"Authorization": f"Bearer {jwt(sub='me')}"}))
    for forged in (f"sk-{jwt(sub='me')}", f"sk-x.{jwt(sub='me').split('.')[1]}"):
        answer = client.get(
            "/conversations", headers={"Authorization": f"Bearer {forged}"}
        )
        assert body_of(answer) == [], (
            "no claims are read of what ChatGPT does not check"
        )
    backend.asked.clear()
    gone = client.get("/conversation/none", headers=own)
    assert gone.status_code == 404 and not backend.asked
    answer = client.post(
        "/ask",
        data={"msg": "hello"},
        headers={"Authorization": f"Bearer {jwt(sub='me')}"},
    )
    assert body_of(answer)["code"] == 0
    assert len(backend.turns) == 1
    assert not api.completions


def test_an_upstream_that_is_named_takes_its_own_kind_of_key(
    build: Build, api: OpenAIBackend, backend: Backend
) -> None:
    settings = {
        "openai_base_url": api.url,
        "chatgpt_base_url": (backend.url,),
        "authorization": ("the-client-key-0",),
    }
    api.mode.keys = ("gsk_theirs", "gsk_ours")
    client = build(
        **settings,
        openai_api_key=("gsk_ours",),
        upstream="openai",
        allow_caller_tokens="any",
    ).test_client()
    body_of(post(client, headers={"Authorization": "Bearer gsk_theirs"}))
    assert api.completions[0].headers["authorization"] == "Bearer gsk_theirs"
    client = build(
        **settings, access_token=("token-1",), upstream="chatgpt-web"
    ).test_client()
    for route in ("/ask", "/conversations", "/conversation/none"):
        answer = client.open(
            route,
            method="POST" if route == "/ask" else "GET",
            headers={"Authorization": "Bearer x"},
        )
        assert answer.status_code == 401
    assert not backend.asked


def test_no_message_quotes_the_token(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    token = "an-opaque-token-of-ours"
    client = service(access_token=(token,))
    conversation_id = body_of(post(client))["conversation_id"]
    quoting = json.dumps({"detail": f"token {token} is expired"}).encode()
    backend.mode = Mode(refuse_tokens={token: (401, {}, quoting)})
    paths = (
        "/ask",
        f"/conversation/{conversation_id}",
        f"/conversation/{conversation_id}/title",
        f"/conversation/{conversation_id}/delete",
    )
    for path in paths:
        answer = client.open(
            path,
            method="GET" if path == paths[1] else "POST",
            data={"msg": "x"},
            headers=KEY,
        )
        assert answer.status_code == 401
        assert "token ... is expired" in answer.json["msg"]
        assert token not in answer.text
    failures = {
        502: {"error": f"bad {token}", "conversation_id": "c"},
        429: {"type": "stream_quota_check", "message": f"bad {token}"},
    }
    for status, event in failures.items():
        backend.mode = Mode(raw=b"data: " + json.dumps(event).encode() + b"\n\n")
        answer = post(client, "/ask")
        assert answer.status_code == status
        assert "bad ..." in answer.json["msg"]
        assert token not in answer.text


def test_an_open_service_leaves_alone_what_clients_cannot_but_send(
    build: Build, backend: Backend
) -> None:
    settings = {"chatgpt_base_url": (backend.url,), "authorization": ("none",)}
    dummy = {"Authorization": "Bearer dummy"}
    assert body_of(
        post(build(access_token=("token-1",), **settings).test_client(), headers=dummy)
    )["text"]
    assert backend.turns[0].headers["authorization"] == "Bearer token-1"
    assert (
        "offline responder"
        in body_of(post(build(**settings).test_client(), headers=dummy))["text"]
    )
    answer = post(
        build(**settings).test_client(), access_token="dummy", headers={}, route="/ask"
    )
    assert (answer.status_code, answer.json["error"]) == (401, "unauthorized")


def test_a_callers_own_token_needs_no_key_and_travels_without_the_services_secrets(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    secrets = {
        "Cookie": "_puid=ours",
        "Authkey": "ours",
        "Chatgpt-Account-Id": "ours",
        "Oai-Language": "en",
    }
    client = service(chatgpt_headers=secrets)
    first = body_of(post(client, headers={}, access_token=OWN))
    asked = backend.turns[0]
    assert asked.headers[
        "authorization"
    ] == f"Bearer {OWN}" and "ours" not in json.dumps(asked.headers)
    assert asked.headers["oai-language"] == "en"
    again = post(
        client,
        headers={"Authorization": f"Bearer {OWN}"},
        conversation_id=first["conversation_id"],
    )
    assert "Turn 2." in body_of(again)["text"]
    stranger = post(
        client,
        route="/ask",
        headers={"Authorization": f"Bearer {jwt(sub='other')}"},
        conversation_id=first["conversation_id"],
    )
    assert stranger.status_code == 404 and len(backend.turns) == 2, (
        "the index says whose it is"
    )
    rejected = Mode(refuse_tokens={OWN: (401, JSON, json.dumps(EXPIRED).encode())})
    backend.mode = rejected
    answer = post(client, route="/ask", headers={}, access_token=OWN)
    assert (answer.status_code, answer.json["error"], answer.json["source"]) == (
        401,
        "token_rejected",
        "upstream",
    )
    assert body_of(post(client))["text"], "our own account is none the worse"


def test_a_renewed_token_still_owns_its_conversations(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client, renewed = service(), jwt(sub="me", exp=2)
    first = body_of(post(client, headers={}, access_token=jwt(sub="me", exp=1)))
    backend.owners[first["conversation_id"]] = renewed
    assert (
        "Turn 2."
        in body_of(
            post(client, headers={}, access_token=renewed, **{**first, "prompt": "on"})
        )["text"]
    )


def test_without_any_token_the_caller_is_told_to_bring_one(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    answer = post(service(access_token=(), authorization=()), route="/ask", headers={})
    assert (answer.status_code, answer.json["error"]) == (401, "unauthorized")
    assert "access_token" in answer.json["msg"]
    assert backend.asked == []


def test_a_service_with_a_token_makes_a_key(
    service: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    client = service(authorization=())
    assert (tmp_path / "data" / "client_key").read_text().startswith("cw-")
    assert post(client, route="/ask", headers={}).status_code == 401


@pytest.mark.parametrize(
    "below", ["", "/", "/backend-api", "/backend-api/", "/backend-api/conversation"]
)
def test_a_reverse_proxy_is_given_in_any_of_the_known_ways(
    service: Callable[..., FlaskClient], backend: Backend, below: str
) -> None:
    client = service(reverse_proxy=backend.url + below)
    first = body_of(post(client))
    assert (
        client.get(f"/conversation/{first['conversation_id']}", headers=KEY).status_code
        == 200
    )


def test_an_older_proxys_prefix_and_another_path(build: Build) -> None:
    backend = Backend(prefix="/api")
    settings = {"access_token": ("token-1",), "authorization": ("none",)}
    body_of(
        post(
            build(
                reverse_proxy=f"{backend.url}/api/conversation", **settings
            ).test_client()
        )
    )
    body_of(
        post(build(chatgpt_base_url=(f"{backend.url}/api/",), **settings).test_client())
    )
    body_of(
        post(
            build(
                reverse_proxy=f"{backend.url}/api",
                conversation_path="f/conversation",
                **settings,
            ).test_client()
        )
    )
    assert [asked.path for asked in backend.turns] == ["/api/conversation"] * 2 + [
        "/api/f/conversation"
    ]
    backend.shutdown()
    backend.server_close()


def test_only_an_allowed_reverse_proxy_gets_a_token(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    other = Backend()
    client = service(
        reverse_proxy_allow=(other.url, "http://127.0.0.1:1/api/conversation")
    )
    body_of(
        post(
            client,
            headers={},
            access_token=OWN,
            reverse_proxy=f"{other.url}/backend-api/conversation",
        )
    )
    assert (
        other.turns[0].headers["authorization"] == f"Bearer {OWN}"
        and backend.asked == []
    )
    for evil in (
        f"{backend.url}/", f"{other.url}.evil.example/", f"{other.url}@evil.example/", other.url.replace("http", "https"),
        "http://127.0.0.1:1/api/conversation/x", "http://127.0.0.1:1/api", "file:///etc/passwd", "//evil.example",
        f"{other.url}/x?y=http://evil.example", f"{other.url}/#x", "http://169.254.169.254/",
    ):  # fmt: skip
        answer = post(
            client, route="/ask", headers={}, access_token=OWN, reverse_proxy=evil
        )
        assert (answer.status_code, answer.json["error"]) == (403, "forbidden"), evil
    assert backend.asked == [] and len(other.asked) == 1
    default = service()
    body_of(post(default, reverse_proxy=backend.url))
    assert post(default, route="/ask", reverse_proxy=other.url).status_code == 403
    other.shutdown()
    other.server_close()


def test_an_address_where_nobody_listens(service: Callable[..., FlaskClient]) -> None:
    answer = post(service(reverse_proxy="http://127.0.0.1:1/"), route="/ask")
    assert (answer.status_code, answer.json["error"]) == (502, "upstream_unreachable")


def test_an_answer_without_text_is_an_error_at_once(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(hand_off=True, polls=0, no_text=True)
    answer = post(service(), route="/ask")
    assert (answer.status_code, answer.json["error"]) == (502, "upstream_failed")
    assert "no text" in answer.json["msg"]


def test_an_id_that_could_break_a_header_is_an_error(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(
        raw=b'data: {"message":null,"conversation_id":"a\\r\\nX-Evil: 1","error":null}\n\n'
    )
    answer = post(service(), route="/ask")
    assert (answer.status_code, answer.json["error"]) == (502, "upstream_failed")
    assert "X-Evil" not in answer.headers


def test_history_at_chatgpt(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service(access_token=("token-1", "token-2"))
    ids = [body_of(post(client, prompt=f"q{n}"))["conversation_id"] for n in range(3)]
    older, _, _ = backend.add_turn(
        "token-2",
        {"action": "next", "messages": [user("before us")], "parent_message_id": "x"},
    )
    backend.trees[older]["update_time"] = 1.0
    listed = client.get("/conversations", headers=KEY).json
    assert [item["id"] for item in listed] == [*ids[::-1], older]
    assert [
        item["id"]
        for item in client.get("/conversations?limit=2&offset=1", headers=KEY).json
    ] == [
        ids[1],
        ids[0],
    ]
    tree = client.get(f"/conversation/{ids[0]}", headers=KEY).json
    untitled = json.loads(json.dumps(backend.trees[ids[0]]))
    assert tree == {**untitled, "title": "q0"}, "else just as ChatGPT shows it"
    backend.trees[ids[1]]["title"] = "Named there"
    tree = client.get(f"/conversation/{ids[1]}", headers=KEY).json
    assert tree == json.loads(json.dumps(backend.trees[ids[1]]))
    older_tree = client.get(f"/conversation/{older}", headers=KEY).json
    assert older_tree == json.loads(json.dumps(backend.trees[older]))
    for name in (ids[0], older):
        assert (
            client.post(
                f"/conversation/{name}/title", data={"title": "New"}, headers=KEY
            ).status_code
            == 200
        )
        assert backend.trees[name]["title"] == "New"
        assert (
            client.post(f"/conversation/{name}/delete", headers=KEY).json["code"] == 0
        )
        assert name not in backend.trees
        for method, path in (("GET", ""), ("POST", "/delete"), ("POST", "/title")):
            gone = client.open(
                f"/conversation/{name}{path}",
                method=method,
                headers=KEY,
                json={"title": "x"},
            )
            assert gone.status_code == 404, (name, path)
    assert [item["id"] for item in client.get("/conversations", headers=KEY).json] == [
        ids[2],
        ids[1],
    ]


def test_a_conversation_at_chatgpt_has_one_title(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    name = body_of(post(client, prompt="how do I prune a pear tree"))["conversation_id"]

    def titles(path: str) -> list[str]:
        return [item["title"] for item in client.get(path, headers=KEY).json]

    def title_when_read() -> str:
        found: str = client.get(f"/conversation/{name}", headers=KEY).json["title"]
        return found

    # as long as ChatGPT has none, it is the question
    asked = "how do I prune a pear tree"
    assert titles("/conversations") == titles("/conversations?q=pear") == [asked]
    assert title_when_read() == asked
    backend.trees[name]["title"] = "Pruning \n fruit\0 trees"
    assert title_when_read() == "Pruning \n fruit\0 trees"
    assert titles("/conversations?q=pruning") == ["Pruning fruit trees"]
    backend.trees[name]["title"] = "Orchard work"
    assert titles("/conversations") == ["Orchard work"]
    assert titles("/conversations?q=orchard") == ["Orchard work"]
    assert titles("/conversations?q=pruning") == []
    # what was learnt stays where ChatGPT does not answer
    for nothing in (None, "", " ", "New chat", 7):
        backend.trees[name]["title"] = nothing
        assert titles("/conversations") == [title_when_read()] == ["Orchard work"]


def test_a_rejected_token_is_named_by_its_number(
    service: Callable[..., FlaskClient],
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    second = jwt(sub="someone")
    expired = (401, {"Content-Type": "application/json"}, EXPIRED)
    limit = (
        429,
        {"Content-Type": "application/json"},
        b'{"detail": {"clears_in": 60}}',
    )
    backend.mode = Mode(
        refuse_tokens={"token-1": expired, second: expired, "token-3": limit}
    )
    client = service(access_token=("token-1", second, "token-3", "token-4"))
    body_of(post(client))
    rejected = [line for line in caplog.messages if "was rejected" in line]
    end = (
        " was rejected: it expired or is invalid; ChatGPT shows a new one at "
        "https://chatgpt.com/api/auth/session"
    )
    name = Account.of(second).name
    assert rejected == [
        f"ACCESS_TOKEN number 1{end}",
        f"ACCESS_TOKEN number 2 ({name}){end}",
    ]
    assert "ACCESS_TOKEN number 3 rests for 60 s: rate_limited." in caplog.messages
    assert "token-1" not in caplog.text and second not in caplog.text


def test_a_title_that_cannot_be_stored_withholds_no_conversation(
    service: Callable[..., FlaskClient], backend: Backend, tmp_path: Path
) -> None:
    client = service()
    name = body_of(post(client))["conversation_id"]
    backend.trees[name]["title"] = "Named there"
    database = tmp_path / "data" / "conversations.db"
    with sqlite3.connect(database) as other:
        other.execute(
            "CREATE TRIGGER broken BEFORE UPDATE ON conversations "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    other.close()
    assert client.get("/conversations", headers=KEY).json[0]["title"] == "Named there"
    found = client.get(f"/conversation/{name}", headers=KEY)
    assert found.json["title"] == "Named there"


@pytest.mark.parametrize(("page", "bare"), [(28, False), (100, False), (100, True)])
def test_a_long_list_is_read_in_pages(
    service: Callable[..., FlaskClient], backend: Backend, page: int, bare: bool
) -> None:
    for number in range(130):
        backend.add_turn(
            "token-1",
            {
                "action": "next",
                "messages": [user(f"q{number}")],
                "parent_message_id": "x",
            },
        )
    backend.mode = Mode(page=page, bare_list=bare)
    client = service()
    ids = [
        item["id"] for item in client.get("/conversations?limit=130", headers=KEY).json
    ]
    assert ids == list(backend.trees)[::-1]
    assert [
        item["id"]
        for item in client.get("/conversations?limit=5&offset=120", headers=KEY).json
    ] == ids[120:125]


def test_a_head_asks_nobody(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    for path in ("/conversations", "/conversation/some-id", "/readyz", "/healthz"):
        assert client.head(path, headers=KEY).status_code == 200
    assert client.head("/conversations").status_code == 401 and backend.asked == []


def test_an_index_that_cannot_be_written_withholds_no_answer(
    service: Callable[..., FlaskClient], backend: Backend, tmp_path: Path
) -> None:
    client = service()
    with sqlite3.connect(tmp_path / "data" / "conversations.db") as other:
        other.execute("DROP TABLE conversations")
    other.close()
    assert "Turn 1." in body_of(post(client))["text"]


def test_chatgpt_finds_a_title(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    conversation_id = body_of(post(client))["conversation_id"]
    for _ in range(2):
        answer = client.post(f"/conversation/{conversation_id}/title", headers=KEY)
        assert answer.json == {"code": 0, "msg": "A generated title"}
        assert backend.trees[conversation_id]["title"] == "A generated title"
    assert client.post("/conversation/no-such/title", headers=KEY).status_code == 404


def test_history_of_a_callers_own_account(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client, headers = service(), {"Authorization": f"Bearer {OWN}"}
    conversation_id = body_of(post(client, headers=headers))["conversation_id"]
    body_of(post(client))
    assert [
        item["id"] for item in client.get("/conversations", headers=headers).json
    ] == [conversation_id]
    assert (
        client.get(f"/conversation/{conversation_id}", headers=headers).json["title"]
        == "hello"
    )
    assert (
        client.post(
            f"/conversation/{conversation_id}/delete", headers=headers
        ).status_code
        == 200
    )
    backend.mode = Mode(refuse_tokens={OWN: (401, JSON, b"{}")})
    assert client.get("/conversations", headers=headers).status_code == 401


def test_with_several_keys_each_sees_its_own_alone(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service(authorization=("alice:alices-client-key", "bob:bobs-client-key-1"))
    alice, bob = (
        {"Authorization": "alices-client-key"},
        {"Authorization": "bobs-client-key-1"},
    )
    conversation_id = body_of(post(client, headers=alice))["conversation_id"]
    before, _, _ = backend.add_turn(
        "token-1",
        {"action": "next", "messages": [user("before us")], "parent_message_id": "x"},
    )
    assert [
        item["id"] for item in client.get("/conversations", headers=alice).json
    ] == [conversation_id]
    assert client.get("/conversations", headers=bob).json == []
    for headers, name in ((bob, conversation_id), (alice, before), (bob, before)):
        assert client.get(f"/conversation/{name}", headers=headers).status_code == 404
        assert (
            client.post(f"/conversation/{name}/delete", headers=headers).status_code
            == 404
        )
        assert (
            post(
                client, route="/ask", headers=headers, conversation_id=name
            ).status_code
            == 404
        )
    assert before in backend.trees and len(backend.turns) == 1


def test_a_proxy_that_forwards_the_conversation_route_alone(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    backend.mode = Mode(only_asking=True)
    client = service()
    first = body_of(post(client))
    assert (
        "Turn 2."
        in body_of(post(client, conversation_id=first["conversation_id"]))["text"]
    ), "the index knows the parent"
    listed = client.get("/conversations", headers=KEY)
    assert [item["id"] for item in listed.json] == [
        first["conversation_id"]
    ] and listed.headers["X-Incomplete"]
    for method, path in (("GET", ""), ("POST", "/title"), ("POST", "/delete")):
        answer = client.open(
            f"/conversation/{first['conversation_id']}{path}",
            method=method,
            headers=KEY,
            json={"title": "x"},
        )
        assert answer.status_code == 404 and "reverse proxy" in answer.json["msg"]


def test_a_turn_of_a_conversation_waits_for_the_one_before(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    app = service().application
    first = body_of(post(app.test_client()))
    backend.mode = Mode(delay=0.3)
    with ThreadPoolExecutor(3) as pool:
        turns = pool.map(
            lambda n: post(
                app.test_client(),
                prompt=f"q{n}",
                conversation_id=first["conversation_id"],
            ),
            range(3),
        )
        assert sorted(body_of(turn)["text"][:7] for turn in turns) == [
            "Turn 2.",
            "Turn 3.",
            "Turn 4.",
        ]


def test_a_caller_that_leaves_in_a_wait_is_gone(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    """Within the process: an interrupt of the session reaches the backend, in each of its waits."""
    transport = DirectTransport()
    web_backend = WebBackend(
        transport, (place(backend.url),), AccountPool((Account("a", "token-1"),))
    )
    for mode in (
        Mode(delay=30),
        Mode(quiet=30),
        Mode(stall_after=3),
        Mode(hand_off=True, polls=99),
    ):
        backend.mode = mode
        stream, decoder = ChatGPTWeb(web_backend).ask(
            Question((Message("user", "x"),), question_id="q-1")
        )
        threading.Timer(0.3, stream.interrupt).start()
        began = time.monotonic()
        while piece := stream.read(20):
            list(decoder.feed(piece))
        stream.close()
        assert (
            time.monotonic() - began < 1.3
            and web_backend.pool.in_flight(Account("a", "")) == 0
        )
    transport.close()
