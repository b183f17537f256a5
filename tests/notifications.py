"""What a service tells systemd."""

from __future__ import annotations

import os
import socket
import time


class Notifications:
    """The socket that systemd hands a service of Type=notify."""

    def __init__(self) -> None:
        self.address = f"@chatgpt-webapi-{os.getpid()}-{time.monotonic_ns()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:])

    def next(self, seconds: float) -> list[str]:
        """The lines of the next message; none if it does not come within `seconds`."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(4096).decode().splitlines()
        except TimeoutError:
            return []

    def close(self) -> None:
        self._socket.close()
