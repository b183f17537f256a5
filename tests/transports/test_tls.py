"""Calls by tls-client, to TLS servers of the tests' own."""

from __future__ import annotations

import gzip
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relay.errors import (
    BadRequest,
    Overloaded,
    TooLarge,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
)
from relay.server import in_thread
from relay.settings import Settings, SettingsError
from relay.transports import Call, Headers, Transport
from relay.transports.dialing import Dialer, DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.proxies import Proxy, ProxyDialer
from relay.transports.selection import load_library, open_transports
from relay.transports.tls import (
    EVENT_STREAM,
    LARGEST_IN_MEMORY,
    Bounds,
    Library,
    TLSTransport,
)
from relay.transports.tunnel import Tunnel
from tests.processes import free_port
from tests.proxy_servers import KINDS, Authority, FakeProxy, TLSFront, proxy
from tests.transports.test_direct import OK, Peer, chunked, read_all
from tests.waiting import wait_for

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
STREAM = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


def trust_all(library: Library) -> Library:
    """The library for servers of the tests' own: what it trusts it reads once, when the process begins."""
    checks = b'"insecureSkipVerify":false'

    def call(request: bytes) -> Mapping[str, Any]:
        assert checks in request
        return library(request.replace(checks, b'"insecureSkipVerify":true'))

    return call


Make = Callable[..., TLSTransport]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes transports, with settings of their own."""
    library, profile = load_library("chrome_133")
    made: list[Transport] = []

    def build(
        bounds: Bounds | None = None,
        start_thread: Callable[[Callable[[], None]], None] = in_thread,
        dialer: Dialer | None = None,
        trusts: bool = True,
    ) -> TLSTransport:
        dialer = dialer or DirectDialer(2)
        tunnel, plain = Tunnel(dialer), DirectTransport(dialer)
        called = trust_all(library) if trusts else library
        tls = TLSTransport(called, profile, tunnel, plain, start_thread, bounds)
        made.extend((tls, plain))
        return tls

    yield build
    for transport in made:
        transport.close()


@pytest.fixture
def tls(make: Make) -> TLSTransport:
    return make()


class Upstream:
    """A `Peer` behind TLS."""

    def __init__(self, authority: Authority, *script: bytes | float) -> None:
        self.peer = Peer(list(script))
        self.peer.keeps = False
        self._front = TLSFront(authority, int(self.peer.url.rsplit(":", 1)[1]))
        self.url = f"https://localhost:{self._front.port}/path?a=b"

    def close(self) -> None:
        self._front.close()
        self.peer.listener.close()


Answer = Callable[..., Upstream]


@pytest.fixture
def answer(authority: Authority) -> Iterator[Answer]:
    opened: list[Upstream] = []

    def start(*script: bytes | float) -> Upstream:
        opened.append(Upstream(authority, *script))
        return opened[-1]

    yield start
    for upstream in opened:
        upstream.close()


def test_a_stream_comes_as_it_is_sent(tls: TLSTransport, answer: Answer) -> None:
    pieces = [f"data: {number} 你好\n\n".encode() for number in range(5)]
    script: list[bytes | float] = [STREAM]
    for piece in pieces:
        script += [b"%x\r\n%b\r\n" % (len(piece), piece), 0.3]
    upstream = answer(*script, b"0\r\n\r\n")
    exchange = tls.send(Call("GET", upstream.url))
    assert exchange.head(5) == EVENT_STREAM
    began = time.monotonic()
    assert exchange.read(5) == pieces[0] and time.monotonic() - began < 0.2
    assert exchange.read(0.01) is None
    assert [exchange.read(5) for _ in pieces[1:]] == pieces[1:]
    assert exchange.read(5) == b"" and exchange.read(5) == b""
    exchange.close()


def test_a_character_split_between_packets_is_whole(
    tls: TLSTransport, answer: Answer
) -> None:
    text = "data: 你好 🙂\r\n\r\n".encode()
    upstream = answer(STREAM, chunked(*(bytes([byte]) for byte in text)))
    assert read_all(tls.send(Call("GET", upstream.url))) == (200, text)


@pytest.mark.parametrize("size", [0, 5, LARGEST_IN_MEMORY + 12345])
def test_a_body_that_is_no_stream_has_its_own_head(
    tls: TLSTransport, answer: Answer, size: int
) -> None:
    body = b"{" * size
    head = b"HTTP/1.1 404 No\r\nX-One: 1\r\nSet-Cookie: b=1\r\nSet-Cookie: a=2\r\n"
    upstream = answer(head + b"Content-Length: %d\r\n\r\n" % size + body)
    exchange = tls.send(Call("GET", upstream.url))
    found = exchange.head(10)
    assert found is not None and found.status == 404
    cookies = [value for name, value in found.headers.pairs if name == "set-cookie"]
    assert cookies == ["b=1", "a=2"]
    assert found.headers["x-one"] == "1"
    assert found.headers["content-length"] == str(size)
    read = b""
    while piece := exchange.read(5):
        read += piece
    assert read == body
    exchange.close()


def test_what_is_sent_is_what_the_caller_said(
    tls: TLSTransport, answer: Answer
) -> None:
    upstream = answer(PLAIN + b"Content-Length: 2\r\n\r\n{}")
    pairs = [("X-Zebra", "1"), ("Accept-Encoding", "identity"), ("Cookie", "a=1")]
    pairs += [("Authorization", "Bearer secret"), ("cookie", "b=2"), ("X-Ant", "2")]
    pairs += [("User-Agent", "ours")]
    body = iter([b"\x00one", b"", b"two\xff"])
    call = Call("POST", upstream.url, Headers(pairs[:4] + pairs[5:]), body)
    assert read_all(tls.send(call)) == (200, b"{}")
    [request] = upstream.peer.requests
    head, _, sent = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /path?a=b HTTP/1.1"
    assert lines[1].startswith("Host: localhost:")
    assert lines[2:] == [
        *("X-Zebra: 1", "Accept-Encoding: identity", "Cookie: a=1"),
        *("Authorization: Bearer secret", "X-Ant: 2", "User-Agent: ours"),
        "Content-Length: 8",
    ]
    assert sent == b"\x00onetwo\xff"


def test_of_its_own_the_library_adds_a_user_agent_alone(
    tls: TLSTransport, answer: Answer
) -> None:
    upstream = answer(PLAIN + b"Content-Length: 2\r\n\r\n{}")
    read_all(tls.send(Call("GET", upstream.url, {"Accept": "*/*"})))
    lines = upstream.peer.requests[0].decode().split("\r\n")
    assert lines[2:5] == ["Accept: */*", "User-Agent: Go-http-client/1.1", ""]


def test_a_packed_body_is_unpacked_and_says_so(
    tls: TLSTransport, answer: Answer
) -> None:
    body = gzip.compress(b'{"a": 1}')
    head = PLAIN + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    exchange = tls.send(Call("GET", answer(head + body).url, unpack=False))
    found = exchange.head(5)
    assert found is not None and "content-encoding" not in found.headers
    assert "content-length" not in found.headers
    assert exchange.read(5) == b'{"a": 1}'
    exchange.close()


def test_redirects_are_answers_and_cookies_are_not_kept(
    tls: TLSTransport, answer: Answer
) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /y\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n"
    upstream = answer(moved)
    upstream.peer.scripts.append([moved])
    for _ in range(2):
        assert read_all(tls.send(Call("GET", upstream.url))) == (302, b"")
    assert len(upstream.peer.requests) == 2
    assert b"a=1" not in b"".join(upstream.peer.requests)


BROKEN = {
    "cut in a stream": ([STREAM + b"8\r\ndata: 1\n\r\n"], UpstreamCut),
    "cut in a body": ([PLAIN + b"Content-Length: 9\r\n\r\n{"], UpstreamCut),
    "cut before the head": ([b"HTTP/1.1 200 OK\r\nX: "], UpstreamCut),
    "nothing": ([b""], UpstreamCut),
    "garbage": ([b"HTTP/9.9 what\r\n\r\n"], UpstreamFailed),
    "headers without end": ([PLAIN + b"X: y\r\n" * 99_999], UpstreamFailed),
    "no gzip": (
        [PLAIN + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + b"abcd" * 5],
        UpstreamFailed,
    ),
    "an error like a stream": (
        [b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"],
        UpstreamFailed,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_is_broken_is_never_whole(
    tls: TLSTransport, answer: Answer, name: str
) -> None:
    script, expected = BROKEN[name]
    upstream = answer(*script)
    with pytest.raises(expected) as caught:
        read_all(tls.send(Call("GET", upstream.url)))
    assert type(caught.value) is expected
    assert "localhost" not in caught.value.message


def test_a_body_that_is_kept_has_a_bound(make: Make, answer: Answer) -> None:
    small = make(Bounds(answer=100_000, request=10))
    upstream = answer(PLAIN + b"Content-Length: 900000\r\n\r\n" + b"{" * 900_000)
    with pytest.raises(UpstreamFailed, match="larger than MAX_ANSWER"):
        read_all(small.send(Call("GET", upstream.url)))
    for call in (
        Call("POST", upstream.url, body=iter([b"12345", b"678901"])),
        Call("POST", upstream.url, body=iter([b"1"]), length=11),
    ):
        with pytest.raises(TooLarge, match="may have 10 bytes"):
            read_all(small.send(call))


PHASES: dict[str, list[bytes | float]] = {
    "before the head": [30.0],
    "after the head": [STREAM, 30.0],
    "in a stream": [STREAM + b"9\r\ndata: 1\n\n\r\n", 30.0],
    "in a body": [PLAIN + b"Content-Length: 9\r\n\r\n{", 30.0],
}


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_is_noticed_at_once_on_both_sides(
    tls: TLSTransport, answer: Answer, phase: str
) -> None:
    upstream = answer(*PHASES[phase])
    exchange = tls.send(Call("GET", upstream.url))
    ended: list[float] = []

    def ask() -> None:
        with pytest.raises(UpstreamCut):
            if exchange.head(20) is not None:
                while exchange.read(20):
                    pass
        ended.append(time.monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: upstream.peer.requests)
    time.sleep(0.1)
    interrupted = time.monotonic()
    exchange.interrupt()
    wait_for(lambda: upstream.peer.left)
    thread.join(5)
    with pytest.raises(UpstreamCut):
        exchange.read(1)
    exchange.close()
    assert ended[0] - interrupted < 1
    assert (upstream.peer.left or 0) - interrupted < 1


def test_closing_leaves_the_upstream_and_no_descriptor_open(
    tls: TLSTransport, answer: Answer
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    upstream = answer(STREAM + b"9\r\ndata: 1\n\n\r\n", 30.0)
    tls.send(Call("GET", upstream.url)).close()
    before = descriptors()
    exchange = tls.send(Call("GET", upstream.url))
    assert exchange.head(5) is not None
    exchange.close()
    exchange.close()
    wait_for(lambda: upstream.peer.left)
    # of the test's own server none is left either
    wait_for(lambda: descriptors() <= before)


def test_tls_is_checked(make: Make, authority: Authority) -> None:
    with closing(TLSFront(authority, free_port())) as front:
        call = Call("GET", f"https://localhost:{front.port}/")
        with pytest.raises(Unreachable, match="certificate cannot be trusted"):
            read_all(make(trusts=False).send(call))


def test_what_is_no_tls_was_sent_nothing(tls: TLSTransport) -> None:
    for fake in (FakeProxy(b"", cut=True), FakeProxy(b"HTTP/1.1 400 No\r\n\r\n")):
        with closing(fake), pytest.raises((Unreachable, UpstreamCut)):
            read_all(tls.send(Call("GET", f"https://localhost:{fake.port}/")))
    with pytest.raises(Unreachable, match="cannot be reached: connection refused"):
        read_all(tls.send(Call("GET", f"https://localhost:{free_port()}/")))


def test_http_addresses_have_no_tls_to_shape(tls: TLSTransport) -> None:
    peer = Peer([PLAIN + b"Content-Length: 2\r\n\r\n{}"])
    assert read_all(tls.send(Call("GET", peer.url))) == (200, b"{}")
    peer.listener.close()


def test_what_no_header_can_carry_is_refused(tls: TLSTransport) -> None:
    for value in ("a\r\nb: c", "\x00", "é", "你"):
        with pytest.raises(BadRequest):
            read_all(tls.send(Call("GET", "https://localhost:1/", {"X-A": value})))


def test_where_there_can_be_no_more_threads(make: Make) -> None:
    def refuse(work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    exchange = make(start_thread=refuse).send(Call("GET", "https://localhost:1/"))
    with pytest.raises(Overloaded):
        exchange.head(1)
    exchange.close()


def test_the_tunnel_knows_its_own_library_alone(tls: TLSTransport) -> None:
    lane = tls.tunnel.open("localhost", free_port())
    port = int(tls.tunnel.url_of(lane).rsplit(":", 1)[1])

    def ask(*lines: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 9) as connection:
            connection.sendall(b"\r\n".join([*lines, b"", b""]))
            return connection.recv(100)

    connect = b"CONNECT localhost:443 HTTP/1.1"
    wrong = b"Proxy-Authorization: Basic bGFuZTp3cm9uZw=="
    assert ask(connect).startswith(b"HTTP/1.1 407")
    assert ask(connect, wrong).startswith(b"HTTP/1.1 407")
    assert ask(b"GET / HTTP/1.1", lane.authorization).startswith(b"HTTP/1.1 407")
    assert ask(b"x" * 9000).startswith(b"HTTP/1.1 407")
    assert ask(connect, lane.authorization).startswith(b"HTTP/1.1 502")
    assert lane.failure is not None
    assert ask(connect, lane.authorization).startswith(b"HTTP/1.1 407"), "once"
    tls.tunnel.forget(lane)


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_through_each_kind_of_proxy(
    make: Make,
    authority: Authority,
    tmp_path: Path,
    answer: Answer,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.chain))
    upstream = answer(STREAM, chunked(b"data: 1\n\n"))
    upstream.peer.keeps = True  # it reads on
    upstream.peer.scripts.append([])
    with proxy(kind, tmp_path, authority) as url:
        tls = make(dialer=ProxyDialer([Proxy.parse(url)]))
        sent = Call("POST", upstream.url, body=b"x" * 300_000)
        assert read_all(tls.send(sent)) == (200, b"data: 1\n\n")


def test_a_failure_of_the_proxy_is_told(make: Make) -> None:
    refused = b"HTTP/1.1 403 No\r\n\r\n"
    with closing(FakeProxy(refused)) as fake:
        url = f"http://127.0.0.1:{fake.port}"
        tls = make(dialer=ProxyDialer([Proxy.parse(url)]))
        with pytest.raises(Unreachable, match="proxy refuses connections"):
            read_all(tls.send(Call("GET", "https://chat.example.org/")))


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(SettingsError, match="no profile chrome_1330.*chrome_133"):
        open_transports(Settings(tls_client="chrome_1330"))
    assert load_library("chrome_116_psk")[1] == "chrome_116_PSK"


def test_a_missing_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tls_client import cffi

    def fail() -> None:
        raise FileNotFoundError("The native library x.so is missing")

    monkeypatch.setattr(cffi, "load_library", fail)
    with pytest.raises(SettingsError, match="library cannot be loaded.*x.so"):
        open_transports(Settings(tls_client="chrome_133"))
    monkeypatch.setitem(sys.modules, "tls_client", None)
    with pytest.raises(SettingsError, match="needs the Python package tls-client"):
        open_transports(Settings(tls_client="chrome_133"))


def test_http_2_streams_and_is_left_at_once(
    make: Make, nginx: Callable[[str], None], authority: Authority
) -> None:
    peer = Peer([STREAM + b"9\r\ndata: 1\n\n\r\n", 30.0])
    port = free_port()
    nginx(
        f"server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {authority.chain}; "
        f"ssl_certificate_key {authority.key}; location / {{ proxy_pass {peer.url}; "
        "proxy_http_version 1.1; proxy_buffering off; } }"
    )
    protocols: list[str] = []
    tls = make()
    called = tls.library

    def note(request: bytes) -> Mapping[str, Any]:
        answer = called(request)
        protocols.append(str(answer["usedProtocol"]))
        return answer

    tls.library = note
    peer.scripts.append([PLAIN + b"Content-Length: 2\r\n\r\n{}"])
    exchange = tls.send(Call("GET", f"https://localhost:{port}/"))
    assert exchange.head(5) is not None and exchange.read(5) == b"data: 1\n\n"
    left = time.monotonic()
    exchange.close()
    wait_for(lambda: peer.left)
    assert (peer.left or 0) - left < 1
    assert read_all(tls.send(Call("GET", f"https://localhost:{port}/"))) == (200, b"{}")
    assert protocols[-1] == "HTTP/2.0"
    peer.listener.close()
