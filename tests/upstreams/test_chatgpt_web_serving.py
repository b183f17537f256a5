"""The service as a process before a ChatGPT backend: many at once, callers that leave, a stop, nothing in the log."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.chatgpt_backend import Backend, Mode
from tests.nginx import Nginx, stock
from tests.processes import SERVERS, Service, outcomes
from tests.waiting import wait_for

Start = Callable[..., Service]


@pytest.fixture
def start(serve: Start, backend: Backend) -> Start:
    def begin(server: str = "pywsgi", **environ: str) -> Service:
        defaults = {
            "REVERSE_PROXY": backend.url,
            "ACCESS_TOKEN": "secret-token-1",
            "AUTHORIZATION": "secret-of-the-owner",
        }
        return serve(server, **{**defaults, **environ})

    return begin


def ask(service: Service, **fields: Any) -> dict[str, Any]:
    payload = {"prompt": "hello", "access_token": "secret-of-the-owner", **fields}
    answer = requests.post(f"{service.url}/send_message", data=payload, timeout=60)
    assert answer.status_code == 200, answer.text
    text = (
        answer.text.partition("event: done\ndata: ")[2]
        if fields.get("stream")
        else answer.text
    )
    reply: dict[str, Any] = json.loads(text)
    return reply


@pytest.mark.parametrize("encoding", ["classic", "delta"])
def test_fifty_conversations_of_four_turns_at_once(
    start: Start, backend: Backend, encoding: str
) -> None:
    backend.mode = Mode(encoding=encoding, pieces_of=97)
    service = start()

    def talk(number: int) -> None:
        ids: dict[str, str] = {}
        for turn in range(1, 5):
            prompt = f"secret of {number} in turn {turn}"
            reply = ask(
                service, prompt=prompt, stream="true" if turn % 2 else "", **ids
            )
            assert reply["text"] == f"Turn {turn}. You said: {prompt} — 你好 🙂."
            ids = {
                name: reply[name] for name in ("conversation_id", "parent_message_id")
            }

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(talk, range(50)))
    assert len(backend.turns) == 200 and len(backend.asked) == 200, "one POST an ask"
    assert len(backend.trees) == 50
    asked = [
        node["message"]
        for tree in backend.trees.values()
        for node in tree["mapping"].values()
        if node["message"]
    ]
    assert (
        len(
            {
                message["content"]["parts"][0]
                for message in asked
                if message["author"]["role"] == "user"
            }
        )
        == 200
    )


PHASES = {
    "before the head": Mode(delay=30),
    "before the first token": Mode(quiet=30),
    "in mid-stream": Mode(stall_after=4),
}


def leave(port: int, backend: Backend, kind: dict[str, str]) -> float:
    """Ask, leave after a moment, and return the seconds until the backend noticed."""
    body = urlencode(
        {"msg": "x", "access_token": "secret-of-the-owner", **kind}
    ).encode()
    head = "POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
    asked = len(backend.turns)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall((head % len(body)).encode() + body)
        wait_for(lambda: len(backend.turns) > asked and backend.turns[-1].waiting)
        time.sleep(0.3)  # while the caller waits, the upstream call stays open
        assert backend.turns[-1].left is None
    left = time.monotonic()
    wait_for(lambda: backend.turns[-1].left, 3)
    return float(backend.turns[-1].left or 0) - left


@pytest.mark.parametrize("server", SERVERS)
def test_a_caller_that_leaves_is_gone_upstream_within_a_second(
    start: Start, backend: Backend, nginx: Nginx, tmp_path: Path, server: str
) -> None:
    service = start(server)
    text, url = stock(service, tmp_path)
    nginx(text)
    ports = {"directly": service.port, "through nginx": int(url.rsplit(":", 1)[1])}
    kinds: dict[str, dict[str, str]] = {"plain": {}, "stream": {"stream": "true"}}
    table = []
    for phase, mode in PHASES.items():
        for kind, fields in kinds.items():
            for way, port in ports.items():
                backend.mode = mode
                took = leave(port, backend, fields)
                table.append(
                    f"{server:9} {phase:22} {kind:7} {way:14} {took * 1000:6.0f} ms"
                )
                assert took < 1
    print("\n" + "\n".join(table))
    backend.mode = Mode()
    assert "Turn 1." in ask(service)["text"]
    assert "Traceback" not in service.logged()


def test_a_kill_leaves_conversations_that_go_on(start: Start, backend: Backend) -> None:
    service = start()
    first = ask(service)
    backend.mode = Mode(stall_after=6)
    with pytest.raises(requests.RequestException), ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, service, prompt="cut off", stream="true")
        wait_for(lambda: len(backend.turns) == 2 and backend.turns[1].waiting)
        service.kill()
        running.result()
    backend.mode = Mode()
    service.start()
    assert "Turn 2." in ask(service, conversation_id=first["conversation_id"])["text"]
    headers = {"Authorization": "secret-of-the-owner"}
    listed = requests.get(
        f"{service.url}/conversations", headers=headers, timeout=5
    ).json()
    assert len(listed) == 2


def test_a_stop_lets_a_running_answer_end(start: Start, backend: Backend) -> None:
    service = start()
    backend.mode = Mode(pace=0.2)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, service)
        wait_for(lambda: backend.turns and backend.turns[0].waiting)
        service.terminate()
        assert "Turn 1." in running.result()["text"]
    assert service.process.wait(10) == 0


SECRET_TOKEN = "eyJsecret.secret-claims.secret-signature"


def test_the_log_holds_no_credential_and_no_text(
    start: Start, backend: Backend
) -> None:
    service = start(LOG_LEVEL="debug")
    ask(service, prompt="secret-prompt")
    ask(service, prompt="secret-prompt", access_token=SECRET_TOKEN)
    for mode in (
        Mode(cut_after=3),
        Mode(refusals=[(401, {}, b"{}")]),
        Mode(raw=b"garbage secret-reply"),
    ):
        backend.mode = mode
        requests.post(
            f"{service.url}/ask",
            data={"msg": "secret-prompt", "access_token": "secret-of-the-owner"},
            timeout=10,
        )
    requests.get(
        f"{service.url}/conversations",
        headers={"Authorization": f"Bearer {SECRET_TOKEN}"},
        timeout=10,
    )
    log = wait_for(lambda: len(outcomes(service)) >= 6 and service.logged())
    assert "secret" not in log and "You said" not in log


def test_memory_after_a_thousand_asks(start: Start, backend: Backend) -> None:
    service = start()

    def talk(_: int) -> None:
        for _ in range(125):
            ask(service)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    assert service.resident() <= 80
