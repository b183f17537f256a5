"""The dialect of openai-api-server: a dialogue in, lines of {"done", "error", "content"} out. Pure.

Source: its document, and what it was seen to send: the last line has no line end, and nothing is kept of what is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from relay.dialects import form
from relay.dialects.form import Fields
from relay.domain import Ask, Caller, Delta, Event, Message, Reply, Restarted
from relay.errors import BadRequest, RelayError

TYPE = "application/x-ndjson"
MOST_MESSAGES = 10_000
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
#: fields that are for this service; every other one is a parameter for the model
_OURS = (
    *(
        "messages",
        "model",
        "stream",
        "conversation_id",
        "parent_message_id",
        "parent_id",
        "system",
        "timeout",
    ),
    *(
        "reverse_proxy",
        "request_id",
        "history_disabled",
        "format",
        form.PLAIN_BODY,
        "prompt",
        "msg",
    ),
    *("prompt_prefix", "prompt_suffix", *form.SECRETS),
)
_SHAPE = 'Send it as in {"messages": [{"role": "user", "content": "hello"}]}.'
_BRACKETS = re.compile(r"messages\[(\d{1,4})\]\[(role|content|name)\]")


def ask(fields: Fields, caller: Caller, key: str | None = None) -> Ask:
    """The ask that a dialogue makes: its last message is the question. Nothing is kept unless the caller says so.

    With a conversation_id the earlier messages are those that are kept there, and the ones sent are left alone.
    """
    said = _messages(fields)
    if not said and (
        prompt := form.text_of(fields, "prompt")
        or form.text_of(fields, form.PLAIN_BODY)
    ):
        said = [Message("user", prompt)]
    if not said:
        raise BadRequest(f"The field messages is missing or empty. {_SHAPE}")
    if not said[-1].text.strip() and said[-1].given is None:
        raise BadRequest("The last of the messages is empty: nothing was asked.")
    last = said[-1]
    if last.given is None and last.role != "user":
        raise BadRequest(
            "The last of the messages is the question: its role must be user."
        )
    system = form.text_of(fields, "system")
    conversation_id = form.id_of(fields, "conversation_id")
    before = (
        *((Message("system", system),) if system else ()),
        *(() if conversation_id else said[:-1]),
    )
    return Ask(
        prompt=last.text,
        given=last.given,
        caller=caller,
        conversation_id=conversation_id,
        parent_id=form.parent_of(fields),
        before=before,
        model=form.text_of(fields, "model") or None,
        options=form.options_of(
            {name: value for name, value in fields.items() if name not in _OURS},
            known=False,
        ),
        reverse_proxy=form.text_of(fields, "reverse_proxy") or None,
        timeout=form.milliseconds_of(fields, "timeout"),
        keep=keeps(fields),
        key=form.key_of(fields, key),
        route="chat",
    )


def keeps(fields: Fields) -> bool:
    """Whether what is said is to be kept: the call names a conversation, or says that history is not disabled."""
    named = form.id_of(fields, "conversation_id") is not None
    return named or (
        "history_disabled" in fields and not form.flag_of(fields, "history_disabled")
    )


def _messages(fields: Fields) -> list[Message]:
    """The messages of a body in JSON; of a form, where they are JSON in one field or fields of their own."""
    found: Any = fields.get("messages")
    if isinstance(found, str) and found.strip():
        try:
            found = orjson.loads(found)
        except orjson.JSONDecodeError:
            raise BadRequest(
                "The field messages is no JSON. Send the body as JSON, or messages[0][content]."
            ) from None
    if found is None or found == "":
        numbered: dict[int, dict[str, Any]] = {}
        for name in fields:
            if part := _BRACKETS.fullmatch(name):
                numbered.setdefault(int(part[1]), {})[part[2]] = form.text_of(
                    fields, name
                )
        found = [numbered[number] for number in sorted(numbered)]
    if not isinstance(found, list) or len(found) > MOST_MESSAGES:
        raise BadRequest(f"The field messages must be a list. {_SHAPE}")
    return [_message(message) for message in found]


def _message(told: Any) -> Message:
    if not isinstance(told, dict) or told.get("role") not in _ROLES:
        raise BadRequest(
            f"Each of the messages must be an object with a role: {', '.join(_ROLES)}."
        )
    content = told.get("content")
    if isinstance(content, str):
        if "\0" in content:
            raise BadRequest("A message holds a NUL character; text has none.")
        plain = set(told) <= {"role", "content"} and told["role"] in (
            "system",
            "developer",
            "user",
            "assistant",
        )
        return Message(told["role"], content, None if plain else told)
    if content is not None and not isinstance(content, list):
        raise BadRequest("The content of a message must be text, or a list of parts.")
    return Message(told["role"], _text_of(content or []), told)


def _text_of(parts: list[Any]) -> str:
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str)).replace("\0", "")


def _line(done: bool, error: bool, content: str) -> bytes:
    return orjson.dumps({"done": done, "error": error, "content": content})


DONE = _line(True, False, "[DONE]")


def error(failure: RelayError) -> tuple[int, bytes]:
    """A failure before the first event: its true status, and the two lines that a failure within the stream has."""
    return failure.status, _line(False, True, failure.message) + b"\n" + DONE


class Lines:
    """A stream as lines of JSON. An empty line is a sign of life; this dialect's clients leave it out."""

    keep_alive = b"\n"

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
