"""What the service is made of: everything is built here, once, from the settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from relay.access import OPEN, Access, Key, first_key, parse_keys
from relay.account_watch import AccountWatch, RestOutbox
from relay.accounts import Account, Resting, RestNotes
from relay.chat import Chat, Routing
from relay.conversations import Conversations
from relay.database import check_private
from relay.delivery import Background, Clocks
from relay.domain import Caller, Model, UsageQuery, UsageRow
from relay.downloads import Links, secret_of
from relay.links import LinkedFiles
from relay.memory import BodyMemory
from relay.models import ModelCatalog
from relay.newcomers import Newcomers
from relay.pool import Pool
from relay.rest_store import RestStore
from relay.server import Run, Server
from relay.server_accounts import ServerAccounts
from relay.settings import Settings, SettingsError
from relay.signin.logins import Logins, open_logins
from relay.signin.refresh import TokenServer
from relay.signin.renewal import Renewer
from relay.signin.tokens import SignedInTokens
from relay.store import Store
from relay.token_store import TokenStore
from relay.transports import Transport
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.public import resolve_public
from relay.transports.selection import Transports, open_transports
from relay.upkeep import Leases, Upkeep
from relay.upstreams import History, Resources, Upstream, chatgpt_web, offline, openai
from relay.upstreams.addresses import check_setting
from relay.upstreams.openai.platform import Platform, open_platform
from relay.usage import UsageCounter, UsageStore
from relay.values import frozen

log = logging.getLogger("chatgpt_webapi")

DAY = 86400
RENEWAL_SECONDS = 5.0  # that a stop waits for a new refresh token, which would be lost
Opener: TypeAlias = Callable[[Settings, Resources], "Upstream | None"]

#: name -> how it is opened from the settings (None: they do not describe it). Which tokens of callers it recognizes
#: is its own `recognizes`; where several do, the first of them is asked.
UPSTREAMS: dict[str, Opener] = {
    "offline": offline.open_upstream,
    "openai": openai.open_upstream,
    "chatgpt-web": chatgpt_web.open_upstream,
}


@frozen
class Basis:
    """What the parts of a service share."""

    settings: Settings
    server: Server
    transports: Transports
    store: Store
    leases: Leases
    token_store: TokenStore
    tokens: SignedInTokens
    outbox: RestOutbox

    @classmethod
    def open(cls, settings: Settings, server: Server, opened: ExitStack) -> Basis:
        """Open all of it; `opened` closes it again. Raises SettingsError or StoreFailed."""
        transports = open_transports(settings, server)
        opened.callback(transports.close)
        store = Store(settings.database(), server.native)
        opened.callback(store.close)
        leases = Leases(store.renew)
        token_store = TokenStore(store)
        tokens = tokens_for(settings, transports.proxied, token_store, leases)
        tokens.load()
        outbox = RestOutbox(RestStore(store), time.monotonic)
        return cls(
            settings, server, transports, store, leases, token_store, tokens, outbox
        )

    def open_upstreams(self) -> dict[str, Upstream]:
        run = self.server.native()
        return open_upstreams(
            self.settings, self.transports, run, self.tokens, self.outbox
        )

    def chat(
        self,
        upstreams: Mapping[str, Upstream],
        routing: Routing,
        catalog: ModelCatalog,
        usage: UsageCounter,
        links: Links,
    ) -> Chat:
        return Chat(
            upstreams,
            routing,
            self.store,
            self.leases,
            self.settings.history_budget,
            catalog=catalog,
            usage=usage,
            links=links,
        )


@frozen
class Service:
    """All parts of a running service."""

    settings: Settings
    server: Server
    store: Store
    upstreams: Mapping[str, Upstream]
    routing: Routing
    catalog: ModelCatalog
    chat: Chat
    conversations: Conversations
    links: Links
    access: Access
    clocks: Clocks
    linked_files: LinkedFiles
    transports: Transports
    tokens: SignedInTokens
    upkeep: Upkeep
    platform: Platform
    logins: Logins
    usage: UsageCounter
    watch: AccountWatch
    pool: Pool
    newcomers: Newcomers = field(default_factory=Newcomers)
    body_memory: BodyMemory = field(default_factory=BodyMemory)
    background: Background = field(default_factory=Background)

    @classmethod
    def build(
        cls,
        settings: Settings,
        upstreams: Mapping[str, Upstream] | None = None,
        server: Server | None = None,
    ) -> Service:
        """Build and start it. Raises SettingsError or StoreFailed where it cannot start."""
        server = server or Server()
        check_private(Path(settings.data_dir))
        with ExitStack() as opened:
            basis = Basis.open(settings, server, opened)
            if upstreams is None:
                upstreams = basis.open_upstreams()
            service = cls._assemble(basis, upstreams)
            service.upkeep.start()
            service.watch.start()
            opened.pop_all()
        return service

    @classmethod
    def _assemble(cls, basis: Basis, upstreams: Mapping[str, Upstream]) -> Service:
        """The service, of which nothing runs yet. Raises SettingsError or StoreFailed."""
        settings, store, transports = basis.settings, basis.store, basis.transports
        keys = keys_for(settings, upstreams)
        routing = routing_for(settings, keys, upstreams)
        catalog = ModelCatalog(settings.model_aliases, settings.check_model)
        usage = UsageCounter(UsageStore(store.database))
        tidy = (basis.token_store.tidy, usage.store.expire)
        links = Links(partial(secret_of, settings.link_key, Path(settings.data_dir)))
        accounts = ServerAccounts(basis.tokens, upstreams, is_guarded(settings, keys))
        watch = accounts.watch(basis.outbox, settings.scheduled_refresh)
        histories = histories_of(upstreams)
        return cls(
            settings=settings,
            server=basis.server,
            store=store,
            upstreams=upstreams,
            routing=routing,
            catalog=catalog,
            chat=basis.chat(upstreams, routing, catalog, usage, links),
            conversations=Conversations(store, histories, routing.sole_owner),
            links=links,
            access=access_for(settings, keys, upstreams),
            clocks=clocks_of(settings),
            linked_files=linked_files_for(settings, basis.server),
            transports=transports,
            tokens=basis.tokens,
            upkeep=Upkeep(store, settings.retention_days * DAY, tidy),
            platform=platform_for(settings, transports, upstreams),
            logins=open_logins(settings),
            usage=usage,
            watch=watch,
            pool=accounts.pool(basis.token_store, watch),
        )

    def resting(self) -> dict[str, Sequence[Resting]]:
        """The accounts that are not asked for now, by their upstream."""
        resting = {name: up.resting() for name, up in self.upstreams.items()}
        return {name: accounts for name, accounts in resting.items() if accounts}

    def upstream_for(self, caller: Caller) -> Upstream:
        """The upstream of this caller's new conversations."""
        return self.routing.upstream_for(caller, self.upstreams)

    def models(self, caller: Caller) -> Sequence[Model]:
        """The models of the upstream that answers this caller's new conversations, as they are now.

        Blocks; raises RelayError.
        """
        return self.catalog.list(self.upstream_for(caller), caller, seconds=0)

    def listed_models(self, caller: Caller) -> Sequence[Model]:
        """The same, by a list that may be an hour old."""
        return self.catalog.list(self.upstream_for(caller), caller)

    def model_for(self, name: str) -> str:
        """The model's own name, for a name that may be an alias."""
        return self.catalog.resolve(name)

    def find_model(self, caller: Caller, name: str) -> Model:
        """The model of a name among them. Blocks; raises ModelNotFound, or RelayError where there is no list."""
        return self.catalog.find(self.upstream_for(caller), caller, name)

    def default_model(self, caller: Caller) -> str:
        """The model for requests that name none: the first listed, unless a setting names one.

        Blocks; raises RelayError.
        """
        if self.settings.openai_model:
            return self.settings.openai_model
        listed = self.listed_models(caller)
        return listed[0].id if listed else ""

    def usage_of(self, caller: Caller, query: UsageQuery) -> list[UsageRow]:
        """The usage that the caller may see: everybody's, or its own. Blocks; raises BadRequest or StoreFailed."""
        self.usage.write()
        owner = None if self.access.is_operator(caller) else caller.verified_owner
        return self.usage.store.read(query, owner)

    def wait(self, seconds: float) -> None:
        """Until the asks that outlived their callers have ended, for `seconds` at most."""
        self.background.wait(seconds)

    def close(self) -> None:
        self.upkeep.stop()
        self.watch.stop()
        self.tokens.close(RENEWAL_SECONDS)
        self.usage.close()
        self.store.close()
        self.transports.close()


def clocks_of(settings: Settings) -> Clocks:
    return Clocks(
        settings.first_byte_timeout, settings.read_timeout, settings.total_timeout
    )


def platform_for(
    settings: Settings, transports: Transports, upstreams: Mapping[str, Upstream]
) -> Platform:
    """Raises SettingsError."""
    return open_platform(settings, transports.proxied, upstreams.get("openai"))


def linked_files_for(settings: Settings, server: Server) -> LinkedFiles:
    """What fetches linked files; never by a proxy, which would look names up where we cannot see what they mean."""
    if not settings.upload_by_url:
        return LinkedFiles(None)
    dialer = DirectDialer(settings.connect_timeout, resolve=resolve_public)
    return LinkedFiles(
        DirectTransport(dialer, idle_seconds=0.0, wait_readable=server.wait_readable)
    )


def is_guarded(settings: Settings, keys: tuple[Key, ...]) -> bool:
    """Whether there is a client key, or the operator opened the service deliberately."""
    return bool(keys) or settings.authorization == (OPEN,)


def tokens_for(
    settings: Settings, transport: Transport, store: TokenStore, leases: Leases
) -> SignedInTokens:
    """The access tokens of accounts with a refresh token. Raises SettingsError."""
    check_setting("OAUTH_TOKEN_URL", settings.oauth_token_url)
    server = TokenServer(transport, settings.oauth_token_url)
    return SignedInTokens(Renewer(server.exchange, store, leases), store)


def open_upstreams(
    settings: Settings,
    transports: Transports,
    run: Run,
    tokens: SignedInTokens | None = None,
    notes: RestNotes | None = None,
) -> dict[str, Upstream]:
    """The upstreams that the settings describe. `run`, `tokens`, `notes`: see `Resources`. Raises SettingsError."""

    def stored() -> tuple[Account, ...]:
        return tokens.stored if tokens else ()

    opened = {
        name: opener(
            settings,
            Resources(
                transport_for(name, settings, transports), run, tokens, stored, notes
            ),
        )
        for name, opener in UPSTREAMS.items()
    }
    return {name: upstream for name, upstream in opened.items() if upstream is not None}


def transport_for(name: str, settings: Settings, transports: Transports) -> Transport:
    """How an upstream is reached. What OPENAI_BASE_URL names is often on this machine, where no proxy leads."""
    if name == "chatgpt-web":
        return transports.chatgpt
    if name == "openai" and not settings.openai_base_url:
        return transports.proxied
    return transports.direct


def routing_for(
    settings: Settings, keys: tuple[Key, ...], upstreams: Mapping[str, Upstream]
) -> Routing:
    default_upstream(settings, upstreams)  # raises what a start must not go on with
    return Routing(
        partial(default_upstream, settings, upstreams),
        explicit=settings.upstream != "auto",
        sole_owner=len({key.owner for key in keys}) <= 1,
    )


def histories_of(upstreams: Mapping[str, Upstream]) -> dict[str, History]:
    histories = {name: upstream.history for name, upstream in upstreams.items()}
    return {name: found for name, found in histories.items() if found is not None}


def default_upstream(settings: Settings, upstreams: Mapping[str, Upstream]) -> str:
    """The upstream of new conversations: the one that the settings name, or else the one that they describe."""
    if settings.upstream == "openai" and "openai" not in upstreams:
        raise SettingsError(
            "UPSTREAM=openai needs OPENAI_API_KEY, or the OPENAI_BASE_URL of a server "
            "without keys."
        )
    if settings.upstream != "auto":
        return settings.upstream
    if settings.access_token or settings.reverse_proxy:
        return "chatgpt-web"
    web = upstreams.get("chatgpt-web")
    if web is not None and web.needs_client_key:  # it has those of `login`
        return "chatgpt-web"
    return "openai" if "openai" in upstreams else next(iter(upstreams))


def access_for(
    settings: Settings, keys: tuple[Key, ...], upstreams: Mapping[str, Upstream]
) -> Access:
    checking = [up for up in upstreams.values() if up.accepts_caller_tokens]
    if keys and checking and settings.allow_caller_tokens:
        log.info("%s", caller_token_rules(settings, [up.name for up in checking]))
    return Access(
        keys,
        allow_tokens=settings.allow_caller_tokens,
        recognizes=lambda token: any(up.recognizes(token) for up in checking),
    )


def caller_token_rules(settings: Settings, checking: list[str]) -> str:
    """One line for the log: which credentials of callers' own are accepted in a client key's place."""
    form = "of a known form"
    if settings.allow_caller_tokens == "any":
        form = "of any form"
    line = (
        f"Callers may bring credentials of their own, {form}, in place of a client key: "
        f"they are used at {' and '.join(checking)} alone, and nothing of the owner's is. "
        "ALLOW_CALLER_TOKENS=false refuses them"
    )
    if settings.reverse_proxy:
        line += (
            "; REVERSE_PROXY is sent them, and must check them: if it spends accounts of "
            "its own for any token, set ALLOW_CALLER_TOKENS=false"
        )
    return line + "."


def keys_for(settings: Settings, upstreams: Mapping[str, Upstream]) -> tuple[Key, ...]:
    """The client keys in force; the first start of a service that has something to protect makes one."""
    if settings.authorization == (OPEN,):
        log.warning(
            "AUTHORIZATION=none: the service is open, and whoever reaches it may spend "
            "its owner's credentials."
        )
        return ()
    if settings.authorization:
        return parse_keys(settings.authorization)
    if not any(upstream.needs_client_key for upstream in upstreams.values()):
        return ()
    key, made = first_key(Path(settings.data_dir))
    if made:
        log.warning("A client key was made: this service has something to protect.")
    return parse_keys((f"owner:{key}",))
