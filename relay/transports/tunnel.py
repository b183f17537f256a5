"""A proxy of our own on loopback, for a library that makes its connections itself.

The library is told to go through it, so the sockets on the way to the upstream are ours: they are dialed by our dialer,
and closing them ends the library's call at once, whatever it waits for. It takes a CONNECT with the secret of a lane,
once, and connects to the lane's own host; nobody else on this machine knows a secret.
"""

from __future__ import annotations

import secrets
import socket
from base64 import b64encode
from contextlib import suppress
from threading import Thread

from relay.deadline import Deadline
from relay.errors import RelayError, UpstreamCut
from relay.transports.dialing import Dialer
from relay.transports.pump import pump
from relay.transports.sockets import receive, shut_down

HEAD_SECONDS = 5.0
LONGEST_HEAD = 8 * 1024
CONNECTED = b"HTTP/1.1 200 Connected\r\n\r\n"
NOT_CONNECTED = (
    b"HTTP/1.1 502 Not Connected\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
UNKNOWN = b"HTTP/1.1 407 Unknown\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Lane:
    """One connection through the tunnel, to one host.

    `failure`: why the upstream was not reached. `received`: how many bytes came from it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.credentials = f"lane:{secrets.token_hex(16)}"
        self.failure: RelayError | None = None
        self.received = 0
        self._closed = False
        self._near: socket.socket | None = None
        self._far: socket.socket | None = None

    @property
    def authorization(self) -> bytes:
        """The line of the CONNECT that only the lane's own has."""
        encoded = b64encode(self.credentials.encode())
        return b"Proxy-Authorization: Basic " + encoded

    def accepted(self, near: socket.socket) -> None:
        """From now on `close` ends the library's connection. Raises UpstreamCut where it came before."""
        self._near = near
        if self._closed:
            raise UpstreamCut()

    def opened(self, far: socket.socket) -> None:
        """The same for the one to the upstream; see `relay.transports.dialing.Dialer`."""
        self._far = far
        if self._closed:
            raise UpstreamCut()

    def count(self, size: int) -> None:
        self.received += size

    def close(self) -> None:
        """End both connections, now or as soon as they come. From any thread; may be called twice."""
        self._closed = True
        for connection in (self._near, self._far):
            if connection is not None:
                shut_down(connection)


class Tunnel:
    """Accepts the library's connections, each in a thread; `dialer` makes those to the upstream."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._lanes: dict[bytes, Lane] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._port: int = self._listener.getsockname()[1]
        Thread(target=self._accept, name="tunnel", daemon=True).start()

    def open(self, host: str, port: int) -> Lane:
        """A lane to a host; `close` it, whether it was used or not."""
        lane = Lane(host, port)
        self._lanes[lane.authorization] = lane
        return lane

    def url_of(self, lane: Lane) -> str:
        """The address of the proxy that the library is given."""
        return f"http://{lane.credentials}@127.0.0.1:{self._port}"

    def forget(self, lane: Lane) -> None:
        """Close a lane, used or not."""
        self._lanes.pop(lane.authorization, None)
        lane.close()

    def close(self) -> None:
        """Accept no more; lanes that are in use stay open."""
        shut_down(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                near, _ = self._listener.accept()
                Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, suppress(OSError):  # the library closed it
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lane = self._admit(near)
            if lane is None:
                near.sendall(UNKNOWN)
                return
            try:
                lane.accepted(near)
                far = self._dialer.dial(lane.host, lane.port, lane.opened)
            except RelayError as failure:
                lane.failure = failure
                near.sendall(NOT_CONNECTED)
                return
            with far, suppress(UpstreamCut):
                lane.opened(far)
                near.sendall(CONNECTED)
                pump(near, far, lane.count)

    def _admit(self, near: socket.socket) -> Lane | None:
        """The lane that a connection asks for; each is given once."""
        lines = _read_head(near).split(b"\r\n")
        if not lines[0].startswith(b"CONNECT "):
            return None
        lanes = (self._lanes.pop(line, None) for line in lines[1:])
        return next((lane for lane in lanes if lane is not None), None)


def _read_head(connection: socket.socket) -> bytes:
    """What was sent up to the first empty line; less where it is too late or too much."""
    deadline = Deadline.after(HEAD_SECONDS)
    head = b""
    while b"\r\n\r\n" not in head and len(head) < LONGEST_HEAD and not deadline.passed:
        piece = receive(connection, deadline)
        if not piece:
            break
        head += piece
    return head
