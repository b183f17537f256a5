"""The messages of a chat completion as a preamble and a question. Pure.

Where text alone can be sent, what is no text is an error that names its place; elsewhere a message that text cannot
carry goes on as it came, as the payload of its `Message`.
"""

from __future__ import annotations

from typing import Any

from relay.attachments import FILE_PARTS
from relay.dialects.bodies import Fields
from relay.dialects.ndjson import MOST_MESSAGES, ROLES, TEXT_ROLES
from relay.domain import TOOL_ROLES, Message, joined
from relay.errors import BadRequest, Unsupported
from relay.values import frozen

NOT_SENT = (
    "The upstream takes messages of text alone: leave images, files and tools out."
)
ONLY_FILES = (
    "The upstream takes text, and images and files in messages of the user: leave tools "
    "and sound out."
)
_EXAMPLE = 'Send it as in {"messages": [{"role": "user", "content": "hello"}]}.'
#: types of parts that are text -> the part's field that has it
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}
#: fields of a message that say what no text says
_BEYOND_TEXT = ("tool_calls", "function_call", "audio")
_READ = {"role", "content", "refusal"}


@frozen
class Dialogue:
    """`question`: the last message, with the results of tools before it. `ignored`: fields without effect."""

    preamble: tuple[Message, ...]
    question: Message
    ignored: tuple[str, ...]


def dialogue_of(
    fields: Fields, why_text_only: str = "", *, accepts_files: bool = False
) -> Dialogue:
    """The dialogue in the field `messages`; otherwise as for `messages_in`."""
    messages = messages_in(fields, why_text_only, accepts_files=accepts_files)
    ignored = _ignored(fields["messages"]) if why_text_only else ()
    first = len(messages) - 1
    while first > 0 and messages[first - 1].role in TOOL_ROLES:
        first -= 1
    return Dialogue(tuple(messages[:first]), joined(messages[first:]), ignored)


def messages_in(
    fields: Fields, why_text_only: str = "", *, accepts_files: bool = False
) -> list[Message]:
    """The messages in the field `messages`, the last of which asks something.

    `why_text_only`: a sentence that says why only text is taken; "" where all that the API has is.
    `accepts_files`: images and files of the user's are taken also where only text is. Raises
    BadRequest; Unsupported for what is no text where only text is taken.
    """
    payloads = fields.get("messages")
    if payloads is None:
        raise BadRequest(f"The field messages is missing. {_EXAMPLE}")
    if not isinstance(payloads, list):
        raise BadRequest(f"The field messages must be a list. {_EXAMPLE}")
    if not payloads:
        raise BadRequest(f"The field messages is empty: nothing was asked. {_EXAMPLE}")
    if len(payloads) > MOST_MESSAGES:
        raise BadRequest(
            f"There are more than {MOST_MESSAGES} messages: send the newest ones."
        )
    messages = [
        _message(payload, f"messages[{at}]", why_text_only, accepts_files)
        for at, payload in enumerate(payloads)
    ]
    _check_question(messages[-1])
    return messages


def _check_question(question: Message) -> None:
    """Raise for a last message that asks nothing. One with a payload may be a tool's result."""
    if question.role != "user" and (
        not question.payloads or question.role in TEXT_ROLES
    ):
        raise BadRequest(
            "The last of the messages is the question: its role must be user."
        )
    if not question.payloads and not question.text.strip():
        raise BadRequest(
            "The last of the messages is empty: nothing was asked. Put the question "
            "into its content."
        )


def _message(
    payload: Any, place: str, why_text_only: str, accepts_files: bool
) -> Message:
    """One message. `place`: where it is, for errors."""
    if not isinstance(payload, dict):
        raise BadRequest(f"{place} must be an object with role and content. {_EXAMPLE}")
    role = payload.get("role")
    if role not in ROLES:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}.")
    if why_text_only:
        _check_text_only(payload, place, why_text_only)
    has_files = accepts_files and role == "user" and _has_files(payload)
    text = _text(payload, place, why_text_only, has_files)
    if why_text_only and has_files:
        return Message(role, text, ({"role": role, "content": payload["content"]},))
    if why_text_only or _is_plain(payload):
        return Message(role, text)
    return Message(role, text, (payload,))


def _has_files(payload: dict[str, Any]) -> bool:
    """Whether a message has images or files."""
    parts = payload.get("content")
    if not isinstance(parts, list):
        return False
    return any(isinstance(part, dict) and _is_file(part.get("type")) for part in parts)


def _is_file(kind: Any) -> bool:
    return isinstance(kind, str) and kind in FILE_PARTS


def _is_plain(payload: dict[str, Any]) -> bool:
    """Whether role and text are all that a message has."""
    given = {name for name, value in payload.items() if _is_given(value)}
    has_text_role = payload["role"] in TEXT_ROLES
    return (
        has_text_role
        and isinstance(payload.get("content"), str)
        and given <= {"role", "content"}
    )


def _check_text_only(payload: dict[str, Any], place: str, why: str) -> None:
    """Raise Unsupported for a message of tools, or with more than text."""
    if payload["role"] not in TEXT_ROLES:
        raise _unsupported(f"{place}.role", why)
    for name in _BEYOND_TEXT:
        if _is_given(payload.get(name)):
            raise _unsupported(f"{place}.{name}", why)


def _text(
    payload: dict[str, Any], place: str, why_text_only: str, has_files: bool
) -> str:
    """The text of a message's content; of an assistant's message without one its refusal."""
    content = payload.get("content")
    if content is None:
        return _text_in_place_of_content(payload, place)
    if isinstance(content, str):
        return _checked(content, f"{place}.content")
    if not isinstance(content, list) or not content:
        raise BadRequest(f"{place}.content must be text, or a list of parts.")
    texts = [
        _text_of_part(part, f"{place}.content[{at}]", why_text_only, has_files)
        for at, part in enumerate(content)
    ]
    return "\n".join(text for text in texts if text is not None)


def _text_in_place_of_content(payload: dict[str, Any], place: str) -> str:
    refusal = payload.get("refusal")
    if isinstance(refusal, str) and refusal:
        return _checked(refusal, f"{place}.refusal")
    if any(_is_given(payload.get(name)) for name in _BEYOND_TEXT):
        return ""
    raise BadRequest(f"{place}.content is missing. {_EXAMPLE}")


def _text_of_part(
    part: Any, place: str, why_text_only: str, has_files: bool
) -> str | None:
    """A part's text; None where it is no text and may be something else."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise BadRequest(
            f"{place} must be an object with a type, as in "
            '{"type": "text", "text": "hello"}.'
        )
    if kind in _TEXT_PARTS:
        name = _TEXT_PARTS[kind]
        return _checked(part.get(name), f"{place}.{name}")
    if why_text_only and not (has_files and _is_file(kind)):
        raise _unsupported(place, why_text_only)
    return None


def _checked(text: Any, place: str) -> str:
    if not isinstance(text, str):
        raise BadRequest(f"{place} must be text.")
    if "\0" in text:
        raise BadRequest(
            f"{place} holds a NUL character, which text has not: leave it out."
        )
    return text


def _unsupported(place: str, why_text_only: str) -> Unsupported:
    return Unsupported(f"{place} is no text. {why_text_only}", parameter=place)


def _is_given(value: Any) -> bool:
    """Whether a field says something; SDKs send those of an answer back with null and empty lists."""
    return value not in (None, "", [], {})


def _ignored(payloads: list[dict[str, Any]]) -> tuple[str, ...]:
    """The fields of messages that are neither read nor refused."""
    names = {
        name
        for payload in payloads
        for name, value in payload.items()
        if name not in _READ and _is_given(value)
    }
    return tuple(f"messages.{name}" for name in sorted(names))
