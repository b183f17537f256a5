"""The shared HTTP session, exercised by an upstream of the tests' own: stateless, SSE, a wire format like nobody else's.

The upstream is what somebody writes who adds one: a procedure, a decoder, a class. It is below 80 lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from flask import Flask

from relay import sse
from relay.accounts import Account, AccountPool, Attempts, Resting
from relay.domain import Delta, Event, Finished, Message, Question, Started
from relay.errors import (
    OneAtATime,
    RateLimited,
    RelayError,
    TokenRejected,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.transports import Call, Transport
from relay.transports.direct import DirectTransport
from relay.upstreams.http import HttpSession, Limits, Step, Steps, WholeResponse
from tests.conftest import running
from tests.replies import body_of
from tests.waiting import wait_for


# The upstream of the tests' own begins here.
class HaikuDecoder:
    """Events `verse` with a line each, ended by an event `fin`."""

    def __init__(self) -> None:
        self.started = False
        self.complete = False
        self._events = sse.Parser()

    def feed(self, piece: bytes) -> Iterator[Event]:
        for name, data in self._events.feed(piece):
            if not self.started:
                self.started = True
                yield Started("haiku-1")
            match name:
                case "verse":
                    yield Delta(json.loads(data)["line"])
                case "fin":
                    yield Finished("stop")
                case "oops":
                    raise UpstreamFailed("The poet gave up.")

    def end(self) -> list[Event]:
        raise UpstreamCut()


class HaikuProcedure:
    model = ""

    def __init__(self, url: str, question: Question) -> None:
        self._url = url
        self._question = question

    def steps(self, account: Account) -> Steps:
        lines = [
            f"{message.role}: {message.text}" for message in self._question.messages
        ]
        content = json.dumps({"dialogue": lines}).encode()
        headers = {"X-Poet": account.token, "Content-Type": "application/json"}
        call = Call("POST", f"{self._url}/haiku", headers, content)
        yield Step(call, asks=True, streams=True)

    def decode_body(self, response: WholeResponse) -> bytes:
        if response.status == 401:
            raise TokenRejected("The poet does not know you.")
        if response.status == 429:
            raise RateLimited("The poet rests.", retry_after=60)
        if response.status == 409:
            raise OneAtATime("The poet is busy.")
        raise UpstreamRefused("The poet refuses.", status=response.status)


class Haiku:
    name = "haiku"
    needs_client_key = True
    accepts_caller_tokens = False
    stores_conversations = False
    accepts_options = False
    accepts_files = False
    history = forwarder = gateway = None

    def __init__(self, transport: Transport, url: str, *tokens: str) -> None:
        self._transport = transport
        self._url = url
        self.pool = AccountPool(tuple(Account(token, token) for token in tokens))

    def recognizes(self, token: str) -> bool:
        return False

    def resting(self) -> list[Resting]:
        return self.pool.resting()

    def ask(self, question: Question) -> tuple[HttpSession, HaikuDecoder]:
        procedure = HaikuProcedure(self._url, question)
        attempts = Attempts(self.pool, self.pool.in_turn(), most=3)
        limits = Limits(patience=1.5)
        session = HttpSession(self._transport, procedure, self.pool, attempts, limits)
        return session, HaikuDecoder()


# And it ends here.


class Poet(ThreadingHTTPServer):
    """The counterpart: answers each request with the next of its scripts, (status, type, pieces)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PoetHandler)
        self.scripts: list[tuple[int, str, list[bytes]]] = []
        self.asked: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class PoetHandler(BaseHTTPRequestHandler):
    server: Poet

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        self.server.asked.append((self.headers["X-Poet"], body["dialogue"]))
        status, kind, pieces = self.server.scripts.pop(0)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        pass


VERSES = [
    b'event: verse\ndata: {"line": "An old silent pond"}\n\n',
    b"event: fin\ndata: {}\n\n",
]
ANSWER = (200, "text/event-stream", VERSES)
BUSY = (409, "text/plain", [b"busy"])


@pytest.fixture
def poet() -> Iterator[Poet]:
    yield from running(Poet())


@pytest.fixture
def transport() -> Iterator[DirectTransport]:
    transport = DirectTransport()
    yield transport
    transport.close()


def session_of(transport: Transport, poet: Poet, *tokens: str) -> HttpSession:
    upstream = Haiku(transport, poet.url, *(tokens or ("basho",)))
    return upstream.ask(Question((Message("user", "Sing."),)))[0]


def drain(session: HttpSession, seconds: float = 5) -> bytes:
    wire = b""
    while (piece := session.read(seconds)) != b"":
        assert piece is not None
        wire += piece
    session.close()
    return wire


def test_the_upstream_of_the_tests_own_is_small() -> None:
    source = Path(__file__).read_text()
    lines = source.split("own begins here.")[1].split("# And it ends")[0].splitlines()
    assert len(lines) <= 80


def test_it_answers_a_conversation_through_the_whole_service(
    build: Callable[..., Flask], transport: DirectTransport, poet: Poet
) -> None:
    upstream = Haiku(transport, poet.url, "basho")
    client = build(upstream, authorization=("the-client-key-0",)).test_client()
    key = {"Authorization": "the-client-key-0"}
    poet.scripts = [ANSWER, ANSWER]
    first = body_of(client.post("/ask", data={"msg": "Sing."}, headers=key))["data"]
    assert (first["message"], first["model"]) == ("An old silent pond", "haiku-1")
    ids = {"conversation_id": first["conversation_id"]}
    body_of(client.post("/ask", data={"msg": "More.", **ids}, headers=key))
    assert poet.asked[1] == (
        "basho",
        ["user: Sing.", "assistant: An old silent pond", "user: More."],
    )
    poet.scripts = [
        (200, "text/event-stream", [VERSES[0], b"event: oops\ndata: x\n\n"])
    ]
    broken = client.post(
        "/ask", data={"msg": "x", "stream": "1"}, headers=key, buffered=True
    )
    assert "An old silent pond" in broken.text and "gave up" in broken.text


FRAMES = [
    pytest.param("text/event-stream; charset=utf-8", VERSES, id="named"),
    pytest.param("application/octet-stream", VERSES, id="not-named"),
    pytest.param("text/plain", [b" \n", *VERSES], id="after-white-space"),
    pytest.param("", [bytes([byte]) for byte in b"".join(VERSES)], id="byte-by-byte"),
]


@pytest.mark.parametrize(("kind", "pieces"), FRAMES)
def test_an_event_stream_is_known_by_its_type_or_its_first_bytes(
    transport: DirectTransport, poet: Poet, kind: str, pieces: list[bytes]
) -> None:
    poet.scripts = [(200, kind, pieces)]
    session = session_of(transport, poet)
    assert not session.dispatched
    assert drain(session).strip() == b"".join(VERSES).strip() and session.dispatched


def test_a_refusal_goes_to_the_next_account_and_a_success_ends_its_rest(
    transport: DirectTransport, poet: Poet
) -> None:
    upstream = Haiku(transport, poet.url, "basho", "buson")
    question = Question((Message("user", "Sing."),))
    limited = (429, "text/plain", [b"slow"])
    poet.scripts = [limited, ANSWER, ANSWER]
    for _ in range(2):
        assert b"pond" in drain(upstream.ask(question)[0])
    assert [token for token, _ in poet.asked] == ["basho", "buson", "buson"]
    assert [resting.account for resting in upstream.resting()] == ["basho"]
    upstream.pool.succeeded(Account("basho", "basho"))
    assert upstream.resting() == []


@pytest.mark.parametrize("status", [400, 500, 503])
def test_what_may_have_been_an_answer_is_asked_of_nobody_else(
    transport: DirectTransport, poet: Poet, status: int
) -> None:
    poet.scripts = [(status, "text/plain", [b"no"])]
    session = session_of(transport, poet, "basho", "buson")
    with pytest.raises(UpstreamRefused) as refused:
        drain(session)
    session.close()
    assert refused.value.status == status and len(poet.asked) == 1


def test_a_busy_account_is_waited_for_as_long_as_patience_lasts(
    transport: DirectTransport, poet: Poet
) -> None:
    poet.scripts = [BUSY, ANSWER]
    session = session_of(transport, poet)
    assert b"pond" in drain(session) and len(poet.asked) == 2
    poet.scripts = [BUSY, BUSY, BUSY]
    impatient = session_of(transport, poet)
    with pytest.raises(OneAtATime):
        while True:
            impatient.read(1)
    impatient.close()
    assert len(poet.asked) == 4


HOW_LARGE = [
    pytest.param(200, 34, UpstreamFailed, "larger", id="answer"),
    pytest.param(500, 34, UpstreamRefused, "refuses", id="error"),
]


@pytest.mark.parametrize(("status", "megabytes", "error", "message"), HOW_LARGE)
def test_a_whole_body_is_read_within_a_bound(
    transport: DirectTransport,
    poet: Poet,
    status: int,
    megabytes: int,
    error: type[RelayError],
    message: str,
) -> None:
    poet.scripts = [(status, "text/plain", [b"x" * 1024 * 1024] * megabytes)]
    session = session_of(transport, poet)
    with pytest.raises(error, match=message):
        drain(session)
    session.close()


def test_an_interrupt_ends_a_wait_and_nothing_more_is_sent(
    transport: DirectTransport, poet: Poet
) -> None:
    poet.scripts = [BUSY, ANSWER]
    session = session_of(transport, poet)
    pieces: list[bytes | None] = []
    reading = Thread(target=lambda: pieces.append(session.read(30)))
    reading.start()
    wait_for(lambda: poet.asked)
    session.interrupt()
    reading.join(2)
    assert pieces == [b""] and len(poet.asked) == 1
    session.close()
    session.close()
