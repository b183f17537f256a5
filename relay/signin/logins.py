"""Signing in with an e-mail address and a password, on behalf of a caller whose they are. Blocks.

The password is sent to AUTH_BASE_URL's origin alone, or to AUTH_URL alone where that is set, and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeAlias

from relay.errors import Forbidden
from relay.settings import Settings, SettingsError
from relay.signin.attempts import AttemptCounter
from relay.signin.grants import Credentials, Grant, Grants
from relay.upstreams.addresses import check_setting, parse_address

LONGEST_SECONDS = 60.0  # of a sign-in; TOTAL_TIMEOUT may be shorter
LONGEST_READ = 30.0  # for one page
NOT_ALLOWED = (
    "This service takes no credentials of its callers' own (ALLOW_CALLER_TOKENS=false), so nobody signs in here: "
    "ask with a client key."
)

Flow: TypeAlias = Callable[[Credentials], Grant]


class Flows(NamedTuple):
    """What a sign-in walks through, by where it leads."""

    chatgpt: Flow
    platform: Flow


def open_logins(settings: Settings) -> Logins:
    """Signing in as the settings describe it. Raises SettingsError for an address that cannot be used."""
    if settings.auth_url:
        check_setting("AUTH_URL", settings.auth_url)
    check_setting("AUTH_BASE_URL", settings.auth_base_url)
    check_setting("CHATGPT_BASE_URL", settings.chatgpt_base_url[0])
    if parse_address(settings.auth_base_url.rstrip("/")).path:
        raise SettingsError(
            "AUTH_BASE_URL cannot be read: it must be an origin, without a path."
        )
    return Logins(
        lambda: open_flows(settings),
        longest(settings),
        is_allowed=bool(settings.allow_caller_tokens),
    )


def longest(settings: Settings) -> float:
    """Seconds that one set of pages may take."""
    return min(LONGEST_SECONDS, settings.total_timeout)


def open_flows(settings: Settings) -> Flows:
    # requests and what it needs is 5 MB, which a service where nobody signs in saves
    from relay.signin.auth_service import AuthService, DashboardLogin
    from relay.signin.chatgpt import ChatGPTFlow
    from relay.signin.pages import Way
    from relay.signin.platform import PlatformFlow

    read = min(LONGEST_READ, settings.read_timeout)
    way = Way(settings.connect_timeout, read, longest(settings), settings.proxy_url)
    platform = settings.platform_base_url.rstrip("/")
    if settings.auth_url:
        service = AuthService(way.without_proxies(), settings.auth_url)
        dashboard = DashboardLogin(service, way, platform)
        return Flows(service.sign_in, dashboard.sign_in)
    auth = settings.auth_base_url.rstrip("/")
    page = page_base(settings.chatgpt_base_url[0])
    return Flows(
        ChatGPTFlow(way, page, auth).sign_in, PlatformFlow(way, platform, auth).sign_in
    )


def page_base(address: str) -> str:
    """Where ChatGPT's page is, by the address of its backend."""
    return address.rstrip("/").removesuffix("/backend-api")


class Logins:
    """What callers sign in with.

    `open_flows`: called at the first login. `seconds`: the longest that one set of pages takes.
    """

    def __init__(
        self,
        open_flows: Callable[[], Flows],
        seconds: float,
        *,
        is_allowed: bool = True,
    ) -> None:
        self._open_flows = open_flows
        self._seconds = (
            2 * seconds
        )  # the platform's page may ask two, one after the other
        self._is_allowed = is_allowed
        self._grants = Grants()
        self._attempts = AttemptCounter()

    @cached_property
    def _flows(self) -> Flows:
        return self._open_flows()

    def to_chatgpt(
        self, credentials: Credentials, address: str, *, fresh: bool = False
    ) -> Grant:
        """An access token, from memory where there is one and `fresh` does not ask for another.

        `address`: the caller's, whose attempts are counted. Blocks; raises RelayError.
        """
        return self._sign_in("chatgpt", credentials, address, fresh)

    def to_platform(
        self, credentials: Credentials, address: str, *, fresh: bool = False
    ) -> Grant:
        """The same with the dashboard's own JSON."""
        return self._sign_in("platform", credentials, address, fresh)

    def _sign_in(
        self, place: str, credentials: Credentials, address: str, fresh: bool
    ) -> Grant:
        if not self._is_allowed:
            raise Forbidden(NOT_ALLOWED)

        def sign_in() -> Grant:
            with self._attempts.counted(address):
                flow: Flow = getattr(self._flows, place)
                return flow(credentials)

        return self._grants.get(place, credentials, sign_in, self._seconds, fresh=fresh)
