"""Signing in with an e-mail address and a password, as clients of older services ask for it."""

from __future__ import annotations

from werkzeug.http import parse_cache_control_header

from relay.dialects import bodies, fields
from relay.errors import BadRequest
from relay.signin.grants import Credentials, Grant
from relay.web.incoming import Incoming, pause
from relay.web.response import Response
from relay.web.responses import json_response

NO_CREDENTIALS = (
    "Send the account's e-mail address and its password: the fields email (or username) "
    "and password, as a form or as JSON."
)
NO_PROXY = (
    "Callers choose no proxy: leave the field proxy out. The operator sets PROXY_URL."
)


def sign_in(incoming: Incoming) -> Grant:
    """An access token of ChatGPT's for the account that the body names. Raises RelayError."""
    credentials = credentials_of(incoming)
    return incoming.service.logins.to_chatgpt(
        credentials, incoming.caller_address, fresh=wants_fresh(incoming)
    )


def login(incoming: Incoming) -> Response:
    return json_response({"accessToken": sign_in(incoming).access_token})


def platform_login(incoming: Incoming) -> Response:
    """The dashboard's JSON, unchanged."""
    credentials = credentials_of(incoming)
    grant = incoming.service.logins.to_platform(
        credentials, incoming.caller_address, fresh=wants_fresh(incoming)
    )
    return Response(grant.login, "application/json")


def credentials_of(incoming: Incoming) -> Credentials:
    bodies.read_query(dict(incoming.args.lists()))
    found = bodies.read(incoming.content_type, incoming.whole_body(), pause)
    if fields.text_of(found, "proxy").strip():
        raise BadRequest(NO_PROXY)
    email = fields.text_of(found, "email") or fields.text_of(found, "username")
    password = fields.text_of(found, "password")
    if not email.strip() or not password:
        raise BadRequest(NO_CREDENTIALS)
    return Credentials(email.strip(), password)


def wants_fresh(incoming: Incoming) -> bool:
    """Whether the caller says that a token which is kept does not do: it may have been revoked."""
    stated = incoming.fields.get("Cache-Control", "")
    return "no-cache" in parse_cache_control_header(stated)
