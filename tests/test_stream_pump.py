"""The same streams read by a thread each and by one pump for all: nothing that a caller sees may differ."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import select
import socket
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from chatgpt_webapi import create_app
from relay import http_server
from relay.deadline import Deadline
from relay.delivery import Clocks, DirectDelivery
from relay.http_server import HttpServer
from relay.passage import Passage
from relay.server import Server
from relay.service import Service
from relay.settings import Settings
from relay.stream_pump import AT_ONCE, ParkedStream, StreamPump
from relay.transports.direct import DirectExchange
from relay.turn import Turn
from relay.upstreams.http import HttpSession
from tests.raw_upstream import RawUpstream, chunked
from tests.waiting import wait_for

KEY = "the-client-key-0"
CLOCKS = Clocks(first_byte=2, silence=1, total=4, keep_alive=0.3)
Step: TypeAlias = bytes | float


class PolledReadiness:
    """A pump's readiness for plain threads."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._woken, self._waker = socket.socketpair()
        self._poll.register(self._woken, select.EPOLLIN)
        self.told: list[int] = []  # how many each time

    def add(self, descriptor: int) -> None:
        self._poll.register(descriptor, select.EPOLLIN)

    def remove(self, descriptor: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._poll.unregister(descriptor)

    def wait(self, deadline: Deadline, most: int) -> list[int]:
        seconds = min(deadline.left, 60.0)
        ready = [descriptor for descriptor, _ in self._poll.poll(seconds, most)]
        self.told.append(len(ready))
        if self._woken.fileno() in ready:
            self._woken.recv(100)
        return ready

    def wake(self) -> None:
        self._waker.send(b"x")

    def close(self) -> None:
        for each in (self._poll, self._woken, self._waker):
            each.close()


class ScriptedUpstream(RawUpstream):
    """Answers with the steps of its script: bytes of a stream, or seconds of silence. `left`: callers who hung up."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Step] = []
        self.ends = True
        self.left: list[float] = []

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            file = connection.makefile("rb")
            while True:
                self.received.append(self._read(file))
                self._answer(connection)
                if not self.ends:
                    return

    def _answer(self, connection: socket.socket) -> None:
        head, *_, end = chunked([b"x"])
        connection.sendall(head)
        for step in list(self.script):
            if isinstance(step, bytes):
                connection.sendall(chunked([step])[1])
            elif select.select([connection], [], [], step)[0]:
                self.left.append(time.monotonic())
                raise EOFError
        if self.ends:
            connection.sendall(end)


def words(*texts: str, reason: str | None = None) -> bytes:
    choices = [
        {"index": 0, "delta": {"content": text}, "finish_reason": None}
        for text in texts
    ]
    if reason:
        choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    return b"".join(
        b"data: %b\n\n" % json.dumps({"choices": [each]}).encode() for each in choices
    )


END = words(reason="stop") + b"data: [DONE]\n\n"
WHOLE: list[Step] = [
    words("One "),
    0.05,
    words("two — "),
    0.05,
    words("三 "),
    0.7,
    words("four "),
    0.05,
    END,
]


@dataclass
class Served:
    """The service under a server of ours. `pump`: None where each stream has a thread."""

    port: int
    server: HttpServer
    upstream: ScriptedUpstream
    pump: StreamPump | None
    parked: list[int]
    connections: list[HTTPConnection]
    service: Service

    def connect(self, timeout: float = 10) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        self.connections.append(connection)
        return connection

    def ask(self, path: str, connection: HTTPConnection | None = None) -> HTTPResponse:
        fields = (
            {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
            if path.startswith("/v1")
            else {"prompt": "Hi"}
        )
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection = connection or self.connect()
        connection.request(
            "POST", path, json.dumps({**fields, "stream": True}), headers
        )
        return connection.getresponse()


PATHS = ["/v1/chat/completions", "/send_message"]


@pytest.fixture(params=["pump", "thread"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    upstream = ScriptedUpstream()
    settings = Settings(
        data_dir=tmp_path,
        authorization=(KEY,),
        openai_base_url=upstream.url,
        openai_model="m",
    )
    app = create_app(settings, server=Server())
    service: Service = app.extensions["service"]
    object.__setattr__(service, "clocks", CLOCKS)
    listener = socket.create_server(("127.0.0.1", 0))
    pump, parked = None, []
    if request.param == "pump":
        pump = StreamPump(PolledReadiness())
        threading.Thread(target=pump.run, daemon=True).start()
        park = pump.park_stream

        def count(stream: Any) -> None:
            parked.append(1)
            park(stream)

        pump.park_stream = count  # type: ignore[method-assign]
    server = HttpServer(app, ("127.0.0.1", 80), 10, pump=pump)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = listener.accept()
                threading.Thread(
                    target=server.serve, args=(connection, address), daemon=True
                ).start()

    threading.Thread(target=accept, daemon=True).start()
    port = listener.getsockname()[1]
    served = Served(port, server, upstream, pump, parked, [], service)
    yield served
    for connection in served.connections:
        connection.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    if pump is not None:
        wait_for(lambda: not len(pump))
        assert not pump._wheel
    upstream.close()
    service.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_arrives_as_it_comes_and_its_connection_goes_on(
    served: Served, path: str
) -> None:
    served.upstream.script = WHOLE
    connection = served.connect()
    for _ in range(2):
        response = served.ask(path, connection)
        first = response.read1(65536)
        assert b"One" in first and b"four" not in first
        body = first + response.read()
        assert response.status == 200 and "三".encode() in body.replace(
            b"\\u4e09", "三".encode()
        )
        assert body.endswith(b"data: [DONE]\n\n" if path == PATHS[0] else b"\n\n")
        assert b"error" not in body
    assert len(served.parked) == (0 if served.pump is None else 2)


def waits(served: Served) -> int:
    return len(served.pump or ())


def ask_whole(served: Served, connection: HTTPConnection) -> bytes:
    served.upstream.script = [words("One "), END]
    return served.ask(PATHS[0], connection).read()


@pytest.mark.parametrize("served", ["pump"], indirect=True)
def test_a_connection_waits_in_the_pump_for_its_next_request(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "THREAD_SECONDS", 0.1)
    connection = served.connect()
    for _ in range(3):  # after each stream, at once
        assert b"One" in ask_whole(served, connection)
        wait_for(lambda: waits(served) == 1)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read().startswith(b'{"status":"ok"')
    wait_for(lambda: waits(served) == 1)  # after a while
    assert connection.sock is not None
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for piece in (request[:1], request[1:20], request[20:]):
        connection.sock.sendall(piece)
        time.sleep(0.05)
    assert connection.sock.recv(4096).startswith(b"HTTP/1.1 200 OK")
    wait_for(lambda: waits(served) == 1)
    connection.close()
    wait_for(lambda: waits(served) == 0 and not served.server.waiting)


@pytest.mark.parametrize("served", ["pump"], indirect=True)
def test_a_connection_without_a_request_ends(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "THREAD_SECONDS", 0.1)
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.5)
    silent = socket.create_connection(("127.0.0.1", served.port))
    connection = served.connect()
    ask_whole(served, connection)
    wait_for(lambda: waits(served) == 2)
    for each in (silent, connection.sock):
        assert each is not None
        each.settimeout(5)
        assert each.recv(1) == b""
    silent.close()
    wait_for(lambda: waits(served) == 0)


@pytest.mark.parametrize("served", ["pump"], indirect=True)
def test_a_stop_ends_the_connections_that_wait(served: Served) -> None:
    connection = served.connect()
    ask_whole(served, connection)
    wait_for(lambda: waits(served) == 1)
    served.server.let_idle_go()
    assert connection.sock is not None
    connection.sock.settimeout(5)
    assert connection.sock.recv(1) == b""
    wait_for(lambda: waits(served) == 0)


class Waiting:
    """What waits for a descriptor for ever. See `relay.stream_pump.Parked`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.tick = -1
        self.wakes_at = Deadline.after(60)
        self.has_left = False

    def advance(self) -> bool:
        return False

    def leave(self) -> None:
        self.has_left = True


def test_a_descriptor_that_was_closed_may_be_another_ones() -> None:
    readiness = PolledReadiness()
    pump = StreamPump(readiness)
    threading.Thread(target=pump.run, daemon=True).start()
    first, peer = socket.socketpair()
    stale = Waiting(first.fileno())
    stale.wakes_at = Deadline.after(0.3)
    pump.park(stale)
    number = first.fileno()
    first.close()  # as an interrupt may: the pump is told nothing
    second, other = socket.socketpair()
    assert number in (second.fileno(), other.fileno())
    mine, theirs = (second, other) if second.fileno() == number else (other, second)
    live = Waiting(number)
    pump.park(live)
    wait_for(lambda: stale.has_left)
    assert not live.has_left
    theirs.send(b"x")
    wait_for(lambda: live.has_left and not len(pump))
    for each in (mine, theirs, peer):
        each.close()


def test_many_that_are_ready_at_once_go_on_in_turns() -> None:
    readiness = PolledReadiness()
    pump = StreamPump(readiness)
    pairs = [socket.socketpair() for _ in range(3 * AT_ONCE)]
    parked = [Waiting(mine.fileno()) for mine, _ in pairs]
    for each in parked:
        pump.park(each)
    for _, theirs in pairs:
        theirs.send(b"x")
    threading.Thread(target=pump.run, daemon=True).start()
    wait_for(lambda: not len(pump))
    assert all(each.has_left for each in parked)
    assert max(readiness.told) == AT_ONCE
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_cut_stream_ends_with_an_error(served: Served, path: str) -> None:
    served.upstream.script = WHOLE[:3]
    served.upstream.ends = False
    body = served.ask(path).read()
    assert b"two" in body and b"ended in the middle" in body and b"[DONE]" not in body


@pytest.mark.parametrize("path", PATHS)
def test_silence_is_filled_and_ends(served: Served, path: str) -> None:
    served.upstream.script = [words("One "), 0.8, words("two "), 5.0, END]
    begun = time.monotonic()
    body = served.ask(path).read()
    assert body.count(b": keep-alive") >= 2 + 1
    # the silence begins with what came last: 1 s of it, and a keep-alive each 0.3 s
    assert body.partition(b"two")[2].count(b": keep-alive") <= 3
    assert b"two" in body and b"silent for 1 s" in body and b"[DONE]" not in body
    assert 1.5 < time.monotonic() - begun < 8
    wait_for(lambda: served.upstream.left)


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_without_end_ends(served: Served, path: str) -> None:
    served.upstream.script = [
        step for _ in range(100) for step in (words("more "), 0.1)
    ]
    begun = time.monotonic()
    body = served.ask(path).read()
    assert b"not whole within 4 s" in body and time.monotonic() - begun < 12


@pytest.mark.parametrize("path", PATHS)
def test_a_caller_that_reads_slowly_gets_all_of_it(served: Served, path: str) -> None:
    text = "x" * 20_000
    served.upstream.script = [
        words("One "),
        0.05,
        *[words(text) for _ in range(300)],
        words("last "),
        END,
    ]
    response = served.ask(path)
    time.sleep(0.5)
    body = response.read()
    assert body.count(b"x") >= 300 * len(text)
    assert b"last" in body and b"error" not in body


@pytest.mark.parametrize("path", PATHS)
def test_a_caller_that_left_is_met_at_the_next_piece(served: Served, path: str) -> None:
    served.upstream.script = [
        words("One "),
        *[step for _ in range(20) for step in (0.1, words("more "))],
        END,
    ]
    connection = served.connect()
    response = served.ask(path, connection)
    response.read1(100)
    response.close()
    connection.close()
    wait_for(lambda: served.upstream.left, 5)


@pytest.mark.parametrize("how", ["cut", "left"])
@pytest.mark.parametrize("path", PATHS)
def test_a_failed_stream_leaves_nothing_to_the_garbage_collector(
    served: Served, path: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    served.upstream.script = [words("One "), 0.3, words("two "), 0.3, words("three ")]
    served.upstream.ends = False
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        with caplog.at_level(logging.INFO, "chatgpt_webapi"):
            connection = served.connect()
            response = served.ask(path, connection)
            found = response.read1(100) if how == "left" else response.read()
            response.close()
            connection.close()
            wait_for(lambda: "request" in caplog.messages)
        assert b"One" in found and len(served.parked) == (served.pump is not None)
        gc.collect()
        kinds = {type(found) for found in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    ours = {DirectExchange, DirectDelivery, HttpSession, Passage, ParkedStream, Turn}
    assert not kinds & {*ours, types.FrameType}


def test_two_hundred_streams_at_once_are_not_mixed(served: Served) -> None:
    # so many at once may take long
    object.__setattr__(served.service, "clocks", Clocks())
    upstream = served.upstream
    lock = threading.Lock()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            asked = upstream._read(connection.makefile("rb"))
            name = json.loads(asked.body)["messages"][0]["content"]
            connection.sendall(chunked([b"x"])[0])
            for number in range(20):
                connection.sendall(chunked([words(f"{name}.{number} ")])[1])
                time.sleep(0.01)
            connection.sendall(chunked([END])[1] + chunked([b"x"])[-1])
            with lock:
                upstream.received.append(asked)

    upstream._serve = answer  # type: ignore[method-assign]

    def ask(number: int) -> bool:
        connection = served.connect(30)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        question = {
            "model": "m",
            "stream": True,
            "messages": [{"role": "user", "content": f"n{number}"}],
        }
        connection.request("POST", PATHS[0], json.dumps(question), headers)
        body = connection.getresponse().read()
        connection.close()
        texts = [
            json.loads(line[6:])["choices"][0]["delta"].get("content", "")
            for line in body.decode().splitlines()
            if line.startswith("data: {")
        ]
        return "".join(texts) == "".join(f"n{number}.{each} " for each in range(20))

    with ThreadPoolExecutor(50) as callers:
        assert all(callers.map(ask, range(200)))
