"""The stream's decoder: bytes in, events out; classic (cumulative) messages and delta frames by one path. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from relay import sse
from relay.accounts import Account
from relay.domain import Event, Finished, Started
from relay.errors import Blocked, RateLimited, UpstreamCut, UpstreamFailed
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.answer import Answer, part_of
from relay.upstreams.chatgpt_web.delta import Documents
from relay.upstreams.words import json_of, words_of

MOST_CONTINUATIONS = 10
_TIMESTAMP = re.compile(r"20\d\d-\d\d-\d\d")  # a ping's data, which is no JSON


@dataclass(frozen=True)
class Continue:
    """Ask for the rest of an answer that stopped for its length."""

    conversation_id: str
    parent_id: str


@dataclass(frozen=True)
class Poll:
    """The answer does not come in this stream: look for it in the conversation."""

    conversation_id: str


def _plain(name: str) -> str:
    """An id as it may stand in a header; opaque otherwise."""
    if not re.fullmatch(r"[!-~]{1,200}", name):
        raise UpstreamFailed("The upstream gave an id that no id can be.")
    return name


class WebDecoder:
    """Decodes one turn. `wants`: what must be asked for before more bytes can come; `again` begins the next stream."""

    def __init__(
        self, conversation_id: str | None = None, known: frozenset[str] = frozenset()
    ) -> None:
        self.conversation_id = conversation_id
        self.account: Account | None = None
        self.wants: Continue | Poll | None = None
        self._answer = Answer(known)
        self._parser = sse.Parser(strays=True)
        self._documents: Documents | None = None
        self._model: str | None = None
        self.started = False
        self._finished = False
        self._handed_off = False
        self._garbled = False
        self._continuations = 0

    @property
    def settled(self) -> bool:
        """The answer is there; only the stream's own end is still to come."""
        return self._answer.settled and not self._garbled and self.wants is None

    def again(self) -> None:
        """A new stream begins, of what was wanted."""
        self.wants, self._handed_off, self._documents = None, False, None
        self._parser = sse.Parser(strays=True)

    def feed(self, piece: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._parser.feed(piece):
            if self._finished or self.wants:
                break  # what comes after the end is of no interest
            events += self._event(event)
        return events

    def end(self) -> list[Event]:
        """The bytes are over without the stream having said so."""
        return [] if self._finished else self._end(said=False)

    def _event(self, event: sse.ServerEvent) -> list[Event]:
        data = event.data.strip()
        if event.name == sse.STRAY:
            if data.lower() == "internal server error":
                raise UpstreamFailed(
                    "The upstream failed within its answer: internal server error."
                )
            return []
        if event.name == "ping" or not data or _TIMESTAMP.match(data):
            return []
        if data == "[DONE]":
            return self._end(said=True)
        if event.name == "delta_encoding":
            if data.strip('"') != "v1":
                raise UpstreamFailed(
                    "The upstream speaks a delta encoding that is not known here."
                )
            self._documents = Documents()
            return []
        try:
            told = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._garbage()
        if not isinstance(told, dict):
            return []
        if event.name == "delta" and self._documents is None:
            raise UpstreamFailed(
                "The upstream sent an edit before it named its encoding."
            )
        is_frame = "v" in told and (
            event.name == "delta" or "p" in told or "o" in told or "c" in told
        )
        is_snapshot = isinstance(told.get("v"), dict) and "message" in told["v"]
        if self._documents is not None and (is_frame or is_snapshot):
            return self._frame(self._documents, told)
        return self._envelope(told)

    def _garbage(self) -> list[Event]:
        if self._documents is not None:
            raise UpstreamFailed(
                "The upstream sent garbage among its edits: text may be lost."
            )
        self._garbled = (
            True  # the next message has the whole text so far, if there is a next one
        )
        return []

    def _frame(self, documents: Documents, frame: dict[str, Any]) -> list[Event]:
        document, grown = documents.apply(frame)
        if not isinstance(document, dict):
            return []
        message = document.get("message")
        if grown is not None and isinstance(message, dict):
            return (
                self._answer.grow(grown) if message.get("id") == self._answer.id else []
            )
        return self._envelope(document)

    def _envelope(self, told: dict[str, Any]) -> list[Event]:
        """A classic message, or a typed event."""
        if isinstance(told.get("conversation_id"), str) and not self.conversation_id:
            self.conversation_id = _plain(told["conversation_id"])
        self._check(told)
        message = told.get("message")
        events: list[Event] = []
        if isinstance(message, dict):
            slug = part_of(message, "metadata").get("model_slug")
            self._model = slug if isinstance(slug, str) and slug else self._model
            self._garbled = False
            _plain(str(message.get("id") or "-"))
            events = self._answer.see(message)
        elif told.get("type") == "stream_handoff":
            self._handed_off = True
        elif (
            told.get("type") in ("message_stream_complete", "main_stream_complete")
            and self._answer.settled
        ):
            return self._end(said=True)
        return self._begun() + events

    def _check(self, told: dict[str, Any]) -> None:
        """Raise what a failure within the stream says."""
        moderation = told.get("moderation_response")
        if isinstance(moderation, dict) and moderation.get("blocked"):
            raise Blocked()
        if told.get("type") == "stream_quota_check":
            raise RateLimited(
                f"The upstream's limit is reached: {words_of(self._hidden(told))[0]}"
            )
        if (
            told.get("error")
            or told.get("error_code")
            or (told.get("detail") and "type" not in told)
        ):
            told = self._hidden(told)
            raise failures.from_words(*words_of(told), told)

    def _hidden(self, told: dict[str, Any]) -> Any:
        """A failure's words without the account's token."""
        return (
            json_of(self.account.hidden_in(orjson.dumps(told)))
            if self.account
            else told
        )

    def _begun(self) -> list[Event]:
        if self.started or not self.conversation_id:
            return []
        self.started = True
        return [
            Started(
                self._model,
                self.conversation_id,
                self.account.name if self.account else None,
            )
        ]

    def _end(self, said: bool) -> list[Event]:
        if self._documents is not None:
            self._documents.settle()
        if self._garbled and not self._answer.settled:
            raise UpstreamFailed(
                "The upstream sent garbage for the last of its answer: text may be lost."
            )
        try:
            events, reason = self._answer.finish(said)
        except UpstreamCut:
            if (
                said
                and self.conversation_id
                and (self._handed_off or self._answer.id is None)
            ):
                self.wants = Poll(self.conversation_id)
                return self._begun()
            raise
        parent = self._answer.id or ""
        if (
            said
            and self._answer.cut_short
            and self.conversation_id
            and self._continuations < MOST_CONTINUATIONS
        ):
            self._continuations += 1
            self._answer.continue_()
            self.wants = Continue(self.conversation_id, parent)
            return self._begun() + events
        self._finished = True
        return self._begun() + events + [Finished(reason, parent, self._model)]
