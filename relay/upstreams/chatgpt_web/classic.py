"""The stream's decoder: bytes in, events out; classic (cumulative) messages and delta frames by one path. No I/O.

- A classic event is an envelope: the conversation's id and one message, whole, with all of its text so far. A delta
  frame edits such an envelope (see `delta`); after each edit it takes the classic way. Which message is the answer, and
  what of it is new, is decided in `answer`.
- Garbage among classic events is survivable: the next message has the whole text again. Only if nothing legible follows
  is it an error, and until then the answer is not `complete`. Among delta frames it is an error at once, for the edit
  that was lost comes in no later frame.
- `complete`: the answer's text is all there; only the trailer (titles, `[DONE]`) may be missing. If the stream breaks
  then, `end` gives the answer nevertheless.
- A stream may end without the whole answer. `wants` then names the request that brings the rest: `Continue`, where
  the answer stopped for its length (the rest is another answer, appended to the text); `Poll`, where the answer was
  handed off, or none came at all, or an image of it is still being made (it is to be read from the conversation, and
  fed here as a classic stream). Nothing more is consumed until `again` is called, before the first piece of the next
  stream.
- A message that is sent whole again and again makes a stream long, and its answer no longer: how much of what came was
  there before is counted in `repeated`, for those who bound an answer's size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import orjson

from relay import sse
from relay.accounts import Account
from relay.domain import Event, Finished, FinishReason, Started
from relay.errors import Blocked, RateLimited, UpstreamCut, UpstreamFailed
from relay.shown import part_of
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.answer import Answer, identifier_of, is_answer
from relay.upstreams.chatgpt_web.delta import Documents, Edit
from relay.upstreams.wording import (
    MOST_VALUES,
    error_text,
    has_too_many_values,
    replaced_in_texts,
)
from relay.values import frozen

MOST_CONTINUATIONS = 10
_ID = re.compile(r"[!-~]{1,200}")
_TIMESTAMP = re.compile(r"20\d\d-\d\d-\d\d")  # a ping's data, which is no JSON
_END_TYPES = ("message_stream_complete", "main_stream_complete")
#: the fields of an event by which it may mean a failure
_FAILURES = frozenset(("moderation_response", "type", "error", "error_code", "detail"))


@frozen
class Continue:
    """Ask for the rest of an answer that stopped for its length."""

    conversation_id: str
    parent_id: str


@frozen
class Poll:
    """The answer does not come in this stream: look for it in the conversation."""

    conversation_id: str


def _checked_id(identifier: str) -> str:
    """An id as it may stand in a header; opaque otherwise."""
    if not _ID.fullmatch(identifier):
        raise UpstreamFailed("The upstream gave an id that no id can be.")
    return identifier


class WebDecoder:
    """Decodes one turn. `wants`: what must be asked for before more bytes can come; `again` begins the next stream.

    `account`: whose stream this is. `redact` takes what was sent in secret out of what a failure quotes.
    """

    def __init__(
        self, conversation_id: str | None = None, known: Collection[str] = ()
    ) -> None:
        self.conversation_id = conversation_id
        self.account: Account | None = None
        self.redact: Callable[[bytes], bytes] = bytes
        self.repeated = 0
        self.wants: Continue | Poll | None = None
        self.started = False
        self._answer = Answer(known)
        self._parser = sse.Parser(strays=True)
        self._documents: Documents | None = None
        self._model: str | None = None
        self._finished = False
        self._handed_off = False
        self._garbled = False
        self._continuations = 0
        self._polled_for_image = False
        self._previous: object = None  # the id of the message that came last
        self._previous_size = 0

    @property
    def complete(self) -> bool:
        """The answer is there; only the stream's own end is still to come."""
        return self._answer.complete and not self._garbled and self.wants is None

    @property
    def message_id(self) -> str | None:
        """The id of the message that the answer is, as far as it has come."""
        return self._answer.newest_id

    def again(self) -> None:
        """A new stream begins, of what was wanted."""
        self.wants = None
        self._handed_off = False
        self._documents = None
        self._parser = sse.Parser(strays=True)

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that this piece completes, lazily: those before an error come before it is raised.

        What comes after the answer's end, or after something is wanted, is not consumed.
        """
        if self._finished or self.wants:
            return
        for event in self._parser.feed(piece):
            yield from self._event(event)
            if self._finished or self.wants:
                return

    def end(self) -> list[Event]:
        """The bytes are over without the stream having announced it. Raises UpstreamCut if the answer is not whole."""
        return [] if self._finished else self._end(announced=False)

    def _event(self, event: sse.ServerEvent) -> list[Event]:
        name, data = event
        if name == "delta" and data.startswith("{"):  # which most are
            return self._payload(name, data)
        data = data.strip()
        if name == sse.STRAY:
            return self._stray(data)
        if name == "ping" or not data or _TIMESTAMP.match(data):
            return []
        if data == "[DONE]":
            return self._end(announced=True)
        if name == "delta_encoding":
            return self._begin_documents(data)
        return self._payload(name, data)

    def _payload(self, name: str, content: str) -> list[Event]:
        """An event with JSON. `name`: the event's."""
        if len(content) >= MOST_VALUES and has_too_many_values(content.encode()):
            raise UpstreamFailed("The upstream sent an event of too many values.")
        try:
            payload = orjson.loads(content)
        except orjson.JSONDecodeError:
            return self._garbage()
        if not isinstance(payload, dict):
            return []
        if self._is_frame(name, payload):
            return self._frame(payload, content)
        self._count_repetition(payload, len(content))
        return self._envelope(payload)

    def _count_repetition(self, payload: dict[str, Any], size: int) -> None:
        """Of a message that is sent once more, only what it has grown is new."""
        identifier = part_of(payload, "message").get("id")
        if identifier is not None and identifier == self._previous:
            self.repeated += min(size, self._previous_size)
        self._previous = identifier
        self._previous_size = size

    def _stray(self, line: str) -> list[Event]:
        """A line that is no field of an event: the backend's own failure comes so."""
        if line.lower() == "internal server error":
            raise UpstreamFailed(
                "The upstream failed within its answer: internal server error."
            )
        return []

    def _begin_documents(self, data: str) -> list[Event]:
        if data.strip('"') != "v1":
            raise UpstreamFailed(
                "The upstream speaks a delta encoding that is not known here."
            )
        self._documents = Documents()
        return []

    def _garbage(self) -> list[Event]:
        if self._documents is not None:
            raise UpstreamFailed(
                "The upstream sent garbage among its edits: text may be lost."
            )
        self._garbled = True
        return []

    def _is_frame(self, name: str, payload: dict[str, Any]) -> bool:
        """Whether an event edits a document."""
        if self._documents is None:
            if name == "delta":
                raise UpstreamFailed(
                    "The upstream sent an edit before it named its encoding."
                )
            return False
        if "v" not in payload:
            return False
        if name == "delta" or not payload.keys().isdisjoint(("p", "o", "c")):
            return True
        return isinstance(payload["v"], dict) and "message" in payload["v"]

    def _frame(self, frame: dict[str, Any], content: str) -> list[Event]:
        """`content`: the frame as it was sent."""
        documents = self._documents
        assert documents is not None
        if (piece := documents.append(frame)) is not None:
            candidate = self._answer.id
            message = documents.newest["message"]
            if not candidate or message.get("id") != candidate:
                return []
            if self._answer.knows(documents.text, piece):
                return self._answer.append(piece, documents.text)
            if not is_answer(message):
                return []
            documents.join_text()
            return self._envelope(documents.newest)
        edit = documents.apply(frame)
        documents.count_values(content.encode())
        if not isinstance(edit.document, dict):
            return []
        message = part_of(edit.document, "message")
        if not edit.text_edited and self._answer.is_followed(message, edit):
            return self._envelope(edit.document, edit)
        documents.join_text()
        return self._envelope(edit.document)

    def _envelope(
        self, payload: dict[str, Any], edit: Edit | None = None
    ) -> list[Event]:
        """A message, or a typed event. `edit`: where all that is new of the text is what that appended."""
        if not self.conversation_id and isinstance(payload.get("conversation_id"), str):
            self.conversation_id = _checked_id(payload["conversation_id"])
        if not _FAILURES.isdisjoint(payload):
            self._raise_failure(payload)
        message = payload.get("message")
        if isinstance(message, dict):
            events = self._message(message, edit)
            return self._start() + events
        kind = payload.get("type")
        if kind == "stream_handoff":
            self._handed_off = True
        elif kind in _END_TYPES and self._answer.complete:
            return self._end(announced=True)
        return self._start()

    def _message(self, message: dict[str, Any], edit: Edit | None) -> list[Event]:
        model = part_of(message, "metadata").get("model_slug")
        if isinstance(model, str) and model:
            self._model = model
        self._garbled = False
        if edit is not None:
            return self._answer.see_appended(message, edit)
        _checked_id(identifier_of(message.get("id")) or "-")
        return self._answer.see(message)

    def _raise_failure(self, payload: dict[str, Any]) -> None:
        """Raise the failure that an event means, if it means one."""
        moderation = payload.get("moderation_response")
        if isinstance(moderation, dict) and moderation.get("blocked"):
            raise Blocked()
        if payload.get("type") == "stream_quota_check":
            message, _ = error_text(self._redacted(payload))
            raise RateLimited(
                f"The upstream's limit is reached: {message}", quoted=message
            )
        is_error = payload.get("error") or payload.get("error_code")
        if is_error or (payload.get("detail") and "type" not in payload):
            payload = self._redacted(payload)
            message, code = error_text(payload)
            raise failures.from_event(message, code, payload)

    def _redacted(self, payload: dict[str, Any]) -> Any:
        """A failure without what was sent in secret."""
        return replaced_in_texts(payload, self.redact)

    def _start(self) -> list[Event]:
        """Started, once the conversation's id is known."""
        if self.started or not self.conversation_id:
            return []
        self.started = True
        account = self.account.name if self.account else None
        return [Started(self._model, self.conversation_id, account)]

    def _end(self, announced: bool) -> list[Event]:
        """The stream is over. `announced`: by an event of its own."""
        if self._documents is not None:
            self._documents.join_all()
        if self._garbled and not self._answer.complete:
            raise UpstreamFailed(
                "The upstream sent garbage for the last of its answer: text may be lost."
            )
        try:
            events, reason = self._answer.finish(announced)
        except UpstreamCut:
            if announced and self._may_poll():
                return self._start()
            raise
        if announced and (self._may_continue() or self._may_poll_for_image()):
            return self._start() + events
        return self._finish(events, reason)

    def _may_poll(self) -> bool:
        """Whether the answer may stand in the conversation; then that is what is wanted."""
        if not self.conversation_id:
            return False
        if not self._handed_off and self._answer.id is not None:
            return False
        self.wants = Poll(self.conversation_id)
        return True

    def _may_poll_for_image(self) -> bool:
        """Whether an image is still being made; it is looked for once, until it is there or the turn is over."""
        is_missing = self._answer.awaits_image and self.conversation_id
        if not is_missing or self._polled_for_image:
            return False
        self._polled_for_image = True
        self.wants = Poll(str(self.conversation_id))
        return True

    def _may_continue(self) -> bool:
        """Whether the rest of the answer can be asked for; then that is what is wanted."""
        if not self._answer.cut_short or not self.conversation_id:
            return False
        if self._continuations >= MOST_CONTINUATIONS:
            return False
        self._continuations += 1
        self.wants = Continue(self.conversation_id, self._answer.id or "")
        self._answer.continue_()
        return True

    def _finish(self, events: list[Event], reason: FinishReason) -> list[Event]:
        self._finished = True
        finished = Finished(reason, self._answer.newest_id or "", self._model)
        return [*self._start(), *events, *self._answer.below(), finished]
