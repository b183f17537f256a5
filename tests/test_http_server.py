"""Requests and responses over a socket pair, with a WSGI application of the tests' own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import pytest

from relay import http_server
from relay.delivery import Clocks, Delivery, Silent
from relay.http_server import HttpServer, name_in_environ
from relay.web.response import Response

Talk: TypeAlias = Callable[..., bytes]

HOST = b"Host: localhost\r\n"
GET = b"GET /%b HTTP/1.1\r\n" + HOST + b"\r\n"


def echo(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Answers as the path says, with the request's body where it reads that."""
    path = environ["PATH_INFO"]
    if path == "/stream":
        start("200 OK", [])
        return [b"one", b"", b"two"]
    if path == "/empty":
        start("200 OK", [])
        return []
    if path == "/short":
        start("200 OK", [("Content-Length", "9")])
        return [b"short"]
    if path == "/long":
        start("200 OK", [("Content-Length", "2")])
        return [b"long"]
    if path == "/none":
        start("204 No Content", [])
        return [b"nothing of this"]
    if path == "/unread":
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]
    if path == "/broken":
        return broken_off(start)
    body = environ["wsgi.input"].read()
    named = environ.get("HTTP_X_NAMED", "-").encode("latin-1")
    start("200 OK", [("Content-Length", str(len(body) + len(named)))])
    return [body, named]


def broken_off(start: Any) -> Iterator[bytes]:
    start("200 OK", [])
    yield b"part"
    raise BrokenPipeError


@pytest.fixture
def talk() -> Iterator[Talk]:
    """Sends requests and gives all that comes back; `ends`: nothing more is sent."""
    threads = []

    def send(*pieces: bytes, ends: bool = True) -> bytes:
        ours, theirs = socket.socketpair()
        server = HttpServer(echo, ("127.0.0.1", 80), 5)
        thread = threading.Thread(target=server.serve, args=(theirs, ("::1", 1)))
        thread.start()
        threads.append(thread)
        with ours:
            ours.settimeout(10)
            for piece in pieces:
                ours.sendall(piece)
            if ends:
                ours.shutdown(socket.SHUT_WR)
            received = b""
            while piece := ours.recv(65536):
                received += piece
        thread.join(10)
        assert not server.waiting
        return received

    yield send
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def statuses(received: bytes) -> list[bytes]:
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


def test_requests_in_one_packet_are_answered_in_their_order(talk: Talk) -> None:
    post = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n%b"
    received = talk(post % b"one" + post % b"two" + GET % b"stream" + post % b"end")
    assert statuses(received) == [b"200"] * 4
    assert [received.find(word) for word in (b"one-", b"two-", b"end-")] == sorted(
        received.find(word) for word in (b"one-", b"two-", b"end-")
    )
    assert b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n" in received
    assert b"Connection: close" not in received


def test_a_request_that_is_none_is_refused_after_those_before_it(talk: Talk) -> None:
    received = talk(GET % b"" + b"NONSENSE\r\n\r\n" + GET % b"", ends=False)
    assert statuses(received) == [b"200", b"400"]
    told = "Invalid method encountered."
    assert received.endswith(http_server.bad_request(told))


def test_a_body_arrives_whole_in_whatever_pieces(talk: Talk) -> None:
    sized = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 200000\r\n\r\n"
    assert talk(sized, b"x" * 100_000, b"y" * 100_000).endswith(b"yyyy-")
    chunked = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    received = talk(chunked, b"3\r\nabc\r\n", b"4;x=y\r\ndefg\r\n0\r\nT: x\r\n\r\n")
    assert received.endswith(b"\r\n\r\nabcdefg-")


def test_a_body_is_asked_for_where_the_caller_waits_for_that(talk: Talk) -> None:
    expecting = (
        b"POST /%b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    ours, theirs = socket.socketpair()
    server = HttpServer(echo, ("127.0.0.1", 80), 5)
    thread = threading.Thread(target=server.serve, args=(theirs, None))
    thread.start()
    with ours:
        ours.settimeout(10)
        ours.sendall(expecting % b"")
        assert ours.recv(65536) == http_server.CONTINUE
        ours.sendall(b"abc")
        received = b""
        while not received.endswith(b"abc-"):  # each piece of a body is sent by itself
            received += ours.recv(65536)
        assert statuses(received) == [b"200"]
        ours.sendall(expecting % b"unread")
        refused = ours.recv(65536)
    thread.join(10)
    assert statuses(refused) == [b"200"] and b"Connection: close" in refused


def test_an_unread_body_closes_the_connection(talk: Talk) -> None:
    head = b"POST /unread HTTP/1.1\r\n" + HOST + b"Content-Length: 50\r\n\r\n"
    received = talk(head, GET % b"", ends=False)
    assert statuses(received) == [b"200"] and b"Connection: close" in received


@pytest.mark.parametrize("path", [b"short", b"broken"])
def test_a_body_that_is_cut_breaks_the_connection_off(talk: Talk, path: bytes) -> None:
    received = talk(GET % path + GET % b"", ends=False)
    assert statuses(received) == [b"200"] and not received.endswith(b"0\r\n\r\n")


def test_what_is_more_than_was_said_is_not_sent(talk: Talk) -> None:
    assert talk(GET % b"long" + GET % b"unread").count(b"\r\n\r\nlo") == 1


@pytest.mark.parametrize(
    ("request_line", "end"),
    [
        (b"GET /empty HTTP/1.1", b"Content-Length: 0"),
        (b"GET /none HTTP/1.1", b""),
        (b"HEAD /unread HTTP/1.1", b"Content-Length: 2"),
        (b"HEAD /stream HTTP/1.1", b""),
    ],
)
def test_responses_without_a_body(talk: Talk, request_line: bytes, end: bytes) -> None:
    received = talk(request_line + b"\r\n" + HOST + b"\r\n" + GET % b"unread")
    first, _, second = received.partition(b"\r\n\r\n")
    assert end in first and b"chunked" not in first
    assert second.startswith(b"HTTP/1.1 200") and second.endswith(b"\r\n\r\nok")


def test_http_1_0_is_answered_in_its_own_way(talk: Talk) -> None:
    stream = talk(b"GET /stream HTTP/1.0\r\n\r\n", ends=False)
    assert stream.endswith(b"\r\n\r\nonetwo") and b"Connection: close" in stream
    kept = b"GET /unread HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    assert talk(kept + kept).count(b"Connection: keep-alive") == 2


def test_a_body_that_is_cut_never_looks_whole_over_http_1_0() -> None:
    server = HttpServer(echo, ("127.0.0.1", 80), 5)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
    ):
        ours.settimeout(10)
        ours.sendall(b"GET /broken HTTP/1.0\r\n\r\n")
        server.serve(*listener.accept())
        with pytest.raises(ConnectionResetError):
            while ours.recv(65536):
                pass


def test_fields_as_wsgi_has_them(talk: Talk) -> None:
    fields = b"X-Named: a\r\nx-named: \xe4\r\nX_Named: c\r\n"
    received = talk(b"GET / HTTP/1.1\r\n" + fields + b"\r\n")
    assert received.endswith(b"\r\n\r\na, \xe4")
    assert name_in_environ(b"content-type") == "CONTENT_TYPE"


class Talked(Response):
    """A stream that says with its last piece that it is over, as a turn's delivery does."""

    def __init__(self) -> None:
        super().__init__()
        self.delivery = Delivery(Silent(), Clocks())

    def __iter__(self) -> Iterator[bytes]:
        yield b"one"
        assert self.delivery is not None
        self.delivery.outcome = "whole"
        yield b"two"

    def _framing(self) -> list[tuple[str, str]]:
        return []


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_the_end_of_a_stream_goes_out_with_its_last_piece(version: bytes) -> None:
    def application(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        return Talked()(environ, start)

    # a receive gives what one send sent
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = HttpServer(application, ("127.0.0.1", 80), 5)
    thread = threading.Thread(target=server.serve, args=(theirs, None))
    thread.start()
    with ours:
        ours.settimeout(10)
        ours.sendall(b"GET / HTTP/%b\r\n%b\r\n" % (version, HOST))
        sent = [ours.recv(65536), ours.recv(65536)]
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(65536) == b""
    thread.join(10)
    is_chunked = version == b"1.1"
    assert sent[0].endswith(b"\r\n\r\n3\r\none\r\n" if is_chunked else b"\r\n\r\none")
    assert sent[1] == (b"3\r\ntwo\r\n0\r\n\r\n" if is_chunked else b"two")


def test_a_server_that_stops_takes_no_more_requests() -> None:
    server = HttpServer(echo, ("127.0.0.1", 80), 5)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=server.serve, args=(theirs, None))
    thread.start()
    with ours:
        ours.settimeout(10)
        ours.sendall(GET % b"unread")
        assert statuses(ours.recv(65536)) == [b"200"]
        while not server.waiting:
            pass
        server.let_idle_go()
        assert ours.recv(65536) == b""
    thread.join(10)
    assert not thread.is_alive()


def test_line_ends_before_a_head_do_not_stretch_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    ours, theirs = socket.socketpair()
    server = HttpServer(echo, ("127.0.0.1", 80), 5)
    thread = threading.Thread(target=server.serve, args=(theirs, ("::1", 1)))
    thread.start()
    ours.settimeout(0.05)
    ended = False
    with ours:
        for _ in range(200):
            try:
                ours.sendall(b"\r\n")
                ended = ours.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            break
    thread.join()
    assert ended
