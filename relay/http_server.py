"""HTTP/1.1 for a WSGI application: the requests of one connection, one after the other, and their responses.

Plain sockets: whoever accepts connections has a thread or a greenlet for each. How long a caller may take is
`relay/connection.py`'s, what is no request `relay/request_parser.py`'s. A head goes out with the first piece of its
body, and a connection whose request was not read to its end is closed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from io import BytesIO
from time import time
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes
from wsgiref.handlers import format_date_time

from relay.connection import PIECE, Connection, RequestBody
from relay.deadline import Deadline
from relay.request_parser import (
    BrokenRequest,
    ChunkDecoder,
    Request,
    parse_head,
    take_head,
)
from relay.server import in_thread
from relay.stream_pump import ParkedStream, StreamPump
from relay.waiting_callers import WaitingCallers

HEAD_SECONDS = 30.0  # for a request's head, from its first byte on
IDLE_SECONDS = 75.0  # between two requests of one connection
THREAD_SECONDS = 1.0  # how long of that it keeps its thread, where there is a pump
PIECE_OF_CHUNKS = 8 * 1024  # bytes: there may be a chunk for each six of them
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WITHOUT_BODY = ("1", "204", "304")  # how the statuses begin whose responses have none

Application: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]

log = logging.getLogger("chatgpt_webapi")


class HttpServer:
    """Serves connections that somebody else accepts. `send_seconds`, `wait_readable`: see `Connection`.

    `pump`: takes streams over; `spawn`: does work in a thread of its own, when one comes back.
    """

    def __init__(
        self,
        application: Application,
        address: tuple[str, int],
        send_seconds: float,
        wait_readable: Callable[[Any, float], bool] | None = None,
        pump: StreamPump | None = None,
        spawn: Callable[[Callable[[], None]], object] = in_thread,
        waiting: WaitingCallers | None = None,
    ) -> None:
        self.waiting = WaitingCallers() if waiting is None else waiting
        self.application = application
        self._pump = pump
        self._spawn = spawn
        self.is_stopping = False
        self._send_seconds = send_seconds
        self._wait_readable = wait_readable
        self.environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": address[0],
            "SERVER_PORT": str(address[1]),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }

    def serve(self, accepted: socket.socket, address: Any) -> None:
        """Serve a connection to its end, or until a stream of its is parked."""
        connection = Connection.adopt(accepted, self._send_seconds, self._wait_readable)
        host, port = (address[0], str(address[1])) if address else ("", "")
        served = ServedConnection(self, connection, host, port)
        self._go_on(served, served.serve)

    def _go_on(self, served: ServedConnection, serve: Callable[[], bool]) -> None:
        """Serve a connection, and close it, unless it is parked in the end."""
        connection = served.connection
        is_parked = False
        try:
            is_parked = serve()
        except BrokenRequest as error:
            log.warning(
                "A request from %s could not be read: %s", served.caller, error.reason
            )
            with contextlib.suppress(OSError):
                connection.sendall(bad_request(error.reason))
                self.linger(connection)
        except OSError:
            pass  # the caller left, or is too slow
        finally:
            if not is_parked:
                connection.close()

    @property
    def idle_seconds(self) -> float:
        """How long a connection keeps its thread for its next request."""
        return IDLE_SECONDS if self._pump is None else THREAD_SECONDS

    def park(self, response: RunningResponse) -> bool:
        """Have the pump go on with a response, if that is a stream of which something is awaited."""
        delivery = response.delivery
        if self._pump is None or delivery is None or delivery.awaited is None:
            return False
        self._pump.park_stream(response)
        return True

    def park_idle(self, served: ServedConnection) -> bool:
        """Have the pump wait for a connection's next request."""
        if self._pump is None or self.is_stopping:
            return False
        self.waiting.add(served.connection, is_idle=True)
        self._pump.park(IdleConnection(served))
        return True

    def take_up(self, served: ServedConnection, serve: Callable[[], bool]) -> None:
        """Go on with a connection that was parked, in a thread of its own."""
        self.waiting.remove(served.connection)
        self._spawn(partial(self._go_on, served, serve))

    def let_idle_go(self) -> None:
        """Take no more requests."""
        self.is_stopping = True
        self.waiting.let_idle_go()

    def linger(self, connection: Connection) -> None:
        """Let what was answered reach a caller that still sends."""
        self.waiting.add(connection, is_idle=False)
        try:
            connection.linger()
        finally:
            self.waiting.remove(connection)


def bad_request(reason: str) -> bytes:
    """The response to what is no request."""
    body = f"This request could not be read. {reason}\n"
    return (
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        "X-Error-Source: caller\r\nX-Error-Code: bad_request\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode("ascii")


class ServedConnection:
    """One connection of a server's. `host`, `port`: whose it is; "" where that cannot be known."""

    __slots__ = (
        "_arrived",
        "_host",
        "_is_first",
        "_is_idle",
        "_port",
        "_server",
        "connection",
    )

    def __init__(
        self, server: HttpServer, connection: Connection, host: str, port: str
    ) -> None:
        self.connection = connection
        self._server = server
        self._host = host
        self._port = port
        self._arrived = bytearray()
        self._is_first = True
        self._is_idle = False

    @property
    def caller(self) -> str:
        """Its address, for the log."""
        return self._host or "-"

    def serve(self) -> bool:
        """Serve requests to the connection's end; whether it is parked instead.

        Raises BrokenRequest, and OSError for a caller that left or is too slow.
        """
        self._is_idle = False
        while (head := self._next_head()) is not None:
            request = parse_head(head)
            self.connection.pause()  # many requests may have come in one packet
            response = self._answer(request)
            is_parked = self._send(response)
            if is_parked or response.writer.closes:
                return is_parked
            del request, response  # nothing of them is kept for the next one's time
        return self._is_idle and self._server.park_idle(self)

    def resume(self, response: RunningResponse) -> bool:
        """As `serve`, from the middle of a response on that was parked."""
        if self._send(response):
            return True
        if response.writer.closes:
            return False
        is_idle = not self._arrived and self._server.park_idle(self)
        return is_idle or self.serve()

    def _next_head(self) -> bytes | None:
        """The next request's head; None at the end of the connection, and where none comes in time."""
        if self._server.is_stopping:
            return None
        head = take_head(self._arrived) or self._await_head()
        self._is_first = False
        return head

    def _await_head(self) -> bytes | None:
        """The same of a head that is not all here."""
        connection = self.connection
        has_begun = bool(self._arrived)
        seconds = HEAD_SECONDS if has_begun else self._server.idle_seconds
        connection.read_deadline = Deadline.after(seconds)
        self._server.waiting.add(connection, is_idle=True)
        try:
            while True:
                receive = connection.recv if self._is_first else connection.recv_later
                piece = receive(PIECE)
                if not piece:
                    return None
                if not has_begun:  # once: line ends before a head are dropped
                    has_begun = True
                    connection.read_deadline = Deadline.after(HEAD_SECONDS)
                self._arrived += piece
                head = take_head(self._arrived)
                if head is not None or self._server.is_stopping:
                    return head
        except TimeoutError:
            self._is_idle = not has_begun
            return None
        finally:
            self._server.waiting.remove(connection)
            connection.read_deadline = None

    def has_left(self) -> bool:
        """Read what has come while it was idle; whether that was its end."""
        try:
            piece = self.connection.recv_now()
        except OSError:
            return True
        self._arrived += piece or b""
        return piece == b""

    def close_idle(self) -> None:
        """End it between two requests."""
        self._server.waiting.remove(self.connection)
        self.connection.close()

    def take_up(self, serve: Callable[[], bool]) -> None:
        """Go on with what was parked: `serve` does that, in a thread of its own."""
        self._server.take_up(self, serve)

    def _answer(self, request: Request) -> RunningResponse:
        """Let the application answer."""
        unread = None
        length = request.length
        if length is not None and length <= len(self._arrived):
            body: Any = BytesIO(_take(self._arrived, length))
        else:
            waiting = self._server.waiting
            source = BodySource(waiting, self.connection, self._arrived, request)
            body = unread = RequestBody(source, self.connection, length)
        environ = {
            **self._server.environ,
            **environ_of(request),
            "REMOTE_ADDR": self._host,
            "REMOTE_PORT": self._port,
            "relay.socket": self.connection,
            "wsgi.input": body,
        }
        writer = ResponseWriter(
            self.connection, request, unread, self._server.is_stopping
        )
        answer = self._server.application(environ, writer.start)
        return RunningResponse(self, writer, answer)

    def _send(self, response: RunningResponse) -> bool:
        """Send a response to its end; whether it is parked instead."""
        writer = response.writer
        is_parked = False
        try:
            if response.failure is not None:
                raise response.take_failure()
            if response.rest:
                self.connection.sendall(response.rest)
                response.rest = b""
            for piece in response.pieces:
                writer.write(piece, response.is_last)
                is_parked = self._server.park(response)
                if is_parked:
                    return True
            writer.end()
        except OSError:
            if writer.ends_with_connection:
                self.connection.reset_at_close()
            raise
        finally:
            if not is_parked:
                response.close()
        if not writer.is_body_read:
            self._server.linger(self.connection)
        return False


class RunningResponse(ParkedStream):
    """A response on its way. `delivery` is None for one that is no stream, and is never parked."""

    __slots__ = ("_answer", "served", "writer")

    def __init__(
        self, served: ServedConnection, writer: ResponseWriter, answer: Iterable[bytes]
    ) -> None:
        delivery: Any = getattr(answer, "delivery", None)
        super().__init__(delivery, iter(answer))
        self.served = served
        self.writer = writer
        self._answer = answer

    @property
    def is_last(self) -> bool:
        """Whether no piece of the body comes after the one that was given."""
        return self.delivery is not None and self.delivery.outcome != "open"

    def write(self, piece: bytes) -> bytes:
        return self.served.connection.send_now(self.writer.framed(piece))

    def leave(self) -> None:
        self.served.take_up(partial(self.served.resume, self))

    def close(self) -> None:
        if hasattr(self._answer, "close"):
            self._answer.close()


class IdleConnection:
    """A connection that waits in the pump for its next request, or its end. See `relay.stream_pump.Parked`."""

    __slots__ = ("_is_over", "_served", "descriptor", "tick", "wakes_at")

    def __init__(self, served: ServedConnection) -> None:
        self._served = served
        self.descriptor = served.connection.fileno()
        self.tick = -1
        self.wakes_at = Deadline.after(IDLE_SECONDS)
        self._is_over = False

    def advance(self) -> bool:
        self._is_over = self.wakes_at.passed or self._served.has_left()
        return False

    def leave(self) -> None:
        if self._is_over:
            self._served.close_idle()
        else:
            self._served.take_up(self._served.serve)


class BodySource:
    """A request's body as it arrives; `read` gives b"" at its end. Raises OSError for one that is cut short or broken.

    `arrived`: what is here already.
    """

    def __init__(
        self,
        waiting: WaitingCallers,
        connection: Connection,
        arrived: bytearray,
        request: Request,
    ) -> None:
        self._waiting = waiting
        self._connection = connection
        self._arrived = arrived
        self._left = request.length
        self._asks = request.expects_continue and not arrived
        self._decoder = ChunkDecoder()
        self._decoded = bytearray()

    def read(self, size: int) -> bytes:
        if self._asks:
            self._asks = False
            self._connection.sendall(CONTINUE)
        return (
            self._read_chunked(size) if self._left is None else self._read_sized(size)
        )

    def _read_sized(self, size: int) -> bytes:
        assert self._left is not None
        if self._left and not self._arrived:
            self._receive()
        piece = _take(self._arrived, min(size, self._left))
        self._left -= len(piece)
        return piece

    def _read_chunked(self, size: int) -> bytes:
        while not self._decoded and not self._decoder.is_over:
            self._decoded += self._decoder.take(self._arrived)
            if not self._decoded and not self._decoder.is_over:
                self._receive()
        return _take(self._decoded, size)

    def _receive(self) -> None:
        size = PIECE_OF_CHUNKS if self._left is None else PIECE
        self._waiting.add(self._connection, is_idle=False)
        try:
            piece = self._connection.recv(size)
        finally:
            self._waiting.remove(self._connection)
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the body was cut short")
        self._arrived += piece


def _take(arrived: bytearray, size: int) -> bytes:
    """So many of the first bytes, which are taken out."""
    piece = bytes(arrived[:size])
    del arrived[:size]
    return piece


def environ_of(request: Request) -> dict[str, Any]:
    """What WSGI's environ says of a request; a field that comes twice has both values."""
    path, _, query = request.target.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    environ = {
        "REQUEST_METHOD": request.method,
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": query.decode("ascii"),
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
    }
    for field, value in request.fields:
        name = name_in_environ(field)
        text = value.decode("latin-1")
        if name in environ:
            separator = "; " if name == "HTTP_COOKIE" else ", "
            text = environ[name] + separator + text
        if name:
            environ[name] = text
    return environ


@lru_cache(maxsize=1000)
def name_in_environ(field: bytes) -> str:
    """A header field's name in WSGI's environ; "" for one with "_", which would be the same as one with "-"."""
    if b"_" in field:
        return ""
    name = field.decode("ascii").upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


class ResponseWriter:
    """One response as the application gives it. `closes`: no other request may follow.

    `body`: the request's, where it had not arrived: what is unread of it stands before the next request.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_has_body",
        "_headers",
        "_is_begun",
        "_is_chunked",
        "_is_ended",
        "_left",
        "_status",
        "_version",
        "closes",
    )

    def __init__(
        self,
        connection: Connection,
        request: Request,
        body: RequestBody | None,
        closes: bool,
    ) -> None:
        self.closes = closes or not request.keeps_alive
        self._body = body
        self._connection = connection
        self._version = request.version
        self._status = ""
        self._headers: Sequence[tuple[str, str]] = ()
        self._is_begun = False
        self._is_chunked = False
        self._is_ended = False  # the last chunk was framed
        self._has_body = request.method != "HEAD"
        self._left: int | None = None  # bytes that the Content-Length still promises

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the connection's end tells that of the body: one that is cut would look whole."""
        is_framed = self._is_chunked or self._left is not None
        return self._is_begun and self._has_body and not is_framed

    @property
    def is_body_read(self) -> bool:
        """Whether nothing of the request's body is still on its way."""
        return self._body is None or self._body.is_whole

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """WSGI's start_response."""
        if exc_info is not None and self._is_begun:
            raise exc_info[1].with_traceback(exc_info[2])
        self._status = status
        self._headers = headers
        return self.write

    def write(self, piece: bytes, is_last: bool = False) -> None:
        """Send a piece of the body; the first one goes out with the head, the last one with the body's end."""
        framed = self.framed(piece, is_last)
        if framed:
            self._connection.sendall(framed)

    def framed(self, piece: bytes, is_last: bool = False) -> bytes:
        """A piece of the body as it is sent."""
        if not piece:
            return b""
        head = b"" if self._is_begun else self._head()
        if not self._has_body:
            piece = b""
        elif self._is_chunked:
            self._is_ended = is_last
            end = LAST_CHUNK if is_last else b""
            piece = b"%x\r\n%b\r\n%b" % (len(piece), piece, end)
        elif self._left is not None:
            piece = piece[: self._left]
            self._left -= len(piece)
        return head + piece

    def end(self) -> None:
        """The application has given all of it. A body that is shorter than was said breaks the connection off."""
        rest = b"" if self._is_begun else self._head(is_empty=True)
        if self._is_chunked and self._has_body and not self._is_ended:
            rest += LAST_CHUNK
        if rest:
            self._connection.sendall(rest)
        if self._has_body and self._left:
            self.closes = True

    def _head(self, is_empty: bool = False) -> bytes:
        self._is_begun = True
        given = {name.lower(): value for name, value in self._headers}
        if self._status.startswith(WITHOUT_BODY):
            self._has_body = False
        added = self._frame(given.get("content-length"), is_empty)
        if "date" not in given:
            added.append(("Date", date_at(int(time()))))
        self.closes = self.closes or not self.is_body_read
        if self.closes:
            added.append(("Connection", "close"))
        elif self._version == "1.0":
            added.append(("Connection", "keep-alive"))
        fields = [f"{name}: {value}\r\n" for name, value in (*self._headers, *added)]
        self._headers = ()  # a stream may stay open for long
        head = f"HTTP/1.1 {self._status}\r\n{''.join(fields)}\r\n"
        return head.encode("latin-1")

    def _frame(self, length: str | None, is_empty: bool) -> list[tuple[str, str]]:
        """Choose how the end of the body is told; the fields that say it."""
        if length is not None:
            self._left = int(length)
        elif not self._has_body:
            pass
        elif is_empty:
            return [("Content-Length", "0")]
        elif self._version == "1.1":
            self._is_chunked = True
            return [("Transfer-Encoding", "chunked")]
        else:
            self.closes = True
        return []


@lru_cache(maxsize=1)
def date_at(second: int) -> str:
    """The Date header of a moment."""
    return format_date_time(second)
