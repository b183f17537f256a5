"""The ChatGPT web backend, at a configurable reverse-proxy URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from relay.accounts import Account, AccountPool, Resting
from relay.domain import Caller, Model, Question
from relay.settings import Settings
from relay.transports import Transport
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.public import resolve_public
from relay.upstreams.addresses import check_setting
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.backend import Backend
from relay.upstreams.chatgpt_web.body import Extras, place
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.cookies import CookieTransport
from relay.upstreams.chatgpt_web.forward import ChatGPTGateway
from relay.upstreams.chatgpt_web.history import WebHistory
from relay.upstreams.chatgpt_web.procedure import WebProcedure
from relay.upstreams.http import HttpSession, Limits, fetch
from relay.upstreams.listing import Models, list_with, parse_models

TOKEN_RENEWAL = (
    ": it expired or is invalid; ChatGPT shows a new one at "
    "https://chatgpt.com/api/auth/session"
)


def open_upstream(settings: Settings, transport: Transport) -> ChatGPTWeb:
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
    accounts = Account.of_setting("ACCESS_TOKEN", settings.access_token, TOKEN_RENEWAL)
    backend = Backend(
        transport=CookieTransport(transport),
        places=tuple(place(at, settings.conversation_path) for at in addresses),
        pool=AccountPool(accounts),
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
    storage = storage_transport(settings, transport)
    return ChatGPTWeb(backend, settings.read_timeout, storage)


def storage_transport(settings: Settings, transport: Transport) -> Transport:
    """What reaches the storage that the backend names: where no proxy dials, public addresses alone."""
    if settings.proxy_url:
        return transport
    dialer = DirectDialer(settings.connect_timeout, resolve_public)
    return DirectTransport(dialer, idle_seconds=0.0)


class ChatGPTWeb:
    """Asks ChatGPT, which stores its conversations itself.

    `seconds`: the longest wait for its history, and for its list of models. `storage`: what reaches
    the hosts that it names for files.
    """

    name = "chatgpt-web"
    accepts_caller_tokens = True
    stores_conversations = True
    accepts_options = False
    has_responses = False
    forwarder = None

    def __init__(
        self,
        backend: Backend,
        seconds: float = 60.0,
        storage: Transport | None = None,
    ) -> None:
        self._backend = backend
        self._seconds = seconds
        self.needs_client_key = len(backend.pool) > 0
        self.history = WebHistory(backend, seconds, storage)
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
        url = f"{self._backend.place_for(None).base}/models"
        call = self._backend.call(account, "GET", url, own=own)
        largest = self._backend.limits.answer
        response = fetch(self._backend.transport, call, self._seconds, largest)
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
