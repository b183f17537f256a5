"""AUTH_URL: a service of the operator's own signs in, and nothing else is asked."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from relay.errors import (
    AccountLocked,
    Challenged,
    RateLimited,
    RelayError,
    SecondFactor,
    SignInChanged,
    UpstreamFailed,
    WrongCredentials,
)
from relay.settings import Settings
from relay.signin.grants import Credentials
from relay.signin.logins import open_logins
from tests.processes import free_port
from tests.signin_pages import (
    EMAIL,
    LOGIN,
    PASSWORD,
    Answer,
    AuthService,
    SignInPages,
    moved,
    payload,
)

CREDENTIALS = Credentials(EMAIL, PASSWORD)
ADDRESS = "192.0.2.1"


@pytest.mark.parametrize("name", ["accessToken", "access_token"])
def test_it_is_asked_alone_and_by_no_proxy(
    auth_service: AuthService, name: str
) -> None:
    proxy = (f"http://127.0.0.1:{free_port()}",)
    service = open_logins(Settings(auth_url=f"{auth_service.url}/in", proxy_url=proxy))
    auth_service.says = payload({name: "opaque-token", "expires": "2099-01-31"})
    grant = service.to_chatgpt(CREDENTIALS, ADDRESS)
    assert grant.access_token == "opaque-token"
    assert grant.expires_at == "2099-01-31T00:00:00.000Z"
    assert service.to_chatgpt(CREDENTIALS, ADDRESS) is grant
    [asked] = auth_service.received
    assert asked.path == "/in" and asked.headers["user-agent"] == "chatgpt-webapi"


def test_what_states_no_end_is_not_kept(auth_service: AuthService) -> None:
    service = open_logins(Settings(auth_url=auth_service.url))
    auth_service.says = payload({"access_token": "opaque-token", "expires": "odd"})
    assert service.to_chatgpt(CREDENTIALS, ADDRESS).expires_at is None
    service.to_chatgpt(CREDENTIALS, ADDRESS)
    assert len(auth_service.received) == 2


def test_the_earlier_of_two_ends_counts(auth_service: AuthService) -> None:
    service = open_logins(Settings(auth_url=auth_service.url))
    soon = int(time.time()) + 200
    auth_service.says = payload({"access_token": auth_service.token, "expires": soon})
    assert service.to_chatgpt(CREDENTIALS, ADDRESS).expires == soon
    service.to_chatgpt(CREDENTIALS, ADDRESS)
    assert len(auth_service.received) == 2  # 200 s are too few to be kept


def test_the_dashboard_takes_its_token(
    auth_service: AuthService, pages: SignInPages
) -> None:
    pages.tokens.append(auth_service.token)
    settings = Settings(auth_url=auth_service.url, platform_base_url=pages.platform.url)
    grant = open_logins(settings).to_platform(CREDENTIALS, ADDRESS)
    assert grant.login == LOGIN and not pages.auth.received


CASES = {
    "refused": (payload({"message": "no"}, 401), WrongCredentials),
    "locked": (payload({"message": "The account is locked."}, 403), AccountLocked),
    "second": (payload({"detail": {"code": "mfa_required"}}, 403), SecondFactor),
    "captcha": (payload({"error": "captcha_required"}, 403), Challenged),
    "ours": (
        replace(payload({}, 403), headers=(("X-Error-Code", "account_locked"),)),
        AccountLocked,
    ),
    "limited": (Answer(429, b"", (("Retry-After", "5"),)), RateLimited),
    "failed": (Answer(500, b"oops"), UpstreamFailed),
    "no-token": (payload({"ok": True}), SignInChanged),
    "no-json": (Answer(200, b"hello"), SignInChanged),
    "odd-token": (payload({"access_token": "a\r\nb"}), SignInChanged),
    "empty-token": (payload({"accessToken": "", "access_token": ""}), SignInChanged),
    "redirect": (moved("/elsewhere"), SignInChanged),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_failure_is_an_error_of_its_own(
    auth_service: AuthService, case: tuple[Answer, type[RelayError]]
) -> None:
    auth_service.says, kind = case
    service = open_logins(Settings(auth_url=auth_service.url))
    with pytest.raises(kind) as caught:
        service.to_chatgpt(CREDENTIALS, ADDRESS)
    assert type(caught.value) is kind
    assert len(auth_service.received) == 1  # no redirect is followed
