"""Signing in, at every route, through the running service."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from flask import Flask

from relay.web.chatgpt_routes import PREFIXES
from tests.processes import Service
from tests.signin_pages import EMAIL, LOGIN, PASSWORD, SignInPages

Start = Callable[..., Service]
CREDENTIALS = {"username": EMAIL, "password": PASSWORD}


@pytest.fixture
def app(build: Callable[..., Flask], pages: SignInPages) -> Flask:
    return build(
        chatgpt_base_url=(pages.chatgpt.url,),
        auth_base_url=pages.auth.url,
        platform_base_url=pages.platform.url,
        authorization=("the-client-key-0",),
    )


@pytest.mark.parametrize("kind", ["json", "data", "files"])
@pytest.mark.parametrize(
    "path", [f"{prefix}/login" for prefix in PREFIXES] + ["/imitate/login"]
)
def test_each_login_gives_an_access_token(
    app: Flask, pages: SignInPages, path: str, kind: str
) -> None:
    """No key is asked for, and a body may be JSON or either form."""
    body: dict[str, Any] = {"data": CREDENTIALS}
    if kind == "json":
        body = {"json": CREDENTIALS}
    if kind == "files":
        body["content_type"] = "multipart/form-data"
    answer = app.test_client().post(path, **body)
    assert answer.json == {"accessToken": pages.tokens[0]}
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/platform/login", "/platform/v1/login"])
def test_the_platforms_login_passes_the_dashboards_json(
    app: Flask, pages: SignInPages, path: str
) -> None:
    answer = app.test_client().post(path, json=CREDENTIALS)
    assert answer.data == LOGIN and answer.mimetype == "application/json"
    assert pages.sign_ins == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": EMAIL},
        {"password": PASSWORD},
        {"email": " ", "password": "x"},
        {"email": EMAIL, "password": ""},
        {"email": EMAIL, "password": PASSWORD, "proxy": "http://198.51.100.1:1"},
        {"email": EMAIL, "password": ["x"]},
    ],
)
def test_what_is_incomplete_is_sent_nowhere(
    app: Flask, pages: SignInPages, body: dict[str, Any]
) -> None:
    client = app.test_client()
    answer = client.post("/get_access_token", json=body)
    assert answer.status_code == 500 and list(answer.json) == ["message"]
    assert client.post("/chatgpt/login", json=body).status_code == 400
    assert client.post("/platform/login", json=body).status_code == 400
    assert not pages.all_received


def test_a_password_in_the_url_is_refused(app: Flask, pages: SignInPages) -> None:
    answer = app.test_client().post("/imitate/login", query_string=CREDENTIALS)
    assert answer.status_code == 400 and not pages.all_received


def test_a_page_of_another_origin_cannot_sign_in(
    app: Flask, pages: SignInPages
) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
    ):
        answer = app.test_client().post(
            "/chatgpt/login", data=CREDENTIALS, headers=headers
        )
        assert answer.status_code == 403
    assert not pages.all_received


def test_without_a_key_only_own_names_are_answered(
    build: Callable[..., Flask], pages: SignInPages
) -> None:
    client = build(auth_base_url=pages.auth.url).test_client()
    headers = {"Host": "rebound.example"}
    assert client.post("/chatgpt/login", headers=headers).status_code == 403


def test_where_callers_bring_nothing_of_their_own_nobody_signs_in(
    build: Callable[..., Flask], pages: SignInPages
) -> None:
    settings = {"chatgpt_base_url": (pages.chatgpt.url,)}
    client = build(**settings, allow_caller_tokens=False).test_client()
    answer = client.post("/chatgpt/login", data=CREDENTIALS)
    assert answer.status_code == 403 and not pages.all_received


def test_a_body_over_64_kb_is_not_read_for_a_stranger(
    app: Flask, pages: SignInPages
) -> None:
    body = {**CREDENTIALS, "more": "x" * 70_000}
    answer = app.test_client().post("/chatgpt/login", data=body)
    assert answer.status_code == 401 and not pages.all_received


def test_twenty_at_once_are_one_sign_in(serve: Start, pages: SignInPages) -> None:
    service = serve(**pages.settings, AUTHORIZATION="the-client-key-0")

    def ask(number: int) -> requests.Response:
        url = f"{service.url}/chatgpt/login"
        return requests.post(url, data=CREDENTIALS, timeout=20)

    with ThreadPoolExecutor(20) as executor:
        answers = list(executor.map(ask, range(20)))
    assert {answer.text for answer in answers} == {
        json.dumps({"accessToken": pages.tokens[0]}, separators=(",", ":")) + "\n"
    }
    assert pages.sign_ins == 1
    assert requests.get(f"{service.url}/healthz", timeout=5).ok


def test_a_token_that_is_kept_is_given_until_another_is_asked_for(
    app: Flask, pages: SignInPages
) -> None:
    client = app.test_client()
    first = client.post("/imitate/login", json=CREDENTIALS).json
    assert client.post("/chatgpt/login", json=CREDENTIALS).json == first
    headers = {"Cache-Control": "no-cache"}
    fresh = client.post("/imitate/login", json=CREDENTIALS, headers=headers).json
    assert fresh != first and pages.sign_ins == 2
    assert client.post("/api/login", json=CREDENTIALS).json == fresh


def test_attempts_are_bounded_by_address(app: Flask, pages: SignInPages) -> None:
    client = app.test_client()

    def guess(number: int, address: str = "192.0.2.1") -> Any:
        body = {"username": EMAIL, "password": f"guess-{number}"}
        remote = {"REMOTE_ADDR": address}
        return client.post("/chatgpt/login", json=body, environ_base=remote)

    assert {guess(number).status_code for number in range(10)} == {401}
    refused = guess(11)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert refused.headers["X-Error-Code"] == "too_many_attempts"
    assert pages.sign_ins == 10
    assert guess(12, "192.0.2.2").status_code == 401
    # the same again is answered from memory, and costs no attempt
    assert guess(12, "192.0.2.2").status_code == 401 and pages.sign_ins == 11
