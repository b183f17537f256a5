"""OpenAI's platform under its own name: its API, and the pages' own API behind the dashboard. Pure.

The API is the configured upstream's. Where none is configured, it is the platform's own, for callers' keys alone.
"""

from __future__ import annotations

from dataclasses import replace

from relay.accounts import Account, AccountPool, Attempts, is_openai_key
from relay.errors import Unauthorized, UpstreamError
from relay.settings import Settings
from relay.transports import Call, Transport
from relay.upstreams import Forwarded, Forwarder, Upstream
from relay.upstreams.addresses import check_setting
from relay.upstreams.http import Limits, WholeResponse
from relay.upstreams.openai import body
from relay.upstreams.openai.forward import OpenAIForwarder
from relay.upstreams.openai.procedure import API
from relay.values import frozen

SESSION = "sess-"
NO_KEY = (
    "There is no key of OpenAI's API here: send yours as the header 'Authorization: "
    "Bearer sk-...', or set OPENAI_API_KEY."
)
NO_SESSION = (
    "The dashboard takes the sessionKey of its own page alone: send yours as the header "
    "'Authorization: Bearer sess-...'."
)


def open_platform(
    settings: Settings, transport: Transport, upstream: Upstream | None
) -> Platform:
    """The platform as the settings describe it. `upstream`: the OpenAI-compatible one, where there is one.

    Raises SettingsError for an address that cannot be used.
    """
    address = settings.platform_base_url.rstrip("/")
    check_setting("PLATFORM_BASE_URL", address)
    limits = Limits(answer=settings.max_answer)
    nobody = AccountPool(())
    origin = API(transport=transport, base=address, pool=nobody, limits=limits)
    dashboard = ForOwnCredentials(OpenAIForwarder(origin), SESSION, NO_SESSION)
    if upstream is not None and upstream.forwarder is not None:
        return Platform(WithoutCookies(upstream.forwarder), dashboard, upstream)
    keyless = replace(origin, base=f"{address}/v1")
    api = ForOwnCredentials(OpenAIForwarder(keyless), "sk-", NO_KEY)
    is_checked = settings.allow_caller_tokens == "any" or body.is_openai(keyless.base)
    return Platform(api, dashboard, None, is_checked)


@frozen
class Platform:
    """`upstream`: whose API it is. `checks_keys`: without one, whether the platform is known to check callers' keys."""

    api: Forwarder
    dashboard: Forwarder
    upstream: Upstream | None = None
    checks_keys: bool = False

    def recognizes_key(self, token: str) -> bool:
        """Whether a caller's own credential may go to the API."""
        if self.upstream is None:
            return self.checks_keys and is_openai_key(token)
        return self.upstream.accepts_caller_tokens and self.upstream.recognizes(token)

    def recognizes_session(self, token: str) -> bool:
        """Whether a caller's own credential may go to the dashboard."""
        return token.startswith(SESSION)


class WithoutCookies:
    """A forwarder whose upstream's cookies reach nobody. See `relay.upstreams.Forwarder`."""

    def __init__(self, forwarder: Forwarder) -> None:
        self.transport = forwarder.transport
        self._forwarder = forwarder

    def attempts(self, request: Forwarded) -> Attempts:
        return self._forwarder.attempts(request)

    def call(self, request: Forwarded, account: Account) -> Call:
        return self._forwarder.call(request, account)

    def failure(self, response: WholeResponse, request: Forwarded) -> UpstreamError:
        return self._forwarder.failure(response, request)

    def passes(self, name: str) -> bool:
        return name != "set-cookie" and self._forwarder.passes(name)


class ForOwnCredentials(WithoutCookies):
    """Takes a caller's own credential of one form, and nothing of the server's."""

    def __init__(self, forwarder: Forwarder, start: str, otherwise: str) -> None:
        super().__init__(forwarder)
        self._start = start
        self._otherwise = otherwise

    def attempts(self, request: Forwarded) -> Attempts:
        if not request.token or not request.token.startswith(self._start):
            raise Unauthorized(self._otherwise)
        return super().attempts(request)
