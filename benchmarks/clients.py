"""What one call upstream costs in CPU with our transport, and with requests and urllib3, in the same run.

Usage: .venv/bin/python benchmarks/clients.py [calls per round]

A child process answers every call with the same small stream. Medians of interleaved rounds; only ratios
mean something.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests
import urllib3

sys.path.insert(0, str(Path(__file__).parent.parent))

from relay.transports import Call
from relay.transports.direct import Plain

ROUNDS = 5
EVENT = b'data: {"text": "a few words of an answer"}\n\n'
BODY = b'{"question": "' + b"x" * 300 + b'"}'


def serve(listener: socket.socket) -> None:
    """Answer every request on every connection."""
    while True:
        threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()


def answer(connection: socket.socket) -> None:
    chunks = (
        b"".join(b"%x\r\n%s\r\n" % (len(EVENT), EVENT) for _ in range(10))
        + b"0\r\n\r\n"
    )
    told = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks
    )
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held = b""
    while piece := connection.recv(65536):
        held += piece
        while BODY in held:
            held = held.split(BODY, 1)[1]
            connection.sendall(told)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/conversation"
    if (child := os.fork()) == 0:
        serve(listener)
    headers = {
        "Authorization": "Bearer invented",
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
    }

    def ours() -> Callable[[], int]:
        plain = Plain()

        def call() -> int:
            exchange = plain.send(Call("POST", url, headers, BODY))
            exchange.head(5)
            size = 0
            while piece := exchange.read(5):
                size += len(piece)
            exchange.close()
            return size

        return call

    def with_requests() -> Callable[[], int]:
        session = requests.Session()
        session.trust_env = False

        def call() -> int:
            with session.post(url, BODY, headers=headers, stream=True) as answer:
                return sum(len(piece) for piece in answer.iter_content(None))

        return call

    def with_urllib3() -> Callable[[], int]:
        pool = urllib3.PoolManager()

        def call() -> int:
            answer = pool.request(
                "POST", url, body=BODY, headers=headers, preload_content=False
            )
            size = sum(len(piece) for piece in answer.stream(65536))
            answer.release_conn()
            return size

        return call

    spent: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, make in (
            ("ours", ours),
            ("urllib3", with_urllib3),
            ("requests", with_requests),
        ):
            call = make()
            assert call() == 10 * len(EVENT)
            before = time.process_time()
            for _ in range(count):
                call()
            spent.setdefault(name, []).append((time.process_time() - before) / count)
            del call
    os.kill(child, 15)
    os.waitpid(child, 0)
    base = statistics.median(spent["ours"])
    for name, figures in spent.items():
        median = statistics.median(figures)
        print(f"{name:10} {median * 1e6:6.0f} us CPU per call   x {median / base:.1f}")


if __name__ == "__main__":
    main()
