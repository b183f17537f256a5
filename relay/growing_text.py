"""A text that comes in pieces."""

from __future__ import annotations

MOST_PIECES = 32  # a piece of an answer is some four characters, and a string has fifty bytes beside them


class GrowingText:
    """A text that grows by pieces. They are joined when it is read, and meanwhile each MOST_PIECES to one."""

    __slots__ = ("_begun", "_joined", "_pieces", "length")

    def __init__(self, text: str = "") -> None:
        self._begun = text  # the pieces go on with it
        self._pieces: list[str] | None = None  # most texts of a stream stay empty
        self._joined = 0  # of the pieces, the first ones
        self.length = len(text)

    def append(self, piece: str) -> None:
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = []
        pieces.append(piece)
        self.length += len(piece)
        if len(pieces) - self._joined >= MOST_PIECES:
            pieces[self._joined :] = ["".join(pieces[self._joined :])]
            self._joined += 1

    @property
    def text(self) -> str:
        if self._pieces is not None:
            self._begun += "".join(self._pieces)
            self._pieces = None
            self._joined = 0
        return self._begun
