"""OpenAI's platform below /platform: every example of seed 3, who may spend what, and what never passes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from relay.settings import Settings, SettingsError
from tests.openai_backend import OpenAIBackend
from tests.raw_upstream import RawUpstream, chunked, response, whole
from tests.replies import Reader
from tests.tokens import jwt

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}
SERVERS_KEY = "sk-invented-1"
OWN_KEY = {"Authorization": "Bearer sk-of-the-caller"}
SESSION = {"Authorization": "Bearer sess-of-the-caller"}
ANSWER = b'{"data":  [1.100]}'


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    upstream.answers = [whole(ANSWER)]
    yield upstream
    upstream.close()


@pytest.fixture
def platform() -> Iterator[RawUpstream]:
    platform = RawUpstream()
    platform.answers = [whole(b'{"platform": 1}')]
    yield platform
    platform.close()


def app(
    build: Build, upstream: RawUpstream, platform: RawUpstream, **more: Any
) -> FlaskClient:
    """A service whose upstream is not the OpenAI-compatible one, which it has beside it."""
    values: dict[str, Any] = {
        "upstream": "offline",
        "openai_base_url": upstream.url,
        "openai_api_key": (SERVERS_KEY,),
        "openai_headers": {"X-Gateway-Key": "of-the-operator"},
        "platform_base_url": platform.url.removesuffix("/v1"),
        "authorization": ("owner:the-client-key-0",),
    }
    made = build(**{**values, **more})
    made.test_client_class = Reader
    return made.test_client()


@pytest.fixture
def client(build: Build, upstream: RawUpstream, platform: RawUpstream) -> FlaskClient:
    return app(build, upstream, platform)


SEED_3: list[tuple[str, str, Any]] = [
    ("GET", "models", None),
    ("GET", "models/gpt-3.5-turbo", None),
    (
        "POST",
        "completions",
        {
            "model": "text-davinci-003",
            "prompt": "Say this is a test",
            "max_tokens": 7,
            "temperature": 0,
            "stream": True,
        },
    ),
    (
        "POST",
        "chat/completions",
        {
            "messages": [{"role": "user", "content": "Hello World"}],
            "model": "gpt-3.5-turbo",
            "stream": True,
        },
    ),
    (
        "POST",
        "edits",
        {
            "model": "text-davinci-edit-001",
            "input": "What day of the wek is it?",
            "instruction": "Fix the spelling mistakes",
        },
    ),
    (
        "POST",
        "images/generations",
        {"prompt": "A cute dog", "n": 2, "size": "1024x1024"},
    ),
    (
        "POST",
        "embeddings",
        {
            "model": "text-embedding-ada-002",
            "input": "The food was delicious and the waiter...",
        },
    ),
    ("GET", "files", None),
]


@pytest.mark.parametrize(("method", "path", "body"), SEED_3)
def test_all_of_seed_3_passes_byte_for_byte(
    client: FlaskClient, upstream: RawUpstream, method: str, path: str, body: Any
) -> None:
    sent = json.dumps(body, indent=2).encode() if body else b""
    answer = client.open(
        f"/platform/v1/{path}",
        method=method,
        data=sent,
        headers=KEY,
        content_type="application/json",
    )
    assert (answer.status_code, answer.data) == (200, ANSWER)
    [received] = upstream.received
    assert received.line == f"{method} /v1/{path} HTTP/1.1"
    assert received.body == sent
    assert received.headers["authorization"] == f"Bearer {SERVERS_KEY}"


@pytest.mark.parametrize(
    "path",
    ["billing/credit_grants", "billing/subscription", "user/api_keys"],
)
def test_the_dashboard_takes_the_callers_own_session_alone(
    client: FlaskClient, upstream: RawUpstream, platform: RawUpstream, path: str
) -> None:
    path = f"/platform/dashboard/{path}"
    answer = client.get(path, headers={**SESSION, "Cookie": "a=b"})
    assert answer.json == {"platform": 1}
    [received] = platform.received
    assert received.line == f"GET {path.removeprefix('/platform')} HTTP/1.1"
    assert received.headers["authorization"] == "Bearer sess-of-the-caller"
    assert not set(received.headers) & {"cookie", "x-gateway-key"}
    for others in (KEY, {}, OWN_KEY, {"Authorization": f"Bearer {jwt(sub='x')}"}):
        refused = client.get(path, headers=others)
        assert refused.status_code == 401 and refused.json["error"]["message"]
    assert "sessionKey" in client.get(path, headers=KEY).json["error"]["message"]
    assert len(platform.received) == 1 and not upstream.received


def test_a_file_passes_as_it_is(client: FlaskClient, upstream: RawUpstream) -> None:
    form = {"purpose": "fine-tune", "file": (BytesIO(b"\x00lines"), "a.jsonl")}
    answer = client.post("/platform/v1/files", data=form, headers=KEY)
    assert answer.data == ANSWER
    [received] = upstream.received
    assert received.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b"\x00lines" in received.body


# who may spend what


STRANGERS = {
    "nothing": {},
    "a wrong key": {"Authorization": "Bearer not-the-key-at-all"},
    "a key of another API": {"Authorization": "Bearer sk-ant-somebody"},
    "a session": SESSION,
    "a key made here": {"Authorization": f"Bearer cw-{'x' * 40}"},
}


@pytest.mark.parametrize("shown", STRANGERS)
@pytest.mark.parametrize("path", ["v1/models", "v1/chat/completions", "v1/files"])
def test_a_stranger_reaches_nothing(
    client: FlaskClient, upstream: RawUpstream, shown: str, path: str
) -> None:
    for method in ("GET", "POST"):
        answer = client.open(
            f"/platform/{path}",
            method=method,
            json={"model": "m"},
            headers=STRANGERS[shown],
            environ_overrides={"REMOTE_ADDR": str(uuid.uuid4())},
        )
        assert answer.status_code == 401 and answer.json["error"]["message"]
    assert not upstream.received


def test_a_token_of_chatgpts_never_reaches_the_platform(
    client: FlaskClient, upstream: RawUpstream, platform: RawUpstream
) -> None:
    headers = {"Authorization": f"Bearer {jwt(sub='x')}"}
    answer = client.get("/platform/v1/models", headers=headers)
    assert answer.status_code == 400 and not upstream.received + platform.received


def test_a_key_for_a_server_that_may_not_check_it_is_refused(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    assert client.get("/platform/v1/models", headers=OWN_KEY).status_code == 401
    assert not upstream.received


def test_an_own_key_travels_alone(
    build: Build, upstream: RawUpstream, platform: RawUpstream
) -> None:
    client = app(build, upstream, platform, allow_caller_tokens="any")
    client.get("/platform/v1/models", headers=OWN_KEY)
    client.get("/platform/v1/models", headers=KEY)
    own, servers = upstream.received
    assert own.headers["authorization"] == "Bearer sk-of-the-caller"
    assert "x-gateway-key" not in own.headers
    assert servers.headers["authorization"] == f"Bearer {SERVERS_KEY}"
    assert servers.headers["x-gateway-key"] == "of-the-operator"


def test_without_an_upstream_an_own_key_goes_to_the_platform(
    build: Build, upstream: RawUpstream, platform: RawUpstream
) -> None:
    nothing = {"openai_base_url": "", "openai_api_key": ()}
    client = app(build, upstream, platform, **nothing, allow_caller_tokens="any")
    assert client.get("/platform/v1/models", headers=OWN_KEY).json == {"platform": 1}
    [received] = platform.received
    assert received.line == "GET /v1/models HTTP/1.1"
    assert received.headers["authorization"] == "Bearer sk-of-the-caller"
    refused = client.get("/platform/v1/models", headers=KEY)
    assert refused.status_code == 401 and "sk-" in refused.json["error"]["message"]
    assert len(platform.received) == 1
    # nobody knows whether a server at another address checks it
    strict = app(build, upstream, platform, **nothing)
    assert strict.get("/platform/v1/models", headers=OWN_KEY).status_code == 401
    assert len(platform.received) == 1


def test_an_own_key_of_openais_is_recognized_on_these_routes_alone(
    build: Build,
) -> None:
    client = build(authorization=("the-client-key-0",)).test_client()
    recognizes = client.application.extensions["service"].platform.recognizes_key
    assert recognizes("sk-of-the-caller")
    assert not recognizes("sk-ant-somebody") and not recognizes("sess-x")
    for path in ("/ask", "/v1/chat/completions", "/chatgpt/conversation"):
        answer = client.post(path, json={"msg": "x"}, headers=OWN_KEY)
        assert answer.status_code == 401


def test_a_platform_that_is_no_address_refuses_the_start(build: Build) -> None:
    with pytest.raises(SettingsError, match="PLATFORM_BASE_URL"):
        Settings.from_env({"PLATFORM_BASE_URL": "ftp://x"})
    with pytest.raises(SettingsError, match="PLATFORM_BASE_URL"):
        build(platform_base_url="http://localhost:0")


# answers


def test_cookies_of_the_platform_reach_nobody(
    client: FlaskClient, upstream: RawUpstream, platform: RawUpstream
) -> None:
    more = ("Set-Cookie: a=1", "X-RateLimit-Limit: 3")
    upstream.answers = [whole(ANSWER, "application/json", *more)]
    platform.answers = [whole(ANSWER, "application/json", *more)]
    for path, headers in (("v1/models", KEY), ("dashboard/x", SESSION)):
        answer = client.get(f"/platform/{path}", headers=headers)
        assert answer.data == ANSWER and "Set-Cookie" not in answer.headers
        assert answer.headers["X-RateLimit-Limit"] == "3"


def test_an_error_passes_as_it_is_and_quotes_no_key(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    error = b'{"error": {"message":  "no such model", "code": "model_not_found"}}'
    upstream.answers = [[response(404, error, "application/json")]]
    assert client.get("/platform/v1/models/x", headers=KEY).data == error
    quoting = b'{"error": {"message": "bad key sk-invented-1"}}'
    upstream.answers = [[response(401, quoting, "application/json")]]
    answer = client.get("/platform/v1/models/x", headers=KEY)
    assert answer.status_code == 401 and b"sk-invented-1" not in answer.data


def test_a_stream_is_watched(client: FlaskClient, upstream: RawUpstream) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    body = {"model": "m", "messages": [], "stream": True}
    for path in ("chat/completions", "completions"):
        upstream.answers = [chunked([event, b"data: [DONE]\n\n"])]
        answer = client.post(f"/platform/v1/{path}", json=body, headers=KEY)
        assert answer.data == event + b"data: [DONE]\n\n"
        upstream.answers = [chunked([event])[:-1]]
        answer = client.post(f"/platform/v1/{path}", json=body, headers=KEY)
        assert answer.data.startswith(event) and b"[DONE]" not in answer.data
        assert "upstream_cut" in answer.text


@pytest.mark.parametrize(
    "path",
    ["/platform/x", "/platform/v2/models", "/platform/v1", "/platform/dashboard"],
)
def test_paths_outside_are_404(
    client: FlaskClient, upstream: RawUpstream, platform: RawUpstream, path: str
) -> None:
    assert client.get(path, headers=KEY).status_code == 404
    assert not upstream.received + platform.received


@pytest.mark.parametrize(
    "path",
    ["v1/../admin", "dashboard/%2e%2e/x", "dashboard/a%2f..%2f..%2fb", "v1/a\\b"],
)
def test_no_path_leads_out(
    client: FlaskClient, upstream: RawUpstream, platform: RawUpstream, path: str
) -> None:
    for headers in (KEY, SESSION):
        answer = client.get(f"/platform/{path}", headers=headers)
        assert answer.status_code in (400, 401, 404)
    assert not upstream.received + platform.received


def test_websockets_are_refused_with_a_sentence(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    headers = {**KEY, "Connection": "Upgrade", "Upgrade": "websocket"}
    answer = client.get("/platform/v1/realtime", headers=headers)
    assert answer.status_code == 400
    assert "WebSockets" in answer.json["error"]["message"] and not upstream.received


def test_it_answers_over_a_strict_server(
    build: Build, api: OpenAIBackend, platform: RawUpstream
) -> None:
    values = {"openai_base_url": api.url, "openai_api_key": (SERVERS_KEY,)}
    made = build(**values, authorization=("the-client-key-0",))
    made.test_client_class = Reader
    client = made.test_client()
    body = {"model": "tiny-1", "messages": [{"role": "user", "content": "hello"}]}
    answer = client.post("/platform/v1/chat/completions", json=body, headers=KEY)
    assert "You said: hello" in answer.json["choices"][0]["message"]["content"]
    body["stream"] = True
    streamed = client.post("/platform/v1/chat/completions", json=body, headers=KEY)
    assert streamed.text.endswith("data: [DONE]\n\n")
