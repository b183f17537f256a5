"""Failures as the ChatGPT web API reports them. Pure.

Source: protocol notes, HTTP errors. Clients read `detail` as the backend has it (message and code), or `errorMessage`
as go-chatgpt-api has it.
"""

from __future__ import annotations

from typing import Any

from relay.errors import NoConversation, RelayError

#: the answer to a request without a credential, as guides to go-chatgpt-api have it: by it, a person sees that it runs
MISSING_TOKEN = {"errorMessage": "Missing accessToken."}
#: our codes that have another name at ChatGPT
_CODES = {NoConversation.code: "conversation_not_found"}


def body(error: RelayError) -> dict[str, Any]:
    """The body of an error response."""
    return {"errorMessage": error.message, "detail": _detail(error)}


def event(error: RelayError, conversation_id: str | None = None) -> dict[str, Any]:
    """The event that ends a failed stream."""
    return {
        "message": None,
        "conversation_id": conversation_id,
        "error": error.message,
        "detail": _detail(error),
    }


def _detail(error: RelayError) -> dict[str, str]:
    return {"message": error.message, "code": _CODES.get(error.code, error.code)}
