"""The ChatGPT web backend, at a configurable reverse-proxy URL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from relay.accounts import (
    Account,
    AccountPool,
    Rest,
    Resting,
    Scope,
    SignIn,
    is_refresh_token,
    join_token,
    may_be_chatgpt_token,
)
from relay.domain import Caller, Model, Question
from relay.ids import new_id
from relay.server import Run
from relay.settings import Settings
from relay.transports import Call, Transport
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.public import resolve_public
from relay.upstreams import Resources
from relay.upstreams.addresses import check_setting
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.backend import Backend, anonymous_account
from relay.upstreams.chatgpt_web.body import Extras, Place, place
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.cookies import CookieTransport
from relay.upstreams.chatgpt_web.forward import ChatGPTGateway
from relay.upstreams.chatgpt_web.gateways import FailoverTransport, GatewayMemory
from relay.upstreams.chatgpt_web.history import WebHistory
from relay.upstreams.chatgpt_web.lookups import Lookup, look_up
from relay.upstreams.chatgpt_web.models import choose_model
from relay.upstreams.chatgpt_web.procedure import WebProcedure
from relay.upstreams.chatgpt_web.routes import RoutedTransport
from relay.upstreams.chatgpt_web.sentinel import ArkoseCall, PreflightRules
from relay.upstreams.chatgpt_web.storage import StorageCall
from relay.upstreams.http import HttpSession, Limits
from relay.upstreams.listing import Models, list_of_all, parse_models

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
    name = "REVERSE_PROXY" if settings.reverse_proxy else "CHATGPT_BASE_URL"
    allowed = settings.reverse_proxy_allow
    if settings.reverse_proxy:
        allowed = allowed or (settings.reverse_proxy,)
    for address in settings.chatgpt_addresses:
        check_setting(name, address)
    if settings.arkose_token_url:
        check_setting("ARKOSE_TOKEN_URL", settings.arkose_token_url)
    memory = GatewayMemory()
    backend = Backend(
        transport=transport_for(settings, resources.transport, memory),
        places=places_of(settings),
        pool=pool_of(settings, resources),
        tokens=resources.tokens,
        memory=memory,
        auth_key=settings.auth_key,
        device_id=new_id(),
        limits_models=settings.enable_limit,
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
    return ChatGPTWeb(
        backend,
        settings.read_timeout,
        lambda: accounts_for(settings, resources.stored()),
    )


def pool_of(settings: Settings, resources: Resources) -> AccountPool:
    return AccountPool(
        accounts_for(settings, resources.stored()),
        tokens=resources.tokens,
        notes=resources.notes,
        remembers_limits=settings.enable_limit,
    )


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
    path = settings.conversation_path
    return tuple(place(each, path) for each in settings.chatgpt_addresses)


def accounts_for(
    settings: Settings, stored: Sequence[Account] = ()
) -> tuple[Account, ...]:
    """The server's accounts: those of ACCESS_TOKEN, then those that the database has.

    Without any, that of who has none, where UPSTREAM asks for it.
    """
    accounts = []
    words = map(_with_workspace, settings.access_token)
    given = Account.of_setting("ACCESS_TOKEN", words, TOKEN_RENEWAL)
    for account in given:
        if is_refresh_token(account.token):
            sign_in = SignIn.of(account.token, "setting")
            label, workspace = account.label, account.workspace
            account = Account.of_sign_in(sign_in, label, workspace)
        accounts.append(account)
    known = set(map(_identity, accounts))
    accounts += [account for account in stored if _identity(account) not in known]
    if not accounts and may_ask_without_account(settings):
        return (anonymous_account(),)
    return tuple(
        replace(account, renewal=SIGN_IN_AGAIN if account.sign_in else TOKEN_RENEWAL)
        for account in accounts
    )


def _identity(account: Account) -> str:
    return account.sign_in.id if account.sign_in else account.token


def _with_workspace(word: str) -> str:
    """A token of ACCESS_TOKEN, where commas divide, so that a workspace follows a colon."""
    token, colon, workspace = word.rpartition(":")
    is_token = colon and may_be_chatgpt_token(token)
    return join_token(token, workspace) if is_token else word


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

    `seconds`: the longest wait for its history, and for its list of models. `accounts`: the server's,
    as they are now.
    """

    name = "chatgpt-web"
    accepts_caller_tokens = True
    stores_conversations = True
    accepts_options = False
    accepts_files = True
    has_responses = False
    forwarder = None

    def __init__(
        self,
        backend: Backend,
        seconds: float = 60.0,
        accounts: Callable[[], tuple[Account, ...]] | None = None,
    ) -> None:
        self._backend = backend
        self._seconds = seconds
        self._accounts = accounts
        self.history = WebHistory(backend, seconds)
        self.gateway = ChatGPTGateway(backend)

    def recognizes(self, token: str) -> bool:
        return self._backend.recognizes(token)

    def listed_model(self, name: str) -> str:
        choice = choose_model(name)
        return "" if choice.gpt else choice.slug

    @property
    def needs_client_key(self) -> bool:
        return len(self._backend.pool) > 0

    @property
    def sign_ins(self) -> tuple[SignIn, ...]:
        """The refresh tokens of the server's accounts."""
        signed = (account.sign_in for account in self._backend.pool.accounts)
        return tuple(dict.fromkeys(each for each in signed if each is not None))

    def take_accounts(self) -> None:
        """Ask with the accounts that there are now."""
        if self._accounts is not None:
            self._backend.pool.replace(self._accounts())

    def take_rests(self, rests: Mapping[Scope, Rest], own: Collection[Scope]) -> None:
        """See `relay.accounts.AccountPool.take_rests`."""
        self._backend.pool.take_rests(rests, own)

    def resting(self) -> Sequence[Resting]:
        return self._backend.pool.resting()

    def models(self, caller: Caller) -> Sequence[Model]:
        """Those of the caller's own account, or of all of the server's together, each once."""
        _, accounts = self._backend.candidates(caller.token, None)
        own = bool(caller.token)
        return list_of_all(accounts, lambda account: self._list_models(account, own))

    def _list_models(self, account: Account, own: bool) -> Models:
        """The models of one account. `own`: its token is the caller's."""
        lookup = Lookup("GET", "models", own)
        response = look_up(self._backend, account, lookup, self._seconds)
        if response.status != 200:
            raise failures.from_response(
                response.status, response.head.headers, response.redacted
            )
        models = parse_models(response, self.name, "models", "slug", "title")
        self._backend.models.learn(account.name, [model.id for model in models])
        return models

    def ask(self, question: Question) -> tuple[HttpSession, WebDecoder]:
        backend = self._backend
        known = tuple(filter(None, (question.parent_id, question.question_id)))
        decoder = WebDecoder(question.conversation_id, known)
        limits = backend.limits
        if question.timeout:
            patience = min(limits.patience, question.timeout)
            limits = replace(limits, patience=patience)
        choice = choose_model(question.model)
        session = HttpSession(
            backend.transport,
            WebProcedure(backend, question, decoder, choice),
            backend.pool,
            backend.attempts(question, choice),
            limits,
        )
        return session, decoder
