"""The head and the chunks of a request, read strictly: what two servers could read differently is refused.

Source: RFC 9112, sections 2 to 7. httptools reads a head (llhttp, as Node has it). Pure: no sockets, no clock.
"""

from __future__ import annotations

import re
import sys
from dataclasses import field
from urllib.parse import quote_from_bytes

import httptools

from relay.values import frozen

LARGEST_HEAD = 64 * 1024  # bytes; of the trailer after a chunked body, too
MOST_FIELDS = 100
LONGEST_NAME = 256  # bytes of a field's name; names are remembered
LONGEST_CHUNK_LINE = 8 * 1024
VERSIONS = frozenset(("1.0", "1.1"))
CHUNKED = b"chunked"
BROKEN_CHUNK = "A chunk of its body is none."
TLS_RECORD = b"\x16\x03"  # how a client's first one begins
STATED_ONCE = frozenset((b"content-length", b"host", b"transfer-encoding"))
_END = b"\r\n\r\n"
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_IN_TARGET = "".join(map(chr, range(0x21, 0x7F)))
_FIRST_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_NEXT_LINE = re.compile(b"\r\n" + _FIRST_LINE.pattern)
_TRAILER = re.compile(
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*\r\n"
)


class BrokenRequest(OSError):
    """What came is no request, or is one that two servers could read differently. `reason`: none of its own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@frozen
class Request:
    """What a head says.

    `fields`: the header's names in lower case with their values, in their order. `length`: of the body; None where it
    is chunked. `keeps_alive`: another request may follow on the connection.
    """

    method: str
    target: bytes
    version: str
    fields: list[tuple[bytes, bytes]] = field(repr=False)
    length: int | None
    keeps_alive: bool

    @property
    def expects_continue(self) -> bool:
        """Whether its body is sent only once somebody asks for it."""
        return self.version == "1.1" and (b"expect", b"100-continue") in self.fields


def take_head(arrived: bytearray) -> bytes | None:
    """The head at the beginning of what has arrived, which is taken out; None while there is more to come.

    Raises BrokenRequest for what will be none.
    """
    while arrived.startswith(b"\r\n"):  # some clients send one after a body
        del arrived[:2]
    if not arrived:
        return None
    end = arrived.find(_END, 0, LARGEST_HEAD)
    if end >= 0:
        head = bytes(arrived[: end + 4])
        del arrived[: end + 4]
        return head
    first_line = arrived.find(b"\n")
    has_bare_end = first_line >= 0 and arrived[first_line - 1 : first_line] != b"\r"
    is_text = arrived[:1].isalpha() or arrived == b"\r"
    if not is_text:
        is_tls = arrived.startswith(TLS_RECORD)
        raise BrokenRequest(
            "It is TLS, which this port does not speak." if is_tls else "It is no HTTP."
        )
    if has_bare_end:
        raise BrokenRequest("Its first line ends without CR.")
    if len(arrived) >= LARGEST_HEAD:
        raise BrokenRequest("Its head is too large.")
    return None


def parse_head(head: bytes) -> Request:
    """Raises BrokenRequest."""
    reader = _HeadReader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(_with_ascii_target(head))
    except httptools.HttpParserUpgrade:
        pass  # it is for the application to refuse or to ignore
    except httptools.HttpParserCallbackError:
        raise BrokenRequest("A field's name is too long.") from None
    except httptools.HttpParserError as error:
        raise BrokenRequest(f"{error}.") from None
    version = sys.intern(parser.get_http_version())  # an open stream has it
    if version not in VERSIONS:
        raise BrokenRequest("It is of another version of HTTP.")
    if not reader.target.startswith(b"/"):
        raise BrokenRequest("Its target is no path.")
    values = _values(reader.fields)
    return Request(
        method=sys.intern(parser.get_method().decode("ascii")),
        target=reader.target,
        version=version,
        fields=reader.fields,
        length=_length_of(values, version),
        keeps_alive=_keeps_alive(values, version),
    )


class _HeadReader:
    """What httptools calls."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) > LONGEST_NAME:
            raise ValueError("a long name")
        self.fields.append((name.lower(), value.rstrip(b" \t")))


def _with_ascii_target(head: bytes) -> bytes:
    """The head with a quoted target: curl sends a URL's other letters as they are, and llhttp refuses them.

    It is to refuse control characters too.
    """
    end = head.index(b"\r\n")
    line = head[:end]
    if line.isascii() or _CONTROL.search(line):
        return head
    return quote_from_bytes(line, _IN_TARGET + " ").encode() + head[end:]


def _values(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The fields by their names; of one name, joined. Raises BrokenRequest for two of what is stated once."""
    if len(fields) > MOST_FIELDS:
        raise BrokenRequest("It has too many fields.")
    values = dict(fields)
    if len(values) == len(fields):  # as they mostly are
        return values
    values = {}
    for name, value in fields:
        if name not in values:
            values[name] = value
        elif name in STATED_ONCE:
            raise BrokenRequest("It has a field twice that may be there once.")
        else:
            values[name] += b"," + value
    return values


def _length_of(values: dict[bytes, bytes], version: str) -> int | None:
    """The length of the body. Raises BrokenRequest where the fields say more than one thing of it."""
    length, encoding = values.get(b"content-length"), values.get(b"transfer-encoding")
    if encoding is None:
        return int(length or 0)
    if length is not None or encoding.lower() != CHUNKED or version == "1.0":
        raise BrokenRequest("It does not say in one way where its body ends.")
    return None


def _keeps_alive(values: dict[bytes, bytes], version: str) -> bool:
    named = values.get(b"connection")
    if not named:
        return version == "1.1"
    options = {option.strip() for option in named.lower().split(b",")}
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)


class ChunkDecoder:
    """Takes a body out of its chunks as they arrive. `is_over`: its end was there."""

    def __init__(self) -> None:
        self.is_over = False
        self._left = 0  # bytes of the chunk at hand
        self._next_line = _FIRST_LINE
        self._is_in_trailer = False

    def take(self, arrived: bytearray) -> bytes:
        """What is there of the body; what was read is taken out. Raises BrokenRequest."""
        pieces = []
        position = 0
        while not self._is_in_trailer:
            if self._left:
                piece = arrived[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            line = self._next_line.match(arrived, position)
            if line is None:
                self._check_beginning(arrived[position:])
                break
            position = line.end()
            self._next_line = _NEXT_LINE
            self._left = int(line[1], 16)
            self._is_in_trailer = not self._left
        del arrived[:position]
        if self._is_in_trailer:
            self._drop_trailer(arrived)
        return b"".join(pieces)

    def _check_beginning(self, line: bytearray) -> None:
        """Raise BrokenRequest for what will be no chunk's first line."""
        if self._next_line is _NEXT_LINE:
            if not line.startswith(b"\r\n"[: len(line)]):
                raise BrokenRequest(BROKEN_CHUNK)
            del line[:2]
        if b"\n" in line or len(line) > LONGEST_CHUNK_LINE:
            raise BrokenRequest(BROKEN_CHUNK)

    def _drop_trailer(self, arrived: bytearray) -> None:
        end = (
            2
            if arrived.startswith(b"\r\n")
            else arrived.find(_END, 0, LARGEST_HEAD) + 4
        )
        if end == 3:  # it is not whole
            if len(arrived) >= LARGEST_HEAD:
                raise BrokenRequest("Its trailer is too large.")
            return
        if not _TRAILER.fullmatch(arrived, 0, end):
            raise BrokenRequest("Its trailer is none.")
        del arrived[:end]
        self.is_over = True
