"""Talking with the person at a terminal, or with the script in its place."""

from __future__ import annotations

import getpass
from typing import TextIO

from relay.errors import BadRequest
from relay.values import frozen

LONGEST_INPUT = 16 * 1024  # characters
LONGEST_LINE = 4095  # bytes of a line that a terminal of Linux gives (termios(3))


@frozen
class Terminal:
    """Standard input and output."""

    source: TextIO
    sink: TextIO

    @property
    def is_interactive(self) -> bool:
        """Whether somebody may be there: cron and services have no terminal at either end."""
        return self.source.isatty() or self.sink.isatty()

    def say(self, text: str = "") -> None:
        """Print lines, at once."""
        self.sink.write(f"{text}\n")
        self.sink.flush()

    def ask(self, prompt: str) -> str:
        """A line that somebody types. Raises BadRequest where input has ended."""
        self.sink.write(prompt)
        self.sink.flush()
        line = self.source.readline(LONGEST_INPUT)
        if not line:
            self.say()
            raise BadRequest("There is nothing more to read on standard input.")
        return line.strip()

    def ask_secret(self, prompt: str) -> str:
        """A secret, typed without being shown, or all of standard input where that is no terminal.

        Raises BadRequest for one that is cut.
        """
        if not self.source.isatty():
            return self.source.read(LONGEST_INPUT).strip()
        try:
            secret = getpass.getpass(prompt)
        except EOFError:
            return ""
        if len(secret) >= LONGEST_LINE:
            raise BadRequest(
                "A terminal takes no line of that length: put the text into a file, and "
                "give that on standard input."
            )
        return secret.strip()
