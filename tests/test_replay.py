"""Asks that happen once: by an idempotency key, across repeats, failures, processes, and callers that leave."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay import delivery
from relay.domain import IdempotencyKey, KeyRecord
from relay.errors import RelayError
from relay.store import Store
from tests.chatgpt_backend import Backend
from tests.chatgpt_backend import Mode as ChatGPTMode
from tests.openai_backend import Mode, OpenAIBackend
from tests.processes import Service, curl
from tests.replies import body_of
from tests.tokens import jwt
from tests.turns import Clock, end, new_turn
from tests.waiting import wait_for

ON_BOTH = True

Build = Callable[..., Flask]
Start = Callable[..., Service]
KEY = {"Authorization": "Bearer the-client-key-0"}


@pytest.fixture
def client(build: Build, api: OpenAIBackend) -> FlaskClient:
    return service(build, api).test_client()


def service(build: Build, api: OpenAIBackend, **settings: Any) -> Flask:
    defaults = {
        "openai_base_url": api.url,
        "openai_api_key": ("sk-invented-1",),
        "openai_model": "tiny-1",
    }
    return build(
        **{
            **defaults,
            "authorization": ("owner:the-client-key-0", "other:others-client-key"),
            **settings,
        }
    )


def ask(
    client: FlaskClient, key: str = "k1", headers: dict[str, str] = KEY, **fields: Any
) -> TestResponse:
    key_header = {"Idempotency-Key": key} if key else {}
    return client.post(
        fields.pop("route", "/ask"),
        data={"msg": "hello", **fields},
        headers={**headers, **key_header},
        buffered=True,
    )


def test_a_repeat_gets_the_same_answer_in_the_format_now_asked_for(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    first = ask(client)
    data = body_of(first)["data"]
    again = ask(client)
    assert (
        body_of(again) == body_of(first)
        and again.headers["Idempotent-Replayed"] == "true"
    )
    assert "Idempotent-Replayed" not in first.headers
    assert ask(client, format="text").text == data["message"] + "\n"
    stream = ask(client, stream="true")
    assert data["parent_id"] in stream.text and "event: done" in stream.text
    assert stream.headers["X-Conversation-Id"] == data["conversation_id"]
    field = client.post("/ask", data={"msg": "hello", "request_id": "k1"}, headers=KEY)
    quoted = client.post(
        "/ask", data={"msg": "hello"}, headers={**KEY, "Idempotency-Key": '"k1"'}
    )
    assert body_of(field) == body_of(quoted) == body_of(first)
    assert (
        len(api.completions) == 1
        and len(body_of(client.get("/conversations", headers=KEY))) == 1
    )


@pytest.mark.parametrize(
    "other",
    [
        {"msg": "other"},
        {"model": "tiny-2"},
        {"route": "/send_message"},
        {"temperature": "1"},
        {"system": "s"},
    ],
    ids=str,
)
def test_another_ask_under_the_same_key_is_refused(
    client: FlaskClient, api: OpenAIBackend, other: dict[str, str]
) -> None:
    body_of(ask(client))
    answer = ask(client, **other)
    assert answer.headers["X-Error-Code"] == "key_reused" and len(api.completions) == 1
    assert answer.status_code == (500 if "route" in other else 409)
    body_of(ask(client)), body_of(ask(client, key="k2", **other))


@pytest.mark.parametrize(
    "request_options",
    [{"headers": {"Idempotency-Key": ""}}, {"data": {"request_id": ""}}],
)
def test_an_empty_key_is_an_error(
    client: FlaskClient, api: OpenAIBackend, request_options: dict[str, Any]
) -> None:
    answer = client.post(
        "/ask",
        data={"msg": "x", **request_options.get("data", {})},
        headers={**KEY, **request_options.get("headers", {})},
    )
    assert (
        answer.status_code == 400
        and "idempotency key" in answer.json["msg"]
        and not api.asked
    )


def test_a_plain_text_has_its_key_in_the_query(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    request = {"data": "hello", "content_type": "text/plain", "headers": KEY}
    answers = [body_of(client.post("/ask?request_id=k1", **request)) for _ in range(2)]
    assert answers[0] == answers[1] and len(api.completions) == 1


def test_a_key_belongs_to_its_owner(client: FlaskClient, api: OpenAIBackend) -> None:
    first = body_of(ask(client))["data"]
    second = body_of(
        ask(
            client, headers={"Authorization": "others-client-key"}, msg="something else"
        )
    )["data"]
    assert first["conversation_id"] != second["conversation_id"]
    assert len(api.completions) == 2


@pytest.mark.parametrize("key", ["two words", "ü", "x" * 256])
def test_an_invalid_key_is_refused(
    client: FlaskClient, api: OpenAIBackend, key: str
) -> None:
    answer = client.post("/ask", data={"msg": "x", "request_id": key}, headers=KEY)
    assert answer.status_code == 400 and "idempotency key" in answer.json["msg"]
    both = client.post(
        "/ask",
        data={"msg": "x", "request_id": "a"},
        headers={**KEY, "Idempotency-Key": "b"},
    )
    assert both.status_code == 400 and not api.completions


def test_a_failure_before_the_upstream_accepted_frees_the_key(
    client: FlaskClient, api: OpenAIBackend, build: Build
) -> None:
    api.mode = Mode(refusals=[(429, {}, b"{}"), (400, {}, b"{}"), (401, {}, b"{}")])
    assert [ask(client).status_code for _ in range(2)] == [429, 400]
    assert ask(client).status_code == 401
    gone = service(build, api, openai_base_url="http://127.0.0.1:9").test_client()
    assert ask(gone).json["error"] == "upstream_unreachable"
    assert ask(client, conversation_id="none").status_code == 404
    api.mode = Mode()
    assert (
        body_of(ask(service(build, api).test_client()))["code"] == 0
        and len(api.completions) == 4
    )


def test_what_fails_before_the_question_itself_is_sent_frees_the_key(
    build: Build, api: OpenAIBackend
) -> None:
    api.mode = Mode(listing=8.0)
    client = service(build, api, openai_model="", total_timeout=2.0).test_client()
    late = [ask(client), ask(client, key="")]
    assert [answer.headers["X-Error-Code"] for answer in late] == [
        "upstream_timeout"
    ] * 2
    # What was never asked is not kept; the first one's caller may be answered before its end is kept.
    wait_for(lambda: body_of(client.get("/conversations", headers=KEY)) == [])
    api.mode = Mode()
    assert body_of(ask(client))["code"] == 0 and len(api.completions) == 1


UNKNOWN = [
    (Mode(cut_after=3), 502, "upstream_cut"),
    (Mode(cut_after=0), 502, "upstream_cut"),
    (Mode(finish=None), 502, "upstream_cut"),
    (
        Mode(refusals=[(500, {}, b'{"error": {"message": "boom"}}')]),
        500,
        "upstream_refused",
    ),
    (
        Mode(refusals=[(502, {}, b'{"error": {"message": "bad gateway"}}')]),
        502,
        "upstream_refused",
    ),
    (
        Mode(refusals=[(504, {}, b'{"error": {"message": "too late"}}')]),
        504,
        "upstream_refused",
    ),
    (
        Mode(refusals=[(503, {"Content-Type": "text/html"}, b"<html>503</html>")]),
        503,
        "upstream_refused",
    ),
    (Mode(refusals=[(503, {}, b"reset before headers")]), 503, "upstream_refused"),
    (Mode(raw=b"garbage", content_type="text/plain"), 502, "upstream_failed"),
]


@pytest.mark.parametrize("status", [503, 529])
def test_a_server_that_says_it_is_busy_has_begun_nothing(
    client: FlaskClient, api: OpenAIBackend, status: int
) -> None:
    busy = b'{"error": {"message": "the model is loading", "code": %d}}' % status
    api.mode = Mode(refusals=[(status, {"Retry-After": "1"}, busy)] * 2)
    refused = [ask(client) for _ in range(2)]
    assert [answer.status_code for answer in refused] == [status] * 2
    assert refused[0].headers["Retry-After"] == "1"
    first = body_of(ask(client))
    assert body_of(ask(client)) == first and len(api.completions) == 3


def test_a_busy_chatgpt_frees_the_key(build: Build, backend: Backend) -> None:
    busy = b'{"detail": "Our systems are a bit busy at the moment."}'
    backend.mode = ChatGPTMode(refusals=[(503, {}, busy)])
    client = build(
        reverse_proxy=backend.url,
        access_token=("token-1",),
        authorization=("owner:the-client-key-0",),
    ).test_client()
    assert ask(client).status_code == 503
    body_of(ask(client))
    assert len(backend.turns) == 2


def test_curl_retries_past_a_busy_server(serve: Start) -> None:
    url = f"{serve('pywsgi').url}/ask"
    retry = ("-sSf", "--retry", "5", "--retry-all-errors", "--retry-delay", "0")
    key = ("-H", "Idempotency-Key: k1", "-H", "Accept: text/plain")
    prompt = ("--data-urlencode", "msg=hello offline:flaky=2")
    answer = curl(*retry, *key, *prompt, url)
    assert answer.returncode == 0
    assert answer.stdout.startswith("This is the offline responder")
    assert "Turn 1." in answer.stdout and answer.stdout.count("Turn") == 1
    again = curl(*retry, *key, *prompt, url)
    assert again.stdout == answer.stdout
    never = ("--data-urlencode", "msg=hello offline:status=503")
    lost = curl("-sSf", "--retry", "1", "--retry-delay", "1", *never, url)
    assert lost.returncode == 22 and lost.stdout == ""


def served(api: OpenAIBackend) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": api.url,
        "OPENAI_API_KEY": "sk-invented-1",
        "AUTHORIZATION": "the-client-key-0",
    }


def test_a_caller_that_waits_no_longer_hears_that_it_is_still_answered(
    serve: Start, api: OpenAIBackend
) -> None:
    api.mode = Mode(pace=0.2)
    service = serve("pywsgi", **served(api))
    fields = {"msg": "hello", "request_id": "k1", "timeout": "300"}
    url = f"{service.url}/ask"
    early = [requests.post(url, fields, headers=KEY, timeout=9) for _ in range(2)]
    for answer in early:
        assert (answer.status_code, answer.json()["error"]) == (504, "still_answering")
        assert answer.headers["Retry-After"] == "2"
    fields["timeout"] = "9000"
    late = requests.post(url, fields, headers=KEY, timeout=9)
    assert late.json()["code"] == 0 and len(api.completions) == 1


def test_a_keyed_ask_that_waits_for_its_conversation_says_so(
    serve: Start, api: OpenAIBackend
) -> None:
    service = serve("pywsgi", **served(api))
    url = f"{service.url}/ask"
    first = requests.post(url, {"msg": "hello"}, headers=KEY, timeout=9).json()
    place = {"conversation_id": first["data"]["conversation_id"]}
    api.mode = Mode(pace=0.2)
    with ThreadPoolExecutor(1) as pool:
        slow = {"msg": "slow", **place}
        running = pool.submit(requests.post, url, slow, headers=KEY, timeout=9)
        wait_for(lambda: len(api.completions) == 2)
        fields = {"msg": "late", "request_id": "k1", "timeout": "300", **place}
        late = requests.post(url, fields, headers=KEY, timeout=9)
        assert late.json()["error"] == "conversation_busy"
        assert running.result().json()["code"] == 0
    assert len(api.completions) == 2, "what gave up waiting was never asked"


def test_the_total_clock_gives_a_keyed_ask_up(
    build: Build, api: OpenAIBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "GRACE_SECONDS", 60.0)  # for a store that is slow
    api.mode = Mode(pace=0.3)
    client = service(build, api, total_timeout=0.5).test_client()
    answer = ask(client)
    assert (answer.status_code, answer.json["error"]) == (504, "upstream_timeout")


@pytest.mark.parametrize("place", ["conversation_id", "both ids"])
def test_a_repeat_may_know_the_ids_by_now(
    client: FlaskClient, api: OpenAIBackend, place: str
) -> None:
    first = body_of(ask(client))
    ids = {"conversation_id": first["data"]["conversation_id"]}
    if place == "both ids":
        ids["parent_id"] = first["data"]["parent_id"]
    assert body_of(ask(client, **ids)) == first and len(api.completions) == 1


@pytest.mark.parametrize(("mode", "status", "code"), UNKNOWN)
def test_an_unknown_outcome_is_never_asked_again(
    client: FlaskClient, api: OpenAIBackend, mode: Mode, status: int, code: str
) -> None:
    api.mode = copy.deepcopy(mode)
    first = ask(client)
    assert (first.status_code, first.json["error"]) == (status, code)
    api.mode = Mode()
    for _ in range(2):
        again = ask(client)
        assert (again.status_code, again.json["error"]) == (502, "outcome_unknown")
        assert first.json["msg"] in again.json["msg"], "the first failure is repeated"
    assert len(api.completions) == 1
    assert "error" in ask(client, stream="true").json


def test_an_error_within_the_stream_does_not_free_the_key(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    started = b'data: {"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]}\n\n'
    api.mode = Mode(
        raw=started + b'data: {"error": {"message": "slow down", "code": 429}}\n\n'
    )
    assert (
        ask(client).status_code == 429
        and ask(client).json["error"] == "outcome_unknown"
    )
    api.mode = Mode(refusals=[(408, {}, b"{}")])
    assert (
        ask(client, key="k2").status_code == 408
        and ask(client, key="k2").json["error"] == "outcome_unknown"
    )
    assert len(api.completions) == 2


def test_what_nests_too_deeply_is_refused(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    nested = "[" * 300 + "]" * 300
    body = '{"request_id": "k", "messages": [{"role": "user", "content": "x", "name": NESTED}]}'.replace(
        "NESTED", nested
    )
    answer = client.post(
        "/chat", data=body, content_type="application/json", headers=KEY, buffered=True
    )
    assert answer.status_code == 400 and not api.completions


def test_leases_are_renewed_while_keyed_asks_end(store: Store) -> None:
    """Renewing locks many rows and ending frees two of them: neither waits for the other."""
    stop, errors = threading.Event(), list[BaseException]()
    openings = [
        new_turn(
            f"{number}", idempotency_key=IdempotencyKey("owner", f"k{number}", "print")
        )
        for number in range(120)
    ]
    holders = [opening.holder for opening in openings]

    def renew() -> None:
        while not stop.is_set():
            try:
                store.renew(holders, 15)
            except RelayError as error:
                errors.append(error)

    def answer(part: int) -> None:
        for opening in openings[part::4]:
            try:
                assert (
                    opening.idempotency_key
                    and store.claim(opening.idempotency_key, opening.holder, 15).state
                    == "mine"
                )
                assert store.open_turn(opening, 15) and store.dispatch(
                    opening.idempotency_key, opening.holder
                )
                end(store, opening, "x", record=KeyRecord("done", {"text": "x"}))
            except BaseException as error:
                errors.append(error)

    renewing = threading.Thread(target=renew)
    answering = [threading.Thread(target=answer, args=(part,)) for part in range(4)]
    for thread in (renewing, *answering):
        thread.start()
    for thread in answering:
        thread.join(60)
    stop.set()
    renewing.join(10)
    assert errors == []


def test_a_forged_token_does_not_open_anothers_answers(
    build: Build, backend: Backend
) -> None:
    """What a token claims is unverified: it reads nothing from the store before the upstream accepted it."""
    client = build(reverse_proxy=backend.url).test_client()
    real, forged = jwt(sub="alice", jti="real"), jwt(sub="alice", jti="forged")
    first = body_of(
        ask(client, headers={"Authorization": f"Bearer {real}"}, msg="alices secret")
    )["data"]
    backend.mode.refuse_tokens = {forged: (401, {}, b'{"detail": "Unauthorized"}')}
    mallory = {"Authorization": f"Bearer {forged}"}
    assert ask(client, headers=mallory, msg="alices secret").status_code == 401
    assert client.get("/conversations?q=secret", headers=mallory).status_code == 401
    assert (
        client.get(
            f"/conversation/{first['conversation_id']}?format=markdown", headers=mallory
        ).status_code
        == 401
    )
    [item] = body_of(
        client.get(
            "/conversations?q=secret", headers={"Authorization": f"Bearer {real}"}
        )
    )
    assert item["title"] == "alices secret"


def test_a_refusal_is_an_outcome(client: FlaskClient, api: OpenAIBackend) -> None:
    api.mode = Mode(refusal="I can't.")
    first, again = ask(client), ask(client)
    assert first.json == again.json and (again.status_code, again.json["error"]) == (
        403,
        "refused",
    )
    assert len(api.completions) == 1


def test_a_repeat_waits_while_the_first_runs(
    client: FlaskClient, api: OpenAIBackend, build: Build
) -> None:
    api.mode = Mode(delay=0.5)
    app = client.application
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda number: ask(
                    app.test_client(), stream="" if number % 2 else "true"
                ),
                range(8),
            )
        )
    assert len(api.completions) == 1
    bodies = [answer.json for answer in answers if answer.is_json]
    assert len(bodies) == 4 and all(body == bodies[0] for body in bodies)
    for answer in answers:
        assert bodies[0]["data"]["parent_id"] in answer.text


def test_a_keyed_ask_waits_for_a_busy_conversation(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    first = body_of(ask(client, key="k0"))["data"]
    api.mode = Mode(delay=0.4)
    app = client.application
    fields = {"conversation_id": first["conversation_id"]}
    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(
                lambda key: body_of(ask(app.test_client(), key=key, **fields)),
                ["k1", "k2", "k1"],
            )
        )
    assert answers[0] == answers[2] != answers[1] and len(api.completions) == 3


def test_a_deleted_answer_is_not_replayed(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    first = body_of(ask(client))["data"]
    body_of(
        client.post(f"/conversation/{first['conversation_id']}/delete", headers=KEY)
    )
    again = ask(client)
    assert (
        again.status_code == 404
        and again.json["error"] == "no_conversation"
        and len(api.completions) == 1
    )


def test_chat_keeps_nothing_but_what_the_key_needs(
    client: FlaskClient, api: OpenAIBackend
) -> None:
    def chat() -> TestResponse:
        payload = {"messages": [{"role": "user", "content": "hi"}]}
        return client.post(
            "/chat",
            json=payload,
            headers={**KEY, "Idempotency-Key": "k"},
            buffered=True,
        )

    first, again = chat(), chat()
    content = [line for line in first.text.split("\n") if line]
    assert (
        "".join(json.loads(line)["content"] for line in content[:-1])
        == "Turn 1. You said: hi — 你好 🙂."
    )
    assert (
        "Turn 1. You said: hi — 你好 🙂." in again.text
        and again.headers["Idempotent-Replayed"] == "true"
    )
    assert (
        len(api.completions) == 1
        and body_of(client.get("/conversations", headers=KEY)) == []
    )


def test_chatgpt_is_asked_once_too(build: Build, backend: Backend) -> None:
    client = build(
        reverse_proxy=backend.url,
        access_token=("t",),
        authorization=("the-client-key-0",),
    ).test_client()
    first, again = ask(client), ask(client)
    assert body_of(first) == body_of(again) and len(backend.turns) == 1
    later = body_of(
        ask(client, key="k2", conversation_id=body_of(first)["data"]["conversation_id"])
    )
    assert "Turn 2." in later["data"]["message"]


def test_what_is_deleted_while_it_is_answered_stays_deleted(
    build: Build, backend: Backend
) -> None:
    """The index row of a conversation at ChatGPT does not come back, nor is the answer kept for its key."""
    client = build(
        reverse_proxy=backend.url,
        access_token=("t",),
        authorization=("a:the-client-key-0", "b:others-client-key"),
    ).test_client()
    backend.mode.pace = 0.15
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(ask, client)
        listed: list[Any] = []
        while not listed and not answering.done():
            listed = body_of(client.get("/conversations", headers=KEY))
        assert (
            body_of(
                client.post(f"/conversation/{listed[0]['id']}/delete", headers=KEY)
            )["code"]
            == 0
        )
        assert not answering.done() and body_of(answering.result())["code"] == 0
    assert body_of(client.get("/conversations", headers=KEY)) == []
    again = ask(client)
    assert (
        again.status_code == 404
        and again.json["error"] == "no_conversation"
        and len(backend.turns) == 1
    )


def test_what_is_deleted_before_its_next_answer_begins_stays_deleted(
    build: Build, backend: Backend
) -> None:
    client = build(
        reverse_proxy=backend.url,
        access_token=("t",),
        authorization=("a:the-client-key-0", "b:others-client-key"),
    ).test_client()
    conversation_id = body_of(ask(client))["data"]["conversation_id"]
    backend.mode.quiet = 0.8
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(ask, client, "k2", conversation_id=conversation_id)
        wait_for(lambda: len(backend.turns) == 2)
        assert (
            body_of(
                client.post(f"/conversation/{conversation_id}/delete", headers=KEY)
            )["code"]
            == 0
        )
        assert body_of(answering.result())["code"] == 0
    assert body_of(client.get("/conversations", headers=KEY)) == []
    again = ask(client, "k2", conversation_id=conversation_id)
    assert again.status_code == 404 and len(backend.turns) == 2


@pytest.mark.parametrize("status", [404, 401, 429])
def test_an_accepted_question_is_not_asked_again_though_its_answer_is_refused(
    build: Build, backend: Backend, status: int
) -> None:
    """ChatGPT handed the answer off, and refuses every poll for it."""
    client = build(
        reverse_proxy=backend.url,
        access_token=("t",),
        authorization=("the-client-key-0",),
    ).test_client()
    backend.mode = ChatGPTMode(
        hand_off=True, refuse_looks=(status, {}, b'{"detail": "no"}')
    )
    first = ask(client)
    assert (
        first.status_code == status
        and ask(client).json["error"] == "outcome_unknown"
        and len(backend.turns) == 1
    )
    backend.mode = ChatGPTMode(
        raw=b'data: {"conversation_id": "c1", "message": null}\n\ndata: {"error": "x", "error_code": "rate_limit_exceeded"}\n\n'
    )
    assert (
        ask(client, "k2").status_code == 429
        and ask(client, "k2").json["error"] == "outcome_unknown"
    )
    assert len(backend.turns) == 2


def test_the_states_of_a_key_in_the_store(database: str, tmp_path: Any) -> None:
    from relay.server import in_place

    clock = Clock()
    store = Store(database or f"sqlite:///{tmp_path}/x.db", in_place, clock)
    claim, other = (
        IdempotencyKey("owner", "k", "print"),
        IdempotencyKey("owner", "k", "another"),
    )
    try:
        assert store.claim(claim, "one", 15).state == "mine"
        assert (
            store.claim(claim, "two", 15).state == "running"
            and store.claim(other, "two", 15).state == "other"
        )
        clock.now += 16
        assert (
            store.claim(other, "zero", 0).state == "mine"
            and store.claim(claim, "two", 15).state == "mine"
        ), "not sent"
        assert not store.dispatch(claim, "one") and store.dispatch(claim, "two")
        clock.now += 16
        assert store.claim(claim, "three", 15).state == "unknown", (
            "its process died after it sent"
        )
        assert store.claim(claim, "four", 15).state == "unknown"
        slept = new_turn("y", idempotency_key=claim, answer_id="two")
        assert store.open_turn(slept, 15) and not store.dispatch(claim, "two"), (
            "it is never sent again"
        )
        end(store, slept, record=KeyRecord("done", {"text": "late"}))
        assert store.claim(claim, "four", 15) == KeyRecord("done", {"text": "late"}), (
            "that process lives after all"
        )
        clock.now += 24 * 3600
        opening = new_turn("x", idempotency_key=claim)
        assert store.claim(
            claim, opening.holder, 15
        ).state == "mine" and store.open_turn(opening, 15)
        assert store.dispatch(claim, opening.holder)
        end(
            store,
            opening,
            "Hello",
            record=KeyRecord(
                "done", {"text": "Hello", "conversation_id": opening.conversation_id}
            ),
        )
        assert store.claim(claim, "five", 15).outcome["text"] == "Hello"
        clock.now += 24 * 3600 - 1
        assert store.claim(claim, "five", 15).state == "done"
        store.tidy()
        clock.now += 2
        store.tidy()
        assert store.claim(other, "six", 15).state == "mine"
    finally:
        store.close()


def test_one_of_many_claims_a_key(store: Store) -> None:
    claim = IdempotencyKey("owner", "k", "print")
    states: list[str] = []
    errors: list[RelayError] = []

    def take() -> None:
        try:
            states.append(store.claim(claim, str(uuid.uuid4()), 15).state)
        except RelayError as error:
            errors.append(error)

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors and sorted(states) == ["mine"] + ["running"] * 19


def settings(api: OpenAIBackend, database: str) -> dict[str, str]:
    defaults = {
        "OPENAI_BASE_URL": api.url,
        "OPENAI_API_KEY": "sk-invented-1",
        "OPENAI_MODEL": "tiny-1",
    }
    return {**defaults, "AUTHORIZATION": "the-client-key-0", "DATABASE_URL": database}


def hang_up(service: Service, api: OpenAIBackend, key: str) -> None:
    """Ask, and leave once the upstream has the question."""
    count = len(api.completions)
    body = b"msg=hello"
    with socket.create_connection(("127.0.0.1", service.port)) as caller:
        head = f"POST /ask HTTP/1.1\r\nHost: x\r\nAuthorization: the-client-key-0\r\nIdempotency-Key: {key}\r\n"
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        caller.sendall(head.encode() + body)
        wait_for(lambda: len(api.completions) > count)


def keyed(service: Service, key: str, **fields: str) -> requests.Response:
    headers = {"Authorization": "the-client-key-0", "Idempotency-Key": key}
    return requests.post(
        f"{service.url}/ask",
        data={"msg": "hello", **fields},
        headers=headers,
        timeout=30,
    )


SERVERS = pytest.mark.parametrize(
    ("database", "server"),
    [("sqlite", "pywsgi"), ("sqlite", "gunicorn"), ("postgresql", "pywsgi")],
    indirect=["database"],
)


@SERVERS
def test_a_keyed_ask_outlives_its_caller(
    serve: Start, api: OpenAIBackend, database: str, server: str
) -> None:
    api.mode = Mode(quiet=1.0)
    service = serve(server, **settings(api, database))
    hang_up(service, api, "k")
    answer = keyed(service, "k")
    assert (
        answer.json()["data"]["message"].startswith("Turn 1.")
        and answer.headers["Idempotent-Replayed"] == "true"
    )
    timed_out = keyed(service, "k2", timeout="300")
    assert timed_out.status_code == 504 and "same key" in timed_out.json()["msg"]
    assert keyed(service, "k2").status_code == 200 and len(api.completions) == 2
    assert all(asked.left is None for asked in api.completions)
    assert '"outcome":"caller_left"' in service.logged()


@SERVERS
def test_a_stop_lets_a_keyed_ask_end(
    serve: Start, api: OpenAIBackend, database: str, server: str
) -> None:
    api.mode = Mode(quiet=2.0)
    service = serve(server, **settings(api, database))
    hang_up(service, api, "k")
    wait_for(lambda: '"outcome":"caller_left"' in service.logged())
    service.terminate()
    service.process.wait(20)
    service.start()
    answer = keyed(service, "k")
    assert (
        answer.status_code == 200
        and answer.headers["Idempotent-Replayed"] == "true"
        and len(api.completions) == 1
    )
    assert "Traceback" not in service.logged()


@SERVERS
def test_a_kill_in_the_middle_leaves_an_unknown_outcome(
    serve: Start, api: OpenAIBackend, database: str, server: str
) -> None:
    api.mode = Mode(quiet=30.0)
    service = serve(server, **settings(api, database))
    hang_up(service, api, "k")
    service.kill()
    api.mode = Mode()
    service.start()
    began = time.monotonic()
    answer = keyed(service, "k")
    assert (answer.status_code, answer.json()["error"]) == (
        502,
        "outcome_unknown",
    ) and len(api.completions) == 1
    assert time.monotonic() - began < 25, "the dead process's lease runs out by itself"


def test_two_processes_ask_once(
    serve: Start, api: OpenAIBackend, database: str
) -> None:
    api.mode = Mode(quiet=0.3)
    services = [serve(**settings(api, database)) for _ in range(2)]
    for number in range(5):
        with ThreadPoolExecutor(16) as pool:
            answers = [
                pool.submit(keyed, services[caller % 2], f"k{number}")
                for caller in range(16)
            ]
            bodies = [answer.result().json() for answer in answers]
        assert all(answer == bodies[0] and answer["code"] == 0 for answer in bodies)
    assert len(api.completions) == 5


def test_a_killed_process_leaves_its_ask_to_another(
    serve: Start, api: OpenAIBackend, database: str
) -> None:
    """Killed before anything was sent, while it waited for a busy conversation: the key is free."""
    one, two = (serve(**settings(api, database)) for _ in range(2))
    first = keyed(one, "k0").json()["data"]["conversation_id"]
    api.mode = Mode(quiet=4.0)
    busy = threading.Thread(
        target=keyed, args=(two, "k1"), kwargs={"conversation_id": first}
    )
    busy.start()
    wait_for(lambda: len(api.completions) == 2)
    waiting = threading.Thread(
        target=lambda: pytest.raises(
            requests.RequestException, keyed, one, "k2", conversation_id=first
        )
    )
    waiting.start()
    time.sleep(0.5)  # nothing outside the process shows that it waits
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait(10)
    waiting.join(10)
    assert keyed(two, "k2", conversation_id=first).json()["code"] == 0
    busy.join(20)
    assert len(api.completions) == 3
