"""What ChatGPT wants before a question, against a strict backend: what is sent, what is demanded, what is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.settings import Settings
from relay.transports.selection import open_transports
from relay.upstreams import chatgpt_web
from relay.upstreams.chatgpt_web.gateways import GatewayMemory
from relay.upstreams.chatgpt_web.sentinel import Requirements, arkose_call
from relay.upstreams.http import fetch
from tests.chatgpt_backend import Backend, Mode
from tests.replies import body_of
from tests.sentinel import ArkoseService, Sentinel
from tests.tokens import jwt
from tests.upstreams.test_web_failures import CHALLENGE, EXPIRED

Start = Callable[..., FlaskClient]
KEY = {"Authorization": "Bearer the-client-key-0"}
TOKEN = jwt(sub="the-owners")
OWN = jwt(sub="their-own")
HTML = {"Content-Type": "text/html", "cf-mitigated": "challenge"}


@pytest.fixture
def start(build: Callable[..., Flask], backend: Backend) -> Start:
    def make(**settings: Any) -> FlaskClient:
        defaults = {
            "chatgpt_base_url": (backend.url,),
            "access_token": (TOKEN,),
            "authorization": ("the-client-key-0",),
        }
        return build(**{**defaults, **settings}).test_client()

    return make


def ask(client: FlaskClient, **fields: Any) -> TestResponse:
    payload = {"msg": "hello", **fields}
    return client.post("/ask", data=payload, headers=KEY, buffered=True)


def text_of(response: TestResponse) -> str:
    return str(body_of(response)["data"]["message"])


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("demand", ["none", "proof", "arkose"])
def test_each_question_has_a_token_of_its_own(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    arkose: ArkoseService,
    demand: str,
    two_step: bool,
) -> None:
    sentinel.demand, sentinel.two_step = demand, two_step
    client = start(arkose_token_url=arkose.url)
    first = body_of(ask(client))["data"]
    ids = {"conversation_id": first["conversation_id"], "parent_id": first["parent_id"]}
    assert "Turn 2." in text_of(ask(client, **ids))
    assert len(backend.turns) == 2
    steps = 2 if two_step else 1
    # of the form that the backend does not have, it is asked once
    assert len(backend.preflights) == 2 * steps + two_step
    assert len(arkose.asked) == (2 if demand == "arkose" else 0)


def test_the_rest_of_an_answer_has_a_token_too(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "proof"
    backend.mode = Mode(length_stops=1)
    assert text_of(ask(start())).endswith("and the rest of it.")
    assert len(backend.turns) == 2 and len(backend.preflights) == 2


def test_a_question_that_waits_for_a_busy_account_gets_a_new_token(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    busy = b'{"detail": "Only one message at a time."}'
    backend.mode = Mode(refusals=[(429, {"Content-Type": "application/json"}, busy)])
    assert "Turn 1." in text_of(ask(start()))
    assert len(backend.turns) == 2 and len(backend.preflights) == 2


def test_a_token_that_expired_is_refused_there(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.lifetime = -1
    assert ask(start()).status_code == 403


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        ("turnstile", "Turnstile"),
        ("so", "session observer"),
        ("force_login", "ACCESS_TOKEN"),
        ("other", "only a browser"),
        ("arkose", "ARKOSE_TOKEN_URL"),
    ],
)
@pytest.mark.parametrize("token", [None, OWN], ids=["the server's", "their own"])
def test_what_only_a_browser_can_give_ends_the_ask_and_the_next_is_not_sent(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    demand: str,
    words: str,
    token: str | None,
) -> None:
    sentinel.demand = demand
    client = start()
    own = {"access_token": token} if token else {}
    response = ask(client, **own)
    assert response.status_code == 403 and words in response.text
    assert response.headers["Retry-After"] == "300"
    assert response.headers["X-Error-Source"] == "upstream"
    assert len(backend.asked) == 1 and not backend.turns
    again = ask(client, **own)
    assert again.status_code == 403 and "browser check" in again.text
    assert 290 <= int(again.headers["Retry-After"]) <= 300
    assert len(backend.asked) == 1, "it reached nobody"
    sentinel.demand = "none"
    other = {"access_token": jwt(sub="somebody-else")}
    assert "Turn 1." in text_of(ask(client, **other)), "others do not rest"


def test_another_account_of_the_server_may_be_let_through(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "turnstile"
    client = start(access_token=(TOKEN, jwt(sub="second")))
    assert ask(client).status_code == 403
    assert len(backend.preflights) == 2
    resting = client.get("/readyz", headers=KEY).text
    assert resting.count("account-") == 2


@pytest.mark.parametrize(
    ("demand", "status", "words"),
    [("too hard", 403, "POW_DIFFICULTY"), ("unreadable", 502, "proof of work")],
)
def test_a_proof_that_is_not_made(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    demand: str,
    status: int,
    words: str,
) -> None:
    sentinel.demand = demand
    response = ask(start())
    assert response.status_code == status and words in response.text
    assert not backend.turns


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ((401, JSON, EXPIRED), 401, "token_rejected"),
        ((403, HTML, CHALLENGE), 403, "challenged"),
        ((403, JSON, b'{"detail": "Unusual activity"}'), 403, "upstream_refused"),
        ((429, JSON, b'{"detail": {"clears_in": 60}}'), 429, "rate_limited"),
        ((500, JSON, b'{"detail": "Internal Server Error"}'), 500, "upstream_refused"),
        ((502, {"Content-Type": "text/html"}, b"<html>bad"), 502, "upstream_refused"),
        ((200, JSON, b"{}"), 502, "upstream_failed"),
        ((200, JSON, b'{"token": "a\\nb"}'), 502, "upstream_failed"),
        ((200, JSON, b'{"token": 1}'), 502, "upstream_failed"),
        ((200, JSON, b"[1]"), 502, "upstream_failed"),
        ((200, JSON, b"\xff\x00"), 502, "upstream_failed"),
        ((200, {"Content-Type": "text/html"}, b"<html>hello"), 502, "upstream_failed"),
        ((302, {"Location": "/x"}, b""), 502, "upstream_failed"),
    ],
)
def test_its_failures_are_the_asks_own_and_nothing_was_asked(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    caplog: pytest.LogCaptureFixture,
    answer: tuple[int, dict[str, str], bytes],
    status: int,
    code: str,
) -> None:
    sentinel.answer = answer
    caplog.set_level(logging.INFO)
    client = start()
    response = ask(client, idempotency_key="k-1")
    assert response.status_code == status, response.text
    logged = [
        record.__dict__["fields"]
        for record in caplog.records
        if "fields" in record.__dict__
    ]
    assert logged[-1]["outcome"] == code
    assert not backend.turns
    backend.sentinel = Sentinel()
    if code not in ("token_rejected", "rate_limited"):
        again = ask(client, idempotency_key="k-1")
        assert "Turn 1." in text_of(again), "the key is free: nothing was asked"


def test_a_pre_flight_that_is_cut_asked_nothing(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.cut = True
    client = start()
    assert ask(client, idempotency_key="k-1").status_code == 502
    sentinel.cut = False
    assert "Turn 1." in text_of(ask(client, idempotency_key="k-1"))


def test_a_pre_flight_that_is_silent_ends_by_the_clock(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.silent = True
    client = start(first_byte_timeout=0.5)
    begun = time.monotonic()
    assert ask(client).status_code == 504
    assert time.monotonic() - begun < 3 and not backend.turns


def test_a_slow_pre_flight_is_waited_for(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.delay = 1.0
    assert "Turn 1." in text_of(ask(start()))


@pytest.mark.parametrize("status", [404, 405])
def test_a_backend_without_the_route_is_asked_without_it_for_a_while(
    start: Start, backend: Backend, sentinel: Sentinel, status: int
) -> None:
    sentinel.answer = (status, JSON, b'{"detail": "Not Found"}')
    sentinel.is_lax = True
    client = start()
    for _ in range(3):
        assert "Turn 1." in text_of(ask(client))
    assert len(backend.preflights) == 2, "one for each form, once"


@pytest.mark.parametrize("setting", ["conversation_only", "reverse_proxy"])
def test_there_is_none_where_somebody_else_takes_care_of_it(
    start: Start, backend: Backend, setting: str
) -> None:
    values = {"conversation_only": True, "reverse_proxy": backend.url}
    assert "Turn 1." in text_of(ask(start(**{setting: values[setting]})))
    assert len(backend.asked) == 1


def test_there_is_none_at_a_place_that_a_caller_names(
    start: Start, backend: Backend
) -> None:
    client = start(
        chatgpt_base_url=("http://127.0.0.1:1",), reverse_proxy_allow=(backend.url,)
    )
    assert "Turn 1." in text_of(ask(client, reverse_proxy=backend.url))
    assert len(backend.asked) == 1


def test_passages_have_none(start: Start, backend: Backend, sentinel: Sentinel) -> None:
    client = start()
    assert client.get("/backend-api/me", headers=KEY, buffered=True).status_code == 200
    assert not backend.preflights


def test_the_arkose_service_learns_nothing_of_the_account(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    arkose: ArkoseService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    sentinel.demand = "arkose"
    backend.cookies = ["_puid=secret-cookie; Path=/"]
    client = start(arkose_token_url=arkose.url, auth_key="secret-gateway-key")
    assert "Turn 1." in text_of(ask(client))
    sentinel.persona = "chatgpt-freeaccount"
    assert "Turn 1." in text_of(ask(client))
    blob = "secret-blob-of-arkose"
    assert [body for _, body in arkose.asked] == [
        {"blob": blob, "method": "chat4"},
        {"blob": blob, "method": "chat35"},
    ]
    for headers, _ in arkose.asked:
        said = str(headers)
        assert TOKEN not in said and "secret" not in said
        assert not {"authorization", "cookie", "authkey"} & headers.keys()
    logged = caplog.text
    assert blob not in logged and "secret-arkose" not in logged and TOKEN not in logged


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (200, b'{"token": ""}'),
        (200, b'{"token": "a\\nb"}'),
        (200, b'{"token": "x", "solved": false}'),
        (200, b"not JSON"),
        (302, b""),
    ],
)
def test_an_arkose_service_that_fails_is_named(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    arkose: ArkoseService,
    answer: tuple[int, bytes],
) -> None:
    sentinel.demand = "arkose"
    arkose.answer = answer
    client = start(arkose_token_url=arkose.url)
    response = ask(client)
    assert response.status_code == 403 and "ARKOSE_TOKEN_URL" in response.text
    assert "secret-blob" not in response.text and not backend.turns
    arkose.answer = None
    assert "Turn 1." in text_of(ask(client)), "the account does not rest for it"


def test_the_operators_arkose_service_is_asked_for_callers_with_a_key_alone(
    start: Start, sentinel: Sentinel, arkose: ArkoseService
) -> None:
    sentinel.demand = "arkose"
    client = start(arkose_token_url=arkose.url)
    headers = {"Authorization": f"Bearer {OWN}"}
    refused = client.post("/ask", data={"msg": "x"}, headers=headers, buffered=True)
    assert refused.status_code == 403 and "client key" in refused.text
    assert not arkose.asked
    assert ask(client, access_token=OWN).status_code == 200 and arkose.asked


def test_the_operators_arkose_service_is_asked_past_all_proxies(
    arkose: ArkoseService,
) -> None:
    """It is on this machine or beside it, where no proxy leads."""
    settings = Settings(proxy_url=("http://127.0.0.1:1",))
    proxied = open_transports(settings).chatgpt
    transport = chatgpt_web.transport_for(settings, proxied, GatewayMemory())
    call = arkose_call(arkose.url, Requirements("token"))
    assert fetch(transport, call, 10).status == 200 and arkose.asked
    transport.close()


def test_an_arkose_service_that_is_gone_is_named(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "arkose"
    response = ask(start(arkose_token_url="http://127.0.0.1:1/token"))
    assert response.status_code == 403 and "ARKOSE_TOKEN_URL" in response.text


def test_an_arkose_service_that_is_silent_is_waited_for_no_longer_than_its_time(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    arkose: ArkoseService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.upstreams.chatgpt_web.sentinel.ARKOSE_SECONDS", 0.5)
    sentinel.demand = "arkose"
    arkose.silent.set()
    begun = time.monotonic()
    response = ask(start(arkose_token_url=arkose.url))
    assert response.status_code == 403 and "did not answer" in response.text
    assert time.monotonic() - begun < 3 and not backend.turns


def test_a_proof_has_its_time(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.upstreams.chatgpt_web.sentinel.PROOF_SECONDS", 0.3)
    sentinel.demand = "endless"
    begun = time.monotonic()
    response = ask(start(pow_difficulty="00000000"))
    assert response.status_code == 403 and "none was found in time" in response.text
    assert time.monotonic() - begun < 2 and not backend.turns


ANONYMOUS = {"upstream": "chatgpt-web", "access_token": ()}


def test_without_an_account_a_device_asks(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    backend.anonymous = True
    sentinel.demand, sentinel.persona = "proof", "chatgpt-noauth"
    client = start(**ANONYMOUS)
    first = body_of(ask(client))["data"]
    ids = {"conversation_id": first["conversation_id"], "parent_id": first["parent_id"]}
    assert "Turn 2." in text_of(ask(client, **ids))
    paths = {asked.path for asked in backend.asked}
    assert paths == {
        "/backend-anon/conversation",
        "/backend-anon/sentinel/chat-requirements",
    }
    assert len({asked.headers["oai-device-id"] for asked in backend.asked}) == 1
    listed = client.get("/conversations", headers=KEY)
    assert [row["id"] for row in body_of(listed)] == [first["conversation_id"]]
    assert "Authorization" not in str(backend.asked)


def test_without_an_account_a_client_key_is_needed(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    backend.anonymous = True
    client = start(**ANONYMOUS)
    response = client.post("/ask", data={"msg": "hello"}, buffered=True)
    assert response.status_code == 401 and not backend.asked
    opened = start(**ANONYMOUS, authorization=("none",))
    assert "Turn 1." in text_of(opened.post("/ask", data={"msg": "hello"}))


def test_the_use_without_an_account_is_the_owners(
    build: Callable[..., Flask], backend: Backend
) -> None:
    settings = {"chatgpt_base_url": (backend.url,), "upstream": "chatgpt-web"}
    guarded = build(**settings).extensions["service"]
    assert guarded.upstreams["chatgpt-web"].needs_client_key
    assert guarded.access.needs_key, "a key was made"
    proxied = build(**settings, reverse_proxy=backend.url).extensions["service"]
    assert not proxied.upstreams["chatgpt-web"].needs_client_key


def test_without_upstream_named_nobody_asks_without_an_account(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    backend.anonymous = True
    client = start(access_token=())
    assert ask(client).status_code == 200 and not backend.asked


@pytest.mark.parametrize("demand", ["force_login", "none"])
def test_without_an_account_a_refusal_says_what_to_do(
    start: Start, backend: Backend, sentinel: Sentinel, demand: str
) -> None:
    backend.anonymous = True
    sentinel.demand = demand
    if demand == "none":
        sentinel.answer = (401, JSON, b'{"detail": "Unauthorized"}')
    response = ask(start(**ANONYMOUS))
    assert response.status_code == 403 and "ACCESS_TOKEN" in response.text
    assert not backend.turns


def test_a_callers_own_token_asks_with_its_account(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    backend.anonymous = True
    assert "Turn 1." in text_of(ask(start(**ANONYMOUS), access_token=OWN))
    [turn] = backend.turns
    assert turn.path == "/backend-api/conversation"
    assert "oai-device-id" not in turn.headers and "cookie" not in turn.headers


def test_a_passage_goes_without_an_account_too(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    backend.anonymous = True
    client = start(**ANONYMOUS)
    for path in ("/backend-anon/models", "/backend-api/models"):
        assert client.get(path, headers=KEY, buffered=True).status_code == 200
    assert {asked.path for asked in backend.asked} == {"/backend-anon/models"}
