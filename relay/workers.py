"""Several processes that serve one address: WORKERS of them, under a small one that starts them, and lost ones anew.

The first process listens, and becomes that small one by `exec`: its pid stays, which systemd and a shell know, and
what it had imported is gone. The workers inherit the listening socket; the kernel gives each connection to a free one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from relay import logs, systemd
from relay.containers import FIRST, SIGNALS, is_first

#: the descriptor of the listening socket that a worker inherits, and the worker's number, from 1 on
LISTENER = "CHATGPT_WEBAPI_LISTENER"
SUPERVISOR = "CHATGPT_WEBAPI_SUPERVISOR"  # its pid
NUMBER = "CHATGPT_WEBAPI_WORKER"
ROOT = Path(__file__).resolve().parent.parent
REFUSED = 3  # exit status of a worker that cannot start, and will not the next time
SHORT_LIFE = 5.0  # seconds: a worker that lived no longer is started anew after a pause
PAUSE = 1.0

log = logging.getLogger("chatgpt_webapi")


def number() -> int:
    """This worker's number; 0 where one process serves."""
    return int(os.environ.get(NUMBER, "0"))


def are_alone() -> bool:
    """Whether the process that supervised this worker has ended."""
    return os.environ.get(SUPERVISOR) != str(os.getppid())


def are_contained() -> bool:
    """Whether this process, or the one that supervises it, is the first of a container: that says who reaches it."""
    return is_first() or os.environ.get(SUPERVISOR) == str(FIRST)


def are_restarted() -> bool:
    """Whether somebody starts this process anew when it fails: our supervisor, systemd, or a container's policy."""
    return number() > 0 or systemd.ADDRESS in os.environ or are_contained()


def inherited() -> socket.socket | None:
    """The socket that this worker is to serve; None where one process serves."""
    descriptor = os.environ.get(LISTENER)
    return socket.socket(fileno=int(descriptor)) if descriptor else None


def supervise(
    listener: socket.socket, count: int, log_level: str, log_format: str
) -> NoReturn:
    """Become the process that supervises the workers."""
    os.set_inheritable(listener.fileno(), True)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from relay import workers; workers.run()"
    words = [sys.executable, "-c", code, str(listener.fileno()), str(count)]
    words += [log_level, log_format]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until `Supervisor.run`
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, words)


def run() -> NoReturn:
    """What the supervising process does."""
    logs.configure(sys.argv[3], sys.argv[4])
    sys.exit(Supervisor(int(sys.argv[1]), int(sys.argv[2])).run())


class Supervisor:
    """Starts workers, and ends when they have ended. A signal goes to all of them."""

    def __init__(self, listener: int, count: int) -> None:
        self._listener = listener
        self._count = count
        self._workers: dict[int, tuple[int, float]] = {}  # pid: number, and since when
        self._newest = 0
        self._is_starting = False
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        """The exit status."""
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for _ in range(self._count):
            self._start()
        while self._workers:
            pid, status = os.wait()
            self._take_leave(pid, os.waitstatus_to_exitcode(status))
        return self._status

    def _start(self) -> None:
        self._is_starting = True
        if not self._is_stopping:  # else the listener is closed
            self._start_worker()
        self._is_starting = False
        if self._is_stopping:  # the signal came meanwhile
            self._stop_listening()

    def _start_worker(self) -> None:
        self._newest += 1
        told = {LISTENER: self._listener, NUMBER: self._newest, SUPERVISOR: os.getpid()}
        environ = os.environ | {name: str(value) for name, value in told.items()}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "wsgi.py")],
            env=environ,
            pass_fds=(self._listener,),
            start_new_session=True,  # a terminal's Ctrl-C comes once, by way of us
        )
        self._workers[process.pid] = self._newest, time.monotonic()
        process.returncode = 0  # `run` waits for it
        if self._is_stopping:  # the signal came while it was started
            os.kill(process.pid, signal.SIGTERM)

    def _stop_listening(self) -> None:
        """Else who comes now would wait until the last worker has ended."""
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """A second signal cuts the running answers."""
        if not self._is_stopping:
            systemd.notify("STOPPING=1")
        self._is_stopping = True
        if not self._is_starting:
            self._stop_listening()
        for pid in tuple(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _take_leave(self, pid: int, status: int) -> None:
        number, since = self._workers.pop(pid, (0, 0.0))
        if not number or self._is_stopping:
            return
        if status == REFUSED:
            self._status = 1
            self._stop(signal.SIGTERM, None)
            return
        log.warning("Worker %d ended (%d): another one begins.", number, status)
        if time.monotonic() - since < SHORT_LIFE:
            time.sleep(PAUSE)
        if not self._is_stopping:
            self._start()
