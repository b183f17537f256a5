"""A sign-in that takes long stops nobody else, and goes on without the caller that began it."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.processes import Service
from tests.signin_pages import EMAIL, PASSWORD, SignInPages
from tests.waiting import wait_for

Start = Callable[..., Service]
CREDENTIALS = {"username": EMAIL, "password": PASSWORD}


def test_the_caller_that_began_it_leaves_and_the_others_get_their_token(
    serve: Start, pages: SignInPages
) -> None:
    pages.mode.hold["/u/login/password"] = held = threading.Event()
    service = serve(**pages.settings)
    body = f'{{"username": "{EMAIL}", "password": "{PASSWORD}"}}'.encode()
    head = f"POST /imitate/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as leaving:
        leaving.sendall(head.encode() + body)
        wait_for(lambda: pages.sign_ins)
    with ThreadPoolExecutor(3) as executor:
        url = f"{service.url}/imitate/login"
        waiting = [
            executor.submit(requests.post, url, json=CREDENTIALS, timeout=20)
            for _ in range(3)
        ]
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert requests.get(f"{service.url}/healthz", timeout=5).ok
            times.append(time.monotonic() - began)
        held.set()
        answers = {future.result().json()["accessToken"] for future in waiting}
    assert answers == {pages.tokens[0]} and pages.sign_ins == 1
    assert statistics.median(times) < 0.5


def test_pages_that_drip_hold_nobody_for_ever(serve: Start, pages: SignInPages) -> None:
    pages.mode.drip_head = "/u/login/password"
    service = serve(**pages.settings, TOTAL_TIMEOUT="1.5")
    url = f"{service.url}/chatgpt/login"
    with ThreadPoolExecutor(5) as executor:
        answers = list(
            executor.map(
                lambda _: requests.post(url, data=CREDENTIALS, timeout=15), range(5)
            )
        )
    assert {answer.status_code for answer in answers} == {504}
    pages.mode.drip_head = ""
    assert requests.post(url, data=CREDENTIALS, timeout=15).ok
