"""Which of a stream's messages is the answer, how much of it is new, and when it is complete.

How it works. A turn's stream has many messages: the echo of the question, tool calls and their results, reasoning,
earlier answers.

- Candidates are messages of the assistant to everyone, in the final channel or none, of text, not hidden, and not among
  the `known` ids. The newest candidate counts; when another takes its place, the text that was given is void, and the
  caller gets `Restarted`. A message that is finished when it is first seen, but does not end the turn, is likely the
  echo of an earlier answer: it counts only if no other candidate comes.
- Upstream, a message may be edited at any time, and most encodings send it whole each time. So its newest text is
  compared with the text before: what was appended is a `Delta`; if the visible text changed before its end, it is given
  again after `Restarted`.
- The text passes through a filter that leaves citation markers out, once and in order; it is scanned again only after
  an edit. What is known to be appended is compared with nothing, so it costs the same however long the text is.
- The answer is complete when its message says so: finished, and the end of the turn. Whatever breaks the stream after
  that has lost nothing. Messages before July 2023 have no status: there the end of the turn says it alone.
- An answer that stopped for its length is continued by another message: `continue_` keeps the text as a prefix, and
  what is a candidate from then on is the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from relay.domain import Delta, Event, FinishReason, Restarted
from relay.errors import UpstreamCut, UpstreamFailed
from relay.upstreams.chatgpt_web.citations import CitationFilter

_FAILED = ("failed", "finished_error", "finished_with_error", "canceled", "cancelled")


def part_of(message: dict[str, Any], name: str) -> dict[str, Any]:
    """An object within a message; an empty one where there is none."""
    value = message.get(name)
    return value if isinstance(value, dict) else {}


def text_of(message: dict[str, Any]) -> str:
    """The text of a message's parts; parts that are no text (images, sound) have none."""
    parts = part_of(message, "content").get("parts")
    if not isinstance(parts, list):
        return ""
    return "".join(part for part in parts if isinstance(part, str))


def identifier_of(value: Any) -> str:
    """An id as text, "" for none. Raises UpstreamFailed for what is neither a text nor a number."""
    if not value:
        return ""
    if not isinstance(value, (str, int, float)):
        raise UpstreamFailed("The upstream gave an id that no id can be.")
    return str(value)


def is_answer(message: dict[str, Any]) -> bool:
    """Whether a message is for the user: not a tool's, not to a tool, not hidden, not reasoning."""
    metadata = part_of(message, "metadata")
    content = part_of(message, "content")
    is_hidden = metadata.get("is_visually_hidden_from_conversation")
    is_preamble = metadata.get("is_thinking_preamble_message")
    return (
        part_of(message, "author").get("role") == "assistant"
        and message.get("recipient", "all") in ("all", None)
        and message.get("channel") in ("final", None)
        and content.get("content_type", "text") in ("text", "multimodal_text")
        and not is_hidden
        and not is_preamble
    )


class GrowingText:
    """A text that grows by pieces, joined only when it is read."""

    def __init__(self, text: str = "") -> None:
        self._pieces = [text]
        self.length = len(text)

    def append(self, piece: str) -> None:
        self._pieces.append(piece)
        self.length += len(piece)

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


@dataclass
class Candidate:
    """A message that may be the answer, as it was last seen.

    `text`: as the upstream has it. `visible`: without citation markers, as the caller has it.
    """

    id: str
    text: GrowingText = field(default_factory=GrowingText)
    visible: GrowingText = field(default_factory=GrowingText)
    citations: CitationFilter = field(default_factory=CitationFilter)
    status: str | None = None
    end_turn: bool | None = None
    finish: str | None = None

    def update(self, message: dict[str, Any]) -> None:
        """Take over the message's state, all but its text."""
        self.status = message.get("status", self.status)
        self.end_turn = message.get("end_turn", self.end_turn)
        details = part_of(message, "metadata").get("finish_details")
        if isinstance(details, dict):
            self.finish = details.get("type", self.finish)
        elif isinstance(details, str):
            self.finish = details

    @property
    def complete(self) -> bool:
        """Nothing of it is still to come, even if the stream now broke."""
        if self.status is None:  # before July 2023
            return self.end_turn is True
        return self.status == "finished_successfully" and self.end_turn is True

    @property
    def may_be_echo(self) -> bool:
        """Finished, but not the end of the turn."""
        return self.status == "finished_successfully" and not self.end_turn


class Answer:
    """Follows the messages of one turn. `known`: ids of messages that were there before."""

    def __init__(self, known: frozenset[str] = frozenset()) -> None:
        self._known = set(known)
        self._candidate: Candidate | None = None
        self._echo: dict[str, Any] | None = None
        self._prefix = ""

    @property
    def id(self) -> str | None:
        return self._candidate.id if self._candidate else None

    @property
    def complete(self) -> bool:
        return self._candidate is not None and self._candidate.complete

    @property
    def cut_short(self) -> bool:
        """It stopped only for its length, and can be continued."""
        return self._candidate is not None and self._candidate.finish == "max_tokens"

    def see(self, message: dict[str, Any]) -> list[Event]:
        """A message's newest state; what of it is new to the caller."""
        identifier = identifier_of(message.get("id"))
        if identifier in self._known or not is_answer(message):
            return []
        if self._candidate is not None and self._candidate.id == identifier:
            self._candidate.update(message)
            return self._compare(self._candidate, text_of(message))
        candidate = Candidate(identifier)
        candidate.update(message)
        if candidate.may_be_echo:
            self._echo = message
            return []
        return self._switch(candidate, text_of(message))

    def is_followed(self, message: dict[str, Any], text_length: int) -> bool:
        """Whether a message is the candidate, and so is all of its text but what was appended just now."""
        return (
            self._candidate is not None
            and self._candidate.id == message.get("id")
            and self._candidate.text.length == text_length
            and is_answer(message)
        )

    def see_appended(self, message: dict[str, Any], piece: str) -> list[Event]:
        """The newest state of the candidate, of whose text only this was appended; see `is_followed`."""
        assert self._candidate is not None
        self._candidate.update(message)
        return self.append(piece)

    def append(self, piece: str) -> list[Event]:
        """What was appended to the candidate's text, without looking at all of it again."""
        candidate = self._candidate
        assert candidate is not None
        candidate.text.append(piece)
        return self._give(candidate, candidate.citations.feed(piece))

    def _give(self, candidate: Candidate, visible: str) -> list[Event]:
        if not visible:
            return []
        candidate.visible.append(visible)
        return [Delta(visible)]

    def _switch(self, candidate: Candidate, text: str) -> list[Event]:
        """Another message is the answer now."""
        previous = self._candidate
        self._candidate = candidate
        events: list[Event] = []
        if previous is not None and previous.visible.length:
            events += self._restart("")
        return events + self.append(text)

    def _restart(self, visible: str) -> list[Event]:
        """Void what the caller has, and give what is valid of it again."""
        text = self._prefix + visible
        return [Restarted(), Delta(text)] if text else [Restarted()]

    def _compare(self, candidate: Candidate, text: str) -> list[Event]:
        """The candidate's whole text, as it is now: what is new, or a restart where it was edited."""
        before = candidate.text.text
        candidate.text = GrowingText(text)
        if text.startswith(before):
            appended = text[len(before) :]
            return self._give(candidate, candidate.citations.feed(appended))
        given = candidate.visible.text
        candidate.citations = CitationFilter()
        visible = candidate.citations.feed(text)
        candidate.visible = GrowingText(visible)
        if not visible.startswith(given):
            return self._restart(visible)
        return [Delta(visible[len(given) :])] if len(visible) > len(given) else []

    def continue_(self) -> None:
        """What is seen from now on goes on where the candidate stopped."""
        assert self._candidate is not None
        self._known.add(self._candidate.id)
        self._prefix += self._candidate.visible.text
        self._candidate = None
        self._echo = None

    def finish(self, ended: bool) -> tuple[list[Event], FinishReason]:
        """The last of the text, and the finish reason. `ended`: the stream announced its end, it did not just stop.

        Raises UpstreamCut where the answer is not whole, UpstreamFailed where the upstream gave it up.
        """
        events: list[Event] = []
        if self._candidate is None and self._echo is not None:
            candidate = Candidate(identifier_of(self._echo.get("id")))
            candidate.update(self._echo)
            events += self._switch(candidate, text_of(self._echo))
        last = self._candidate
        if last is None or not (last.complete or ended):
            raise UpstreamCut()
        if last.status in _FAILED:
            raise UpstreamFailed(f"The upstream gave its answer up ({last.status}).")
        if last.status == "in_progress":
            raise UpstreamCut()
        events += self._give(last, last.citations.end())
        if last.finish == "max_tokens" or last.status == "finished_partial_completion":
            return events, "length"
        return events, "stop"
