"""`delta_encoding` v1: the message once, then edits of it. Pure. Source: protocol notes, delta encoding."""

from __future__ import annotations

from typing import Any

from relay import sse
from relay.dialects.chatgpt.answer import DONE, KEEP_ALIVE, Answer, dumps
from relay.domain import Delta, Event, Reply, Restarted, Started
from relay.errors import RelayError

ENCODING = "v1"
_TEXT = "/message/content/parts/0"


class Edits:
    """Prints an answer as edits. A frame that appends where the one before did says only what."""

    keep_alive = KEEP_ALIVE
    needs_text = True

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._has_begun = False
        self._appends = False

    def print(self, batch: list[Event]) -> bytes:
        for event in batch:
            if isinstance(event, Started):
                self._answer = self._answer.started(event)
        frames = b"" if self._has_begun else self._begin()
        restarted, text = _text_of(batch)
        if restarted:
            return frames + self._replace(text)
        return frames + (self._append(text) if text else b"")

    def end(self, reply: Reply) -> bytes:
        frames = b"" if self._has_begun else self._begin()
        self._answer = self._answer.ended(reply)
        complete = {
            "type": "message_stream_complete",
            "conversation_id": self._answer.conversation_id,
        }
        return frames + self._finish() + sse.event(dumps(complete)) + DONE

    def fail(self, error: RelayError) -> bytes:
        return self._answer.failure(error)

    def _begin(self) -> bytes:
        """The encoding's name, and the message without text."""
        self._has_begun = True
        head = sse.event(dumps(ENCODING), "delta_encoding")
        return head + _frame(
            {"p": "", "o": "add", "v": self._answer.envelope(), "c": 0}
        )

    def _append(self, text: str) -> bytes:
        frame = {"v": text}
        if not self._appends:
            frame = {"p": _TEXT, "o": "append", "v": text}
        self._appends = True
        return _frame(frame)

    def _replace(self, text: str) -> bytes:
        self._appends = False
        return _frame({"p": _TEXT, "o": "replace", "v": text})

    def _finish(self) -> bytes:
        answer = self._answer
        metadata = {"model_slug": answer.model or None, **answer.final_metadata()}
        values = (
            ("/message/id", "replace", answer.id),
            ("/message/status", "replace", answer.status),
            ("/message/end_turn", "replace", answer.end_turn),
            ("/message/metadata", "append", metadata),
        )
        edits = [{"p": path, "o": name, "v": value} for path, name, value in values]
        return _frame({"p": "", "o": "patch", "v": edits})


def _text_of(batch: list[Event]) -> tuple[bool, str]:
    """Whether the text begins anew, and what is to be added to it."""
    restarted = False
    pieces: list[str] = []
    for event in batch:
        if isinstance(event, Delta):
            pieces.append(event.text)
        elif isinstance(event, Restarted):
            restarted = True
            pieces.clear()
    return restarted, "".join(pieces)


def _frame(frame: dict[str, Any]) -> bytes:
    return sse.event(dumps(frame), "delta")
