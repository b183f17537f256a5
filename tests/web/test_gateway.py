"""ChatGPT's own web API below its own names, over a backend of the tests' own: what passes, for whom, and what never does."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from relay.errors import StoreFailed
from relay.web.chatgpt_routes import PREFIXES
from tests.chatgpt_backend import Backend, Mode
from tests.raw_upstream import RawUpstream, chunked, response, whole
from tests.replies import Reader
from tests.tokens import jwt

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}
SERVERS_TOKEN = "token-of-the-server"
OWN_TOKEN = jwt(sub="a-stranger")
OWN = {"Authorization": f"Bearer {OWN_TOKEN}"}
MODEL = "text-davinci-002-render-sha"


def app(build: Build, url: str, **more: Any) -> Flask:
    values: dict[str, Any] = {
        "reverse_proxy": url,
        "access_token": (SERVERS_TOKEN,),
        "authorization": ("owner:the-client-key-0",),
    }
    made = build(**{**values, **more})
    made.test_client_class = Reader
    return made


@pytest.fixture
def client(build: Build, backend: Backend) -> FlaskClient:
    return app(build, backend.url).test_client()


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    upstream.answers = [whole(b'{"ok": 1}')]
    yield upstream
    upstream.close()


@pytest.fixture
def raw(build: Build, upstream: RawUpstream) -> FlaskClient:
    return app(build, upstream.url).test_client()


def turn(**more: Any) -> dict[str, Any]:
    """Seed 3's body of a turn, of a new conversation unless `more` says which."""
    body = {
        "action": "next",
        "messages": [
            {
                "id": str(uuid.uuid4()),
                "author": {"role": "user"},
                "content": {"content_type": "text", "parts": ["Hello World"]},
            }
        ],
        "parent_message_id": str(uuid.uuid4()),
        "model": MODEL,
        "timezone_offset_min": -480,
        "history_and_training_disabled": False,
    }
    return {**body, **more}


def events(answer: Any) -> list[Any]:
    """The JSON of a stream's events; its end mark as None."""
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    bodies = [line.removeprefix("data: ") for line in lines]
    return [
        None if body == "[DONE]" else json.loads(body)
        for body in bodies
        if not body.startswith("20")
    ]


def ask(client: FlaskClient, path: str = "/chatgpt/conversation", **more: Any) -> Any:
    """One turn, as the client reads it: its conversation and the last message."""
    headers = more.pop("headers", KEY)
    answer = client.post(path, json=turn(**more), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.mimetype == "text/event-stream"
    *known, end = events(answer)
    assert end is None
    messages = [event["message"] for event in known if "message" in event]
    return known[0]["conversation_id"], messages[-1]


@pytest.mark.parametrize("prefix", [name for name in PREFIXES if "anon" not in name])
def test_all_of_seed_3_at_each_prefix(
    client: FlaskClient, backend: Backend, prefix: str
) -> None:
    conversation, message = ask(client, f"{prefix}/conversation")
    assert message["content"]["parts"][0].startswith("Turn 1. You said: Hello World")
    again, second = ask(
        client,
        f"{prefix}/conversation",
        conversation_id=conversation,
        parent_message_id=message["id"],
    )
    assert again == conversation and "Turn 2." in second["content"]["parts"][0]

    def call(method: str, path: str, **body: Any) -> Any:
        payload = {"json": body} if body else {}
        answer = client.open(f"{prefix}/{path}", method=method, headers=KEY, **payload)
        assert answer.status_code == 200, answer.text
        return answer.json

    listed = call("GET", "conversations?offset=0&limit=20")
    assert [item["id"] for item in listed["items"]] == [conversation]
    assert call("GET", "conversations")["limit"] == 20
    tree = call("GET", f"conversation/{conversation}")
    assert tree["current_node"] == second["id"]
    title = call(
        "POST", f"conversation/gen_title/{conversation}", message_id=second["id"]
    )
    assert title == {"title": "A generated title"}
    renamed = call("PATCH", f"conversation/{conversation}", title="new title")
    assert renamed == {"success": True}
    rating = {"message_id": second["id"], "conversation_id": conversation}
    given = call("POST", "conversation/message_feedback", rating="thumbsUp", **rating)
    assert given["rating"] == "thumbsUp"
    shared = call("POST", "share/create", conversation_id=conversation)
    assert shared["share_id"] == "s-1"
    assert call("GET", "models")["models"][0]["slug"] == "gpt-4"
    assert call("PATCH", f"conversation/{conversation}", is_visible=False)
    assert not backend.trees
    ask(client, f"{prefix}/conversation")
    assert call("PATCH", "conversations", is_visible=False) == {"success": True}
    assert not backend.trees
    tokens = {asked.headers["authorization"] for asked in backend.asked}
    assert tokens == {f"Bearer {SERVERS_TOKEN}"}


def test_what_passes_is_indexed_like_what_is_asked_here(
    client: FlaskClient, backend: Backend
) -> None:
    conversation, message = ask(client)
    store = client.application.extensions["service"].store
    row = store.find(conversation)
    assert (row.owner, row.upstream, row.remote) == ("owner", "chatgpt-web", True)
    assert (row.title, row.newest) == ("Hello World", message["id"])
    fields = {"msg": "And more?", "conversation_id": conversation}
    own = client.post("/ask", data=fields, headers=KEY).json["data"]
    assert "Turn 2." in own["message"]
    more = {"conversation_id": conversation, "parent_message_id": ""}
    _, third = ask(client, **more)
    assert "Turn 3." in third["content"]["parts"][0]
    assert store.find(conversation).newest == third["id"]
    path = f"/backend-api/conversation/{conversation}"
    client.patch(path, json={"title": "A new one"}, headers=KEY)
    assert store.find(conversation).title == "A new one"
    client.patch(path, json={"is_visible": False}, headers=KEY)
    assert store.find(conversation) is None


def test_what_is_to_be_forgotten_is_not_indexed(client: FlaskClient) -> None:
    conversation, _ = ask(client, history_and_training_disabled=True)
    assert client.application.extensions["service"].store.find(conversation) is None


def test_a_new_encoding_passes_and_is_indexed_too(
    client: FlaskClient, backend: Backend
) -> None:
    backend.mode = Mode(encoding="delta")
    body = turn(supported_encodings=["v1"])
    answer = client.post("/backend-api/f/conversation", json=body, headers=KEY)
    assert answer.text.startswith('event: delta_encoding\ndata: "v1"\n\n')
    [conversation] = backend.trees
    row = client.application.extensions["service"].store.find(conversation)
    assert row.newest == backend.trees[conversation]["current_node"]


def test_pandora_deletes_with_a_method_that_the_backend_does_not_have(
    client: FlaskClient, backend: Backend
) -> None:
    conversation, _ = ask(client)
    ask(client)
    deleted = client.delete(f"/api/conversation/{conversation}", headers=KEY)
    assert deleted.json == {"success": True} and conversation not in backend.trees
    assert client.delete("/api/conversations", headers=KEY).json == {"success": True}
    assert not backend.trees
    assert client.get("/conversations", headers=KEY).json == []


def test_the_session_is_the_callers_own_credential(client: FlaskClient) -> None:
    for headers, token in ((KEY, "the-client-key-0"), (OWN, OWN_TOKEN)):
        session = client.get("/api/auth/session", headers=headers).json
        assert session["accessToken"] == token and session["user"]["id"]
    by_password = client.get("/api/auth/session", auth=("x", "the-client-key-0"))
    assert by_password.json["accessToken"] == "the-client-key-0"
    assert client.get("/api/auth/session").status_code == 401


# what old clients send


def test_a_first_turn_as_feishu_chatgpt_sends_it(
    client: FlaskClient, backend: Backend
) -> None:
    ask(
        client,
        "/chatgpt/backend-api/conversation",
        conversation_id="",
        parent_message_id="",
    )
    sent = backend.turns[0].body
    assert "conversation_id" not in sent
    assert uuid.UUID(sent["parent_message_id"])


def test_a_message_as_npms_chatgpt_sends_it(
    client: FlaskClient, backend: Backend
) -> None:
    content = {"content_type": "text", "parts": ["Hello World"]}
    message = {"id": str(uuid.uuid4()), "role": "user", "content": content}
    ask(client, messages=[message])
    [sent] = backend.turns[0].body["messages"]
    assert sent == {"id": message["id"], "content": content, "author": {"role": "user"}}


def test_a_turn_whose_type_is_not_said_and_that_takes_anything(
    client: FlaskClient, backend: Backend
) -> None:
    body = json.dumps(turn())
    headers = {**KEY, "Accept": "*/*"}
    answer = client.post("/api/conversation", data=body, headers=headers)
    assert answer.status_code == 200
    assert backend.turns[0].headers["content-type"] == "application/json"


def test_a_bare_token_without_bearer(client: FlaskClient, backend: Backend) -> None:
    ask(client, headers={"Authorization": OWN_TOKEN})
    assert backend.turns[0].headers["authorization"] == f"Bearer {OWN_TOKEN}"
    ask(client, headers={"Authorization": "the-client-key-0"})
    assert backend.turns[1].headers["authorization"] == f"Bearer {SERVERS_TOKEN}"


def test_a_body_passes_byte_for_byte(raw: FlaskClient, upstream: RawUpstream) -> None:
    upstream.answers = [chunked([b'data: {"a": 1}\n\n', b"data: [DONE]\n\n"])]
    body = json.dumps(turn(unknown={"n": 1.10}), indent=1).replace("1.1", "1.100")
    raw.post("/backend-api/conversation", data=body, headers=KEY)
    assert upstream.received[0].body == body.encode()


def test_what_has_no_upstream_of_its_own_never_passes(
    client: FlaskClient, backend: Backend
) -> None:
    for name in ("talk", "regenerate", "goon"):
        client.post(f"/api/conversation/{name}", json={"prompt": "x"}, headers=KEY)
    assert not [asked for asked in backend.asked if "conversation/" in asked.path]


def test_imitate_is_v1(client: FlaskClient, backend: Backend) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    answer = client.post("/imitate/v1/chat/completions", json=body, headers=KEY)
    assert "You said: hello" in answer.json["choices"][0]["message"]["content"]
    listed = client.get("/imitate/v1/models", headers=KEY).json
    assert listed == client.get("/v1/models", headers=KEY).json and listed["data"]
    refused = client.post("/imitate/v1/chat/completions", json=body)
    assert refused.json["error"]["code"] == "invalid_api_key"


# who may spend what

EVERYTHING = [
    ("GET", "conversations"),
    ("PATCH", "conversations"),
    ("DELETE", "conversations"),
    ("POST", "conversation"),
    ("POST", "f/conversation"),
    ("POST", "conversation/message_feedback"),
    ("POST", "conversation/gen_title/c-1"),
    ("GET", "conversation/c-1"),
    ("PATCH", "conversation/c-1"),
    ("DELETE", "conversation/c-1"),
    ("POST", "share/create"),
    ("GET", "models"),
    ("GET", "me"),
    ("PUT", "files/f-1"),
]
STRANGERS = {
    "nothing": {},
    "a wrong key": {"Authorization": "Bearer not-the-key-at-all"},
    "a wrong bare key": {"Authorization": "not-the-key-at-all"},
    "a key of another API": {"Authorization": "Bearer sk-of-somebody-else"},
    "a key made here": {"Authorization": f"Bearer cw-{'x' * 40}"},
    "a wrong password": {"Authorization": "Basic eDpub3QtdGhlLWtleQ=="},
    "cookies": {"Cookie": f"__Secure-next-auth.session-token={OWN_TOKEN}"},
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("shown", STRANGERS)
def test_a_stranger_reaches_nothing(
    raw: FlaskClient, upstream: RawUpstream, prefix: str, shown: str
) -> None:
    for method, path in EVERYTHING:
        answer = raw.open(
            f"{prefix}/{path}",
            method=method,
            json=turn(),
            headers=STRANGERS[shown],
            environ_overrides={"REMOTE_ADDR": str(uuid.uuid4())},
        )
        assert answer.status_code == 401, (method, path)
        assert answer.json["errorMessage"]
    assert not upstream.received


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_own_token_travels_alone(
    build: Build, upstream: RawUpstream, prefix: str
) -> None:
    secret = {"X-Gateway-Key": "of-the-operator", "Chatgpt-Account-Id": "the-owners"}
    base = upstream.url.replace("/v1", "/backend-api")
    client = app(build, base, chatgpt_headers=secret).test_client()
    for number, (method, path) in enumerate(EVERYTHING):
        for headers in (OWN, KEY):
            client.open(f"{prefix}/{path}", method=method, json=turn(), headers=headers)
        own, servers = upstream.received[-2:]
        assert len(upstream.received) == 2 * number + 2
        assert own.headers["authorization"] == f"Bearer {OWN_TOKEN}"
        assert not set(own.headers) & {"x-gateway-key", "chatgpt-account-id"}
        assert servers.headers["authorization"] == f"Bearer {SERVERS_TOKEN}"
        assert servers.headers["x-gateway-key"] == "of-the-operator"
        assert "the-client-key-0" not in str(upstream.received)


def test_an_own_token_can_be_forbidden(build: Build, upstream: RawUpstream) -> None:
    client = app(build, upstream.url, allow_caller_tokens=False).test_client()
    assert client.get("/backend-api/me", headers=OWN).status_code == 401
    assert not upstream.received


def test_without_accounts_nobody_but_an_own_token_passes(
    build: Build, backend: Backend
) -> None:
    settings = {"access_token": (), "authorization": ()}
    client = app(build, backend.url, **settings).test_client()
    answer = client.post("/chatgpt/conversation", json=turn())
    assert (answer.status_code, answer.json) == (
        401,
        {"errorMessage": "Missing accessToken."},
    )
    assert not backend.asked
    ask(client, headers=OWN)


def test_two_owners_share_accounts_and_see_nothing_of_each_other(
    build: Build, backend: Backend
) -> None:
    keys = ("ann:the-key-of-ann-0", "bob:the-key-of-bob-0")
    client = app(build, backend.url, authorization=keys).test_client()
    ann = {"Authorization": "Bearer the-key-of-ann-0"}
    bob = {"Authorization": "Bearer the-key-of-bob-0"}
    conversation, message = ask(client, headers=ann)
    elsewhere = backend.add_turn(SERVERS_TOKEN, turn())[0]
    asked = len(backend.asked)
    for name in (conversation, elsewhere):
        path = f"/backend-api/conversation/{name}"
        rename = {"title": "mine"}
        body = turn(conversation_id=name, parent_message_id=message["id"])
        rated = {"conversation_id": name, "message_id": message["id"]}
        answers = [
            client.get(path, headers=bob),
            client.patch(path, json=rename, headers=bob),
            client.delete(path, headers=bob),
            client.post("/backend-api/conversation", json=body, headers=bob),
            client.post(
                f"/backend-api/conversation/gen_title/{name}", json=rated, headers=bob
            ),
            client.post(
                "/backend-api/conversation/message_feedback", json=rated, headers=bob
            ),
            client.post("/backend-api/share/create", json=rated, headers=bob),
        ]
        assert [answer.status_code for answer in answers] == [404] * 7
        detail = answers[0].json["detail"]
        assert detail["code"] == "conversation_not_found"
    for path in (
        "me",
        "conversations/search",
        "memories",
        f"conversation/{conversation}/x",
    ):
        assert client.get(f"/backend-api/{path}", headers=bob).status_code == 403
    client.patch("/backend-api/conversations", json={"is_visible": False}, headers=bob)
    assert len(backend.asked) == asked
    again, _ = ask(
        client,
        headers=ann,
        conversation_id=conversation,
        parent_message_id=message["id"],
    )
    assert again == conversation


def test_a_conversation_goes_on_at_its_account(build: Build, backend: Backend) -> None:
    tokens = tuple(f"token-number-{number}" for number in range(3))
    client = app(build, backend.url, access_token=tokens).test_client()
    for _ in range(4):
        conversation, message = ask(client)
        token = backend.owners[conversation]
        for _ in range(3):
            more = {"conversation_id": conversation, "parent_message_id": message["id"]}
            _, message = ask(client, **more)
        path = f"/backend-api/conversation/{conversation}"
        assert client.get(path, headers=KEY).json["title"]
        asked = {each.headers["authorization"] for each in backend.asked[-4:]}
        assert asked == {f"Bearer {token}"}
    assert len(set(backend.owners.values())) == 3
    client.patch("/chatgpt/conversations", json={"is_visible": False}, headers=KEY)
    asked = [(each.method, each.path) for each in backend.asked]
    assert ("PATCH", "/backend-api/conversations") not in asked


def test_another_account_is_tried_after_a_refusal(
    build: Build, backend: Backend
) -> None:
    limit = (429, {}, b'{"detail": {"code": "model_cap_exceeded", "clears_in": 60}}')
    backend.mode = Mode(refuse_tokens={"token-number-0": limit})
    tokens = ("token-number-0", "token-number-1")
    client = app(build, backend.url, access_token=tokens).test_client()
    for _ in range(2):
        conversation, _ = ask(client)
        assert backend.owners[conversation] == "token-number-1"


# headers and paths


def test_headers_pass_as_the_table_has_it(
    raw: FlaskClient, upstream: RawUpstream
) -> None:
    asked = {
        "Accept-Language": "de",
        "Oai-Language": "de-DE",
        "Openai-Sentinel-Proof-Token": "gAAAproof",
        "Range": "bytes=0-9",
    }
    device = {"Oai-Device-Id": "device-1", "Chatgpt-Account-Id": "account-of-theirs"}
    private = {
        "Cookie": "_puid=user-x; cf_clearance=y",
        "User-Agent": "Mozilla/5.0",
        "Origin": "http://localhost",
        "Referer": "http://localhost/page",
        "X-Forwarded-For": "192.0.2.1",
        "X-Real-Ip": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
        "Puid": "user-x",
        "Authkey": "a-key",
        "X-Authorization": "Bearer x",
        "Connection": "x-hop",
        "X-Hop": "1",
        "Te": "trailers",
    }
    for headers, passes_device in ((KEY, False), (OWN, True)):
        raw.get("/backend-api/me", headers={**asked, **device, **private, **headers})
        received = upstream.received[-1].headers
        for name, value in asked.items():
            assert received[name.lower()] == value
        for name, value in device.items():
            assert received.get(name.lower()) == (value if passes_device else None)
        values = str(received)
        assert not set(received) & {name.lower() for name in private} - {
            "user-agent",
            "connection",
        }
        assert "Mozilla" not in values and "192.0.2.1" not in values


def test_an_answers_headers_pass_as_the_table_has_it(
    raw: FlaskClient, upstream: RawUpstream
) -> None:
    kept = {
        "ETag": '"e"',
        "Content-Disposition": "attachment",
        "Content-Range": "bytes 0-1/9",
    }
    dropped = {
        "Set-Cookie": "_puid=user-1; HttpOnly",
        "Cf-Ray": "x",
        "X-Request-Id": "theirs",
        "Openai-Processing-Ms": "5",
        "Access-Control-Allow-Origin": "*",
        "Location": "https://elsewhere.example/",
    }
    lines = [f"{name}: {value}" for name, value in {**kept, **dropped}.items()]
    upstream.answers = [
        whole(b"\x1f\x8bpacked", "image/png", *lines, "Content-Encoding: gzip")
    ]
    answer = raw.get("/backend-api/files/f-1", headers={**KEY, "X-Request-Id": "mine"})
    assert answer.data == b"\x1f\x8bpacked" and answer.mimetype == "image/png"
    assert answer.headers["Content-Encoding"] == "gzip"
    for name, value in kept.items():
        assert answer.headers[name] == value
    for name, value in dropped.items():
        assert value not in answer.headers.getlist(name)
    assert answer.headers["X-Request-Id"] == "mine"


@pytest.mark.parametrize(
    "path",
    [
        *("/backend-api/../admin", "/backend-api/a/%2e%2e/b", "/chatgpt/a/..%2f..%2fb"),
        *("/api/a\\b", "/api/conversation/..", "/backend-anon/%2e%2e/%2e%2e/x"),
        *("/chatgpt/conversation/gen_title/%2e%2e", "/backend-api/..;/x/%2E./y"),
        *("/backend-api//evil.example/x", "/chatgpt//evil.example"),
    ],
)
def test_no_path_leads_out(raw: FlaskClient, upstream: RawUpstream, path: str) -> None:
    for method in ("GET", "POST", "PATCH"):
        answer = raw.open(path, method=method, json={"a": 1}, headers=KEY)
        assert answer.status_code in (400, 404, 405), method
    assert not upstream.received


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/backend-api/a%2Fb", "/v1/a/b"),
        ("/backend-api/a%252e%252e/b?x=%2F..", "/v1/a%252e%252e/b?x=%2F.."),
        ("/chatgpt/backend-api/me", "/v1/me"),
        ("/chatgpt/me?a=1&a=2", "/v1/me?a=1&a=2"),
        ("/backend-api/@host:80/x", "/v1/@host:80/x"),
    ],
)
def test_every_path_stays_inside(
    raw: FlaskClient, upstream: RawUpstream, path: str, line: str
) -> None:
    raw.get(path, headers=KEY)
    assert upstream.received[0].line == f"GET {line} HTTP/1.1"


def test_the_anonymous_api_is_beside_the_other(
    build: Build, raw: FlaskClient, upstream: RawUpstream
) -> None:
    assert raw.get("/backend-anon/me", headers=KEY).status_code == 404
    assert not upstream.received
    beside = upstream.url.replace("/v1", "/backend-api")
    app(build, beside).test_client().get("/backend-anon/me", headers=KEY)
    assert upstream.received[0].line == "GET /backend-anon/me HTTP/1.1"


@pytest.mark.parametrize(
    "path", ["/backend-api", "/chatgpt", "/api", "/imitate/v1/x", "/public-api/x"]
)
def test_paths_outside_are_404(
    raw: FlaskClient, upstream: RawUpstream, path: str
) -> None:
    assert raw.get(path, headers=KEY).status_code == 404 and not upstream.received


def test_the_gateway_can_be_closed(build: Build, backend: Backend) -> None:
    client = app(build, backend.url, enable_gateway=False).test_client()
    assert client.get("/backend-api/me", headers=KEY).status_code == 404
    assert not backend.asked
    ask(client)
    assert client.get("/backend-api/models", headers=KEY).status_code == 200


def test_other_upstreams_have_no_gateway(build: Build) -> None:
    client = build(upstream="offline").test_client()
    answer = client.get("/backend-api/me")
    assert answer.status_code == 404 and "ENABLE_GATEWAY" in answer.json["errorMessage"]


def test_websockets_are_refused_with_a_sentence(
    raw: FlaskClient, upstream: RawUpstream
) -> None:
    headers = {**KEY, "Connection": "Upgrade", "Upgrade": "websocket"}
    for path in ("/backend-api/ws", "/backend-api/conversations", "/chatgpt/models"):
        answer = raw.get(path, headers=headers)
        assert answer.status_code == 400
        assert "WebSockets" in answer.json["errorMessage"]
    assert not upstream.received


# errors


def test_the_answer_by_which_people_see_that_go_chatgpt_api_runs(
    raw: FlaskClient,
) -> None:
    for path in ("/chatgpt/backend-api/conversation", "/chatgpt/conversation"):
        answer = raw.post(path)
        assert answer.status_code == 401
        assert answer.json == {"errorMessage": "Missing accessToken."}
    elsewhere = raw.post("/backend-api/conversation").json
    assert elsewhere["detail"]["code"] == "unauthorized"


def test_an_upstreams_own_error_passes_as_it_is(
    client: FlaskClient, backend: Backend
) -> None:
    answer = client.get("/backend-api/conversations?limit=500", headers=KEY)
    assert answer.status_code == 422 and answer.json["detail"][0]["loc"]
    unknown = client.get("/backend-api/conversation/unknown", headers=KEY)
    assert unknown.status_code == 404
    assert unknown.json["detail"]["code"] == "conversation_not_found"


@pytest.mark.parametrize(
    ("status", "kind", "body", "expected"),
    [
        (401, "application/json", b'{"detail": {"code": "token_expired"}}', 401),
        (429, "application/json", b'{"detail": "Only one message at a time."}', 429),
        (403, "text/html", b"<html>Just a moment... cf_chl_opt</html>", 403),
        (502, "text/html", b"<html>bad gateway</html>", 502),
        (302, "text/plain", b"moved", 502),
        (500, "text/plain", b"Internal server error", 500),
    ],
)
def test_every_other_failure_has_a_json_body(
    raw: FlaskClient,
    upstream: RawUpstream,
    status: int,
    kind: str,
    body: bytes,
    expected: int,
) -> None:
    where = "Location: https://elsewhere.example/"
    upstream.answers = [[response(status, body, kind, where)]]
    for headers in (KEY, OWN):
        answer = raw.post("/backend-api/conversation", json=turn(), headers=headers)
        assert answer.status_code == expected
        assert answer.json["errorMessage"] == answer.json["detail"]["message"]
        assert answer.data.isascii() and "elsewhere.example" not in str(answer.headers)


def test_no_error_quotes_a_token(raw: FlaskClient, upstream: RawUpstream) -> None:
    for status in (400, 401, 403, 500):
        for headers, token in ((KEY, SERVERS_TOKEN), (OWN, OWN_TOKEN)):
            body = json.dumps({"detail": f"Bad token {token}"}).encode()
            upstream.answers = [[response(status, body, "application/json")]]
            answer = raw.get("/backend-api/me", headers=headers)
            assert answer.status_code == status and token not in answer.text


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"prompt=x"])
def test_what_is_no_json_object_is_refused(
    raw: FlaskClient, upstream: RawUpstream, body: bytes
) -> None:
    answer = raw.post("/chatgpt/conversation", data=body, headers=KEY)
    assert answer.status_code == 400 and "JSON" in answer.json["errorMessage"]
    assert not upstream.received


# streams

FIRST = b'data: {"message": {"id": "a1", "author": {"role": "assistant"}}}\n\n'
PING = b"event: ping\r\ndata: 2023-08-01 10:20:30.123456\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("prefix", ["/chatgpt", "/backend-api/f"])
def test_a_stream_passes_as_it_is(
    raw: FlaskClient, upstream: RawUpstream, prefix: str
) -> None:
    packets = [FIRST[:9], FIRST[9:], PING, b": comment\n\n", FIRST, DONE]
    upstream.answers = [chunked(packets)]
    body = turn() | {"supported_encodings": ["v1"]}
    answer = raw.post(f"{prefix}/conversation", json=body, headers=KEY)
    assert answer.data == b"".join(packets)
    assert answer.headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("ending", [lambda sent: chunked(sent)[:-1], chunked])
def test_a_stream_that_is_cut_never_looks_whole(
    raw: FlaskClient, upstream: RawUpstream, ending: Any
) -> None:
    stream = FIRST + PING + FIRST + DONE
    for at in range(0, len(stream) - 3, 7):
        upstream.answers = [ending([stream[:at]])]
        answer = raw.post("/chatgpt/conversation", json=turn(), headers=KEY)
        assert answer.status_code == 200 and b"[DONE]" not in answer.data
        assert answer.text.endswith("\n\ninternal server error\n\n")
        assert events(answer)[-1]["detail"]["code"] == "upstream_cut"


def test_silence_is_kept_alive_by_blank_lines_alone(
    build: Build, upstream: RawUpstream
) -> None:
    def slow() -> Iterator[bytes]:
        time.sleep(0.5)
        head, first, done, end = chunked([FIRST, DONE])
        yield head
        for packet in (first[:20], first[20:], done):
            time.sleep(0.4)
            yield packet
        yield end

    upstream.answers = [slow()]  # type: ignore[list-item]
    service = app(build, upstream.url)
    object.__setattr__(service.extensions["service"].clocks, "keep_alive", 0.1)
    answer = service.test_client().post(
        "/chatgpt/conversation", json=turn(), headers=KEY
    )
    assert answer.data.startswith(b"\n\n")
    assert answer.data.lstrip(b"\n").startswith(FIRST + b"\n")
    assert answer.data.replace(b"\n", b"") == (FIRST + DONE).replace(b"\n", b"")


def test_a_late_refusal_is_told_within_the_stream(
    build: Build, upstream: RawUpstream
) -> None:
    def late() -> Iterator[bytes]:
        time.sleep(0.5)
        yield response(404, b'{"detail": "Conversation not found"}', "application/json")

    upstream.answers = [late()]  # type: ignore[list-item]
    service = app(build, upstream.url)
    object.__setattr__(service.extensions["service"].clocks, "keep_alive", 0.1)
    answer = service.test_client().post(
        "/chatgpt/conversation", json=turn(), headers=KEY
    )
    assert answer.status_code == 200
    assert "Conversation not found" in events(answer)[-1]["error"]


def test_a_handed_off_answer_passes_as_whole(
    client: FlaskClient, backend: Backend
) -> None:
    backend.mode = Mode(hand_off=True, done=False)
    answer = client.post("/backend-api/f/conversation", json=turn(), headers=KEY)
    assert "stream_handoff" in answer.text and "error" not in answer.text


def test_an_answer_passes_whose_conversation_cannot_be_indexed(
    client: FlaskClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(row: Any) -> None:
        raise StoreFailed()

    store = client.application.extensions["service"].store
    monkeypatch.setattr(store, "index", fail)
    conversation, _ = ask(client)
    assert conversation in backend.trees and store.find(conversation) is None
