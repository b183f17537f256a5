"""How bytes travel: one class each. What they carry, and what they all can do, stands here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Call:
    """One request. Header names are sent as given; Host and Content-Length are added."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Head:
    """An answer's status and headers; names in lower case."""

    status: int
    headers: dict[str, str] = field(repr=False)


class Exchange(Protocol):
    """One request and its answer. Raises only RelayError."""

    def head(self, seconds: float) -> Head | None:
        """Status and headers; None if they have not come within `seconds`."""

    def read(self, seconds: float) -> bytes | None:
        """What has arrived of the body; b"" at its end, None if nothing came within `seconds`."""

    def interrupt(self) -> None:
        """From another thread: a read that waits ends at once."""

    def close(self) -> None: ...


class Transport(Protocol):
    def send(self, call: Call) -> Exchange: ...
