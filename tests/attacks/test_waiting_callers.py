"""Callers that connect and send nothing, or never the rest: they keep nobody out."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from relay.waiting_callers import MOST_WAITING
from tests.processes import Service
from tests.waiting import wait_for

pytestmark = pytest.mark.attack

Serve = Callable[..., Service]
HEAD = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
TOO_MANY = 200
DESCRIPTORS = 150
AT_ONCE = (
    500  # of those that the kernel would hold back, it might let later ones go first
)


class ShortService(Service):
    """The service with few descriptors, and no right to more."""

    option = ""

    def start(self) -> None:
        limited = f'ulimit {self.option} -n {DESCRIPTORS}; exec "$@"'
        self._command = ["sh", "-c", limited, "-", *self._command]
        super().start()


class ModestService(ShortService):
    """The service with few descriptors, and the right to more, as most shells start programs."""

    option = "-S"


@pytest.fixture
def hold() -> Iterator[Callable[..., list[socket.socket]]]:
    """Opens so many connections, and sends each the same; they are closed after the test."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most[1], most[1]))
    held: list[socket.socket] = []

    def open_all(service: Service, count: int, data: bytes) -> list[socket.socket]:
        for number in range(1, count + 1):
            held.append(socket.create_connection(("127.0.0.1", service.port), 5))
            held[-1].sendall(data)
            if number % AT_ONCE == 0:  # whoever is answered comes after all of them
                requests.get(f"{service.url}/healthz", timeout=10)
        return held

    yield open_all
    for each in held:
        each.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, most)


def is_over(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(1000):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize(
    "data",
    [b"", b"POST / HT", HEAD + b"Content-Length: 9\r\n\r\nx"],
    ids=["nothing", "half a head", "half a body"],
)
def test_the_oldest_of_too_many_end_and_no_answer_does(
    serve: Serve, hold: Callable[..., list[socket.socket]], data: bytes
) -> None:
    service = serve()
    body = b"hi offline:delay=8"
    with socket.create_connection(("127.0.0.1", service.port), 30) as asking:
        length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        asking.sendall(HEAD + length + body)
        held = hold(service, MOST_WAITING + TOO_MANY, data)
        wait_for(lambda: all(map(is_over, held[: TOO_MANY - 1])), 10)
        assert not any(map(is_over, held[-TOO_MANY:]))
        assert requests.get(f"{service.url}/healthz", timeout=5).ok
        assert service.resident() <= 250
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := asking.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 200") and b"You said: hi" in answer
    assert "Traceback" not in service.logged()


def test_without_descriptors_those_end_that_wait(
    tmp_path: Path, hold: Callable[..., list[socket.socket]]
) -> None:
    service = ShortService(tmp_path, "pywsgi", {})
    try:
        hold(service, 3 * DESCRIPTORS, b"")
        for _ in range(5):
            answer = requests.post(f"{service.url}/ask", {"msg": "hi"}, timeout=10)
            assert answer.status_code == 200
        log = service.logged()
        assert log.count("send nothing") == 1 and "Traceback" not in log
    finally:
        service.stop()


def test_where_answers_have_the_descriptors_those_end_that_wait(
    tmp_path: Path, hold: Callable[..., list[socket.socket]]
) -> None:
    service = ShortService(tmp_path, "pywsgi", {})
    try:
        silent = hold(service, DESCRIPTORS // 4 - 2, b"").copy()
        body = b"hi offline:pace=1"
        stream = b"Content-Length: %d\r\nAccept: text/plain\r\n\r\n" % len(body)
        for answering in hold(service, 120, HEAD + stream + body)[len(silent) :]:
            answering.settimeout(10)
            assert answering.recv(1000).startswith(b"HTTP/1.1 200")
        assert any(map(is_over, silent))
        log = service.logged()
        assert log.count("All descriptors are used") == 1 and "Traceback" not in log
    finally:
        service.stop()


def test_it_takes_the_descriptors_that_it_may_have(tmp_path: Path) -> None:
    service = ModestService(tmp_path, "pywsgi", {})
    try:
        limits = Path(f"/proc/{service.process.pid}/limits").read_text()
        soft, hard = limits.split("Max open files")[1].split()[:2]
        assert hard == "unlimited" or int(soft) == min(int(hard), 65536)
    finally:
        service.stop()
