"""Tokens that no upstream has accepted yet: few of their asks are in flight at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

from relay.errors import TooManyAttempts
from relay.newcomers import MOST_IN_FLIGHT, MOST_OF_ONE, Newcomers
from tests.chatgpt_backend import Backend, Mode
from tests.tokens import jwt

pytestmark = pytest.mark.attack


def test_few_are_in_flight_and_one_that_was_accepted_is_no_newcomer() -> None:
    newcomers = Newcomers()
    leaves = [newcomers.enter("one") for _ in range(MOST_OF_ONE)]
    with pytest.raises(TooManyAttempts):
        newcomers.enter("one")
    others = [
        newcomers.enter(f"other-{n}") for n in range(MOST_IN_FLIGHT - MOST_OF_ONE)
    ]
    with pytest.raises(TooManyAttempts) as refused:
        newcomers.enter("another")
    assert refused.value.retry_after
    leaves.pop()(False)
    newcomers.enter("another")(True)
    for _ in range(100):
        newcomers.enter("another")(True)
    for leave in (*leaves, *others):
        leave(False)
    assert newcomers._in_flight == {}


def ask(app: Flask, token: str, **fields: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    data = {"msg": "hello", **fields}
    return app.test_client().post("/ask", data=data, headers=headers, buffered=True)


@pytest.mark.parametrize("how", [{}, {"stream": "true"}, {"request_id": "k"}], ids=str)
def test_a_flood_of_unknown_tokens_waits_outside(
    build: Callable[..., Flask], backend: Backend, how: dict[str, str]
) -> None:
    backend.mode = Mode(delay=0.8)
    app = build(reverse_proxy=backend.url, authorization=("a-client-key-of-ours",))
    tokens = [jwt(sub=f"stranger-{number}") for number in range(30)]
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda token: ask(app, token, **how), tokens))
    codes = [answer.headers.get("X-Error-Code") for answer in answers]
    assert codes.count("too_many_attempts") == 30 - MOST_IN_FLIGHT
    assert len(backend.turns) == MOST_IN_FLIGHT
    refused = answers[codes.index("too_many_attempts")]
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "5"
    known = [token for token, code in zip(tokens, codes, strict=True) if code is None]
    backend.mode = Mode()
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda number: ask(app, known[0]), range(8)))
    assert {answer.status_code for answer in again} == {200}
