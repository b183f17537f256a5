"""What an upstream may do to the service: stretch its clocks, keep it busy, fill it, tell on it."""

from __future__ import annotations

import gzip
import json
import logging
import select
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from relay.accounts import Account, AccountPool, Attempts
from relay.delivery import (
    Background,
    BackgroundDelivery,
    Clocks,
    DirectDelivery,
    Silent,
)
from relay.dialects import form
from relay.domain import Delta, Event, Finished, Reply, Started
from relay.errors import RelayError, Unreachable, UpstreamFailed, UpstreamTimeout
from relay.settings import SettingsError
from relay.transports import Call, Headers
from relay.transports.direct import DirectTransport
from relay.turn import Turn, TurnContext
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.http import LARGEST_UNSTREAMED, HttpSession, Limits, Step
from relay.upstreams.openai.decoder import MOST_CALLS, OpenAIDecoder
from relay.upstreams.wording import Secrets
from tests.attacks.hostile import (
    CHUNKED,
    EVENTS,
    Answer,
    Hostile,
    Watch,
    chunk,
    delta,
    endlessly,
    once,
    receive,
    watched,
    withstands,
)
from tests.chatgpt_backend import Backend
from tests.chatgpt_backend import Mode as WebMode
from tests.growth import assert_grows_at_most, processor_seconds
from tests.openai_backend import Mode, OpenAIBackend, error
from tests.processes import SERVERS, Service, free_port, need
from tests.tokens import jwt
from tests.waiting import wait_for

pytestmark = pytest.mark.attack

Serve = Callable[..., Service]
Build = Callable[..., Flask]
KEY = "a-client-key-of-the-owner"
CLOSE = EVENTS + b"Connection: close\r\n\r\n"


@pytest.fixture
def hostile() -> Iterator[Callable[..., Hostile]]:
    servers: list[Hostile] = []

    def start(**more: Any) -> Hostile:
        answers = more.pop("answers")
        servers.append(Hostile(answers, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def start(serve: Serve, server: str, upstream: Hostile, **environ: str) -> Service:
    settings = {
        "OPENAI_BASE_URL": upstream.url,
        "OPENAI_MODEL": "tiny",
        "AUTHORIZATION": KEY,
        "FIRST_BYTE_TIMEOUT": "1.5",
        "READ_TIMEOUT": "1.5",
        "TOTAL_TIMEOUT": "3",
        "CONNECT_TIMEOUT": "1",
    }
    return serve(server, **{**settings, **environ})


def ask(service: Service, word: str, **more: Any) -> requests.Response:
    headers = {"Authorization": KEY, **more.pop("headers", {})}
    payload = {"msg": f"Go on, {word}", **more}
    return requests.post(f"{service.url}/ask", payload, headers=headers, timeout=60)


# Clocks

FLOODS: dict[str, Answer] = {
    "comments": endlessly(CLOSE, b": ping\n\n"),
    "deltas": endlessly(CLOSE, delta("a")),
    "empty-deltas": endlessly(CLOSE, delta("")),
    "line-ends": endlessly(CLOSE, b"\n"),
    "tiny-chunks": endlessly(CHUNKED, chunk(b":") + chunk(b"\n")),
    "interim-responses": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers": endlessly(EVENTS, b"A: b\r\n"),
    "chunk-extensions": endlessly(CHUNKED + b"1", b";a=b"),
    "trailers": endlessly(CHUNKED + chunk(delta("a")) + b"0\r\n", b"A: b\r\n"),
    "whole-body": endlessly(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"choices": ["', b"x"
    ),
}
DRIPS: dict[str, Answer] = {
    "slow-headers": endlessly(EVENTS, b"a: b\r\n", 0.1),
    "slow-interim-responses": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    "slow-comments": endlessly(CLOSE, b": ping\n\n", 0.1),
    "slow-deltas": endlessly(CLOSE, delta("a"), 0.1),
    "slow-empty-deltas": endlessly(CLOSE, delta(""), 0.1),
    "slow-chunk-extension": endlessly(CHUNKED + b"1", b";a=b", 0.1),
    "slow-trailers": endlessly(
        CHUNKED + chunk(delta("a")) + b"0\r\n", b"A: b\r\n", 0.1
    ),
    "slow-body": endlessly(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{", b" ", 0.1
    ),
}


@pytest.mark.parametrize("server", SERVERS)
def test_no_flood_stretches_a_clock_or_blocks_another_caller(
    serve: Serve, hostile: Callable[..., Hostile], server: str
) -> None:
    upstream = hostile(answers={**FLOODS, **DRIPS})
    service = start(serve, server, upstream, MAX_ANSWER="10GB")
    words = list(upstream.answers)

    def attack() -> Watch:
        began = time.monotonic()
        with watched(service) as watch, ThreadPoolExecutor(len(words)) as pool:
            answers = list(pool.map(lambda word: ask(service, word), words))
            seconds = time.monotonic() - began
        assert {answer.status_code for answer in answers} <= {502, 504}
        assert seconds < 3 + 2, "the total clock, and a moment"
        return watch

    assert withstands(attack)
    assert "Traceback" not in service.logged()


class Unwilling:
    """Takes the beginning of a question alone. `answer`: what it says then; `left`: its caller's connection ended."""

    def __init__(self, answer: bytes) -> None:
        self.left = threading.Event()
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(self._answer)
            poll = select.poll()
            poll.register(connection, select.POLLRDHUP)
            if poll.poll(20_000):
                self.left.set()


REFUSED_EARLY = (
    b"HTTP/1.1 413 No\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n"
)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"", 504), (REFUSED_EARLY + b'{"error": {"message": "too long"}}', 413)],
    ids=["silent", "refuses"],
)
def test_an_upstream_that_takes_no_long_question_is_waited_for_as_any_other(
    serve: Serve, server: str, answer: bytes, status: int
) -> None:
    upstream = Unwilling(answer)
    service = start(serve, server, upstream)  # type: ignore[arg-type]
    began = time.monotonic()
    failed = ask(service, "x" * 8_000_000)
    assert failed.status_code == status and time.monotonic() - began < 3 + 2
    assert upstream.left.wait(5)


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """For localhost; `chain.pem` is what trusts it."""
    key = tmp_path / "key.pem"
    chain = tmp_path / "chain.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    kind = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    files = ("-keyout", str(key), "-out", str(chain))
    command = [need("openssl"), "req", *kind, *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


class SlowTLS(Hostile):
    """Sends a byte at a time: of its handshake, or of the record that has its answer."""

    def __init__(self, context: ssl.SSLContext, slow_handshake: bool) -> None:
        super().__init__({})
        self.url = self.url.replace("http:", "https:")
        self._context = context
        self._slow_handshake = slow_handshake

    def _serve(self, connection: socket.socket) -> None:
        received = ssl.MemoryBIO()
        to_send = ssl.MemoryBIO()
        tls = self._context.wrap_bio(received, to_send, server_side=True)
        with connection:
            try:
                self._converse(connection, tls, received, to_send)
            except OSError:
                self.left.append(time.monotonic())

    def _converse(
        self,
        connection: socket.socket,
        tls: ssl.SSLObject,
        received: ssl.MemoryBIO,
        to_send: ssl.MemoryBIO,
    ) -> None:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._send(connection, to_send.read(), self._slow_handshake)
                received.write(receive(connection))
        self._send(connection, to_send.read(), False)
        received.write(receive(connection))
        tls.write(CLOSE + delta("a") * 100)
        self._send(connection, to_send.read(), True)

    def _send(self, connection: socket.socket, data: bytes, slowly: bool) -> None:
        for position in range(0, len(data), 1 if slowly else 65536):
            connection.sendall(data[position : position + (1 if slowly else 65536)])
            time.sleep(0.1 if slowly else 0)


@pytest.mark.parametrize("slow_handshake", [True, False], ids=["handshake", "record"])
def test_tls_that_drips_stretches_no_clock(
    serve: Serve, certificate: ssl.SSLContext, tmp_path: Path, slow_handshake: bool
) -> None:
    upstream = SlowTLS(certificate, slow_handshake)
    trusted = str(tmp_path / "chain.pem")
    service = start(serve, "pywsgi", upstream, SSL_CERT_FILE=trusted)
    began = time.monotonic()
    answer = ask(service, "now")
    assert time.monotonic() - began < 3
    assert answer.status_code == (502 if slow_handshake else 504), answer.text
    upstream.close()


class Steps:
    """A stream that follows a script: bytes, or seconds before them, fewer than are waited for."""

    dispatched = True

    def __init__(self, steps: Iterator[bytes | float]) -> None:
        self._steps = steps

    def read(self, seconds: float) -> bytes | None:
        step = next(self._steps, b"")
        if isinstance(step, bytes):
            return step
        time.sleep(step)
        return self.read(seconds)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


class Letters:
    """Each piece is an event: `S` starts, `C` completes the answer, `.` is none, anything else is text."""

    def __init__(self) -> None:
        self.started = False
        self.complete = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        match piece:
            case b"S":
                self.started = True
                yield Started()
            case b"C":
                self.complete = True
            case b".":
                return
            case _:
                yield Delta(piece.decode())

    def end(self) -> list[Event]:
        return [Finished("stop")]


class NoKeeper:
    """Keeps nothing."""

    returns_ids = needs_text = False

    def accepted(self, started: Started) -> None:
        pass

    def completed(self, reply: Reply) -> None:
        pass

    def failed(self, text: str, model: Any, error: RelayError, sent: bool) -> bool:
        return False


PRINTER = form.Events(form.SEND_MESSAGE)


def deliver(
    steps: Iterator[bytes | float], clocks: Clocks, printer: Any = PRINTER
) -> DirectDelivery:
    turn = Turn(Steps(steps), Letters(), NoKeeper(), printer, TurnContext())  # type: ignore[arg-type]
    return DirectDelivery(lambda: turn, printer, clocks)


def pinging(*first: bytes) -> Iterator[bytes | float]:
    yield from first
    while True:
        yield 0.02
        yield b"."


def test_what_follows_a_complete_answer_does_not_hold_it_back() -> None:
    clocks = Clocks(first_byte=5, silence=0.3, total=3)
    delivery = deliver(pinging(b"S", b"ab", b"C"), clocks, Silent())
    began = time.monotonic()
    assert delivery.reply().text == "ab"
    assert time.monotonic() - began < 1


def test_pings_do_not_hold_a_streams_status_back() -> None:
    clocks = Clocks(first_byte=5, silence=5, total=2, keep_alive=0.2)
    began = time.monotonic()
    pieces = deliver(pinging(), clocks).stream()
    assert next(iter(pieces)) == PRINTER.keep_alive
    assert time.monotonic() - began < 1


def test_a_caller_that_reads_slowly_makes_no_upstream_silent() -> None:
    clocks = Clocks(first_byte=5, silence=0.2, total=5)
    texts = []
    for piece in deliver(iter([b"S", b"a", b"b", b"c"]), clocks).stream():
        time.sleep(0.3)
        texts.append(piece)
    wire = b"".join(texts)
    assert b"event: done" in wire and b"event: error" not in wire


# Sizes


MEGABYTE = 1024 * 1024
PACKED = b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CONTENT = b'{"choices": [{"message": {"content": "'


def packed(body: bytes, times: int) -> bytes:
    """A gzip of the body, so many times over; packed once, and without the end that nobody is to reach."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(body) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * times


def bombs() -> dict[str, Answer]:
    """Answers far above the bound, most of them from a thousandth of it."""
    return {
        "packed-deltas": once(EVENTS + PACKED, packed(delta("x" * 1000) * 900, 50)),
        "packed-event": once(EVENTS + PACKED, packed(b"data: " + b"x" * MEGABYTE, 50)),
        "packed-comments": once(EVENTS + PACKED, packed(b":\n" * MEGABYTE, 25)),
        "packed-body": once(JSON + PACKED, packed(CONTENT + b"x" * MEGABYTE, 400)),
        "packed-lists": once(JSON + PACKED, packed(b"[[],[]," * 150_000, 50)),
        "words": endlessly(CLOSE, delta("y" * 1000) * 100),
    }


@pytest.mark.parametrize("server", SERVERS)
def test_an_answer_of_any_size_stops_at_the_bound(
    serve: Serve, hostile: Callable[..., Hostile], server: str
) -> None:
    upstream = hostile(answers=bombs())
    service = start(serve, server, upstream, TOTAL_TIMEOUT="6", MAX_ANSWER="10MB")

    def attack() -> Watch:
        with watched(service) as watch:
            for word in upstream.answers:
                answer = ask(service, word)
                assert answer.status_code in (502, 504), (word, answer.text[:300])
        return watch

    assert withstands(attack)
    assert "Traceback" not in service.logged()


LARGEST = LARGEST_UNSTREAMED - 1024
BODIES = {
    "bomb": (JSON + PACKED, packed(CONTENT + b"x" * MEGABYTE, 400)),
    "lists": (JSON + b"\r\n", CONTENT[:13] + b"{},[]," * (LARGEST // 6) + b"1]}"),
    "text": (JSON + b"\r\n", CONTENT + b"x" * LARGEST + b'"}}]}'),
    "emoji": (JSON + b"\r\n", CONTENT + "🙂".encode() + b"x" * LARGEST + b'"}}]}'),
    "line-ends": (JSON + b"\r\n", b"\n" * LARGEST + CONTENT + b'x"}}]}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_the_largest_size_fits_into_memory(
    serve: Serve, hostile: Callable[..., Hostile], name: str
) -> None:
    upstream = hostile(answers={"body": once(*BODIES[name])})
    service = start(
        serve, "pywsgi", upstream, FIRST_BYTE_TIMEOUT="20", TOTAL_TIMEOUT="20"
    )

    def attack() -> Watch:
        with watched(service) as watch:
            answer = ask(service, "body")
        assert answer.status_code == 502, answer.text[:300]
        return watch

    assert withstands(attack)


def test_what_came_until_the_bound_is_kept_as_broken(
    serve: Serve, hostile: Callable[..., Hostile]
) -> None:
    upstream = hostile(answers={"words": endlessly(CLOSE, delta("y" * 100))})
    service = start(serve, "pywsgi", upstream, MAX_ANSWER="300KB")
    answer = ask(service, "words", stream="true")
    failure = answer.text.partition("event: error\n")[2]
    assert "larger than MAX_ANSWER allows" in failure
    headers = {"Authorization": KEY}
    identifier = answer.headers["X-Conversation-Id"]
    url = f"{service.url}/conversation/{identifier}"
    tree = requests.get(url, headers=headers, timeout=10).json()
    kept = [node["message"] for node in tree["mapping"].values() if node["message"]]
    assert kept[-1]["status"] == "finished_partial_completion"
    size = len(kept[-1]["content"]["parts"][0])
    assert 100_000 < size < 300 * 1024


class OneStream:
    """A procedure of one request after the other, with the same question."""

    model = ""

    def __init__(self, url: str, times: int = 1) -> None:
        self._url = url
        self._times = times

    def steps(self, account: Any) -> Any:
        body = json.dumps({"messages": [{"content": "word"}]}).encode()
        for _ in range(self._times):
            call = Call("POST", f"{self._url}/", {}, body)
            yield Step(call, asks=True, streams=True)

    def decode_body(self, response: Any) -> bytes:
        raise UpstreamFailed("This is no stream.")


@pytest.fixture
def transport() -> Iterator[DirectTransport]:
    transport = DirectTransport()
    yield transport
    transport.close()


def session_of(
    transport: DirectTransport, url: str, times: int = 1, largest: int = 10**10
) -> HttpSession:
    account = Account("a", "")
    pool = AccountPool((account,))
    attempts = Attempts(pool, (account,), 0)
    limits = Limits(answer=largest)
    procedure = OneStream(url, times)
    return HttpSession(transport, procedure, pool, attempts, limits)


@pytest.mark.parametrize(("times", "fits"), [(2, True), (3, False)])
def test_all_streams_of_an_answer_count_together(
    transport: DirectTransport,
    hostile: Callable[..., Hostile],
    times: int,
    fits: bool,
) -> None:
    stream = CHUNKED + chunk(b":" + b"x" * 999) + b"0\r\n\r\n"
    upstream = hostile(answers={"word": once(stream)})
    session = session_of(transport, upstream.url, times, 2000)
    read = 0
    try:
        while piece := session.read(5):
            read += len(piece)
        assert fits and piece == b"" and read == 2000
    except UpstreamFailed as failure:
        assert not fits and "larger than MAX_ANSWER" in failure.message
    finally:
        session.close()


def cumulative(pieces: int) -> Iterator[bytes]:
    """A message that is sent whole each time, a few letters longer."""
    for number in range(pieces):
        message = {
            "id": "a1",
            "author": {"role": "assistant"},
            "content": {"content_type": "text", "parts": ["word " * number]},
            "status": "in_progress",
        }
        payload = {"message": message, "conversation_id": "C", "error": None}
        yield b"data: %s\n\n" % json.dumps(payload).encode()


def test_a_message_that_is_sent_whole_each_time_counts_once() -> None:
    decoder = WebDecoder()
    sent = 0
    for event in cumulative(2500):
        sent += len(event)
        list(decoder.feed(event))
    assert sent > 10 * MEGABYTE
    assert sent - decoder.repeated < 100_000


def test_what_follows_the_end_of_a_packed_body_is_not_gathered(
    transport: DirectTransport,
    hostile: Callable[..., Hostile],
) -> None:
    whole = gzip.compress(b": a\n", mtime=0)
    upstream = hostile(answers={"word": endlessly(EVENTS + PACKED + whole, b"garbage")})
    session = session_of(transport, upstream.url)
    began = time.monotonic()
    with pytest.raises(UpstreamFailed):
        while session.read(5) != b"":
            pass
    session.close()
    assert time.monotonic() - began < 2


def test_many_headers_of_one_name_cost_their_length() -> None:
    def seconds(count: int) -> float:
        pairs = [("a", "bcdef")] * count
        return processor_seconds(lambda: Headers(pairs))

    assert_grows_at_most(8 * 4, seconds, 20_000, 160_000)


def test_the_calls_of_an_answer_are_bounded() -> None:
    calls = [{"index": index, "id": "c"} for index in range(MOST_CALLS + 1)]
    event = {"choices": [{"delta": {"tool_calls": calls}}]}
    with pytest.raises(UpstreamFailed, match="calls"):
        list(OpenAIDecoder().feed(b"data: %s\n\n" % json.dumps(event).encode()))


def test_edits_of_too_many_values_are_refused() -> None:
    decoder = WebDecoder()
    list(decoder.feed(b'event: delta_encoding\ndata: "v1"\n\n'))
    snapshot = next(iter(cumulative(1))).removeprefix(b"data: ").strip()
    list(
        decoder.feed(
            b'event: delta\ndata: {"p": "", "o": "add", "v": %s}\n\n' % snapshot
        )
    )
    values = b"[" + b",".join([b"{}"] * 9000) + b"]"
    with pytest.raises(UpstreamFailed, match="too many values"):
        for number in range(100):
            frame = b'{"p": "/message/metadata/l%d", "o": "add", "v": %s}' % (
                number,
                values,
            )
            list(decoder.feed(b"event: delta\ndata: %s\n\n" % frame))


def test_output_that_nobody_reads_does_not_pile_up(
    serve: Serve, hostile: Callable[..., Hostile]
) -> None:
    upstream = hostile(answers={"words": endlessly(CLOSE, delta("y" * 10_000))})
    service = start(serve, "pywsgi", upstream, TOTAL_TIMEOUT="30", READ_TIMEOUT="30")

    def attack() -> Watch:
        upstream.asked.clear()
        callers = [send_and_read_nothing(service, number) for number in range(20)]
        with watched(service) as watch:
            wait_for(lambda: len(upstream.asked) == 20, 20)
            time.sleep(4)
        for caller in callers:
            caller.close()
        return watch

    withstood = withstands(attack)
    service.kill()  # the answers go on, and a stop would wait for them
    assert withstood


def send_and_read_nothing(service: Service, number: int) -> socket.socket:
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect(("127.0.0.1", service.port))
    body = b"msg=words&stream=true"
    caller.sendall(
        b"POST /ask HTTP/1.1\r\nHost: localhost\r\nAuthorization: %s\r\nIdempotency-Key: k%d\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s"
        % (KEY.encode(), number, len(body), body)
    )
    return caller


def test_a_follower_that_does_not_read_holds_the_reading_back() -> None:
    clocks = Clocks(first_byte=5, silence=5, total=5)
    taken: list[int] = []

    def script() -> Iterator[bytes | float]:
        yield b"S"
        for _ in range(100):
            taken.append(1)
            yield b"y" * 100_000

    source = deliver(script(), clocks)
    background = Background()
    delivery = BackgroundDelivery(source, background, PRINTER, clocks)
    pieces = delivery.stream()
    next(pieces)
    time.sleep(0.3)
    assert 5 < len(taken) < 30
    wire = b"".join(pieces)
    answer, _, end = wire.partition(b"event: done")
    assert answer.count(b"y") == 100 * 100_000 and end
    delivery.close()


def test_a_turn_whose_follower_left_goes_on() -> None:
    clocks = Clocks(first_byte=5, silence=5, total=5)
    script: list[bytes | float] = [b"S", *[b"x" * 100_000] * 100]
    source = deliver(iter(script), clocks)
    background = Background()
    delivery = BackgroundDelivery(source, background, PRINTER, clocks)
    next(delivery.stream())
    delivery.leave()
    background.wait(5)
    assert source.outcome == "whole"
    delivery.close()


# Secrets

EXTRA = 'quoted"secret/of\\ours'
EXTRAS = {"X-Gateway-Key": EXTRA, "Cookie": "session=cookie-of-ours; other=1"}
SECRETS = (EXTRA, "cookie-of-ours", "sk-invented-1", "access-token-of-ours")


def echoes(secret: str) -> dict[str, bytes]:
    """Errors that quote a secret, in many forms."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in secret)
    slashes = json.dumps(secret).replace("/", "\\/")
    return {
        "message": json.dumps(error(f"wrong: {secret}!")).encode(),
        "code": json.dumps(error("wrong", code=secret)).encode(),
        "escaped": b'{"error": {"message": "wrong: %s"}}' % escaped.encode(),
        "slashes": b'{"error": {"message": %s}}' % slashes.encode(),
        "detail": json.dumps({"detail": [{"msg": secret, "loc": [secret]}]}).encode(),
        "key": json.dumps({secret: 1}).encode(),
        "text": f"wrong: {secret}".encode(),
    }


@pytest.mark.parametrize("secret", SECRETS[:3])
@pytest.mark.parametrize("shape", echoes(""))
def test_an_openai_server_that_quotes_what_it_was_sent_is_not_passed_on(
    build: Build, api: OpenAIBackend, secret: str, shape: str
) -> None:
    client = build(
        authorization=(KEY,),
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        openai_headers=EXTRAS,
        openai_model="tiny-1",
    ).test_client()
    body = echoes(secret)[shape]
    headers = {"Authorization": KEY}
    event = b"event: error\ndata: %s\n\n" % body.replace(b"\n", b" ")
    for status in (400, 401, 429, 500, 0):
        api.mode = Mode(failing={"x": (status, body)})
        if status == 0:
            api.mode = Mode(text="")
            api.mode.raw = event
        answer = client.post("/ask", data={"msg": "x"}, headers=headers)
        assert answer.status_code >= 400
        assert_nothing_told(answer.text, secret)


def assert_nothing_told(text: str, secret: str) -> None:
    assert secret not in text
    assert json.dumps(secret)[1:-1] not in text
    assert secret[2:] not in text


@pytest.mark.parametrize("secret", [EXTRA, "cookie-of-ours", "access-token-of-ours"])
@pytest.mark.parametrize("shape", echoes(""))
def test_a_chatgpt_backend_that_quotes_what_it_was_sent_is_not_passed_on(
    build: Build, backend: Backend, secret: str, shape: str
) -> None:
    client = build(
        authorization=(KEY,),
        reverse_proxy=backend.url,
        access_token=("access-token-of-ours",),
        chatgpt_headers=EXTRAS,
    ).test_client()
    body = echoes(secret)[shape]
    headers = {"Authorization": KEY}
    json_type = {"Content-Type": "application/json"}
    for status in (400, 401, 429, 500, 0):
        backend.mode = WebMode(refusals=[(status, json_type, body)])
        if status == 0:
            backend.mode = WebMode(raw=b"data: %s\n\n" % body)
        answer = client.post("/ask", data={"msg": "x"}, headers=headers)
        assert answer.status_code >= 400
        assert_nothing_told(answer.text, secret)


def test_what_is_public_in_a_request_may_be_quoted() -> None:
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "User-Agent": "chatgpt-webapi",
        "X-Request-Id": "an-id-of-a-request",
        "Authorization": "Bearer a-key-of-ours",
        "X-Short": "abc",
    }
    text = b"chatgpt-webapi sent application/json with a-key-of-ours and abc"
    redacted = b"chatgpt-webapi sent application/json with ... and abc"
    assert Secrets(headers).redact(text) == redacted


# The upstream's address


def refused_ports() -> dict[str, Callable[[int], None]]:
    """How a connection fails, by what is sent to whoever connects."""

    def listen(answer: bytes | None) -> Callable[[int], None]:
        def serve(port: int) -> None:
            with socket.create_server(("127.0.0.1", port)) as listener:
                listener.settimeout(5)
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer or b"")

        return serve

    return {
        "closed": listen(None),
        "garbage": listen(b"garbage\r\n\r\n"),
        "cut": listen(CHUNKED + b"5\r\n: a"),
    }


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("failure", ["refused", *refused_ports()])
def test_no_caller_is_told_where_the_upstream_is(
    build: Build, caplog: pytest.LogCaptureFixture, scheme: str, failure: str
) -> None:
    port = free_port()
    client = build(
        authorization=(KEY,),
        openai_base_url=f"{scheme}://127.0.0.1:{port}",
        openai_model="tiny",
        openai_headers={"X-Gateway-Key": "secret-of-ours"},
    ).test_client()
    thread = None
    if failure != "refused":
        serve = refused_ports()[failure]
        thread = threading.Thread(target=serve, args=(port,), daemon=True)
        thread.start()
        time.sleep(0.2)
    caplog.set_level(logging.INFO)
    answer = client.post("/ask", data={"msg": "x"}, headers={"Authorization": KEY})
    assert answer.status_code == 502
    told = f"{answer.text} {dict(answer.headers)}"
    assert "127.0.0.1" not in told and str(port) not in told
    lines = [record.getMessage() for record in caplog.records]
    named = [line for line in lines if f"127.0.0.1:{port}" in line]
    assert len(named) == (0 if failure == "cut" and scheme == "http" else 1), lines
    assert "secret-of-ours" not in caplog.text
    if failure == "refused":
        assert "cannot be reached: connection refused." in answer.text
    if thread is not None:
        thread.join(5)


def test_a_certificate_that_is_not_trusted_names_no_host(
    certificate: ssl.SSLContext, hostile: Callable[..., Hostile]
) -> None:
    upstream = hostile(answers={}, tls=certificate)
    exchange = DirectTransport().send(Call("GET", f"{upstream.url}/"))
    with pytest.raises(Unreachable) as untrusted:
        exchange.head(5)
    exchange.close()
    message = "The upstream's certificate cannot be trusted."
    assert untrusted.value.message == message


# What was a 500

ODD_PROXIES = [
    "http://127.0.0.1:99999/",
    "http://[::1",
    "http://[::1]:x/",
    "http://proxy.invalid/中",
    "http://proxy.invalid/ü",
    "http://proxy.invalid/a b",
    "http://proxy.invalid/\x7f",
    "http://proxy.invalid:0/",
]


@pytest.mark.parametrize("address", ODD_PROXIES)
def test_an_odd_address_of_a_proxy_is_refused(build: Build, address: str) -> None:
    client = build(
        authorization=(KEY,),
        access_token=("access-token-of-ours",),
        reverse_proxy_allow=(address, "http://proxy.invalid"),
    ).test_client()
    headers = {"Authorization": KEY}
    data = {"msg": "x", "reverse_proxy": address}
    answer = client.post("/ask", data=data, headers=headers)
    assert answer.status_code == 403 and "reverse_proxy" in answer.text


@pytest.mark.parametrize("setting", ["reverse_proxy", "openai_base_url"])
@pytest.mark.parametrize("address", ODD_PROXIES)
def test_an_odd_address_in_a_setting_refuses_the_start(
    build: Build, setting: str, address: str
) -> None:
    with pytest.raises(SettingsError, match=setting.upper()):
        build(authorization=(KEY,), **{setting: address})


@pytest.mark.parametrize("value", ["中", "a\r\nX-Other: b", "a\0b", "a\nb"])
@pytest.mark.parametrize("place", ["header", "path"])
def test_what_no_header_can_carry_is_not_sent(value: str, place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        call = Call("GET", url, {"X-Value": value})
        if place == "path":
            if "\n" in value:
                return  # urlsplit takes line ends out
            call = Call("GET", url + value)
        exchange = DirectTransport().send(call)
        with pytest.raises(RelayError) as refused:
            exchange.head(1)
        exchange.close()
        assert refused.value.status == 400
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(1)
            assert connection.recv(100) == b""


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/", "http://[::1", "ftp://h/", "http:///x", "x"]
)
def test_what_is_no_address_is_unreachable(url: str) -> None:
    with pytest.raises(Unreachable):
        DirectTransport().send(Call("GET", url))


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


ODD_ERRORS = [
    pytest.param({"Retry-After": "9" * 400}, b"{}", id="retry-after"),
    pytest.param({"x-ratelimit-reset-requests": "9" * 400}, b"{}", id="reset"),
    pytest.param({"x-ratelimit-reset-requests": "9" * 99 + "s"}, b"{}", id="seconds"),
    pytest.param({"retry-after-ms": "9" * 400}, b"{}", id="milliseconds"),
    pytest.param({}, b'{"detail": {"clears_in": %s}}' % (b"9" * 400), id="clears-in"),
    pytest.param({}, b'{"error": {"code": %s}}' % (b"9" * 400), id="code"),
    *(
        pytest.param({}, b'{"error": %s}' % nested(depth).encode(), id=f"deep-{depth}")
        for depth in (253, 254, 255, 990, 5000)
    ),
    *(
        pytest.param(
            {},
            b'{"error": {"message": "m", "more": %s}}' % nested(depth).encode(),
            id=f"deep-beside-{depth}",
        )
        for depth in (253, 254, 990, 5000)
    ),
]


@pytest.mark.parametrize(("headers", "body"), ODD_ERRORS)
@pytest.mark.parametrize("status", [400, 429, 503, 200])
def test_an_odd_error_is_a_clear_one(
    build: Build, backend: Backend, headers: dict[str, str], body: bytes, status: int
) -> None:
    client = build(
        authorization=(KEY,),
        reverse_proxy=backend.url,
        access_token=("access-token-of-ours",),
    ).test_client()
    json_type = {"Content-Type": "application/json"}
    backend.mode = WebMode(refusals=[(status, headers | json_type, body)])
    key = {"Authorization": KEY}
    answer = client.post("/ask", data={"msg": "x"}, headers=key)
    assert 400 <= answer.status_code < 600 and answer.status_code != 500
    backend.mode = WebMode(raw=b"data: %s\n\n" % body)
    answer = client.post("/ask", data={"msg": "x"}, headers=key)
    assert answer.status_code in (429, 502)


@pytest.mark.parametrize(("headers", "body"), ODD_ERRORS)
@pytest.mark.parametrize("status", [400, 429, 503, 200])
def test_an_odd_error_of_an_openai_server_is_a_clear_one(
    build: Build, headers: dict[str, str], body: bytes, status: int, hostile: Any
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{lines}"
    length = f"Content-Length: {len(body)}\r\n\r\n"
    event = b"data: %s\n\n" % body
    upstream = hostile(
        answers={"x": once(f"{head}{length}".encode() + body), "y": once(CLOSE + event)}
    )
    client = build(
        authorization=(KEY,), openai_base_url=upstream.url, openai_model="tiny"
    ).test_client()
    for word in ("x", "y"):
        key = {"Authorization": KEY}
        answer = client.post("/ask", data={"msg": word}, headers=key)
        assert 400 <= answer.status_code < 600 and answer.status_code != 500


def test_a_token_with_claims_of_any_depth_is_a_token(
    build: Build, backend: Backend
) -> None:
    client = build(reverse_proxy=backend.url).test_client()
    for depth in (250, 990, 5000):
        token = jwt(sub=json.loads(nested(min(depth, 900))))
        answer = client.post("/ask", data={"msg": "x", "access_token": token})
        assert answer.status_code in (200, 401)


@pytest.mark.parametrize("depth", [250, 254, 900])
def test_a_conversation_of_any_depth_is_shown_or_refused(
    build: Build, backend: Backend, depth: int
) -> None:
    client = build(
        authorization=(KEY,),
        reverse_proxy=backend.url,
        access_token=("access-token-of-ours",),
    ).test_client()
    key = {"Authorization": KEY}
    asked = client.post("/ask", data={"msg": "x"}, headers=key)
    identifier = asked.get_json()["data"]["conversation_id"]
    tree = backend.trees[identifier]
    tree["title"] = json.loads(nested(depth))
    answer = client.get(f"/conversation/{identifier}", headers=key)
    assert answer.status_code == (200 if depth < 253 else 502)
    answer = client.get("/conversations", headers=key)
    assert answer.status_code == 200


# Connections that wait for nothing


def test_an_idle_connection_ends_when_its_time_is_over(
    hostile: Callable[..., Hostile],
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    def keep(connection: socket.socket) -> None:
        connection.sendall(answer)
        assert connection.recv(1) == b""

    first = hostile(answers={"word": keep})
    second = hostile(answers={"word": keep})
    transport = DirectTransport(idle_seconds=0.2)
    body = json.dumps({"messages": [{"content": "word"}]}).encode()

    def call(upstream: Hostile) -> None:
        exchange = transport.send(Call("POST", f"{upstream.url}/", {}, body))
        assert exchange.head(5) and exchange.read(5) == b"hi"
        assert exchange.read(5) == b""
        exchange.close()

    call(first)
    time.sleep(0.3)
    assert not first.left
    call(second)
    wait_for(lambda: first.left, 2)
    assert not second.left
    transport.close()


def test_a_silent_upstream_is_given_up_in_time(
    transport: DirectTransport,
    hostile: Callable[..., Hostile],
) -> None:
    """The clocks of a session are its reader's: it gives None in time, whatever comes."""
    for name, answer in FLOODS.items():
        if name in ("comments", "deltas", "empty-deltas", "line-ends", "tiny-chunks"):
            continue
        upstream = hostile(answers={"word": answer})
        session = session_of(transport, upstream.url)
        began = time.monotonic()
        try:
            while session.read(0.3):
                pass
        except (UpstreamFailed, UpstreamTimeout):
            pass
        assert time.monotonic() - began < 2, name
        session.close()
