"""What is looked at, and changed, of requests and answers that pass as they are. Pure.

Bytes are passed on as they came. Of a request's JSON the model alone may be replaced; an event stream is read along.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import orjson

from relay import sse
from relay.dialects import events
from relay.dialects.bodies import read as read_fields
from relay.dialects.openai import errors
from relay.errors import BadRequest, RelayError

_LINE_END = re.compile(rb"[\r\n]")
_SPACE = re.compile(r"[ \t\n\r]*")
_VALUE = json.JSONDecoder(parse_float=str, parse_int=str)
_END_TYPES = (
    "response.completed",
    "response.failed",
    "response.incomplete",
    "response.cancelled",
    "error",
)
_FAILED_TYPES = ("response.failed", "error")
#: what events have that may say that an answer is whole, or that it failed; within a JSON text the quotes would be
#: escaped. Each is the plain text that a pattern begins with, which is found at a tenth of the pattern's cost, and the
#: pattern
_FAILED = b'"error"', re.compile(rb'"error"\s*:\s*\{')
_CHOICES_END = (
    (b'"finish_reason"', re.compile(rb'"finish_reason"\s*:\s*"[^"]')),
    (b"[DONE]", re.compile(rb"\[DONE\](?=\s*$)", re.MULTILINE)),
    _FAILED,
)
_RESPONSE_END = (
    (b'"type"', re.compile(rb'"type"\s*:\s*"(?:response\.[cfi]|error")')),
    _FAILED,
)
_ENDS = {
    "chat/completions": _CHOICES_END,
    "completions": _CHOICES_END,
    "responses": _RESPONSE_END,
}


class EventWatch(events.EventWatch):
    """See there. `path`: the route's, below /v1. `choices`: how many answers the stream has, side by side."""

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, path: str, choices: int = 1) -> None:
        super().__init__()
        self._end = _ENDS.get(path)
        self._choices = choices
        self._finished: frozenset[Any] = frozenset()  # the indexes of those

    @property
    def is_whole(self) -> bool:
        """The answer said that it is whole; of an unknown kind of stream its end alone says so."""
        return super().is_whole or self._end is None

    def ends(self, passed: bytes) -> bool:
        if self._end is None:
            return False
        return any(
            self._is_end(line)
            for mark, pattern in self._end
            for line in _lines_with(mark, pattern, passed)
        )

    def _is_end(self, line: bytes) -> bool:
        """Whether a line that looks like it says that the answer is whole, or that it failed."""
        try:
            payload = orjson.loads(line.removeprefix(b"data:"))
        except orjson.JSONDecodeError:  # the end mark, or an event of several lines
            return True
        if not isinstance(payload, dict):
            return False
        if payload.get("error") or payload.get("type") in _END_TYPES:
            is_failure = payload.get("type") in _FAILED_TYPES
            self.has_failed = is_failure or bool(payload.get("error"))
            return True
        self._finished = self._finished.union(_finished_choices(payload))
        return len(self._finished) >= self._choices

    def fail(self, error: RelayError) -> bytes:
        """The error, in the place of what did not come."""
        return sse.event(orjson.dumps(errors.body(error)))


def _lines_with(
    mark: bytes, pattern: re.Pattern[bytes], passed: bytes
) -> Iterator[bytes]:
    """The lines in which a pattern is found. `mark`: the text that it begins with."""
    known = 0  # where the line before ends
    while (at := passed.find(mark, known)) >= 0:
        found = pattern.search(passed, at)
        if found is None:
            return
        begins = found.start()
        start = 1 + max(passed.rfind(end, known, begins) for end in (b"\n", b"\r"))
        end = _LINE_END.search(passed, found.end())
        yield passed[max(start, known) : end.start() if end else len(passed)]
        known = end.start() if end else len(passed)


def _finished_choices(payload: dict[str, Any]) -> Iterator[Any]:
    """The indexes of the choices that end in an event."""
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason"):
            index = choice.get("index")
            yield index if isinstance(index, int) else 0


def choices_of(payload: dict[str, Any]) -> int:
    """How many answers a request asks for."""
    count = payload.get("n")
    return count if isinstance(count, int) else 1


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
