"""Links of callers': off by default, and where they are fetched, only from addresses that anyone may reach."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flask import Flask

from relay.errors import BadRequest, Forbidden, TooLarge
from relay.links import LinkedFiles
from relay.transports.dialing import Address, DirectDialer
from relay.transports.direct import DirectTransport
from relay.transports.public import is_public, resolve_public
from tests.openai_backend import OpenAIBackend
from tests.pictures import png
from tests.replies import body_of

PRIVATE = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1"),
    *("192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255"),
    *("::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fe80::1%eth0"),
    *("fc00::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::", "2001:0:0:0:0:0:80ff:fffe", "::127.0.0.1", "no address", ""),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


class Site(ThreadingHTTPServer):
    """A server within the network: no caller may make us ask it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.content = png(5, 4)
        self.stall = 0.0
        self.asked: list[str] = []
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Page(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.headers['Host']}{self.path}")
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        content = self.server.content
        try:
            if self.server.stall:
                for at in range(len(content)):
                    self.wfile.write(content[at : at + 1])
                    time.sleep(self.server.stall)
            self.wfile.write(content)
        except OSError:
            pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.shutdown()
    site.server_close()


class Names:
    """A resolver of the test's own: each look-up of a name gives the next of its answers, and is counted."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.looked_up = 0

    def __call__(self, host: str, port: int) -> list[Address]:
        self.looked_up += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (
                socket.AF_INET6 if ":" in each else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (each, port),
            )
            for each in found
        ]


def reader(names: Names, seconds: float = 5.0) -> LinkedFiles:
    """As the service has it, but for the resolver."""
    dialer = DirectDialer(
        2.0, resolve=lambda host, port: resolve_public(host, port, names)
    )
    return LinkedFiles(DirectTransport(dialer, idle_seconds=0.0), seconds)


def open_reader(names: Names, seconds: float = 5.0) -> LinkedFiles:
    """One that may reach the test's own server: what its addresses mean is not looked at."""
    return LinkedFiles(DirectTransport(DirectDialer(2.0, resolve=names)), seconds)


REFUSED = "cannot be fetched"


@pytest.mark.attack
@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]", "localhost"),
        *("2130706433", "0x7f.1", "127.1", "0177.0.0.1"),
    ],
)
def test_no_private_address_is_asked_in_whatever_form(site: Site, host: str) -> None:
    dialer = DirectDialer(2.0, resolve=resolve_public)
    real = LinkedFiles(DirectTransport(dialer))
    with pytest.raises(BadRequest, match=REFUSED):
        real.fetch(f"http://{host}:{site.port}/a.png", "It")
    assert site.asked == []


@pytest.mark.attack
@pytest.mark.parametrize("inside", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::1"])
def test_a_name_that_means_something_inside_is_not_asked(
    site: Site, inside: str
) -> None:
    for answer in ([inside], ["93.184.216.34", inside], [inside, "93.184.216.34"]):
        with pytest.raises(BadRequest, match=REFUSED):
            link = f"http://pictures.example:{site.port}/a.png"
            reader(Names(answer)).fetch(link, "It")
    assert site.asked == []


@pytest.mark.attack
def test_a_name_is_looked_up_once_so_rebinding_it_leads_nowhere(site: Site) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    link = f"http://pictures.example:{site.port}/a.png"
    assert open_reader(names).fetch(link, "It").width == 5
    assert names.looked_up == 1, "the connection went to what was found first"
    rebound = Names(["10.255.255.1"], ["127.0.0.1"])
    with pytest.raises(BadRequest, match=REFUSED):
        reader(rebound).fetch(link, "It")
    assert rebound.looked_up == 1 and len(site.asked) == 1


@pytest.mark.attack
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(site: Site, status: int) -> None:
    site.status = status
    site.headers = {"Location": f"http://127.0.0.1:{site.port}/inside"}
    with pytest.raises(BadRequest, match=REFUSED):
        link = f"http://pictures.example:{site.port}/a.png"
        open_reader(Names(["127.0.0.1"])).fetch(link, "It")
    assert [path.partition("/")[2] for path in site.asked] == ["a.png"]


@pytest.mark.attack
@pytest.mark.parametrize(
    "link",
    [
        "http://user:password@pictures.example/a.png",
        "http:///a.png",
        "http://pictures.example:99999/a.png",
        "http://pictures.example:0/a.png",
        "http://pictures.example/a b.png",
        "http://pictures.example/é.png",
        "http://pictures.example/\r\nX: y",
        "http://[::1/a.png",
        "http://pictures.example/" + "a" * 3000,
    ],
)
def test_what_is_no_address_is_not_asked(link: str) -> None:
    names = Names(["127.0.0.1"])
    with pytest.raises(BadRequest, match=REFUSED):
        open_reader(names).fetch(link, "It")
    assert names.looked_up == 0


def test_a_page_that_is_no_image_is_refused(site: Site) -> None:
    site.content = b"<html>not here</html>"
    with pytest.raises(BadRequest, match="no image by its content"):
        link = f"http://pictures.example:{site.port}/a.png"
        open_reader(Names(["127.0.0.1"])).fetch(link, "It")


def test_size_and_time_have_limits(site: Site) -> None:
    link = f"http://pictures.example:{site.port}/a.png"
    read = open_reader(Names(["127.0.0.1"]), seconds=0.3)
    site.content = png(filling=200_000)
    with pytest.raises((BadRequest, TooLarge)):
        read.fetch(link, "It", 100_000)
    site.stall = 0.02
    started = time.monotonic()
    with pytest.raises(BadRequest, match=REFUSED):
        read.fetch(link, "It")
    assert time.monotonic() - started < 3


def test_errors_do_not_say_what_answers_within_the_network(site: Site) -> None:
    site.status = 404
    sentences = set()
    for host, port in (("a.example", site.port), ("a.example", 1), ("b.example", 2)):
        with pytest.raises(BadRequest) as found:
            read = open_reader(Names(["127.0.0.1"]))
            read.fetch(f"http://{host}:{port}/", "It")
        sentences.add(found.value.message)
    assert len(sentences) == 1


def test_links_are_off_unless_the_owner_allows_them() -> None:
    with pytest.raises(Forbidden, match="UPLOAD_BY_URL"):
        LinkedFiles(None).fetch("https://pictures.example/a.png", "It")


def test_the_setting_decides_on_the_own_routes(
    build: Callable[..., Flask], api: OpenAIBackend
) -> None:
    key = {"Authorization": "Bearer the-client-key-0"}
    asked = {"prompt": "what", "image": "http://127.0.0.1:1/a.png"}
    common = {
        "openai_base_url": api.url,
        "openai_api_key": ("sk-invented-1",),
        "authorization": ("the-client-key-0",),
    }
    for allowed, status, words in ((False, 403, "UPLOAD_BY_URL"), (True, 400, REFUSED)):
        client = build(**common, upload_by_url=allowed).test_client()
        answer = client.post("/ask", data=asked, headers=key)
        assert (answer.status_code, words in answer.json["msg"]) == (status, True)
    assert api.completions == []


def test_a_link_that_is_allowed_becomes_the_image(
    build: Callable[..., Flask],
    api: OpenAIBackend,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = open_reader(Names(["127.0.0.1"]))
    monkeypatch.setattr("relay.service.linked_files_for", lambda *_: read)
    app = build(openai_base_url=api.url, openai_api_key=("sk-invented-1",),
                authorization=("the-client-key-0",))  # fmt: skip
    link = f"http://pictures.example:{site.port}/tree.png"
    answer = app.test_client().post(
        "/send_message",
        json={"prompt": "what", "image": [link, link]},
        headers={"Authorization": "Bearer the-client-key-0"},
    )
    assert "[image_url]" in body_of(answer)["text"]
    [message] = api.completions[0].body["messages"]
    urls = [p["image_url"]["url"] for p in message["content"] if "image_url" in p]
    assert len(urls) == 2 and all(url.startswith("data:image/png") for url in urls)
    assert len(site.asked) == 1, "one link is fetched once"
