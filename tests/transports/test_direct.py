"""The direct transport against a server that follows a script, byte by byte."""

from __future__ import annotations

import gzip
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relay.errors import (
    BadRequest,
    RelayError,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
)
from relay.transports import Call, Exchange, Headers
from relay.transports.dialing import DirectDialer
from relay.transports.direct import LARGEST_READ, DirectTransport
from tests.processes import free_port, need
from tests.waiting import wait_for

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def is_whole(request: bytes) -> bool:
    """Whether a request's head has come, and as much of its body as that says."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


class Peer:
    """Accepts connections; on each, answers each request with the next of its scripts: pieces, with pauses between."""

    def __init__(self, *scripts: list[bytes | float]) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = 0
        self.left: float | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        self.listener.settimeout(10)
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                self.listener.close()
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection:
            self.answer(connection)
        self.closed += 1

    def answer(self, connection: socket.socket) -> None:
        while self.scripts:
            request = b""
            while not is_whole(request):
                if not (piece := connection.recv(65536)):
                    return
                request += piece
            self.requests.append(request)
            for step in self.scripts.pop(0):
                try:
                    if isinstance(step, bytes):
                        connection.sendall(step)
                    else:
                        connection.settimeout(step)
                        if connection.recv(1) == b"":
                            self.left = time.monotonic()
                            return
                except TimeoutError:
                    connection.settimeout(None)
                except OSError:
                    self.left = time.monotonic()
                    return
            if not self.keeps:
                return

    keeps = True


@pytest.fixture
def direct() -> Iterator[DirectTransport]:
    direct = DirectTransport(DirectDialer(2))
    yield direct
    direct.close()


def read_all(exchange: Exchange, seconds: float = 5) -> tuple[int, bytes]:
    try:
        head = exchange.head(seconds)
        assert head is not None
        body = b""
        while piece := exchange.read(seconds):
            body += piece
        assert piece == b""
        return head.status, body
    finally:
        exchange.close()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


FRAMINGS = [
    pytest.param(OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True, id="length"),
    pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hel", b"lo"), b"hello", True, id="chunked"),
    pytest.param(OK + b"Content-Length: 0\r\n\r\n", b"", True, id="empty"),
    pytest.param(OK + b"Connection: close\r\n\r\nhello", b"hello", False, id="until-close"),
    pytest.param(b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", False, id="http-1.0"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True, id="continue"),
    pytest.param(
        OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(b"hello", mtime=0))
        + gzip.compress(b"hello", mtime=0),
        b"hello",
        True,
        id="gzip",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "body", "keeps"), FRAMINGS)
@pytest.mark.parametrize("size", [1, 3, 1000], ids=["byte", "three", "whole"])
def test_an_answer_is_read_in_every_framing(
    direct: DirectTransport, wire: bytes, body: bytes, keeps: bool, size: int
) -> None:
    peer = Peer([wire[at : at + size] for at in range(0, len(wire), size)])
    peer.keeps = keeps
    assert read_all(
        direct.send(Call("POST", f"{peer.url}/x?y=1", {"A": "b"}, b"question"))
    ) == (200, body)
    assert peer.requests[0].startswith(b"POST /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nA: b\r\nContent-Length: 8\r\n\r\n" in peer.requests[0]


@pytest.mark.parametrize(("wire", "body", "keeps"), FRAMINGS)
def test_an_answer_that_ends_early_is_never_whole(
    direct: DirectTransport, wire: bytes, body: bytes, keeps: bool
) -> None:
    for cut in range(len(wire)):
        peer = Peer([wire[:cut]])
        peer.keeps = False
        try:
            _, read = read_all(direct.send(Call("GET", peer.url)))
            assert not keeps and body.startswith(read), (
                "only what ends with its connection can end anywhere"
            )
        except RelayError as error:
            assert isinstance(error, (UpstreamCut, UpstreamFailed))


def test_what_has_arrived_is_given_at_once(direct: DirectTransport) -> None:
    peer = Peer(
        [
            OK + b"Transfer-Encoding: chunked\r\n\r\n",
            b"3\r\nhel\r\n",
            0.4,
            b"2\r\nlo\r\n",
            0.4,
            b"0\r\n\r\n",
        ]
    )
    exchange = direct.send(Call("GET", peer.url))
    began = time.monotonic()
    assert (
        exchange.head(5)
        and exchange.read(5) == b"hel"
        and time.monotonic() - began < 0.3
    )
    assert exchange.read(0.05) is None and exchange.read(0.05) is None
    assert exchange.read(5) == b"lo" and exchange.read(5) == b""
    exchange.close()


def test_a_silence_before_the_head_can_be_waited_out(direct: DirectTransport) -> None:
    peer = Peer([0.3, OK + b"Content-Length: 2\r\n\r\nhi"])
    exchange = direct.send(Call("GET", peer.url))
    assert exchange.head(0.05) is None and exchange.head(0.05) is None
    assert read_all(exchange) == (200, b"hi") and len(peer.requests) == 1


def test_a_connection_is_used_again_if_it_was_read_to_its_end(
    direct: DirectTransport,
) -> None:
    answer: list[bytes | float] = [OK + b"Content-Length: 2\r\n\r\nhi"]
    peer = Peer(*[answer] * 3)
    for _ in range(3):
        assert read_all(direct.send(Call("GET", peer.url))) == (200, b"hi")
    assert peer.connections == 1 and len(peer.requests) == 3


def test_an_idle_connection_that_ended_is_not_sent_on(direct: DirectTransport) -> None:
    answer: list[bytes | float] = [OK + b"Content-Length: 2\r\n\r\nhi"]
    peer = Peer(answer, answer)
    peer.keeps = False
    for number in range(2):
        assert read_all(direct.send(Call("POST", peer.url, {}, b"x"))) == (200, b"hi")
        wait_for(lambda: peer.closed > number)  # noqa: B023
    assert peer.connections == 2 and len(peer.requests) == 2


def test_an_idle_connection_that_is_old_is_not_sent_on() -> None:
    direct = DirectTransport(idle_seconds=0.05)
    answer: list[bytes | float] = [OK + b"Content-Length: 2\r\n\r\nhi"]
    peer = Peer(answer, answer)
    for _ in range(2):
        read_all(direct.send(Call("GET", peer.url)))
        time.sleep(0.1)  # twice as long as a connection may be idle
    assert peer.connections == 2
    direct.close()


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_garbage_is_an_error(direct: DirectTransport, wire: bytes) -> None:
    peer = Peer([wire])
    with pytest.raises(UpstreamFailed, match="no HTTP"):
        read_all(direct.send(Call("GET", peer.url)))


def test_headers_without_end_are_refused(direct: DirectTransport) -> None:
    peer = Peer([b"HTTP/1.1 200 OK\r\n", *[b"A: %s\r\n" % (b"x" * 8000)] * 50, 5.0])
    with pytest.raises(UpstreamFailed):
        read_all(direct.send(Call("GET", peer.url)))


def test_an_answer_that_comes_before_the_request_was_read_to_its_end_is_read(
    direct: DirectTransport,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(
                b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
            )
            time.sleep(0.3)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                pass
            connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        exchange = direct.send(Call("POST", url, {}, b"x" * 30_000_000))
        head = exchange.head(5)
        assert head and head.status == 413 and exchange.read(5) == b"big"
        exchange.close()


def test_a_failed_connection_certainly_sent_nothing(direct: DirectTransport) -> None:
    for url in (f"http://127.0.0.1:{free_port()}/", "http://no-such-host.invalid/"):
        with pytest.raises(Unreachable) as unreachable:
            direct.send(Call("POST", url)).head(5)
        assert (
            not unreachable.value.may_have_been_sent
            and unreachable.value.another_account_may_help
        )


@pytest.mark.parametrize(
    "script",
    [[60.0], [OK + b"Content-Length: 9\r\n\r\n", 60.0]],
    ids=["before-the-head", "in-the-body"],
)
def test_an_interrupt_ends_a_read_and_the_connection_at_once(
    direct: DirectTransport, script: list[bytes | float]
) -> None:
    peer = Peer(script)
    exchange = direct.send(Call("GET", peer.url))
    threading.Timer(0.2, exchange.interrupt).start()
    began = time.monotonic()
    with pytest.raises(UpstreamCut):
        read_all(exchange, 30)
    exchange.close()
    assert time.monotonic() - began < 1
    wait_for(lambda: peer.left)


def test_a_redirect_is_an_answer_like_any_other(direct: DirectTransport) -> None:
    peer = Peer(
        [
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        ]
    )
    assert read_all(
        direct.send(Call("GET", peer.url, {"Authorization": "Bearer secret"}))
    ) == (302, b"")
    assert len(peer.requests) == 1


def test_tls_is_checked(
    direct: DirectTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [
        need("openssl"),
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *subject,
    ]
    subprocess.run(
        [*command, "-keyout", key, "-out", chain], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    listener = context.wrap_socket(
        socket.create_server(("127.0.0.1", 0)), server_side=True
    )
    port = listener.getsockname()[1]

    def serve() -> None:
        for _ in range(2):
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            with connection:
                connection.recv(65536)
                connection.sendall(
                    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n"
                )
                time.sleep(0.3)
                connection.sendall(b"2\r\nlo\r\n0\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(Unreachable, match="cannot be trusted"):
        direct.send(Call("GET", f"https://localhost:{port}/")).head(5)
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    trusting = DirectTransport()
    exchange = trusting.send(Call("GET", f"https://localhost:{port}/"))
    assert (
        exchange.head(5) and exchange.read(5) == b"hel" and exchange.read(0.05) is None
    )
    assert exchange.read(5) == b"lo" and exchange.read(5) == b""
    exchange.close()
    trusting.close()
    thread.join(5)
    listener.close()


def test_headers_that_come_twice_survive(direct: DirectTransport) -> None:
    cookies = b"Set-Cookie: a=1, x\r\nset-cookie: b=2\r\n"
    peer = Peer([OK + cookies + b"Content-Length: 0\r\n\r\n"])
    sent = Headers([("X-Twice", "1"), ("X-Twice", "2")])
    exchange = direct.send(Call("GET", peer.url, sent))
    head = exchange.head(5)
    assert head is not None
    cookies_seen = [value for name, value in head.headers.pairs if name == "set-cookie"]
    assert cookies_seen == ["a=1, x", "b=2"]
    assert head.headers["Set-Cookie"] == "a=1, x, b=2"
    assert b"\r\nX-Twice: 1\r\nX-Twice: 2\r\n" in peer.requests[0]
    assert "a=1" not in repr(head.headers)
    exchange.close()


class BodyPeer:
    """Reads one whole request and answers it."""

    def __init__(self, ending: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.received = b""
        self.ending = ending
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection, self.listener:
            connection.settimeout(5)
            while not self.received.endswith(self.ending):
                if not (piece := connection.recv(65536)):
                    return
                self.received += piece
            connection.sendall(OK + b"Content-Length: 2\r\n\r\nhi")


@pytest.mark.parametrize(
    ("length", "wire"),
    [
        (9, b"Content-Length: 9\r\n\r\none,two,3"),
        (
            None,
            b"Transfer-Encoding: chunked\r\n\r\n4\r\none,\r\n4\r\ntwo,\r\n1\r\n3\r\n0\r\n\r\n",
        ),
    ],
    ids=["length", "chunks"],
)
def test_a_body_is_sent_as_its_pieces_are_taken(
    direct: DirectTransport, length: int | None, wire: bytes
) -> None:
    peer = BodyPeer(wire[-5:])
    pieces_read: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        for piece in (b"one,", b"", b"two,", b"3"):
            pieces_read.append(piece)
            yield piece
            if piece == b"two,":
                wait_for(lambda: b"two," in peer.received)  # it is not gathered

    assert read_all(direct.send(Call("PUT", peer.url, {}, pieces(), length))) == (
        200,
        b"hi",
    )
    assert peer.received.endswith(wire) and len(pieces_read) == 4


def test_a_body_that_fails_while_it_is_taken_ends_the_connection(
    direct: DirectTransport,
) -> None:
    peer = BodyPeer(b"never")

    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise BadRequest("The request's body was cut short.")

    exchange = direct.send(Call("POST", peer.url, {}, pieces()))
    with pytest.raises(BadRequest):
        exchange.head(5)
    exchange.close()
    peer.thread.join(5)
    assert not peer.thread.is_alive() and not peer.received.endswith(b"0\r\n\r\n")


def test_a_packed_body_can_be_had_as_it_was_sent(direct: DirectTransport) -> None:
    packed = gzip.compress(b"hello" * 100, mtime=0)
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    peer = Peer([head + packed], [head + packed])
    call = Call("GET", peer.url)
    assert read_all(direct.send(call)) == (200, b"hello" * 100)
    assert read_all(direct.send(replace(call, unpack=False))) == (200, packed)


def test_a_small_packet_that_unpacks_to_a_large_one_comes_in_pieces(
    direct: DirectTransport,
) -> None:
    size = 50 * 1024 * 1024
    packed = gzip.compress(bytes(size), mtime=0)
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    peer = Peer([head + packed])
    exchange = direct.send(Call("GET", peer.url))
    assert exchange.head(5) is not None
    sizes = []
    while piece := exchange.read(5):
        sizes.append(len(piece))
    assert sum(sizes) == size and max(sizes) <= LARGEST_READ
    exchange.close()


@pytest.mark.parametrize(
    "dripping",
    [b"1;" + b"x" * 60000, b"0\r\nTrailer: " + b"x" * 60000],
    ids=["chunk-extension", "trailer"],
)
def test_bytes_that_are_no_body_stretch_no_wait(
    direct: DirectTransport, dripping: bytes
) -> None:
    """An upstream that sends something all the time, and never a byte of the answer."""
    pieces: list[bytes | float] = [b"x" * 60000 for _ in range(200)]
    peer = Peer([OK + b"Transfer-Encoding: chunked\r\n\r\n", dripping, *pieces])
    exchange = direct.send(Call("GET", peer.url))
    assert exchange.head(5) is not None
    began = time.monotonic()
    try:
        assert exchange.read(0.2) is None
    except (UpstreamFailed, UpstreamCut):
        pass  # the parser may have a bound of its own
    assert time.monotonic() - began < 1
    exchange.interrupt()
    exchange.close()


def test_an_interrupt_ends_a_tls_handshake_at_once(direct: DirectTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        exchange = direct.send(Call("GET", f"https://127.0.0.1:{port}/"))
        threading.Timer(0.2, exchange.interrupt).start()
        began = time.monotonic()
        with pytest.raises(RelayError):
            exchange.head(5)
        assert time.monotonic() - began < 1.5, "the connection alone has 2 s"
        exchange.close()
