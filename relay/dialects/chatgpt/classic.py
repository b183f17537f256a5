"""The classic format: each event has the whole message, with all of its text so far. Pure.

Source: protocol notes, classic SSE.
"""

from __future__ import annotations

from typing import Any

from relay import sse
from relay.dialects.chatgpt.answer import DONE, KEEP_ALIVE, Answer, dumps
from relay.domain import Delta, Event, Reply, Restarted, Started
from relay.errors import RelayError

#: up to so many bytes of text each piece is an event; of a longer text, one that adds a 64th part of it
SHORT = 4096
SHARE = 64
_EMPTY = b'"parts":[""]'


class Classic:
    """Prints an answer as messages that grow.

    Every event repeats the text, so a long one waits until it has grown by a share of its length:
    what is sent is then in proportion to the text, and not to its square.
    """

    keep_alive = KEEP_ALIVE
    needs_text = True

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._text = bytearray()  # as it stands in JSON
        self._printed: int | None = None  # bytes of it; None: it has to be printed

    def print(self, batch: list[Event]) -> bytes:
        for event in batch:
            match event:
                case Started():
                    self._answer = self._answer.started(event)
                case Delta(text):
                    self._text += dumps(text)[1:-1]
                case Restarted():
                    self._text.clear()
                    self._printed = None
        return self._event() if self._is_due() else b""

    def end(self, reply: Reply) -> bytes:
        self._answer = self._answer.ended(reply)
        return self._event() + DONE

    def fail(self, error: RelayError) -> bytes:
        has_waited = bool(self._text) and self._printed != len(self._text)
        rest = self._event() if has_waited else b""
        return rest + self._answer.failure(error)

    def _is_due(self) -> bool:
        if self._printed is None:
            return True
        length = len(self._text)
        added = length - self._printed
        return added > 0 and (length <= SHORT or added * SHARE >= length)

    def _event(self) -> bytes:
        """The message as it is now."""
        self._printed = len(self._text)
        head, _, tail = dumps(self._answer.envelope()).partition(_EMPTY)
        return sse.event(b'%s"parts":["%s"]%s' % (head, bytes(self._text), tail))


def whole(answer: Answer, reply: Reply) -> dict[str, Any]:
    """A whole answer as one object: the last event of its stream."""
    return answer.ended(reply).envelope(reply.text)
