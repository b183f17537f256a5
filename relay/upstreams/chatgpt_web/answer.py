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
- Images of other messages (a tool drew them) are a part of the answer, too: those that came before the text stand
  before it, those that come later below it, and they may be all there is. Last come the sources that the text names.
- Thoughts, code that goes to a tool, and what it printed are reasoning, given once they are finished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from relay import shown
from relay.citations import CitationFilter, visible
from relay.domain import (
    Delta,
    Event,
    FileLink,
    FinishReason,
    Reasoning,
    RemoteFile,
    Restarted,
)
from relay.errors import UpstreamCut, UpstreamFailed
from relay.growing_text import GrowingText
from relay.shown import Rendering, part_of, text_of
from relay.upstreams.chatgpt_web.delta import Edit

Pieces: TypeAlias = "list[Delta | FileLink]"

_FAILED = ("failed", "finished_error", "finished_with_error", "canceled", "cancelled")


def identifier_of(value: Any) -> str:
    """An id as text, "" for none. Raises UpstreamFailed for what is neither a text nor a number."""
    if not value:
        return ""
    if not isinstance(value, (str, int, float)):
        raise UpstreamFailed("The upstream gave an id that no id can be.")
    return str(value)


def is_question(message: dict[str, Any]) -> bool:
    return part_of(message, "author").get("role") == "user"


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


@dataclass(slots=True)
class Candidate:
    """A message that may be the answer, as it was last seen.

    `text`: as the upstream has it, whose edits let it grow; `seen`: how many characters of it were looked at.
    `rendering` makes what the caller has of what is visible of them.
    `is_shown`: the caller has something of it. `is_over`: nothing of it is held back any more.
    """

    id: str
    text: GrowingText = field(default_factory=GrowingText)
    seen: int = 0
    is_shown: bool = False
    is_over: bool = False
    citations: CitationFilter = field(default_factory=CitationFilter)
    rendering: Rendering = field(init=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    status: str | None = None
    end_turn: bool | None = None
    finish: str | None = None

    def __post_init__(self) -> None:
        self.rendering = Rendering(self.id)

    def update(self, message: dict[str, Any]) -> None:
        """Take over the message's state, all but its text."""
        self.status = message.get("status", self.status)
        self.end_turn = message.get("end_turn", self.end_turn)
        self.metadata = part_of(message, "metadata")
        self.rendering.images = shown.images_in_text(message)
        details = self.metadata.get("finish_details")
        if isinstance(details, dict):
            self.finish = details.get("type", self.finish)
        elif isinstance(details, str):
            self.finish = details

    @property
    def seen_text(self) -> str:
        """The text, as far as it was seen."""
        return self.text.text[: self.seen]

    @property
    def visible(self) -> str:
        """The text without citation markers, as far as it was given."""
        return visible(self.seen_text, is_complete=self.is_over)

    def render(self) -> Pieces:
        """All that is visible, once more."""
        self.rendering = Rendering(self.id, self.rendering.images)
        return self.rendering.feed(self.visible)

    @property
    def complete(self) -> bool:
        """Nothing of it is still to come, even if the stream now broke."""
        if self.status is None:  # before July 2023
            return self.end_turn is True
        return self.status == "finished_successfully" and self.end_turn is True

    @property
    def finish_reason(self) -> FinishReason:
        is_partial = self.status == "finished_partial_completion"
        return "length" if is_partial or self.finish == "max_tokens" else "stop"

    @property
    def may_be_echo(self) -> bool:
        """Finished, but not the end of the turn."""
        return self.status == "finished_successfully" and not self.end_turn


class OtherMessages:
    """What a turn's messages show beside the answer's text: images, and code. `awaits_image`: one is announced."""

    __slots__ = ("_is_announced", "_reasoned", "_seen", "images", "newest")

    def __init__(self) -> None:
        self.images: list[RemoteFile] = []  # that the caller does not have yet
        self.newest = ""  # the id of the message that had the last image
        # while they are empty, a third of a set's size
        self._seen: dict[str, None] = {}
        self._reasoned: dict[str, None] = {}
        self._is_announced = False

    @property
    def awaits_image(self) -> bool:
        return self._is_announced and not self._seen

    def see(self, identifier: str, message: dict[str, Any]) -> list[Event]:
        """A message that is no answer, in its newest state. A question voids what came before it: that was echoed."""
        role = part_of(message, "author").get("role")
        if role == "user":
            self._forget()
        metadata = part_of(message, "metadata")
        is_hidden = metadata.get("is_visually_hidden_from_conversation")
        if role not in ("assistant", "tool") or is_hidden:
            return []
        self._is_announced = self._is_announced or shown.awaits_image(message)
        if message.get("status") not in ("finished_successfully", None):
            return []
        self.add_images(identifier, shown.images_of(message))
        text = shown.reasoning_of(message)
        if not text or message.get("status") is None or identifier in self._reasoned:
            return []
        self._reasoned[identifier] = None
        return [Reasoning(text)]

    def _forget(self) -> None:
        self.images.clear()
        self._seen.clear()
        self.newest = ""
        self._is_announced = False

    def add_images(self, identifier: str, images: Iterable[RemoteFile]) -> None:
        """Images that a message shows, each once."""
        for image in images:
            if image.pointer not in self._seen:
                self._seen[image.pointer] = None
                self.images.append(image)
                self.newest = identifier

    def take_images(self) -> list[RemoteFile]:
        taken = self.images
        self.images = []
        return taken


class Answer:
    """Follows the messages of one turn. `known`: ids of messages that were there before."""

    def __init__(self, known: Collection[str] = ()) -> None:
        self._known = known
        self._candidate: Candidate | None = None
        self._echo: dict[str, Any] | None = None
        self._others = OtherMessages()
        self._before: Pieces = []  # what the caller has before the candidate's text
        self._below = ""  # the id of the message that has the last image below the text
        self._continued: list[Mapping[str, Any]] = []  # metadata of what stands there

    @property
    def id(self) -> str | None:
        """The id of the message whose text it is."""
        return self._candidate.id if self._candidate else None

    @property
    def newest_id(self) -> str | None:
        """The id of the message that a next question follows: that of the text, or of an image below it."""
        below = self._others.newest if self._others.images else self._below
        return below or self.id

    @property
    def complete(self) -> bool:
        has_text = self._candidate is not None and self._candidate.complete
        return has_text and not self.awaits_image

    @property
    def awaits_image(self) -> bool:
        """An image that was announced does not come in this stream."""
        return self._others.awaits_image

    @property
    def cut_short(self) -> bool:
        """It stopped only for its length, and can be continued."""
        return self._candidate is not None and self._candidate.finish == "max_tokens"

    def see(self, message: dict[str, Any]) -> list[Event]:
        """A message's newest state; what of it is new to the caller."""
        identifier = identifier_of(message.get("id"))
        if identifier in self._known and not is_question(message):
            return []
        if not is_answer(message):
            return self._others.see(identifier, message)
        if self._candidate is not None and self._candidate.id == identifier:
            self._candidate.update(message)
            return self._compare(self._candidate, text_of(message))
        candidate = Candidate(identifier)
        candidate.update(message)
        if candidate.may_be_echo:
            if shown.is_image_alone(message):
                return self._others.see(identifier, message)
            self._echo = message
            return []
        return self._switch(candidate, text_of(message))

    def is_followed(self, message: dict[str, Any], edit: Edit) -> bool:
        """Whether a message is the candidate, and so is all of its text but what was appended just now."""
        return (
            self.id == message.get("id")
            and edit.text is not None
            and self.knows(edit.text, edit.appended)
            and is_answer(message)
        )

    def knows(self, text: GrowingText, appended: str) -> bool:
        """Whether as much of the candidate's text was seen as it had before it grew just now."""
        seen = text.length - len(appended)
        return self._candidate is not None and self._candidate.seen == seen

    def see_appended(self, message: dict[str, Any], edit: Edit) -> list[Event]:
        """The newest state of the candidate, whose text was only appended to; see `is_followed`."""
        assert self._candidate is not None and edit.text is not None
        self._candidate.update(message)
        return self.append(edit.appended, edit.text)

    def append(self, piece: str, text: GrowingText) -> list[Event]:
        """What was appended to the candidate's text, which is `text` now, without looking at all of it again."""
        candidate = self._candidate
        assert candidate is not None
        candidate.text = text
        candidate.seen = text.length
        return self._give(candidate, candidate.citations.feed(piece))

    def _give(self, candidate: Candidate, visible: str) -> list[Event]:
        if not visible:
            return []
        if candidate.is_shown:
            return [*candidate.rendering.feed(visible)]
        candidate.is_shown = True
        return [*self._images_above(), *candidate.rendering.feed(visible)]

    def _images_above(self) -> Pieces:
        """The images that came before the text."""
        images: Pieces = []
        for file in self._others.take_images():
            images += [*shown.image(file), Delta("\n\n")]
        self._before += images
        return images

    def _switch(self, candidate: Candidate, text: str) -> list[Event]:
        """Another message is the answer now."""
        previous = self._candidate
        self._candidate = candidate
        events: list[Event] = []
        if previous is not None and previous.is_shown:
            self._others.images[:0] = previous.rendering.images
            events += self._restart([])
        return events + self.append(text, GrowingText(text))

    def _restart(self, pieces: Pieces) -> list[Event]:
        """Void what the caller has, and give what is valid of it again."""
        return [Restarted(), *shown.merged([*self._before, *pieces])]

    def _compare(self, candidate: Candidate, text: str) -> list[Event]:
        """The candidate's whole text, as it is now: what is new, or a restart where it was edited."""
        before = candidate.seen_text
        if text.startswith(before):
            return self.append(text[len(before) :], GrowingText(text))
        given = candidate.visible
        candidate.text = GrowingText(text)
        candidate.seen = len(text)
        candidate.citations = CitationFilter()
        candidate.is_over = False
        visible = candidate.citations.feed(text)
        if visible.startswith(given):
            return self._give(candidate, visible[len(given) :])
        candidate.is_shown = bool(visible)
        return self._restart(candidate.render())

    def continue_(self) -> None:
        """What is seen from now on goes on where the candidate stopped."""
        candidate = self._candidate
        assert candidate is not None
        self._known = (*self._known, candidate.id)
        self._before += [*candidate.render(), *candidate.rendering.end()]
        self._continued.append(candidate.metadata)
        self._candidate = None
        self._echo = None

    def finish(self, ended: bool) -> tuple[list[Event], FinishReason]:
        """The last of the text, and the finish reason. `ended`: the stream announced its end, it did not just stop.

        Raises UpstreamCut where the answer is not whole, UpstreamFailed where the upstream gave it up.
        """
        events = self._take_echo()
        last = self._candidate
        if last is None and self._others.images and ended:
            return events, "stop"
        if last is None or not (last.complete or ended):
            raise UpstreamCut()
        if last.status in _FAILED:
            raise UpstreamFailed(f"The upstream gave its answer up ({last.status}).")
        if last.status == "in_progress":
            raise UpstreamCut()
        events += self._give(last, last.citations.end())
        last.is_over = True
        events += last.rendering.end()
        return events, last.finish_reason

    def _take_echo(self) -> list[Event]:
        """No other candidate came: what looked like the echo of an earlier answer is this one."""
        if self._candidate is not None or self._echo is None:
            return []
        candidate = Candidate(identifier_of(self._echo.get("id")))
        candidate.update(self._echo)
        return [*self._switch(candidate, text_of(self._echo))]

    def below(self) -> list[Event]:
        """What stands below the text once all of it was given: images that came later, and the sources."""
        has_text = self._candidate is not None and self._candidate.is_shown
        is_first = not self._before and not has_text
        if self._others.images:
            self._below = self._others.newest
        paragraphs = [shown.image(file) for file in self._others.take_images()]
        metadatas = list(self._continued)
        if self._candidate is not None:
            metadatas.append(self._candidate.metadata)
        if sources := shown.sources_text(metadatas):
            paragraphs.append([Delta(sources)])
        pieces: Pieces = []
        for paragraph in paragraphs:
            pieces += paragraph if is_first else [Delta("\n\n"), *paragraph]
            is_first = False
        return [*shown.merged(pieces)]
