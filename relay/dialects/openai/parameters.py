"""The parameters of a chat completion that is translated: what is done, what is refused, what has no effect. Pure.

Refused is what an answer must not lack: a caller that asks for two choices, or for JSON of a schema, cannot use less.
All else that means nothing to the upstream is named as ignored.
"""

from __future__ import annotations

from typing import Any

from relay.dialects import fields as read
from relay.dialects.bodies import PLAIN_BODY, SECRETS, Fields
from relay.errors import BadRequest, Unsupported

#: what any answer can be cut by, whatever its upstream knows
LIMITS = ("max_tokens", "max_completion_tokens", "stop")
#: fields that are for this service, and no parameters for a model
OWN_FIELDS = {
    PLAIN_BODY,
    "conversation",
    "conversationId",
    "conversation_id",
    "history_disabled",
    "messageId",
    "messages",
    "model",
    "parentMessageId",
    "parent_id",
    "parent_message_id",
    "request_id",
    "stream",
    "stream_options",
    *SECRETS,
}
#: parameters that are honoured before any upstream, or whose checked values ask for nothing
_HONOURED = {
    "audio",
    "functions",
    "logprobs",
    "modalities",
    "n",
    "response_format",
    "tools",
    "user",
    *LIMITS,
}
#: fields that are not told as ignored: a secret in the body is one that should not be there
_KNOWN = OWN_FIELDS.difference(SECRETS)
_KNOWN_TRANSLATED = _KNOWN | _HONOURED
ELSEWHERE = "Only an OpenAI-compatible upstream (UPSTREAM=openai) can."


def check_form(fields: Fields) -> None:
    """Raise for a form of answer that no translated answer has: several choices, logprobs, audio.

    Raises BadRequest for wrong types, else Unsupported.
    """
    choices = fields.get("n")
    if choices is not None:
        if not _is_count(choices):
            raise BadRequest("The field n must be a whole number of at least 1.")
        if choices > 1:
            raise Unsupported(
                "There is one answer to a translated request: leave n out, and ask "
                "once for each answer that you want.",
                parameter="n",
            )
    if read.flag_of(fields, "logprobs"):
        raise Unsupported(
            "A translated answer has no probabilities of tokens: leave logprobs out.",
            parameter="logprobs",
        )
    _check_audio(fields)


def _check_audio(fields: Fields) -> None:
    why = (
        "A translated answer is text: leave audio out, and modalities other than text."
    )
    modalities = fields.get("modalities")
    if modalities is not None and not isinstance(modalities, list):
        raise BadRequest('The field modalities must be a list, as in ["text"].')
    if modalities and any(modality != "text" for modality in modalities):
        raise Unsupported(why, parameter="modalities")
    if fields.get("audio"):
        raise Unsupported(why, parameter="audio")


def check_abilities(fields: Fields) -> None:
    """Raise for what an upstream that is a chat, and no API, cannot do: tools, a format.

    Raises BadRequest for wrong types, else Unsupported.
    """
    check_tools(fields, f"The upstream calls no tools. {ELSEWHERE}")
    response_format = fields.get("response_format")
    if response_format is None:
        return
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if not isinstance(kind, str):
        raise BadRequest(
            "The field response_format must be an object with a type, as in "
            '{"type": "text"}.'
        )
    if kind != "text":
        raise Unsupported(
            "The upstream cannot be held to a format: leave response_format out, and "
            f"say in a message what you want. {ELSEWHERE}",
            parameter="response_format",
        )


def check_tools(fields: Fields, why: str) -> None:
    """Raise Unsupported, with a sentence that says why, for a request that offers tools. Raises BadRequest."""
    for name in ("tools", "functions"):
        tools = fields.get(name)
        if tools is not None and not isinstance(tools, list):
            raise BadRequest(f"The field {name} must be a list.")
        if tools:
            raise Unsupported(f"To go on, leave {name} out. {why}", parameter=name)


def options_of(fields: Fields) -> dict[str, Any]:
    """All parameters, as they came, for an upstream that takes them. Raises BadRequest for a misspelt place."""
    options = {
        name: value
        for name, value in fields.items()
        if name not in OWN_FIELDS and value is not None
    }
    read.check_places(options, ())
    return options


def limits_of(fields: Fields) -> dict[str, Any]:
    """What the answer is cut by, as it came. Whoever cuts it checks the values."""
    return {name: fields[name] for name in LIMITS if fields.get(name) not in (None, "")}


def ignored_of(fields: Fields, *, accepts_options: bool) -> tuple[str, ...]:
    """The fields without effect, but for those that are empty. Raises BadRequest for a misspelt place."""
    known = _KNOWN_TRANSLATED
    if accepts_options:
        known = _KNOWN.union(set(fields).difference(SECRETS))
    return (*read.ignored_of(fields), *read.unknown_of(fields, known))


def includes_usage(fields: Fields) -> bool:
    """Whether a stream ends with its usage: `stream_options.include_usage`. Raises BadRequest."""
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequest(
            'The field stream_options must be an object, as in {"include_usage": true}.'
        )
    return read.flag_of(options, "include_usage")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
