"""Answers to asks with an idempotency key: how they are recorded, and how a record is answered again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from relay.domain import (
    Delta,
    Event,
    Finished,
    KeyRecord,
    Reasoning,
    Refusal,
    Reply,
    Started,
    ToolCall,
)
from relay.errors import (
    Blocked,
    KeyReused,
    NoConversation,
    OutcomeUnknown,
    Refused,
    RelayError,
)


def completed_record(reply: Reply) -> KeyRecord:
    """A whole answer as it is kept for its key."""
    calls = [[call.id, call.name, call.arguments] for call in reply.tool_calls]
    outcome: dict[str, Any] = {
        "text": reply.text,
        "conversation_id": reply.conversation_id,
        "message_id": reply.message_id,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "reasoning": reply.reasoning,
        "usage": dict(reply.usage) if reply.usage else None,
    }
    if reply.refusal:
        outcome["refusal"] = reply.refusal
    if calls:
        outcome["tool_calls"] = calls
    return KeyRecord("done", outcome)


def failed_record(error: RelayError, conversation_id: str = "") -> KeyRecord:
    """A failure as it is kept for a key whose question may have reached the upstream."""
    outcome = {
        "code": error.code,
        "message": error.message,
        "conversation_id": conversation_id or None,
    }
    return KeyRecord("refused" if error.is_final else "unknown", outcome)


def raise_failure(record: KeyRecord) -> None:
    """Raise what became of an ask that has ended without an answer; an answer raises nothing."""
    outcome = record.outcome
    match record.state:
        case "refused":
            is_refusal = outcome["code"] == Refused.code
            raise (Refused if is_refusal else Blocked)(outcome["message"])
        case "unknown":
            sentences = (
                OutcomeUnknown.message,
                outcome.get("message", ""),
                "Take a new key to ask anew.",
            )
            raise OutcomeUnknown(" ".join(filter(None, sentences)))
        case "other":
            raise KeyReused()
        case "gone":
            raise NoConversation(
                "The answer to this request was deleted with its conversation."
            )


class ReplayedAnswer:
    """A recorded answer as a stream and its decoder, so that it is printed in the format now asked for."""

    dispatched = True
    awaited = None
    started = True
    complete = True
    message_id = None

    def __init__(self, record: KeyRecord) -> None:
        self._outcome = record.outcome
        self._pieces = [b"recorded"]

    def read(self, seconds: float) -> bytes:
        return self._pieces.pop() if self._pieces else b""

    def feed(self, piece: bytes) -> Iterator[Event]:
        outcome = self._outcome
        yield Started(outcome["model"], outcome["conversation_id"] or None)
        if outcome["reasoning"]:
            yield Reasoning(outcome["reasoning"])
        if outcome.get("refusal"):
            yield Refusal(outcome["refusal"])
        if outcome["text"]:
            yield Delta(outcome["text"])
        for index, call in enumerate(outcome.get("tool_calls", ())):
            yield ToolCall(index, *call)
        yield Finished(
            outcome["finish_reason"],
            outcome["message_id"],
            outcome["model"],
            outcome["usage"],
        )

    def end(self) -> list[Event]:
        return []

    def interrupt(self) -> None:
        self._pieces.clear()

    def close(self) -> None:
        self._pieces.clear()
