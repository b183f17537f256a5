"""Failures of OpenAI-compatible APIs, each to one member of the error tree; and how their addresses are understood."""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain import Message, Question
from relay.errors import (
    BadRequest,
    RateLimited,
    RelayError,
    TokenRejected,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.openai import failures
from relay.upstreams.openai.body import (
    DEFAULT_BASE,
    Extras,
    base,
    completion_body,
    is_openai,
)
from tests.openai_backend import error

HTML = {"content-type": "text/html"}
KEY = error(
    "Incorrect API key provided: sk-in****4321. You can find your key at https://platform.openai.com.",
    code="invalid_api_key",
)
QUOTA = error(
    "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"
)
LIMIT = error("Rate limit reached for tiny.", "requests", "rate_limit_exceeded")
RESETS = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m6.5s",
          "x-ratelimit-remaining-tokens": "300", "x-ratelimit-reset-tokens": "6h"}  # fmt: skip

#: status, headers, body -> error, its status, retry_after, a word of its message
RESPONSES: list[tuple[int, dict[str, str], Any, type[RelayError], int, int | None, str]] = [
    (400, {}, error("Unsupported value", code="unsupported_parameter", param="temperature"), UpstreamRefused, 400, None, "unsupported_parameter"),
    (400, {}, error("too many tokens", code="context_length_exceeded"), UpstreamRefused, 400, None, "HISTORY_BUDGET"),
    (401, {}, KEY, TokenRejected, 401, None, "API key"),
    (401, {}, b"", TokenRejected, 401, None, "rejects the API key"),
    (402, {}, error("Insufficient credits", code="402"), UpstreamRefused, 402, None, "credits"),
    (403, {}, error("Country, region, or territory not supported", "request_forbidden"), UpstreamRefused, 403, None, "Country"),
    (404, {}, error("The model `x` does not exist", code="model_not_found"), UpstreamRefused, 404, None, "model_not_found"),
    (404, {}, {"error": "model 'x' not found"}, UpstreamRefused, 404, None, "not found"),
    (409, {}, error("Conflict"), UpstreamRefused, 409, None, "Conflict"),
    (413, HTML, b"<html>413 Request Entity Too Large</html>", UpstreamRefused, 413, None, "web page"),
    (422, {}, {"detail": [{"loc": ["body", "n"], "msg": "bad", "type": "value_error"}]}, UpstreamRefused, 422, None, "body.n"),
    (422, {}, {"detail": [{"loc": None, "msg": "bad", "type": "value_error"}]}, UpstreamRefused, 422, None, "bad"),
    (422, {}, {"detail": [{"loc": 5}]}, UpstreamRefused, 422, None, "422"),
    (429, {"retry-after": "7"}, LIMIT, RateLimited, 429, 7, "Rate limit"),
    (429, {"retry-after": "7.2"}, LIMIT, RateLimited, 429, 8, "Rate limit"),
    (429, {"retry-after-ms": "1500", "retry-after": "9"}, LIMIT, RateLimited, 429, 2, "Rate limit"),
    (429, RESETS, LIMIT, RateLimited, 429, 67, "Rate limit"),
    (429, {"x-ratelimit-reset-tokens": "20ms"}, LIMIT, RateLimited, 429, 1, "Rate limit"),
    (429, {"x-ratelimit-reset": "30"}, LIMIT, RateLimited, 429, 30, "Rate limit"),
    (429, {"x-ratelimit-reset-requests": "soon"}, LIMIT, RateLimited, 429, None, "Rate limit"),
    (429, {}, LIMIT, RateLimited, 429, None, "Rate limit"),
    (429, {"retry-after": "60"}, QUOTA, RateLimited, 429, None, "quota"),
    (429, {}, b"Too Many Requests", RateLimited, 429, None, "Too Many"),
    (500, {}, error("The server had an error", "server_error"), UpstreamRefused, 500, None, "had an error"),
    (503, {"retry-after": "5"}, error("Overloaded", "server_error"), UpstreamRefused, 503, 5, "Overloaded"),
    (502, HTML, b"<html>Bad Gateway</html>", UpstreamRefused, 502, None, "web page"),
    (200, HTML, b"<!doctype html>Welcome", UpstreamFailed, 502, None, "web page"),
    (200, {}, b"", UpstreamFailed, 502, None, "empty"),
    (200, {}, {"choices": []}, UpstreamFailed, 502, None, "no answer"),
    (200, {}, error("late trouble"), UpstreamFailed, 502, None, "late trouble"),
    (302, {"location": "https://elsewhere.example"}, b"", UpstreamFailed, 502, None, "redirects"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "expected", "wait", "message"), RESPONSES
)
def test_a_response_becomes_one_error(
    status: int,
    headers: dict[str, str],
    body: Any,
    kind: type[RelayError],
    expected: int,
    wait: int | None,
    message: str,
) -> None:
    failure = failures.from_response(
        status, headers, body if isinstance(body, bytes) else orjson.dumps(body)
    )
    assert type(failure) is kind
    assert (failure.status, failure.retry_after) == (expected, wait)
    assert message in failure.message
    assert "4321" not in failure.message and "https://" not in failure.message


def test_times_that_are_dates() -> None:
    later = {"retry-after": formatdate(time.time() + 90, usegmt=True)}
    wait = failures.from_response(429, later, orjson.dumps(LIMIT)).retry_after
    assert wait is not None and 85 <= wait <= 91
    for stamp in (str(int(time.time() + 60)), str(int((time.time() + 60) * 1000))):
        wait = failures.from_response(
            429, {"x-ratelimit-reset": stamp}, orjson.dumps(LIMIT)
        ).retry_after
        assert wait is not None and 55 <= wait <= 61


@given(st.integers(300, 599), st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset", "content-type"]), st.text(max_size=20)), st.binary(max_size=80))  # fmt: skip
def test_no_response_raises_anything_else(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    assert isinstance(failures.from_response(status, headers, body), RelayError)


ODD_RESETS = [
    "9" * 400,
    "9" * 400 + "d",
    "9" * 90 + "h",
    "9" * 15,
    "1" * 5000 + "s",
    "1.2.3s",
    ".s",
    "\u0663s",
    "-1",
    "inf",
    "nan",
    "",
]


@pytest.mark.parametrize("value", ODD_RESETS)
@pytest.mark.parametrize(
    "name", ["x-ratelimit-reset", "x-ratelimit-reset-tokens", "retry-after-ms"]
)
def test_a_reset_that_means_nothing_is_none(name: str, value: str) -> None:
    headers = {name: value}
    failure = failures.from_response(429, headers, orjson.dumps(LIMIT))
    assert type(failure) is RateLimited and failure.retry_after is None


def test_the_longest_wait_that_counts_comes_from_the_resets_that_mean_something() -> (
    None
):
    headers = {"x-ratelimit-reset-a": "9" * 400, "x-ratelimit-reset-b": "7s"}
    failure = failures.from_response(429, headers, orjson.dumps(LIMIT))
    assert failure.retry_after == 7


@pytest.mark.parametrize("depth", [254, 990, 5000])
@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_an_error_of_any_depth_is_an_error(status: int, depth: int) -> None:
    for inner in ("[" * depth + "]" * depth, '{"error":' * depth + "1" + "}" * depth):
        for name in ("message", "code", "type", "error", "retry_after"):
            body = f'{{"error": {{"{name}": {inner}}}}}'.encode()
            failure = failures.from_response(status, {}, body)
            assert len(failure.message) < 400
            assert failure.retry_after is None


@pytest.mark.parametrize("wait", [math.inf, math.nan, -1, 10**8, True, "9", [9]])
def test_a_wait_that_means_nothing_is_none(wait: Any) -> None:
    payload = {"error": {"code": 429, "message": "slow", "retry_after": wait}}
    failure = failures.in_event(payload)
    assert type(failure) is RateLimited and failure.retry_after is None


BASES = [
    ("http://localhost:11434", "http://localhost:11434/v1"),
    ("http://localhost:11434/", "http://localhost:11434/v1"),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
    ("https://openrouter.example/api/v1", "https://openrouter.example/api/v1"),
    ("https://google.example/v1beta/openai/", "https://google.example/v1beta/openai"),
    ("https://api.example/v1/chat/completions", "https://api.example/v1"),
    ("https://api.example/chat/completions/", "https://api.example"),
]


@pytest.mark.parametrize(("address", "expected"), BASES)
def test_an_address_is_understood_with_and_without_v1_and_slash(
    address: str, expected: str
) -> None:
    assert base(address) == expected


HOSTS = [
    (DEFAULT_BASE, True),
    ("http://API.OpenAI.com:443/v1", True),
    ("https://api.openai.com.example/v1", False),
    ("https://eu.api.openai.com/v1", False),
    ("https://example/api.openai.com", False),
    ("https://api.openai.com@example/v1", False),
    ("http://localhost:11434/v1", False),
]


@pytest.mark.parametrize(("address", "takes"), HOSTS)
def test_only_openai_itself_takes_the_role_developer(address: str, takes: bool) -> None:
    assert is_openai(address) is takes


QUESTION = Question(
    (
        Message("developer", "Be brief."),
        Message("developer", "", ({"role": "developer", "content": [], "name": "d"},)),
        Message("user", "Hi", ({"role": "user", "content": "Hi"},)),
        Message("assistant", "Hello."),
    ),
    options={"temperature": 0.5, "api_key": "sk-x", "stream": False},
)


@pytest.mark.parametrize(("takes", "role"), [(True, "developer"), (False, "system")])
def test_messages_of_developers_are_sent_in_a_role_that_the_server_knows(
    takes: bool, role: str
) -> None:
    extras = Extras(body={"top_p": 1, "stream_options": None})
    sent = completion_body(QUESTION, "tiny", extras, developer_role=takes)
    assert orjson.loads(sent) == {
        "model": "tiny",
        "messages": [
            {"role": role, "content": "Be brief."},
            {"role": role, "content": [], "name": "d"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
        ],
        "stream": True,
        "temperature": 0.5,
        "top_p": 1,
    }
    assert QUESTION.messages[1].payloads == (
        {"role": "developer", "content": [], "name": "d"},
    )


@pytest.mark.parametrize("options", [{"n": 2}, {"n": "x"}, {"stop": {"a", "b"}}])
def test_what_cannot_be_asked_is_the_callers_error(options: dict[str, Any]) -> None:
    question = Question((Message("user", "Hi"),), options=options)
    with pytest.raises(BadRequest):
        completion_body(question, "tiny", Extras(), developer_role=False)
