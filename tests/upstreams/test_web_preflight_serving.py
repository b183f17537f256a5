"""The service as a process before a strict backend: callers that leave before the question, many proofs at once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.chatgpt_backend import Backend
from tests.processes import SERVERS, Service, outcomes
from tests.sentinel import ArkoseService, Sentinel
from tests.tokens import jwt
from tests.waiting import wait_for

OWNER = "secret-of-the-owner"
Start = Callable[..., Service]


@pytest.fixture
def start(serve: Start, backend: Backend) -> Start:
    def begin(server: str = "pywsgi", **environ: str) -> Service:
        defaults = {
            "CHATGPT_BASE_URL": backend.url,
            "ACCESS_TOKEN": jwt(sub="owner"),
            "AUTHORIZATION": OWNER,
        }
        return serve(server, **{**defaults, **environ})

    return begin


def ask(service: Service, **fields: Any) -> requests.Response:
    payload = {"msg": "hello", "access_token": OWNER, **fields}
    return requests.post(f"{service.url}/ask", data=payload, timeout=60)


def begin_ask(service: Service) -> socket.socket:
    """Send an ask, and wait for nothing."""
    body = urlencode({"msg": "x", "access_token": OWNER}).encode()
    head = "POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", service.port))
    connection.sendall((head % len(body)).encode() + body)
    return connection


def is_waiting(backend: Backend, arkose: ArkoseService) -> bool:
    return any(asked.waiting for asked in backend.preflights)


#: how each phase is recognized from outside
REACHED: dict[str, Callable[[Backend, ArkoseService], Any]] = {
    "requirements": is_waiting,
    "finalize": is_waiting,
    "proof": lambda backend, arkose: backend.preflights,
    "arkose": lambda backend, arkose: arkose.asked,
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("phase", REACHED)
def test_a_caller_that_leaves_before_the_question_is_gone_within_a_second(
    start: Start,
    backend: Backend,
    sentinel: Sentinel,
    arkose: ArkoseService,
    server: str,
    phase: str,
) -> None:
    service = start(server, ARKOSE_TOKEN_URL=arkose.url, POW_DIFFICULTY="00000000")
    sentinel.silent = phase == "requirements"
    sentinel.two_step = sentinel.silent_finalize = phase == "finalize"
    sentinel.demand = {"proof": "endless", "arkose": "arkose"}.get(phase, "none")
    if phase == "arkose":
        arkose.silent.set()
    is_reached = REACHED[phase]
    with begin_ask(service):
        wait_for(lambda: is_reached(backend, arkose))
        time.sleep(0.3)
        assert not outcomes(service)
    left = time.monotonic()
    wait_for(lambda: outcomes(service), 3)
    took = time.monotonic() - left
    print(f"{server:9} {phase:14} {took * 1000:6.0f} ms")
    assert took < 1
    assert outcomes(service)[-1]["outcome"] == "caller_left"
    assert not backend.turns and "Traceback" not in service.logged()


def test_twenty_asks_at_once_have_a_proof_each(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "proof"
    service = start()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(service), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert len(backend.turns) == len(backend.preflights) == 20


def test_ten_proofs_at_once_let_others_be_answered(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "endless"
    service = start(POW_DIFFICULTY="00000000")
    callers = [begin_ask(service) for _ in range(10)]
    wait_for(lambda: len(backend.preflights) == 10)
    times = []
    with requests.Session() as session:
        session.get(f"{service.url}/healthz", timeout=5)
        for _ in range(200):
            begun = time.monotonic()
            assert session.get(f"{service.url}/healthz", timeout=5).ok
            times.append(time.monotonic() - begun)
    for caller in callers:
        caller.close()
    times.sort()
    print(f"median {times[100] * 1000:.1f} ms, longest {times[-1] * 1000:.1f} ms")
    assert times[100] < 0.05
    wait_for(lambda: len(outcomes(service)) == 10, 3)


def test_after_a_demand_for_a_browser_the_next_ask_reaches_nobody(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "turnstile"
    service = start()
    assert "Turnstile" in ask(service).text
    requests_before = len(backend.asked)
    refused = ask(service)
    assert refused.status_code == 403 and int(refused.headers["Retry-After"]) > 290
    assert len(backend.asked) == requests_before == 1
    ready = requests.get(
        f"{service.url}/readyz", headers={"Authorization": OWNER}, timeout=5
    )
    assert "account-" in json.dumps(ready.json())


def test_two_gateways_with_one_dead_answer_every_ask(
    start: Start, backend: Backend, sentinel: Sentinel
) -> None:
    sentinel.demand = "proof"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    service = start(CHATGPT_BASE_URL=f"{nobody},{backend.url}")
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(service), range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert len(backend.turns) == 10


def test_nothing_secret_is_logged(
    start: Start, backend: Backend, sentinel: Sentinel, arkose: ArkoseService
) -> None:
    sentinel.demand = "arkose"
    service = start(
        ARKOSE_TOKEN_URL=arkose.url, AUTH_KEY="secret-gateway-key", LOG_LEVEL="debug"
    )
    assert ask(service).ok
    arkose.answer = (500, b"secret-words-of-the-service")
    assert ask(service).status_code == 403
    logged = service.logged()
    secrets = ("secret-blob", "secret-arkose", "secret-words", "secret-gateway", "eyJ")
    assert not [secret for secret in (*secrets, "gAAAA") if secret in logged]
