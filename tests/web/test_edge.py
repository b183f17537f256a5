"""The edge: what it lets through untouched, whose shape an error has, and that no view is open by mistake."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from werkzeug.test import EnvironBuilder

import chatgpt_webapi
from chatgpt_webapi import DIALECTS
from relay.errors import RelayError, UpstreamFailed
from relay.service import Service
from relay.settings import Settings
from relay.web import edge
from relay.web.app import App
from relay.web.edge import Dialect
from relay.web.incoming import Incoming
from relay.web.own import ANSWER_FORMATS, choose_format
from relay.web.response import Response
from tests.scripted import Scripted

forwarding = Blueprint("forwarding", __name__)


@forwarding.route("/forward/<path:rest>", methods=["GET", "POST", "PUT"])
def forward(incoming: Incoming, rest: str) -> Response:
    """What a route that passes bytes on does with them: it reads the stream, piece by piece."""
    digest = hashlib.sha256()
    for piece in incoming.body_pieces():
        digest.update(piece)
    owner = incoming.caller.owner
    answer = f"{owner} {incoming.content_type} {digest.hexdigest()}"
    return Response(answer.encode())


@forwarding.get("/forward/fails")
def fails(incoming: Incoming) -> Response:
    raise UpstreamFailed("It failed.")


@forwarding.post("/forward-open")
def careless(incoming: Incoming) -> Response:
    """A view whose dialect says that it authenticates, and that forgets to."""
    return Response(incoming.caller.owner.encode())


def shouted(error: RelayError, incoming: Incoming) -> Response:
    return Response(f"{error.code.upper()}!".encode(), status=error.status)


FORWARDING = Dialect(forwarding, ("forward",), shouted)
CARELESS = replace(
    FORWARDING, first_segments=("forward", "forward-open"), token_in_body=True
)


@pytest.fixture
def make(
    monkeypatch: pytest.MonkeyPatch, build: Callable[..., Flask]
) -> Callable[..., FlaskClient]:
    """A service with one more dialect."""

    def client_with(
        dialect: Dialect, *upstreams: object, **settings: object
    ) -> FlaskClient:
        monkeypatch.setattr(chatgpt_webapi, "DIALECTS", (*DIALECTS, dialect))
        return build(*upstreams, **settings).test_client()

    return client_with


KEY = {"Authorization": "Bearer the-client-key-0"}
BODIES = [
    ("image/png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20),
    ("application/octet-stream", bytes(5000)),
    ("application/json", b"[1, 2, 3]"),
    ("application/json", b"{broken"),
    ("application/x-www-form-urlencoded", b"fish&chips=%zz"),
    ("multipart/form-data; boundary=B", b"--B\r\nno part\r\n--B--"),
    ("text/xml", b"<a/>"),
]


@pytest.mark.parametrize(("kind", "body"), BODIES)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_of_any_type_reaches_its_view_untouched(
    make: Callable[..., FlaskClient], kind: str, body: bytes, method: str
) -> None:
    client = make(FORWARDING, authorization=("owner:the-client-key-0",))
    answer = client.open(
        "/forward/to/it?access_token=theirs",
        method=method,
        data=body,
        content_type=kind,
        headers=KEY,
    )
    digest = hashlib.sha256(body).hexdigest()
    assert answer.text == f"owner {kind} {digest}"


def test_an_error_has_the_shape_of_the_dialect_that_its_path_is_registered_with(
    make: Callable[..., FlaskClient],
) -> None:
    client = make(FORWARDING, authorization=("the-client-key-0",))
    answer = client.get("/forward/fails", headers=KEY)
    assert (answer.status_code, answer.text) == (502, "UPSTREAM_FAILED!")
    assert answer.headers["X-Error-Code"] == "upstream_failed"
    assert client.get("/forward/fails").text == "UNAUTHORIZED!"
    assert client.delete("/forward/fails", headers=KEY).text == "METHOD_NOT_ALLOWED!"
    assert client.get("/forward", headers=KEY).text == "NOT_FOUND!"
    assert client.get("/forwards", headers=KEY).json["error"] == "not_found"


def test_a_view_that_forgets_to_authenticate_is_open_to_nobody(
    make: Callable[..., FlaskClient],
) -> None:
    client = make(CARELESS, authorization=("the-client-key-0",))
    for headers in ({}, KEY):
        assert client.post("/forward-open", headers=headers).status_code == 401


def test_streams_are_kept_from_those_who_would_hold_them_back(
    build: Callable[..., Flask],
) -> None:
    client = build(Scripted()).test_client()
    for data in (
        {"msg": "x", "stream": "1"},
        {"msg": "x", "stream": "1", "format": "text"},
    ):
        answer = client.post("/ask", data=data, buffered=True)
        assert answer.headers["Cache-Control"] == "no-store, no-transform"
        assert answer.headers["X-Accel-Buffering"] == "no"
    lines = client.post("/chat", json={"prompt": "x"}, buffered=True)
    assert lines.headers["Cache-Control"] == "no-store, no-transform"
    whole = client.post("/ask", data={"msg": "x"})
    assert whole.headers["Cache-Control"] == "no-store"


def test_the_app_is_built_from_what_is_handed_in(tmp_path: object) -> None:
    settings = Settings(data_dir=str(tmp_path))
    service = Service.build(settings)
    app = App("another")
    edge.install(app, service, DIALECTS)
    assert app.test_client().get("/healthz").status_code == 200
    service.close()


IDS = [
    {"conversation_id": "undefined", "parent_message_id": "undefined"},
    {"conversationId": "null", "parentMessageId": "null"},
    {"conversation_id": "", "parentMessageId": ""},
]


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("route", ["/send_message", "/ask", "/chat"])
def test_ids_that_a_script_did_not_have_begin_a_conversation(
    build: Callable[..., Flask], route: str, ids: dict[str, str]
) -> None:
    client = build(Scripted()).test_client()
    given = {"prompt": "x", "history_disabled": "false", **ids}
    answer = client.post(route, data=given, buffered=True)
    assert answer.status_code == 200 and answer.headers["X-Conversation-Id"]


@pytest.mark.parametrize("route", ["/send_message", "/ask", "/chat"])
def test_the_names_of_node_clients_go_on_with_a_conversation(
    build: Callable[..., Flask], route: str
) -> None:
    upstream = Scripted()
    client = build(upstream).test_client()
    first = client.post("/send_message", data={"prompt": "one"}).json
    given = {
        "prompt": "two",
        "conversationId": first["conversation_id"],
        "parentMessageId": first["parent_message_id"],
        "messageId": "11111111-1111-4111-8111-111111111111",
    }
    answer = client.post(route, data=given, buffered=True)
    assert answer.headers["X-Conversation-Id"] == first["conversation_id"]
    assert answer.headers["X-Ignored-Parameters"] == "messageId"
    assert [message.text for message in upstream.asked[1].messages] == [
        "one",
        "Hello",
        "two",
    ]


def test_json_and_text_end_with_one_line_end(build: Callable[..., Flask]) -> None:
    client = build(Scripted(b"S|", b"Hi|", b"F|")).test_client()
    for path, fields in (
        ("/ask", {"msg": "x"}),
        ("/ask", {"msg": "x", "format": "text"}),
        ("/ask", {}),
        ("/ask", {"format": "text"}),
    ):
        text = client.post(path, data=fields).text
        assert text.endswith("\n") and not text.endswith("\n\n")
    name = client.post("/ask", data={"msg": "x"}).headers["X-Conversation-Id"]
    formats = ("", "?format=markdown", "?format=jsonl")
    paths = [f"/conversation/{name}{form}" for form in formats]
    for path in ("/", "/healthz", "/readyz", "/conversations", *paths):
        text = client.get(path).text
        assert text.endswith("\n") and not text.endswith("\n\n")
    ended = build(Scripted(b"S|", b"Hi\n|", b"F|")).test_client()
    assert ended.post("/ask", data={"msg": "x", "format": "text"}).text == "Hi\n"


def test_chats_last_line_has_no_line_end(build: Callable[..., Flask]) -> None:
    client = build(Scripted()).test_client()
    for body in ({"prompt": "x"}, {}):
        answer = client.post("/chat", json=body, buffered=True)
        assert answer.text.splitlines()[-1].startswith('{"done":true')
        assert not answer.text.endswith("\n")


def test_what_is_remembered_of_strangers_headers_is_short() -> None:
    """gunicorn takes names and values of 8 KB; each that is remembered stays."""
    headers = {
        "X" * 8000: "a",
        "X-Short": "b",
        "Accept": "text/plain," + "a/b," * 8000,
    }
    incoming = Incoming(EnvironBuilder("/ask", headers=headers).get_environ())
    assert incoming.fields["X-Short"] == "b"
    assert all(len(name) < 300 for name in incoming.fields)
    assert choose_format(incoming, {}, ANSWER_FORMATS) == "text"
