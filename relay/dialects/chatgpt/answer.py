"""An answer as the web API's objects have it, and their JSON. Pure.

Source: protocol notes, classic SSE and in-stream failures. The JSON is ASCII alone: revChatGPT reads a line as Python
prints bytes, so it loses one that has a raw character beyond ASCII, or DEL; npm's chatgpt decodes each piece of the
stream by itself, and a character that is cut in two is lost.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from relay import sse
from relay.dialects.chatgpt import errors
from relay.domain import FinishReason, Reply, Started
from relay.errors import RelayError
from relay.ids import new_id
from relay.values import frozen

Action: TypeAlias = Literal["next", "variant", "continue"]

DONE = sse.event(b"[DONE]")
#: in the classic format a comment, or an event's name, would be read as a broken line
KEEP_ALIVE = b"\n"
#: the backend's own line for a failure within a stream, the only one that revChatGPT does not take for a whole answer
FAILURE_LINE = b"internal server error\n\n"
#: `Finished.reason` -> the type of `finish_details`
_FINISHES: dict[FinishReason, str] = {"length": "max_tokens"}


def dumps(value: Any) -> bytes:
    """JSON of ASCII characters alone, without line ends."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("\x7f", "\\u007f").encode()


def failure(error: RelayError, conversation_id: str | None = None) -> bytes:
    """What ends a failed stream."""
    return sse.event(dumps(errors.event(error, conversation_id))) + FAILURE_LINE


@frozen
class Answer:
    """All of an answer but its text.

    `created`: seconds since 1970. `question_id`: "" where it is not known. `is_started`: the ids are
    no longer to change, but for what the end says. `finish`: None while the answer grows.
    """

    conversation_id: str
    id: str
    created: float
    action: Action = "next"
    model: str = ""
    question_id: str = ""
    is_started: bool = False
    finish: FinishReason | None = None

    @classmethod
    def new(cls, action: Action, model: str | None, created: float) -> Answer:
        """An answer with ids of its own: what is not stored keeps them, for clients want some."""
        ids = new_id(), new_id()
        return cls(*ids, created, action, model or "")

    def started(self, event: Started) -> Answer:
        """With what the upstream and the store say of it."""
        return replace(
            self,
            conversation_id=event.conversation_id or self.conversation_id,
            id=event.answer_id or self.id,
            model=event.model or self.model,
            question_id=event.question_id,
            is_started=True,
        )

    def ended(self, reply: Reply) -> Answer:
        return replace(
            self,
            conversation_id=reply.conversation_id or self.conversation_id,
            id=reply.message_id or self.id,
            model=reply.model or self.model,
            finish=reply.finish_reason,
        )

    def envelope(self, text: str = "") -> dict[str, Any]:
        """The object of an event."""
        return {
            "message": self.message(text),
            "conversation_id": self.conversation_id,
            "error": None,
        }

    def message(self, text: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "author": {"role": "assistant", "name": None, "metadata": {}},
            "create_time": self.created,
            "update_time": None,
            "content": {"content_type": "text", "parts": [text]},
            "status": self.status,
            "end_turn": self.end_turn,
            "weight": 1.0,
            "metadata": self._metadata() | self.final_metadata(),
            "recipient": "all",
            "channel": None,
        }

    @property
    def status(self) -> str:
        return "in_progress" if self.finish is None else "finished_successfully"

    @property
    def end_turn(self) -> bool | None:
        return None if self.finish is None else True

    def _metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "message_type": self.action,
            "model_slug": self.model or None,
        }
        if self.question_id:
            metadata["parent_id"] = self.question_id
        return metadata

    def final_metadata(self) -> dict[str, Any]:
        """What the metadata gain with the end; revChatGPT does not take null in their place."""
        if self.finish is None:
            return {}
        kind = _FINISHES.get(self.finish, self.finish)
        return {"finish_details": {"type": kind}, "is_complete": True}

    def failure(self, error: RelayError) -> bytes:
        """What ends a failed stream."""
        conversation_id = self.conversation_id if self.is_started else None
        return failure(error, conversation_id)
