"""What upstreams say of their failures, in whichever form: read, and made fit to be passed on. Pure.

Nothing here trusts its input: texts are cut, numbers are bounded, and values are looked at only as
deep as error objects are known to go.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from relay.accounts import SHORTEST_SECRET
from relay.cached import cached

LONGEST_TEXT = 300
LONGEST_WAIT = 10**8  # seconds, three years: what is longer is no statement of a wait
LONGEST_HEADER = 100
DEEPEST_ERROR = 6
MOST_VALUES = (
    500_000  # of one JSON text: each costs some 100 bytes, and time to be made
)

#: half a pair of surrogates, as JSON escapes it: a first half without a second one, or the reverse
_HALF_EMOJI = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_BACKSLASH = rb"\\"
_NUL = b"\0\0"  # of two bytes, which no JSON has
_SECRET = re.compile(
    r"(?i)\b(?:eyJ[\w.-]{8,}|(?:sk|sess|rt|fk|cw)[-_][\w*-]{8,}|bearer\s+\S+|https?://\S+)"
)
_MESSAGE_KEYS = ("message", "description", "hint")
_CODE_KEYS = ("code", "error_code")
_WAIT_KEYS = ("clears_in", "resets_in_seconds", "resets_in", "retry_after")
#: what a request says without any secret in it
_PUBLIC_HEADERS = (
    "accept",
    "accept-encoding",
    "content-type",
    "user-agent",
    "x-request-id",
)
_SECRET_PARTS = re.compile(r"[\s,;=]+")
_CHALLENGE_SIGNS = (
    b"just a moment",
    b"cf_chl_opt",
    b"cf-please-wait",
    b"challenge-platform",
    b"turnstile",
    b"captcha",
)


def error_text(payload: Any) -> tuple[str, str]:
    """Message and code of an error object, each redacted; "" for what it does not have."""
    if isinstance(payload, str):
        return redacted(payload), ""
    if not isinstance(payload, dict):
        return "", ""
    detail = payload.get("detail")
    if isinstance(detail, list) and detail:
        return _validation_error(detail[0])
    objects = _error_objects(payload)
    messages = [payload.get("error"), detail, *_values(objects, _MESSAGE_KEYS)]
    codes = [_scalar(value or "") for value in _values(objects, _CODE_KEYS)]
    return redacted(_first_text(messages)), redacted(_first_text(codes))


def _values(objects: list[dict[str, Any]], keys: tuple[str, ...]) -> list[Any]:
    return [each.get(key) for each in objects for key in keys]


def _first_text(values: list[Any]) -> str:
    return next((value for value in values if value and isinstance(value, str)), "")


def _error_objects(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects in which a message or a code may stand, the most likely first."""
    nested = [payload.get("error"), payload.get("detail")]
    deeper = [each.get("error") for each in nested if isinstance(each, dict)]
    return [each for each in (payload, *nested, *deeper) if isinstance(each, dict)]


def _validation_error(first: Any) -> tuple[str, str]:
    """The first entry of FastAPI's list of what is wrong with a body."""
    if not isinstance(first, dict):
        return "", ""
    message = _scalar(first.get("msg"))
    location = first.get("loc")
    if isinstance(location, list) and location:
        path = ".".join(_scalar(part) for part in location[:20])
        message = f"{message or 'invalid request body'} ({path})"
    return redacted(message), redacted(_scalar(first.get("type")))


def _scalar(value: Any) -> str:
    """A text or a number as text; "" for everything else."""
    return str(value) if isinstance(value, (str, int, float)) else ""


def redacted(text: str) -> str:
    """An upstream's text as far as it may be passed on: short, on one line, without tokens and addresses."""
    line = " ".join(_SECRET.sub("…", text[: 4 * LONGEST_TEXT]).split())
    return line if len(line) <= LONGEST_TEXT else line[:LONGEST_TEXT] + "…"


class Secrets:
    """What requests' headers keep secret: the token, and what the operator added. Some upstreams quote them."""

    def __init__(self, *headers: Mapping[str, str]) -> None:
        self._headers = headers

    @cached
    def _secrets(self) -> list[bytes]:
        """The longest first. Most asks quote none, so they are looked for where they may be quoted."""
        secrets: set[str] = set()
        fields = [field for headers in self._headers for field in headers.items()]
        for name, value in fields:
            if name.lower() not in _PUBLIC_HEADERS:
                secrets.update((value, *_SECRET_PARTS.split(value)))
        longest_first = sorted(secrets, key=len, reverse=True)
        return [
            secret.encode("utf-8", "surrogateescape")
            for secret in longest_first
            if len(secret) >= SHORTEST_SECRET
        ]

    def redact(self, text: bytes) -> bytes:
        """A text without them."""
        for secret in self._secrets:
            text = text.replace(secret, b"...")
        return text

    def redact_body(self, body: bytes) -> bytes:
        """A body without them, also where it is JSON that has them escaped."""
        payload = parse_json(body)
        if isinstance(payload, (dict, list)):
            body = orjson.dumps(replaced_in_texts(payload, self.redact))
        return self.redact(body)


def replaced_in_texts(
    payload: Any, replace: Callable[[bytes], bytes], depth: int = DEEPEST_ERROR
) -> Any:
    """An error object with `replace` applied to each of its texts; what is nested below `depth` is None."""
    if isinstance(payload, str):
        return replace(payload.encode("utf-8", "replace")).decode("utf-8", "replace")
    if not isinstance(payload, (dict, list)):
        return payload
    if depth == 0:
        return None
    if isinstance(payload, list):
        return [replaced_in_texts(value, replace, depth - 1) for value in payload]
    return {
        key: replaced_in_texts(value, replace, depth - 1)
        for key, value in payload.items()
    }


def stated_wait(payload: Any) -> int | None:
    """Seconds by `clears_in`, `resets_in_seconds`, `resets_in` or `retry_after`, wherever the object has them."""
    if not isinstance(payload, dict):
        return None
    for place in (payload, payload.get("detail"), payload.get("error")):
        if not isinstance(place, dict):
            continue
        for key in _WAIT_KEYS:
            value = place.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if (wait := whole_seconds(value)) is not None:
                    return wait
    return None


def whole_seconds(seconds: float) -> int | None:
    """A wait rounded up; None for one that no upstream can mean: negative, 0, infinite, not a number."""
    return math.ceil(seconds) if 0 < seconds < LONGEST_WAIT else None


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Seconds by the header Retry-After, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    if len(value) > LONGEST_HEADER:
        return None
    if re.fullmatch(r"[0-9]{1,8}(\.[0-9]*)?", value):
        return math.ceil(float(value))
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
    return whole_seconds(max(1.0, seconds))


def has_too_many_values(text: bytes) -> bool:
    """Whether a JSON text may have more than MOST_VALUES."""
    if len(text) < MOST_VALUES:
        return False
    return count_values(text) > MOST_VALUES


def count_values(text: bytes) -> int:
    """The values that a JSON text may have, at most; signs within its texts count too, that is cheap."""
    return len(text) - len(text.translate(None, b",[{"))


def parse_json(body: bytes) -> Any:
    """A body as JSON; None where it is none, or too much of it.

    Half an emoji, as servers that cut texts anywhere send it, is U+FFFD.
    """
    if len(body) >= MOST_VALUES and has_too_many_values(body):
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return orjson.loads(_without_half_emoji(body))
    except orjson.JSONDecodeError:
        return None


def write_json(value: Any) -> bytes:
    """A value as JSON. orjson's own bytes take 4 KB, which a body has for as long as its answer streams.

    Raises orjson.JSONEncodeError.
    """
    return bytes(memoryview(orjson.dumps(value)))


def _without_half_emoji(body: bytes) -> bytes:
    """A JSON text with U+FFFD in the place of each. No step of Python's for each: there may be a million."""
    if b"\0" in body:  # which is no JSON
        return body
    # what follows an escaped backslash is no escape
    found = _HALF_EMOJI.sub(rb"\\ufffd", body.replace(_BACKSLASH, _NUL))
    return found.replace(_NUL, _BACKSLASH)


def is_page(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a body is HTML. Header names are in lower case."""
    start = body.lstrip()[:15].lower()
    return start.startswith((b"<!doctype", b"<html")) or "html" in headers.get(
        "content-type", ""
    )


def is_challenge(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a page wants a browser to solve something. Header names are in lower case."""
    if headers.get("cf-mitigated"):
        return True
    lowered = body.lower()
    return any(sign in lowered for sign in _CHALLENGE_SIGNS)


def kind_of_body(headers: Mapping[str, str], body: bytes) -> str:
    """What a body is that is not the expected answer, for a sentence."""
    if is_page(headers, body):
        return "a web page"
    return "what is no answer" if body.strip() else "an empty answer"
