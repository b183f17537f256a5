"""Which transport goes where, from the settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import orjson

from relay.server import Server
from relay.settings import Settings, SettingsError
from relay.transports import Transport
from relay.transports.dialing import Dialer, DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.proxies import Proxy, ProxyDialer
from relay.transports.tls import Bounds, Library, TLSTransport
from relay.transports.tunnel import Tunnel
from relay.values import frozen


@frozen
class Transports:
    """`direct`: past all proxies. `proxied`: through those of PROXY_URL. `chatgpt`: as ChatGPT is asked."""

    direct: Transport
    proxied: Transport
    chatgpt: Transport

    def close(self) -> None:
        for transport in (self.chatgpt, self.proxied, self.direct):
            transport.close()


def open_transports(settings: Settings, server: Server | None = None) -> Transports:
    """The transports as the settings describe them. Raises SettingsError.

    With TLS_CLIENT this loads a library that does not survive fork().
    """
    server = server or Server()
    seconds = settings.connect_timeout
    dialer: Dialer = DirectDialer(seconds)
    direct = DirectTransport(dialer, wait_readable=server.wait_readable)
    proxied = direct
    if settings.proxy_url:
        dialer = ProxyDialer(proxies_of(settings), seconds)
        proxied = DirectTransport(dialer, wait_readable=server.wait_readable)
    if not settings.tls_client:
        return Transports(direct, proxied, proxied)
    library, profile = load_library(settings.tls_client)
    tls = TLSTransport(
        library,
        profile,
        Tunnel(dialer),
        proxied,
        server.start_thread,
        Bounds(settings.max_answer, settings.max_body),
    )
    return Transports(direct, proxied, tls)


def proxies_of(settings: Settings) -> tuple[Proxy, ...]:
    """The proxies of PROXY_URL. Raises SettingsError."""
    try:
        return tuple(Proxy.parse(url) for url in settings.proxy_url)
    except ValueError as error:
        raise SettingsError(f"PROXY_URL cannot be read: {error}.") from None


def load_library(name: str) -> tuple[Library, str]:
    """tls-client's native library, and its own name of a profile, whose case may differ. Raises SettingsError."""
    if importlib.util.find_spec("tls_client") is None:
        raise SettingsError(
            "TLS_CLIENT needs the Python package tls-client: install what "
            "requirements.txt lists, or leave TLS_CLIENT out."
        )
    from tls_client import cffi
    from tls_client.settings import CLIENT_IDENTIFIERS

    profiles = {known.lower(): known for known in CLIENT_IDENTIFIERS}
    if name not in profiles:
        nearest = get_close_matches(name, profiles, n=3, cutoff=0)
        raise SettingsError(
            f"TLS_CLIENT cannot be read: tls-client has no profile {name}; it has "
            f"{', '.join(nearest)} and others."
        )
    try:
        cffi.load_library()
    except OSError as error:  # tls-client's own is one
        raise SettingsError(
            f"TLS_CLIENT cannot be used here: tls-client's library cannot be loaded "
            f"({error}). Leave TLS_CLIENT out."
        ) from None

    def call(request: bytes) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = orjson.loads(cffi.request(request))
        cffi.freeMemory(str(answer["id"]).encode())
        return answer

    return call, profiles[name]
