"""A ChatGPT web backend and how to reach it: what does not change from ask to ask."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import field

from relay.accounts import (
    AccessTokens,
    Account,
    AccountPool,
    Attempts,
    SignIn,
    is_chatgpt_token,
    is_refresh_token,
    split_token,
)
from relay.domain import Question
from relay.errors import BadRequest, Challenged, Forbidden, Unauthorized
from relay.transports import Transport
from relay.upstreams.chatgpt_web import body
from relay.upstreams.chatgpt_web.body import Extras, Place
from relay.upstreams.chatgpt_web.cookies import Jar, Jars, origin_of, with_cookies
from relay.upstreams.chatgpt_web.gateways import GatewayCall, GatewayMemory
from relay.upstreams.chatgpt_web.models import ModelChoice, ModelLists
from relay.upstreams.chatgpt_web.recent import Recent
from relay.upstreams.chatgpt_web.sentinel import CHALLENGED_SECONDS, PreflightRules
from relay.upstreams.http import Limits
from relay.values import changed, frozen

ANONYMOUS_NAME = "anonymous-device"


@frozen
class Backend:
    """Where the backend is, whose accounts there are, and what is added to every request.

    `places`: addresses of the same ChatGPT, used in turn. `allowed`: addresses that a caller may
    name instead. `path`: that of a turn below a caller's address. `retries`: other accounts tried
    after a refusal. `any_token`: callers' tokens may have any form. `poll_seconds`: between two
    looks for an answer that was handed off. `tokens`: of accounts with a refresh token; None: there
    are none. `auth_key`: that of a private gateway. `device_id`: who asks without an account, where
    that is what the pool has. `preflight`: what is asked before a question; None where nothing is.
    `limits_models`: a model's limit leaves the account's other models.
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
    auth_key: str = field(default="", repr=False)
    device_id: str = ""
    limits_models: bool = True
    preflight: PreflightRules | None = None
    turns: Iterator[int] = field(default_factory=itertools.count, repr=False)
    jars: Jars = field(default_factory=Jars, repr=False)
    models: ModelLists = field(default_factory=ModelLists, repr=False)
    memory: GatewayMemory = field(default_factory=GatewayMemory, repr=False)
    challenged: Recent = field(
        default_factory=lambda: Recent(CHALLENGED_SECONDS), repr=False
    )

    @property
    def is_anonymous(self) -> bool:
        """Whether the server asks without an account."""
        return any(map(is_anonymous, self.pool.accounts))

    def recognizes(self, token: str) -> bool:
        """Whether this has the form of ChatGPT's tokens; a reverse proxy may give out others.

        A token may stand before the workspace that it asks in: see `relay.accounts.split_token`.
        """
        token, _ = split_token(token)
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
        given, workspace = split_token(token)
        if is_refresh_token(given):
            sign_in = SignIn.of(given, "caller")
            return Account.of_sign_in(sign_in, workspace=workspace)
        return Account.of(token)

    def places_for(self, requested: str | None) -> tuple[Place, ...]:
        """The configured places, whose turn it is first, or the one that a caller names alone.

        Raises Forbidden for one not allowed.
        """
        if not requested:
            first = next(self.turns) % len(self.places)
            return self.places[first:] + self.places[:first]
        address = requested.strip()
        if not any(_covers(entry, address) for entry in self.allowed):
            raise Forbidden(
                "That reverse_proxy does not stand in REVERSE_PROXY_ALLOW, so no token "
                "is sent there."
            )
        try:
            return (body.place(address, self.path),)
        except ValueError as error:
            raise Forbidden(f"reverse_proxy cannot be used: {error}.") from None

    def call(
        self,
        account: Account,
        method: str,
        address: Callable[[Place], str],
        content: bytes = b"",
        *,
        own: bool,
        places: tuple[Place, ...] = (),
        request_id: str = "",
        stream: bool = False,
    ) -> GatewayCall:
        """A request with the account's token and cookies. `own`: the token is the caller's, and has none.

        `address`: where it goes at a place. `places`: to be tried in this order; empty: the configured ones.
        """
        stated = body.headers(account, self.extras, request_id, own=own, stream=stream)
        if content:
            stated["Content-Type"] = "application/json"
        calls = [
            self._call_at(place, account, method, address, content, stated, own)
            for place in places or self.places_for(None)
        ]
        first, *others = calls
        return changed(first, others=tuple(others)) if others else first

    def _call_at(
        self,
        place: Place,
        account: Account,
        method: str,
        address: Callable[[Place], str],
        content: bytes,
        stated: dict[str, str],
        own: bool,
    ) -> GatewayCall:
        base, headers = place.base, stated
        if self.auth_key and not own and place in self.places:
            headers = {**headers, "Authkey": self.auth_key}
        if is_anonymous(account):
            place = self._anonymous_place(place)
            headers = with_device(headers, self.device_id)
        url = address(place)
        jar = None if own else self._jar(account, place)
        headers = with_cookies(headers, jar, url)
        return GatewayCall(method, url, headers, content, jar=jar, base=base)

    def _anonymous_place(self, place: Place) -> Place:
        if place.anonymous is None:
            raise Unauthorized(
                "ChatGPT is asked without an account at its own address alone: send an "
                "access token of yours in the field access_token."
            )
        return place.anonymous

    def check_challenged(self, account: Account) -> None:
        """Raise Challenged where a browser was demanded of this caller's own token a short while ago."""
        left = self.challenged.left(token_hash(account))
        if left > 0:
            raise Challenged(retry_after=max(1, round(left)))

    def note_challenged(self, account: Account) -> None:
        self.challenged.note(token_hash(account))

    def _jar(self, account: Account, place: Place) -> Jar | None:
        """The account's cookies at a configured origin; None for an address that a caller named."""
        origin = origin_of(place.base)
        is_configured = place in self.places or origin in map(
            origin_of, (each.base for each in self.places)
        )
        return self.jars.jar(account.name, origin) if is_configured else None

    def candidates(
        self, token: str | None, account: str | None
    ) -> tuple[AccountPool, tuple[Account, ...]]:
        """The accounts that may be used: the caller's own alone, the conversation's alone, or all in turn."""
        if token:
            own = self.account_of(token)
            return AccountPool((own,), tokens=self.tokens), (own,)
        if not len(self.pool):
            raise Unauthorized(
                "This service has no access token of its own: send yours as the header "
                "'Authorization: Bearer TOKEN', or in the field access_token of a form."
            )
        if account:
            return self.pool, self.pool.only(account)
        return self.pool, self.pool.in_turn()

    def attempts(self, question: Question, choice: ModelChoice) -> Attempts:
        pool, accounts = self.candidates(question.token, question.account)
        if len(accounts) > 1:
            accounts = self.models.in_order(accounts, choice.slug)
        retries = 0 if question.token else self.retries
        return Attempts(pool, accounts, retries, self.limited_model(choice))

    def limited_model(self, choice: ModelChoice) -> str:
        """The model that limits are per; "" where they hold whatever the model."""
        return choice.slug if self.limits_models else ""


def anonymous_account() -> Account:
    """The account of those who ask without one: its session is known by its device id."""
    return Account(ANONYMOUS_NAME, "", label="ChatGPT without an account")


def is_anonymous(account: Account) -> bool:
    return account.name == ANONYMOUS_NAME


def with_device(headers: dict[str, str], device_id: str) -> dict[str, str]:
    """Headers with the id of a device, in both ways that the backend asks for."""
    stated = [name for name in headers if name.lower() == "cookie"]
    others = {name: headers[name] for name in headers if name not in stated}
    cookies = [headers[name] for name in stated] + [f"oai-did={device_id}"]
    return others | {"Cookie": "; ".join(cookies), "Oai-Device-Id": device_id}


def token_hash(account: Account) -> str:
    """Of a caller's token itself: what it claims to be is not proven."""
    token = account.token.encode("utf-8", "surrogateescape")
    return hashlib.sha256(token).hexdigest()


def _covers(entry: str, address: str) -> bool:
    """Whether an entry of the allow-list is the address itself, or its origin without a path."""
    origin = entry.rstrip("/")
    is_origin = origin.count("/") == 2
    return address == entry or (is_origin and f"{address}/".startswith(f"{origin}/"))
