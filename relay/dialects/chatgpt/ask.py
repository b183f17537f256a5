"""A request of the web API's conversation: what it asks, and where that belongs. Pure.

Source: protocol notes, conversation request; go-chatgpt-api, which repairs empty ids and missing roles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, replace
from typing import Any, get_args

from relay.dialects import fields as read
from relay.dialects import tree
from relay.dialects.bodies import Fields
from relay.dialects.chatgpt.answer import Action
from relay.dialects.chatgpt.delta import ENCODING
from relay.dialects.ndjson import MOST_MESSAGES
from relay.dialects.policy import text_only
from relay.domain import ROOT, Ask, Caller, Conversation, Message
from relay.errors import BadRequest, NoConversation, Unsupported
from relay.values import frozen

ROUTE = "conversation"
ACTIONS: tuple[Action, ...] = get_args(Action)
#: what the upstream is asked where it is to go on: it sees the conversation, and no more than that
GO_ON = "Continue exactly where your last answer stopped, without repeating any of it."
#: fields that say where a request belongs, and what is to become of it
PLACE_FIELDS = {
    "conversation_id",
    "conversationId",
    "history_and_training_disabled",
    "model",
    "parent_id",
    "parent_message_id",
    "parentMessageId",
}
_READ = {*PLACE_FIELDS, "action", "messages", "supported_encodings"}
_ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "critic": "system",  # what bridges of 2023 had to call it
    "developer": "developer",
}
_NOTHING: tuple[Any, ...] = (None, "", False, 0, [], {})
_TEXT_CONTENT = ("text", "multimodal_text")
_NOT_KEPT = (
    "There is no such conversation: with history_and_training_disabled nothing is kept "
    "of one, and what is kept cannot go on that way. Send false, or leave "
    "conversation_id out."
)


@frozen
class Request:
    """What a caller wants: a question, another answer to one (`variant`), or more of an answer (`continue`).

    `prompt`: "" where none was sent. A parent id without a conversation is not among the values:
    clients make one up for their first question.
    """

    action: Action = "next"
    prompt: str = field(default="", repr=False)
    preamble: tuple[Message, ...] = field(default=(), repr=False)
    conversation_id: str | None = None
    parent_id: str | None = None
    model: str | None = None
    keep: bool = True
    edits: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def needs_question(self) -> bool:
        """It asks a question of the conversation again."""
        return self.action == "variant" and self.conversation_id is not None

    def ask(self, caller: Caller, key: str | None) -> Ask:
        """The ask that it makes. `key`: the header Idempotency-Key. Raises BadRequest."""
        prompt = GO_ON if self.action == "continue" else self.prompt
        if not prompt.strip():
            raise BadRequest("The question is empty: nothing was asked.")
        return Ask(
            prompt=prompt,
            caller=caller,
            conversation_id=self.conversation_id,
            parent_id=self.parent_id,
            preamble=self.preamble,
            model=self.model,
            keep=self.keep,
            idempotency_key=read.key_of({}, key),
            route=ROUTE,
            ignored=self.ignored,
            check=text_only,
        )

    def asking_again(self, conversation: Conversation | dict[str, Any]) -> Request:
        """The same with the question of the conversation that it asks again, at that question's own place.

        The parent that it names is the answer to be replaced, or the question; where the question is
        sent once more, it may be the message that this follows. Raises NoConversation for others.
        """
        if self.prompt and isinstance(conversation, dict):
            return self  # the question is all that ChatGPT needs
        dialogue = Dialogue(conversation)
        question = dialogue.question_of(self.parent_id, self.prompt)
        if question is None and dialogue.is_answer(self.parent_id) and self.prompt:
            return self
        if question is None:
            raise NoConversation(
                "This conversation has no question at that parent id: send the id of the "
                "answer that is to be replaced."
            )
        parent_id = question["parent"] or ROOT
        return replace(
            self, prompt=self.prompt or question["text"], parent_id=parent_id
        )


class Dialogue:
    """The questions and answers of a conversation, by their ids."""

    def __init__(self, conversation: Conversation | dict[str, Any]) -> None:
        self._by_id = {entry["id"]: entry for entry in tree.entries(conversation)}
        self._newest = tree.newest_of(conversation)

    def is_answer(self, message_id: str | None) -> bool:
        entry = self._entry(message_id)
        return entry is not None and entry["role"] == "assistant"

    def question_of(self, message_id: str | None, sent: str) -> dict[str, Any] | None:
        """The question that a message is, or answers; None for the newest message's id. None where there is none.

        `sent`: the question as it is sent once more. One that follows the message is no matter of
        this; but the first one follows a message that only its client knows.
        """
        entry = self._entry(message_id)
        if entry is None:
            return next((q for q in self._after(None) if q["text"] == sent), None)
        if entry["role"] == "user":
            return entry
        asked = self._by_id.get(entry["parent"])
        if asked is None or asked["role"] != "user":
            return None
        is_sent_after = any(q["text"] == sent for q in self._after(entry["id"]))
        is_other = sent not in ("", asked["text"]) or (bool(sent) and is_sent_after)
        return None if is_other else asked

    def _after(self, message_id: str | None) -> Iterator[dict[str, Any]]:
        """The questions that follow a message; None: those that begin the conversation."""
        for entry in self._by_id.values():
            if entry["role"] == "user" and entry["parent"] == message_id:
                yield entry

    def _entry(self, message_id: str | None) -> dict[str, Any] | None:
        return self._by_id.get(message_id or self._newest)


def read_request(payload: Fields) -> Request:
    """The request of a body. Raises BadRequest, Unsupported or NoConversation."""
    action = read.text_of(payload, "action") or "next"
    if action not in ACTIONS:
        raise BadRequest(f"The field action must be one of: {', '.join(ACTIONS)}.")
    messages = [] if action == "continue" else _messages(payload)
    place = place_of(payload)
    ignored = [*ignored_of(payload, _READ)]
    preamble = tuple(messages[:-1])
    if place.conversation_id and preamble:
        ignored.append("messages[:-1]")
        preamble = ()
    request = replace(
        place,
        action=action,
        prompt=messages[-1].text if messages else "",
        preamble=preamble,
        edits=_takes_edits(payload),
        ignored=tuple(ignored),
    )
    check(request)
    return request


def place_of(payload: Fields) -> Request:
    """Where a request belongs, and the model that it names."""
    conversation_id = read.conversation_of(payload)
    return Request(
        conversation_id=conversation_id,
        parent_id=read.parent_of(payload) if conversation_id else None,
        model=read.text_of(payload, "model") or None,
        keep=not read.flag_of(payload, "history_and_training_disabled"),
    )


def ignored_of(payload: Fields, known: Collection[str]) -> tuple[str, ...]:
    """The fields that say something and are not read: clients send what their backends of some year wanted."""
    given = {name for name, value in payload.items() if value not in _NOTHING}
    return tuple(sorted(given.difference(known)))


def check(request: Request) -> None:
    """Raise for a request that names too little."""
    if request.conversation_id and not request.keep:
        raise NoConversation(_NOT_KEPT)
    if request.action == "continue" and not request.conversation_id:
        raise BadRequest(
            "There is no answer to go on with: send its conversation_id and its id as "
            "parent_message_id."
        )
    if not request.prompt.strip() and request.action == "next":
        raise BadRequest("The last of the messages is empty: nothing was asked.")


def _takes_edits(payload: Fields) -> bool:
    encodings = payload.get("supported_encodings")
    return isinstance(encodings, list) and ENCODING in encodings


def _messages(payload: Fields) -> list[Message]:
    """The messages, the last of which is the question."""
    found = payload.get("messages")
    if found is None and payload.get("action") == "variant":
        return []
    if not isinstance(found, list) or len(found) > MOST_MESSAGES:
        raise BadRequest(
            f"The field messages must be a list of at most {MOST_MESSAGES} messages."
        )
    messages = [_message(each, f"messages[{at}]") for at, each in enumerate(found)]
    if messages and messages[-1].role != "user":
        raise BadRequest(
            "The last of the messages is the question: its author's role must be user."
        )
    return messages


def _message(payload: Any, place: str) -> Message:
    """One message. `place`: where it is, for errors."""
    if not isinstance(payload, dict):
        raise BadRequest(f"{place} must be an object with author and content.")
    author = payload.get("author")
    named = author.get("role") if isinstance(author, dict) else None
    role = _ROLES.get(str(named or payload.get("role") or "user"))
    if role is None:
        raise BadRequest(f"{place}.author.role must be one of: {', '.join(_ROLES)}.")
    return Message(role, _text(payload.get("content"), f"{place}.content"))


def _text(content: Any, place: str) -> str:
    """The text of a message's parts."""
    parts = content.get("parts") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not isinstance(parts, list):
        raise BadRequest(
            f'{place} must be as in {{"content_type": "text", "parts": ["hello"]}}.'
        )
    kind = content.get("content_type", "text")
    if kind not in _TEXT_CONTENT or not all(isinstance(part, str) for part in parts):
        raise Unsupported(
            f"{place} is no text. Only text is kept and sent here: leave images and "
            "files out.",
            parameter=place,
        )
    text = "".join(parts)
    if "\0" in text:
        raise BadRequest(f"{place} holds a NUL character, which text has not.")
    return text
