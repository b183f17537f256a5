"""The issuer of ChatGPT's tokens: what it is sent to sign somebody in or out, and what its answers mean.

Paths, fields and codes are those of OpenAI's own command line and of four clients that agree with it. The client id
is the public one: there is none for others. `originator` names this service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, TypeGuard
from urllib.parse import urlencode

import orjson

from relay.errors import (
    Challenged,
    RateLimited,
    RelayError,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.signin.claims import Person, person_of
from relay.signin.refresh import CLIENT_ID
from relay.transports import Call, Transport
from relay.upstreams.http import WholeResponse, fetch
from relay.upstreams.wording import (
    is_challenge,
    is_page,
    parse_json,
    redacted,
    retry_after,
)
from relay.values import frozen

ORIGINATOR = "chatgpt-webapi"
REVOKE_SECONDS = 10.0
LARGEST_REPLY = 256 * 1024
NOT_ENTITLED = "missing_codex_entitlement"
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN = re.compile(r"[!-~]{8,16384}")


@frozen
class Tokens:
    """What a sign-in or an exchange gave."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    id_token: str = field(default="", repr=False)

    @property
    def person(self) -> Person:
        return person_of(self.access_token, self.id_token)


@frozen
class AuthorizationCode:
    """A code that is exchanged for tokens once, and the verifier that belongs to it (RFC 7636)."""

    code: str = field(repr=False)
    verifier: str = field(repr=False)
    redirect_uri: str


@frozen
class Reply:
    """An answer of the issuer. `code` and `message`: of its error, without what was sent; "" where it has none."""

    status: int
    payload: Mapping[str, Any] = field(repr=False)
    code: str = ""
    message: str = ""
    retry_after: int | None = None
    is_challenge: bool = False

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    def text(self, *names: str) -> str:
        """The first of these fields that holds a word; "" where none does."""
        for name in names:
            value = self.payload.get(name)
            if isinstance(value, str) and _TOKEN.fullmatch(value):
                return value
        return ""


@frozen
class Issuer:
    """Sends the issuer one request at a time. `seconds`: the longest wait for an answer.

    Every method blocks and raises RelayError. No error has a token or a code of what was sent.
    """

    transport: Transport
    base: str
    token_url: str
    seconds: float = 30.0

    def redeem(self, granted: AuthorizationCode) -> Tokens:
        """The tokens for a code. Raises UpstreamRefused where it is spent, expired or not this client's."""
        fields = {
            "grant_type": "authorization_code",
            "code": granted.code,
            "redirect_uri": granted.redirect_uri,
            "client_id": CLIENT_ID,
            "code_verifier": granted.verifier,
        }
        kind = "application/x-www-form-urlencoded"
        body = urlencode(fields).encode()
        reply = self._send(self.token_url, kind, body, fields.values())
        if not reply.is_ok:
            raise refusal(reply, "the sign-in")
        return parse_tokens(reply)

    def revoke(self, refresh_token: str) -> None:
        """End a sign-in at the issuer."""
        fields = {
            "token": refresh_token,
            "token_type_hint": "refresh_token",
            "client_id": CLIENT_ID,
        }
        seconds = min(REVOKE_SECONDS, self.seconds)
        reply = self.post(f"{self.base}/oauth/revoke", fields, seconds)
        if not reply.is_ok:
            raise refusal(reply, "to revoke the token")

    def post(
        self, url: str, fields: Mapping[str, str], seconds: float | None = None
    ) -> Reply:
        """Send a JSON object."""
        body = orjson.dumps(dict(fields))
        return self._send(url, "application/json", body, fields.values(), seconds)

    def _send(
        self,
        url: str,
        kind: str,
        body: bytes,
        sent: Iterable[str],
        seconds: float | None = None,
    ) -> Reply:
        headers = {
            "Content-Type": kind,
            "Accept": "application/json",
            "User-Agent": ORIGINATOR,
            "originator": ORIGINATOR,
        }
        call = Call("POST", url, headers, body)
        response = fetch(self.transport, call, seconds or self.seconds, LARGEST_REPLY)
        return read_reply(response, sent)


def read_reply(response: WholeResponse, sent: Iterable[str] = ()) -> Reply:
    """An answer of the issuer; `sent` is what its words must not repeat."""
    payload = parse_json(response.body)
    if not isinstance(payload, dict):
        payload = {}
    code, message = _read_error(payload, sorted(sent, key=len, reverse=True))
    headers = response.head.headers
    is_html = is_page(headers, response.body)
    return Reply(
        response.status,
        payload,
        code,
        message,
        retry_after(headers),
        is_html and response.status >= 400 and is_challenge(headers, response.body),
    )


def _read_error(payload: Mapping[str, Any], sent: list[str]) -> tuple[str, str]:
    """Code and message of {"error": "code", "error_description"} or {"error": {"code", "message"}}."""
    error = payload.get("error")
    nested = error if isinstance(error, dict) else {}
    codes = [error, nested.get("code"), payload.get("code"), nested.get("type")]
    code = next(filter(_is_code, codes), "")
    messages = [payload.get("error_description"), nested.get("message")]
    messages += [payload.get("message"), payload.get("detail")]
    message = next((each for each in messages if isinstance(each, str)), "")
    for secret in (each for each in sent if len(each) >= 8):
        message = message.replace(secret, "...")
        code = code.replace(secret, "...")
    line = "".join(each for each in redacted(message) if each.isprintable())
    return code, line


def _is_code(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and _CODE.fullmatch(value) is not None


def parse_tokens(reply: Reply) -> Tokens:
    """The tokens of an answer. Raises UpstreamFailed where they are not all there."""
    access_token = reply.text("access_token")
    refresh_token = reply.text("refresh_token")
    if not access_token or not refresh_token:
        missing = "refresh_token" if access_token else "access_token"
        raise UpstreamFailed(
            f"The issuer answered without {missing}. Sign in again; if it stays so, look at "
            "AUTH_BASE_URL and OAUTH_TOKEN_URL."
        )
    return Tokens(access_token, refresh_token, reply.text("id_token"))


def refusal(reply: Reply, subject: str) -> RelayError:
    """The error for an answer that refuses `subject`."""
    if reply.is_challenge:
        return Challenged(
            "The issuer wants a browser to solve something first: it does not trust the "
            "address of this machine. Sign in through PROXY_URL, or on another machine."
        )
    if is_not_entitled(reply):
        return not_entitled()
    if reply.status == 429:
        return RateLimited(
            "The issuer had too many requests from here. Try again later.",
            retry_after=reply.retry_after,
        )
    if reply.status >= 500:
        return UpstreamRefused(
            f"The issuer failed ({_reason(reply)}). Try again later.",
            status=reply.status,
        )
    if reply.is_ok or reply.status < 400:
        return UpstreamFailed(
            f"The issuer answered {subject} with what cannot be read. Look at "
            "AUTH_BASE_URL and OAUTH_TOKEN_URL."
        )
    return UpstreamRefused(
        f"The issuer refused {subject} ({_reason(reply)}). Begin again.",
        status=reply.status,
        quoted=reply.message,
    )


def is_not_entitled(reply: Reply) -> bool:
    """Whether a workspace does not let its members sign in here."""
    return NOT_ENTITLED in f"{reply.code} {reply.message}"


def not_entitled() -> UpstreamRefused:
    """The error for a workspace that does not let its members sign in here."""
    return UpstreamRefused(
        "This workspace has Codex switched off, and such a sign-in needs it. Ask its "
        f"admin to switch it on, or choose another workspace ({NOT_ENTITLED}).",
        status=403,
    )


def _reason(reply: Reply) -> str:
    words = [f"status {reply.status}", reply.code, reply.message]
    return ", ".join(word for word in words if word).rstrip(".")
