"""ChatGPT's citation markers, left out of a text that arrives in pieces.

A marker is a block from U+E200 to U+E201, a single character from U+E200 to U+E206, or `【3†source】`; no block and no
reference has the beginning of another one within. What is certain is given at once, and only a marker at the end that
is not closed yet is held back. A marker has a longest length; what is longer is no marker, and is text after all. So a
piece costs what its own length costs, plus a scan of at most one marker, however long the text is by then.
"""

from __future__ import annotations

import re

LONGEST_MARKER = 500
_WITHIN = LONGEST_MARKER - 2  # between its first character and its last
_MARK = re.compile("[\ue200-\ue206【]")
#: replaced as one pattern, for texts of nothing but markers: a step of Python's for each takes ten times as long
_DROPPED = re.compile(
    rf"\ue200[^\ue200\ue201【]{{0,{_WITHIN}}}\ue201"
    rf"|【(?=[^\ue200【】]{{0,{_WITHIN}}}】)[0-9:]+†[^\ue200【】]*】"
    "|[\ue200-\ue206]"
)
_UNCLOSED = re.compile("\ue200[^\ue201]*|【(?:[0-9:]*|[0-9:]+†[^】]*)")


class CitationFilter:
    """A text in, piece by piece; the same text without markers out."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """What is certain after this piece."""
        # no marker is ASCII, as most pieces are
        if not self._held and (piece.isascii() or not _MARK.search(piece)):
            return piece
        text = self._held + piece
        end = _end_of_certain(text)
        self._held = text[end:]
        return _DROPPED.sub("", text[:end])

    def end(self) -> str:
        """What was held back and is text after all. A block that was never closed is left out."""
        held, self._held = self._held, ""
        return "" if held.startswith("\ue200") else _DROPPED.sub("", held)


def _end_of_certain(text: str) -> int:
    """Where a marker begins that is not closed yet; the text's end where there is none."""
    first = max(0, len(text) - LONGEST_MARKER + 1)
    last = max(text.rfind(opening, first) for opening in "\ue200【")
    is_open = last >= 0 and _UNCLOSED.fullmatch(text, last)
    return last if is_open else len(text)


def visible(text: str, *, is_complete: bool) -> str:
    """A text without its markers; unless it is complete, without a marker at its end that is not closed yet."""
    citations = CitationFilter()
    certain = citations.feed(text)
    return certain + citations.end() if is_complete else certain
