from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay.signin.issuer import Issuer
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from tests.conftest import running
from tests.signin.oauth_server import OAuthServer
from tests.signin_pages import AuthService, SignInPages


@pytest.fixture
def pages() -> Iterator[SignInPages]:
    made = SignInPages()
    yield made
    made.stop()


@pytest.fixture
def auth_service() -> Iterator[AuthService]:
    yield from running(AuthService())


@pytest.fixture
def server() -> Iterator[OAuthServer]:
    server = OAuthServer()
    yield server
    server.close()


@pytest.fixture
def issuer(server: OAuthServer) -> Iterator[Issuer]:
    transport = DirectTransport(DirectDialer(2))
    yield Issuer(transport, server.url, server.token_url, seconds=5)
    transport.close()
