from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import running
from tests.signin_pages import AuthService, SignInPages


@pytest.fixture
def pages() -> Iterator[SignInPages]:
    made = SignInPages()
    yield made
    made.stop()


@pytest.fixture
def auth_service() -> Iterator[AuthService]:
    yield from running(AuthService())
