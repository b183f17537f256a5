"""The exchange of a refresh token: what is sent, and what each answer means."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import orjson
import pytest

from relay.accounts import is_chatgpt_token, is_refresh_token
from relay.errors import NotRenewed
from relay.signin.refresh import Dead, Renewed, TokenServer
from relay.transports import Call
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from tests.conftest import running
from tests.oauth_server import OAuthServer, error
from tests.tokens import jwt


@pytest.fixture
def oauth() -> Iterator[OAuthServer]:
    yield from running(OAuthServer())


@pytest.fixture
def transport() -> Iterator[DirectTransport]:
    transport = DirectTransport(DirectDialer(2))
    yield transport
    transport.close()


def test_a_refresh_token_gets_an_access_token_and_the_next_refresh_token(
    oauth: OAuthServer, transport: DirectTransport
) -> None:
    first = oauth.sign_in()
    renewed = TokenServer(transport, oauth.url).exchange(first)
    assert isinstance(renewed, Renewed)
    assert list(oauth.granted) == [renewed.access_token]
    assert list(oauth.current) == [renewed.refresh_token]
    assert renewed.lifetime == 36000.0
    assert renewed.access_token not in repr(renewed)
    again = TokenServer(transport, oauth.url).exchange(first)
    assert again == Dead("refresh_token_reused")


def test_an_answer_without_a_refresh_token_keeps_the_old_one(
    oauth: OAuthServer, transport: DirectTransport
) -> None:
    oauth.behaviour.rotates = False
    renewed = TokenServer(transport, oauth.url).exchange(oauth.sign_in())
    assert isinstance(renewed, Renewed) and renewed.refresh_token is None


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, error("refresh_token_expired"), "refresh_token_expired"),
        (401, error("refresh_token_invalidated"), "refresh_token_invalidated"),
        (400, b'{"error": "invalid_grant"}', "invalid_grant"),
        (403, b'{"error": "access_denied"}', "access_denied"),
        (401, b'{"code": "token_invalidated"}', "token_invalidated"),
        (401, error("app_session_terminated"), "app_session_terminated"),
        (403, error("account_deactivated"), "account_deactivated"),
        (400, b'{"detail": {"code": "account_deleted"}}', "account_deleted"),
        (401, b'{"error": "something new"}', "refused_with_401"),
        (401, b"", "refused_with_401"),
    ],
)
def test_what_says_that_the_token_is_dead(
    oauth: OAuthServer, transport: DirectTransport, status: int, body: bytes, code: str
) -> None:
    oauth.behaviour.refusals = [(status, {}, body)]
    assert TokenServer(transport, oauth.url).exchange(oauth.sign_in()) == Dead(code)


@pytest.mark.parametrize(
    ("status", "body", "may_be_used_up"),
    [
        (500, error("invalid_grant"), True),
        (503, b"", True),
        (429, error("rate_limit_exceeded"), False),
        (404, b"no such page", False),
        (400, error("invalid_request"), False),
        (302, b"", False),
        (401, b"<html>a proxy's page</html>", False),
    ],
)
def test_what_may_be_tried_again(
    oauth: OAuthServer,
    transport: DirectTransport,
    status: int,
    body: bytes,
    may_be_used_up: bool,
) -> None:
    headers = {"Location": "http://127.0.0.1:9/elsewhere", "Retry-After": "7"}
    oauth.behaviour.refusals = [(status, headers, body)]
    token = oauth.sign_in()
    with pytest.raises(NotRenewed, match=str(status)) as raised:
        TokenServer(transport, oauth.url).exchange(token)
    assert raised.value.may_be_used_up is may_be_used_up
    assert raised.value.retry_after == 7 and token not in str(raised.value)
    assert oauth.asked == [token], "a redirect is not followed"


@pytest.mark.parametrize(
    "body", [b"", b"not JSON", b"[]", b"{}", b'{"access_token": 1}']
)
def test_200_without_an_access_token_is_a_failure(
    oauth: OAuthServer, transport: DirectTransport, body: bytes
) -> None:
    oauth.behaviour.garbage = [body]
    with pytest.raises(NotRenewed) as raised:
        TokenServer(transport, oauth.url).exchange(oauth.sign_in())
    assert raised.value.may_be_used_up


def test_a_token_that_no_header_can_carry_is_none(
    oauth: OAuthServer, transport: DirectTransport
) -> None:
    oauth.behaviour.garbage = [orjson.dumps({"access_token": "a\r\nHost: b"})]
    with pytest.raises(NotRenewed):
        TokenServer(transport, oauth.url).exchange(oauth.sign_in())


def test_a_server_that_is_silent_or_cuts_its_answer(
    oauth: OAuthServer, transport: DirectTransport
) -> None:
    oauth.behaviour.cuts = 1
    with pytest.raises(NotRenewed) as raised:
        TokenServer(transport, oauth.url).exchange(oauth.sign_in())
    assert raised.value.may_be_used_up
    oauth.behaviour.silent = threading.Event()
    with pytest.raises(NotRenewed) as raised:
        TokenServer(transport, oauth.url, 0.3).exchange(oauth.sign_in())
    assert raised.value.may_be_used_up
    oauth.behaviour.silent.set()


def test_a_server_that_is_not_there_has_used_nothing_up(
    transport: DirectTransport,
) -> None:
    with pytest.raises(NotRenewed) as raised:
        TokenServer(transport, "http://127.0.0.1:9/oauth/token").exchange("rt_invented")
    assert not raised.value.may_be_used_up


class Recording:
    """A transport that sends nothing."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def send(self, call: Call) -> None:
        self.calls.append(call)
        raise NotRenewed("nothing is sent here")

    def close(self) -> None:
        pass


def test_the_old_host_gets_what_its_client_sent() -> None:
    """Source: protocol notes, refresh token -> access token, 2023-2024."""
    transport = Recording()
    url = "https://auth0.openai.com/oauth/token"
    with pytest.raises(NotRenewed):
        TokenServer(transport, url).exchange("a" * 45)  # type: ignore[arg-type]
    [call] = transport.calls
    assert call.headers["Content-Type"] == "application/json"
    assert isinstance(call.body, bytes) and orjson.loads(call.body) == {
        "client_id": "pdlLIX2Y72MIl2rhLhTE9VV9bN905kBh",
        "grant_type": "refresh_token",
        "redirect_uri": "com.openai.chat://auth0.openai.com/ios/com.openai.chat/callback",
        "refresh_token": "a" * 45,
    }


def test_which_tokens_are_refresh_tokens() -> None:
    assert is_refresh_token("rt_abc") and is_chatgpt_token("rt_abc")
    assert is_refresh_token("v1-Mxyz_" + "a" * 37)
    for other in (
        "a" * 44,
        "a" * 46,
        f"cw-{'a' * 42}",
        f"sk-{'a' * 42}",
        f"fk-{'a' * 42}",
        "a" * 44 + "=",
        jwt(sub="someone"),
    ):
        assert not is_refresh_token(other), other
