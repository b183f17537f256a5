"""ChatGPT's failures as ours: of a response, of an event within a stream. Source: protocol notes, HTTP errors.

Bodies come in many shapes: FastAPI's `detail` as text, object or list, proxies' `error`, HTML, nothing. Texts may be
localised, so a status or a code decides wherever there is one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from relay.errors import (
    Challenged,
    OneAtATime,
    RateLimited,
    TokenRejected,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
)

LONGEST_TOLD = 300
_SECRET = re.compile(r"(?i)\b(?:eyJ[\w.-]{8,}|(?:sk|sess|rt|fk|cw)[-_][\w-]{8,}|bearer\s+\S+|https?://\S+)")
_LIMIT_CODES = ("model_cap_exceeded", "work_usage_limit_exceeded", "rate_limit_exceeded", "usage_limit_reached")
_AGAIN = re.compile(r"(?i)\bin (?:about )?(\d+) (second|minute|hour)")
_UNITS = {"second": 1, "minute": 60, "hour": 3600}


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The failure that a response tells of: one with an error's status, or a 200 that is no stream."""
    told, page = json_of(body), _looks_like_html(headers, body)
    if 300 <= status < 400:
        return UpstreamFailed("The upstream sent us elsewhere; redirects are not followed, for tokens go nowhere else.")
    if page and (status in (403, 503) or headers.get("cf-mitigated")) and _challenges(headers, body):
        return Challenged(
            "The upstream answered with a browser challenge (Cloudflare), which this service never solves. "
            "Wait, or use a REVERSE_PROXY that is let through."
        )
    if status == 403 and re.search(rb"error code: 10\d\d|Access denied", body):
        return Challenged("The upstream's edge blocks this server's address (access denied).")
    if page or (told is None and status < 400):
        kind = "a web page" if page else "what is no answer" if body.strip() else "an empty answer"
        if status < 400:
            return UpstreamFailed(f"The upstream sent {kind} where a stream was due. Is it the right address?")
        return UpstreamRefused(f"The upstream answered {status} with {kind}.", status=status)
    if isinstance(told, dict) and "wss_url" in told:
        return UpstreamFailed("The upstream wants to deliver by WebSocket (wss_url), which is not supported.")
    return _of_body(status, headers, told, body)


def _of_body(status: int, headers: Mapping[str, str], told: Any, body: bytes) -> UpstreamError:
    message, code = words_of(told)
    message = message or redacted(body.decode("utf-8", "replace").strip())
    said = f": {message}" if message else "."
    if status == 401 or (status < 400 and code in ("token_expired", "invalid_jwt")):
        return TokenRejected(f"The upstream rejects the access token{said}")
    if status < 400:
        return from_words(message, code, told)
    if status == 429 or code in _LIMIT_CODES or (status == 400 and "too many requests" in message.lower()):
        return _limit(message, told, headers)
    if status == 403 and code in ("account_deactivated", "deactivated_workspace"):
        return TokenRejected(f"The upstream has closed this account{said}")
    return UpstreamRefused(f"The upstream answered {status}{said}", status=status, retry_after=_retry_after(headers))


def _limit(message: str, told: Any, headers: Mapping[str, str]) -> RateLimited:
    wait = _stated_wait(told) or _retry_after(headers) or _phrase(message)
    said = f"The upstream's limit is reached: {message or 'too many requests'}"
    if wait is None and "one message at a time" in message.lower():
        return OneAtATime(said)
    return RateLimited(said, retry_after=wait)


def from_words(message: str, code: str, told: Any = None) -> UpstreamError:
    """The failure that an event within a stream tells of."""
    said = message or code or "it gave no reason"
    if code in _LIMIT_CODES:
        return RateLimited(f"The upstream's limit is reached: {said}", retry_after=_stated_wait(told))
    if code in ("token_expired", "invalid_jwt"):
        return TokenRejected(f"The upstream rejects the access token: {said}")
    if "conversation_not_found" in code or code in ("conversation_deleted", "conversation_inaccessible"):
        return UpstreamRefused(f"The upstream knows no such conversation: {said}", status=404)
    if code == "conversation_too_large":
        return UpstreamRefused(f"The conversation is too long for the upstream: {said}", status=413)
    return UpstreamFailed(f"The upstream failed within its answer: {said}")


def words_of(told: Any) -> tuple[str, str]:
    """Message and code of an error object, in whichever of the known places they stand."""
    if isinstance(told, str):
        return redacted(told), ""
    if not isinstance(told, dict):
        return "", ""
    error, detail = told.get("error"), told.get("detail")
    if isinstance(detail, list) and detail:  # FastAPI's list of what is wrong with the body
        first = detail[0] if isinstance(detail[0], dict) else {}
        where = ".".join(str(part) for part in first.get("loc", []))
        return redacted(f"{first.get('msg', 'invalid request body')} ({where})"), str(first.get("type", ""))
    places: list[Any] = [
        told,
        error,
        detail,
        *(inner.get("error") for inner in (error, detail) if isinstance(inner, dict)),
    ]
    code = ""
    texts = [error, detail, *(place.get(key) for place in places if isinstance(place, dict) for key in _MESSAGES)]
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


def _stated_wait(told: Any) -> int | None:
    """Seconds by `clears_in`, `resets_in_seconds` or `resets_after`, wherever the error object has them."""
    for place in (told, *(told.get(key) for key in ("detail", "error") if isinstance(told, dict))):
        if isinstance(place, dict):
            for key in ("clears_in", "resets_in_seconds", "resets_in", "retry_after"):
                value = place.get(key)
                if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 10**8:
                    return math.ceil(value)
    return None


def _retry_after(headers: Mapping[str, str]) -> int | None:
    value = headers.get("retry-after", "").strip()
    return int(value) if re.fullmatch(r"[0-9]{1,8}", value) else None


def _phrase(message: str) -> int | None:
    found = _AGAIN.search(message)
    return int(found[1]) * _UNITS[found[2].lower()] if found else None


def json_of(body: bytes) -> Any:
    """A body as JSON; None where it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _looks_like_html(headers: Mapping[str, str], body: bytes) -> bool:
    start = body.lstrip()[:15].lower()
    return start.startswith((b"<!doctype", b"<html")) or "html" in headers.get("content-type", "")


def _challenges(headers: Mapping[str, str], body: bytes) -> bool:
    signs = (b"just a moment", b"cf_chl_opt", b"cf-please-wait", b"challenge-platform", b"turnstile", b"captcha")
    return bool(headers.get("cf-mitigated")) or any(sign in body.lower() for sign in signs)
