"""Connections whose callers are waited for: a bound for all of them, and who goes where there is no room.

A connection is here while something is awaited from it: its next request, the rest of one, or its end after an answer
that came early. One whose request is read, or whose answer runs, is not.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from relay.connection import Connection
from relay.deadline import NOW, Deadline

MOST_WAITING = 2000
TELL_SECONDS = 60.0  # between two lines in the log of the same

log = logging.getLogger("chatgpt_webapi")


class WaitingCallers:
    """`most`: how many may be waited for."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        # whether it is between two requests; those that have been waited for longest first
        self._waiting: dict[Connection, bool] = {}
        self._tells_from = NOW

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: Connection, *, is_idle: bool) -> None:
        """It is waited for from now on; where too many are, another one ends."""
        self._waiting[connection] = is_idle
        if len(self._waiting) > self._most:
            self.make_room(f"More than {self._most} connections send nothing")

    def remove(self, connection: Connection) -> None:
        """It sent something, or it is over."""
        self._waiting.pop(connection, None)

    def make_room(self, reason: str, count: int = 1) -> None:
        """End those that have been waited for longest. `reason`: told in the log from time to time."""
        if self._tells_from.passed:
            self._tells_from = Deadline.after(TELL_SECONDS)
            log.warning("%s: those that have sent nothing for longest end.", reason)
        for connection in tuple(self._waiting):
            if not count:
                return
            if connection.has_input():  # it is about to be read
                continue
            count -= 1
            self.remove(connection)
            _shut_down(connection, socket.SHUT_RDWR)

    def let_idle_go(self) -> None:
        """End those that are between two requests."""
        for connection, is_idle in tuple(self._waiting.items()):
            if is_idle and not connection.has_input():
                _shut_down(connection, socket.SHUT_RD)


def _shut_down(connection: Connection, how: int) -> None:
    with contextlib.suppress(OSError):  # its other side may be gone already
        connection.shutdown(how)
