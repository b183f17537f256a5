"""The parts of a multipart/form-data body, as curl and browsers send them. Pure.

Only `find` goes over the contents of parts, and over each byte once; headers, which cost more, are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from werkzeug.http import parse_options_header

from relay.errors import BadRequest, TooLarge

MOST_PARTS = 1000
#: bytes of headers that one part may have, and all parts together
MOST_PART_HEADERS = 8 * 1024
MOST_HEADERS = 256 * 1024
LONGEST_BOUNDARY = 200
_PADDING = re.compile(rb"[ \t]{0,100}\r?\n")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CONTINUATION = re.compile(r"\r?\n[ \t]+")


class Part(NamedTuple):
    """A part: the field's name, "" where it has none, and where in the body its content starts and ends.

    `filename`: of a part that was sent as a file; else None.
    """

    name: str
    start: int
    end: int
    filename: str | None = None


def parts(body: bytes, boundary: str) -> Iterator[Part]:
    """The parts of a body. Raises TooLarge, or BadRequest, also where the last delimiter is missing.

    What is before the first delimiter and after the last one is skipped; a line may end in LF alone.
    """
    delimiter = b"\n" + _delimiter(boundary)
    count = 0
    size_of_headers = 0
    line_end = _first_line_end(body, delimiter)
    while not body.startswith(b"--", line_end + len(delimiter)):
        count += 1
        if count > MOST_PARTS:
            raise TooLarge(f"The form has more than {MOST_PARTS} parts.")
        headers, start = _headers(body, line_end + len(delimiter))
        size_of_headers += len(headers)
        if size_of_headers > MOST_HEADERS:
            raise TooLarge(f"The headers of all parts are over {MOST_HEADERS} bytes.")
        # an empty content may share its line end with the headers
        line_end = _found(body.find(delimiter, start - 1))
        options = _disposition(headers)
        name = options.get("name", "")
        yield Part(name, start, _content_end(body, line_end), options.get("filename"))


def _broken() -> BadRequest:
    return BadRequest(
        "The multipart body is broken or cut short: nothing was asked. Send it again."
    )


def _found(position: int) -> int:
    """The position of what was looked for. Raises BadRequest where it was not found."""
    if position < 0:
        raise _broken()
    return position


def _delimiter(boundary: str) -> bytes:
    """What begins the line before each part."""
    if not boundary.isascii() or not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise _broken()
    return b"--" + boundary.encode("ascii")


def _first_line_end(body: bytes, delimiter: bytes) -> int:
    """Where the line before the first delimiter ends; -1 where the delimiter is the first line."""
    if body.startswith(delimiter[1:]):
        return -1
    return _found(body.find(delimiter))


def _headers(body: bytes, position: int) -> tuple[bytes, int]:
    """A part's headers after a delimiter that ends at `position`, and where its content starts."""
    padding = _PADDING.match(body, position)
    if padding is None:
        raise _broken()
    start = padding.end()
    most = start + MOST_PART_HEADERS
    blank = _BLANK_LINE.search(body, start, most + len(b"\r\n\r\n"))
    if blank is not None:
        return body[start : blank.start()], blank.end()
    if len(body) > most:
        raise TooLarge(f"A part's headers are over {MOST_PART_HEADERS} bytes.")
    raise _broken()


def _content_end(body: bytes, line_end: int) -> int:
    has_cr = body[line_end - 1 : line_end] == b"\r"
    return line_end - 1 if has_cr else line_end


def _disposition(headers: bytes) -> dict[str, str]:
    """What a part's Content-Disposition says. Raises BadRequest where there is none."""
    try:
        lines = _CONTINUATION.sub(" ", headers.decode()).split("\n")
    except UnicodeDecodeError:
        raise _broken() from None
    for line in lines:
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            return parse_options_header(value.strip())[1]
    raise _broken()
