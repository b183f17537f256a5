"""A command at a terminal: a process whose input and output are a pseudo-terminal that somebody types at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.processes import ROOT

CTRL_C = "\x03"


class Typist:
    """Starts a command in `folder`, with `folder/data` as its DATA_DIR, reads what it shows, and types."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.shown = ""
        self._read_to = 0
        self._master, slave = pty.openpty()
        settings = {"DATA_DIR": str(folder / "data"), **environ}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "chatgpt_webapi.py"), *arguments],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **settings},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def expect(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """What the command shows next that matches."""
        until = time.monotonic() + seconds
        while not (found := re.compile(pattern).search(self.shown, self._read_to)):
            assert time.monotonic() < until, (pattern, self.shown)
            assert self._read(), (pattern, self.shown)
        self._read_to = found.end()
        return found

    def _read(self) -> bool:
        """Read what is there; whether more may come."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return True
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += piece.decode().replace("\r\n", "\n")
        return bool(piece)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """The exit status, once the command has ended and everything was read."""
        until = time.monotonic() + 20
        while self._read() and time.monotonic() < until:
            pass
        status = self.process.wait(10)
        self.close()
        return status

    def close(self) -> None:
        """Leave; a command that still runs is killed."""
        if self._master < 0:
            return
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._master)
        self._master = -1
