"""The access log: who asked, from where, and why it failed; never what an upstream or a caller wrote."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from relay.errors import UpstreamFailed
from tests.chatgpt_backend import Backend
from tests.chatgpt_backend import Mode as ChatGPTMode
from tests.openai_backend import Mode, OpenAIBackend, error
from tests.processes import ROOT, SERVERS, Service, outcomes
from tests.scripted import Scripted
from tests.tokens import jwt
from tests.waiting import wait_for

Build = Callable[..., Flask]
Lines = Callable[[], list[dict[str, Any]]]

CANARY = "canary-that-sings"
KEY = {"Authorization": "Bearer the-client-key-0"}
KEYS = ("alice:the-client-key-0", "bob:the-client-key-1")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The access log's lines so far."""
    caplog.set_level(logging.DEBUG)

    def read() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.msg == "request"]
        return [vars(record)["fields"] for record in records]

    return read


def test_a_line_says_who_asked_and_from_where(build: Build, lines: Lines) -> None:
    client = build(Scripted(), authorization=KEYS).test_client()
    client.post("/ask", data={"msg": "x"}, headers=KEY, buffered=True)
    second = {"msg": "x", "access_token": "the-client-key-1"}
    forwarded = {"X-Forwarded-For": "203.0.113.1, 198.51.100.7"}
    client.post("/ask", data=second, headers=forwarded, buffered=True)
    client.get("/conversations", buffered=True)
    found = [(line["who"], line["from"], line.get("why")) for line in lines()]
    assert found[:2] == [("alice", "127.0.0.1", None), ("bob", "198.51.100.7", None)]
    assert found[2][:2] == ("-", "127.0.0.1")
    assert str(found[2][2]).startswith("This service asks for a client key.")


def test_a_callers_own_account_is_named(
    build: Build, backend: Backend, lines: Lines
) -> None:
    app = build(reverse_proxy=backend.url, authorization=KEYS)
    token = jwt(sub="user-1")
    headers = {"Authorization": f"Bearer {token}"}
    app.test_client().post("/ask", data={"msg": "x"}, headers=headers, buffered=True)
    [line] = lines()
    assert line["who"].startswith("account-") and token not in str(line)


def test_without_keys_everybody_is_anonymous(build: Build, lines: Lines) -> None:
    build(Scripted()).test_client().get("/conversations", buffered=True)
    assert lines()[0]["who"] == "anonymous"


def test_a_healthy_services_probes_are_logged_at_debug(
    build: Build, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    client = build(Scripted()).test_client()
    client.get("/healthz", buffered=True)
    [record] = [record for record in caplog.records if record.msg == "request"]
    assert record.levelno == logging.DEBUG
    caplog.set_level(logging.INFO)
    client.get("/healthz", buffered=True)
    client.get("/readyz", buffered=True)
    assert [line["path"] for line in lines()] == ["/healthz", "/readyz"]


def test_a_failure_within_a_stream_says_why(build: Build, lines: Lines) -> None:
    failure = UpstreamFailed(f"It said: {CANARY}", quoted=CANARY)
    client = build(Scripted(b"S|Hel|", failure)).test_client()
    fields = {"msg": "x", "stream": "true"}
    keyed = {"Idempotency-Key": "k1"}
    for headers in ({}, keyed):
        answer = client.post("/ask", data=fields, headers=headers, buffered=True)
        assert answer.status_code == 200 and CANARY in answer.text
    client.post("/ask", data={"msg": "y"}, buffered=True)
    for line in lines():
        assert (line["outcome"], line["why"]) == ("upstream_failed", "It said: ...")


OPENAI_MODES = {
    "an error": Mode(failing={"x": (400, json.dumps(error(CANARY)).encode())}),
    "its code": Mode(failing={"x": (400, json.dumps(error("No", code=CANARY)).encode())}),
    "a text": Mode(failing={"x": (500, CANARY.encode())}),
    "a rejected key": Mode(failing={"x": (401, json.dumps(error(CANARY)).encode())}),
    "a limit": Mode(failing={"x": (429, json.dumps(error(CANARY)).encode())}),
    "a wrong path": Mode(failing={"x": (404, json.dumps(error(CANARY)).encode())}),
    "no model": Mode(failing={"x": (404, json.dumps(error(f"model {CANARY}")).encode())}),
    "a refusal": Mode(refusal=CANARY),
    "an event": Mode(raw=b"data: " + json.dumps(error(CANARY)).encode() + b"\n\n"),
    "a limit in an event": Mode(raw=b"data: " + json.dumps(error(CANARY, code="rate_limit_exceeded")).encode() + b"\n\n"),
    "a status in an event": Mode(raw=b"data: " + json.dumps(error(CANARY, code="422")).encode() + b"\n\n"),
    "a key in an event": Mode(raw=b"data: " + json.dumps(error(CANARY, code="invalid_api_key")).encode() + b"\n\n"),
}  # fmt: skip


@pytest.mark.parametrize("mode", OPENAI_MODES.values(), ids=OPENAI_MODES)
@pytest.mark.parametrize("keyed", [False, True])
def test_what_an_api_wrote_is_in_the_answer_and_not_in_the_log(
    build: Build,
    api: OpenAIBackend,
    caplog: pytest.LogCaptureFixture,
    lines: Lines,
    mode: Mode,
    keyed: bool,
) -> None:
    api.mode = mode
    app = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        openai_model="tiny-1",
        authorization=KEYS,
    )
    client = app.test_client()
    headers = {**KEY, "Idempotency-Key": "k1"} if keyed else KEY
    for _ in range(2):  # with a key, the second time it is replayed
        answer = client.post("/ask", data={"msg": "x"}, headers=headers, buffered=True)
        assert answer.status_code >= 400 and CANARY in answer.text
    assert CANARY not in caplog.text
    assert len(lines()) == 2
    for line in lines():
        assert line["why"] and CANARY not in str(line)


def check_chatgpts_words(build: Build, backend: Backend) -> None:
    """Ask ChatGPT; what it says of its failure is in the answer."""
    client = build(
        reverse_proxy=backend.url, access_token=("token-1",), authorization=KEYS
    ).test_client()
    answer = client.post("/ask", data={"msg": "x"}, headers=KEY, buffered=True)
    assert answer.status_code >= 400 and CANARY in answer.text


CHATGPT_MODES = {
    "a detail": (400, {"detail": CANARY}),
    "a rejected token": (401, {"detail": CANARY}),
    "a closed account": (403, {"detail": {"message": CANARY, "code": "account_deactivated"}}),
    "a limit": (429, {"detail": CANARY}),
    "validation": (422, {"detail": [{"msg": CANARY, "loc": ["body"]}]}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body"), CHATGPT_MODES.values(), ids=list(CHATGPT_MODES)
)
def test_what_chatgpt_wrote_is_in_the_answer_and_not_in_the_log(
    build: Build,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
    lines: Lines,
    status: int,
    body: Any,
) -> None:
    refusal = (status, {"Content-Type": "application/json"}, json.dumps(body).encode())
    backend.mode = ChatGPTMode(refuse_tokens={"token-1": refusal})
    check_chatgpts_words(build, backend)
    assert CANARY not in f"{caplog.text} {lines()}" and lines()[0]["why"]


EVENTS = {
    "an error": {"error": CANARY, "message": None},
    "a code": {"error": None, "error_code": CANARY, "message": None},
    "a gone conversation": {"error": CANARY, "error_code": "conversation_deleted"},
    "a long one": {"error": CANARY, "error_code": "conversation_too_large"},
    "a token": {"error": CANARY, "error_code": "token_expired"},
    "a limit": {"error": CANARY, "error_code": "model_cap_exceeded"},
    "a quota": {"type": "stream_quota_check", "message": CANARY},
}


@pytest.mark.parametrize("payload", EVENTS.values(), ids=EVENTS)
def test_what_chatgpts_events_say_is_not_in_the_log(
    build: Build,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
    lines: Lines,
    payload: dict[str, Any],
) -> None:
    backend.mode = ChatGPTMode(raw=f"data: {json.dumps(payload)}\n\n".encode())
    check_chatgpts_words(build, backend)
    assert CANARY not in f"{caplog.text} {lines()}" and lines()[0]["why"]


URLENCODED = "application/x-www-form-urlencoded"
FIELDS = {
    "twice": (URLENCODED, f"msg=x&{CANARY}=1&{CANARY}=2".encode()),
    "charset of a value": (URLENCODED, f"msg=x&{CANARY}=%ff".encode()),
    "charset": (f"{URLENCODED}; charset={CANARY}", b"msg=x"),
    "type": (f"application/{CANARY}", b"msg=x"),
    "multipart": (
        "multipart/form-data; boundary=B",
        b"--B\r\nContent-Disposition: form-data; name=" + CANARY.encode() + b"\r\n\r\n\xff\r\n--B--",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), FIELDS.values(), ids=list(FIELDS))
def test_what_a_caller_wrote_is_in_the_answer_and_not_in_the_log(
    client: FlaskClient,
    caplog: pytest.LogCaptureFixture,
    lines: Lines,
    kind: str,
    body: bytes,
) -> None:
    answer = client.post("/ask", data=body, content_type=kind, buffered=True)
    assert answer.status_code in (400, 415) and CANARY in answer.text
    assert CANARY not in f"{caplog.text} {lines()}"
    assert "..." in lines()[0]["why"]


def test_a_rehearsed_word_that_is_none_is_not_in_the_log(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, lines: Lines
) -> None:
    for word in ("canary", "canary=1"):
        fields = {"msg": f"x offline:{word}"}
        answer = client.post("/ask", data=fields, buffered=True)
        assert answer.status_code == 400 and "canary" in answer.text
    assert "canary" not in f"{caplog.text} {lines()}" and lines()[0]["why"]


@pytest.mark.parametrize("server", SERVERS)
def test_the_address_is_that_which_a_trusted_proxy_names(
    serve: Callable[..., Service], server: str
) -> None:
    header = {"X-Forwarded-For": "203.0.113.1, 198.51.100.7, 10.1.2.3"}
    services = [
        (serve(server, FORWARDED_ALLOW_IPS="127.0.0.0/8,10.0.0.0/8"), "198.51.100.7"),
        (serve(server, FORWARDED_ALLOW_IPS="192.0.2.1"), "127.0.0.1"),
        (serve(server), "10.1.2.3"),
    ]
    for service, address in services:
        requests.get(f"{service.url}/conversations", headers=header, timeout=5)
        wait_for(lambda service=service: outcomes(service))
        assert outcomes(service)[0]["from"] == address
        assert "/healthz" not in service.logged()


def listens(path: Path) -> bool:
    """Whether somebody takes connections at a UNIX socket: it is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def test_a_peer_without_an_address_is_a_trusted_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn on a UNIX socket: who may connect is the file's business."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    path = tmp_path / "service.sock"
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-b", f"unix:{path}"]
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, "wsgi:app"], cwd=ROOT, stderr=stream)
    try:
        wait_for(lambda: listens(path), 20)
        for header, address in (("198.51.100.7", "198.51.100.7"), ("", "-")):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(
                    b"GET /conversations HTTP/1.0\r\nHost: localhost\r\n"
                    b"X-Forwarded-For: " + header.encode() + b"\r\n\r\n"
                )
                assert b" 200 " in connection.recv(1000)
            line = f" who=anonymous from={address} "
            wait_for(lambda line=line: line in log.read_text())
    finally:
        process.terminate()
        process.wait(10)
