"""Turns in a store, as tests make them."""

from __future__ import annotations

import uuid
from typing import Any

from relay.domain import KeyRecord, Message, Reply, Status
from relay.store import OpenedTurn, Store, TurnRequest


class Clock:
    """A clock that stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def new_turn(prompt: str = "Hi", owner: str = "owner", **fields: Any) -> TurnRequest:
    """A turn of a new conversation; `system` is the text of its system message."""
    values: dict[str, Any] = {
        "conversation_id": str(uuid.uuid4()),
        "question_id": str(uuid.uuid4()),
        "answer_id": str(uuid.uuid4()),
        "owner": owner,
        "upstream": "offline",
        "question": Message("user", prompt),
        "title": prompt,
    }
    if "system" in fields:
        values["preamble"] = (Message("system", fields.pop("system")),)
    return TurnRequest(**{**values, **fields})


def following(first: TurnRequest, prompt: str = "More", **fields: Any) -> TurnRequest:
    """Another turn of the same conversation."""
    values = {
        "owner": first.owner,
        "conversation_id": first.conversation_id,
        "is_new": False,
    }
    return new_turn(prompt, **{**values, **fields})


def answered(
    store: Store, request: TurnRequest, answer: str | None = "Hello"
) -> TurnRequest:
    """Opens and ends a turn; it breaks after "Hal" where the answer is None."""
    assert store.open_turn(request, 15) is not None
    if answer is None:
        end(store, request, "Hal", "broken")
    else:
        end(store, request, answer)
    return request


def end(
    store: Store,
    request: TurnRequest,
    text: str = "x",
    status: Status = "whole",
    record: KeyRecord | None = None,
) -> None:
    """Ends a turn that is open."""
    if status == "broken":
        store.break_turn(request, text, "m", "upstream_cut", record)
        return
    reply = Reply(text, request.conversation_id, request.answer_id, "m", "stop")
    store.complete_turn(request, reply, record)


def texts(opened: OpenedTurn | None) -> list[str]:
    """The texts of the history of a turn that was opened: all before its prompt."""
    assert opened is not None
    return [message.text for message in opened.history]
