"""A text that comes in pieces."""

from __future__ import annotations

MOST_PIECES = 64  # a piece of an answer is some four characters, and a string has fifty bytes beside them


class GrowingText:
    """A text that grows by pieces. They are joined when it is read, and meanwhile each MOST_PIECES to one."""

    __slots__ = ("_joined", "_pieces", "length")

    def __init__(self, text: str = "") -> None:
        self._pieces = [text]
        self._joined = 1  # of the pieces, the first ones
        self.length = len(text)

    def append(self, piece: str) -> None:
        self._pieces.append(piece)
        self.length += len(piece)
        if len(self._pieces) - self._joined >= MOST_PIECES:
            self._pieces[self._joined :] = ["".join(self._pieces[self._joined :])]
            self._joined += 1

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
            self._joined = 1
        return self._pieces[0]
