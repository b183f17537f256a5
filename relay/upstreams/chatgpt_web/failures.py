"""ChatGPT's failures as ours: of a response, of an event within a stream. Source: protocol notes, HTTP errors.

Bodies come in many shapes: FastAPI's `detail` as text, object or list, proxies' `error`, HTML, nothing. Texts may be
localised, so a status or a code decides wherever there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from relay.errors import (
    Challenged,
    OneAtATime,
    RateLimited,
    TokenRejected,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.words import (
    challenges,
    is_page,
    json_of,
    redacted,
    retry_after,
    stated_wait,
    words_of,
)

_LIMIT_CODES = (
    "model_cap_exceeded",
    "work_usage_limit_exceeded",
    "rate_limit_exceeded",
    "usage_limit_reached",
)
_AGAIN = re.compile(r"(?i)\bin (?:about )?(\d+) (second|minute|hour)")
_UNITS = {"second": 1, "minute": 60, "hour": 3600}


def from_response(
    status: int, headers: Mapping[str, str], body: bytes
) -> UpstreamError:
    """The failure that a response tells of: one with an error's status, or a 200 that is no stream."""
    told, page = json_of(body), is_page(headers, body)
    if 300 <= status < 400:
        return UpstreamFailed(
            "The upstream sent us elsewhere; redirects are not followed, for tokens go nowhere else."
        )
    if (
        page
        and (status in (403, 503) or headers.get("cf-mitigated"))
        and challenges(headers, body)
    ):
        return Challenged(
            "The upstream answered with a browser challenge (Cloudflare), which this service never solves. "
            "Wait, or use a REVERSE_PROXY that is let through."
        )
    if status == 403 and re.search(rb"error code: 10\d\d|Access denied", body):
        return Challenged(
            "The upstream's edge blocks this server's address (access denied)."
        )
    if page or (told is None and status < 400):
        kind = (
            "a web page"
            if page
            else "what is no answer"
            if body.strip()
            else "an empty answer"
        )
        if status < 400:
            return UpstreamFailed(
                f"The upstream sent {kind} where a stream was due. Is it the right address?"
            )
        return UpstreamRefused(
            f"The upstream answered {status} with {kind}.", status=status
        )
    if isinstance(told, dict) and "wss_url" in told:
        return UpstreamFailed(
            "The upstream wants to deliver by WebSocket (wss_url), which is not supported."
        )
    return _of_body(status, headers, told, body)


def _of_body(
    status: int, headers: Mapping[str, str], told: Any, body: bytes
) -> UpstreamError:
    message, code = words_of(told)
    message = message or redacted(body.decode("utf-8", "replace").strip())
    said = f": {message}" if message else "."
    if status == 401 or (status < 400 and code in ("token_expired", "invalid_jwt")):
        return TokenRejected(f"The upstream rejects the access token{said}")
    if status < 400:
        return from_words(message, code, told)
    if (
        status == 429
        or code in _LIMIT_CODES
        or (status == 400 and "too many requests" in message.lower())
    ):
        return _limit(message, told, headers)
    if status == 403 and code in ("account_deactivated", "deactivated_workspace"):
        return TokenRejected(f"The upstream has closed this account{said}")
    return UpstreamRefused(
        f"The upstream answered {status}{said}",
        status=status,
        retry_after=retry_after(headers),
    )


def _limit(message: str, told: Any, headers: Mapping[str, str]) -> RateLimited:
    wait = stated_wait(told) or retry_after(headers) or _phrase(message)
    said = f"The upstream's limit is reached: {message or 'too many requests'}"
    if wait is None and "one message at a time" in message.lower():
        return OneAtATime(said)
    return RateLimited(said, retry_after=wait)


def from_words(message: str, code: str, told: Any = None) -> UpstreamError:
    """The failure that an event within a stream tells of."""
    said = message or code or "it gave no reason"
    if code in _LIMIT_CODES:
        return RateLimited(
            f"The upstream's limit is reached: {said}", retry_after=stated_wait(told)
        )
    if code in ("token_expired", "invalid_jwt"):
        return TokenRejected(f"The upstream rejects the access token: {said}")
    if "conversation_not_found" in code or code in (
        "conversation_deleted",
        "conversation_inaccessible",
    ):
        return UpstreamRefused(
            f"The upstream knows no such conversation: {said}", status=404
        )
    if code == "conversation_too_large":
        return UpstreamRefused(
            f"The conversation is too long for the upstream: {said}", status=413
        )
    return UpstreamFailed(f"The upstream failed within its answer: {said}")


def _phrase(message: str) -> int | None:
    found = _AGAIN.search(message)
    return int(found[1]) * _UNITS[found[2].lower()] if found else None
