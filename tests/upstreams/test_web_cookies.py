"""The cookies that ChatGPT's origin sets: what a jar keeps, and with what they are sent back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from relay.upstreams.chatgpt_web.cookies import (
    LARGEST_JAR,
    LONGEST_COOKIE,
    MOST_COOKIES,
    Jar,
    with_cookies,
)
from tests.chatgpt_backend import Backend, Mode
from tests.openai_backend import OpenAIBackend
from tests.processes import Service
from tests.replies import Reader, body_of
from tests.tokens import jwt
from tests.turns import Clock
from tests.web.test_gateway import turn

KEY = {"Authorization": "Bearer the-client-key-0"}
OWN = {"Authorization": f"Bearer {jwt(sub='a-stranger')}"}
URL = "https://chatgpt.com/backend-api/conversation"
PUID = "_puid=user-of-the-origin; Domain=.chatgpt.com; Path=/; HttpOnly; Secure"
CLEARANCE = "cf_clearance=of-the-operator"
Build = Callable[..., Flask]


# what a jar keeps


def kept(*fields: str, url: str = URL) -> str:
    """The Cookie header for `url`, after an answer of a turn that has these fields."""
    jar = Jar()
    jar.keep(URL, fields)
    return with_cookies({}, jar, url).get("Cookie", "")


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ([PUID], "_puid=user-of-the-origin"),
        (["a=1; Path=/", "b=2=2; path=/", "a=3;Path=/"], "b=2=2; a=3"),
        (['a="x y"; Path=/'], 'a="x y"'),
        (["a=; Path=/"], "a="),
        (["a=1; Path=/", "a=; Path=/; Max-Age=0"], ""),
        (["a=1; Path=/", "a=2; Path=/; Max-Age=-1"], ""),
        (["a=1; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], ""),
        (["a=1; Path=/; Expires=Thu, 01-Jan-1970 00:00:00 GMT"], ""),
        (["a=1; Path=/; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], "a=1"),
        (["a=1; Expires=never; Max-Age=soon"], "a=1"),
        (["a=1", "b=2; Path=x"], "a=1; b=2"),
        (["a=1; Path=/backend-api", "b=2; Path=/backend-api/"], "b=2; a=1"),
        (["a=1; Path=/back", "b=2; Path=/api/auth"], ""),
        (["a", "=1", "", ";", "a\x01=1", "b=\u4f60", f"c={'x' * LONGEST_COOKIE}"], ""),
    ],
)
def test_what_is_kept_and_sent(fields: list[str], sent: str) -> None:
    assert kept(*fields) == sent


def test_a_cookie_has_its_time() -> None:
    clock = Clock()
    jar = Jar(clock)
    jar.keep(URL, ["a=1; Max-Age=60", "b=2"])
    assert [cookie.name for cookie in jar.cookies(URL)] == ["a", "b"]
    clock.now += 60
    assert [cookie.name for cookie in jar.cookies(URL)] == ["b"]


def test_a_jar_is_bounded_and_the_newest_stay() -> None:
    jar = Jar()
    for number in range(MOST_COOKIES + 5):
        jar.keep(URL, [f"small-{number}=1"])
    names = [cookie.name for cookie in jar.cookies(URL)]
    assert names == [f"small-{number}" for number in range(5, MOST_COOKIES + 5)]
    for number in range(5):
        jar.keep(URL, [f"large-{number}={'x' * 2000}"])
    names = [cookie.name for cookie in jar.cookies(URL)]
    assert names == ["large-2", "large-3", "large-4"]
    assert len(with_cookies({}, jar, URL)["Cookie"]) <= LARGEST_JAR


@given(st.lists(st.text(max_size=80), max_size=5))
def test_whatever_is_set_can_be_sent(fields: list[str]) -> None:
    sent = kept(*fields)
    assert sent.isascii() and (not sent or sent.isprintable())


def test_the_operators_cookies_are_joined_with_the_origins() -> None:
    jar = Jar()
    stated = {"cookie": f"{CLEARANCE}; _puid=old;", "Accept": "*/*"}
    assert with_cookies(stated, jar, URL)["Cookie"] == f"{CLEARANCE}; _puid=old"
    jar.keep(URL, [PUID])
    headers = with_cookies(stated, jar, URL)
    joined = f"{CLEARANCE}; _puid=user-of-the-origin"
    assert headers == {"Accept": "*/*", "Cookie": joined}
    assert with_cookies(stated, None, URL) == {"Accept": "*/*"}
    assert "user-of-the-origin" not in repr(jar.cookies(URL))


# with what they are sent


def app(build: Build, *urls: str, **more: Any) -> FlaskClient:
    values: dict[str, Any] = {
        "chatgpt_base_url": urls,
        "access_token": ("token-1",),
        "authorization": ("owner:the-client-key-0",),
        "upstream": "chatgpt-web",
        "conversation_only": True,
    }
    made = build(**{**values, **more})
    made.test_client_class = Reader
    return made.test_client()


def cookie_of(backend: Backend) -> str | None:
    """What came with the newest request."""
    return backend.asked[-1].headers.get("cookie")


def everything(client: FlaskClient) -> list[Callable[[], Any]]:
    """One request of each kind that reaches the backend, with the server's account."""
    ask = {"prompt": "hello"}
    return [
        lambda: client.post("/send_message", data=ask, headers=KEY),
        lambda: client.get("/conversations", headers=KEY),
        lambda: client.get("/v1/models", headers=KEY),
        lambda: client.post("/backend-api/conversation", json=turn(), headers=KEY),
        lambda: client.get("/backend-api/models", headers=KEY),
    ]


@pytest.mark.parametrize("number", range(5))
def test_whatever_answer_sets_them_all_later_requests_have_them(
    build: Build, backend: Backend, number: int
) -> None:
    client = app(build, backend.url, chatgpt_headers={"Cookie": CLEARANCE})
    requests = everything(client)
    backend.cookies = [PUID, "__cf_bm=of-the-edge; path=/; Max-Age=1800"]
    first = requests[number]()
    assert first.status_code == 200 and cookie_of(backend) == CLEARANCE
    backend.cookies = []
    for request in requests:
        answer = request()
        assert answer.status_code == 200, answer.text
        assert "Set-Cookie" not in answer.headers
        sent = str(cookie_of(backend)).split("; ")
        assert sent[0] == CLEARANCE and "__cf_bm=of-the-edge" in sent
        assert len(sent) == 3 and "_puid=" in sent[1] + sent[2]
    assert "Set-Cookie" not in first.headers and "_puid" not in first.text


def test_refusals_set_cookies_too(build: Build, backend: Backend) -> None:
    client = app(build, backend.url)
    fields = {"Set-Cookie": "__cf_bm=of-the-edge; Path=/"}
    backend.mode = Mode(refusals=[(403, fields, b'{"detail": "no"}')] * 2)
    for _ in range(2):
        refused = client.post("/backend-api/conversation", json=turn(), headers=KEY)
        assert refused.status_code == 403 and "Set-Cookie" not in refused.headers
    assert cookie_of(backend) == "__cf_bm=of-the-edge"


def test_each_account_has_its_own(build: Build, backend: Backend) -> None:
    client = app(build, backend.url, access_token=("token-1", "token-2"))
    given = {}
    for value in ("_puid=one", "_puid=two"):  # the accounts are asked in turn
        backend.cookies = [value]
        everything(client)[4]()
        given[backend.asked[-1].headers["authorization"]] = value
    assert len(given) == 2
    backend.cookies = []
    for _ in range(2):
        for request in everything(client)[3:]:
            request()
            token = backend.asked[-1].headers["authorization"]
            assert cookie_of(backend) == given[token]


def test_an_own_token_has_none_and_sets_none(build: Build, backend: Backend) -> None:
    client = app(build, backend.url, chatgpt_headers={"cookie": CLEARANCE})
    backend.cookies = [PUID]
    requests = everything(client)
    requests[4]()
    ask = {"prompt": "hello"}
    own = [
        lambda: client.post("/send_message", data=ask, headers=OWN),
        lambda: client.get("/conversations", headers=OWN),
        lambda: client.get("/v1/models", headers=OWN),
        lambda: client.post("/backend-api/conversation", json=turn(), headers=OWN),
        lambda: client.get("/backend-api/models", headers={**OWN, "Cookie": "a=b"}),
    ]
    backend.cookies = ["_puid=of-a-stranger; Path=/"]
    for request in own * 2:
        answer = request()
        assert answer.status_code == 200 and cookie_of(backend) is None
        assert "Set-Cookie" not in answer.headers
    backend.cookies = []
    requests[4]()
    assert cookie_of(backend) == f"{CLEARANCE}; _puid=user-of-the-origin"


def test_the_servers_own_token_in_a_callers_hand_opens_no_jar(
    build: Build, backend: Backend
) -> None:
    token = jwt(sub="the owner")
    client = app(build, backend.url, access_token=(token,))
    backend.cookies = [PUID]
    everything(client)[4]()
    theirs = {"Authorization": f"Bearer {token}"}
    client.get("/backend-api/models", headers=theirs)
    assert cookie_of(backend) is None


def test_another_origin_gets_none_of_them(
    build: Build, backend: Backend, api: OpenAIBackend
) -> None:
    other, named = Backend(), Backend()
    client = app(
        build,
        *(backend.url, other.url),
        chatgpt_headers={"Cookie": CLEARANCE},
        reverse_proxy_allow=(named.url,),
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
    )
    backend.cookies = [PUID]
    requests = everything(client)
    for _ in range(4):  # the addresses are used in turn
        assert requests[4]().status_code == 200
    assert cookie_of(backend) == f"{CLEARANCE}; _puid=user-of-the-origin"
    assert cookie_of(other) == CLEARANCE  # which set none
    fields = {"prompt": "hello", "reverse_proxy": named.url}
    named.cookies = [PUID]
    for _ in range(2):
        body_of(client.post("/send_message", data=fields, headers=KEY))
        assert named.turns[-1].headers["authorization"] == "Bearer token-1"
        assert cookie_of(named) is None
    client.get("/platform/v1/models", headers=KEY)
    assert api.asked and "cookie" not in api.asked[-1].headers
    for server in (other, named):
        server.shutdown()
        server.server_close()


def test_an_error_that_quotes_a_cookie_shows_none_of_it(
    build: Build, backend: Backend
) -> None:
    client = app(build, backend.url)
    backend.cookies = [PUID]
    requests = everything(client)
    requests[4]()
    quoted = b'{"detail": "the cookie _puid=user-of-the-origin is stale"}'
    backend.mode = Mode(refusals=[(400, {}, quoted)] * 2)
    for number in (0, 3):
        answer = requests[number]()
        assert answer.status_code >= 400 and "stale" in answer.text
        assert "user-of-the-origin" not in answer.text


def test_they_are_neither_logged_nor_written(
    serve: Callable[..., Service], backend: Backend, tmp_path: Any
) -> None:
    import requests

    backend.cookies = [PUID]
    service = serve(
        CHATGPT_BASE_URL=backend.url,
        ACCESS_TOKEN="token-1",
        AUTHORIZATION="the-client-key-0",
        CHATGPT_HEADERS=f'{{"Cookie": "{CLEARANCE}"}}',
        LOG_LEVEL="debug",
    )
    for _ in range(2):
        requests.get(f"{service.url}/backend-api/models", headers=KEY, timeout=10)
    assert cookie_of(backend) == f"{CLEARANCE}; _puid=user-of-the-origin"
    backend.mode = Mode(cut_after=3)
    url = f"{service.url}/backend-api/conversation"
    answer = requests.post(url, json=turn(), headers=KEY, timeout=10)
    assert "[DONE]" not in answer.text
    service.stop()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert service.log in files and len(files) > 1
    for path in files:
        content = path.read_bytes()
        assert b"user-of-the-origin" not in content, path
        assert b"of-the-operator" not in content, path
