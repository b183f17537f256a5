"""Calls on a connection that are over at a moment, whatever its peer sends until then.

A timeout of a socket's own is no such moment: where TLS waits for the rest of a record or of a
handshake, it may begin again with every byte that arrives (gevent's does).
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections.abc import Callable
from typing import TypeVar

from relay.deadline import Deadline

RECEIVE_SIZE = 16 * 1024  # what it means may take a microsecond a byte to find out

T = TypeVar("T")


def receive(connection: socket.socket, deadline: Deadline) -> bytes | None:
    """What has arrived; b"" at the end, None where nothing came by the deadline. Raises OSError."""
    if isinstance(connection, ssl.SSLSocket):
        return _retry(connection, lambda: connection.recv(RECEIVE_SIZE), deadline)
    connection.settimeout(deadline.left)
    try:
        return connection.recv(RECEIVE_SIZE)
    except (TimeoutError, BlockingIOError):
        return None


def receive_now(plain: socket.socket) -> bytes | None:
    """What is there to read; b"" at the end, None where nothing is. `plain`: see `without_waiting`. Raises OSError."""
    try:
        return plain.recv(RECEIVE_SIZE)
    except BlockingIOError:
        return None


def send_now(plain: socket.socket, data: bytes) -> bytes:
    """Send what can be sent without waiting; the rest. `plain`: see `without_waiting`. Raises OSError."""
    try:
        return data[plain.send(data) :]
    except BlockingIOError:
        return data


def without_waiting(connection: socket.socket) -> socket.socket:
    """What never waits on a connection: within gevent's sockets there is one of Python's, at half their cost."""
    inner: socket.socket | None = getattr(connection, "_sock", None)
    if inner is not None:
        return inner
    if connection.gettimeout() != 0:
        connection.settimeout(0)
    return connection


def shake_hands(connection: ssl.SSLSocket, deadline: Deadline) -> None:
    """Agree on TLS. Raises OSError; TimeoutError where it takes longer than the deadline."""

    def agree() -> bool:
        connection.do_handshake()
        return True

    if _retry(connection, agree, deadline) is None:
        raise TimeoutError("no handshake in time")


def _retry(
    connection: ssl.SSLSocket, call: Callable[[], T], deadline: Deadline
) -> T | None:
    """The result of a call that TLS may need more bytes for; None where they do not come by the deadline."""
    connection.settimeout(0)
    while True:
        try:
            return call()
        except ssl.SSLWantReadError:
            awaited = select.POLLIN
        except ssl.SSLWantWriteError:
            awaited = select.POLLOUT
        poll = select.poll()
        poll.register(connection, awaited)
        if deadline.passed or not poll.poll(deadline.left * 1000):
            return None


def shut_down(connection: socket.socket) -> None:
    """End the connection for the thread that uses it, from another one."""
    try:
        # TLS's own would take the session away under a call that is running
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        connection.close()  # it is not connected yet, or no more


def forget_unsent(connection: socket.socket) -> None:
    """Have a connection end with `close`, and not once its peer has taken what waits to be sent."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)  # on, for no time
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def is_quiet(connection: socket.socket) -> bool:
    """Whether an idle connection is still open: anything to read on it, an end above all, says it is not."""
    try:
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(0)
            connection.recv(1)
        else:
            without_waiting(connection).recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False
