"""HTTP/1.1 over plain sockets and TLS: one request on one connection, its answer read as it arrives.

httptools parses (llhttp, as Node has it); the sockets are ours, because a read must give what has arrived and no less,
must be resumable after a silence, and must end at once when the caller leaves. Redirects are answers like any other.
"""

from __future__ import annotations

import socket
import ssl
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeAlias
from urllib.parse import urlsplit

import httptools

from relay.errors import Unreachable, UpstreamCut, UpstreamFailed
from relay.transports import Call, Head

Origin: TypeAlias = tuple[str, str, int]

LONGEST_HEAD = 256 * 1024
SEND_SECONDS = 30.0


@contextmanager
def told_as_ours(host: str) -> Iterator[None]:
    """Foreign errors become ours here, also while a body is read. A socket's time-out passes: it is no failure."""
    try:
        yield
    except TimeoutError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"The certificate of {host} cannot be trusted: {error.verify_message}."
        ) from error
    except (OSError, ssl.SSLError) as error:
        raise UpstreamCut(f"The connection to {host} broke.") from error
    except (
        httptools.HttpParserError,
        httptools.HttpParserUpgrade,
        zlib.error,
    ) as error:
        raise UpstreamFailed(f"{host} sent what is no HTTP.") from error


class Plain:
    """Makes exchanges, and keeps idle connections for a while."""

    def __init__(
        self, connect_seconds: float = 10.0, idle_seconds: float = 30.0
    ) -> None:
        self.connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._tls = ssl.create_default_context()
        self._idle: defaultdict[Origin, deque[tuple[float, socket.socket]]] = (
            defaultdict(deque)
        )
        self._lock = Lock()

    def send(self, call: Call) -> Exchange:
        """Nothing is sent before the exchange is first read."""
        return Exchange(self, call)

    def take(self, origin: Origin) -> socket.socket | None:
        """An idle connection that nothing was heard from, and that is young enough."""
        while True:
            with self._lock:
                if not self._idle[origin]:
                    return None
                since, connection = self._idle[origin].pop()
            if time.monotonic() - since < self._idle_seconds and _silent(connection):
                return connection
            connection.close()

    def give(self, origin: Origin, connection: socket.socket) -> None:
        with self._lock:
            self._idle[origin].append((time.monotonic(), connection))
            while len(self._idle[origin]) > 20:
                self._idle[origin].popleft()[1].close()

    def wrapped(self, connection: socket.socket, host: str) -> socket.socket:
        return self._tls.wrap_socket(connection, server_hostname=host)

    def close(self) -> None:
        with self._lock:
            for _, connection in [
                pair for idle in self._idle.values() for pair in idle
            ]:
                connection.close()
            self._idle.clear()


def _silent(connection: socket.socket) -> bool:
    """Whether an idle connection is still open: anything to read on it, an end above all, means that it is not."""
    try:
        connection.settimeout(0)
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False


class Exchange:
    """One request and its answer. `head` and `read` wait as long as they are told, and may be called again after."""

    def __init__(self, transport: Plain, call: Call) -> None:
        url = urlsplit(call.url)
        self._secure = url.scheme == "https"
        self._origin: Origin = (
            url.scheme,
            url.hostname or "",
            url.port or (443 if self._secure else 80),
        )
        self.host = url.netloc
        self._target = url.path + (f"?{url.query}" if url.query else "")
        self._transport = transport
        self._call = call
        self._connection: socket.socket | None = None
        self._given_up = False
        self._parser = httptools.HttpResponseParser(self)
        self._names: dict[str, str] = {}
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._unpack: zlib._Decompress | None = None
        self._heard = 0
        self._complete = False
        self._framed = False
        self._keeps = False

    # httptools calls these
    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self._names[key] = ", ".join(
            filter(None, (self._names.get(key, ""), value.decode("latin-1")))
        )

    def on_headers_complete(self) -> None:
        if (status := self._parser.get_status_code()) >= 200:
            self._head = Head(status, self._names)
            self._framed = (
                "content-length" in self._names
                or "chunked" in self._names.get("transfer-encoding", "")
            )
            if self._names.get("content-encoding", "").lower() in (
                "gzip",
                "x-gzip",
                "deflate",
            ):
                self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._names = {}

    def on_body(self, body: bytes) -> None:
        self._body.append(self._unpack.decompress(body) if self._unpack else body)

    def on_message_complete(self) -> None:
        self._complete = self._head is not None
        self._keeps = self._parser.should_keep_alive()

    def head(self, seconds: float) -> Head | None:
        """Status and headers; None if they have not come within `seconds`."""
        until = time.monotonic() + seconds
        if self._connection is None:
            self._dispatch()
        while self._head is None:
            if not self._receive(max(0.0, until - time.monotonic())):
                return None
        return self._head

    def read(self, seconds: float) -> bytes | None:
        """What has arrived of the body; b"" at its end, None if nothing came within `seconds`."""
        until = time.monotonic() + seconds
        while not (ready := b"".join(self._body)):
            if self._complete:
                return b""
            self._body.clear()
            if not self._receive(max(0.0, until - time.monotonic())):
                return None
        self._body.clear()
        return ready

    def _dispatch(self) -> None:
        connection = self._connection = (
            self._transport.take(self._origin) or self._connect()
        )
        if self._given_up:
            raise UpstreamCut()
        lines = [f"{self._call.method} {self._target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in self._call.headers.items()]
        lines += [f"Content-Length: {len(self._call.body)}"] if self._call.body else []
        with told_as_ours(self.host):
            try:
                connection.settimeout(SEND_SECONDS)
                connection.sendall(
                    "\r\n".join([*lines, "", ""]).encode("latin-1") + self._call.body
                )
            except TimeoutError:
                raise UpstreamCut(
                    f"{self.host} did not take the request within {SEND_SECONDS:g} s."
                ) from None
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have said why before it hung up; reading tells

    def _connect(self) -> socket.socket:
        _, host, port = self._origin
        connection = self._connected(host, port)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._secure:
            return connection
        try:
            with told_as_ours(self.host):
                return self._transport.wrapped(connection, host)
        except (TimeoutError, UpstreamCut):
            connection.close()
            raise Unreachable(f"{self.host} did not agree on TLS.") from None

    def _connected(self, host: str, port: int) -> socket.socket:
        """A connection to the first of the host's addresses that takes one; an interrupt ends the attempt."""
        failure = "no such host"
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            addresses = []
        for family, kind, protocol, _, address in addresses:
            connection = self._connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self._transport.connect_seconds)
                connection.connect(address)
                return connection
            except TimeoutError:
                failure = f"it took no connection within {self._transport.connect_seconds:g} s"
            except OSError as error:
                failure = error.strerror or "no connection"
            connection.close()
            self._connection = None
            if self._given_up:
                break
        raise Unreachable(f"{self.host} cannot be reached: {failure}.")

    def _receive(self, seconds: float) -> bool:
        """Parse what arrives within `seconds`; False if nothing does. Raises UpstreamCut where it ends early."""
        assert self._connection is not None
        if self._given_up:
            raise UpstreamCut()
        with told_as_ours(self.host):
            try:
                self._connection.settimeout(seconds)
                piece = self._connection.recv(65536)
            except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                return False
            if not piece:
                self._ended()
            else:
                self._heard += len(piece)
                self._parser.feed_data(piece)
                if self._head is None and self._heard > LONGEST_HEAD:
                    raise UpstreamFailed(f"{self.host} sent headers without end.")
        return True

    def _ended(self) -> None:
        if self._head is None and not self._given_up:
            raise UpstreamCut(f"{self.host} closed the connection without an answer.")
        if self._framed or self._given_up:
            raise UpstreamCut()
        self._complete = True

    def interrupt(self) -> None:
        """From another thread: a read that waits ends at once."""
        self._given_up = True
        if (connection := self._connection) is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                connection.close()  # it is not connected yet, or no more

    def close(self) -> None:
        """Keep the connection if its answer was read to its end, else let it go."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._complete and self._framed and self._keeps and not self._given_up:
            self._transport.give(self._origin, connection)
        else:
            connection.close()
