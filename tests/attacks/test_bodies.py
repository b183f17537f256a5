"""Request bodies that were made to cost much: who may send how much, and what reading and parsing it takes."""

from __future__ import annotations

import gc
import http.client
import json
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from httptools import HttpResponseParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.dialects import bodies
from relay.domain import Ask
from relay.errors import Overloaded, RelayError
from relay.memory import MOST_IN_MEMORY, BodyMemory
from relay.passage import Passage
from relay.transports.direct import DirectExchange
from relay.turn import Turn
from relay.upstreams.http import HttpSession
from relay.web.incoming import MAX_UNPROVEN_BODY, Incoming
from tests.attacks.hostile import Watch, withstands
from tests.growth import assert_grows_at_most, processor_seconds
from tests.openai_backend import OpenAIBackend
from tests.processes import SERVERS, Service
from tests.tokens import jwt
from tests.waiting import wait_for

pytestmark = pytest.mark.attack

Serve = Callable[..., Service]
Build = Callable[..., Flask]

KEY = "a-client-key-of-the-tests"
SIZE = 26_000_000
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=B"
DISPOSITION = b'--B\r\nContent-Disposition: form-data; name="prompt"'
LAST_LINE = b"\r\n\r\nx\r\n--B--\r\n"


def filled(before: bytes, unit: bytes, after: bytes = b"", size: int = SIZE) -> bytes:
    """A body of about `size` bytes."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


#: name -> the Content-Type, and how the body is filled
COSTLY: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "part-header-semicolons": (MULTIPART, (DISPOSITION, b";", LAST_LINE)),
    "part-header-parameters": (MULTIPART, (DISPOSITION, b";a=b", LAST_LINE)),
    "part-header-lines": (MULTIPART, (DISPOSITION + b"\r\n", b"a:\n", LAST_LINE)),
    "part-line-ends": (MULTIPART, (DISPOSITION + b"\r\n\r\n", b"\r\n", LAST_LINE)),
    "parts-without-end": (MULTIPART, (b"", DISPOSITION + b"\r\n\r\n\r\n")),
    "form-escapes": (URLENCODED, (b"nothing=", b"%41a%41a")),
    "form-percents": (URLENCODED, (b"nothing=", b"%")),
    "form-equals": (URLENCODED, (b"nothing=", b"=")),
    "form-name": (URLENCODED, (b"", b"a", b"=1")),
    "json-lists": ("application/json", (b'{"a":[', b"[],", b"1]}")),
    "json-objects": ("application/json", (b'{"a":[', b'{"a":1},', b"1]}")),
    "json-strings": ("application/json", (b'{"a":[', b'"ab",', b"1]}")),
    "json-nested": ("application/json", (b"", b'{"a":')),
    "json-as-text": ("text/plain", (b'{"a":[', b"[],", b"1]}")),
    "json-text-of-commas": ("application/json", (b'{"a":"', b',[\\"', b'"}')),
    "json-text-of-backslashes": ("application/json", (b'{"a":"', b",\\\\", b'"}')),
}
FEW = ("part-header-parameters", "part-header-lines", "form-escapes", "json-lists")


def costly(name: str, size: int = SIZE) -> tuple[str, bytes]:
    """The Content-Type and the body."""
    content_type, parts = COSTLY[name]
    before, unit, *after = parts
    return content_type, filled(before, unit, b"".join(after), size)


def connect(service: Service, seconds: float = 30) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", service.port, timeout=seconds)


def post(
    service: Service, path: str, content_type: str, body: Any, **headers: str
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of a response; (0, {}) where the connection ended while the body was sent."""
    connection = connect(service)
    headers = {"Content-Type": content_type, **headers}
    try:
        connection.request("POST", path, body, headers)
    except OSError:
        pass  # it may answer before it has read everything
    try:
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()


@contextmanager
def watched(service: Service) -> Iterator[Watch]:
    """Asks /healthz all the while."""
    watch = Watch()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            started = time.monotonic()
            connection = connect(service)
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            connection.close()
            watch.longest = max(watch.longest, time.monotonic() - started)
            watch.resident = max(watch.resident, service.resident())

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(look)
        try:
            yield watch
        finally:
            stop.set()
            looking.result()


def in_pieces(body: bytes) -> Iterator[bytes]:
    """What http.client sends as chunks, without a length."""
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


@pytest.mark.parametrize("server", SERVERS)
def test_a_stranger_sends_a_body_that_is_not_read(serve: Serve, server: str) -> None:
    service = serve(server, AUTHORIZATION=KEY)
    answers = []

    def attack() -> Watch:
        with watched(service) as watch:
            for name in FEW:
                content_type, body = costly(name)
                answers.append(post(service, "/ask", content_type, body))
                answers.append(post(service, "/ask", content_type, in_pieces(body)))
        return watch

    assert withstands(attack)
    assert {status for status, _ in answers} <= {401, 429, 0}
    answered = [payload for status, payload in answers if status == 401]
    assert answered and all("as the header" in payload["msg"] for payload in answered)
    assert "Traceback" not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
def test_a_caller_with_a_key_sends_a_body_that_stops_nobody(
    serve: Serve, server: str
) -> None:
    service = serve(server, AUTHORIZATION=KEY, MAX_BODY="26MB")

    def attack(name: str) -> Watch:
        path = "/conversation/none-such/delete"
        with watched(service) as watch:
            status, payload = post(service, path, *costly(name), Authorization=KEY)
        assert status in (400, 404, 413) and len(payload["msg"]) > 20
        return watch

    assert [name for name in COSTLY if not withstands(partial(attack, name))] == []
    assert "Traceback" not in service.logged()


HALF = (
    b"POST /ask HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
)


def send_half(service: Service, stop: threading.Event) -> bytes:
    """Send all of a large body but its last byte, as far as it is read; what is answered to it."""
    left = 25 * 1024**2 - 1
    piece = b"x" * 65536
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(HALF % (KEY.encode(), left + 1))
        connection.settimeout(0.1)
        while left and not stop.is_set():
            try:
                left -= connection.send(piece[:left])
            except TimeoutError:
                continue  # it is not read just now
            except OSError:
                break  # it was answered
        while not stop.is_set():
            try:
                return connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
    return b""


@pytest.mark.parametrize("server", SERVERS)
def test_half_sent_bodies_hold_a_bounded_memory(serve: Serve, server: str) -> None:
    service = serve(server, AUTHORIZATION=KEY)
    answers: list[bytes] = []

    def attack() -> Watch:
        stop = threading.Event()
        with ThreadPoolExecutor(40) as threads, watched(service) as watch:
            sending = [threads.submit(send_half, service, stop) for _ in range(40)]
            # they wait 5 s for memory; the one that is answered has been refused
            wait_for(lambda: any(thread.done() for thread in sending), 40)
            small = post(service, "/ask", URLENCODED, b"msg=hello", Authorization=KEY)
            stop.set()
            answers.extend(thread.result() for thread in sending)
        assert small[0] == 200 and "hello" in small[1]["data"]["message"]
        return watch

    assert withstands(attack)
    refused = [answer for answer in answers if b" 503 " in answer[:20]]
    assert refused and all(b"\r\nRetry-After: " in answer for answer in refused)
    assert "Traceback" not in service.logged()


def test_large_bodies_wait_for_memory_and_the_oldest_of_them_gets_on() -> None:
    memory = BodyMemory(wait=0.2)
    memory.reserve("first", 40, 100)
    memory.reserve("second", 60, 100)
    with pytest.raises(Overloaded) as refused:
        memory.reserve("third", 1, 100)
    assert refused.value.retry_after and refused.value.status == 503
    with pytest.raises(Overloaded):
        memory.reserve("second", 61, 100)
    memory.reserve("first", 100, 100)
    memory.finish("first")
    with pytest.raises(Overloaded):
        memory.reserve("second", 61, 100)
    threading.Timer(0.02, memory.release, ["first"]).start()
    memory.reserve("second", 61, 100)
    memory.release("second")
    memory.release("third")
    memory.release("third")
    assert memory._reading == memory._read == {}


@pytest.fixture
def kept_client(build: Build) -> FlaskClient:
    nowhere = ("http://127.0.0.1:9",)
    return build(
        authorization=(f"owner:{KEY}",), chatgpt_base_url=nowhere
    ).test_client()


@pytest.mark.parametrize("path", ["/ask", "/chat", "/conversation/none-such/delete"])
@pytest.mark.parametrize("name", ["json-as-text", "json-nested", "form-escapes"])
def test_a_request_that_was_answered_leaves_no_body_to_the_garbage_collector(
    kept_client: FlaskClient, path: str, name: str
) -> None:
    content_type, body = costly(name, 900_000)
    kinds = garbage_of(kept_client, path, data=body, content_type=content_type)
    assert not kinds & {types.FrameType, Incoming, Ask, Turn}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/ask", "/chat", "/v1/chat/completions"])
def test_an_answered_ask_leaves_nothing_to_the_garbage_collector(
    build: Build, api: OpenAIBackend, path: str, stream: bool
) -> None:
    client = build(
        authorization=(f"owner:{KEY}",),
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
    ).test_client()
    messages = [{"role": "user", "content": "hello"}]
    fields = {"msg": "hello"} if path == "/ask" else {"messages": messages}
    asked = {"json": {**fields, "model": "tiny-1", "stream": stream}}
    kinds = garbage_of(client, path, **asked)
    ours = {Incoming, Ask, Turn, Passage, DirectExchange, HttpSession}
    assert not kinds & {*ours, types.FrameType, HttpResponseParser}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/ask", "/chat"])
def test_an_ask_that_cannot_be_opened_leaves_nothing_to_the_garbage_collector(
    kept_client: FlaskClient, path: str, stream: bool
) -> None:
    place = {"conversation_id": "none-such", "stream": stream}
    messages = [{"role": "user", "content": "hello"}]
    fields = {"msg": "hello"} if path == "/ask" else {"messages": messages}
    kinds = garbage_of(kept_client, path, json={**fields, **place})
    assert not kinds & {Incoming, Ask, types.FrameType}


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions"])
def test_an_ask_of_several_accounts_leaves_nothing_to_the_garbage_collector(
    build: Build, api: OpenAIBackend, path: str, stream: bool, is_answered: bool
) -> None:
    limited = 429, {}, b'{"error": {"message": "Rate limit reached"}}'
    api.mode.refuse_tokens["sk-invented-1"] = limited
    if is_answered:
        api.mode.keys += ("sk-invented-2",)
    client = build(
        authorization=(f"owner:{KEY}",),
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1", "sk-invented-2"),
    ).test_client()
    messages = [{"role": "user", "content": "hello"}]
    fields = {"msg": "hello"} if path == "/ask" else {"messages": messages}
    asked = {"json": {**fields, "model": "tiny-1", "stream": stream}}
    kinds = garbage_of(client, path, **asked)
    if is_answered:
        assert len(api.completions) == 2
    ours = {Incoming, Ask, Turn, Passage, DirectExchange, HttpSession}
    assert not kinds & {*ours, types.FrameType}


def garbage_of(client: FlaskClient, path: str, **asked: Any) -> set[type]:
    """The types of what an answered request leaves to the garbage collector."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        answer = client.post(path, headers={"Authorization": KEY}, **asked)
        assert answer.get_data()
        answer.close()
        del answer  # it holds the cycles that it is in
        gc.collect()
        return {type(found) for found in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def test_a_large_body_holds_its_memory_until_it_is_answered(
    kept_client: FlaskClient,
) -> None:
    memory = kept_client.application.extensions["service"].body_memory
    memory._wait = 0.05
    large = {"msg": "x" * 200_000, "stream": "true"}
    headers = {"Authorization": KEY}
    answer = kept_client.post("/ask", data=large, headers=headers)
    assert len(memory._read) == 1 and not memory._reading
    memory.reserve("another", MOST_IN_MEMORY, MOST_IN_MEMORY * 2)
    memory.finish("another")
    refused = kept_client.post("/ask", data=large, headers=headers)
    assert (refused.status_code, refused.json["error"]) == (503, "overloaded")
    small = kept_client.post("/ask", data={"msg": "hello"}, headers=headers)
    assert small.status_code == 200
    answer.close()
    refused.close()
    assert list(memory._read) == ["another"] and not memory._reading


ROUTES = [
    ("/ask", 401, lambda answer: answer.json["msg"]),
    ("/send_message", 500, lambda answer: answer.json["message"]),
    ("/chat", 401, lambda answer: json.loads(answer.data.split(b"\n")[0])["content"]),
]


@pytest.mark.parametrize(
    ("route", "status", "sentence"), ROUTES, ids=["ask", "send_message", "chat"]
)
def test_a_field_shows_a_key_in_a_small_body_alone(
    kept_client: FlaskClient, route: str, status: int, sentence: Any
) -> None:
    start = f"access_token={KEY}&prompt=".encode()
    whole = start + b"x" * (MAX_UNPROVEN_BODY - len(start))
    small = kept_client.post(route, data=whole, content_type=URLENCODED)
    assert small.status_code == 200
    for headers in ({}, {"Authorization": "Bearer sk-of-nobody-known"}):
        large = kept_client.post(
            route, data=whole + b"x", content_type=URLENCODED, headers=headers
        )
        assert large.status_code == status
        assert large.headers["X-Error-Code"] == "unauthorized"
        assert "as the header" in sentence(large)
    in_header = kept_client.post(
        route, data={"prompt": "x" * 100_000}, headers={"Authorization": KEY}
    )
    assert in_header.status_code == 200


def test_a_smaller_limit_of_the_operator_counts_for_everybody(build: Build) -> None:
    client = build(authorization=(KEY,), max_body=1000).test_client()
    for headers in ({}, {"Authorization": KEY}):
        answer = client.post("/ask", data={"msg": "x" * 1001}, headers=headers)
        assert answer.json["error"] == "too_large"


def test_a_recognized_token_in_the_headers_or_no_key_at_all_proves_enough(
    build: Build,
) -> None:
    data = {"msg": "x" * 100_000, "conversation_id": "../none"}
    client = build(
        reverse_proxy="https://gateway.example", authorization=(KEY,)
    ).test_client()
    token = {"Authorization": f"Bearer {jwt(sub='somebody')}"}
    assert client.post("/ask", data=data, headers=token).status_code == 400
    assert client.post("/ask", data=data).status_code == 401
    assert build().test_client().post("/ask", data=data).status_code == 400


def seconds_to_read(name: str, size: int) -> float:
    content_type, body = costly(name, size)

    def run() -> None:
        with suppress(RelayError):
            bodies.read(content_type, body)

    return processor_seconds(run)


@pytest.mark.parametrize("name", COSTLY)
def test_parsing_takes_linear_time(name: str) -> None:
    assert_grows_at_most(3, partial(seconds_to_read, name), 3_000_000, 6_000_000)


def test_a_large_body_is_parsed_with_pauses() -> None:
    pauses = []
    bodies.read(*costly("form-escapes", 4_000_000), lambda: pauses.append(1))
    assert len(pauses) > 20


PROSE = 'He said: "1,2,[3]", and {so on}: \\ or \\" \n' * 60_000


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"prompt": PROSE}),
        json.dumps({"messages": [{"role": "user", "content": PROSE}]}),
        json.dumps({"prompt": "," * 3_000_000}),
        json.dumps({"prompt": "\\" * 3_000_001 + '"'}),
        json.dumps({"a": ["x", [1.5, {"b": None}]] * 15_000, "prompt": PROSE}),
    ],
    ids=["prose", "messages", "commas", "backslashes", "values"],
)
def test_a_long_text_may_hold_any_number_of_commas(body: str) -> None:
    found = bodies.read("application/json", body.encode())
    assert found == json.loads(body)


CONTENT_TYPES = st.sampled_from(
    [
        URLENCODED,
        MULTIPART,
        "application/json",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary*=utf-8''%ff%e4%bd",
        'multipart/form-data; boundary="a\\"b"',
        f"{URLENCODED}; charset*=utf-8''%00",
        "text/plain; charset=utf-16",
        "text/plain; charset=\xff",
        'text/plain; charset="',
        "application/json; charset=idna",
        "text/plain" + "; a=b" * 10_000,
        "text/plain" + ";" * 100_000,
        "\xff/\xfe",
        "a" * 10_000 + "/b",
        ";;;",
    ]
) | st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=40)
CREDENTIALS = st.sampled_from(
    [
        "",
        KEY,
        "Basic \xff",
        "Basic",
        "Basic " + "A" * 5001,
        "Basic /w==",
        "Bearer \xff\xfe",
        "Bearer " + "eyJ" * 2000,
        "Bearer eyJ.eyJ.",
        "Bearer eyJhIjoi.W1tb.x",
        "bearer  ",
        "\xa0",
    ]
)
NESTED = st.integers(1, 1200).map(lambda depth: b"[" * depth + b"]" * depth)
ODD = st.sampled_from(
    [b'"\\ud800"', b"1e999", b"9" * 500, b"-0", b"null", b"[]", b"{}", b'"\\u0000"']
)
VALUES = NESTED | ODD | st.binary(max_size=20)
NAMES = st.sampled_from(
    "prompt msg messages stream timeout model conversation_id parent_id format stop "
    "system request_id access_token temperature metadata messages[0][role] x".split()
)
JSON = st.lists(st.tuples(NAMES, VALUES), max_size=4).map(
    lambda pairs: (
        b"{" + b",".join(b'"%s":%s' % (n.encode(), v) for n, v in pairs) + b"}"
    )
)
FORMS = st.lists(st.tuples(NAMES, VALUES), max_size=4).map(
    lambda pairs: b"&".join(b"%s=%s" % (n.encode(), v) for n, v in pairs)
)
PARTS = st.lists(
    st.sampled_from(
        [
            b"--B\r\n",
            b"\r\n--B\r\n",
            b"\n--B\n",
            b"\r\n--B--\r\n",
            b'Content-Disposition: form-data; name="prompt"\r\n\r\n',
            b"Content-Disposition: form-data; name*=utf-8''%ff\r\n\r\n",
            b"content-disposition:\r\n name=x\r\n\r\n",
            b"\r\n\r\n",
            b"\xff",
            b"x",
        ]
    ),
    max_size=8,
).map(b"".join)
MOSTLY = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@MOSTLY
@given(
    st.sampled_from(["/ask", "/send_message", "/chat", "/conversation/x/title"]),
    CONTENT_TYPES,
    CREDENTIALS,
    JSON | FORMS | PARTS | NESTED | st.binary(max_size=50),
)
def test_no_body_and_no_header_makes_the_service_fail(
    kept_client: FlaskClient, path: str, kind: str, credential: str, body: bytes
) -> None:
    headers = [("Authorization", credential), ("Content-Type", kind)]
    answer = kept_client.post(path, data=body, headers=headers, buffered=True)
    assert answer.headers.get("X-Error-Source") != "service", answer.text


@pytest.mark.parametrize("path", ["/ask", "/chat"])
@pytest.mark.parametrize("name", ["metadata", "messages", "response_format", "x"])
def test_json_that_is_nested_deeply_is_refused(
    build: Build, path: str, name: str
) -> None:
    client = build().test_client()
    deep = b"[" * 250 + b"]" * 250
    body = b'{"prompt": "hello", "%s": %s}' % (name.encode(), deep)
    answer = client.post(path, data=body, content_type="application/json")
    assert answer.status_code == 400 and "nested" in answer.text
    if name == "x" or (path, name) == ("/ask", "messages"):
        return  # a text in a form
    form = client.post(path, data={"prompt": "hello", name: deep.decode()})
    assert form.status_code == 400 and "nested" in form.text


def test_a_list_has_a_bounded_length(build: Build) -> None:
    client = build().test_client()
    assert client.get("/conversations?limit=1000&offset=999999999").json == []
    for limit in ("1001", "999999999", "1" * 400, "-1", "x", "\u0661"):
        answer = client.get("/conversations", query_string={"limit": limit})
        assert answer.status_code == 400 and "1000" in answer.json["msg"]
