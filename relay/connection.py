"""A caller's connection, whichever server accepted it: deadlines for what is read and sent, and for closing it.

Plain sockets and `time.sleep` throughout: where gevent has patched them, a read lets others run while data is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from werkzeug.wsgi import ClosingIterator

from relay.deadline import Deadline
from relay.transports.sockets import receive_now, send_now, without_waiting

BODY_SECONDS = (
    60.0  # for a request's body, and one more for every BODY_RATE bytes of it
)
BODY_RATE = 64 * 1024
SEND_SILENCE = 60.0  # how long a caller may take nothing of what is sent
LINGER_SECONDS = 30.0  # how long an unread body is dropped before the connection closes
LINGER_SILENCE = 5.0
LINGER_PAUSE = 0.005  # between two reads of what is dropped: a flood costs little, 40 MB take a second
TIME_SLICE = 0.002  # how long one connection may be read without a pause
SHORTEST_PAUSE = 0.00001
PIECE = 64 * 1024
TOO_SLOW = "the time for what the caller sends is over"

T = TypeVar("T")

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, and drop what is unsent
_dropped = bytearray(4 * PIECE)


class Connection(socket.socket):
    """An accepted connection. A read ends with TimeoutError at `read_deadline`, and pauses every TIME_SLICE.

    Sending ends with BrokenPipeError once the caller took nothing for SEND_SILENCE, or when one
    piece took `send_seconds`; how slowly a caller reads makes no difference before that.
    """

    read_deadline: Deadline | None
    send_seconds: float
    _wait_readable: Callable[[Any, float], bool] | None
    _last_pause: float
    _plain: socket.socket | None  # within gevent's socket

    @classmethod
    def adopt(
        cls,
        accepted: socket.socket,
        send_seconds: float,
        wait_readable: Callable[[Any, float], bool] | None = None,
    ) -> Connection:
        """Take over an accepted socket, which cannot be used any more. `wait_readable`: see `relay.server`."""
        kind = accepted.family, accepted.type, accepted.proto
        connection = cls(*kind, fileno=accepted.detach())
        connection.read_deadline = None
        connection.send_seconds = send_seconds
        connection._wait_readable = wait_readable
        connection._last_pause = time.monotonic()
        connection._plain = getattr(connection, "_sock", None)
        return connection

    def recv(self, *args: int) -> bytes:
        return self._read(super().recv, *args)

    def recv_into(self, *args: Any) -> int:
        return self._read(super().recv_into, *args)

    def recv_later(self, size: int) -> bytes:
        """As `recv`, where most likely nothing has come yet."""
        if self._wait_readable is None:
            return self.recv(size)
        self._wait_at_most()
        self._last_pause = time.monotonic()
        piece = self.recv_now()
        return self.recv(size) if piece is None else piece

    def recv_now(self) -> bytes | None:
        """What is there to read; b"" at the end, None where nothing is. Raises OSError."""
        return receive_now(self._plain or without_waiting(self))

    def has_input(self) -> bool:
        """Whether something of it is to be read, its end too."""
        try:
            if self._plain is not None:
                self._plain.recv(1, socket.MSG_PEEK)
            else:
                self.settimeout(0)
                super().recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _read(self, read: Callable[..., T], *args: Any) -> T:
        if self.read_deadline is not None and self.read_deadline.passed:
            raise TimeoutError(TOO_SLOW)
        self.settimeout(0)
        try:
            found = read(*args)
        except BlockingIOError:
            self._wait_at_most()
            found = read(*args)
            self._last_pause = time.monotonic()
        else:
            self.pause()
        return found

    def pause(self) -> None:
        """Let others run, where what this connection sends has kept the thread for a TIME_SLICE."""
        if time.monotonic() - self._last_pause > TIME_SLICE:
            # with 0, gevent would run what is ready fifty times before it looks for input
            time.sleep(SHORTEST_PAUSE)
            self._last_pause = time.monotonic()

    def _wait_at_most(self) -> None:
        """Wait for data, or let the next read wait for it, until the deadline."""
        if self.read_deadline is None:
            self.settimeout(None)
            return
        seconds = self.read_deadline.left
        if not seconds:
            raise TimeoutError(TOO_SLOW)
        if self._wait_readable is None:
            self.settimeout(seconds)
        elif not self._wait_readable(self, seconds):
            raise TimeoutError(TOO_SLOW)

    def send_now(self, data: bytes) -> bytes:
        """Send what can be sent without waiting; the rest."""
        return send_now(self._plain or without_waiting(self), data)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        rest = self.send_now(data)
        if rest:
            self._send_slowly(memoryview(rest), flags)

    def _send_slowly(self, rest: memoryview, flags: int) -> None:
        """Send to a caller whose buffers are full. Raises BrokenPipeError where it does not read."""
        deadline = Deadline.after(self.send_seconds)
        silence = Deadline.after(SEND_SILENCE)
        queued = self._queued()
        while rest:
            if deadline.passed or silence.passed:
                # what is unsent would stay in memory for as long as the caller wants
                self.reset_at_close()
                self.shutdown(socket.SHUT_RD)
                raise BrokenPipeError(errno.EPIPE, "the caller does not read")
            self.settimeout(max(0.01, min(SEND_SILENCE / 4, deadline.left)))
            try:
                sent = self.send(rest, flags)
            except TimeoutError:
                sent = 0
            still_queued = self._queued()
            if sent or still_queued < queued:
                silence = Deadline.after(SEND_SILENCE)
            queued = still_queued
            rest = rest[sent:]

    def reset_at_close(self) -> None:
        """Have the connection end without an end: what is unsent is dropped, and its reader sees an error."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _queued(self) -> int:
        """Bytes that were sent and not yet received. A slow reader is seen here before there is room to send more."""
        number = struct.pack("i", 0)
        try:
            number = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, number)
        except OSError:
            return sys.maxsize
        return int(struct.unpack("i", number)[0])

    def linger(self) -> None:
        """Read and drop what still comes, for a while: to close at once would destroy the response on its way."""
        deadline = Deadline.after(LINGER_SECONDS)
        with contextlib.suppress(OSError):  # it may be gone by now
            self.shutdown(socket.SHUT_WR)
            while True:
                self.read_deadline = min(deadline, Deadline.after(LINGER_SILENCE))
                if not self.recv_into(_dropped):
                    return
                time.sleep(LINGER_PAUSE)


class RequestBody(io.RawIOBase):
    """A request's body with a deadline for reading it. `length` is None where it is chunked."""

    def __init__(self, source: Any, connection: Connection, length: int | None) -> None:
        self._source = source
        self._connection = connection
        self._length = length
        self._received = 0
        self._deadline: Deadline | None = None
        self.is_whole = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read a piece; raises what the server's own body raises, and TimeoutError."""
        if self._deadline is None:
            self._deadline = Deadline.after(BODY_SECONDS)
        self._connection.read_deadline = self._deadline
        try:
            piece = self._source.read(min(len(buffer), PIECE))
        finally:
            self._connection.read_deadline = None
        size = len(piece)
        buffer[:size] = piece
        self._received += size
        self._deadline = Deadline(self._deadline + size / BODY_RATE)
        has_ended = not piece and len(buffer) > 0 and self._length is None
        self.is_whole = has_ended or self._received == self._length
        return size


class BodyGuard:
    """WSGI middleware that bounds the reading of bodies, and closes connections whose body was not read to its end.

    `connection_of(environ)`: the connection of a request, or None where it cannot be known.
    """

    def __init__(
        self, app: Any, connection_of: Callable[[dict[str, Any]], Any]
    ) -> None:
        self._app = app
        self._connection_of = connection_of

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        connection = self._connection_of(environ)
        if not isinstance(connection, Connection):
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        connection.pause()  # many requests may have come in one packet
        length = _length_of(environ)
        if length == 0:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        body = RequestBody(environ["wsgi.input"], connection, length)
        environ["wsgi.input"] = body

        def start(status: str, headers: Any, *exc_info: Any) -> Any:
            if not body.is_whole:
                headers = [*headers, ("Connection", "close")]
                _force_close(start_response)
            return start_response(status, headers, *exc_info)

        def finish() -> None:
            if not body.is_whole:
                connection.linger()

        return ClosingIterator(self._app(environ, start), finish)


def _length_of(environ: dict[str, Any]) -> int | None:
    """The length of a request's body; None where it is chunked."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    return int(environ.get("CONTENT_LENGTH") or 0)


def _force_close(start_response: Any) -> None:
    """Tell gunicorn to close the connection: it does not look at an app's Connection header."""
    response = getattr(start_response, "__self__", None)
    force_close = getattr(response, "force_close", None)
    if force_close is not None:
        force_close()
