"""What a start says, under both servers; and what systemd is told."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from relay.domain import Conversation
from relay.service import Service as RunningService
from relay.settings import Settings, SettingsError
from relay.startup import describe_start
from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.processes import SERVERS, Service, curl
from tests.tokens import jwt
from tests.waiting import wait_for

Serve = Callable[..., Service]
Build = Callable[..., Flask]


@pytest.mark.parametrize(
    "wrong", [{"auth_url": "nowhere"}, {"platform_base_url": "nowhere"}]
)
def test_a_start_that_is_refused_leaves_nothing_running(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    before = set(threading.enumerate())
    with pytest.raises(SettingsError):
        RunningService.build(Settings(data_dir=str(tmp_path / "data"), **wrong))
    assert set(threading.enumerate()) <= before


def messages(service: Service) -> list[tuple[str, str]]:
    """The log's lines: level and message."""
    found = [
        json.loads(line)
        for line in service.logged().splitlines()
        if line.startswith("{")
    ]
    return [(line["level"], line["message"]) for line in found]


def printed_example(service: Service) -> str:
    [line] = wait_for(lambda: re.findall(r"Try it: (curl .*)", service.logged()))
    return str(line)


@pytest.mark.parametrize("prefix", ["", "/secret"])
@pytest.mark.parametrize("server", SERVERS)
def test_the_printed_curl_works_as_it_is(
    serve: Serve, api: OpenAIBackend, tmp_path: Path, server: str, prefix: str
) -> None:
    folder = tmp_path / "it's a folder"
    service = serve(
        server,
        OPENAI_BASE_URL=api.url,
        OPENAI_API_KEY="sk-invented-1",
        DATA_DIR=str(folder),
        API_PREFIX=prefix,
        LOG_FORMAT="text",
    )
    example = printed_example(service)
    answer = subprocess.run(
        example, shell=True, cwd="/", capture_output=True, text=True, timeout=30
    )
    assert "You said: hello" in json.loads(answer.stdout)["text"], answer
    key = (folder / "client_key").read_text().strip()
    assert "client_key" in example and key not in example
    log = service.logged()
    assert f"New conversations are answered by openai at {api.url}" in log
    assert f"The client key is in {folder}/client_key." in log
    assert f"Conversations are kept in {folder}/conversations.db." in log


def test_where_callers_bring_their_tokens_the_printed_curl_has_one(
    serve: Serve, backend: Backend
) -> None:
    service = serve(REVERSE_PROXY=backend.url, LOG_FORMAT="text")
    said = "Try it, with an access token of ChatGPT's in place of TOKEN: (curl .*)"
    [example] = wait_for(lambda: re.findall(said, service.logged()))
    line = example.replace("TOKEN", jwt(sub="user-1"))
    answer = subprocess.run(
        line, shell=True, cwd="/", capture_output=True, text=True, timeout=30
    )
    assert json.loads(answer.stdout)["text"], answer


def test_a_second_start_says_where_the_key_is_too(
    serve: Serve, api: OpenAIBackend
) -> None:
    service = serve(OPENAI_BASE_URL=api.url)
    service.terminate()
    service.process.wait(10)
    service.start()
    wait_for(lambda: service.logged().count("The client key is in") == 2)


@pytest.mark.parametrize("server", SERVERS)
def test_without_settings_the_start_warns_that_no_model_answers(
    serve: Serve, server: str
) -> None:
    service = serve(server)
    wait_for(lambda: "Try it" in service.logged())
    [(level, text)] = [line for line in messages(service) if "no model" in line[1]]
    assert level == "WARNING" and "OPENAI_BASE_URL" in text and "ACCESS_TOKEN" in text
    assert (
        "INFO",
        "No client key is asked for: there is nothing to protect.",
    ) in messages(service)
    chosen = serve(server, UPSTREAM="offline")
    wait_for(lambda: "Try it" in chosen.logged())
    assert "WARNING" not in {level for level, _ in messages(chosen)}
    assert "which is no model" in chosen.logged()


def test_several_workers_say_it_once(serve: Serve) -> None:
    service = serve("gunicorn", GUNICORN_CMD_ARGS="--workers 2")
    wait_for(lambda: service.logged().count("Booting worker") == 2)
    for _ in range(20):
        assert requests.get(f"{service.url}/healthz", timeout=5).ok
    wait_for(lambda: "Try it" in service.logged())
    assert service.logged().count("Try it") == 1


def texts(app: Flask, address: tuple[str, int] | str = ("127.0.0.1", 80)) -> str:
    lines = describe_start(app.extensions["service"], address)
    return "\n".join(line.text for line in lines)


def test_where_chatgpt_answers(build: Build, backend: Backend) -> None:
    app = build(
        reverse_proxy=backend.url,
        access_token=("token-1", "token-2"),
        authorization=("alice:alices-client-key", "bob:bobs-client-key"),
    )
    found = texts(app)
    assert (
        f"by chatgpt-web at {backend.url}/backend-api, with ACCESS_TOKEN (2 tokens)"
        in found
    )
    assert "Client keys are those of AUTHORIZATION: alice, bob." in found
    assert "in place of KEY: curl -u :KEY " in found
    assert "client-key" not in found and "token-1" not in found


@pytest.mark.parametrize(
    ("address", "end"),
    [
        (("0.0.0.0", 80), "http://127.0.0.1:80/send_message"),
        (("::", 80), "'http://[::1]:80/send_message'"),
        (("192.0.2.1", 80), "http://192.0.2.1:80/send_message"),
        ("/run/a b", "--unix-socket '/run/a b' http://localhost/send_message"),
    ],
)
def test_the_example_reaches_the_address(
    build: Build, address: tuple[str, int] | str, end: str
) -> None:
    assert texts(build(), address).endswith(end)


def test_a_password_of_the_database_is_not_shown(build: Build) -> None:
    app = build()
    service = app.extensions["service"]
    settings = service.settings
    object.__setattr__(
        settings, "database_url", "postgresql+psycopg://me:secret-word@db/chat"
    )
    assert "secret-word" not in texts(app) and "@db/chat" in texts(app)


def test_conversations_that_no_key_reaches(build: Build) -> None:
    app = build(authorization=("alice:alices-client-key",))
    store = app.extensions["service"].store
    owners = (
        "anonymous",
        "anonymous",
        "alice",
        "account-0123456789abcdef",
        "token-0123",
    )
    for number, owner in enumerate(owners):
        store.index(Conversation(f"c-{number}", owner, "offline", None, "", None, 1, 1))
    [line] = [line for line in texts(app).splitlines() if "cannot be reached" in line]
    assert line.startswith("2 conversations of anonymous cannot be reached")
    assert line.endswith("chatgpt_webapi.py keys give anonymous alice")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_of_start_and_stop(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name if kind == "abstract" else name)
        channel.settimeout(10)
        service = serve(NOTIFY_SOCKET="@" + name if kind == "abstract" else name)
        assert channel.recv(100) == b"READY=1"
        assert curl(f"{service.url}/healthz").returncode == 0
        service.terminate()
        assert channel.recv(100) == b"STOPPING=1"
        assert service.process.wait(10) == 0
    gone = serve(NOTIFY_SOCKET=f"{tmp_path}/nobody")
    wait_for(lambda: "systemd could not be notified" in gone.logged())
