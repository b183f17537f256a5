"""Signing in by a browser elsewhere: an authorization code with PKCE (RFC 7636), whose redirect a person pastes. Pure.

The issuer knows this client's redirects to localhost alone. On a machine without a browser nobody listens there: the
browser shows an error, and its address bar has what is needed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import field
from urllib.parse import parse_qs, urlencode, urlsplit

from relay.errors import BadRequest, UpstreamRefused
from relay.signin.issuer import (
    NOT_ENTITLED,
    ORIGINATOR,
    AuthorizationCode,
    not_entitled,
)
from relay.signin.refresh import CLIENT_ID, SCOPE
from relay.values import frozen

REDIRECT_URI = "http://localhost:1455/auth/callback"
LONGEST_REDIRECT = 8192
NOT_A_REDIRECT = (
    "That is not the address that the browser was sent to. Copy the whole address bar: "
    f"it begins {REDIRECT_URI}?"
)


@frozen
class AuthorizationRequest:
    """One sign-in: what only this side knows of it."""

    verifier: str = field(repr=False)
    state: str = field(repr=False)

    @classmethod
    def begin(cls, random: Callable[[int], bytes]) -> AuthorizationRequest:
        """`random`: gives so many bytes that nobody guesses."""
        return cls(_encode(random(64)), _encode(random(32)))

    @property
    def challenge(self) -> str:
        """The verifier's hash, as the method S256 has it."""
        return _encode(hashlib.sha256(self.verifier.encode("ascii")).digest())


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")


def authorize_url(base: str, request: AuthorizationRequest) -> str:
    """What to open in a browser."""
    query = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "scope": SCOPE,
        "code_challenge": request.challenge,
        "code_challenge_method": "S256",
        "id_token_add_organizations": "true",
        "codex_cli_simplified_flow": "true",
        "state": request.state,
        "originator": ORIGINATOR,
    }
    return f"{base}/oauth/authorize?{urlencode(query)}"


def read_redirect(text: str, request: AuthorizationRequest) -> AuthorizationCode:
    """The code in an address that somebody pasted, or in its query alone.

    Raises BadRequest for one that is not this sign-in's, which may be pasted again, and
    UpstreamRefused where the issuer or the person refused.
    """
    query = _query_of(text.strip())
    state = query.get("state", "")
    if not state:
        raise BadRequest(NOT_A_REDIRECT)
    if not hmac.compare_digest(state.encode(), request.state.encode()):
        raise BadRequest(
            "That address belongs to another sign-in. Open the address above again, and "
            "paste what the browser is sent to then."
        )
    if error := query.get("error"):
        raise _refused(error, query.get("error_description", ""))
    if not query.get("code"):
        raise BadRequest(NOT_A_REDIRECT)
    return AuthorizationCode(query["code"], request.verifier, REDIRECT_URI)


def _query_of(text: str) -> dict[str, str]:
    """The fields of an address's query; empty for what is no address."""
    if not text.isascii() or not text.isprintable() or len(text) > LONGEST_REDIRECT:
        return {}
    try:
        url = urlsplit(text)
        fields = parse_qs(url.query or text.lstrip("?"), max_num_fields=50)
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}


def _refused(error: str, description: str) -> UpstreamRefused:
    if NOT_ENTITLED in description or error == NOT_ENTITLED:
        return not_entitled()
    if error == "access_denied":
        sentence = "The sign-in was refused on the page. Run login again if that was a mistake."
    else:
        sentence = "The issuer did not sign in. Run login again, or try login without --browser."
    return UpstreamRefused(sentence, status=403)
