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
    status: int, headers: Mapping[str, str], body: bytes
) -> UpstreamError:
    """The failure that a response means: one with an error's status, or a 200 that is no answer.

    Header names are in lower case; the body is without the API key already.
    """
    if 300 <= status < 400:
        return UpstreamFailed(
            "The upstream sent us elsewhere; redirects are not followed, for keys go nowhere else."
        )
    payload = parse_json(body)
    if status < 400:
        return in_event(payload) or UpstreamFailed(
            f"The upstream sent {kind_of_body(headers, body)} where an answer was due. Is OPENAI_BASE_URL right?"
        )
    _, code = error_text(payload)
    suffix = _suffix(headers, body, payload)
    if status == 401:
        return TokenRejected(f"The upstream rejects the API key{suffix}")
    if status == 429:
        wait = None if code in _QUOTA_CODES else _limit_wait(headers, payload)
        return RateLimited(f"The upstream's limit is reached{suffix}", retry_after=wait)
    if code == "context_length_exceeded":
        suffix += " A lower HISTORY_BUDGET lets long conversations go on."
    return UpstreamRefused(
        f"The upstream answered {status}{suffix}",
        status=status,
        retry_after=retry_after(headers),
    )


def _suffix(headers: Mapping[str, str], body: bytes, payload: Any) -> str:
    """The end of a sentence about an error's body: its message, and its code where that says more."""
    message, code = error_text(payload)
    if is_page(headers, body):
        message = "with a web page"
    elif not message:
        message = redacted(body.decode("utf-8", "replace").strip())
    suffix = f": {message}" if message else "."
    if code and code not in message and not code.isdigit():
        suffix += f" ({code})"
    return suffix


def in_event(payload: Any, name: str = "") -> UpstreamError | None:
    """The failure that an event, or a 200 that is no stream, means; None where it means none.

    `name`: the event's name, where it has one.
    """
    if not isinstance(payload, dict) or not _is_error(payload, name):
        return None
    message, code = error_text(payload)
    reason = message or code or "it gave no reason"
    status = _status_of(code)
    if _is_limit(payload, code, status):
        wait = None if code in _QUOTA_CODES else stated_wait(payload)
        return RateLimited(
            f"The upstream's limit is reached: {reason}", retry_after=wait
        )
    if status == 401 or code == "invalid_api_key":
        return TokenRejected(f"The upstream rejects the API key: {reason}")
    if 400 <= status < 500:
        return UpstreamRefused(
            f"The upstream answered {status}: {reason}", status=status
        )
    return UpstreamFailed(f"The upstream failed within its answer: {reason}")


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


def _limit_wait(headers: Mapping[str, str], payload: Any) -> int | None:
    """Seconds until the limit ends: as stated for retries, else until what is used up is there again."""
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
