"""ChatGPT's citation markers, left out of a text that arrives in pieces.

A marker is a block from U+E200 to U+E201, a single character from U+E200 to U+E206, or `【3†source】`. The text is
scanned once: what is certain is given at once, and only a marker at the end that is not closed yet is held back. A
marker has a longest length; what is longer is no marker, and is text after all. So a piece costs what its own length
costs, plus a scan of at most one marker, however long the text is by then.
"""

from __future__ import annotations

import re

LONGEST_MARKER = 500
_MARK = re.compile("[\ue200-\ue206【]")
_CLOSED = re.compile("\ue200[^\ue201]*\ue201|[\ue201-\ue206]|【[0-9:]+†[^】]*】")
_UNCLOSED = re.compile("\ue200[^\ue201]*|【(?:[0-9:]*|[0-9:]+†[^】]*)")


class CitationFilter:
    """A text in, piece by piece; the same text without markers out."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """What is certain after this piece."""
        if not self._held and not _MARK.search(piece):
            return piece
        return self._scan(self._held + piece, is_end=False)

    def end(self) -> str:
        """What was held back and is text after all. A block that was never closed is left out."""
        if not self._held:
            return ""
        return self._scan(self._held, is_end=True)

    def _scan(self, text: str, is_end: bool) -> str:
        visible: list[str] = []
        position = 0
        self._held = ""
        while mark := _MARK.search(text, position):
            start = mark.start()
            longest = start + LONGEST_MARKER
            visible.append(text[position:start])
            closed = _CLOSED.match(text, start, longest)
            if closed:
                position = closed.end()
                continue
            may_be_closed = len(text) < longest and _UNCLOSED.fullmatch(text, start)
            if may_be_closed and not is_end:
                self._held = text[start:]
                return "".join(visible)
            if may_be_closed and mark[0] == "\ue200":
                return "".join(visible)
            if mark[0] == "【":
                visible.append("【")
            position = start + 1
        visible.append(text[position:])
        return "".join(visible)


def visible(text: str, *, is_complete: bool) -> str:
    """A text without its markers; unless it is complete, without a marker at its end that is not closed yet."""
    citations = CitationFilter()
    certain = citations.feed(text)
    return certain + citations.end() if is_complete else certain
