"""An OpenAI-compatible API's failures as ours: of a response, of an event within a stream.

Source: OpenAI's error objects and rate limit headers, and what compatible servers send in their place.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from relay.errors import (
    RateLimited,
    TokenRejected,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.wording import (
    LONGEST_HEADER,
    LONGEST_WAIT,
    error_text,
    is_page,
    kind_of_body,
    parse_json,
    redacted,
    retry_after,
    stated_wait,
    whole_seconds,
)

SET_KEY = "Set OPENAI_API_KEY."
IS_BASE_RIGHT = "Is OPENAI_BASE_URL right?"
#: what an upstream calls unknown in a 404 where its address is right
_MODEL = re.compile(r"(?i)\bmodel(_not_found)?\b")
_LIMIT_CODES = (
    "rate_limit_exceeded",
    "insufficient_quota",
    "usage_limit_reached",
    "tokens",
    "requests",
)
#: limits that waiting does not end
_QUOTA_CODES = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
)
_UNITS = (86400, 3600, 60, 1, 0.001)
_DURATION = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m(?!s))?(?:([0-9.]+)s)?(?:([0-9.]+)ms)?"
)
_RESET_HEADER = re.compile(r"x-ratelimit-reset(-\w+)?")


def from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    url: str = "",
    sent_key: bool = True,
) -> UpstreamError:
    """The failure that a response means: one with an error's status, or a 200 that is no answer.

    Header names are in lower case; the body is without the API key already. `url`: the address that
    was asked. `sent_key`: the request had a key, or a header of the operator's that may be one.
    """
    if 300 <= status < 400:
        return UpstreamFailed(
            "The upstream sent us elsewhere; redirects are not followed, for keys go nowhere else."
        )
    payload = parse_json(body)
    if status < 400:
        return in_event(payload) or UpstreamFailed(
            f"The upstream sent {kind_of_body(headers, body)} where an answer was due. {IS_BASE_RIGHT}"
        )
    _, code = error_text(payload)
    quoted = _quoted(headers, body, payload)
    suffix = _suffix(headers, body, quoted)
    if status == 401:
        return _rejected(suffix, quoted, sent_key)
    if status == 429:
        message = f"The upstream's limit is reached{suffix}"
        wait = _limit_wait(code, headers, payload)
        return RateLimited(message, retry_after=wait, quoted=quoted)
    hint = ""
    if code == "context_length_exceeded":
        hint = "A lower HISTORY_BUDGET lets long conversations go on."
    elif status == 403 and not sent_key:
        hint = SET_KEY
    elif status in (404, 405):
        hint = _wrong_address(url, quoted)
    return UpstreamRefused(
        _with_hint(f"The upstream answered {status}{suffix}", hint),
        status=status,
        retry_after=retry_after(headers),
        is_own=isinstance(payload, dict),
        quoted=quoted,
    )


def _rejected(suffix: str, quoted: str, sent_key: bool) -> TokenRejected:
    message = f"The upstream rejects the API key{suffix}"
    if not sent_key:
        message = _with_hint(f"The upstream asks for a key{suffix}", SET_KEY)
    return TokenRejected(message, quoted=quoted)


def _suffix(headers: Mapping[str, str], body: bytes, quoted: str) -> str:
    """The end of a sentence about an error's body."""
    if is_page(headers, body):
        return ": with a web page"
    return f": {quoted}" if quoted else "."


def _wrong_address(url: str, quoted: str) -> str:
    """The hint for an address at which nothing is; "" where the error speaks of a model, which is unknown there."""
    if not url or _MODEL.search(quoted):
        return ""
    return f"It was asked at {url}. {IS_BASE_RIGHT}"


def _with_hint(message: str, hint: str) -> str:
    """A message, which may end without a full stop, and what to do about it, if anything."""
    if not hint:
        return message
    stop = "" if message.endswith((".", "!", "?", "…")) else "."
    return f"{message}{stop} {hint}"


def _quoted(headers: Mapping[str, str], body: bytes, payload: Any) -> str:
    """What an error's body says: its message, and its code where that says more; "" for a web page."""
    if is_page(headers, body):
        return ""
    message, code = error_text(payload)
    if not message:
        message = redacted(body.decode("utf-8", "replace").strip())
    if code and code not in message and not code.isdigit():
        return f"{message} ({code})"
    return message


def in_event(payload: Any, name: str = "") -> UpstreamError | None:
    """The failure that an event, or a 200 that is no stream, means; None where it means none.

    `name`: the event's name, where it has one.
    """
    if not isinstance(payload, dict) or not _is_error(payload, name):
        return None
    message, code = error_text(payload)
    quoted = message or code
    reason = quoted or "it gave no reason"
    status = _status_of(code)
    if _is_limit(payload, code, status):
        sentence = f"The upstream's limit is reached: {reason}"
        wait = None if code in _QUOTA_CODES else stated_wait(payload)
        return RateLimited(sentence, retry_after=wait, quoted=quoted)
    if status == 401 or code == "invalid_api_key":
        sentence = f"The upstream rejects the API key: {reason}"
        return TokenRejected(sentence, quoted=quoted)
    if 400 <= status < 500:
        sentence = f"The upstream answered {status}: {reason}"
        return UpstreamRefused(sentence, status=status, quoted=quoted)
    sentence = f"The upstream failed within its answer: {reason}"
    return UpstreamFailed(sentence, quoted=quoted)


def _status_of(code: str) -> int:
    """The HTTP status that some servers send as an error's code; 0 for other codes."""
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 0


def _is_limit(payload: dict[str, Any], code: str, status: int) -> bool:
    error = payload.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return status == 429 or code in _LIMIT_CODES or kind in _LIMIT_CODES


def _is_error(payload: dict[str, Any], name: str) -> bool:
    if payload.get("error") or name == "error" or payload.get("object") == "error":
        return True
    return "message" in payload and "choices" not in payload


def _limit_wait(code: str, headers: Mapping[str, str], payload: Any) -> int | None:
    """Seconds until the limit ends: as stated for retries, else until what is used up is there again."""
    if code in _QUOTA_CODES:
        return None
    milliseconds = headers.get("retry-after-ms", "")
    if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{0,20})?", milliseconds):
        return whole_seconds(max(1.0, float(milliseconds) / 1000))
    wait = retry_after(headers) or stated_wait(payload)
    if wait is not None:
        return wait
    waits = _reset_waits(headers)
    return whole_seconds(max(1.0, *waits)) if waits else None


def _reset_waits(headers: Mapping[str, str]) -> list[float]:
    """Seconds until each limit is reset that has nothing left, or does not state what is left."""
    waits = []
    for name, value in headers.items():
        header = _RESET_HEADER.fullmatch(name)
        if header is None:
            continue
        remaining = headers.get(f"x-ratelimit-remaining{header[1] or ''}", "")
        seconds = _reset_seconds(value)
        if seconds is not None and remaining in ("", "0"):
            waits.append(seconds)
    return waits


def _reset_seconds(value: str) -> float | None:
    """A reset as headers give it: `6m0s`, `20ms`, seconds, or a time as seconds or milliseconds since 1970."""
    if not value or len(value) > LONGEST_HEADER:
        return None
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", value):
        seconds: float | None = _seconds_until(float(value))
    else:
        seconds = _duration(value)
    if seconds is None or seconds >= LONGEST_WAIT:
        return None
    return seconds


def _seconds_until(number: float) -> float:
    """Seconds until a time since 1970, in seconds or milliseconds, at least 1; a small number is a wait itself."""
    if number <= 10**9:
        return number
    stamp = number / 1000 if number > 10**11 else number
    return max(1.0, stamp - time.time())


def _duration(value: str) -> float | None:
    """Seconds of a duration such as `6m0s`; None for what is none."""
    parts = _DURATION.fullmatch(value)
    if parts is None:
        return None
    try:
        return sum(
            float(part or 0) * unit
            for part, unit in zip(parts.groups(), _UNITS, strict=True)
        )
    except ValueError:
        return None
