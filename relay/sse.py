"""Server-sent events, both ways, without I/O.

Lines end at LF, CRLF or CR and nowhere else; a character may be split between pieces, for lines are split as bytes
and decoded whole. Source: WHATWG HTML, "Server-sent events", 9.2.5 and 9.2.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from relay.errors import UpstreamFailed

LONGEST_NAME = 10  # characters of a line in which a field's known name ends
LONGEST_EVENT = 8 * 1024 * 1024
BOM = b"\xef\xbb\xbf"  # may stand before the first line
OPENING_SIZE = 64  # bytes by which `opens_stream` knows a stream
STRAY = "\0stray"  # the name of an event made of a line that is no known field, for parsers that want those


#: an event's name (`message` where none is given), and its data lines, joined by LF
ServerEvent: TypeAlias = tuple[str, str]


class Parser:
    """Bytes in, whole events out. An event that no empty line closes is not given, as the standard has it."""

    def __init__(self, longest: int = LONGEST_EVENT, strays: bool = False) -> None:
        self._strays = strays
        self._longest = longest
        self._pieces: list[bytes] = []
        self._held = 0
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._first_line = True
        self._skip_lf = False

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that this piece completes. Lazy: what is not iterated is not parsed."""
        if not piece:
            return
        if self._skip_lf:
            piece = piece.removeprefix(b"\n")
        self._skip_lf = False
        start = 0
        if self._is_plain(piece):
            while (end := piece.find(b"\n\n", start)) >= 0:
                if (plain := _plain_event(piece[start:end])) is None:
                    break
                self._first_line = False
                start = end + 2
                yield plain
        if start < len(piece):
            yield from self._read_lines(piece[start:])

    def _read_lines(self, piece: bytes) -> Iterator[ServerEvent]:
        """The same, line by line."""
        lines = piece.splitlines()  # bytes have no line ends but those three
        rest = b""
        if lines and not piece.endswith((b"\n", b"\r")):
            rest = lines.pop()
        for line in lines:
            if (event := self._line(self._join(line))) is not None:
                yield event
        # A CR may be the first half of a CRLF; the line is over either way, only the LF to come is not another one.
        self._skip_lf = piece.endswith(b"\r")
        if rest:
            self._pieces.append(rest)
            self._held += len(rest)
        if self._held + self._size > self._longest:
            raise UpstreamFailed(
                f"The upstream sent one event of more than {self._longest} bytes."
            )

    def _is_plain(self, piece: bytes) -> bool:
        """Whether a piece begins with an event, and its lines end as most upstreams end them."""
        is_within = self._pieces or self._data or self._name
        return not is_within and b"\r" not in piece and not piece.startswith(BOM[:1])

    def _join(self, last: bytes) -> bytes:
        """The line that this piece ends."""
        if not self._pieces:
            return last
        line = b"".join([*self._pieces, last])
        self._pieces = []
        self._held = 0
        return line

    def _line(self, line: bytes) -> ServerEvent | None:
        if self._first_line:
            line = line.removeprefix(BOM)
            self._first_line = False
        if not line:
            return self._dispatch() if self._data or self._name else None
        name, start = (b"data", 6) if line.startswith(b"data: ") else _field(line)
        if name == b"data":
            self._data.append(line[start:].decode("utf-8", "replace"))
            self._size += len(line)
        elif name == b"event":
            self._name = line[start:].decode("utf-8", "replace")
        elif self._strays and name not in (b"", b"id", b"retry"):
            return STRAY, line.decode("utf-8", "replace")
        return None  # comments, id, retry and unknown fields

    def _dispatch(self) -> ServerEvent | None:
        event = None
        if self._data:
            event = self._name or "message", "\n".join(self._data)
        self._name = ""
        self._data = []
        self._size = 0
        return event


def _plain_event(block: bytes) -> ServerEvent | None:
    """The event of one line of data, below its name or none, as most are; None for any other, to be read by lines."""
    text = block.decode("utf-8", "replace")
    name = ""
    if text.startswith("event: "):
        name, _, text = text[7:].partition("\n")
    if not text.startswith("data: ") or "\n" in text:
        return None
    return name or "message", text[6:]


def _field(line: bytes) -> tuple[bytes, int]:
    """A line's field, and where its value begins."""
    name, colon, _ = line[:LONGEST_NAME].partition(b":")
    start = len(name) + len(colon)
    return name, start + line.startswith(b" ", start)


KEEP_ALIVE = b": keep-alive\n\n"


def event(data: bytes, name: str = "") -> bytes:
    """One event on the wire. `data` is one line (JSON as orjson prints it)."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%sdata: %s\n\n" % (head, data)


def opens_stream(opening: bytes) -> bool:
    """Whether the first bytes of a body are those of an event stream, for one that does not say its type."""
    return opening.lstrip().startswith((b"data:", b"event:", b":"))
