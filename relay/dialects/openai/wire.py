"""What is looked at, and changed, of requests and answers that pass as they are. Pure.

Bytes are passed on as they came. Of a request's JSON the model alone may be replaced; an event stream is read along.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import orjson

from relay import sse
from relay.dialects import events
from relay.dialects.bodies import read as read_fields
from relay.dialects.openai import errors
from relay.errors import BadRequest, RelayError

_SPACE = re.compile(r"[ \t\n\r]*")
_VALUE = json.JSONDecoder(parse_float=str, parse_int=str)
#: how an answer says that it is whole, or that it failed; within a JSON text the quotes would be escaped. Each is the
#: plain text that a pattern begins with, which is found at a tenth of the pattern's cost, and the pattern
_FAILED = b'"error"', re.compile(rb'"error"\s*:\s*\{')
_CHOICES_END = (
    (b'"finish_reason"', re.compile(rb'"finish_reason"\s*:\s*"')),
    (b"[DONE]", re.compile(rb"\[DONE\](?=\s*$)", re.MULTILINE)),
    _FAILED,
)
_RESPONSE_END = (
    (
        b'"type"',
        re.compile(
            rb'"type"\s*:\s*"(?:response\.(?:completed|failed|incomplete|cancelled)|error)"'
        ),
    ),
    _FAILED,
)
_ENDS = {
    "chat/completions": _CHOICES_END,
    "completions": _CHOICES_END,
    "responses": _RESPONSE_END,
}


class EventWatch(events.EventWatch):
    """See there. `path`: the route's, below /v1."""

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, path: str) -> None:
        super().__init__()
        self._end = _ENDS.get(path)

    @property
    def is_whole(self) -> bool:
        """The answer said that it is whole; of an unknown kind of stream its end alone says so."""
        return super().is_whole or self._end is None

    def ends(self, passed: bytes) -> bool:
        if self._end is None:
            return False
        for mark, pattern in self._end:
            at = passed.find(mark)
            if at >= 0 and pattern.search(passed, at):
                return True
        return False

    def fail(self, error: RelayError) -> bytes:
        """The error, in the place of what did not come."""
        return sse.event(orjson.dumps(errors.body(error)))


def with_model(body: bytes, model: str) -> bytes:
    """A JSON object with another model, every other byte as it was.

    Raises BadRequest for what is no JSON object in UTF-8.
    """
    try:
        text = body.decode()
        start = _skip(text, 0)
        span = _find_value(text, start, "model")
    except (ValueError, IndexError, RecursionError):
        raise BadRequest("The body is no JSON object.") from None
    value = json.dumps(model)
    if span is not None:
        return (text[: span[0]] + value + text[span[1] :]).encode()
    rest = text[start + 1 :]
    comma = "," if rest[_skip(rest, 0)] != "}" else ""
    return f'{text[: start + 1]}"model":{value}{comma}{rest}'.encode()


def _find_value(text: str, start: int, name: str) -> tuple[int, int] | None:
    """Where the last value of a name in an object begins and ends; None where the object has none."""
    if text[start] != "{":
        raise ValueError("no object")
    span = None
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, at = scanstring(text, at + 1, True)
        value_start = _skip(text, _skip(text, at) + 1)
        _, at = _VALUE.raw_decode(text, value_start)
        if key == name:
            span = (value_start, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return span


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def model_of(payload: dict[str, Any]) -> str:
    """The model that a request names; "" where it names none."""
    model = payload.get("model")
    return model if isinstance(model, str) else ""


def read(body: bytes) -> dict[str, Any]:
    """The object that a JSON body is. Raises BadRequest, TooLarge."""
    return read_fields("application/json", body)
