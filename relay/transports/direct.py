"""HTTP/1.1 over sockets and TLS: one request on one connection, its answer read as it arrives.

httptools parses (llhttp, as Node has it). The sockets are our own, because a read must give what
has arrived and no less, must be resumable after a silence, and must end at once when the caller
leaves. Redirects are answers like any other.
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
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from relay.deadline import Deadline
from relay.errors import Unreachable, UpstreamCut, UpstreamFailed
from relay.transports import Call, Exchange, Head, Headers
from relay.transports.dialing import Dialer, DirectDialer

LONGEST_HEAD = 256 * 1024
LARGEST_READ = (
    1024 * 1024
)  # of an unpacked body; a small packet can unpack to a large one
MOST_IDLE = 20  # connections to one origin
SEND_SECONDS = 30.0
DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


@contextmanager
def translate_errors(host: str) -> Iterator[None]:
    """Foreign errors as ours. A socket's timeout passes: it is no failure."""
    try:
        yield
    except TimeoutError:
        raise
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message
        raise Unreachable(
            f"The certificate of {host} cannot be trusted: {reason}."
        ) from error
    except (OSError, ssl.SSLError) as error:
        raise UpstreamCut(f"The connection to {host} broke.") from error
    except (
        httptools.HttpParserError,
        httptools.HttpParserUpgrade,
        zlib.error,
    ) as error:
        raise UpstreamFailed(f"{host} sent what is no HTTP.") from error


class DirectTransport:
    """Makes exchanges, and keeps idle connections for a while."""

    def __init__(
        self, dialer: Dialer | None = None, idle_seconds: float = 30.0
    ) -> None:
        self.dialer = dialer or DirectDialer()
        self._idle_seconds = idle_seconds
        self._tls = ssl.create_default_context()
        self._idle: defaultdict[Origin, deque[tuple[float, socket.socket]]]
        self._idle = defaultdict(deque)
        self._lock = Lock()

    def send(self, call: Call) -> Exchange:
        return DirectExchange(self, call)

    def take(self, origin: Origin) -> socket.socket | None:
        """An idle connection that is young enough and still open."""
        while True:
            with self._lock:
                if not self._idle[origin]:
                    return None
                since, connection = self._idle[origin].pop()
            if time.monotonic() - since < self._idle_seconds and _is_quiet(connection):
                return connection
            connection.close()

    def give_back(self, origin: Origin, connection: socket.socket) -> None:
        with self._lock:
            self._idle[origin].append((time.monotonic(), connection))
            while len(self._idle[origin]) > MOST_IDLE:
                self._idle[origin].popleft()[1].close()

    def wrap(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        """A connection with TLS, before its handshake."""
        return self._tls.wrap_socket(
            connection, server_hostname=host, do_handshake_on_connect=False
        )

    def close(self) -> None:
        with self._lock:
            for idle in self._idle.values():
                for _, connection in idle:
                    connection.close()
            self._idle.clear()


def _is_quiet(connection: socket.socket) -> bool:
    """Whether an idle connection is still open: anything to read on it, an end above all, says it is not."""
    try:
        connection.settimeout(0)
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False


class Body:
    """The pieces of a body that have arrived, unpacked as they are taken."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._unpacker: zlib._Decompress | None = None

    def unpack(self) -> None:
        """From now on, what is taken is unpacked: gzip or deflate."""
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def take(self) -> bytes:
        """What has arrived since, LARGEST_READ of it at most where it was packed. Raises zlib.error."""
        if self._unpacker is None:
            arrived = b"".join(self._pieces)
            self._pieces.clear()
            return arrived
        unpacked = b""
        while self._pieces and not unpacked:
            packed = self._pieces.popleft()
            unpacked = self._unpacker.decompress(packed, LARGEST_READ)
            if self._unpacker.unconsumed_tail:
                self._pieces.appendleft(self._unpacker.unconsumed_tail)
        return unpacked


class DirectExchange:
    """One request and its answer over a connection of the transport's."""

    def __init__(self, transport: DirectTransport, call: Call) -> None:
        url = urlsplit(call.url)
        port = url.port or DEFAULT_PORTS[url.scheme]
        self._origin = Origin(url.scheme, url.hostname or "", port)
        self._host = url.netloc
        self._target = url.path + (f"?{url.query}" if url.query else "")
        self._transport = transport
        self._call = call
        self._connection: socket.socket | None = None
        self._interrupted = False
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[tuple[str, str]] = []
        self._head: Head | None = None
        self._body = Body()
        self._received = 0
        self._complete = False
        self._framed = False
        self._reusable = False

    # httptools calls these
    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = Headers(self._fields)
        self._fields = []
        if status < 200:  # 100 Continue, 103 Early Hints
            return
        self._head = Head(status, headers)
        chunked = "chunked" in headers.get("transfer-encoding", "")
        self._framed = chunked or "content-length" in headers
        packing = headers.get("content-encoding", "").lower()
        if self._call.unpack and packing in ("gzip", "x-gzip", "deflate"):
            self._body.unpack()

    def on_body(self, body: bytes) -> None:
        self._body.add(body)

    def on_message_complete(self) -> None:
        self._complete = self._head is not None
        self._reusable = self._parser.should_keep_alive()

    def head(self, seconds: float) -> Head | None:
        deadline = Deadline.after(seconds)
        if self._connection is None:
            self._dispatch()
        while self._head is None:
            if not self._receive(deadline) or (self._head is None and deadline.passed):
                return None
        return self._head

    def read(self, seconds: float) -> bytes | None:
        deadline = Deadline.after(seconds)
        arrived = self._take()
        while not arrived and not self._complete:
            if not self._receive(deadline):
                return None
            arrived = self._take()
            if deadline.passed and not arrived and not self._complete:
                return None  # chunk extensions or trailers: they come for ever, if the peer likes
        return arrived

    def _take(self) -> bytes:
        with translate_errors(self._host):
            return self._body.take()

    def _dispatch(self) -> None:
        connection = self._transport.take(self._origin) or self._connect()
        self._opened(connection)
        try:
            self._send(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it closed; reading tells

    def _opened(self, connection: socket.socket) -> None:
        """From now on an interrupt ends this connection. Raises UpstreamCut where one came before."""
        self._connection = connection
        if self._interrupted:
            raise UpstreamCut()

    def _send(self, connection: socket.socket) -> None:
        """Send the request; pieces of a streamed body go out as they are taken."""
        body = self._call.body
        connection.settimeout(SEND_SECONDS)
        if isinstance(body, bytes):
            size = len(body) if body else None
            self._send_bytes(connection, self._request_head(size, False) + body)
            return
        chunked = self._call.length is None
        head = self._request_head(self._call.length, chunked)
        self._send_bytes(connection, head)
        for piece in filter(None, body):
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
            self._send_bytes(connection, framed)
        if chunked:
            self._send_bytes(connection, b"0\r\n\r\n")

    def _request_head(self, length: int | None, chunked: bool) -> bytes:
        headers = self._call.headers
        pairs = headers.pairs if isinstance(headers, Headers) else headers.items()
        lines = [f"{self._call.method} {self._target} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in pairs]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _send_bytes(self, connection: socket.socket, data: bytes) -> None:
        try:
            connection.sendall(data)
        except TimeoutError:
            raise UpstreamCut(
                f"{self._host} did not take the request within {SEND_SECONDS:g} s."
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            raise UpstreamCut(f"The connection to {self._host} broke.") from error

    def _connect(self) -> socket.socket:
        origin = self._origin
        connection = self._transport.dialer.dial(origin.host, origin.port, self._opened)
        if origin.scheme != "https":
            return connection
        secure = self._transport.wrap(connection, origin.host)
        agreed = False
        try:
            self._opened(secure)
            with translate_errors(self._host):
                secure.do_handshake()
            agreed = True
            return secure
        except (TimeoutError, UpstreamCut):
            raise Unreachable(f"{self._host} did not agree on TLS.") from None
        finally:
            if not agreed:
                secure.close()

    def _receive(self, deadline: Deadline) -> bool:
        """Parse what arrives; False if nothing does in time. Raises UpstreamCut where it ends early."""
        assert self._connection is not None
        if self._interrupted:
            raise UpstreamCut()
        with translate_errors(self._host):
            try:
                self._connection.settimeout(deadline.left)
                piece = self._connection.recv(65536)
            except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                return False
            if not piece:
                self._end()
                return True
            self._received += len(piece)
            self._parser.feed_data(piece)
        if self._head is None and self._received > LONGEST_HEAD:
            raise UpstreamFailed(f"{self._host} sent headers without end.")
        return True

    def _end(self) -> None:
        if self._interrupted:
            raise UpstreamCut()
        if self._head is None:
            raise UpstreamCut(f"{self._host} closed the connection without an answer.")
        if self._framed:
            raise UpstreamCut()
        self._complete = True

    def interrupt(self) -> None:
        self._interrupted = True
        connection = self._connection
        if connection is None:
            return
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            connection.close()  # it is not connected yet, or no more

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        whole = self._complete and self._framed and not self._interrupted
        if whole and self._reusable:
            self._transport.give_back(self._origin, connection)
        else:
            connection.close()
