"""Signing in with an e-mail address and a password, as clients of older services ask for it."""

from __future__ import annotations

from flask import Response

from relay.errors import BadRequest
from relay.web.incoming import Incoming

NO_PASSWORDS = (
    "This service does not sign in with a password: send an access token, or a client "
    "key, as the header 'Authorization: Bearer TOKEN'. ChatGPT shows a token at "
    "https://chatgpt.com/api/auth/session"
)


def login(incoming: Incoming) -> Response:
    raise BadRequest(NO_PASSWORDS)
