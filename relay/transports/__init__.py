"""How bytes travel: what is sent, what comes back, and what every transport can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, NamedTuple, Protocol, TypeAlias

from relay.cached import cached
from relay.values import frozen

TOO_LARGE = "The upstream's answer is larger than MAX_ANSWER allows."

Pairs: TypeAlias = tuple[tuple[str, str], ...]


class Headers(Mapping[str, str]):
    """Header fields in their order. Names compare in lower case; `pairs` has every field, duplicates too.

    As a mapping, fields of one name are joined by commas (RFC 9110, 5.3).
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.pairs: Pairs = tuple(pairs)

    @cached
    def _values(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for name, value in self.pairs:
            name = name.lower()
            known = values.get(name)
            values[name] = f"{known}, {value}" if known and value else known or value
        return values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """As Mapping's own, without an exception for a name that is not there."""
        return self._values.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({', '.join(self._values)})"  # values may be secret


@frozen
class Call:
    """One request. Host and the framing of the body are added.

    `body`: bytes, or pieces that are sent as they are taken; then `length` is their size, or None
    for chunks. `unpack`: whether a compressed answer is unpacked, or given as it was sent.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=Headers, repr=False)
    body: bytes | Iterable[bytes] = field(default=b"", repr=False)
    length: int | None = None
    unpack: bool = True


class Head(NamedTuple):
    """An answer's status and headers; names in lower case."""

    status: int
    headers: Headers


class Exchange(Protocol):
    """One request and its answer.

    Owned by one thread, which calls `head` until it gives one, then `read` until b"", then `close`;
    only `interrupt` may be called from others. Raises only RelayError: Unreachable where nothing
    was sent, UpstreamCut where the connection ended early, UpstreamFailed for what is no HTTP,
    BadRequest for what no HTTP can carry. No message names the host: callers may be strangers.

    Lets other threads and greenlets run, also where data is always there and no call has to wait.
    `awaited`: the descriptor that is readable as soon as `read` has more to give; None where there is none such.
    """

    @property
    def awaited(self) -> int | None: ...

    def head(self, seconds: float) -> Head | None:
        """Status and headers, once; None if they have not come within `seconds`. The first call sends.

        Looking up the host, connecting and sending have limits of their own beside `seconds`.
        """

    def read(self, seconds: float) -> bytes | None:
        """What has arrived of the body; b"" at its end, None if nothing came within `seconds`.

        What is no part of the body is nothing: headers, trailers, chunk extensions.
        """

    def interrupt(self) -> None:
        """Make a call that is waiting return or raise at once, and every later one too."""

    def close(self) -> None:
        """Let the connection go, or keep it for the next exchange. May be called twice."""


class Transport(Protocol):
    """Makes exchanges; shared by all threads."""

    def send(self, call: Call) -> Exchange:
        """An exchange that has sent nothing yet. Never blocks; raises Unreachable for what is no address."""

    def close(self) -> None:
        """Close all idle connections; running exchanges go on."""
