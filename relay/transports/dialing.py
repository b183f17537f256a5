"""Connections to a host: its addresses, one after the other, until one accepts."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from relay.errors import Overloaded, Unreachable

log = logging.getLogger(__name__)

#: as `socket.getaddrinfo` has it
Address: TypeAlias = tuple[Any, Any, int, str, tuple[Any, ...]]
Resolve: TypeAlias = Callable[[str, int], list[Address]]


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host. Raises OSError or UnicodeError."""
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


class Dialer(Protocol):
    """Makes connected sockets."""

    def dial(
        self, host: str, port: int, opened: Callable[[socket.socket], None]
    ) -> socket.socket:
        """A connected socket. Raises Unreachable, and whatever `opened` raises.

        `opened` is called with every socket before it connects, so that another thread can
        shut it down; it raises to stop dialing, and may be called again to find out. The
        socket's timeout is the dialer's own. The error is for callers, who may be strangers: it
        does not name the host, the log does.
        """


class DirectDialer:
    """Connects to a host's own addresses, as `resolve` gives them, with `connect_seconds` for each.

    `name`: what the host is to callers.
    """

    def __init__(
        self,
        connect_seconds: float = 10.0,
        *,
        name: str = "upstream",
        resolve: Resolve = resolve,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._name = name
        self._resolve = resolve

    def dial(
        self, host: str, port: int, opened: Callable[[socket.socket], None]
    ) -> socket.socket:
        reason = "no such host"
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        for family, kind, protocol, _, address in addresses:
            try:
                connection = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise Overloaded() from None
                reason = "its kind of address is not known here"
                continue
            connected = False
            try:
                opened(connection)
                connection.settimeout(self._connect_seconds)
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected = True
                return connection
            except TimeoutError:
                reason = f"it accepted no connection within {self._connect_seconds:g} s"
            except OSError as error:
                reason = (error.strerror or "no connection").lower()
            finally:
                if not connected:
                    connection.close()
        log.warning("%s:%d cannot be reached: %s.", host, port, reason)
        raise Unreachable(f"The {self._name} cannot be reached: {reason}.")
