"""The header fields of a request, read strictly: what two servers could read differently is refused.

Source: RFC 9112, sections 5 and 6. It has what pywsgi asks of a head; nothing is unfolded, and no field is guessed.
"""

from __future__ import annotations

import re
from typing import Any

LARGEST = 64 * 1024  # bytes
MOST_FIELDS = 100
_LINE = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*\r?\n"
)


class RequestHead:
    """The fields in their order. `headers`: as lines. Names compare in lower case; the first of a name counts."""

    status = ""  # pywsgi's word for a head that could not be read; ours raises

    def __init__(self, file: Any) -> None:
        """Reads up to the empty line. Raises ValueError for a head that is no head, too large or ambiguous."""
        self.headers: list[str] = []
        self._values: dict[str, list[str]] = {}
        left = LARGEST
        while (line := file.readline(left + 1).decode("latin-1")) not in ("\r\n", "\n"):
            left -= len(line)
            if left < 0 or len(self.headers) == MOST_FIELDS:
                raise ValueError("the head is too large")
            field = _LINE.fullmatch(line)
            if field is None:
                raise ValueError("a line that is no header field")
            self.headers.append(line)
            self._values.setdefault(field[1].lower(), []).append(field[2])
        if self._is_ambiguous():
            raise ValueError("two servers could read two different requests")

    def _is_ambiguous(self) -> bool:
        """Whether the fields say more than one thing of the host, or of where the body ends."""
        lengths = self._values.get("content-length", [])
        encodings = self._values.get("transfer-encoding", [])
        if len(self._values.get("host", ())) > 1 or len(lengths) + len(encodings) > 1:
            return True
        if any(not (text.isascii() and text.isdigit()) for text in lengths):
            return True
        return any(text.lower() != "chunked" for text in encodings)

    def get(self, name: str, default: Any = None) -> Any:
        values = self._values.get(name.lower())
        return values[0] if values else default

    getheader = get

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    @property
    def typeheader(self) -> str | None:
        """The Content-Type."""
        found: str | None = self.get("content-type")
        return found
