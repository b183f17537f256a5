"""The gateway as a process: many streams at once, callers that leave, upstreams that cut, large bodies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any

import pytest
import requests

from tests.processes import SERVERS, Service
from tests.raw_upstream import RawUpstream, chunked
from tests.test_passage import LargeFile
from tests.waiting import wait_for

Start = Callable[..., Service]
KEY = {"Authorization": "Bearer the-client-key-0"}
DONE = b"data: [DONE]\n\n"
STREAMS = 100


def event(text: str) -> bytes:
    message = {
        "id": "a1",
        "author": {"role": "assistant"},
        "content": {"parts": [text]},
    }
    payload = {"message": message, "conversation_id": "c1", "error": None}
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n".encode()


class Streaming(RawUpstream):
    """Answers each question by its number: every tenth is cut, every tenth goes on until its asker leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[int, float] = {}

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            received = self._read(connection.makefile("rb"))
            number = json.loads(received.body)["number"]
            try:
                for packet in self.packets(number):
                    connection.sendall(packet)
                    time.sleep(0.01)
            except OSError:
                self.left[number] = time.monotonic()

    def packets(self, number: int) -> Iterator[bytes]:
        whole = b"".join(events_of(number))
        head, *frames, end = chunked(packets_of(number, whole))
        yield head
        yield from frames
        if kind_of(number) == "left":
            yield from iter(lambda: chunked([event("and so on")])[1], None)
        elif kind_of(number) == "whole":
            yield end


def kind_of(number: int) -> str:
    return {0: "cut", 1: "left"}.get(number % 10, "whole")


def events_of(number: int) -> list[bytes]:
    """The events of an answer; those of a cut one end in the middle of the last."""
    numbers = random.Random(number)
    texts = [
        chr(numbers.randrange(32, 0xD000)) * numbers.randrange(1, 300)
        for _ in range(30)
    ]
    events = [event(text) for text in texts]
    if kind_of(number) == "cut":
        return [*events[:15], events[15][: numbers.randrange(1, len(events[15]) - 2)]]
    return events if kind_of(number) == "left" else [*events, DONE]


def packets_of(number: int, whole: bytes) -> list[bytes]:
    """An answer in packets that end anywhere."""
    numbers = random.Random(-number)
    cuts = sorted(numbers.sample(range(1, len(whole)), 40))
    return [
        whole[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)
    ]


def started(serve: Start, upstream: RawUpstream, server: str, **more: str) -> Service:
    settings = {
        "REVERSE_PROXY": upstream.url,
        "ACCESS_TOKEN": "token-of-the-server",
        "AUTHORIZATION": "the-client-key-0",
        **more,
    }
    return serve(server, **settings)


def open_stream(service: Service, number: int = 1) -> requests.Response:
    return requests.post(
        f"{service.url}/chatgpt/conversation",
        json={"number": number, "parent_message_id": "p1", "messages": []},
        headers=KEY,
        stream=True,
        timeout=30,
    )


def sockets_of(service: Service) -> int:
    folder = f"/proc/{service.process.pid}/fd"
    links = [os.path.join(folder, name) for name in os.listdir(folder)]
    return sum("socket" in os.readlink(link) for link in links if os.path.lexists(link))


def test_a_hundred_streams_at_once_of_which_some_are_cut_and_some_left(
    serve: Start,
) -> None:
    upstream = Streaming()
    service = started(serve, upstream, "pywsgi")
    requests.get(f"{service.url}/healthz", timeout=9)
    before = sockets_of(service)
    leaving: dict[int, float] = {}

    def read(number: int) -> bytes:
        with open_stream(service, number) as answer:
            assert answer.status_code == 200
            if kind_of(number) != "left":
                return answer.content
            expected = b"".join(events_of(number))
            received = b""
            for piece in answer.iter_content(None):
                received += piece
                if len(received) >= len(expected):
                    break
        leaving[number] = time.monotonic()
        return received[: len(expected)]

    with ThreadPoolExecutor(STREAMS) as pool:
        bodies = list(pool.map(read, range(STREAMS)))
    for number, body in enumerate(bodies):
        whole_events = events_of(number)
        if kind_of(number) != "cut":
            assert body == b"".join(whole_events), number
            continue
        passed = b"".join(whole_events[:-1])
        assert body.startswith(passed) and b"[DONE]" not in body
        told = body.removeprefix(passed).splitlines()
        assert b"upstream_cut" in told[0] and told[2] == b"internal server error"
    wait_for(lambda: len(upstream.left) == STREAMS // 10)
    late = {n: upstream.left[n] - leaving[n] for n in leaving}
    assert max(late.values()) < 1.5, late
    wait_for(lambda: sockets_of(service) <= before)
    assert "Traceback" not in service.logged()
    upstream.close()


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    yield upstream
    upstream.close()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("phase", ["before the head", "in mid-stream"])
def test_a_caller_that_leaves_ends_the_call_within_a_second(
    serve: Start, server: str, phase: str
) -> None:
    reached = threading.Event()
    left: list[float] = []

    class Waiting(RawUpstream):
        def _serve(self, connection: socket.socket) -> None:
            with connection:
                self._read(connection.makefile("rb"))
                if phase == "in mid-stream":
                    connection.sendall(b"".join(chunked([event("x")])[:2]))
                reached.set()
                with contextlib.suppress(OSError):
                    connection.recv(1)
                left.append(time.monotonic())

    upstream = Waiting()
    service = started(serve, upstream, server)
    body = b'{"parent_message_id": "p1"}'
    head = (
        "POST /backend-api/conversation HTTP/1.1\r\nHost: localhost\r\n"
        "Authorization: Bearer the-client-key-0\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head.encode() + body)
        assert reached.wait(5)
        time.sleep(0.3)  # while the caller waits, the call stays open
        assert not left
    at = time.monotonic()
    wait_for(lambda: left, 3)
    assert left[0] - at < 1
    upstream.close()


@pytest.mark.parametrize("server", SERVERS)
def test_a_large_body_passes_both_ways_in_constant_memory(
    serve: Start, upstream: RawUpstream, server: str
) -> None:
    size = 100 * 2**20
    piece = b"x" * 2**20
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )

    def file() -> Iterator[bytes]:
        yield head.encode()
        for _ in range(size // len(piece)):
            yield piece

    upstream.keep_bodies = False
    upstream.answers = [file()]  # type: ignore[list-item]
    service = started(serve, upstream, server, MAX_BODY="150MB")
    requests.get(f"{service.url}/healthz", timeout=5)
    before = service.resident()
    peak = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak.append(service.resident())

    watching = threading.Thread(target=watch)
    watching.start()
    headers = {**KEY, "Content-Type": "application/octet-stream"}
    url = f"{service.url}/backend-api/files/upload"
    body: Any = LargeFile(size)
    answer = requests.put(url, body, headers=headers, stream=True, timeout=60)
    received = sum(len(part) for part in answer.iter_content(2**20))
    done.set()
    watching.join()
    assert (answer.status_code, received, upstream.size) == (200, size, size)
    assert max(peak) - before < 20


@pytest.mark.parametrize("server", SERVERS)
def test_bodies_that_come_after_their_heads_keep_the_connection(
    serve: Start, upstream: RawUpstream, server: str
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    upstream.answers = [[answer + b"{}"]]
    service = started(serve, upstream, server)
    body = b'{"title": "a title"}'
    head = (
        "PUT /backend-api/files/upload HTTP/1.1\r\nHost: localhost\r\n"
        "Authorization: Bearer the-client-key-0\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    address = ("127.0.0.1", service.port)
    with socket.create_connection(address, timeout=5) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(200):
            caller.sendall(head.encode())
            time.sleep(number % 20 / 4000)
            caller.sendall(body)
            with contextlib.closing(HTTPResponse(caller)) as response:
                response.begin()
                assert (response.status, response.read()) == (200, b"{}")
    assert [received.body for received in upstream.received] == [body] * 200
