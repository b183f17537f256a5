"""What systemd is told of the service's state (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from typing import Literal

ADDRESS = "NOTIFY_SOCKET"  # the environment's name for where it listens
log = logging.getLogger(__name__)


def notify(state: Literal["READY=1", "STOPPING=1"]) -> None:
    """Tell systemd how far the service is, where it wants to know (sd_notify(3))."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        return
    if address.startswith("@"):  # a name without a file
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError as error:
        log.warning("systemd could not be notified: %s", error.strerror)
