"""The own routes within the process: shapes, failures, owners, browsers. Sockets are test_serving's business."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.test import encode_multipart

from relay import __version__, logs
from relay.errors import (
    CallerLeft,
    InternalError,
    RateLimited,
    RelayError,
    StoreFailed,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from tests.replies import body_of
from tests.scripted import Scripted

ON_BOTH = True
NOBODYS = "6d91e084-0000-4000-8000-000000000000"

Build = Callable[..., Flask]


def test_send_message_answers_with_three_keys_and_remembers(
    client: FlaskClient,
) -> None:
    first = body_of(client.post("/send_message", data={"prompt": "hello"}))
    assert set(first) == {"text", "conversation_id", "parent_message_id"}
    second = body_of(client.post("/send_message", data={**first, "prompt": "again"}))
    assert second["conversation_id"] == first["conversation_id"]
    assert second["parent_message_id"] != first["parent_message_id"]
    assert (
        "Turn 2." in second["text"] and "Before that you said: hello" in second["text"]
    )
    third = body_of(
        client.post(
            "/send_message",
            data={"prompt": "more", "conversation_id": first["conversation_id"]},
        )
    )
    assert "Turn 3." in third["text"]
    branch = body_of(
        client.post("/send_message", data={**first, "prompt": "other way"})
    )
    assert (
        "Turn 2." in branch["text"] and "Before that you said: hello" in branch["text"]
    )


def test_ask_answers_as_chatgpt_webapi_did(client: FlaskClient) -> None:
    first = body_of(client.post("/ask", json={"msg": "你的名字"}))
    assert first["code"] == 0
    data = first["data"]
    assert {"message", "parent_id", "conversation_id"} <= set(
        data
    ) and "你的名字" in data["message"]
    second = body_of(
        client.post(
            "/ask",
            json={
                **{k: data[k] for k in ("parent_id", "conversation_id")},
                "msg": "再说",
            },
        )
    )
    assert "Turn 2." in second["data"]["message"]


def test_prefix_suffix_and_system(client: FlaskClient) -> None:
    fields = {
        "prompt": "hello",
        "prompt_prefix": "In Chinese.",
        "prompt_suffix": "Short.",
        "system": "Be kind.",
    }
    text = body_of(client.post("/send_message", data=fields))["text"]
    assert "System prompt: Be kind." in text
    assert "You said: In Chinese.\nhello\nShort." in text


@pytest.mark.parametrize("route", ["/send_message", "/ask"])
@pytest.mark.parametrize(
    "wanting",
    [{"headers": {"Accept": "text/plain"}}, {"query_string": {"format": "text"}}],
    ids=["accept", "format"],
)
def test_the_text_alone(
    client: FlaskClient, route: str, wanting: dict[str, Any]
) -> None:
    answer = client.post(route, data={"prompt": "héllo"}, **wanting)
    assert (
        answer.text.endswith("You said: héllo\n")
        and answer.content_type == "text/plain; charset=utf-8"
    )
    ids = {
        "conversation_id": answer.headers["X-Conversation-Id"],
        "parent_id": answer.headers["X-Parent-Message-Id"],
    }
    assert (
        "Turn 2."
        in body_of(client.post("/ask", data={"msg": "more", **ids}))["data"]["message"]
    )


def test_a_json_format_comes_before_the_accept_header(client: FlaskClient) -> None:
    answer = client.post(
        "/ask", data={"msg": "x", "format": "json"}, headers={"Accept": "text/plain"}
    )
    assert answer.is_json
    refused = client.post("/ask", data={"msg": "x", "format": "xml"})
    assert refused.status_code == 400 and "one of: json, text" in refused.json["msg"]


def test_a_stream_of_events(client: FlaskClient) -> None:
    answer = client.post("/send_message", data={"prompt": "hello", "stream": "true"})
    assert answer.content_type == "text/event-stream; charset=utf-8"
    assert (
        answer.headers["X-Accel-Buffering"] == "no"
        and answer.headers["X-Conversation-Id"]
    )
    assert answer.text.count('data: {"text":') > 5
    assert "event: done\ndata: {" in answer.text and "event: error" not in answer.text


def test_a_raw_stream(client: FlaskClient) -> None:
    answer = client.post("/ask", data={"msg": "hello", "stream": "1", "format": "text"})
    assert (
        answer.text.endswith("You said: hello\n")
        and answer.content_type == "text/plain; charset=utf-8"
    )
    assert (
        answer.headers["X-Conversation-Id"]
        and "X-Parent-Message-Id" not in answer.headers
    )


def test_history_is_listed_read_renamed_and_deleted(client: FlaskClient) -> None:
    ids = [
        body_of(client.post("/ask", json={"msg": f"question {n}"}))["data"][
            "conversation_id"
        ]
        for n in range(3)
    ]
    listed = client.get("/conversations").json
    assert isinstance(listed, list) and [item["id"] for item in listed] == ids[::-1]
    assert [
        item["id"] for item in client.get("/conversations?limit=1&offset=1").json
    ] == [ids[1]]
    tree = client.get(f"/conversation/{ids[0]}").json
    assert tree["title"] == "question 0"
    assert (
        tree["mapping"][tree["current_node"]]["message"]["author"]["role"]
        == "assistant"
    )
    renamed = client.post(
        f"/conversation/{ids[0]}/title", json={"title": " New \n title "}
    )
    assert set(body_of(renamed)) == {"code", "msg"} and renamed.json["code"] == 0
    assert client.get(f"/conversation/{ids[0]}").json["title"] == "New title"
    for body in (
        {"json": {}},
        {"json": {"title": " "}},
        {"json": {"title": "x" * 201}},
        {"json": {"title": 5}},
    ):
        refused = client.post(f"/conversation/{ids[0]}/title", **body)
        assert refused.status_code == 400 and "title" in refused.json["msg"]
    for body in ({"json": {}}, {}):
        deleted = client.post(f"/conversation/{ids.pop()}/delete", **body)
        assert body_of(deleted)["code"] == 0
    assert [item["id"] for item in client.get("/conversations").json] == ids
    gone = client.post("/conversation/no-such-thing/delete")
    assert (gone.status_code, gone.json["error"]) == (404, "no_conversation")


def test_health_and_readiness(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok", "version": __version__}
    assert client.get("/readyz").json == {
        "status": "ready",
        "default_upstream": "offline",
        "upstreams": ["offline", "chatgpt-web"],
        "resting": {},
    }
    assert client.head("/healthz").status_code == 200


FAILURES = [
    UpstreamRefused("No.", status=401),
    UpstreamRefused("No.", status=413),
    UpstreamRefused("No.", status=500),
    RateLimited("Slow down.", retry_after=7),
    UpstreamFailed("Garbage."),
    UpstreamCut(),
    UpstreamTimeout("Too slow."),
    StoreFailed(),
    CallerLeft(),
    RuntimeError("a bug that tells secrets"),
]


@pytest.mark.parametrize(
    "failure",
    FAILURES,
    ids=lambda failure: type(failure).__name__ + str(getattr(failure, "status", "")),
)
@pytest.mark.parametrize("text", [False, True], ids=["json", "text"])
@pytest.mark.parametrize("route", ["/send_message", "/ask"])
def test_every_failure_has_its_routes_shape(
    build: Build, route: str, text: bool, failure: Exception
) -> None:
    client = build(Scripted(b"S|Hel|", failure)).test_client()
    answer = client.post(
        route, data={"prompt": "x"}, headers={"Accept": "text/plain"} if text else {}
    )
    error = failure if isinstance(failure, RelayError) else InternalError()
    assert answer.status_code == (500 if route == "/send_message" else error.status)
    assert (
        answer.headers["X-Error-Source"] == error.source
        and answer.headers["X-Error-Code"] == error.code
    )
    assert answer.headers["X-Request-Id"] and "secrets" not in answer.text
    assert answer.headers.get("Retry-After") == (
        str(error.retry_after) if error.retry_after else None
    )
    if text:
        assert answer.text == f"{error.message}\n"
    elif route == "/send_message":
        assert answer.json == {"message": error.message}
    else:
        expected = {
            "code": 1,
            "msg": error.message,
            "error": error.code,
            "source": error.source,
        }
        assert answer.json == expected


@pytest.mark.parametrize(
    "failure",
    FAILURES,
    ids=lambda failure: type(failure).__name__ + str(getattr(failure, "status", "")),
)
@pytest.mark.parametrize("route", ["/send_message", "/ask"])
def test_a_failure_within_a_stream_is_an_error_event_without_an_end(
    build: Build, route: str, failure: Exception
) -> None:
    client = build(Scripted(b"S|Hel|", failure)).test_client()
    answer = client.post(route, data={"prompt": "x", "stream": "true"})
    error = failure if isinstance(failure, RelayError) else InternalError()
    assert answer.status_code == 200 and 'data: {"text":"Hel"}' in answer.text
    _, _, last = answer.text.partition("event: error\ndata: ")
    assert (
        error.message in last
        and "event: done" not in answer.text
        and "secrets" not in answer.text
    )
    before = (
        build(Scripted(failure))
        .test_client()
        .post(route, data={"prompt": "x", "stream": "true"})
    )
    assert (
        before.status_code == (500 if route == "/send_message" else error.status)
        and before.is_json
    )


WRONG = [
    ("GET", "/ask", 405, "method"),
    ("HEAD", "/ask", 405, ""),
    ("PUT", "/conversations", 405, "method"),
    ("GET", "/conversation/", 404, "no such route"),
    ("GET", "/conversation/a/b/c", 404, "no such conversation"),
    ("PATCH", "/conversations/a", 404, "no such route"),
    ("GET", "/conversation/..%2f..%2fetc", 404, ""),
    ("GET", f"/conversation/{NOBODYS}", 404, "no such conversation"),
    ("GET", "/conversation/%00", 404, ""),
    ("GET", "/conversation/%ff", 404, ""),
    ("GET", "/conversations?limit=-1", 400, "limit"),
    ("GET", "/conversations?offset=x", 400, "offset"),
    ("GET", "/conversations?access_token=x", 400, "Never put"),
    ("POST", "/ask?key=x", 400, "Never put"),
    ("POST", f"/conversation/{NOBODYS}/title", 404, "no such conversation"),
    ("POST", f"/conversation/{NOBODYS}/delete", 404, "no such conversation"),
    ("GET", "/../../etc/passwd", 404, ""),
    ("GET", "/%E4%BD%A0", 404, ""),
]


@pytest.mark.parametrize(("method", "path", "status", "message"), WRONG)
def test_wrong_paths_methods_and_queries_have_the_own_shape(
    client: FlaskClient, method: str, path: str, status: int, message: str
) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status and answer.is_json
    if method != "HEAD":
        assert answer.json["code"] == 1 and message in answer.json["msg"]
    if status == 405:
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    ("flag", "expected"), [("true", True), (1, True), ("no", False), ({}, None)]
)
def test_a_flag_of_openais_api_may_be_a_word(
    client: FlaskClient, flag: object, expected: bool | None
) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}], "stream": flag}
    answer = client.post("/v1/chat/completions", json=fields, buffered=True)
    if expected is None:
        assert answer.status_code == 400 and "stream must be" in answer.text
    else:
        assert answer.status_code == 200
        assert (answer.mimetype == "text/event-stream") is expected


def test_a_head_that_asks_nobody_names_no_length(client: FlaskClient) -> None:
    answer = client.head("/conversations")
    assert answer.status_code == 200 and "Content-Length" not in answer.headers


def test_failures_of_the_first_two_seeds_routes(client: FlaskClient) -> None:
    for answer in (
        client.get("/send_message"),
        client.post("/send_message"),
        client.post("/send_message", data={"prompt": "x", "parent_message_id": "p"}),
        client.post(
            "/send_message", data={"prompt": "x", "conversation_id": str(NOBODYS)}
        ),
        client.post(
            "/send_message",
            data="prompt=fish&chips",
            content_type="application/x-www-form-urlencoded",
        ),
        client.post("/send_message", data=b"{", content_type="application/json"),
        client.post(
            "/send_message",
            data={"prompt": "x", "reverse_proxy": "https://evil.example/"},
        ),
    ):
        assert (
            answer.status_code == 500
            and set(answer.json) == {"message"}
            and len(answer.json["message"]) > 20
        )


def test_a_body_over_the_limit_is_refused_in_the_routes_shape(build: Build) -> None:
    client = build(max_body=1000).test_client()
    for options in (
        {"data": {"msg": "x" * 2000}},
        {"json": {"msg": "x" * 2000}},
        {"data": {"msg": "x" * 500, "f": "y" * 600}},
    ):
        answer = client.post("/ask", **options)
        assert (answer.status_code, answer.json["error"]) == (
            413,
            "too_large",
        ) and "MAX_BODY" in answer.json["msg"]
    multipart = client.post(
        "/ask", data={"msg": "x" * 2000}, content_type="multipart/form-data"
    )
    assert multipart.status_code == 413


def test_a_large_prompt_within_the_limit_arrives(client: FlaskClient) -> None:
    prompt = "你好 " * 700_000
    boundary, multipart = encode_multipart(
        MultiDict({"msg": prompt}), boundary="a-boundary"
    )
    for options in (
        {"data": {"msg": prompt}},
        {
            "data": multipart,
            "content_type": f"multipart/form-data; boundary={boundary}",
        },
    ):
        conversation = body_of(client.post("/ask", **options))["data"][
            "conversation_id"
        ]
        nodes = client.get(f"/conversation/{conversation}").json["mapping"].values()
        assert (
            next(
                node["message"]["content"]["parts"][0]
                for node in nodes
                if node["message"]
            )
            == prompt
        )


ROUTES = [
    ("GET", "/conversations"),
    ("GET", "/conversation/some-id"),
    ("POST", "/conversation/some-id/delete"),
    ("POST", "/conversation/some-id/title"),
    ("POST", "/send_message"),
    ("POST", "/ask"),
    ("POST", "/chat"),
    ("GET", "/readyz"),
    ("GET", "/models"),
    ("GET", "/usage"),
]


def test_the_list_of_routes_is_complete(client: FlaskClient) -> None:
    routes = {
        (method, rule.rule.replace("<path:conversation_id>", "some-id"))
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint.startswith(("own.", "ndjson."))
    }
    public = {("GET", "/healthz"), ("GET", "/"), ("GET", "/files/<link>")}
    keyless = {("POST", "/get_access_token")}
    assert routes == {*ROUTES, *public, *keyless}


def test_the_root_page_says_that_the_service_works(build: Build) -> None:
    client = build(Scripted(needs_client_key=True)).test_client()
    answer = client.get("/", headers={"Accept": "text/html"})
    assert answer.status_code == 200 and answer.mimetype == "text/plain"
    assert __version__ in answer.text and "works" in answer.text
    commands = [line for line in answer.text.splitlines() if " curl " in line]
    assert len(commands) == 3 and "http://localhost/send_message" in commands[0]
    hidden = build(Scripted(), api_prefix="/secret").test_client()
    assert hidden.get("/").status_code == 404
    assert "http://localhost/secret/ask" in hidden.get("/secret/").text


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer ",
        "Bearer cw-wrong",
        "wrong",
        "Basic Ondyb25n",
        "Bearer the-client-key-0-",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [*ROUTES, ("GET", "/nowhere"), ("OPTIONS", "/ask"), ("HEAD", "/conversations")],
)
def test_without_a_key_every_route_is_refused(
    build: Build, method: str, path: str, header: str
) -> None:
    upstream = Scripted(needs_client_key=True)
    client = build(
        upstream, authorization=("the-client-key-0",), allow_caller_tokens=False
    ).test_client()
    headers = {"Authorization": header} if header else {}
    answer = client.open(
        path,
        method=method,
        headers=headers,
        data={"prompt": "x"} if method == "POST" else None,
    )
    assert answer.status_code == (500 if path == "/send_message" else 401)
    assert (
        answer.headers["WWW-Authenticate"].startswith("Bearer") and upstream.asked == []
    )
    assert client.get("/healthz").status_code == 200


def test_the_key_made_at_the_first_start(
    build: Build,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Any,
) -> None:
    first = build(Scripted(needs_client_key=True)).test_client()
    key = (tmp_path / "data" / "client_key").read_text().strip()
    assert first.post("/ask", data={"msg": "x"}).status_code == 401
    answer = body_of(first.post("/ask", data={"msg": "x", "access_token": key}))
    second = build(Scripted(needs_client_key=True)).test_client()
    assert "A client key was made" in caplog.text
    assert key not in capsys.readouterr().err + caplog.text, "a log is read by many"
    listed = second.get("/conversations", headers={"Authorization": key}).json
    assert [item["id"] for item in listed] == [answer["data"]["conversation_id"]]


def test_nothing_to_protect_makes_no_key(client: FlaskClient, tmp_path: Any) -> None:
    assert not (tmp_path / "data" / "client_key").exists()


def test_an_open_service_says_so_at_every_start(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        client = build(
            Scripted(needs_client_key=True), authorization=("none",)
        ).test_client()
        assert "AUTHORIZATION=none" in caplog.text
        body_of(client.post("/ask", data={"msg": "x"}))


def test_owners_do_not_see_each_other(build: Build) -> None:
    client = build(
        authorization=("alice:alices-client-key", "bob:bobs-client-key-1")
    ).test_client()
    alice, bob = (
        {"Authorization": "Bearer alices-client-key"},
        {"Authorization": "Bearer bobs-client-key-1"},
    )
    conversation_id = body_of(client.post("/ask", data={"msg": "mine"}, headers=alice))[
        "data"
    ]["conversation_id"]
    assert client.get("/conversations", headers=bob).json == []
    for method, path in (("GET", ""), ("POST", "/delete"), ("POST", "/title")):
        answer = client.open(
            f"/conversation/{conversation_id}{path}",
            method=method,
            headers=bob,
            json={"title": "x"},
        )
        assert (answer.status_code, answer.json["error"]) == (404, "no_conversation")
    assert (
        client.post(
            "/ask", data={"msg": "x", "conversation_id": conversation_id}, headers=bob
        ).status_code
        == 404
    )
    assert len(client.get("/conversations", headers=alice).json) == 1


def test_the_servers_credentials_never_travel_with_a_callers_own(build: Build) -> None:
    upstream = Scripted(needs_client_key=True, accepts_caller_tokens=True)
    client = build(upstream, authorization=("the-client-key-0",)).test_client()
    body_of(
        client.post("/send_message", data={"prompt": "x", "access_token": "their-own"})
    )
    body_of(
        client.post(
            "/send_message",
            data={"prompt": "x"},
            headers={"Authorization": "Bearer the-client-key-0"},
        )
    )
    assert [question.token for question in upstream.asked] == ["their-own", None]


def test_a_token_that_an_explicit_upstream_cannot_use(build: Build) -> None:
    answer = (
        build(upstream="offline")
        .test_client()
        .post("/ask", data={"msg": "x", "access_token": "eyJ.their.own"})
    )
    assert answer.status_code == 400 and "access_token" in answer.json["msg"]


FOREIGN = {"Sec-Fetch-Site": "cross-site", "Origin": "https://page.example"}


def test_a_page_of_another_origin_is_refused_unless_listed(build: Build) -> None:
    closed = build().test_client()
    answer = closed.post("/ask", data={"msg": "x"}, headers=FOREIGN)
    assert (answer.status_code, answer.json["error"]) == (403, "forbidden")
    listed = build(
        cors_origins=("https://page.example",), authorization=("the-client-key-0",)
    ).test_client()
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = listed.options("/ask", headers={**FOREIGN, **asked})
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    refused = listed.post("/ask", data={"msg": "x"}, headers=FOREIGN)
    assert refused.status_code == 401, "only a real preflight passes without a key"
    assert refused.headers["Access-Control-Allow-Origin"] == "https://page.example"
    answered = listed.post(
        "/ask",
        data={"msg": "x"},
        headers={**FOREIGN, "Authorization": "the-client-key-0"},
    )
    assert (
        answered.status_code == 200
        and answered.headers["Access-Control-Allow-Credentials"] == "true"
    )
    assert "Origin" in answered.headers["Vary"]
    other = listed.options(
        "/ask", headers={**FOREIGN, **asked, "Origin": "https://other.example"}
    )
    assert (
        other.status_code == 403 and "Access-Control-Allow-Origin" not in other.headers
    )


def test_the_prefix_hides_every_route(build: Build) -> None:
    client = build(api_prefix="/my/secret").test_client()
    assert (
        "You said: x"
        in body_of(client.post("/my/secret/ask", data={"msg": "x"}))["data"]["message"]
    )
    assert client.get("/my/secret/conversations").status_code == 200
    assert (
        client.get("/healthz").status_code
        == client.get("/my/secret/healthz").status_code
        == 200
    )
    for path in ("/ask", "/conversations", "/my/ask", "/my/secretask", "/"):
        assert client.post(path, data={"msg": "x"}).status_code == 404
    assert client.post("/my/secret/send_message").json.keys() == {"message"}


def test_request_ids(client: FlaskClient) -> None:
    assert (
        client.get("/healthz", headers={"X-Request-Id": "mine-1.2_3"}).headers[
            "X-Request-Id"
        ]
        == "mine-1.2_3"
    )
    for refused in ("a b", "x" * 65, "näh", "<script>"):
        assert (
            len(
                client.get("/healthz", headers={"X-Request-Id": refused}).headers[
                    "X-Request-Id"
                ]
            )
            == 32
        )
    assert client.get("/healthz").headers["Cache-Control"] == "no-store"


def test_the_request_id_is_sent_upstream(build: Build) -> None:
    upstream = Scripted()
    build(upstream).test_client().post(
        "/ask", data={"msg": "x"}, headers={"X-Request-Id": "mine"}
    )
    assert upstream.asked[0].request_id == "mine"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_log_line_holds_a_secret(
    build: Build, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream = Scripted(
        b"S|secret-reply|",
        RuntimeError("x"),
        needs_client_key=True,
        accepts_caller_tokens=True,
    )
    client = build(upstream, authorization=("secret-client-key-0",)).test_client()
    for data in (
        {"msg": "secret-prompt"},
        {"msg": "secret-prompt", "access_token": "secret-token"},
    ):
        client.post(
            "/ask?stream=1",
            data=data,
            headers={
                "Authorization": "Bearer secret-client-key-0",
                "Cookie": "a=secret-cookie",
            },
            buffered=True,
        )
        client.post(
            "/ask",
            data=data,
            headers={"Authorization": "Bearer secret-wrong"},
            buffered=True,
        )
    client.get(
        "/conversations?q=secret-query\n",
        headers={"Authorization": "Basic secret"},
        buffered=True,
    )
    formatter = logs.JsonLines() if form == "json" else logs.TextLines()
    lines = [formatter.format(record) for record in caplog.records]
    assert len(lines) >= 5 and not [line for line in lines if "secret" in line]


def test_a_caller_can_forge_no_log_line(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.get("/x%0A2026-01-01%20INFO%20request%20id=forged", buffered=True)
    for formatter in (logs.TextLines(), logs.JsonLines()):
        assert "\n" not in formatter.format(caplog.records[-1])


@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150
)
@given(
    path=st.sampled_from(["/ask", "/send_message", "/conversation/x/title", "/conversation/x/delete"]),
    content_type=st.sampled_from(
        ["", "application/json", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=B"]
    ),
    body=st.binary(max_size=100) | st.text('{}[]":,a0\\u&=+%\n-B', max_size=60).map(str.encode),
    accept=st.sampled_from(["", "text/plain", "*/*", "application/json;q=0", "nonsense;;q=x"]),
)  # fmt: skip
def test_no_body_gets_anything_but_a_sentence(
    client: FlaskClient, path: str, content_type: str, body: bytes, accept: str
) -> None:
    answer = client.post(
        path, data=body, headers={"Content-Type": content_type, "Accept": accept}
    )
    if answer.status_code != 200:
        assert (
            "Traceback" not in answer.text
            and "<" not in answer.text
            and len(answer.text) > 20
        )
        assert answer.headers["X-Error-Source"] == "caller"
