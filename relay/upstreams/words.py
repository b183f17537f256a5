"""What upstreams say of their failures, in whichever shape: read, and told on without secrets. Pure."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

LONGEST_TOLD = 300
#: escapes of JSON that stay as they are, or a surrogate alone
_HALF = re.compile(
    rb"(?P<whole>\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_SECRET = re.compile(
    r"(?i)\b(?:eyJ[\w.-]{8,}|(?:sk|sess|rt|fk|cw)[-_][\w*-]{8,}|bearer\s+\S+|https?://\S+)"
)


def words_of(told: Any) -> tuple[str, str]:
    """Message and code of an error object, in whichever of the known places they stand."""
    if isinstance(told, str):
        return redacted(told), ""
    if not isinstance(told, dict):
        return "", ""
    error, detail = told.get("error"), told.get("detail")
    if (
        isinstance(detail, list) and detail
    ):  # FastAPI's list of what is wrong with the body
        first = detail[0] if isinstance(detail[0], dict) else {}
        loc = first.get("loc")
        where = ".".join(str(part) for part in loc) if isinstance(loc, list) else ""
        said = (
            f"{first.get('msg', 'invalid request body')} ({where})"
            if where
            else str(first.get("msg", ""))
        )
        return redacted(said), str(first.get("type", ""))
    places: list[Any] = [
        told,
        error,
        detail,
        *(inner.get("error") for inner in (error, detail) if isinstance(inner, dict)),
    ]
    code = ""
    texts = [
        error,
        detail,
        *(
            place.get(key)
            for place in places
            if isinstance(place, dict)
            for key in _MESSAGES
        ),
    ]
    message = next((text for text in texts if isinstance(text, str) and text), "")
    for place in places:
        if isinstance(place, dict) and not code:
            code = str(place.get("code") or place.get("error_code") or "")
    return redacted(message), code


_MESSAGES = ("message", "description", "hint")


def redacted(text: str) -> str:
    """An upstream's words as far as they may be told on: short, on one line, without tokens and addresses."""
    line = " ".join(_SECRET.sub("…", text[: 4 * LONGEST_TOLD]).split())
    return line if len(line) <= LONGEST_TOLD else line[:LONGEST_TOLD] + "…"


def stated_wait(told: Any) -> int | None:
    """Seconds by `clears_in`, `resets_in_seconds` or `resets_after`, wherever the error object has them."""
    for place in (
        told,
        *(told.get(key) for key in ("detail", "error") if isinstance(told, dict)),
    ):
        if isinstance(place, dict):
            for key in ("clears_in", "resets_in_seconds", "resets_in", "retry_after"):
                value = place.get(key)
                if (
                    isinstance(value, (int, float))
                    and not isinstance(value, bool)
                    and 0 < value < 10**8
                ):
                    return math.ceil(value)
    return None


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Seconds by the header Retry-After, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,8}(\.[0-9]*)?", value):
        return math.ceil(float(value))
    try:
        return max(1, math.ceil(parsedate_to_datetime(value).timestamp() - time.time()))
    except (ValueError, TypeError, OverflowError):
        return None


def json_of(body: bytes) -> Any:
    """A body as JSON; None where it is none. Half an emoji, as servers that cut texts anywhere send it, is U+FFFD."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return orjson.loads(
            _HALF.sub(lambda found: found[0] if found["whole"] else rb"\ufffd", body)
        )
    except orjson.JSONDecodeError:
        return None


def is_page(headers: Mapping[str, str], body: bytes) -> bool:
    start = body.lstrip()[:15].lower()
    return start.startswith((b"<!doctype", b"<html")) or "html" in headers.get(
        "content-type", ""
    )


def challenges(headers: Mapping[str, str], body: bytes) -> bool:
    signs = (
        b"just a moment",
        b"cf_chl_opt",
        b"cf-please-wait",
        b"challenge-platform",
        b"turnstile",
        b"captcha",
    )
    return bool(headers.get("cf-mitigated")) or any(
        sign in body.lower() for sign in signs
    )
