"""Signing in by a device code: what is asked, how often, and what each answer leads to."""

from __future__ import annotations

import json

import pytest

from relay.errors import (
    Challenged,
    RelayError,
    Unreachable,
    Unsupported,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from relay.signin.device import (
    Clock,
    DeviceCode,
    request_code,
    wait_for_authorization,
)
from relay.signin.issuer import AuthorizationCode, Issuer
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from tests.signin.oauth_server import (
    DEVICE_TOKEN,
    PAGE,
    TOKEN,
    USER_CODE,
    Canned,
    OAuthServer,
)


class Hands:
    """A clock whose time passes only by sleeping."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []
        self.clock = Clock(lambda: self.time, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class Reports:
    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, left: float, problem: str) -> None:
        assert left > 0
        self.problems.append(problem)


def sign_in(issuer: Issuer) -> tuple[Hands, Reports, AuthorizationCode]:
    hands = Hands()
    reports = Reports()
    code = request_code(issuer)
    return hands, reports, wait_for_authorization(issuer, code, hands.clock, reports)


def pending(status: int, code: str = "") -> Canned:
    return Canned.error(status, code) if code else Canned(status, b"")


def test_a_code_leads_to_tokens(server: OAuthServer, issuer: Issuer) -> None:
    hands, reports, grant = sign_in(issuer)
    tokens = issuer.redeem(grant)
    assert tokens.refresh_token in server.refresh_tokens
    assert tokens.person.email == server.person.email
    assert tokens.person.plan == "plus" and tokens.person.expires
    assert hands.slept == [1.0] and reports.problems == [""]
    sent = server.to(USER_CODE)[0].headers
    assert sent["user-agent"] == sent["originator"] == "chatgpt-webapi"
    with pytest.raises(UpstreamRefused, match="invalid_grant"):
        issuer.redeem(grant)


@pytest.mark.parametrize(
    "answer",
    [
        pending(403),
        pending(404),
        pending(403, "deviceauth_authorization_unknown"),
        pending(404, "not_found"),
        pending(400, "authorization_pending"),
        Canned.oauth_error(428, "authorization_pending"),
        Canned(404, b"<!doctype html><title>Not Found</title>", "text/html"),
    ],
    ids=str,
)
def test_while_nobody_has_typed_the_code_it_is_asked_again(
    server: OAuthServer, issuer: Issuer, answer: Canned
) -> None:
    server.canned[DEVICE_TOKEN] = [answer] * 3
    hands, reports, _ = sign_in(issuer)
    assert hands.slept == [1.0] * 4 and set(reports.problems) == {""}


@pytest.mark.parametrize(
    "answer", [Canned.oauth_error(400, "slow_down"), Canned(429)], ids=["code", "429"]
)
def test_slow_down_adds_five_seconds_each_time(
    server: OAuthServer, issuer: Issuer, answer: Canned
) -> None:
    server.canned[DEVICE_TOKEN] = [answer, answer]
    hands, _, _ = sign_in(issuer)
    assert hands.slept == [1.0, 6.0, 11.0]


@pytest.mark.parametrize(
    "answer",
    [Canned(503, b"busy", "text/plain"), Canned(200, b"{", cut=0), Canned(502, PAGE)],
    ids=["503", "cut", "502"],
)
def test_a_failure_between_is_reported_and_ends_nothing(
    server: OAuthServer, issuer: Issuer, answer: Canned
) -> None:
    server.canned[DEVICE_TOKEN] = [answer]
    _, reports, _ = sign_in(issuer)
    assert reports.problems[0] == "" and reports.problems[1]


def test_a_silent_answer_between_ends_nothing(server: OAuthServer) -> None:
    server.canned[DEVICE_TOKEN] = [Canned(silent=True)]
    transport = DirectTransport(DirectDialer(2))
    issuer = Issuer(transport, server.url, server.token_url, seconds=0.3)
    _, reports, grant = sign_in(issuer)
    assert "did not answer" in reports.problems[1] and grant.code
    transport.close()


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (Canned.error(403, "access_denied"), UpstreamRefused, "Somebody refused"),
        (
            Canned.oauth_error(400, "authorization_declined"),
            UpstreamRefused,
            "Somebody refused",
        ),
        (Canned.error(400, "expired_token"), UpstreamTimeout, "expired"),
        (Canned.error(404, "deviceauth_expired"), UpstreamTimeout, "expired"),
        (
            Canned.error(403, "access_denied", "x: missing_codex_entitlement."),
            UpstreamRefused,
            "Codex switched off",
        ),
        (
            Canned.error(403, "missing_codex_entitlement"),
            UpstreamRefused,
            "Codex switched off",
        ),
        (Canned(403, PAGE, "text/html"), Challenged, "browser"),
        (Canned(400, b"what?", "text/plain"), UpstreamRefused, "status 400"),
        (Canned(200, b"garbage"), UpstreamFailed, "cannot be read"),
        (Canned(200, b"[1]"), UpstreamFailed, "cannot be read"),
        (Canned(200, b'{"authorization_code": 7}'), UpstreamFailed, "cannot be read"),
        (Canned(302, b"", "text/html"), UpstreamFailed, "cannot be read"),
    ],
    ids=str,
)
def test_what_ends_the_waiting(
    server: OAuthServer,
    issuer: Issuer,
    answer: Canned,
    error: type[RelayError],
    sentence: str,
) -> None:
    server.canned[DEVICE_TOKEN] = [pending(403), answer]
    with pytest.raises(error, match=sentence):
        sign_in(issuer)
    assert len(server.to(DEVICE_TOKEN)) == 2


def test_a_code_that_nobody_types_expires(server: OAuthServer, issuer: Issuer) -> None:
    server.approved = False
    server.interval = 60
    hands = Hands()
    with pytest.raises(UpstreamTimeout, match="login again"):
        wait_for_authorization(issuer, request_code(issuer), hands.clock, Reports())
    assert hands.time == 900 and len(server.to(DEVICE_TOKEN)) == 15


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("5", 5), (7, 7), ("2.5", 2.5), ("0", 5), (0, 5), (None, 5), ("soon", 5)]
    + [(-3, 5), ("99999", 60), (True, 5), ("0.01", 1), ("1e9", 5)],
    ids=str,
)
def test_the_interval_is_read_in_any_form_and_bounded(
    server: OAuthServer, issuer: Issuer, interval: object, seconds: float
) -> None:
    server.interval = interval
    assert request_code(issuer).interval == seconds


@pytest.mark.parametrize(
    ("field", "lifetime"), [(60, 60), ("120", 120), ("99999", 900), (None, 900)]
)
def test_the_lifetime_is_the_issuers(
    server: OAuthServer, issuer: Issuer, field: object, lifetime: float
) -> None:
    payload = {
        "device_auth_id": "device-id-1",
        "usercode": "ABCD-EFGH",
        "expires_in": field,
    }
    server.canned[USER_CODE] = [Canned(200, json.dumps(payload).encode())]
    assert request_code(issuer) == DeviceCode(
        "ABCD-EFGH", "device-id-1", lifetime=lifetime
    )


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (Canned(404), Unsupported, "login --browser"),
        (Canned(403, PAGE, "text/html"), Challenged, "PROXY_URL"),
        (Canned(500, b"oops", "text/plain"), UpstreamRefused, "later"),
        (Canned(429), RelayError, "too many requests"),
        (Canned(200, b"<html>hello", "text/html"), UpstreamFailed, "AUTH_BASE_URL"),
        (
            Canned(200, b'{"device_auth_id":"x"}'),
            UpstreamFailed,
            "AUTH_BASE_URL",
        ),
        (
            Canned(
                200, b'{"device_auth_id":"device-1","user_code":"A\\u001b[2JBCD-EFGH"}'
            ),
            UpstreamFailed,
            "AUTH_BASE_URL",
        ),
        (Canned(200, b"{}", cut=0), UpstreamCut, "middle"),
    ],
    ids=str,
)
def test_a_code_that_cannot_be_had(
    server: OAuthServer,
    issuer: Issuer,
    answer: Canned,
    error: type[RelayError],
    sentence: str,
) -> None:
    server.canned[USER_CODE] = [answer]
    with pytest.raises(error, match=sentence):
        request_code(issuer)


def test_an_issuer_that_is_not_there(server: OAuthServer, issuer: Issuer) -> None:
    server.close()
    with pytest.raises(Unreachable):
        request_code(issuer)


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (Canned.error(403, "access_denied"), UpstreamRefused, "access_denied"),
        (
            Canned.oauth_error(403, "access_denied", "missing_codex_entitlement"),
            UpstreamRefused,
            "admin",
        ),
        (Canned(200, b"{}"), UpstreamFailed, "without access_token"),
        (
            Canned(200, b'{"access_token":"eyJ.invented.1"}'),
            UpstreamFailed,
            "without refresh_token",
        ),
        (Canned(200, b"{" * 100_000), UpstreamFailed, "without access_token"),
        (Canned(200, b" " * 300_000), UpstreamFailed, "larger"),
        (Canned(500, b"x"), UpstreamRefused, "later"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_exchange_that_fails(
    server: OAuthServer,
    issuer: Issuer,
    answer: Canned,
    error: type[RelayError],
    sentence: str,
) -> None:
    _, _, grant = sign_in(issuer)
    server.canned[TOKEN] = [answer]
    with pytest.raises(error, match=sentence):
        issuer.redeem(grant)


def test_no_error_and_no_value_shows_what_was_sent(
    server: OAuthServer, issuer: Issuer
) -> None:
    _, _, grant = sign_in(issuer)
    wrong = AuthorizationCode(grant.code, "another-verifier-" * 3, grant.redirect_uri)
    with pytest.raises(UpstreamRefused) as refused:
        issuer.redeem(wrong)
    shown = f"{refused.value} {refused.value.reason} {wrong!r} {issuer!r}"
    code = request_code(issuer)
    tokens = issuer.redeem(sign_in(issuer)[2])
    shown += f"{code!r} {tokens!r}"
    assert "Refused" in str(refused.value)
    assert not [secret for secret in server.secrets if secret in shown]
    assert "another-verifier" not in shown and code.user_code not in shown
