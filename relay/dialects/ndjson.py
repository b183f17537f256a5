"""The dialect of openai-api-server: a dialogue in, lines of {"done", "error", "content"} out. Pure.

Source: its document, and what it was seen to send: the last line has no line end, and nothing of a dialogue is stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from relay.dialects import fields as read
from relay.dialects.bodies import PLAIN_BODY, SECRETS, Fields, parse_json
from relay.dialects.policy import text_only
from relay.domain import Ask, Caller, Delta, Event, Message, Reply, Restarted
from relay.errors import BadRequest, RelayError

TYPE = "application/x-ndjson"
MOST_MESSAGES = 10_000
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXT_ROLES = ("system", "developer", "user", "assistant")
#: fields that are for this service; every other one is a parameter for the model
OWN_FIELDS = {
    PLAIN_BODY,
    "conversation",
    "conversationId",
    "conversation_id",
    "format",
    "history_disabled",
    "messageId",
    "messages",
    "model",
    "msg",
    "parentMessageId",
    "parent_id",
    "parent_message_id",
    "prompt",
    "prompt_prefix",
    "prompt_suffix",
    "request_id",
    "reverse_proxy",
    "stream",
    "system",
    "timeout",
    *SECRETS,
}
_EXAMPLE = 'Send it as in {"messages": [{"role": "user", "content": "hello"}]}.'
_BRACKETS = re.compile(r"messages\[(\d{1,4})\]\[(role|content|name)\]")


def ask(fields: Fields, caller: Caller, key: str | None = None) -> Ask:
    """The ask that a dialogue makes: its last message is the question. Nothing is stored unless the caller says so.

    With a conversation id the stored messages of that conversation are sent, and of the dialogue
    only its last one. Raises BadRequest.
    """
    messages = _dialogue(fields)
    question = messages[-1]
    conversation_id = read.conversation_of(fields)
    return Ask(
        prompt=question.text,
        payloads=question.payloads,
        caller=caller,
        conversation_id=conversation_id,
        conversation_name=read.conversation_name_of(fields),
        parent_id=read.parent_of(fields),
        preamble=_preamble(fields, [] if conversation_id else messages[:-1]),
        model=read.text_of(fields, "model") or None,
        options=_options(fields),
        reverse_proxy=read.text_of(fields, "reverse_proxy") or None,
        timeout=read.milliseconds_of(fields, "timeout"),
        keep=keeps(fields),
        idempotency_key=read.key_of(fields, key),
        route="chat",
        ignored=read.ignored_of(fields),
        check=text_only,
    )


def _dialogue(fields: Fields) -> list[Message]:
    """The messages, the last of which is a question."""
    messages = _messages(fields)
    if not messages:
        prompt = read.text_of(fields, "prompt") or read.text_of(fields, PLAIN_BODY)
        if not prompt:
            raise BadRequest(f"The field messages is missing or empty. {_EXAMPLE}")
        messages = [Message("user", prompt)]
    question = messages[-1]
    if question.payloads:
        return messages
    if not question.text.strip():
        raise BadRequest("The last of the messages is empty: nothing was asked.")
    if question.role != "user":
        raise BadRequest(
            "The last of the messages is the question: its role must be user."
        )
    return messages


def _preamble(fields: Fields, messages: list[Message]) -> tuple[Message, ...]:
    system = read.text_of(fields, "system")
    if system:
        return (Message("system", system), *messages)
    return tuple(messages)


def _options(fields: Fields) -> dict[str, Any]:
    others = {name: value for name, value in fields.items() if not _is_own(name)}
    read.check_places(others, read.PARAMETERS)
    return read.options_of(others, known_only=False)


def _is_own(name: str) -> bool:
    return name in OWN_FIELDS or _BRACKETS.fullmatch(name) is not None


def keeps(fields: Fields, unasked: bool = False) -> bool:
    """Whether the conversation is stored: the call names one, or says that history is not disabled.

    `unasked`: whether one that says nothing is stored.
    """
    if read.conversation_of(fields) or read.conversation_name_of(fields):
        return True
    if fields.get("history_disabled") is None:
        return unasked
    return not read.flag_of(fields, "history_disabled")


def _messages(fields: Fields) -> list[Message]:
    """The messages of a body in JSON; of a form, where they are JSON in one field or fields of their own."""
    found: Any = fields.get("messages")
    if isinstance(found, str) and found.strip():
        try:
            found = parse_json(found)
        except orjson.JSONDecodeError:
            raise BadRequest(
                "The field messages is no JSON. Send the body as JSON, or "
                "messages[0][content]."
            ) from None
    if found is None or found == "":
        found = _bracketed(fields)
    if not isinstance(found, list):
        raise BadRequest(f"The field messages must be a list. {_EXAMPLE}")
    if len(found) > MOST_MESSAGES:
        raise BadRequest(f"There are more than {MOST_MESSAGES} messages.")
    return [_message(message) for message in found]


def _bracketed(fields: Fields) -> list[dict[str, Any]]:
    """Messages as fields of a form: messages[0][role], messages[0][content]."""
    numbered: dict[int, dict[str, Any]] = {}
    for name in fields:
        if part := _BRACKETS.fullmatch(name):
            message = numbered.setdefault(int(part[1]), {})
            message[part[2]] = read.text_of(fields, name)
    return [numbered[number] for number in sorted(numbered)]


def _message(payload: Any) -> Message:
    if not isinstance(payload, dict) or payload.get("role") not in ROLES:
        raise BadRequest(
            f"Each of the messages must be an object with a role: {', '.join(ROLES)}."
        )
    role = payload["role"]
    content = payload.get("content")
    if isinstance(content, str):
        if "\0" in content:
            raise BadRequest("A message holds a NUL character; text has none.")
        is_plain = set(payload) <= {"role", "content"} and role in TEXT_ROLES
        return Message(role, content, () if is_plain else (payload,))
    if content is not None and not isinstance(content, list):
        raise BadRequest("The content of a message must be text, or a list of parts.")
    return Message(role, _text_of_parts(content or []), (payload,))


def _text_of_parts(parts: list[Any]) -> str:
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    text = "\n".join(text for text in texts if isinstance(text, str))
    return text.replace("\0", "")


def _line(done: bool, error: bool, content: str) -> bytes:
    return orjson.dumps({"done": done, "error": error, "content": content})


DONE = _line(True, False, "[DONE]")


def error(failure: RelayError) -> tuple[int, bytes]:
    """A failure before the first event: its true status, and the two lines that a failure within the stream has."""
    return failure.status, _line(False, True, failure.message) + b"\n" + DONE


class Lines:
    """A stream as lines of JSON. The keep-alive is an empty line, which this dialect's clients leave out."""

    keep_alive = b"\n"
    needs_text = True

    def print(self, batch: list[Event]) -> bytes:
        text = ""
        for event in batch:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Restarted):
                text += "\n\n"
        return _line(False, False, text) + b"\n" if text else b""

    def end(self, reply: Reply) -> bytes:
        return DONE

    def fail(self, failure: RelayError) -> bytes:
        return error(failure)[1]
