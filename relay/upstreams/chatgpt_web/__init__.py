"""The ChatGPT web backend, at a configurable reverse-proxy URL."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from relay.accounts import (
    Account,
    AccountPool,
    Resting,
    SignIn,
    is_refresh_token,
)
from relay.domain import Caller, Model, Question
from relay.server import Run
from relay.settings import Settings
from relay.transports import Call, Transport
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.public import resolve_public
from relay.upstreams import Resources
from relay.upstreams.addresses import check_setting
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.backend import (
    Backend,
    anonymous_account,
    is_anonymous,
)
from relay.upstreams.chatgpt_web.body import Extras, Place, place
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.cookies import CookieTransport
from relay.upstreams.chatgpt_web.forward import ChatGPTGateway
from relay.upstreams.chatgpt_web.gateways import FailoverTransport, GatewayMemory
from relay.upstreams.chatgpt_web.history import WebHistory
from relay.upstreams.chatgpt_web.lookups import Lookup, look_up
from relay.upstreams.chatgpt_web.procedure import WebProcedure
from relay.upstreams.chatgpt_web.routes import RoutedTransport
from relay.upstreams.chatgpt_web.sentinel import ArkoseCall, PreflightRules
from relay.upstreams.chatgpt_web.storage import StorageCall
from relay.upstreams.http import HttpSession, Limits
from relay.upstreams.listing import Models, list_with, parse_models

TOKEN_RENEWAL = (
    ": it expired or is invalid; ChatGPT shows a new one at "
    "https://chatgpt.com/api/auth/session"
)
SIGN_IN_AGAIN = (
    ": its refresh token gets no access token that is accepted. Sign in again: python3 "
    "chatgpt_webapi.py login, or put a new token into ACCESS_TOKEN"
)


def open_upstream(settings: Settings, resources: Resources) -> ChatGPTWeb:
    """ChatGPT as the settings describe it; it is always there, for callers with a token of their own.

    Raises SettingsError for an address that cannot be used.
    """
    addresses = settings.chatgpt_base_url
    name = "CHATGPT_BASE_URL"
    allowed = settings.reverse_proxy_allow
    if settings.reverse_proxy:
        addresses = (settings.reverse_proxy,)
        name = "REVERSE_PROXY"
        allowed = allowed or (settings.reverse_proxy,)
    for address in addresses:
        check_setting(name, address)
    if settings.arkose_token_url:
        check_setting("ARKOSE_TOKEN_URL", settings.arkose_token_url)
    accounts = accounts_for(settings, resources.signed_in)
    memory = GatewayMemory()
    backend = Backend(
        transport=transport_for(settings, resources.transport, memory),
        places=places_of(settings),
        pool=AccountPool(accounts, tokens=resources.tokens),
        tokens=resources.tokens,
        memory=memory,
        auth_key=settings.auth_key,
        device_id=str(uuid.uuid4()) if any(map(is_anonymous, accounts)) else "",
        preflight=preflight_of(settings, resources.run),
        allowed=allowed,
        path=settings.conversation_path,
        extras=Extras(
            settings.chatgpt_headers, settings.chatgpt_body, settings.user_agents
        ),
        retries=settings.retry_times,
        any_token=settings.allow_caller_tokens == "any",
        limits=limits_of(settings),
    )
    return ChatGPTWeb(backend, settings.read_timeout)


def transport_for(
    settings: Settings, transport: Transport, memory: GatewayMemory
) -> Transport:
    """`transport` with what ChatGPT's requests need: gateways in turn, cookies, other ways for what is not its own."""
    seconds = settings.connect_timeout
    # without idle connections there is nothing to close
    direct = DirectTransport(DirectDialer(seconds), idle_seconds=0.0)
    routes: dict[type[Call], Transport] = {ArkoseCall: direct}
    if not settings.proxy_url:  # which would look names up where we cannot see it
        dialer = DirectDialer(seconds, resolve=resolve_public)
        routes[StorageCall] = DirectTransport(dialer, idle_seconds=0.0)
    return FailoverTransport(
        CookieTransport(RoutedTransport(transport, routes)), memory
    )


def limits_of(settings: Settings) -> Limits:
    return Limits(
        settings.account_concurrency,
        min(settings.first_byte_timeout, settings.total_timeout),
        settings.max_answer,
    )


def places_of(settings: Settings) -> tuple[Place, ...]:
    """Where ChatGPT is, as the settings say. Raises ValueError for an address that cannot be used."""
    addresses = settings.chatgpt_base_url
    if settings.reverse_proxy:
        addresses = (settings.reverse_proxy,)
    return tuple(place(each, settings.conversation_path) for each in addresses)


def accounts_for(
    settings: Settings, signed_in: Sequence[SignIn] = ()
) -> tuple[Account, ...]:
    """The server's accounts: those of ACCESS_TOKEN, then those that signed in.

    Without any, that of who has none, where UPSTREAM asks for it.
    """
    accounts = []
    given = Account.of_setting("ACCESS_TOKEN", settings.access_token, TOKEN_RENEWAL)
    for account in given:
        if is_refresh_token(account.token):
            sign_in = SignIn.of(account.token, "setting")
            account = Account.of_sign_in(sign_in, account.label)
        accounts.append(account)
    known = {account.sign_in.id for account in accounts if account.sign_in}
    for sign_in in signed_in:
        if sign_in.id not in known:
            accounts.append(Account.of_sign_in(sign_in, "The account of login"))
    if not accounts and may_ask_without_account(settings):
        accounts.append(anonymous_account())
    return tuple(
        replace(a, renewal=SIGN_IN_AGAIN) if a.sign_in else a for a in accounts
    )


def may_ask_without_account(settings: Settings) -> bool:
    """Whether ChatGPT may be asked without an account: UPSTREAM names it, and there is no proxy."""
    if settings.upstream != "chatgpt-web" or settings.reverse_proxy:
        return False
    return all(place.anonymous is not None for place in places_of(settings))


def preflight_of(settings: Settings, run: Run) -> PreflightRules | None:
    """What is asked before a question; None where a proxy takes care of it, or the settings leave it out."""
    if settings.conversation_only or settings.reverse_proxy:
        return None
    return PreflightRules(settings.pow_difficulty, settings.arkose_token_url, run)


class ChatGPTWeb:
    """Asks ChatGPT, which stores its conversations itself.

    `seconds`: the longest wait for its history, and for its list of models.
    """

    name = "chatgpt-web"
    accepts_caller_tokens = True
    stores_conversations = True
    accepts_options = False
    accepts_files = True
    has_responses = False
    forwarder = None

    def __init__(self, backend: Backend, seconds: float = 60.0) -> None:
        self._backend = backend
        self._seconds = seconds
        self.needs_client_key = len(backend.pool) > 0
        self.history = WebHistory(backend, seconds)
        self.gateway = ChatGPTGateway(backend)

    def recognizes(self, token: str) -> bool:
        return self._backend.recognizes(token)

    def resting(self) -> Sequence[Resting]:
        return self._backend.pool.resting()

    def models(self, caller: Caller) -> Sequence[Model]:
        _, accounts = self._backend.candidates(caller.token, None)
        own = bool(caller.token)
        tried = accounts[: self._backend.retries + 1]
        return list_with(tried, lambda account: self._list_models(account, own))

    def _list_models(self, account: Account, own: bool) -> Models:
        """The models of one account. `own`: its token is the caller's."""
        lookup = Lookup("GET", "models", own)
        response = look_up(self._backend, account, lookup, self._seconds)
        if response.status != 200:
            raise failures.from_response(
                response.status, response.head.headers, response.redacted
            )
        return parse_models(response, self.name, "models", "slug", "title")

    def ask(self, question: Question) -> tuple[HttpSession, WebDecoder]:
        backend = self._backend
        known = {question.parent_id, question.question_id} - {None, ""}
        decoder = WebDecoder(question.conversation_id, frozenset(map(str, known)))
        limits = backend.limits
        if question.timeout:
            patience = min(limits.patience, question.timeout)
            limits = replace(limits, patience=patience)
        session = HttpSession(
            backend.transport,
            WebProcedure(backend, question, decoder),
            backend.pool,
            backend.attempts(question),
            limits,
        )
        return session, decoder
