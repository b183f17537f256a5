"""Connections through real proxies, and through some that fail in every way."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask

from relay.errors import Unreachable, UpstreamCut
from relay.service import UPSTREAMS, transport_for
from relay.settings import Settings, SettingsError
from relay.startup import describe_start
from relay.transports import Call
from relay.transports.direct import DirectTransport
from relay.transports.proxies import Proxy, ProxyDialer
from relay.transports.selection import open_transports
from tests.chatgpt_backend import Backend
from tests.processes import free_port
from tests.proxy_servers import (
    KINDS,
    PASSWORD,
    USER,
    Authority,
    FakeProxy,
    TLSFront,
    microsocks,
    proxy,
    tinyproxy,
)
from tests.transports.test_direct import OK, Peer, read_all
from tests.waiting import wait_for

CONNECTED = b"HTTP/1.1 200 OK\r\n\r\n"
SOCKS_CONNECTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.chain))


def dialer(*urls: str, seconds: float = 5.0) -> ProxyDialer:
    return ProxyDialer([Proxy.parse(url) for url in urls], seconds)


def ignore(connection: socket.socket) -> None:
    pass


def dial(*urls: str, host: str = "localhost", seconds: float = 5.0) -> socket.socket:
    return dialer(*urls, seconds=seconds).dial(host, 443, ignore)


@pytest.fixture
def peer() -> Iterator[Peer]:
    answer = OK + b"Content-Length: 5\r\n\r\nhello"
    peer = Peer([answer], [answer])
    yield peer
    peer.listener.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_goes_through_each_kind_of_proxy(
    kind: str, authority: Authority, tmp_path: Path, peer: Peer
) -> None:
    with proxy(kind, tmp_path, authority) as url:
        transport = DirectTransport(dialer(url))
        for _ in range(2):
            assert read_all(transport.send(Call("GET", peer.url))) == (200, b"hello")
        transport.close()
    assert peer.connections == 1, "the second went over the first's connection"


@pytest.mark.parametrize("kind", KINDS)
def test_tls_to_the_upstream_goes_through_each_kind_of_proxy(
    kind: str, authority: Authority, tmp_path: Path, peer: Peer
) -> None:
    port = int(peer.url.rsplit(":", 1)[1])
    with (
        proxy(kind, tmp_path, authority) as url,
        closing(TLSFront(authority, port)) as front,
    ):
        transport = DirectTransport(dialer(url))
        call = Call("POST", f"https://localhost:{front.port}/", body=b"x" * 300_000)
        assert read_all(transport.send(call)) == (200, b"hello")
        transport.close()


def test_a_wrong_password_is_told_from_a_missing_one(tmp_path: Path) -> None:
    with tinyproxy(tmp_path, PASSWORD) as http, microsocks(PASSWORD) as socks:
        for scheme, port in (("http", http), ("socks5", socks)):
            with pytest.raises(Unreachable, match="refused its user and password"):
                dial(f"{scheme}://{USER}:wrong-one@127.0.0.1:{port}")
            with pytest.raises(Unreachable, match="asks for a user and a password"):
                dial(f"{scheme}://127.0.0.1:{port}")


def test_an_upstream_that_a_proxy_does_not_reach(tmp_path: Path) -> None:
    port = free_port()
    with tinyproxy(tmp_path) as http, microsocks() as socks:
        for url in (f"http://127.0.0.1:{http}", f"socks5://127.0.0.1:{socks}"):
            with pytest.raises(Unreachable, match="could not reach the upstream"):
                dialer(url).dial("127.0.0.1", port, ignore)
            with pytest.raises(Unreachable, match="could not reach the upstream"):
                dialer(url).dial("nowhere.invalid", port, ignore)


def http(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()


FAILURES = {
    "407": ("http", [http("407 Proxy Authentication Required")], "asks for a user"),
    "403": ("http", [http("403 Forbidden")], "refuses connections"),
    "502": ("http", [http("502 Bad Gateway")], "could not reach the upstream"),
    "504": ("http", [http("504 Gateway Timeout")], "could not reach the upstream"),
    "a redirect": ("http", [http("302 Found")], "answered as no proxy"),
    "garbage": ("http", [b"\x00\xff\r\n\r\n"], "answered as no proxy"),
    "a status that is no number": ("http", [b"HTTP/1.1 OK\r\n\r\n"], "as no proxy"),
    "a huge head": ("http", [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 9999], "as no"),
    "more than a head": ("http", [CONNECTED + b"more"], "answered as no proxy"),
    "a server of SOCKS": ("http", [b"\x05\x00\r\n\r\n"], "answered as no proxy"),
    "no method": ("socks5", [b"\x05\xff"], "asks for a user and a password"),
    "an unknown method": ("socks5", [b"\x05\x77"], "answered as no proxy"),
    "a server of HTTP": ("socks5", [http("400 Bad Request")], "answered as no proxy"),
    "not allowed": ("socks5", [b"\x05\x00", b"\x05\x02\x00\x01"], "refuses"),
    "no route": ("socks5", [b"\x05\x00", b"\x05\x04\x00\x01"], "could not reach"),
    "an unknown reply": ("socks5", [b"\x05\x00", b"\x05\x63\x00\x01"], "as no proxy"),
    "an unknown address": ("socks5", [b"\x05\x00", b"\x05\x00\x00\x63"], "as no proxy"),
    "more than a reply": ("socks5", [b"\x05\x00", SOCKS_CONNECTED + b"x"], "as no"),
    "no TLS": ("https", [http("400 Bad Request")], "did not agree on TLS"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_proxy_that_fails_has_a_sentence_for_it(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    scheme, answers, sentence = FAILURES[name]
    with closing(FakeProxy(*answers)) as fake:
        with pytest.raises(Unreachable, match=sentence) as caught:
            dial(f"{scheme}://localhost:{fake.port}", host="chat.example.org")
    assert "localhost" not in caught.value.message
    assert "example.org" not in caught.value.message
    assert f"{scheme}://localhost:{fake.port}" in caplog.text


@pytest.mark.parametrize("answers", [(), (b"\x05",)])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_a_proxy_that_hangs_up(scheme: str, answers: tuple[bytes, ...]) -> None:
    with closing(FakeProxy(*answers, cut=True)) as fake:
        with pytest.raises(Unreachable, match="closed the connection|agree on TLS"):
            dial(f"{scheme}://127.0.0.1:{fake.port}")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 99])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_neither_silence_nor_dripping_stretches_the_deadline(
    scheme: str, answer: bytes
) -> None:
    if answer and scheme != "http":
        answer = b"\x16\x03\x03\x40\x00" if scheme == "https" else b"\x05"
        answer += b"\x00" * 99 if scheme == "https" else b""
    with closing(FakeProxy(answer, drip=0.1)) as fake:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="did not answer within|agree on TLS"):
            dial(f"{scheme}://127.0.0.1:{fake.port}", seconds=1)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_an_interrupt_ends_dialing_at_once_and_is_no_fault_of_the_proxy(
    scheme: str,
) -> None:
    with closing(FakeProxy()) as fake, closing(FakeProxy()) as other:
        through = dialer(
            f"{scheme}://127.0.0.1:{fake.port}", f"{scheme}://127.0.0.1:{other.port}"
        )
        exchange = DirectTransport(through).send(Call("GET", "http://example.org/"))
        ended: list[float] = []

        def ask() -> None:
            with pytest.raises((UpstreamCut, Unreachable)):
                exchange.head(9)
            ended.append(time.monotonic())

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: fake.received)
        interrupted = time.monotonic()
        exchange.interrupt()
        thread.join(5)
        exchange.close()
        assert ended[0] - interrupted < 1
        assert fake.ended.wait(1) and not other.received
        assert [proxy.port for proxy in through._in_turn()] == [fake.port, other.port]


def test_the_next_proxy_takes_over_and_the_failed_one_is_tried_last(
    tmp_path: Path, peer: Peer
) -> None:
    host, port = "127.0.0.1", int(peer.url.rsplit(":", 1)[1])
    with tinyproxy(tmp_path) as last, closing(FakeProxy(http("403 No"))) as second:
        closed = f"socks5://127.0.0.1:{free_port()}"
        through = dialer(
            closed, f"http://127.0.0.1:{second.port}", f"http://127.0.0.1:{last}"
        )
        for _ in range(3):
            through.dial(host, port, ignore).close()
        assert len([each for each in second.received if each]) == 1
    with pytest.raises(Unreachable, match="None of 3 proxies leads to the upstream"):
        through.dial(host, port, ignore)


def test_names_are_looked_up_by_the_proxy() -> None:
    for scheme, answers in (
        ("http", [CONNECTED]),
        ("socks5", [b"\x05\x00", SOCKS_CONNECTED]),
        ("socks5h", [b"\x05\x00", SOCKS_CONNECTED]),
    ):
        with closing(FakeProxy(*answers)) as fake:
            dial(f"{scheme}://127.0.0.1:{fake.port}", host="nowhere.invalid").close()
            assert b"nowhere.invalid" in b"".join(fake.received)


def test_a_certificate_of_a_proxy_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with closing(TLSFront(authority, free_port())) as front:
        with pytest.raises(Unreachable, match="cannot be trusted"):
            dial(f"https://localhost:{front.port}")


def test_no_text_of_a_proxy_has_its_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://{USER}:{PASSWORD}@127.0.0.1:{free_port()}"
    known = Proxy.parse(url)
    assert known.password == PASSWORD
    assert PASSWORD not in f"{known!r}{known}" and USER not in f"{known!r}{known}"
    with pytest.raises(Unreachable) as caught:
        dial(url)
    assert PASSWORD not in caplog.text + str(caught.value)
    assert "proxy cannot be reached: connection refused" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.example", Proxy("http", "proxy.example", 80)),
        ("https://proxy.example", Proxy("https", "proxy.example", 443)),
        ("SOCKS5://proxy.example", Proxy("socks5", "proxy.example", 1080)),
        ("socks5h://[::1]:9", Proxy("socks5", "::1", 9)),
        ("http://a%3Ab:c@h:1", None),
        ("http://a:%E4%BD%A0@h:1", None),
        ("http://a:b%0D%0A@h:1", None),
        ("socks5://a@h:1", None),
        ("socks5://a:%C3%A9@h:1", None),
        (f"socks5://a:{'b' * 256}@h:1", None),
        ("http://h:99999", None),
        ("socks5://u:p%2F%40%25@h:1", Proxy("socks5", "h", 1, "u", "p/@%")),
    ],
)
def test_a_url_of_a_proxy(url: str, expected: Proxy | None) -> None:
    if expected is not None:
        assert Proxy.parse(url) == expected
        return
    with pytest.raises(SettingsError, match="PROXY_URL cannot be read") as caught:
        open_transports(Settings(proxy_url=(url,)))
    assert url.partition("@")[0] not in str(caught.value)


def test_proxies_of_the_environment_are_never_used(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    transports = open_transports(Settings())
    status, _ = read_all(transports.chatgpt.send(Call("GET", f"{backend.url}/x")))
    assert status == 404
    transports.close()


@pytest.mark.parametrize("base", ["", "http://127.0.0.1:1/v1"])
def test_which_upstreams_are_asked_through_proxies(base: str) -> None:
    settings = Settings(proxy_url=("http://127.0.0.1:1",), openai_base_url=base)
    transports = open_transports(settings)
    ways = {name: transport_for(name, settings, transports) for name in UPSTREAMS}
    assert ways["chatgpt-web"] is transports.proxied
    assert ways["openai"] is (transports.direct if base else transports.proxied)
    transports.close()


def test_a_start_says_through_which_proxies(build: Callable[..., Flask]) -> None:
    proxies = (f"http://{USER}:{PASSWORD}@proxy.example:3128", "socks5h://other:1")
    app = build(proxy_url=proxies)
    lines = describe_start(app.extensions["service"], ("127.0.0.1", 1))
    told = "\n".join(line.text for line in lines)
    assert "through http://proxy.example:3128, then socks5://other:1." in told
    assert PASSWORD not in told and USER not in told
