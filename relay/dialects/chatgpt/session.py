"""The session as ChatGPT's page asks for it. Pure. Source: protocol notes, GET /api/auth/session."""

from __future__ import annotations

from typing import Any

from relay.domain import Caller


def session(caller: Caller, credential: str, expires: str) -> dict[str, Any]:
    """The session of a caller: its access token here is the credential that it shows. {} where it shows none.

    `expires`: ISO 8601; when to ask again.
    """
    if not credential:
        return {}
    return {
        "user": {"id": caller.owner, "name": caller.owner, "groups": []},
        "expires": expires,
        "accessToken": credential,
        "authProvider": "chatgpt-webapi",
    }
