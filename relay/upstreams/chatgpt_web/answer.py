"""Which of a stream's messages is the answer, how much of it is new, and when it is whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from relay.domain import Delta, Event, Restarted
from relay.errors import UpstreamCut, UpstreamFailed

_BLOCK = re.compile("\ue200[^\ue201]*\ue201|[\ue200-\ue206]|【[0-9:]+†[^】]*】")
_OPENED = re.compile("(?:\ue200[^\ue201]*|【(?:[0-9:]*|[0-9:]+†[^】]*))$")
_MARKS = re.compile("[\ue200-\ue206【]")
_FAILED = ("failed", "finished_error", "finished_with_error", "canceled", "cancelled")


def visible(text: str, whole: bool) -> str:
    """A text without its citation markers; while it grows, without a block at its end that is not closed yet."""
    if not _MARKS.search(text):
        return text
    if not whole and (opened := _OPENED.search(text)):
        text = text[: opened.start()]
    elif whole:
        text = re.sub("\ue200[^\ue201]*$", "", text)
    return _BLOCK.sub("", text)


def part_of(message: dict[str, Any], name: str) -> dict[str, Any]:
    """An object within a message; an empty one where there is none."""
    value = message.get(name)
    return value if isinstance(value, dict) else {}


def text_of(message: dict[str, Any]) -> str:
    """The text of a message's parts; parts that are no text (images, sound) have none."""
    parts = part_of(message, "content").get("parts")
    return (
        "".join(part for part in parts if isinstance(part, str))
        if isinstance(parts, list)
        else ""
    )


def is_answer(message: dict[str, Any]) -> bool:
    """Whether a message is for the user: not a tool's, not to a tool, not hidden, not a thought."""
    metadata, content = part_of(message, "metadata"), part_of(message, "content")
    return (
        part_of(message, "author").get("role") == "assistant"
        and message.get("recipient", "all") in ("all", None)
        and message.get("channel") in ("final", None)
        and content.get("content_type", "text") in ("text", "multimodal_text")
        and not metadata.get("is_visually_hidden_from_conversation")
        and not metadata.get("is_thinking_preamble_message")
    )


class Growing:
    """A text that grows by pieces, joined only when it is read."""

    def __init__(self, text: str = "") -> None:
        self._pieces = [text]
        self.length = len(text)

    def grow(self, piece: str) -> None:
        self._pieces.append(piece)
        self.length += len(piece)

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


@dataclass
class Candidate:
    """A message that may be the answer, as it was last seen."""

    id: str
    said: Growing = field(default_factory=Growing)
    status: str | None = None
    end_turn: bool | None = None
    finish: str | None = None

    def see(self, message: dict[str, Any]) -> None:
        self.said = Growing(text_of(message))
        self.status = message.get("status", self.status)
        self.end_turn = message.get("end_turn", self.end_turn)
        details = part_of(message, "metadata").get("finish_details")
        if isinstance(details, dict):
            self.finish = details.get("type", self.finish)
        elif isinstance(details, str):
            self.finish = details

    @property
    def settled(self) -> bool:
        """Nothing of it is still to come, even if the stream now broke."""
        if self.status is None:  # before July 2023
            return self.end_turn is True
        return self.status == "finished_successfully" and self.end_turn is True


class Answer:
    """Follows the messages of one turn. `known` are ids of messages that were there before: echoes, not answers."""

    def __init__(self, known: frozenset[str] = frozenset()) -> None:
        self._known = set(known)
        self._candidate: Candidate | None = None
        self._aside: Candidate | None = None
        self._told = Growing()
        self._before = ""

    @property
    def id(self) -> str | None:
        return self._candidate.id if self._candidate else None

    @property
    def settled(self) -> bool:
        return self._candidate is not None and self._candidate.settled

    @property
    def cut_short(self) -> bool:
        """It stopped only for its length, and can be continued."""
        return self._candidate is not None and self._candidate.finish == "max_tokens"

    def see(self, message: dict[str, Any]) -> list[Event]:
        """A message's newest state; what of it is new to the caller."""
        name = str(message.get("id") or "")
        if name in self._known or not is_answer(message):
            return []
        if self._candidate is None or self._candidate.id != name:
            seen = Candidate(name)
            seen.see(message)
            if seen.status == "finished_successfully" and not seen.end_turn:
                self._aside = seen  # finished at first sight, and not the turn's end: an echo, or all there will be
                return []
            return self._switch(seen)
        self._candidate.see(message)
        return self._news(whole=False)

    def grow(self, piece: str) -> list[Event]:
        """What was appended to the candidate's text, without looking at all of it again."""
        assert self._candidate is not None
        same = (
            self._told.length == self._candidate.said.length
        )  # nothing was left out or held back so far
        self._candidate.said.grow(piece)
        if not same or _MARKS.search(piece):
            return self._news(whole=False)
        self._told.grow(piece)
        return [Delta(piece)] if piece else []

    def _switch(self, seen: Candidate) -> list[Event]:
        replaces = self._candidate is not None and self._told.length
        self._candidate, self._told = seen, Growing()
        return [*(self._anew("") if replaces else []), *self._news(whole=False)]

    def _anew(self, text: str) -> list[Event]:
        text = self._before + text
        return [Restarted(), Delta(text)] if text else [Restarted()]

    def _news(self, whole: bool) -> list[Event]:
        assert self._candidate is not None
        text = visible(self._candidate.said.text, whole)
        told, self._told = self._told.text, Growing(text)
        if text.startswith(told):
            return [Delta(text[len(told) :])] if len(text) > len(told) else []
        return self._anew(text)  # it was edited upstream

    def continue_(self) -> None:
        """What is seen from now on goes on where the candidate stopped."""
        assert self._candidate is not None
        self._known.add(self._candidate.id)
        self._before += self._told.text
        self._candidate, self._told = None, Growing()

    def finish(self, ended: bool) -> tuple[list[Event], str]:
        """The last of the text, and the finish reason. `ended`: the stream said that it is over, it did not just stop.

        Raises UpstreamCut where the answer is not whole.
        """
        events: list[Event] = []
        if self._candidate is None and self._aside is not None:
            events += self._switch(self._aside)
        seen = self._candidate
        if seen is None or not (seen.settled or ended):
            raise UpstreamCut()
        if seen.status in _FAILED:
            raise UpstreamFailed(f"The upstream gave its answer up ({seen.status}).")
        if seen.status == "in_progress":
            raise UpstreamCut()
        events += self._news(whole=True)
        if seen.finish == "max_tokens":
            return events, "length"
        if seen.status == "finished_partial_completion":
            return events, seen.finish or "length"
        return events, "stop"
