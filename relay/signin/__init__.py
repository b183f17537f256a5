"""Signing in with an e-mail address and a password, on behalf of a caller whose they are. Blocks.

The password is sent to AUTH_BASE_URL's origin alone, or to AUTH_URL alone where that is set, and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from relay.errors import Forbidden
from relay.settings import Settings, SettingsError
from relay.signin.attempts import Attempts
from relay.signin.auth_service import AuthService, DashboardLogin
from relay.signin.chatgpt import ChatGPTFlow
from relay.signin.grants import Credentials, Grant, Grants
from relay.signin.pages import Way
from relay.signin.platform import PlatformFlow
from relay.upstreams.addresses import check_setting, parse_address

LONGEST_SECONDS = 60.0  # of a sign-in; TOTAL_TIMEOUT may be shorter
LONGEST_READ = 30.0  # for one page
NOT_ALLOWED = (
    "This service takes no credentials of its callers' own (ALLOW_CALLER_TOKENS=false), so nobody signs in here: "
    "ask with a client key."
)

Flow: TypeAlias = Callable[[Credentials], Grant]


def open_sign_in(settings: Settings) -> SignIn:
    """Signing in as the settings describe it. Raises SettingsError for an address that cannot be used."""
    total = min(LONGEST_SECONDS, settings.total_timeout)
    read = min(LONGEST_READ, settings.read_timeout)
    way = Way(settings.connect_timeout, read, total, settings.proxy_url)
    platform = settings.platform_base_url.rstrip("/")
    is_allowed = bool(settings.allow_caller_tokens)
    if settings.auth_url:
        check_setting("AUTH_URL", settings.auth_url)
        service = AuthService(way.without_proxies(), settings.auth_url)
        dashboard = DashboardLogin(service, way, platform)
        return SignIn(service.sign_in, dashboard.sign_in, total, is_allowed=is_allowed)
    check_setting("AUTH_BASE_URL", settings.auth_base_url)
    auth = settings.auth_base_url.rstrip("/")
    if parse_address(auth).path:
        raise SettingsError(
            "AUTH_BASE_URL cannot be read: it must be an origin, without a path."
        )
    check_setting("CHATGPT_BASE_URL", settings.chatgpt_base_url[0])
    return SignIn(
        ChatGPTFlow(way, page_base(settings.chatgpt_base_url[0]), auth).sign_in,
        PlatformFlow(way, platform, auth).sign_in,
        total,
        is_allowed=is_allowed,
    )


def page_base(address: str) -> str:
    """Where ChatGPT's page is, by the address of its backend."""
    return address.rstrip("/").removesuffix("/backend-api")


class SignIn:
    """What callers sign in with. `seconds`: the longest that one set of pages takes."""

    def __init__(
        self,
        chatgpt: Flow,
        platform: Flow,
        seconds: float,
        *,
        is_allowed: bool = True,
    ) -> None:
        self._flows = {"chatgpt": chatgpt, "platform": platform}
        self._seconds = (
            2 * seconds
        )  # the platform's page may ask two, one after the other
        self._is_allowed = is_allowed
        self._grants = Grants()
        self._attempts = Attempts()

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
                return self._flows[place](credentials)

        return self._grants.get(place, credentials, sign_in, self._seconds, fresh=fresh)
