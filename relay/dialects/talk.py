"""Pandora's talk: one question in JSON, for the same answers as the ChatGPT web API's. Pure.

Source: Pandora's HTTP API. `stream` is true unless the request says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from relay.dialects import fields as read
from relay.dialects.bodies import Fields
from relay.dialects.chatgpt.answer import Action
from relay.dialects.chatgpt.ask import (
    PLACE_FIELDS,
    Request,
    check,
    ignored_of,
    place_of,
)
from relay.errors import BadRequest

#: fields that are read
_READ = {*PLACE_FIELDS, "prompt", "stream"}


def read_request(payload: Fields, action: Action = "next") -> Request:
    """The request of a body. Raises BadRequest or NoConversation."""
    place = place_of(payload)
    request = replace(
        place,
        action=action,
        prompt="" if action == "continue" else read.text_of(payload, "prompt"),
        ignored=ignored_of(payload, _READ),
    )
    if action != "next" and not request.conversation_id:
        raise BadRequest(
            "The field conversation_id is missing: only an answer of a conversation can "
            "be made again, or go on."
        )
    check(request)
    return request


def streams(payload: Fields) -> bool:
    """Whether the answer is to be streamed."""
    return payload.get("stream") is None or read.flag_of(payload, "stream")
