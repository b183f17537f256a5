"""An OpenAI-compatible API's failures as ours: of a response, of an event within a stream.

Source: OpenAI's error objects and rate limit headers, and what compatible servers send in their place.
"""

from __future__ import annotations

import math
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
from relay.upstreams.words import (
    is_page,
    json_of,
    redacted,
    retry_after,
    stated_wait,
    words_of,
)

_LIMITS = (
    "rate_limit_exceeded",
    "insufficient_quota",
    "usage_limit_reached",
    "tokens",
    "requests",
)
_NO_END = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
)  # waiting does not help
_UNITS = (86400, 3600, 60, 1, 0.001)
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([0-9.]+)s)?(?:([0-9.]+)ms)?"
)


def from_response(
    status: int, headers: Mapping[str, str], body: bytes
) -> UpstreamError:
    """The failure that a response tells of: one with an error's status, or a 200 that is no answer."""
    told = json_of(body)
    if 300 <= status < 400:
        return UpstreamFailed(
            "The upstream sent us elsewhere; redirects are not followed, for keys go nowhere else."
        )
    if status < 400:
        if (error := within(told)) is not None:
            return error
        kind = (
            "a web page"
            if is_page(headers, body)
            else "what is no answer"
            if body.strip()
            else "an empty answer"
        )
        return UpstreamFailed(
            f"The upstream sent {kind} where an answer was due. Is OPENAI_BASE_URL right?"
        )
    message, code = words_of(told)
    if is_page(headers, body):
        message = "with a web page"
    else:
        message = message or redacted(body.decode("utf-8", "replace").strip())
    said = f": {message}" if message else "."
    named = f" ({code})" if code and code not in message and not code.isdigit() else ""
    if status == 401:
        return TokenRejected(f"The upstream rejects the API key{said}{named}")
    if status == 429:
        wait = None if code in _NO_END else _wait(headers, told)
        return RateLimited(
            f"The upstream's limit is reached{said}{named}", retry_after=wait
        )
    if code == "context_length_exceeded":
        named += " A lower HISTORY_BUDGET lets long conversations go on."
    wait = retry_after(headers)
    return UpstreamRefused(
        f"The upstream answered {status}{said}{named}", status=status, retry_after=wait
    )


def within(told: Any, name: str = "") -> UpstreamError | None:
    """The failure that an event, or a 200 that is no stream, tells of; None where it tells of none."""
    if not isinstance(told, dict):
        return None
    error = told.get("error")
    if (
        not error
        and name != "error"
        and told.get("object") != "error"
        and ("choices" in told or "message" not in told)
    ):
        return None
    message, code = words_of(told)
    said = message or code or "it gave no reason"
    status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
    kind = error.get("type") if isinstance(error, dict) else None
    if status == 429 or code in _LIMITS or kind in _LIMITS:
        wait = None if code in _NO_END else stated_wait(told)
        return RateLimited(f"The upstream's limit is reached: {said}", retry_after=wait)
    if status == 401 or code == "invalid_api_key":
        return TokenRejected(f"The upstream rejects the API key: {said}")
    if status and status < 500:
        return UpstreamRefused(f"The upstream answered {status}: {said}", status=status)
    return UpstreamFailed(f"The upstream failed within its answer: {said}")


def _wait(headers: Mapping[str, str], told: Any) -> int | None:
    """Seconds until the limit ends: as stated for retries, else until what is used up is there again."""
    milliseconds = headers.get("retry-after-ms", "")
    if re.fullmatch(r"[0-9]{1,11}(\.[0-9]*)?", milliseconds):
        return max(1, math.ceil(float(milliseconds) / 1000))
    if (wait := retry_after(headers) or stated_wait(told)) is not None:
        return wait
    resets = {}
    for name, value in headers.items():
        if found := re.fullmatch(r"x-ratelimit-reset(-\w+)?", name):
            left = headers.get(f"x-ratelimit-remaining{found[1] or ''}", "")
            resets[name] = (left in ("", "0"), _seconds(value))
    waits = [wait for used_up, wait in resets.values() if wait is not None and used_up]
    return max(1, math.ceil(max(waits))) if waits else None


def _seconds(value: str) -> float | None:
    """A reset as headers give it: `6m0s`, `20ms`, seconds, or a time as seconds or milliseconds since 1970."""
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", value):
        number = float(value)
        since = number / 1000 if number > 10**11 else number
        return max(1.0, since - time.time()) if since > 10**9 else number
    found = _DURATION.fullmatch(value)
    if not value or found is None:
        return None
    try:
        return sum(
            float(part or 0) * unit
            for part, unit in zip(found.groups(), _UNITS, strict=True)
        )
    except ValueError:
        return None
