"""Requests that pass to an OpenAI-compatible API as they are: byte for byte, with our key, and never a cut as a whole."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.dialects.openai import wire
from relay.errors import BadRequest
from tests.processes import SERVERS, Service, curl, outcomes, refuses_connections
from tests.raw_upstream import RawUpstream, chunked, response, whole
from tests.waiting import wait_for

Build = Callable[..., Flask]
Start = Callable[..., Service]
KEY = {"Authorization": "Bearer the-client-key-0"}
ANSWER = b'{"id": "x",  "n":1E400, "u":"\\u00e9\\ud83d\\ude00", "unknown": [{}], "choices":[]}'
HEAD = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
WORD = (
    b'data: {"choices":[{"index":0,"delta":{"content":"h\xc3\xa9"}}], "later": 1}\n\n'
)
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = [HEAD, WORD, LAST, DONE]
CHAT = "/v1/chat/completions"


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    upstream.answers = [whole(ANSWER)]
    yield upstream
    upstream.close()


def app(build: Build, upstream: RawUpstream, **more: Any) -> Flask:
    values: dict[str, Any] = {
        "openai_base_url": upstream.url,
        "openai_api_key": ("sk-invented-1",),
        "openai_model": "tiny-1",
        "authorization": ("owner:the-client-key-0",),
    }
    return build(**{**values, **more})


@pytest.fixture
def client(build: Build, upstream: RawUpstream) -> FlaskClient:
    return app(build, upstream).test_client()


def post(client: FlaskClient, body: bytes, path: str = CHAT, **more: Any) -> Any:
    headers = {**KEY, **more.pop("headers", {})}
    kind = more.pop("content_type", "application/json")
    return client.post(
        path, data=body, content_type=kind, headers=headers, buffered=True, **more
    )


def test_a_request_and_its_answer_pass_byte_for_byte(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    body = b'{ "model" :"gpt-x","big":12345678901234567890.10, "u":"\\u00e9", "messages":[ ],"tools":[{"type":"new"}]}'
    answer = post(client, body, headers={"OpenAI-Beta": "v9", "X-Stainless-Os": "L"})
    assert (answer.status_code, answer.data) == (200, ANSWER)
    [received] = upstream.received
    assert received.line == "POST /v1/chat/completions HTTP/1.1"
    assert received.body == body
    assert received.headers["authorization"] == "Bearer sk-invented-1"
    assert received.headers["openai-beta"] == "v9"
    assert received.headers["user-agent"] == "chatgpt-webapi"
    assert not [name for name in received.headers if name.startswith("x-stainless")]


def test_what_curl_sends_without_a_type_is_json(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    form = "application/x-www-form-urlencoded"
    for path in (CHAT, "/platform/v1/embeddings"):
        upstream.answers = [whole(ANSWER)]
        assert post(client, b'{"model":"m"}', path, content_type=form).data == ANSWER
        assert upstream.received[-1].headers["content-type"] == "application/json"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
SPACES = st.text(alphabet=" \t\r\n", max_size=3)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    fields=st.dictionaries(st.text(), JSON, max_size=5),
    answer=JSON,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    space=SPACES,
)
def test_generated_requests_and_answers_pass_byte_for_byte(
    client: FlaskClient,
    upstream: RawUpstream,
    fields: dict[str, Any],
    answer: Any,
    ascii_only: bool,
    indent: int | None,
    space: str,
) -> None:
    kept = ("conversation", "conversation_id", "parent_message_id", "history_disabled")
    fields = {name: value for name, value in fields.items() if name not in kept}
    payload = {**fields, "model": "gpt-x", "stream": False}
    text = space + json.dumps(payload, ensure_ascii=ascii_only, indent=indent) + space
    sent = text.encode("utf-8", "surrogatepass")
    try:
        sent.decode()
    except UnicodeDecodeError:
        return
    back = json.dumps(answer, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "replace"
    )
    upstream.answers = [whole(back)]
    upstream.received.clear()
    assert post(client, sent).data == back
    assert upstream.received[0].body == sent


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b"{}", b'{"model":"m"}'),
        (b' { "a" : 1.10 } ', b' {"model":"m", "a" : 1.10 } '),
        (b'{"model":"x","a":"\\u00e9"}', b'{"model":"m","a":"\\u00e9"}'),
        (b'{"a":{"model":"x"},"model" : null }', b'{"a":{"model":"x"},"model" : "m" }'),
        (b'{"mod\\u0065l":["x"]}', b'{"mod\\u0065l":"m"}'),
        (b'{"model":"x","model":"y"}', b'{"model":"x","model":"m"}'),
        (b'{"a":"}\\"{","model":1e5}', b'{"a":"}\\"{","model":"m"}'),
    ],
)
def test_a_model_is_replaced_and_nothing_else(body: bytes, changed: bytes) -> None:
    assert wire.with_model(body, "m") == changed


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[]", b'{"a"', b"{'a':1}", b"\xff{}", b'{"a":1']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        wire.with_model(body, "m")


def test_the_default_model_is_added_where_none_is_named(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    post(client, b'{"messages": []}')
    assert upstream.received[0].body == b'{"model":"tiny-1","messages": []}'
    post(client, b'{"input": "x"}', "/v1/embeddings")
    assert upstream.received[1].body == b'{"input": "x"}'


def test_an_alias_is_another_name(build: Build, upstream: RawUpstream) -> None:
    client = app(build, upstream, model_aliases={"gpt-4": "qwen3"}).test_client()
    post(client, b'{"model": "gpt-4", "messages": []}')
    assert upstream.received[0].body == b'{"model": "qwen3", "messages": []}'


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH"])
def test_the_rest_of_the_api_passes(
    client: FlaskClient, upstream: RawUpstream, method: str
) -> None:
    path = "/v1/files/file-1/content?after=a%20b&x=%2F"
    answer = client.open(path, method=method, headers=KEY)
    assert answer.data == ANSWER
    assert upstream.received[0].line == f"{method} {path} HTTP/1.1"


@pytest.mark.parametrize(
    "path", ["/v1/../admin", "/v1/a/%2e%2e/b", "/v1/a/..%2f..%2fb", "/v1/a\\b"]
)
def test_no_path_leads_out_of_the_base(
    client: FlaskClient, upstream: RawUpstream, path: str
) -> None:
    assert client.get(path, headers=KEY).status_code in (400, 404)
    assert not upstream.received


def test_a_stream_passes_as_it_is(client: FlaskClient, upstream: RawUpstream) -> None:
    upstream.answers = [chunked([b": comment\n\n", *STREAM])]
    answer = post(client, b'{"model":"m","stream":true}')
    assert answer.data == b": comment\n\n" + b"".join(STREAM)
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Cache-Control"] == "no-store, no-transform"


def cut(packets: list[bytes]) -> list[bytes]:
    return chunked(packets)[:-1]


@pytest.mark.parametrize("ending", [cut, chunked])
def test_a_stream_that_is_cut_never_looks_whole(
    client: FlaskClient,
    upstream: RawUpstream,
    ending: Callable[[list[bytes]], list[bytes]],
) -> None:
    for at in range(len(b"".join(STREAM[:3])) - 2):
        upstream.answers = [ending([b"".join(STREAM)[:at]])]
        answer = post(client, b'{"model":"m","stream":true}')
        *events, last, rest = answer.text.split("\n\n")
        assert "[DONE]" not in answer.text and rest == ""
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "upstream_cut"
        for event in events:
            assert json.loads(event.removeprefix("data: "))


def chunk(index: int, reason: str | None, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": "x"}, "finish_reason": reason}
    return b"data: %b\n\n" % json.dumps({"choices": [{**choice, **more}]}).encode()


HALVES = {
    "an empty reason": [chunk(0, "")],
    "one of two choices": [chunk(0, "stop"), chunk(1, None)],
    "the same choice twice": [chunk(0, "stop"), chunk(0, "stop")],
    "an error without content": [b'data: {"error": {}, "choices": []}\n\n'],
    "an error within": [chunk(0, None, arguments={"error": {"a": 1}})],
}


@pytest.mark.parametrize("events", HALVES.values(), ids=HALVES)
def test_a_stream_that_stops_early_never_looks_whole(
    client: FlaskClient, upstream: RawUpstream, events: list[bytes]
) -> None:
    upstream.answers = [chunked(events)]
    answer = post(client, b'{"model":"m","stream":true,"n":2}')
    assert answer.data.startswith(b"".join(events)) and "upstream_cut" in answer.text


WHOLES = {
    "both choices": [chunk(0, "stop"), chunk(1, None), chunk(1, "length")],
    "both at once": [b'data: {"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":"stop"}]}\n\n'],
    "an error": [b'data: {"error": {"message": "no"}}\n\n'],
    "an event of several lines": [b'data: {"choices":[{\ndata: "finish_reason": "stop"}]}\n\n'],
    "the end mark": [chunk(0, None), b"data: [DONE]\n\n"],
}  # fmt: skip


@pytest.mark.parametrize("events", WHOLES.values(), ids=WHOLES)
def test_a_stream_that_says_its_end_is_whole(
    client: FlaskClient, upstream: RawUpstream, events: list[bytes]
) -> None:
    upstream.answers = [chunked(events)]
    answer = post(client, b'{"model":"m","stream":true,"n":2}')
    assert answer.data == b"".join(events)


def test_a_second_answer_is_never_part_of_the_first(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    first = chunked([chunk(0, None)])
    both = b"".join([*first, *chunked([chunk(0, "stop"), DONE])])
    upstream.answers = [[both.replace(b"Connection: close\r\n", b"")]]
    answer = post(client, b'{"model":"m","stream":true}')
    assert answer.data.startswith(chunk(0, None)) and "upstream_cut" in answer.text
    assert b"stop" not in answer.data and b"[DONE]" not in answer.data


def test_a_whole_answer_that_is_cut_is_broken_off(
    serve: Start, upstream: RawUpstream
) -> None:
    upstream.answers = [[whole(ANSWER)[0][:-5]]]
    service = served(serve, upstream)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(
            f"{service.url}{CHAT}", b'{"model":"m"}', headers=JSON_KEY, timeout=9
        )


JSON_KEY = {**KEY, "Content-Type": "application/json"}


def served(
    serve: Start, upstream: RawUpstream, server: str = "pywsgi", **more: str
) -> Service:
    return serve(
        server,
        OPENAI_BASE_URL=upstream.url,
        OPENAI_API_KEY="sk-invented-1",
        AUTHORIZATION="the-client-key-0",
        **more,
    )


def open_stream(service: Service) -> requests.Response:
    """A streamed answer that is to be read."""
    return requests.post(
        f"{service.url}{CHAT}",
        b'{"model":"m","stream":true}',
        headers=JSON_KEY,
        stream=True,
        timeout=9,
    )


def test_an_upstreams_error_passes_as_it_is(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    error = b'{"error": {"message":  "no such model", "code": "model_not_found"}}'
    upstream.answers = [
        [response(404, error, "application/json", "X-RateLimit-Limit: 3")]
    ]
    answer = post(client, b'{"model":"m"}')
    assert (answer.status_code, answer.data) == (404, error)
    assert answer.headers["X-RateLimit-Limit"] == "3"


def test_the_log_says_of_an_error_that_passes_what_it_is(
    serve: Start, upstream: RawUpstream
) -> None:
    error = b'{"error": {"message": "no such thing", "code": "invalid_value"}}'
    upstream.answers = [[response(400, error, "application/json")]]
    service = served(serve, upstream, LOG_FORMAT="json")
    requests.post(f"{service.url}{CHAT}", b'{"model":"m"}', headers=JSON_KEY, timeout=9)
    wait_for(lambda: bool(outcomes(service)))
    [line] = outcomes(service)
    assert (line["status"], line["outcome"]) == (400, "upstream_refused")
    assert "400" in line["why"] and "no such thing" not in line["why"]


def test_the_log_says_of_a_stream_that_failed_that_it_did(
    serve: Start, upstream: RawUpstream
) -> None:
    event = b'data: {"error": {"message": "too much to do", "code": "busy"}}\n\n'
    upstream.answers = [[response(200, event, "text/event-stream")]]
    service = served(serve, upstream, LOG_FORMAT="json")
    body = b'{"model":"m","stream":true}'
    answer = requests.post(f"{service.url}{CHAT}", body, headers=JSON_KEY, timeout=9)
    assert answer.content == event
    wait_for(lambda: bool(outcomes(service)))
    [line] = outcomes(service)
    assert (line["status"], line["outcome"]) == (200, "upstream_failed")
    assert "within its answer" in line["why"]


@pytest.mark.parametrize(
    ("kind", "has_failed"),
    [("response.failed", True), ("error", True), ("response.completed", False)],
)
def test_a_responses_end_says_whether_it_failed(kind: str, has_failed: bool) -> None:
    watch = wire.EventWatch("responses")
    watch.feed(b'data: {"type":"%s"}\n\n' % kind.encode())
    assert watch.is_whole and watch.has_failed == has_failed


def test_an_error_never_quotes_our_key(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    error = b'{"error": {"message": "bad key sk-invented-1"}}'
    for status in (400, 401, 500):
        upstream.answers = [[response(status, error, "application/json")]]
        answer = post(client, b'{"model":"m"}')
        assert answer.status_code == status and b"sk-invented-1" not in answer.data


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [(502, "text/html", b"<html>bad gateway</html>"), (301, "text/plain", b"moved")],
)
def test_what_is_no_error_of_the_api_gets_one_of_ours(
    client: FlaskClient, upstream: RawUpstream, status: int, kind: str, body: bytes
) -> None:
    upstream.answers = [
        [response(status, body, kind, "Location: https://elsewhere.example/")]
    ]
    answer = post(client, b'{"model":"m"}')
    assert answer.status_code == 502 and answer.json["error"]["message"]
    assert "elsewhere.example" not in str(answer.headers) + answer.text


def test_another_key_is_tried_after_a_refusal(
    build: Build, upstream: RawUpstream
) -> None:
    limit = response(429, b'{"error": {"message": "slow down"}}', "application/json")
    upstream.answers = [[limit], whole(ANSWER)]
    keys = ("sk-invented-1", "sk-invented-2")
    client = app(build, upstream, openai_api_key=keys).test_client()
    assert post(client, b'{"model":"m"}').data == ANSWER
    shown = [received.headers["authorization"] for received in upstream.received]
    assert sorted(shown) == [f"Bearer {key}" for key in keys]


def test_headers_between_two_connections_stay_there(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    more = (
        *("Set-Cookie: a=1", "Set-Cookie: b=2", "Server: x", "Alt-Svc: h3=x"),
        *("X-Request-Id: theirs", "Access-Control-Allow-Origin: *", "ETag: e"),
    )
    upstream.answers = [whole(ANSWER, "application/json", *more)]
    answer = post(client, b'{"model":"m"}', headers={"X-Request-Id": "mine"})
    assert answer.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers["ETag"] == "e" and answer.headers["X-Request-Id"] == "mine"
    for name in ("Alt-Svc", "Access-Control-Allow-Origin"):
        assert name not in answer.headers
    assert upstream.received[0].headers["x-request-id"] == "mine"


def test_a_stranger_gets_nothing_through(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-somebodys-key"}):
        answer = client.post(CHAT, data=b'{"model":"m"}', headers=headers)
        assert answer.status_code == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/files").status_code == 401 and not upstream.received


@pytest.mark.parametrize("server", SERVERS)
def test_a_caller_that_leaves_ends_the_call(
    serve: Start, upstream: RawUpstream, server: str
) -> None:
    left = threading.Event()

    def endless() -> Iterator[bytes]:
        yield chunked([HEAD])[0]
        try:
            while True:
                yield b"%x\r\n%b\r\n" % (len(WORD), WORD)
                time.sleep(0.05)
        finally:
            left.set()

    upstream.answers = [endless()]  # type: ignore[list-item]
    service = served(serve, upstream, server)
    answer = open_stream(service)
    next(answer.iter_content(10))
    answer.close()
    assert left.wait(3)
    wait_for(lambda: "caller_left" in service.log.read_text())


def test_a_stop_refuses_who_comes_while_a_stream_goes_on(
    serve: Start, upstream: RawUpstream
) -> None:
    go_on = threading.Event()
    head, *frames = chunked(STREAM)

    def slow() -> Iterator[bytes]:
        yield head + frames[0]
        go_on.wait(20)
        yield b"".join(frames[1:])

    upstream.answers = [slow()]  # type: ignore[list-item]
    service = served(serve, upstream)
    pieces = open_stream(service).iter_content(None)
    assert next(pieces) == STREAM[0]
    service.terminate()
    wait_for(lambda: refuses_connections(service))
    go_on.set()
    assert b"".join(pieces) == b"".join(STREAM[1:])
    assert service.process.wait(10) == 0


def test_a_caller_that_leaves_before_the_answer_is_no_failure_of_the_upstreams(
    serve: Start, upstream: RawUpstream
) -> None:
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait(9)
        yield b""

    upstream.answers = [silent()]  # type: ignore[list-item]
    service = served(serve, upstream, LOG_FORMAT="json")
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{service.url}{CHAT}", b'{"model":"m"}', headers=JSON_KEY, timeout=0.5
        )
    wait_for(lambda: bool(outcomes(service)))
    [line] = outcomes(service)
    over.set()
    assert (line["status"], line["outcome"]) == (499, "caller_left")


def test_silence_ends_the_call(build: Build, upstream: RawUpstream) -> None:
    def silent() -> Iterator[bytes]:
        yield chunked([HEAD])[0]
        yield b"%x\r\n%b\r\n" % (len(HEAD), HEAD)
        time.sleep(3)

    upstream.answers = [silent()]  # type: ignore[list-item]
    client = app(build, upstream, read_timeout=0.3).test_client()
    answer = post(client, b'{"model":"m","stream":true}')
    assert answer.data.startswith(HEAD) and "upstream_timeout" in answer.text


def test_a_refusal_that_comes_late_is_told_within_the_stream(
    build: Build, upstream: RawUpstream
) -> None:
    def late() -> Iterator[bytes]:
        time.sleep(0.5)
        error = b'{"error": {"message": "no such model"}}'
        yield response(404, error, "application/json")

    upstream.answers = [late()]  # type: ignore[list-item]
    service = app(build, upstream)
    object.__setattr__(service.extensions["service"].clocks, "keep_alive", 0.1)
    answer = post(service.test_client(), b'{"model":"m","stream":true}')
    assert answer.status_code == 200 and answer.text.startswith(": keep-alive")
    assert "no such model" in answer.text and "[DONE]" not in answer.text


def test_the_total_clock_ends_a_stream_without_end(
    build: Build, upstream: RawUpstream
) -> None:
    def endless() -> Iterator[bytes]:
        yield chunked([HEAD])[0]
        while True:
            yield b"%x\r\n%b\r\n" % (len(WORD), WORD)

    upstream.answers = [endless()]  # type: ignore[list-item]
    client = app(build, upstream, total_timeout=0.5).test_client()
    answer = post(client, b'{"model":"m","stream":true}')
    last = answer.text.split("\n\n")[-2]
    assert "upstream_timeout" in last and "[DONE]" not in answer.text


def test_over_http_1_0_a_cut_answer_is_an_error(
    serve: Start, upstream: RawUpstream
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    service = served(serve, upstream)
    url = f"{service.url}{CHAT}"
    ask = ("-0", "-sS", "-w", " %{http_code}", "-u", ":the-client-key-0", "--json")
    for end, status in ((b"0\r\n\r\n", " 200"), (b"", " 502")):
        upstream.answers = [[head + b"2\r\n{}\r\n" + end]]
        answer = curl(*ask, '{"model":"m"}', url)
        assert answer.stdout.endswith(status), answer.stdout


def test_pieces_pass_as_they_come(serve: Start, upstream: RawUpstream) -> None:
    asked = threading.Event()

    def slow() -> Iterator[bytes]:
        yield chunked([HEAD])[0]
        yield b"%x\r\n%b\r\n" % (len(HEAD), HEAD)
        asked.wait(9)
        yield b"%x\r\n%b\r\n0\r\n\r\n" % (len(LAST), LAST)

    upstream.answers = [slow()]  # type: ignore[list-item]
    service = served(serve, upstream)
    answer = open_stream(service)
    pieces = answer.iter_content(None)
    assert next(pieces) == HEAD
    asked.set()
    assert b"".join(pieces) == LAST


class LargeFile:
    """A file of this size."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        piece = b"x" * min(size, self._left)
        self._left -= len(piece)
        return piece


@pytest.mark.parametrize("server", SERVERS)
def test_a_large_file_passes_both_ways_in_constant_memory(
    serve: Start, upstream: RawUpstream, server: str
) -> None:
    size = 200 * 2**20
    piece = b"x" * 2**20

    def file() -> Iterator[bytes]:
        yield f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n".encode()
        for _ in range(size // len(piece)):
            yield piece

    upstream.keep_bodies = False
    upstream.answers = [file()]  # type: ignore[list-item]
    service = served(serve, upstream, server, MAX_BODY="300MB")
    requests.get(f"{service.url}/healthz", timeout=5)
    before = service.resident()
    peak = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak.append(service.resident())

    watching = threading.Thread(target=watch)
    watching.start()
    headers = {**KEY, "Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(
        f"{service.url}/v1/files",
        LargeFile(size),
        headers=headers,
        stream=True,
        timeout=60,
    )
    received = sum(len(piece) for piece in answer.iter_content(2**20))
    done.set()
    watching.join()
    assert (answer.status_code, received, upstream.size) == (200, size, size)
    assert max(peak) - before < 20


def test_a_body_that_is_cut_is_not_passed_as_whole(
    serve: Start, upstream: RawUpstream
) -> None:
    service = served(serve, upstream)
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer the-client-key-0\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head + b"x" * 50)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    time.sleep(0.2)
    assert not upstream.received
