"""A ChatGPT web backend and how to reach it: what does not change from ask to ask."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from relay.accounts import (
    AccessTokens,
    Account,
    AccountPool,
    Attempts,
    SignIn,
    is_chatgpt_token,
    is_refresh_token,
)
from relay.domain import Question
from relay.errors import BadRequest, Forbidden, Unauthorized
from relay.transports import Transport
from relay.upstreams.chatgpt_web import body
from relay.upstreams.chatgpt_web.body import Extras, Place
from relay.upstreams.chatgpt_web.cookies import (
    CookieCall,
    Jar,
    Jars,
    origin_of,
    with_cookies,
)
from relay.upstreams.http import Limits


@dataclass(frozen=True)
class Backend:
    """Where the backend is, whose accounts there are, and what is added to every request.

    `places`: addresses that are used in turn. `allowed`: addresses that a caller may name instead.
    `path`: that of a turn below a caller's address. `retries`: other accounts tried after a
    refusal. `any_token`: callers' tokens may have any form. `poll_seconds`: between two looks for
    an answer that was handed off. `tokens`: of accounts with a refresh token; None: there are none.
    """

    transport: Transport
    places: tuple[Place, ...]
    pool: AccountPool
    allowed: tuple[str, ...] = ()
    path: str = "conversation"
    extras: Extras = Extras()
    retries: int = 3
    limits: Limits = Limits()
    poll_seconds: float = 5.0
    any_token: bool = False
    tokens: AccessTokens | None = field(default=None, repr=False)
    turns: Iterator[int] = field(default_factory=itertools.count, repr=False)
    jars: Jars = field(default_factory=Jars, repr=False)

    def recognizes(self, token: str) -> bool:
        """Whether this has the form of ChatGPT's tokens; a reverse proxy may give out others."""
        if is_refresh_token(token):
            return self.tokens is not None
        return is_chatgpt_token(token) or (
            self.any_token and not token.startswith("sk-")
        )

    def account_of(self, token: str) -> Account:
        """The account of a caller's own token. Raises BadRequest for what is no access token."""
        if not self.recognizes(token):
            raise BadRequest(
                "That is no access token of ChatGPT's, where this conversation lives: "
                "leave it out."
            )
        if is_refresh_token(token):
            return Account.of_sign_in(SignIn.of(token, "caller"))
        return Account.of(token)

    def place_for(self, requested: str | None) -> Place:
        """The configured place, or the one that a caller names. Raises Forbidden for one not allowed."""
        if not requested:
            return self.places[next(self.turns) % len(self.places)]
        address = requested.strip()
        if not any(_covers(entry, address) for entry in self.allowed):
            raise Forbidden(
                "That reverse_proxy does not stand in REVERSE_PROXY_ALLOW, so no token "
                "is sent there."
            )
        try:
            return body.place(address, self.path)
        except ValueError as error:
            raise Forbidden(f"reverse_proxy cannot be used: {error}.") from None

    def call(
        self,
        account: Account,
        method: str,
        url: str,
        content: bytes = b"",
        *,
        own: bool,
        request_id: str = "",
        stream: bool = False,
    ) -> CookieCall:
        """A request with the account's token and cookies. `own`: the token is the caller's, and has none."""
        jar = None if own else self._jar(account, url)
        stated = body.headers(
            account.token, self.extras, request_id, own=own, stream=stream
        )
        headers = with_cookies(stated, jar, url)
        if content:
            headers["Content-Type"] = "application/json"
        return CookieCall(method, url, headers, content, jar=jar)

    def _jar(self, account: Account, url: str) -> Jar | None:
        """The account's cookies at a configured origin; None for an address that a caller named."""
        origin = origin_of(url)
        if all(origin_of(place.base) != origin for place in self.places):
            return None
        return self.jars.jar(account.name, origin)

    def candidates(
        self, token: str | None, account: str | None
    ) -> tuple[AccountPool, tuple[Account, ...]]:
        """The accounts that may be used: the caller's own alone, the conversation's alone, or all in turn."""
        if token:
            own = self.account_of(token)
            return AccountPool((own,), tokens=self.tokens), (own,)
        if not len(self.pool):
            raise Unauthorized(
                "This service has no access token of its own: send yours in the field "
                "access_token."
            )
        if account:
            return self.pool, self.pool.only(account)
        return self.pool, self.pool.in_turn()

    def attempts(self, question: Question) -> Attempts:
        pool, accounts = self.candidates(question.token, question.account)
        return Attempts(pool, accounts, 0 if question.token else self.retries)


def _covers(entry: str, address: str) -> bool:
    """Whether an entry of the allow-list is the address itself, or its origin without a path."""
    origin = entry.rstrip("/")
    is_origin = origin.count("/") == 2
    return address == entry or (is_origin and f"{address}/".startswith(f"{origin}/"))
