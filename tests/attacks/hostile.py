"""A server that answers with whatever a test wants, as fast as it can, and a caller that notices when it has to wait."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from tests.processes import Service

LONGEST_WAIT = 0.5  # seconds that another caller may have to wait
MOST_RESIDENT = 250  # megabytes
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = EVENTS + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"

Answer: TypeAlias = Callable[[socket.socket], None]


def delta(text: str, **more: Any) -> bytes:
    """An event of chat/completions with a piece of text."""
    choice = {"index": 0, "delta": {"content": text}, **more}
    return b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode()


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def endlessly(head: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """Sends the head, and the piece until nobody takes it any more; without a pause as fast as it can."""
    block = piece if pause else piece * max(1, 256 * 1024 // len(piece))

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(block)
            if pause:
                time.sleep(pause)

    return answer


def once(*pieces: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return answer


class Hostile:
    """Reads a request, takes the last word of its prompt, and answers as `answers` has it under that word."""

    def __init__(
        self, answers: dict[str, Answer], tls: ssl.SSLContext | None = None
    ) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.left: list[float] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://localhost:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(connection,), daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            word = self._read(connection)
            self.asked.append(word)
            try:
                self.answers[word](connection)
            finally:
                self.left.append(time.monotonic())

    def _read(self, connection: socket.socket) -> str:
        request = b""
        while b"\r\n\r\n" not in request:
            request += receive(connection)
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += receive(connection)
        text: str = json.loads(body)["messages"][-1]["content"]
        return text.split()[-1]


def receive(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ConnectionResetError("nothing more is asked")
    return piece


class Watch:
    """The longest wait of another caller, in seconds, and the most memory of the service, in megabytes."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.resident = 0


def withstands(attack: Callable[[], Watch]) -> bool:
    """Whether a service withstands an attack; a machine with other work may need more than one try."""
    for _ in range(3):
        watch = attack()
        assert watch.resident < MOST_RESIDENT
        if watch.longest < LONGEST_WAIT:
            return True
    return False


@contextmanager
def watched(service: Service) -> Iterator[Watch]:
    """Asks /healthz all the while, on a connection that stays."""
    watch = Watch()
    stop = threading.Event()

    def look() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        while not stop.wait(0.02):
            started = time.monotonic()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            watch.longest = max(watch.longest, time.monotonic() - started)
        connection.close()

    def measure() -> None:
        while not stop.wait(0.1):
            watch.resident = max(watch.resident, service.resident())

    threads = [threading.Thread(target=work) for work in (look, measure)]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        stop.set()
        for thread in threads:
            thread.join()
