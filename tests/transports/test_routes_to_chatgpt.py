"""Each transport through each kind of proxy, as the service uses them: failures, callers that leave, many at once."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.chatgpt_backend import Backend, Mode
from tests.conftest import running
from tests.processes import Service, need
from tests.proxy_servers import KINDS, PASSWORD, Authority, FakeProxy, TLSFront, proxy
from tests.upstreams.test_chatgpt_web_serving import PHASES, leave

KEY = "secret-of-the-owner"
WHOLE = "Turn 1. You said: hello — 你好 🙂."
TRANSPORTS = {"direct": "", "tls": "chrome_133"}
ROUTES = [(transport, kind) for transport in TRANSPORTS for kind in ("none", *KINDS)]
#: asks /healthz for a while, and prints the seconds that each took
HEALTH = """
import http.client, sys, time
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    connection.close()
    print(time.monotonic() - began)
    time.sleep(0.02)
"""


@dataclass(frozen=True)
class Route:
    name: str
    service: Service
    backend: Backend
    front: TLSFront

    def ask(self) -> requests.Response:
        self.backend.running.clear()
        return requests.post(
            f"{self.service.url}/ask",
            data={"msg": "hello", "access_token": KEY, "timeout": 2000},
            timeout=60,
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=ROUTES, ids="-".join)
def route(
    request: pytest.FixtureRequest,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Route]:
    """The service before a backend behind TLS, on one of the ways there."""
    need("pgrep")
    transport, kind = request.param
    folder = tmp_path_factory.mktemp("route")
    with ExitStack() as stack:
        backend = stack.enter_context(contextmanager(running)(Backend()))
        port = int(backend.url.rsplit(":", 1)[1])
        front = stack.enter_context(closing(TLSFront(authority, port)))
        environ = {
            "REVERSE_PROXY": f"https://localhost:{front.port}",
            "ACCESS_TOKEN": "secret-token-1",
            "AUTHORIZATION": KEY,
            "SSL_CERT_FILE": str(authority.chain),
            "TLS_CLIENT": TRANSPORTS[transport],
            "MAX_ANSWER": "1MB",
        }
        if kind != "none":
            opened = proxy(kind, folder, authority)
            environ["PROXY_URL"] = stack.enter_context(opened)
        service = Service(folder, "pywsgi", environ)
        stack.callback(service.stop)
        yield Route(f"{transport} {kind}", service, backend, front)


GARBAGE = b"\x00\xff\xfe no event at all"
FAILURES: dict[str, tuple[Mode, int]] = {
    "slow": (Mode(pace=0.02), 200),
    "CRLF and split characters": (Mode(crlf=True, pieces_of=7), 200),
    "deltas in packets of three bytes": (Mode(encoding="delta", pieces_of=3), 200),
    "silent in the middle": (Mode(stall_after=4), 504),
    "cut in the middle": (Mode(cut_after=3), 502),
    "garbage": (Mode(raw=GARBAGE), 502),
    "garbage that is no stream": (Mode(raw=GARBAGE, content_type="text/html"), 502),
    "huge": (Mode(raw=b"data: " + b"x" * 3_000_000), 502),
    "limited": (Mode(refusals=[(429, {"Retry-After": "0"}, b"{}")]), 429),
    "wrong": (Mode(refusals=[(400, {}, b'{"detail": "no"}')]), 400),
    "a page": (Mode(refusals=[(403, {"Content-Type": "text/html"}, b"<p>")]), 403),
}


def test_failures_are_the_same_on_every_route(route: Route) -> None:
    found = {}
    for name, (mode, _) in FAILURES.items():
        # each refusal is given once
        route.backend.mode = Mode(**{**vars(mode), "refusals": list(mode.refusals)})
        answer = route.ask()
        found[name] = answer.status_code
        if answer.status_code == 200:
            assert answer.json()["data"]["message"] == WHOLE
    assert found == {name: status for name, (_, status) in FAILURES.items()}


def test_a_caller_that_leaves_is_gone_upstream_within_a_second(
    route: Route, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {}
    for name, mode in PHASES.items():
        route.backend.running.clear()
        route.backend.mode = mode
        seconds[name] = leave(route.service.port, route.backend, {"stream": "true"})
    shown = "".join(f"  {name}: {1000 * each:.0f} ms" for name, each in seconds.items())
    with capsys.disabled():
        print(f"\n{route.name:24}{shown}")
    assert max(seconds.values()) < 1


def test_a_hundred_streams_leave_the_loop_free(
    route: Route, capsys: pytest.CaptureFixture[str]
) -> None:
    route.backend.mode = Mode(pace=0.5)
    began = time.monotonic()

    def stream(number: int) -> str:
        fields = {"msg": "hello", "access_token": KEY, "format": "text"}
        answer = requests.post(
            f"{route.service.url}/ask", {**fields, "stream": "true"}, timeout=60
        )
        answer.encoding = "utf-8"
        return answer.text.rstrip()

    probe = [sys.executable, "-c", HEALTH, str(route.service.port), "6"]
    with (
        subprocess.Popen(probe, stdout=subprocess.PIPE, text=True) as health,
        ThreadPoolExecutor(100) as pool,
    ):
        texts = list(pool.map(stream, range(100)))
        took = time.monotonic() - began
        seconds = [float(line) for line in health.stdout or ()]
    assert set(texts) == {WHOLE}
    median = statistics.median(seconds)
    with capsys.disabled():
        shown = f"100 streams in {took:.1f} s, /healthz at the median {1000 * median:.0f} ms"
        print(f"\n{route.name:24}  {shown}, {route.service.resident()} MB resident")
    assert median < 1


def test_no_password_is_told(route: Route) -> None:
    ready = requests.get(
        f"{route.service.url}/readyz",
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=10,
    )
    assert ready.ok
    told = route.service.logged() + ready.text
    assert PASSWORD not in told and "secret-token-1" not in told
    assert "Traceback" not in told
    lines = [json.loads(line).get("message", "") for line in told.splitlines()[:9]]
    transport, kind = route.name.split()
    proxied = any(re.search("asked through (http|https|socks5)://l", s) for s in lines)
    assert proxied == (kind != "none")
    shaped = any("by tls-client, as chrome_133 is." in line for line in lines)
    assert shaped == (transport == "tls")


Serve = Callable[..., Service]


def test_a_proxy_that_refuses_is_told_without_its_password(
    serve: Serve, backend: Backend
) -> None:
    with closing(FakeProxy(b"HTTP/1.1 407 No\r\n\r\n")) as fake:
        service = serve(
            REVERSE_PROXY=backend.url,
            PROXY_URL=f"http://somebody:{PASSWORD}@127.0.0.1:{fake.port}",
        )
        answer = requests.post(
            f"{service.url}/ask",
            data={"msg": "x", "access_token": "eyJhbGciOiJub25lIn0.e30.x"},
            timeout=30,
        )
        assert answer.status_code == 502
        assert "proxy refused its user and password" in answer.text
        told = service.logged() + answer.text
    assert PASSWORD not in told and "somebody" not in told
    assert f"http://127.0.0.1:{fake.port}" in service.logged()


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
def test_a_profile_that_is_unknown_refuses_the_start(
    serve: Serve, server: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="tls-client has no profile netscape_4"):
        serve(server, TLS_CLIENT="netscape_4")


def test_it_works_under_gunicorn(
    serve: Serve, backend: Backend, authority: Authority
) -> None:
    port = int(backend.url.rsplit(":", 1)[1])
    with closing(TLSFront(authority, port)) as front:
        service = serve(
            "gunicorn",
            REVERSE_PROXY=f"https://localhost:{front.port}",
            ACCESS_TOKEN="secret-token-1",
            AUTHORIZATION=KEY,
            SSL_CERT_FILE=str(authority.chain),
            TLS_CLIENT="chrome_133",
        )
        answer = Route("", service, backend, front).ask()
    assert answer.json()["data"]["message"] == WHOLE


def test_nothing_of_tls_client_is_loaded_where_it_is_not_set(
    serve: Serve, backend: Backend
) -> None:
    service = serve(REVERSE_PROXY=backend.url, ACCESS_TOKEN="secret-token-1")
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "tls-client" not in maps
