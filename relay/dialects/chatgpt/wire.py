"""What is looked at, and changed, of requests and answers that pass to ChatGPT's backend as they are. Pure.

Source: protocol notes, end of turn and hand-off; go-chatgpt-api's handler of a turn.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from relay.dialects import events
from relay.dialects.bodies import read as read_fields
from relay.dialects.chatgpt.answer import KEEP_ALIVE, dumps, failure
from relay.dialects.events import data_of
from relay.errors import RelayError

_DONE = b"[DONE]"
_END_TYPES = ("message_stream_complete", "stream_handoff")
_COMPLETE, _HANDOFF = (kind.encode() for kind in _END_TYPES)
#: lines that clients of 2023 take for broken ones, and data that is a ping's time; the end of an event
_NOISE = re.compile(rb"\n(?:event:|:|data: ?[0-9])")
_EVENT = re.compile(rb".+?(?:\r\n\r\n|\n\n|\r\r|\Z)", re.DOTALL)


class EventWatch(events.EventWatch):
    """Whole is a stream that said so; one that was handed off goes on elsewhere, and its client knows where.

    `is_classic`: it is for a client of the classic format, which knows data lines alone: pings,
    comments and events' names are left out, as go-chatgpt-api does. All else passes as it is.
    """

    keep_alive = KEEP_ALIVE

    def __init__(self, is_classic: bool = False) -> None:
        super().__init__(
            batch=0
        )  # a conversation is known as soon as the answer names it
        self._is_classic = is_classic

    def feed(self, piece: bytes) -> bytes:
        return self._without_noise(super().feed(piece))

    def end(self) -> bytes:
        return self._without_noise(super().end())

    def _without_noise(self, passed: bytes) -> bytes:
        if not self._is_classic or not _has_noise(passed):
            return passed
        return b"".join(map(_classic_event, _EVENT.findall(passed)))

    def ends(self, passed: bytes) -> bool:
        if not _may_end(passed):
            return False
        if b"\r" in passed:
            passed = passed.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return any(_is_end(data_of(event)) for event in passed.split(b"\n\n"))

    def fail(self, error: RelayError) -> bytes:
        """The error, in the place of what did not come: as the backend says it, and so that revChatGPT notices."""
        return failure(error)


def _has_noise(passed: bytes) -> bool:
    # a pattern that begins with a line's end is looked for in a ninth of the time of one that begins with its start
    return _NOISE.search(b"\n" + passed) is not None


def _classic_event(event: bytes) -> bytes:
    """An event without its name and comments; nothing of one that is no more than that, or a ping."""
    if not _has_noise(event):
        return event
    lines = event.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith((b"event:", b":"))]
    data = [line[5:].lstrip() for line in kept if line.startswith(b"data:")]
    if not data or data[0][:1].isdigit():
        return b""
    return b"".join(kept)


def takes_classic(payload: dict[str, Any]) -> bool:
    """Whether a request asks for the classic format: it names no other encoding."""
    return not payload.get("supported_encodings")


def _may_end(data: bytes) -> bool:
    return _DONE in data or _COMPLETE in data or _HANDOFF in data


def _is_end(data: bytes) -> bool:
    if not _may_end(data):
        return False
    if data.strip() == _DONE:
        return True
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(payload, dict) and payload.get("type") in _END_TYPES


def read(body: bytes) -> dict[str, Any]:
    """The object that a JSON body is. Raises BadRequest, TooLarge."""
    return read_fields("application/json", body)


def conversation_id_of(payload: dict[str, Any]) -> str | None:
    """The conversation that a body names."""
    named = payload.get("conversation_id")
    return named if isinstance(named, str) and named else None


def is_kept(payload: dict[str, Any]) -> bool:
    """Whether the conversation is none of those that are forgotten."""
    return payload.get("history_and_training_disabled") is not True


def model_of(payload: dict[str, Any]) -> str | None:
    """The model that a body names."""
    model = payload.get("model")
    return model if isinstance(model, str) and model else None


def prompt_of(payload: dict[str, Any]) -> str:
    """The text of the question; "" where it has none."""
    messages = payload.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    parts = content.get("parts") if isinstance(content, dict) else None
    found = parts if isinstance(parts, list) else []
    return "\n".join(part for part in found if isinstance(part, str))


def known_ids(payload: dict[str, Any]) -> frozenset[str]:
    """The ids of messages that the request itself has: none of them is of the answer."""
    messages = payload.get("messages")
    sent = messages if isinstance(messages, list) else []
    ids = [message.get("id") for message in sent if isinstance(message, dict)]
    ids.append(payload.get("parent_message_id"))
    return frozenset(name for name in ids if isinstance(name, str) and name)


def repaired(body: bytes, payload: dict[str, Any], parent_id: str) -> bytes:
    """A turn's body as the backend takes it; as it came where nothing is amiss.

    An empty `conversation_id` is left out; a missing or empty `parent_message_id` becomes `parent_id`; a message
    without `author.role` gets the `role` that clients of 2022 sent instead, or `user`.
    """
    has_parent = bool(payload.get("parent_message_id"))
    has_empty_id = payload.get("conversation_id") == ""
    sent = payload.get("messages")
    messages = sent if isinstance(sent, list) else []
    if has_parent and not has_empty_id and all(map(_has_role, messages)):
        return body
    # orjson would make floats of large numbers
    fixed: dict[str, Any] = json.loads(body) if payload else {}
    if has_empty_id:
        del fixed["conversation_id"]
    if not has_parent:
        fixed["parent_message_id"] = parent_id
    if messages:
        fixed["messages"] = [_with_role(message) for message in fixed["messages"]]
    return dumps(fixed)


def _has_role(message: Any) -> bool:
    """Whether a message needs no repair; what is no message is the backend's to refuse."""
    if not isinstance(message, dict):
        return True
    author = message.get("author")
    return isinstance(author, dict) and bool(author.get("role"))


def _with_role(message: Any) -> Any:
    if _has_role(message):
        return message
    known = message.get("author")
    author = known if isinstance(known, dict) else {}
    role = message.get("role") or "user"
    rest = {name: value for name, value in message.items() if name != "role"}
    return {**rest, "author": {**author, "role": role}}
