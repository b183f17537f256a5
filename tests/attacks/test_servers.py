"""Callers that hold a server: bodies that never end, heads that never end, answers that nobody reads; and its start and end."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests

from relay import connection as connections
from relay.connection import Connection, RequestBody
from tests.processes import ROOT, SERVERS, Service, free_port, need, outcomes
from tests.waiting import wait_for

pytestmark = pytest.mark.attack

LONGEST_WAIT = 0.5
Serve = Callable[..., Service]
Test = TypeVar("Test", bound=Callable[..., None])


class WaitedTooLong(AssertionError):
    """A bystander waited for longer than LONGEST_WAIT."""


def check_wait(bystander: Bystander) -> None:
    if bystander.longest >= LONGEST_WAIT:
        raise WaitedTooLong(f"{bystander.longest:.2f} s")


def in_three_tries(test: Test) -> Test:
    """What else runs on a machine makes callers wait too: of three tries, one must stay within the bound."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        for tries_left in (2, 1, 0):
            try:
                return test(*arguments, **fixtures)
            except WaitedTooLong:
                if not tries_left:
                    raise
        return None

    return run  # type: ignore[return-value]


class ImpatientService(Service):
    """The service with deadlines of a second or two."""

    options: tuple[str, ...] = ()

    def start(self) -> None:
        if "-c" in self._command:
            command = [*self._command[:-1], *self.options]
            self._command = [*command, "tests.attacks.impatient:app"]
        else:
            self._command = [sys.executable, "-m", "tests.attacks.impatient"]
        super().start()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Serve]:
    started: list[Service] = []

    def start(server: str, **environ: str) -> Service:
        need("pgrep")
        started.append(ImpatientService(tmp_path, server, environ))
        return started[-1]

    yield start
    for service in started:
        service.stop()


class Bystander(threading.Thread):
    """A second caller, who asks something cheap all the while: `longest` is its longest wait, s."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._url = f"{service.url}/healthz"
        self._over = threading.Event()
        self.longest = 0.0
        self.asked = 0

    def run(self) -> None:
        with requests.Session() as session:
            while not self._over.is_set():
                began = time.monotonic()
                session.get(self._url, timeout=60)
                self.longest = max(self.longest, time.monotonic() - began)
                self.asked += 1
                time.sleep(0.01)

    def __enter__(self) -> Bystander:
        self.start()
        wait_for(lambda: self.asked)
        self.longest = 0.0
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self.join(60)


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=15)


def answer_to(service: Service, request: bytes) -> bytes:
    """All that the service sends until it closes."""
    with connect(service) as caller:
        caller.sendall(request)
        return read_all(caller)


def read_all(caller: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := caller.recv(65536):
            answer += piece
    return answer


def flood(caller: socket.socket, data: bytes, seconds: float) -> float:
    """Send the same again and again; the seconds until the service hung up, or until the time was over."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < seconds:
            caller.sendall(data)
    return time.monotonic() - began


HEAD = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
ONE_BYTE_CHUNKS = b"1\r\nx\r\n" * 10_000
FLOODS = {
    "one-byte-chunks": (b"", ONE_BYTE_CHUNKS),
    "chunk-extensions": (b"", (b"1;" + b"a" * 4000 + b"\r\nx\r\n") * 20),
    "trailers": (b"0\r\n", (b"X: " + b"a" * 4000 + b"\r\n") * 20),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("kind", FLOODS)
@in_three_tries
def test_a_body_that_does_not_end_holds_nobody_else(
    impatient: Serve, server: str, kind: str
) -> None:
    service = impatient(server)
    start, data = FLOODS[kind]
    callers = [connect(service) for _ in range(3)]
    for caller in callers:
        caller.sendall(CHUNKED + b"\r\n" + start)
    with Bystander(service) as bystander:
        threads = [
            threading.Thread(target=flood, args=(caller, data, 3)) for caller in callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    for caller in callers:
        caller.close()
    assert bystander.asked > 5
    check_wait(bystander)
    assert service.resident() <= 250
    assert "Traceback" not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
@in_three_tries
def test_many_requests_in_one_packet_hold_nobody_else(
    impatient: Serve, server: str
) -> None:
    service = impatient(server)
    data = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 500
    callers = [connect(service) for _ in range(3)]
    with Bystander(service) as bystander:
        threads = [
            threading.Thread(target=work, args=arguments)
            for caller in callers
            for work, arguments in ((flood, (caller, data, 3)), (read_all, (caller,)))
        ]
        for thread in threads:
            thread.start()
        time.sleep(3.5)
    for caller in callers:
        caller.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(30)
    for caller in callers:
        caller.close()
    assert bystander.asked > 5
    check_wait(bystander)


@pytest.mark.parametrize("server", SERVERS)
@in_three_tries
def test_an_endless_body_after_a_wrong_key_is_hung_up_on(
    impatient: Serve, server: str
) -> None:
    service = impatient(server, AUTHORIZATION="the-client-key-of-it")
    wrong = CHUNKED + b"Authorization: Basic Ondyb25n\r\n\r\n"
    with Bystander(service) as bystander, connect(service) as caller:
        caller.sendall(wrong)
        answer = caller.recv(65536)
        seconds = flood(caller, ONE_BYTE_CHUNKS, 10)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert seconds < 5
    check_wait(bystander)


@pytest.mark.parametrize("server", SERVERS)
def test_a_refused_body_is_not_drained_and_its_answer_arrives(
    impatient: Serve, server: str
) -> None:
    """To close at once would reset the connection before its caller reads why."""
    service = impatient(server, MAX_BODY="1MB")
    body = b"x" * 8_000_000
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    answer = answer_to(service, head + body)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("trickle", [b"", b"x"], ids=["silent", "trickling"])
def test_a_body_that_is_sent_by_half_ends(
    impatient: Serve, server: str, trickle: bytes
) -> None:
    service = impatient(server)
    began = time.monotonic()
    with connect(service) as caller:
        caller.sendall(HEAD + b"Content-Length: 1000\r\n\r\nhalf of it")
        while trickle and time.monotonic() - began < 3:
            caller.sendall(trickle)
            time.sleep(0.3)
        answer = read_all(caller)
    assert 1.5 < time.monotonic() - began < 6
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert requests.get(f"{service.url}/conversations", timeout=5).json() == []
    assert "Traceback" not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
def test_a_slow_body_that_goes_on_is_read(impatient: Serve, server: str) -> None:
    """Each 64 KB that came is worth a second more."""
    service = impatient(server)
    piece = b"x" * 65_536
    with connect(service) as caller:
        caller.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (8 * len(piece)))
        for _ in range(8):
            caller.sendall(piece)
            time.sleep(0.4)
        caller.shutdown(socket.SHUT_WR)
        assert read_all(caller).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("server", SERVERS)
@in_three_tries
def test_a_worker_serves_on_after_answers_that_nobody_reads(
    impatient: Serve, server: str
) -> None:
    service = impatient(server)
    url = long_conversation(service, 4_000_000)
    path = url.removeprefix(service.url).encode()
    callers = [connect_without_reading(service, path) for _ in range(12)]
    before = len(outcomes(service))
    with Bystander(service) as bystander:
        began = time.monotonic()
        wait_for(lambda: len(outcomes(service)) >= before + len(callers), 9)
    assert time.monotonic() - began < 7
    check_wait(bystander)
    assert service.resident() <= 250
    assert "Traceback" not in service.logged()
    for caller in callers:
        caller.close()


def long_conversation(service: Service, size: int) -> str:
    """The URL of a conversation with an answer of this size."""
    fields = {"prompt": f"offline:long={size}"}
    url = f"{service.url}/send_message"
    answer = requests.post(url, data=fields, timeout=30).json()
    return f"{service.url}/conversation/{answer['conversation_id']}"


def connect_without_reading(service: Service, path: bytes) -> socket.socket:
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect(("127.0.0.1", service.port))
    caller.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return caller


@pytest.mark.parametrize("server", SERVERS)
def test_a_slow_reader_that_goes_on_gets_its_whole_answer(
    impatient: Serve, server: str
) -> None:
    service = impatient(server)
    url = long_conversation(service, 1_500_000)
    expected = len(requests.get(url, timeout=10).content)
    path = url.removeprefix(service.url).encode()
    received = b""
    began = time.monotonic()
    with connect_without_reading(service, path) as caller:
        caller.settimeout(10)
        while len(received) < expected:
            piece = caller.recv(100_000)
            assert piece, len(received)
            received += piece
            time.sleep(len(piece) / 500_000)
    assert time.monotonic() - began > 2.5, "longer than a caller may be silent"


ODD_HEADS = {
    "no-header": b"Host: localhost\r\nno header at all\r\nTransfer-Encoding: chunked",
    "two-encodings": b"Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "two-kinds-of-encoding": b"Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "two-hosts": b"Host: localhost\r\nHost: other.example",
    "bare-cr": b"Host: localhost\r\nX: a\rTransfer-Encoding: chunked",
    "envelope": b"From nobody: x\r\nHost: localhost",
    "too-many": b"Host: localhost\r\n" + b"\r\n".join([b"X: y"] * 150),
    "too-large": b"Host: localhost\r\n" + b"\r\n".join([b"X: " + b"y" * 8000] * 20),
}


@pytest.mark.parametrize("head", ODD_HEADS.values(), ids=ODD_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused(
    one_impatient: Service, head: bytes
) -> None:
    second = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    request = b"GET /healthz HTTP/1.1\r\n" + head + b"\r\n\r\n0\r\n\r\n"
    answer = answer_to(one_impatient, request + second)
    assert not answer or answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1 ") <= 1, "nothing after it is taken for a request"
    assert "Traceback" not in one_impatient.logged()


@pytest.fixture(scope="module", params=["pywsgi"])
def one_impatient(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    need("pgrep")
    folder = tmp_path_factory.mktemp("impatient")
    service = ImpatientService(folder, request.param, {})
    yield service
    service.stop()


def test_an_idle_connection_ends(one_impatient: Service) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    began = time.monotonic()
    answer = answer_to(one_impatient, request)
    assert answer.startswith(b"HTTP/1.1 200 ") and 1 < time.monotonic() - began < 6
    assert answer_to(one_impatient, b"") == b"", "also one that never sent anything"


@pytest.mark.parametrize("server", SERVERS)
def test_a_head_that_is_sent_by_half_ends(impatient: Serve, server: str) -> None:
    service = impatient(server)
    began = time.monotonic()
    with connect(service) as caller:
        with contextlib.suppress(OSError):
            for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 100:
                caller.sendall(bytes([byte]))
                time.sleep(0.1)
        assert read_all(caller) in (b"",)
    assert time.monotonic() - began < 8
    assert "Traceback" not in service.logged()


def test_a_caller_that_leaves_within_its_head_leaves_no_traceback(
    one_impatient: Service,
) -> None:
    with connect(one_impatient) as caller:
        caller.sendall(b"GET /healthz HTTP/1.1\r\nX: y")
        time.sleep(0.1)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert requests.get(f"{one_impatient.url}/healthz", timeout=5).ok
    assert "Traceback" not in one_impatient.logged()


def test_a_worker_that_is_blocked_is_replaced(
    impatient: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while an answer runs, for which gunicorn's own end of a worker would wait."""
    monkeypatch.setattr(ImpatientService, "options", ("--timeout", "2"))
    service = impatient("gunicorn")
    with connect(service) as running, connect(service) as blocking:
        body = b"hi offline:delay=60"
        running.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: requests.get(f"{service.url}/conversations", timeout=5).json())
        blocking.sendall(b"GET /block HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        assert requests.get(f"{service.url}/healthz", timeout=20).ok
        assert time.monotonic() - began < 7
    assert "WORKER TIMEOUT" in service.logged()


BLOCK = b"GET /block?of-a-caller HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_the_own_server_ends_where_it_is_blocked_and_somebody_starts_it_anew(
    impatient: Serve,
) -> None:
    service = impatient(
        "pywsgi",
        CHATGPT_WEBAPI_WORKER="1",
        CHATGPT_WEBAPI_SUPERVISOR=str(os.getpid()),
    )
    time.sleep(3)
    assert requests.get(f"{service.url}/healthz", timeout=5).ok, "it only had no work"
    with connect(service) as blocking:
        blocking.sendall(BLOCK)
        assert service.process.wait(10) == 1
    log = service.logged()
    assert "Timeout (0:00:02)!" in log and " in block" in log
    assert "of-a-caller" not in log


def test_the_own_server_outlives_a_block_where_nobody_would_start_it_anew(
    impatient: Serve,
) -> None:
    """Somebody may have stopped it at a terminal for a while."""
    service = impatient("pywsgi")
    with connect(service) as blocking:
        blocking.sendall(BLOCK)
        time.sleep(4)
        assert service.process.poll() is None
    service.kill()


GUNICORN = [sys.executable, "-m", "gunicorn"]
STARTS = {
    "gunicorn": (3, [*GUNICORN, "-c", "deploy/gunicorn.conf.py", "wsgi:app"]),
    "gunicorn-bare": (3, [*GUNICORN, "-k", "gevent", "-b", "127.0.0.1:0", "wsgi:app"]),
    "pywsgi": (1, [sys.executable, "chatgpt_webapi.py"]),
}
UNUSABLE = {
    "database-down": (
        "DATABASE_URL",
        "postgresql+psycopg://me:secret-word@127.0.0.1:{port}/db",
    ),
    "database-misspelt": ("DATABASE_URL", "sqlite:////proc/self/no.db"),
    "setting": ("READ_TIMEOUT", "soon"),
}


@pytest.mark.parametrize("server", STARTS)
@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used_ends_the_master(
    server: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exit_code, command = STARTS[server]
    name, value = UNUSABLE[kind]
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv(name, value.format(port=free_port()))
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=25
    )
    lines = ended.stderr.splitlines()
    reasons = [line for line in lines if "chatgpt-webapi cannot start: " in line]
    assert ended.returncode == exit_code, ended.stderr
    assert len(reasons) == 1
    assert "Traceback" not in ended.stderr and "secret-word" not in ended.stderr


PUBLIC = """
import wsgi

class Listener:
    def __init__(self, address):
        self.address = address
    def getsockname(self):
        return self.address

class Worker:
    age = 1
    cfg = type("Config", (), {{"workers": 1}})
    sockets = [Listener(("127.0.0.1", 80)), Listener("/run/a.socket"), Listener(("{host}", 80))]
    def handle(self, listener, client, address):
        pass
    def run(self):
        pass

wsgi.adapt_gunicorn(Worker, wsgi.service)
Worker().run()
"""


@pytest.mark.parametrize(
    ("host", "key", "warnings"),
    [
        ("0.0.0.0", "", 1),
        ("::", "", 1),
        ("203.0.113.5", "none", 1),
        ("0.0.0.0", "a-client-key-of-it", 0),
        ("127.0.0.1", "", 0),
        ("::1", "", 0),
    ],
)
def test_gunicorn_on_a_public_address_without_keys_is_warned_of(
    host: str, key: str, warnings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    if key:
        monkeypatch.setenv("AUTHORIZATION", key)
    ended = subprocess.run(
        [sys.executable, "-c", PUBLIC.format(host=host)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("without client keys") == warnings


def test_the_readme_prints_gunicorn_with_an_address() -> None:
    texts = [ROOT / "README.md", ROOT / "docs" / "server.md", ROOT / "wsgi.py"]
    text = "".join(path.read_text() for path in texts)
    commands = re.findall(r"gunicorn -k gevent[^`]*wsgi:app", text)
    assert commands
    assert all("-b 127.0.0.1:8080" in command for command in commands)


def pair(send_seconds: float = 5) -> tuple[Connection, socket.socket]:
    ours, other = socket.socketpair()
    return Connection.adopt(ours, send_seconds), other


def test_sending_ends_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SEND_SILENCE", 0.4)
    ours, other = pair()
    began = time.monotonic()
    with ours, other, pytest.raises(BrokenPipeError):
        ours.sendall(b"x" * 10_000_000)
    assert 0.3 < time.monotonic() - began < 3


def test_sending_ends_when_one_piece_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "SEND_SILENCE", 0.4)
    ours, other = pair(send_seconds=1)

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while other.recv(50_000):
                time.sleep(0.05)

    reader = threading.Thread(target=trickle)
    reader.start()
    began = time.monotonic()
    with ours, pytest.raises(BrokenPipeError):
        ours.sendall(b"x" * 100_000_000)
    assert 0.9 < time.monotonic() - began < 3
    reader.join(5)
    other.close()


def test_all_of_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = pair()
    data = bytes(range(256)) * 20_000
    with ours, other:
        sender = threading.Thread(target=ours.sendall, args=(data,))
        sender.start()
        received = b""
        while len(received) < len(data):
            received += other.recv(100_000)
        sender.join(5)
    assert received == data


def test_a_read_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)
    ours, other = pair()
    with ours, other, ours.makefile("rb") as source:
        body = RequestBody(source, ours, 100)
        other.sendall(b"x" * 20)
        with pytest.raises(TimeoutError):
            while body.read(10):
                pass
        assert not body.is_whole
