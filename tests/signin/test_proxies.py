"""Signing in by proxies: which one, that it finds the names, and that its own credentials are written nowhere."""

from __future__ import annotations

import base64
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
import requests

from relay.errors import Unreachable
from relay.settings import Settings
from relay.signin.grants import Credentials
from relay.signin.logins import open_logins
from tests.conftest import running
from tests.processes import Service, free_port
from tests.signin_pages import EMAIL, PASSWORD, SignInPages

CREDENTIALS = Credentials(EMAIL, PASSWORD)


class Proxy(ThreadingTCPServer):
    """Knows one name, chat.invalid, and passes every connection to the address of a server of the tests."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[str] = []
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave


def pump(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until either ends."""
    ends = {one: other, other: one}
    while True:
        for ready in select.select([one, other], [], [])[0]:
            received = ready.recv(65536)
            if not received:
                return
            ends[ready].sendall(received)


class Socks(StreamRequestHandler):
    """SOCKS5 with a user name and a password, as RFC 1928 and 1929 have them."""

    server: Proxy

    def handle(self) -> None:
        methods = self.rfile.read(self.rfile.read(2)[1])
        assert 2 in methods
        self.wfile.write(b"\x05\x02")
        assert self.rfile.read(1) == b"\x01"
        user = self.rfile.read(self.rfile.read(1)[0])
        password = self.rfile.read(self.rfile.read(1)[0])
        assert (user, password) == (b"proxy-user", b"proxy:secret")
        self.wfile.write(b"\x01\x00")
        assert self.rfile.read(4) == b"\x05\x01\x00\x03"  # a name, not an address
        name = self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2), "big")
        self.server.asked.append(name)
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            self.wfile.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
            pump(self.connection, upstream)


class HTTP(StreamRequestHandler):
    """An HTTP proxy for http:// addresses, one request a connection."""

    server: Proxy

    def handle(self) -> None:
        method, url, _ = self.rfile.readline().decode().split(" ")
        head = []
        while (line := self.rfile.readline().strip()) != b"":
            head.append(line)
        wanted = base64.b64encode(b"proxy-user:proxy:secret")
        assert b"Proxy-Authorization: Basic " + wanted in head
        host, _, path = url.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")
        self.server.asked.append(name)
        kept = [
            line for line in head if not line.lower().startswith((b"proxy", b"con"))
        ]
        sizes = [
            int(line[15:])
            for line in head
            if line.lower().startswith(b"content-length")
        ]
        lines = [f"{method} /{path} HTTP/1.1".encode(), *kept, b"Connection: close"]
        lines += [line for line in head if line.lower().startswith(b"content-")]
        with socket.create_connection(("127.0.0.1", int(port))) as upstream:
            body = self.rfile.read(sum(sizes))
            upstream.sendall(b"\r\n".join([*lines, b"", body]))
            upstream.settimeout(10)
            status, _, rest = upstream.makefile("rb").read().partition(b"\r\n")
            # or the next request may go into a connection that ends just then
            self.wfile.write(status + b"\r\nConnection: close\r\n" + rest)


@pytest.fixture(params=["socks5h", "socks5", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def proxy(scheme: str) -> Iterator[Proxy]:
    yield from running(Proxy(HTTP if scheme == "http" else Socks))


@pytest.fixture
def named(pages: SignInPages) -> SignInPages:
    """Pages under names that only the proxy knows."""
    pages.chatgpt.url = pages.chatgpt.url.replace("127.0.0.1", "chat.invalid")
    pages.auth.url = pages.auth.url.replace("localhost", "auth.invalid")
    return pages


def address_of(scheme: str, proxy: Proxy) -> str:
    return f"{scheme}://proxy-user:proxy%3Asecret@127.0.0.1:{proxy.port}"


def test_the_next_proxy_is_tried_where_one_cannot_be_reached(
    named: SignInPages, proxy: Proxy, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And it stays the same for the whole sign-in."""
    caplog.set_level(logging.DEBUG)
    dead = f"{scheme}://proxy-user:proxy%3Asecret@127.0.0.1:{free_port()}"
    settings = Settings(
        chatgpt_base_url=(named.chatgpt.url,),
        auth_base_url=named.auth.url,
        proxy_url=(dead, address_of(scheme, proxy)),
    )
    grant = open_logins(settings).to_chatgpt(CREDENTIALS, "192.0.2.1")
    assert grant.access_token == named.tokens[0] and named.sign_ins == 1
    assert set(proxy.asked) == {"chat.invalid", "auth.invalid"}
    assert "the next is tried" in caplog.text and "secret" not in caplog.text


def test_where_none_can_be_reached(pages: SignInPages, scheme: str) -> None:
    dead = tuple(f"{scheme}://127.0.0.1:{free_port()}" for _ in range(2))
    settings = Settings(chatgpt_base_url=(pages.chatgpt.url,), proxy_url=dead)
    with pytest.raises(Unreachable, match="PROXY_URL"):
        open_logins(settings).to_chatgpt(CREDENTIALS, "192.0.2.1")
    assert not pages.all_received


def test_a_proxy_of_the_environment_counts_for_nothing(
    serve: Callable[..., Service], pages: SignInPages
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    names = ("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    service = serve(**pages.settings, **dict.fromkeys(names, dead))
    url = f"{service.url}/get_access_token"
    body = {"email": EMAIL, "password": PASSWORD}
    assert requests.post(url, data=body, timeout=20).json()["access_token"]


def test_the_service_signs_in_by_a_proxy(
    serve: Callable[..., Service], named: SignInPages, proxy: Proxy, scheme: str
) -> None:
    """Under gevent too, and nothing of the proxy's password is written."""
    service = serve(
        **named.settings, PROXY_URL=address_of(scheme, proxy), LOG_LEVEL="debug"
    )
    url = f"{service.url}/get_access_token"
    body = {"email": EMAIL, "password": PASSWORD}
    assert requests.post(url, data=body, timeout=20).json()["access_token"]
    assert "secret" not in service.logged() and proxy.asked
