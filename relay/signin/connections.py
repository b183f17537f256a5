"""Connections of requests that can be shut down from another thread, and the certificates that they accept."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from threading import Lock
from typing import Any

import certifi
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

# its debug lines and warnings hold whole URLs, and those of a sign-in have codes in them
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class Sockets:
    """The open sockets of one sign-in. `shut_down` ends whatever waits for one, also within TLS."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._is_shut = False
        self._lock = Lock()

    @property
    def is_shut(self) -> bool:
        return self._is_shut

    def add(self, connection: socket.socket) -> None:
        """Take a new one; a duplicate, because TLS takes the descriptor away from the socket."""
        with self._lock:
            self._sockets.append(connection.dup())
            if self._is_shut:
                self._end(socket.SHUT_RDWR)

    def shut_down(self) -> None:
        with self._lock:
            self._is_shut = True
            self._end(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()

    def _end(self, how: int) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(how)


class SocketAdapter(HTTPAdapter):
    """requests' own way to a host or a proxy, but every socket is handed to `sockets`."""

    def __init__(self, sockets: Sockets, tls: ssl.SSLContext | None) -> None:
        self._sockets = sockets
        self._tls = tls
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, ssl_context=self._tls)
        self._hand_in(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        options["ssl_context"] = self._tls
        if proxy.startswith("https:"):
            options["proxy_ssl_context"] = self._tls
        manager = super().proxy_manager_for(proxy, **options)
        self._hand_in(manager)
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # the context has the certificates

    def _hand_in(self, manager: Any) -> None:
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {
            scheme: watched(pool, self._sockets) for scheme, pool in pools.items()
        }


def watched(
    pool: type[HTTPConnectionPool], sockets: Sockets
) -> type[HTTPConnectionPool]:
    """A kind of connection pool whose sockets are handed to `sockets` as soon as they are connected."""
    if hasattr(pool, "hands_in"):  # the same manager, asked for again
        return pool
    kind: Any = pool.ConnectionCls

    class WatchedConnection(kind):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            connection: socket.socket = super()._new_conn()
            sockets.add(connection)
            return connection

    names = {"ConnectionCls": WatchedConnection, "hands_in": True}
    return type(pool.__name__, (pool,), names)


def trusted() -> ssl.SSLContext:
    """The machine's certificates, or Mozilla's where it has none, as in slim images."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        context.load_verify_locations(certifi.where())
    return context
