"""HTTP/1.1 over sockets and TLS: one request on one connection, its answer read as it arrives.

httptools parses (llhttp, as Node has it). The sockets are our own, because a read must give what
has arrived and no less, must be resumable after a silence, and must end at once when the caller
leaves. Redirects are answers like any other.

A peer may send whatever it likes, as fast or as slowly as it likes. So every wait has a deadline
that bytes do not move, what is no part of a body has a bound (LONGEST_HEAD), what is given at a time
has one too (LARGEST_READ), and after every LONGEST_RUN bytes other threads and greenlets run.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import time
import zlib
from collections import defaultdict, deque
from functools import lru_cache
from threading import Lock
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from relay.cached import cached
from relay.deadline import NOW, Deadline
from relay.errors import (
    BadRequest,
    RelayError,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
)
from relay.server import WaitReadable
from relay.transports import Call, Exchange, Head, Headers
from relay.transports.dialing import Dialer, DirectDialer
from relay.transports.sockets import (
    RECEIVE_SIZE,
    forget_unsent,
    is_quiet,
    receive,
    receive_now,
    send_now,
    shake_hands,
    shut_down,
    without_waiting,
)

log = logging.getLogger(__name__)

LONGEST_HEAD = 256 * 1024  # bytes in a row that are no part of a body
LARGEST_READ = (
    16 * 1024
)  # of an unpacked body, for a small packet unpacks to a large one
LONGEST_RUN = 16 * 1024  # bytes between two times that other greenlets run
A_MOMENT = (
    1e-6  # seconds; after 0, gevent runs those that are ready, and looks at no socket
)
COST_OF_CALL = 1024  # bytes that each call counts as, at least
MOST_IDLE = 64  # connections to one origin; to dial anew takes longer than most answers
SEND_SECONDS = 30.0
SENT_AT_ONCE = 64 * 1024  # bytes of a request that an upstream takes slowly
LOOK_SECONDS = 0.5  # between two looks whether it answers before it has taken all of it
DEFAULT_PORTS = {"http": 80, "https": 443}
FOREIGN_ERRORS = (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade)
_UNSENDABLE = re.compile(r"[^\t -~\x80-\xff]")


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class Target(NamedTuple):
    """What a URL means: where to connect, the Host header, and the path with its query."""

    origin: Origin
    authority: str
    path: str


@lru_cache(maxsize=100)
def target_of(url: str) -> Target:
    """Raises Unreachable for what is no http or https address."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise Unreachable("The upstream's address cannot be used.") from None
    if not parts.hostname:
        raise Unreachable("The upstream's address cannot be used.")
    origin = Origin(parts.scheme, parts.hostname, port)
    query = f"?{parts.query}" if parts.query else ""
    return Target(origin, parts.netloc, parts.path + query)


def check_sendable(text: str) -> None:
    """Raises BadRequest for what no request's line and no header can carry."""
    is_plain = text.isascii() and text.isprintable()
    if not is_plain and _UNSENDABLE.search(text):
        raise BadRequest(
            "The request holds characters that no address and no header can carry."
        )


class TimeSlice:
    """Lets others run from time to time: where data is always there, no call would ever wait for it."""

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used = 0

    def use(self, size: int) -> None:
        """So many bytes were handled."""
        self._used += COST_OF_CALL + size
        if self._used > LONGEST_RUN:
            self._used = 0
            time.sleep(A_MOMENT)


class DirectTransport:
    """Makes exchanges, and keeps idle connections for a while. `wait_readable`: see `relay.server`."""

    def __init__(
        self,
        dialer: Dialer | None = None,
        idle_seconds: float = 30.0,
        wait_readable: WaitReadable | None = None,
    ) -> None:
        self.dialer = dialer or DirectDialer()
        self.wait_readable = wait_readable
        self._idle_seconds = idle_seconds
        self._idle: defaultdict[Origin, deque[tuple[Deadline, socket.socket]]]
        self._idle = defaultdict(deque)
        self._lock = Lock()

    @cached
    def _tls(self) -> ssl.SSLContext:
        """Made once it is needed: certificates take a megabyte."""
        return ssl.create_default_context()

    def send(self, call: Call) -> Exchange:
        return DirectExchange(self, call)

    def take(self, origin: Origin) -> socket.socket | None:
        """An idle connection that is young enough and still open."""
        while True:
            with self._lock:
                if not self._idle[origin]:
                    return None
                deadline, connection = self._idle[origin].pop()
            if not deadline.passed and is_quiet(connection):
                return connection
            connection.close()

    def give_back(self, origin: Origin, connection: socket.socket) -> None:
        """Keep a connection for the next exchange, and close those of any origin whose time is over."""
        with self._lock:
            deadline = Deadline.after(self._idle_seconds)
            self._idle[origin].append((deadline, connection))
            if len(self._idle[origin]) > MOST_IDLE:
                self._idle[origin].popleft()[1].close()
            for idle in self._idle.values():
                while idle and idle[0][0].passed:
                    idle.popleft()[1].close()

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


class Unpacker:
    """Unpacks a body that came as gzip or deflate."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def take(self, packed: list[bytes]) -> bytes:
        """The next of what these pieces hold, LARGEST_READ of it at most; they are used up. Raises zlib.error.

        What follows the end of the packed body is dropped.
        """
        unpacked = b""
        while packed and not unpacked:
            piece = packed.pop(0)
            if self._stream.eof:
                continue
            unpacked = self._stream.decompress(piece, LARGEST_READ)
            if self._stream.unconsumed_tail:
                packed.insert(0, self._stream.unconsumed_tail)
        return unpacked


class DirectExchange:
    """One request and its answer over a connection of the transport's."""

    def __init__(self, transport: DirectTransport, call: Call) -> None:
        self._target = target_of(call.url)
        self._transport = transport
        self._call: Call | None = call  # until it is sent: an answer may take long
        self._unpacks = call.unpack
        self._connection: socket.socket | None = None
        self._plain: socket.socket | None = None  # where it is read without waiting
        self._descriptor = -1
        self._interrupted = False
        # of the request: what the upstream has not taken
        self._unsent: memoryview | None = None
        self._send_deadline = NOW
        self._fields: list[tuple[str, str]] = []
        self._head: Head | None = None  # until it is given
        self._has_begun = False  # its head has come
        self._pieces: list[bytes] = []  # of the body, that have arrived
        self._unpacker: Unpacker | None = None
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        self._slice = TimeSlice()
        self._overhead = 0  # bytes since the last that were part of the body
        self._complete = False
        self._framed = False
        self._reusable = False
        self._is_cut_short = False  # it answered before it had all of that
        self._has_more = False  # the last read took all that it could

    # httptools calls these
    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = Headers(self._fields)
        self._fields = []
        if status < 200:  # 100 Continue, 103 Early Hints
            return
        self._head = Head(status, headers)
        self._has_begun = True
        chunked = "chunked" in headers.get("transfer-encoding", "")
        self._framed = chunked or "content-length" in headers
        packing = headers.get("content-encoding", "").lower()
        if self._unpacks and packing in ("gzip", "x-gzip", "deflate"):
            self._unpacker = Unpacker()

    def on_message_complete(self) -> None:
        self._complete = self._has_begun
        self._reusable = self._parser.should_keep_alive()

    def head(self, seconds: float) -> Head | None:
        deadline = Deadline.after(seconds)
        if self._connection is None:
            self._dispatch()
        if self._unsent is not None and not self._send_rest(self._unsent, deadline):
            return None
        while not self._has_begun:
            if not self._receive(deadline) or (not self._has_begun and deadline.passed):
                return None
        head, self._head = self._head, None
        return head

    def read(self, seconds: float) -> bytes | None:
        arrived = self._take() if self._pieces else b""
        deadline = Deadline.after(seconds) if seconds else NOW
        while not arrived and not self._complete:
            if not self._receive(deadline):
                return None
            arrived = self._take()
            if not arrived and deadline.passed:
                break  # what comes is no body, and it may come for ever
        return arrived if arrived or self._complete else None

    @property
    def awaited(self) -> int | None:
        """None also for a packed body, of which more may be here already."""
        is_over = self._complete or self._interrupted
        if self._connection is None or is_over or self._unpacker is not None:
            return None
        return self._descriptor

    def _take(self) -> bytes:
        """What has arrived of the body since the last time."""
        pieces = self._pieces
        if self._unpacker is not None:
            return self._unpack(self._unpacker)
        if not pieces:
            return b""
        self._overhead = 0
        if len(pieces) == 1:
            return pieces.pop()
        arrived = b"".join(pieces)
        pieces.clear()
        return arrived

    def _unpack(self, unpacker: Unpacker) -> bytes:
        try:
            arrived = unpacker.take(self._pieces)
        except zlib.error as error:
            raise self._translated(error) from error
        if arrived:
            self._overhead = 0
            self._slice.use(len(arrived))  # a small packet is a large piece
        return arrived

    def _translated(self, error: Exception) -> RelayError:
        """A foreign error as ours."""
        if isinstance(error, OSError):
            return self._logged(
                UpstreamCut("The connection to the upstream broke."), error
            )
        return self._logged(UpstreamFailed("The upstream sent what is no HTTP."), error)

    def _logged(self, failure: RelayError, reason: object = "") -> RelayError:
        """The failure for the caller. Which host it was stands in the log alone."""
        if not self._interrupted:
            _, host, port = self._target.origin
            log.warning("%s:%d: %s %s", host, port, failure.message, reason)
        return failure

    def _dispatch(self) -> None:
        origin = self._target.origin
        connection = self._transport.take(origin) or self._connect(origin)
        self._opened(connection)
        call = self._call
        assert call is not None
        self._call = None
        try:
            self._send(connection, call)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it closed; reading tells

    def _opened(self, connection: socket.socket) -> None:
        """From now on an interrupt ends this connection. Raises UpstreamCut where one came before."""
        self._connection = connection
        self._descriptor = connection.fileno()
        self._plain = None
        is_secure = isinstance(connection, ssl.SSLSocket)
        if self._transport.wait_readable is not None and not is_secure:
            self._plain = without_waiting(connection)
        if self._interrupted:
            raise UpstreamCut()

    def _send(self, connection: socket.socket, call: Call) -> None:
        """Send the request; pieces of a streamed body go out as they are taken."""
        body = call.body
        if isinstance(body, bytes):
            size = len(body) if body else None
            data = self._request_head(call, size, False) + body
            rest = data if self._plain is None else send_now(self._plain, data)
            if rest:
                self._unsent = memoryview(rest)
                self._send_deadline = Deadline.after(SEND_SECONDS)
            return
        chunked = call.length is None
        head = self._request_head(call, call.length, chunked)
        self._send_bytes(connection, head)
        for piece in filter(None, body):
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
            self._send_bytes(connection, framed)
        if chunked:
            self._send_bytes(connection, b"0\r\n\r\n")

    def _request_head(self, call: Call, length: int | None, chunked: bool) -> bytes:
        headers = call.headers
        # isinstance would ask the abstract class that Headers comes from
        pairs = headers.pairs if type(headers) is Headers else headers.items()
        lines = [f"{call.method} {self._target.path} HTTP/1.1"]
        lines.append(f"Host: {self._target.authority}")
        lines += [f"{name}: {value}" for name, value in pairs]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        check_sendable("".join(lines))
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _send_rest(self, rest: memoryview, deadline: Deadline) -> bool:
        """Send what the upstream has not taken yet; False while it does not. Where it answers, it wants no more."""
        connection = self._connection
        assert connection is not None
        while rest and not self._has_answered():
            try:
                connection.settimeout(min(LOOK_SECONDS, max(0.001, deadline.left)))
                rest = rest[connection.send(rest[:SENT_AT_ONCE]) :]
                self._unsent = rest
            except TimeoutError:
                if self._send_deadline.passed:
                    raise self._logged(_not_taken()) from None
                if deadline.passed:
                    return False
            except (BrokenPipeError, ConnectionResetError):
                break  # it may have said why before it closed; reading tells
            except OSError as error:
                raise self._translated(error) from error
        self._is_cut_short = bool(rest)
        self._unsent = None
        return True

    def _has_answered(self) -> bool:
        """Whether there is something to read already, or the connection's end. Within TLS nobody can tell."""
        if self._plain is None:
            return False
        try:
            self._plain.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass  # reading tells
        return True

    def _send_bytes(self, connection: socket.socket, data: bytes) -> None:
        """Send a piece of a body that its caller is still sending."""
        try:
            rest = data if self._plain is None else send_now(self._plain, data)
            if rest:
                connection.settimeout(SEND_SECONDS)
                connection.sendall(rest)
        except TimeoutError:
            raise self._logged(_not_taken()) from None
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            raise self._translated(error) from error

    def _connect(self, origin: Origin) -> socket.socket:
        connection = self._transport.dialer.dial(origin.host, origin.port, self._opened)
        if origin.scheme != "https":
            return connection
        deadline = Deadline.after(connection.gettimeout() or SEND_SECONDS)
        secure = self._transport.wrap(connection, origin.host)
        agreed = False
        try:
            self._opened(secure)
            shake_hands(secure, deadline)
            agreed = True
            return secure
        except ssl.SSLCertVerificationError as error:
            failure = Unreachable("The upstream's certificate cannot be trusted.")
            raise self._logged(failure, error.verify_message) from error
        except (OSError, UpstreamCut) as error:
            failure = Unreachable("The upstream did not agree on TLS.")
            raise self._logged(failure, error) from error
        finally:
            if not agreed:
                secure.close()

    def _receive(self, deadline: Deadline) -> bool:
        """Parse what arrives; False if nothing does in time. Raises UpstreamCut where it ends early."""
        assert self._connection is not None
        if self._interrupted:
            raise UpstreamCut()
        try:
            if deadline is NOW and self._plain is not None and not self._has_more:
                piece = receive_now(self._plain)
            else:
                piece = self._next_piece(self._connection, deadline)
            if piece is None:
                return False
            if not piece:
                self._end()
                return True
            size = len(piece)
            self._has_more = size == RECEIVE_SIZE
            self._overhead += size
            self._parse(piece)
        except FOREIGN_ERRORS as error:
            raise self._translated(error) from error
        if self._overhead > LONGEST_HEAD and not self._complete:
            failure = UpstreamFailed("The upstream sent headers without end.")
            raise self._logged(failure)
        return True

    def _parse(self, piece: bytes) -> None:
        """Take the answer's part of a piece; what follows it is none of it. Raises FOREIGN_ERRORS."""
        try:
            self._parser.feed_data(piece)
        except FOREIGN_ERRORS:
            if not self._complete:
                raise
            self._reusable = False

    def _next_piece(
        self, connection: socket.socket, deadline: Deadline
    ) -> bytes | None:
        """What arrives next; see `receive`. After a read that left something, the next one need not wait."""
        if self._plain is None or self._has_more:
            piece = receive(connection, deadline)
            self._slice.use(len(piece or b""))
            self._has_more = False
            return piece
        if self._is_readable(connection, deadline):
            return receive_now(self._plain)
        return None

    def _is_readable(self, connection: socket.socket, deadline: Deadline) -> bool:
        wait = self._transport.wait_readable
        assert wait is not None  # or the connection would not be read plainly
        left = deadline.left
        return not left or wait(connection, left)

    def _end(self) -> None:
        if self._interrupted:
            raise UpstreamCut()
        if not self._has_begun:
            failure = UpstreamCut(
                "The upstream closed the connection without answering."
            )
            raise self._logged(failure)
        if self._framed:
            raise UpstreamCut()
        self._complete = True

    def interrupt(self) -> None:
        self._interrupted = True
        connection = self._connection
        if connection is not None:
            shut_down(connection)

    def close(self) -> None:
        connection = self._connection
        self._connection = None
        if connection is None:
            return
        del (
            self._parser
        )  # it has this exchange, and both would wait for the garbage collector
        whole = self._complete and self._framed and not self._interrupted
        is_sent = self._unsent is None and not self._is_cut_short
        if not is_sent:
            forget_unsent(connection)
        if whole and self._reusable and is_sent:
            self._transport.give_back(self._target.origin, connection)
        else:
            connection.close()


def _not_taken() -> UpstreamCut:
    return UpstreamCut(
        f"The upstream did not take the request within {SEND_SECONDS:g} s."
    )
