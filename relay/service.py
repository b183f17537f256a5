"""What the service is made of: everything is built here, once, from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from relay.access import OPEN, Access, Key, first_key, parse_keys
from relay.accounts import Resting
from relay.chat import Chat, Routing
from relay.conversations import Conversations
from relay.database import check_private
from relay.delivery import Background, Clocks
from relay.domain import Caller, Model
from relay.downloads import Links, secret_of
from relay.memory import BodyMemory
from relay.models import ModelCatalog
from relay.newcomers import Newcomers
from relay.server import Server
from relay.settings import Settings, SettingsError
from relay.store import Store
from relay.transports import Transport
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from relay.upkeep import Leases, Upkeep
from relay.upstreams import History, Upstream, chatgpt_web, offline, openai
from relay.upstreams.openai.platform import Platform, open_platform

log = logging.getLogger("chatgpt_webapi")

DAY = 86400
Opener: TypeAlias = Callable[[Settings, Transport], "Upstream | None"]

#: name -> how it is opened from the settings (None: they do not describe it). Which tokens of callers it recognizes
#: is its own `recognizes`; where several do, the first of them is asked.
UPSTREAMS: dict[str, Opener] = {
    "offline": offline.open_upstream,
    "openai": openai.open_upstream,
    "chatgpt-web": chatgpt_web.open_upstream,
}


@dataclass(frozen=True)
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
    newcomers: Newcomers
    body_memory: BodyMemory
    transport: Transport
    background: Background
    upkeep: Upkeep
    platform: Platform

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
        transport = DirectTransport(
            DirectDialer(settings.connect_timeout), wait_readable=server.wait_readable
        )
        if upstreams is None:
            upstreams = open_upstreams(settings, transport)
        keys = keys_for(settings, upstreams)
        routing = routing_for(settings, keys, upstreams)
        store = Store(settings.database(), server.native)
        leases = Leases(store.renew)
        catalog = ModelCatalog(settings.model_aliases, settings.check_model)
        budget = settings.history_budget
        upkeep = Upkeep(store, settings.retention_days * DAY)
        upkeep.start()
        links = Links(partial(secret_of, settings.link_key, Path(settings.data_dir)))
        return cls(
            settings=settings,
            server=server,
            store=store,
            upstreams=upstreams,
            routing=routing,
            catalog=catalog,
            chat=Chat(
                upstreams, routing, store, leases, budget, catalog=catalog, links=links
            ),
            conversations=Conversations(
                store, histories_of(upstreams), routing.sole_owner
            ),
            links=links,
            access=access_for(settings, keys, upstreams),
            clocks=Clocks(
                settings.first_byte_timeout,
                settings.read_timeout,
                settings.total_timeout,
            ),
            newcomers=Newcomers(),
            body_memory=BodyMemory(),
            transport=transport,
            background=Background(),
            upkeep=upkeep,
            platform=open_platform(settings, transport, upstreams.get("openai")),
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

    def check_model(self, caller: Caller, name: str | None) -> str | None:
        """The name by which the upstream of this caller's new conversations is asked; None: by none.

        Blocks; raises ModelNotFound. See `ModelCatalog.name_for`.
        """
        return self.catalog.name_for(self.upstream_for(caller), caller, name)

    def default_model(self, caller: Caller) -> str:
        """The model for requests that name none: the first listed, unless a setting names one.

        Blocks; raises RelayError.
        """
        if self.settings.openai_model:
            return self.settings.openai_model
        listed = self.listed_models(caller)
        return listed[0].id if listed else ""

    def wait(self, seconds: float) -> None:
        """Until the asks that outlived their callers have ended, for `seconds` at most."""
        self.background.wait(seconds)

    def close(self) -> None:
        self.upkeep.stop()
        self.store.close()
        self.transport.close()


def open_upstreams(settings: Settings, transport: Transport) -> dict[str, Upstream]:
    opened = {name: opener(settings, transport) for name, opener in UPSTREAMS.items()}
    return {name: upstream for name, upstream in opened.items() if upstream is not None}


def routing_for(
    settings: Settings, keys: tuple[Key, ...], upstreams: Mapping[str, Upstream]
) -> Routing:
    return Routing(
        default_upstream(settings, upstreams),
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
