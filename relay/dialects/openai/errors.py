"""Failures as OpenAI's API reports them. Pure.

Source: the SDKs' ErrorObject. They choose the exception's class by the status, and show `message`, `code` and `param`.
"""

from __future__ import annotations

from typing import Any

from relay.errors import RelayError, Unauthorized

#: status -> type; the rest by their hundreds
_TYPES = {403: "permission_error", 429: "rate_limit_exceeded"}
#: our codes that have another name in OpenAI's API
_CODES = {Unauthorized.code: "invalid_api_key"}


def status(error: RelayError) -> int:
    """The status of the response: the error's own."""
    return error.status


def body(error: RelayError) -> dict[str, Any]:
    """The body of an error response, and of the event that ends a failed stream."""
    return {
        "error": {
            "message": _message(error),
            "type": _type(error.status),
            "param": error.parameter,
            "code": _CODES.get(error.code, error.code),
        }
    }


def _message(error: RelayError) -> str:
    """The sentence; of a wrong key behind OpenAI's own words, because LiteLLM knows such an error by them."""
    if isinstance(error, Unauthorized) and error.wrong_key:
        return f"Incorrect API key provided. {error.message}"
    return error.message


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")
