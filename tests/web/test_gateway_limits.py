"""Passages to ChatGPT count like turns: among the asks that an account has at once, and as the last ask of a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.chatgpt_backend import Backend, Mode
from tests.openai_backend import OpenAIBackend
from tests.waiting import wait_for
from tests.web.test_gateway import KEY, OWN, app, ask, turn

Build = Callable[..., Flask]
TURN = "/backend-api/conversation"


@contextmanager
def busy(client: FlaskClient, backend: Backend) -> Iterator[None]:
    """The account answers something within this, which its caller leaves at the end."""
    backend.mode = Mode(stall_after=2)
    held = FlaskClient(client.application).post(TURN, json=turn(), headers=KEY)
    assert next(iter(held.response))
    backend.mode = Mode()
    yield
    held.close()


def test_the_asks_of_an_account_are_bounded_however_they_come(
    build: Build, backend: Backend
) -> None:
    backend.mode = Mode(one_at_a_time=True, delay=0.1)
    made = app(build, backend.url, account_concurrency=1)

    def passed(path: str) -> int:
        answer = made.test_client().post(path, json=turn(), headers=KEY)
        return int(answer.status_code) if "[DONE]" in answer.text else 0

    def asked(prompt: str) -> int:
        fields = {"prompt": prompt}
        client = made.test_client()
        return int(client.post("/send_message", data=fields, headers=KEY).status_code)

    with ThreadPoolExecutor(6) as pool:
        paths = [TURN, "/chatgpt/conversation", "/backend-api/f/conversation", TURN]
        answers = [pool.submit(passed, path) for path in paths]
        answers += [pool.submit(asked, "hello") for _ in range(2)]
        assert [answer.result() for answer in answers] == [200] * 6
    tried = [each for each in backend.asked if each.path.endswith("conversation")]
    assert len(tried) == 6, "never one too many"


def test_a_turn_waits_and_whatever_else_passes_does_not(
    build: Build, backend: Backend
) -> None:
    made = app(build, backend.url, account_concurrency=1)
    object.__setattr__(made.extensions["service"].clocks, "keep_alive", 0.1)
    client = made.test_client()
    with ThreadPoolExecutor(1) as pool, busy(client, backend):
        waiting = pool.submit(client.post, TURN, json=turn(), headers=KEY)
        listed = made.test_client().get("/backend-api/conversations", headers=KEY)
        assert listed.status_code == 200
        ask(made.test_client(), headers=OWN)  # at its own account
        assert len(backend.turns) == 2
    answer = waiting.result()
    assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
    assert len(backend.turns) == 3


def test_who_waits_too_long_is_told(build: Build, backend: Backend) -> None:
    made = app(build, backend.url, account_concurrency=1, first_byte_timeout=0.3)
    client = made.test_client()
    with busy(client, backend):
        answer = client.post(TURN, json=turn(), headers=KEY)
        assert answer.status_code == 504, answer.text
        assert len(backend.turns) == 1


@pytest.mark.parametrize(
    "mode",
    [
        Mode(cut_after=3),
        Mode(refusals=[(500, {}, b'{"detail": "no"}')] * 2),
        Mode(refusals=[(404, {}, b"<html>no</html>")] * 2),
    ],
)
def test_an_account_is_free_again_whatever_happened(
    build: Build, backend: Backend, mode: Mode
) -> None:
    made = app(build, backend.url, account_concurrency=1, first_byte_timeout=5)
    client = made.test_client()
    for _ in range(2):
        backend.mode = mode
        assert "[DONE]" not in client.post(TURN, json=turn(), headers=KEY).text
        backend.mode = Mode()
        ask(client, TURN)


def test_a_keys_last_ask_is_noted(
    build: Build, backend: Backend, api: OpenAIBackend
) -> None:
    made = app(
        build,
        backend.url,
        authorization=("ann:the-key-of-ann-0", "bob:the-key-of-bob-0"),
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
    )
    client = made.test_client()
    store = made.extensions["service"].store
    ann = {"Authorization": "Bearer the-key-of-ann-0"}
    bob = {"Authorization": "Bearer the-key-of-bob-0"}
    client.get("/backend-api/models", headers=ann)
    ask(client, headers=OWN)
    assert store.last_asks() == {}
    ask(client, headers=ann)
    assert set(wait_for(store.last_asks)) == {"ann"}
    body = {"model": "tiny-1", "messages": [{"role": "user", "content": "hello"}]}
    path = "/platform/v1/chat/completions"
    assert client.post(path, json=body, headers=bob).status_code == 200
    assert set(store.last_asks()) == {"ann", "bob"}


def test_without_a_credential_nothing_is_noted(build: Build, backend: Backend) -> None:
    made = app(build, backend.url, access_token=())
    refused = made.test_client().post(TURN, json=turn())
    assert refused.status_code == 401
    assert made.extensions["service"].store.last_asks() == {}
