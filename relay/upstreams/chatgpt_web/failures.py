"""ChatGPT's failures as ours: of a response, of an event within a stream. Source: protocol notes, HTTP errors.

Bodies come in many forms: FastAPI's `detail` as text, object or list, proxies' `error`, HTML, nothing. Texts may be
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
from relay.upstreams.wording import (
    error_text,
    is_challenge,
    is_page,
    kind_of_body,
    parse_json,
    redacted,
    retry_after,
    stated_wait,
)

_LIMIT_CODES = (
    "model_cap_exceeded",
    "work_usage_limit_exceeded",
    "rate_limit_exceeded",
    "usage_limit_reached",
)
_MODEL_LIMIT = (
    "model_cap_exceeded"  # the one limit that leaves the account's other models
)
_TOKEN_CODES = ("token_expired", "invalid_jwt")
_CLOSED_ACCOUNT_CODES = ("account_deactivated", "deactivated_workspace")
_GONE_CODES = ("conversation_deleted", "conversation_inaccessible")
_WAIT_PHRASE = re.compile(r"(?i)\bin (?:about )?([0-9]{1,6}) (second|minute|hour)")
_UNITS = {"second": 1, "minute": 60, "hour": 3600}
_ACCESS_DENIED = re.compile(rb"error code: 10\d\d|Access denied")


def from_response(
    status: int, headers: Mapping[str, str], body: bytes
) -> UpstreamError:
    """The failure that a response means: one with an error's status, or a 200 that is no stream.

    Header names are in lower case; the body is without the account's token already.
    """
    if 300 <= status < 400:
        return UpstreamFailed(
            "The upstream sent us elsewhere; redirects are not followed, for tokens go nowhere else."
        )
    if (challenge := _challenge(status, headers, body)) is not None:
        return challenge
    payload = parse_json(body)
    if is_page(headers, body) or (payload is None and status < 400):
        return _no_api(status, kind_of_body(headers, body))
    if isinstance(payload, dict) and "wss_url" in payload:
        return UpstreamFailed(
            "The upstream wants to deliver by WebSocket (wss_url), which is not supported."
        )
    message, code = error_text(payload)
    message = message or redacted(body.decode("utf-8", "replace").strip())
    if status < 400:
        return from_event(message, code, payload)
    return _from_status(status, headers, payload, message, code)


def _challenge(
    status: int, headers: Mapping[str, str], body: bytes
) -> Challenged | None:
    may_challenge = status in (403, 503) or headers.get("cf-mitigated")
    if may_challenge and is_page(headers, body) and is_challenge(headers, body):
        return Challenged(
            "The upstream answered with a browser challenge (Cloudflare), which this service never solves. "
            "Wait, or use a REVERSE_PROXY that is let through."
        )
    if status == 403 and _ACCESS_DENIED.search(body):
        return Challenged(
            "The upstream's edge blocks this server's address (access denied)."
        )
    return None


def _no_api(status: int, kind: str) -> UpstreamError:
    """The failure of a body that the backend itself would not send."""
    if status < 400:
        return UpstreamFailed(
            f"The upstream sent {kind} where a stream was due. Is it the right address?"
        )
    return UpstreamRefused(
        f"The upstream answered {status} with {kind}.", status=status
    )


def _from_status(
    status: int, headers: Mapping[str, str], payload: Any, message: str, code: str
) -> UpstreamError:
    suffix = f": {message}" if message else "."
    if status == 401:
        sentence = f"The upstream rejects the access token{suffix}"
        is_renewable = not code or code in _TOKEN_CODES
        return TokenRejected(sentence, quoted=message, is_renewable=is_renewable)
    if status == 429 or code in _LIMIT_CODES or _is_limit(status, message):
        return _limit(message, payload, headers, code)
    if status == 403 and code in _CLOSED_ACCOUNT_CODES:
        sentence = f"The upstream has closed this account{suffix}"
        return TokenRejected(sentence, quoted=message)
    return UpstreamRefused(
        f"The upstream answered {status}{suffix}",
        status=status,
        retry_after=retry_after(headers),
        is_own=isinstance(payload, dict),
        quoted=message,
    )


def _is_limit(status: int, message: str) -> bool:
    return status == 400 and "too many requests" in message.lower()


def _limit(
    message: str, payload: Any, headers: Mapping[str, str], code: str
) -> RateLimited:
    wait = stated_wait(payload) or retry_after(headers) or _wait_in(message)
    sentence = f"The upstream's limit is reached: {message or 'too many requests'}"
    if wait is None and "one message at a time" in message.lower():
        return OneAtATime(sentence, quoted=message)
    return RateLimited(
        sentence,
        retry_after=wait,
        quoted=message,
        whole_account=code != _MODEL_LIMIT,
    )


def from_event(message: str, code: str, payload: Any = None) -> UpstreamError:
    """The failure that an event within a stream, or a 200 that is no stream, means.

    `message`, `code`: as `error_text` reads them. `payload`: the event, where it may state a wait.
    """
    quoted = message or code
    reason = quoted or "it gave no reason"
    if code in _LIMIT_CODES:
        sentence = f"The upstream's limit is reached: {reason}"
        wait = stated_wait(payload)
        return RateLimited(
            sentence,
            retry_after=wait,
            quoted=quoted,
            whole_account=code != _MODEL_LIMIT,
        )
    if code in _TOKEN_CODES:
        sentence = f"The upstream rejects the access token: {reason}"
        return TokenRejected(sentence, quoted=quoted, is_renewable=True)
    if "conversation_not_found" in code or code in _GONE_CODES:
        sentence = f"The upstream knows no such conversation: {reason}"
        return UpstreamRefused(sentence, status=404, quoted=quoted)
    if code == "conversation_too_large":
        sentence = f"The conversation is too long for the upstream: {reason}"
        return UpstreamRefused(sentence, status=413, quoted=quoted)
    sentence = f"The upstream failed within its answer: {reason}"
    return UpstreamFailed(sentence, quoted=quoted)


def _wait_in(message: str) -> int | None:
    """Seconds by a phrase such as `in 20 minutes`."""
    phrase = _WAIT_PHRASE.search(message)
    return int(phrase[1]) * _UNITS[phrase[2].lower()] if phrase else None
