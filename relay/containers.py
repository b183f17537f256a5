"""What is different for the first process of a container. Imports nothing that gevent has to patch."""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FIRST = 1  # its pid


def is_first() -> bool:
    return os.getpid() == FIRST


def end_at_signals() -> None:
    """Have the first process end at once by a signal, as any other does: the kernel would spare it."""
    if is_first():
        for number in SIGNALS:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)  # as a shell says it
