"""What ChatGPT's stand-in wants before a question, for the tests of several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chatgpt_backend import Backend
from tests.conftest import running
from tests.sentinel import ArkoseService, Sentinel


@pytest.fixture
def sentinel(backend: Backend) -> Sentinel:
    backend.sentinel = Sentinel()
    return backend.sentinel


@pytest.fixture
def arkose(sentinel: Sentinel) -> Iterator[ArkoseService]:
    yield from running(ArkoseService(sentinel))
