"""The header x-api-key: as Authorization: Bearer, on every route."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from tests.chatgpt_backend import Backend
from tests.processes import curl
from tests.scripted import Scripted
from tests.tokens import jwt

Build = Callable[..., Flask]
KEY = "the-client-key-of-alice"
OTHER = "the-client-key-of-bob"
KEYS = (f"alice:{KEY}", f"bob:{OTHER}")
BASIC = base64.b64encode(f"anyone:{KEY}".encode()).decode()


def ask(app: Flask, headers: dict[str, str], **fields: str) -> Any:
    return app.test_client().post("/ask", data={"msg": "x", **fields}, headers=headers)


@pytest.mark.parametrize("name", ["x-api-key", "X-API-Key"])
def test_a_client_key_in_it_counts_on_every_route(build: Build, name: str) -> None:
    app = build(Scripted(needs_client_key=True), authorization=KEYS)
    client = app.test_client()
    headers = {name: f" {KEY} "}
    assert client.post("/send_message", data={"prompt": "x"}, headers=headers).json
    assert ask(app, headers).status_code == 200
    lines = client.post("/chat", json={"prompt": "x"}, headers=headers)
    assert lines.status_code == 200 and lines.data
    for path in ("/conversations", "/models", "/readyz"):
        assert client.get(path, headers=headers).status_code == 200, path
    assert len(client.get("/conversations", headers=headers).json) == 2
    bobs = client.get("/conversations", headers={name: OTHER})
    assert bobs.status_code == 200 and bobs.json == []


def test_a_wrong_key_in_it_is_refused_and_counted(build: Build) -> None:
    app = build(Scripted(needs_client_key=True), authorization=KEYS)
    client = app.test_client()
    wrong = {"x-api-key": "cw-wrong"}
    statuses = [client.get("/models", headers=wrong).status_code for _ in range(22)]
    assert statuses == [401] * 20 + [429] * 2
    assert client.get("/models", headers={"x-api-key": KEY}).status_code == 200


def test_a_callers_own_token_in_it_is_spent(build: Build, backend: Backend) -> None:
    app = build(
        reverse_proxy=backend.url, access_token=("token-1",), authorization=KEYS
    )
    own = jwt(sub="somebody")
    assert ask(app, {"x-api-key": own}).status_code == 200
    [turn] = backend.turns
    assert turn.headers["authorization"] == f"Bearer {own}"
    assert "x-api-key" not in turn.headers
    both = {"x-api-key": KEY}
    assert ask(app, both, access_token=own).status_code == 200, "a key and a token"
    assert backend.turns[1].headers["authorization"] == f"Bearer {own}"


@pytest.mark.parametrize(
    "authorization",
    [f"Bearer {KEY}", KEY, f"Basic {BASIC}", "", "Bearer ", "Basic Og=="],
)
def test_both_headers_may_show_the_same(build: Build, authorization: str) -> None:
    app = build(Scripted(needs_client_key=True), authorization=KEYS)
    headers = {"Authorization": authorization, "x-api-key": KEY}
    assert ask(app, headers).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [f"Bearer {OTHER}", f"Bearer {KEY}x", "wrong", "Digest x", "Basic eDp5", "Basic x"],
)
def test_both_with_different_credentials_are_refused(
    build: Build, authorization: str
) -> None:
    upstream = Scripted(needs_client_key=True)
    app = build(upstream, authorization=KEYS)
    headers = {"Authorization": authorization, "x-api-key": KEY}
    for answer in (
        ask(app, headers),
        app.test_client().get("/conversations", headers=headers),
    ):
        assert (answer.status_code, answer.json["error"]) == (400, "bad_request")
        assert "Authorization" in answer.json["msg"]
        assert KEY not in answer.text and OTHER not in answer.text
    assert upstream.asked == []
    assert app.test_client().get("/healthz", headers=headers).status_code == 200


def test_an_empty_one_is_none(build: Build) -> None:
    app = build(Scripted(needs_client_key=True), authorization=KEYS)
    assert ask(app, {"x-api-key": " "}).status_code == 401
    assert ask(app, {"x-api-key": "", "Authorization": KEY}).status_code == 200


def test_a_large_body_is_read_with_it(build: Build) -> None:
    app = build(Scripted(needs_client_key=True), authorization=KEYS)
    large = "x" * 100_000
    assert ask(app, {"x-api-key": KEY}, prompt_suffix=large).status_code == 200
    assert ask(app, {}, prompt_suffix=large, access_token=KEY).status_code == 401


def test_curl_asks_with_it(serve: Callable[..., Any]) -> None:
    service = serve(AUTHORIZATION=f"alice:{KEY}", LOG_LEVEL="debug")
    url = f"{service.url}/ask"
    asked = curl("-f", "-H", f"x-api-key: {KEY}", "-d", "msg=hello", url)
    assert asked.returncode == 0 and '"code":0' in asked.stdout
    differs = curl("-H", f"x-api-key: {KEY}", "-u", ":another-key", "-d", "msg=x", url)
    assert '"error":"bad_request"' in differs.stdout
    assert KEY not in service.logged()
