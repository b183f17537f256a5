"""The recipes of the README for callers that cannot wait: proxies that cut, and chat platforms with five seconds."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.openai_backend import Mode, OpenAIBackend
from tests.processes import ROOT, Service, curl

Start = Callable[..., Service]
README = (ROOT / "README.md").read_text()
CUT = (
    b"HTTP/1.1 524 A Timeout Occurred\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def read_request(connection: socket.socket) -> bytes:
    """One request, with a body of a stated length."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(65536)
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + b"\r\nConnection: close\r\n\r\n" + body


class CuttingProxy:
    """Passes requests on; where the first byte of an answer takes over `seconds`, it says 524, as a CDN does."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.seconds = seconds
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.pass_on(connection)

    def pass_on(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as service:
            service.sendall(read_request(client))
            service.settimeout(self.seconds)
            try:
                piece = service.recv(65536)
            except TimeoutError:
                self.cuts += 1
                client.sendall(CUT)
                return
            service.settimeout(10)
            while piece:
                client.sendall(piece)
                piece = service.recv(65536)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def slow_service(serve: Start, api: OpenAIBackend) -> Service:
    """A service before a model that takes a while."""
    return serve(
        OPENAI_BASE_URL=api.url,
        OPENAI_API_KEY="sk-invented-1",
        OPENAI_MODEL="tiny-1",
        AUTHORIZATION="the-client-key-0",
    )


@pytest.fixture
def proxy(slow_service: Service) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(slow_service.port, 2.0)
    yield proxy
    proxy.close()


def test_the_retry_of_the_readme_gets_an_answer_that_a_proxy_cut(
    proxy: CuttingProxy, api: OpenAIBackend, tmp_path: Path
) -> None:
    api.mode = Mode(delay=5.0)
    (tmp_path / "question.txt").write_text("a hard question")
    commands = re.findall(r"^curl (.*Idempotency-Key.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        assert command.startswith("-sSf --retry 5 --retry-all-errors ")
    answer = curl(
        *("-sSf", "--retry", "5", "--retry-all-errors", "-u", ":the-client-key-0"),
        *("-H", "Idempotency-Key: 8d1c4e5b", "--data-urlencode", "prompt@question.txt"),
        f"{proxy.url}/send_message",
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stderr
    assert "a hard question" in json.loads(answer.stdout)["text"]
    assert proxy.cuts >= 1 and len(api.completions) == 1, "asked once"


def test_a_bot_with_five_seconds_gets_its_answer_by_the_third_delivery(
    slow_service: Service, api: OpenAIBackend
) -> None:
    """The platform delivers a message up to three times, with the same id, and hangs up after five seconds."""
    api.mode = Mode(delay=7.0)
    fields = {
        "prompt": "what is the weather",
        "request_id": "MsgId-6054768590064713728",
        "timeout": "4500",
    }
    statuses: list[int] = []
    seconds: list[float] = []
    text = ""
    for _ in range(3):
        began = time.monotonic()
        answer = requests.post(
            f"{slow_service.url}/send_message",
            data=fields,
            headers={"Authorization": "the-client-key-0"},
            timeout=5,
        )
        seconds.append(time.monotonic() - began)
        statuses.append(answer.status_code)
        if answer.ok:
            text = answer.json()["text"]
            break
    assert statuses == [500, 200] and "what is the weather" in text
    assert max(seconds) < 5 and len(api.completions) == 1
    again = requests.post(
        f"{slow_service.url}/send_message",
        data=fields,
        headers={"Authorization": "the-client-key-0"},
        timeout=5,
    )
    assert again.json()["text"] == text and len(api.completions) == 1
    assert again.headers["Idempotent-Replayed"] == "true"
