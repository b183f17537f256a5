"""Bytes between two connections, both ways, until one of them ends."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from threading import Thread

from relay.transports.sockets import shut_down

PIECE = 16 * 1024
LOOK_SECONDS = (
    0.5  # between two looks whether anybody still waits for a peer that takes nothing
)
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def bridge(far: ssl.SSLSocket, timeout: float | None) -> socket.socket:
    """A plain connection to what a TLS connection leads to, so that another TLS connection can go through it.

    `timeout`: its own. A thread passes the bytes on, and closes the TLS connection once the plain one is.
    """
    near, inner = socket.socketpair()
    near.settimeout(timeout)

    def work() -> None:
        with inner, far:
            pump(inner, far)

    Thread(target=work, name="bridge", daemon=True).start()
    return near


def pump(
    near: socket.socket,
    far: socket.socket,
    received: Callable[[int], None] = lambda size: None,
) -> None:
    """Pass bytes on until `near` ends, or `far` did and `near` has all of it. Closes neither.

    `received` is told how many bytes came from `far`, before they are passed on.
    """
    there = _Flow(near, far)
    back = _Flow(far, near, received)
    near.settimeout(0)
    far.settimeout(0)
    try:
        while not there.ended:
            moved = there.move()
            if not back.ended:
                moved = back.move() or moved
                if back.ended:
                    near.shutdown(socket.SHUT_WR)
            if not moved:
                _wait(near, far, there, back)
    except OSError:
        pass  # either is gone
    shut_down(near)
    shut_down(far)


class _Flow:
    """The bytes of one direction. `ended`: its source ended, and all has been passed on."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        count: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._count = count
        self._waiting = b""
        self.ended = False

    @property
    def is_full(self) -> bool:
        return bool(self._waiting)

    def move(self) -> bool:
        """Pass on what can be without waiting; whether that was anything. Raises OSError."""
        try:
            if not self._waiting:
                self._waiting = self._source.recv(PIECE)
                self.ended = not self._waiting
                self._count(len(self._waiting))
                if self.ended:
                    return True
            sent = self._sink.send(self._waiting)
            self._waiting = self._waiting[sent:]
        except NOT_NOW:
            return False
        return True


def _wait(near: socket.socket, far: socket.socket, there: _Flow, back: _Flow) -> None:
    """Wait until something can be passed on. Raises OSError where `near` was closed while `far` takes nothing."""
    poll = select.poll()
    near_events = select.POLLOUT if back.is_full else 0
    far_events = select.POLLIN
    if back.is_full or back.ended:
        far_events = 0
    if there.is_full:
        far_events |= select.POLLOUT
    else:
        near_events |= select.POLLIN
    if near_events:
        poll.register(near, near_events)
    if far_events:
        poll.register(far, far_events)
    if not poll.poll(LOOK_SECONDS * 1000 if there.is_full else None):
        near.send(b"")  # fails on a closed pair of sockets; reading would not tell
