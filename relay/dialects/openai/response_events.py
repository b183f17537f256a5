"""A stream of the Responses API: typed events in their order, with sequence numbers. Pure.

Source: OpenAI's ResponseStreamEvent. A text or the reasoning is an item that is open until another kind of piece comes;
calls stay open until the end, because their pieces may alternate. A failed stream ends with `response.failed`, and then
with an event that has an `error`: the one is what typed clients look for, the other is what OpenAI's SDKs raise.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from relay import sse
from relay.dialects.openai import errors, items, responses
from relay.domain import (
    Ask,
    Delta,
    Event,
    Reasoning,
    Refusal,
    Reply,
    Restarted,
    Started,
    ToolCall,
    joined_call,
)
from relay.errors import RelayError
from relay.ids import random_digits
from relay.values import frozen


@frozen
class _Kind:
    """How a kind of text is named: the prefix of its events, the field of a whole one, the index of a part."""

    event: str
    whole: str
    index: str
    part_event: str


_TEXT = _Kind("response.output_text", "text", "content_index", "response.content_part")
_REFUSAL = _Kind(
    "response.refusal", "refusal", "content_index", "response.content_part"
)
_REASONING = _Kind(
    "response.reasoning_summary_text",
    "text",
    "summary_index",
    "response.reasoning_summary_part",
)


@dataclass(slots=True)
class _OpenText:
    """An item that is being written."""

    kind: _Kind
    id: str
    at: int
    pieces: list[str] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.at, self.kind.index: 0}

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self, text: str) -> dict[str, Any]:
        if self.kind is _REASONING:
            return {"type": "summary_text", "text": text}
        if self.kind is _REFUSAL:
            return items.refusal_part(text)
        return items.text_part(text)

    def item(self, status: str) -> dict[str, Any]:
        if self.kind is _REASONING:
            return items.reasoning_item(self.id, self.text)
        parts = [self.part(self.text)] if status != "in_progress" else []
        return items.message_item(self.id, parts, status)


@dataclass(slots=True)
class _OpenCall:
    """A call that is being written."""

    id: str
    at: int
    pieces: list[ToolCall]


class ResponseEvents:
    """The printer of one response. See `relay.turn.Printer`.

    `echo`: see `Ask`. A response that is stored has the id of its answer, which the event Started brings.
    """

    keep_alive = sse.KEEP_ALIVE
    needs_text = True

    def __init__(self, echo: Mapping[str, Any]) -> None:
        self._echo = echo
        self._key = random_digits()
        self._model: str | None = None
        self._has_begun = False
        self._number = 0
        self._items = 0
        self._names: set[str] = set()
        self._text: _OpenText | None = None
        self._calls: dict[int, _OpenCall] = {}

    @classmethod
    def of(cls, ask: Ask) -> ResponseEvents:
        """The printer for an ask."""
        return cls(ask.echo or {})

    def print(self, batch: list[Event]) -> bytes:
        return b"".join(self._print(event) for event in batch)

    def _print(self, event: Event) -> bytes:
        match event:
            case Started():
                return self._start(event)
            case Delta(text):
                return self._add(_TEXT, text)
            case Refusal(text):
                return self._add(_REFUSAL, text)
            case Reasoning(text):
                return self._add(_REASONING, text)
            case ToolCall():
                return self._add_call(event)
            case Restarted():
                return self._close_text("incomplete")
        return b""

    def _start(self, started: Started) -> bytes:
        if started.answer_id and not self._has_begun:
            self._key = uuid.UUID(started.answer_id).hex
        self._model = started.model or self._model
        return self._begin()

    def _begin(self) -> bytes:
        """The two first events, once."""
        if self._has_begun:
            return b""
        self._has_begun = True
        begun = responses.in_progress(self._key, self._echo, self._model)
        created = self._event("response.created", response=begun)
        return created + self._event("response.in_progress", response=begun)

    def _add(self, kind: _Kind, text: str) -> bytes:
        """A piece of text, in the item that is open or in a new one."""
        if not text:
            return b""
        events = self._begin()
        if self._text is None or self._text.kind is not kind:
            events += self._close_text("completed")
            events += self._open_text(kind)
        assert self._text is not None
        self._text.pieces.append(text)
        extra: dict[str, Any] = {"logprobs": []} if kind is _TEXT else {}
        return events + self._event(
            f"{kind.event}.delta", **self._text.place, delta=text, **extra
        )

    def _open_text(self, kind: _Kind) -> bytes:
        name = self._name("rs" if kind is _REASONING else "msg")
        opened = _OpenText(kind, name, self._items)
        self._items += 1
        self._text = opened
        added = self._event(
            "response.output_item.added",
            output_index=opened.at,
            item=opened.item("in_progress"),
        )
        part = self._event(
            f"{kind.part_event}.added", **opened.place, part=opened.part("")
        )
        return added + part

    def _name(self, prefix: str) -> str:
        """An item's id: that of the answer within it; a second item of a kind has a number too.

        As a whole the answer has one item of each, with the plain id.
        """
        plain = f"{prefix}_{self._key}"
        return plain if plain not in self._names else f"{plain}_{self._items}"

    def _close_text(self, status: str) -> bytes:
        """The end of the item that is open; the id of one whose text became void is free again."""
        opened = self._text
        if opened is None:
            return b""
        self._text = None
        extra: dict[str, Any] = {"logprobs": []} if opened.kind is _TEXT else {}
        whole = {opened.kind.whole: opened.text, **extra}
        item = opened.item(status)
        if status == "completed" or opened.kind is _REASONING:
            self._names.add(opened.id)
        return (
            self._event(f"{opened.kind.event}.done", **opened.place, **whole)
            + self._event(
                f"{opened.kind.part_event}.done",
                **opened.place,
                part=opened.part(opened.text),
            )
            + self._event(
                "response.output_item.done", output_index=opened.at, item=item
            )
        )

    def _add_call(self, piece: ToolCall) -> bytes:
        events = self._begin() + self._close_text("completed")
        if piece.index in self._calls:
            self._calls[piece.index].pieces.append(piece)
        else:
            events += self._open_call(piece)
        known = self._calls[piece.index]
        if not piece.arguments:
            return events
        return events + self._event(
            "response.function_call_arguments.delta",
            item_id=known.id,
            output_index=known.at,
            delta=piece.arguments,
        )

    def _open_call(self, piece: ToolCall) -> bytes:
        name = f"fc_{self._key}_{len(self._calls)}"
        opened = _OpenCall(name, self._items, [piece])
        self._items += 1
        self._calls[piece.index] = opened
        item = items.call_item(opened.id, replace(piece, arguments=""), "in_progress")
        return self._event(
            "response.output_item.added", output_index=opened.at, item=item
        )

    def _close_calls(self, status: str) -> bytes:
        """The ends of all calls; the last one has the status."""
        *others, last = self._calls.values()
        done = [self._close_call(call, "completed") for call in others]
        return b"".join(done) + self._close_call(last, status)

    def _close_call(self, opened: _OpenCall, status: str) -> bytes:
        call = joined_call(opened.pieces)
        item = items.call_item(opened.id, call, status)
        done = self._event(
            "response.function_call_arguments.done",
            item_id=opened.id,
            output_index=opened.at,
            name=call.name,
            arguments=call.arguments,
        )
        return done + self._event(
            "response.output_item.done", output_index=opened.at, item=item
        )

    def end(self, reply: Reply) -> bytes:
        events = self._begin()
        whole = responses.finished(self._key, self._echo, reply)
        if not (reply.text or reply.refusal or reply.tool_calls):
            events += self._close_text("completed")
            events += self._open_text(_TEXT)  # an empty answer is a message too
        if self._calls:
            events += self._close_text("completed")
            events += self._close_calls(whole["status"])
        else:
            events += self._close_text(whole["status"])
        return events + self._event(f"response.{whole['status']}", response=whole)

    def fail(self, error: RelayError) -> bytes:
        failed = responses.failed(self._key, self._echo, self._model, error)
        events = self._begin() + self._event("response.failed", response=failed)
        return events + sse.event(orjson.dumps(errors.body(error)))

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.event(orjson.dumps(payload), kind)
