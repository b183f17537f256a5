"""The ChatGPT web backend, at a configurable reverse-proxy URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from relay.accounts import (
    AccessTokens,
    Account,
    AccountPool,
    Resting,
    SignIn,
    is_refresh_token,
)
from relay.domain import Caller, Model, Question
from relay.settings import Settings
from relay.transports import Transport
from relay.upstreams.addresses import check_setting
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.backend import Backend
from relay.upstreams.chatgpt_web.body import Extras, place
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.cookies import CookieTransport
from relay.upstreams.chatgpt_web.forward import ChatGPTGateway
from relay.upstreams.chatgpt_web.history import WebHistory
from relay.upstreams.chatgpt_web.lookups import Lookup, look_up
from relay.upstreams.chatgpt_web.procedure import WebProcedure
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


def open_upstream(
    settings: Settings,
    transport: Transport,
    tokens: AccessTokens | None = None,
    signed_in: Sequence[SignIn] = (),
) -> ChatGPTWeb:
    """ChatGPT as the settings describe it; it is always there, for callers with a token of their own.

    `tokens`: of accounts with a refresh token; without it none is taken. `signed_in`: the accounts of the
    command `login`. Raises SettingsError for an address that cannot be used.
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
    accounts = accounts_for(settings, signed_in)
    backend = Backend(
        transport=CookieTransport(transport),
        places=tuple(place(at, settings.conversation_path) for at in addresses),
        pool=AccountPool(accounts, tokens=tokens),
        tokens=tokens,
        allowed=allowed,
        path=settings.conversation_path,
        extras=Extras(settings.chatgpt_headers, settings.chatgpt_body),
        retries=settings.retry_times,
        any_token=settings.allow_caller_tokens == "any",
        limits=Limits(
            settings.account_concurrency,
            min(settings.first_byte_timeout, settings.total_timeout),
            settings.max_answer,
        ),
    )
    return ChatGPTWeb(backend, settings.read_timeout)


def accounts_for(
    settings: Settings, signed_in: Sequence[SignIn] = ()
) -> tuple[Account, ...]:
    """The server's accounts: those of ACCESS_TOKEN, then those that signed in."""
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
    return tuple(
        replace(a, renewal=SIGN_IN_AGAIN) if a.sign_in else a for a in accounts
    )


class ChatGPTWeb:
    """Asks ChatGPT, which stores its conversations itself.

    `seconds`: the longest wait for its history, and for its list of models.
    """

    name = "chatgpt-web"
    accepts_caller_tokens = True
    stores_conversations = True
    accepts_options = False
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
