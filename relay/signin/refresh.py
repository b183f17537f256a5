"""The exchange of a refresh token for an access token: one request to the token server, and what its answer means.

Source: protocol notes, refresh token -> access token, and those on signing in with a plan, 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit

import orjson

from relay.errors import NotRenewed, RelayError
from relay.transports import Call, Transport
from relay.upstreams.http import WholeResponse, fetch
from relay.upstreams.wording import is_page, parse_json, retry_after
from relay.values import frozen

EXCHANGE_SECONDS = 30.0
LARGEST_ANSWER = 256 * 1024
LONGEST_TOKEN = 16 * 1024
CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"
SCOPE = "openid profile email offline_access"
#: the token server of 2023 and 2024, and its client
AUTH0_HOST = "auth0.openai.com"
AUTH0_CLIENT_ID = "pdlLIX2Y72MIl2rhLhTE9VV9bN905kBh"
AUTH0_REDIRECT = (
    "com.openai.chat://auth0.openai.com/ios/com.openai.chat/callback"  # of that client
)
REUSED = "refresh_token_reused"
#: after which no exchange succeeds any more; every 401 is one as well
_DEAD_CODE = re.compile(
    r"refresh_token_(expired|reused|invalidated)|invalid_grant|access_denied|"
    r"token_invalidated|token_expired|app_session_terminated|account_[a-z_]{1,40}"
)
OTHER_REFUSAL = "refused_with_401"


@frozen
class Renewed:
    """`refresh_token`: the one that is to be used next; None: the same. `lifetime`: seconds, where it is stated."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    lifetime: float | None = None


@frozen
class Dead:
    """The refresh token gets no access token any more, by the server's code."""

    code: str


Outcome: TypeAlias = Renewed | Dead


class TokenServer:
    """Exchanges refresh tokens at `url`. No redirect is followed: tokens go nowhere else."""

    def __init__(
        self, transport: Transport, url: str, seconds: float = EXCHANGE_SECONDS
    ) -> None:
        self._transport = transport
        self._url = url
        self._seconds = seconds

    def exchange(self, refresh_token: str) -> Outcome:
        """Blocks. Raises NotRenewed for what may be tried again; see `may_be_used_up` there."""
        call = _request(self._url, refresh_token)
        try:
            response = fetch(self._transport, call, self._seconds, LARGEST_ANSWER)
        except RelayError as error:
            was_sent = error.may_have_been_sent
            what = (
                "broke off its answer, or was silent" if was_sent else "was not reached"
            )
            raise _failure(what, was_sent) from error
        return parse_outcome(response)


def _request(url: str, refresh_token: str) -> Call:
    if urlsplit(url).hostname == AUTH0_HOST:
        fields = {
            "client_id": AUTH0_CLIENT_ID,
            "grant_type": "refresh_token",
            "redirect_uri": AUTH0_REDIRECT,
            "refresh_token": refresh_token,
        }
        return _post(url, "application/json", orjson.dumps(fields))
    fields = {
        "grant_type": "refresh_token",
        "client_id": CLIENT_ID,
        "refresh_token": refresh_token,
        "scope": SCOPE,
    }
    return _post(url, "application/x-www-form-urlencoded", urlencode(fields).encode())


def _post(url: str, kind: str, body: bytes) -> Call:
    headers = {
        "User-Agent": "chatgpt-webapi",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": kind,
    }
    return Call("POST", url, headers, body)


def parse_outcome(response: WholeResponse) -> Outcome:
    """What an answer means. Raises NotRenewed, whose message quotes nothing of it."""
    payload = parse_json(response.body)
    status = response.status
    if status == 200:
        return _renewed(payload)
    if 400 <= status < 500:
        for code in _codes(payload):
            if _DEAD_CODE.fullmatch(code):
                return Dead(code)
        if status == 401 and not is_page(response.head.headers, response.body):
            return Dead(OTHER_REFUSAL)
    wait = retry_after(response.head.headers)
    # a server that failed may have used the token up first
    raise _failure(f"answered {status}", status >= 500, wait)


def _renewed(payload: Any) -> Renewed:
    fields = payload if isinstance(payload, dict) else {}
    access_token = _token(fields.get("access_token"))
    if access_token is None:
        raise _failure("answered 200 without an access token", True)
    return Renewed(
        access_token,
        _token(fields.get("refresh_token")),
        _seconds(fields.get("expires_in")),
    )


def _seconds(value: Any) -> float | None:
    if isinstance(value, (int, float)) and 0 < value < 10**8:
        return float(value)
    return None


def _token(value: Any) -> str | None:
    """A text that a header can carry as a token; None for anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TOKEN:
        return None
    is_sendable = all("!" <= character <= "~" for character in value)
    return value if is_sendable else None


def _codes(payload: Any) -> Iterator[str]:
    """Where an error's code may stand: `error.code`, `error` as text, `code`."""
    fields = payload if isinstance(payload, dict) else {}
    for error in (fields.get("error"), fields.get("detail"), fields):
        code = error.get("code") if isinstance(error, dict) else error
        if isinstance(code, str):
            yield code


def _failure(what: str, may_be_used_up: bool, wait: int | None = None) -> NotRenewed:
    return NotRenewed(
        f"The account's access token could not be renewed: the token server {what}. "
        "Try again soon.",
        retry_after=wait,
        may_be_used_up=may_be_used_up,
    )
