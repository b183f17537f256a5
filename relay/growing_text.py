"""A text that comes in pieces."""

from __future__ import annotations


class GrowingText:
    """A text that grows by pieces, held as UTF-8 in one place: strings have fifty bytes beside each."""

    __slots__ = ("_begun", "_more", "length")

    def __init__(self, text: str = "") -> None:
        self._begun = text  # the pieces go on with it
        self._more: bytearray | None = None  # most texts of a stream stay empty
        self.length = len(text)

    def append(self, piece: str) -> None:
        encoded = piece.encode("utf-8", "surrogatepass")  # JSON may have half a pair
        if self._more is None:
            self._more = bytearray(encoded)
        else:
            self._more += encoded
        self.length += len(piece)

    @property
    def text(self) -> str:
        if self._more is not None:
            self._begun += self._more.decode("utf-8", "surrogatepass")
            self._more = None
        return self._begun
