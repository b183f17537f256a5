"""ChatGPT's failures, in all the shapes in which they were seen, each to one member of the error tree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import (
    Challenged,
    OneAtATime,
    RateLimited,
    RelayError,
    TokenRejected,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.wording import replaced_in_texts, retry_after, stated_wait

HTML = {"content-type": "text/html; charset=UTF-8"}
CHALLENGE = (
    b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>"
    + b"x" * 3000
    + b"cf_chl_opt</body>"
)
EXPIRED = {
    "detail": {
        "message": "Your authentication token has expired.",
        "code": "token_expired",
    }
}
FASTAPI = {
    "detail": [
        {
            "loc": ["body", "messages", 0, "author"],
            "msg": "field required",
            "type": "value_error.missing",
        }
    ]
}

#: status, headers, body -> error, its status, retry_after, a word of its message
RESPONSES: list[
    tuple[int, dict[str, str], Any, type[RelayError], int, int | None, str]
] = [
    (401, {}, EXPIRED, TokenRejected, 401, None, "expired"),
    (
        401,
        {},
        {"detail": "Could not parse your authentication token."},
        TokenRejected,
        401,
        None,
        "parse",
    ),
    (401, {}, {"detail": "Unauthorized"}, TokenRejected, 401, None, "Unauthorized"),
    (
        401,
        {},
        {"error": {"message": "bad", "code": "invalid_jwt"}},
        TokenRejected,
        401,
        None,
        "bad",
    ),
    (401, {}, b"", TokenRejected, 401, None, "rejects the access token"),
    (
        403,
        {},
        {"detail": {"message": "Closed", "code": "account_deactivated"}},
        TokenRejected,
        401,
        None,
        "closed",
    ),
    (403, HTML, CHALLENGE, Challenged, 403, None, "never solves"),
    (
        403,
        {"cf-mitigated": "challenge", **HTML},
        b"<html></html>",
        Challenged,
        403,
        None,
        "challenge",
    ),
    (503, HTML, CHALLENGE, Challenged, 403, None, "challenge"),
    (403, {}, b"error code: 1020", Challenged, 403, None, "address"),
    (
        403,
        {},
        {"detail": "Unusual activity has been detected."},
        UpstreamRefused,
        403,
        None,
        "Unusual activity",
    ),
    (
        404,
        {},
        {"detail": "Can't load conversation C"},
        UpstreamRefused,
        404,
        None,
        "load conversation",
    ),
    (
        404,
        {},
        {"detail": {"message": "Conversation not found", "code": "x"}},
        UpstreamRefused,
        404,
        None,
        "not found",
    ),
    (
        413,
        {},
        {"detail": {"message": "too long", "code": "message_length_exceeds_limit"}},
        UpstreamRefused,
        413,
        None,
        "long",
    ),
    (
        422,
        {},
        FASTAPI,
        UpstreamRefused,
        422,
        None,
        "field required (body.messages.0.author)",
    ),
    (
        422,
        {},
        {"detail": "Invalid conversation body"},
        UpstreamRefused,
        422,
        None,
        "Invalid conversation body",
    ),
    (
        400,
        {},
        {"detail": "Too many requests in 1 hour. Try again later."},
        RateLimited,
        429,
        3600,
        "Too many",
    ),
    (
        429,
        {},
        {
            "detail": {
                "message": "cap",
                "code": "model_cap_exceeded",
                "clears_in": 11461,
            }
        },
        RateLimited,
        429,
        11461,
        "cap",
    ),
    (
        429,
        {},
        {"error": {"message": "slow", "resets_in_seconds": 1.2}},
        RateLimited,
        429,
        2,
        "slow",
    ),
    (
        429,
        {"retry-after": "20"},
        {"detail": "Slow down"},
        RateLimited,
        429,
        20,
        "Slow down",
    ),
    (
        429,
        {},
        {"detail": "try again in 20 minutes"},
        RateLimited,
        429,
        1200,
        "20 minutes",
    ),
    (429, {}, {"detail": "Something went wrong"}, RateLimited, 429, None, "Something"),
    (429, {}, {"error": "Rate limited by proxy"}, RateLimited, 429, None, "by proxy"),
    (429, {}, b"", RateLimited, 429, None, "too many requests"),
    (429, HTML, b"<html>429</html>", UpstreamRefused, 429, None, "a web page"),
    (
        429,
        {},
        {"detail": "Only one message at a time. Please wait."},
        OneAtATime,
        429,
        None,
        "one message",
    ),
    (
        500,
        {},
        {"detail": "Internal Server Error"},
        UpstreamRefused,
        500,
        None,
        "Internal Server Error",
    ),
    (
        500,
        {},
        {"error": "No bypass servers available."},
        UpstreamRefused,
        500,
        None,
        "bypass",
    ),
    (
        502,
        HTML,
        b"<html><h1>502 Bad Gateway</h1></html>",
        UpstreamRefused,
        502,
        None,
        "a web page",
    ),
    (524, {}, b"", UpstreamRefused, 524, None, "524"),
    (
        302,
        {"location": "https://elsewhere.example/"},
        b"",
        UpstreamFailed,
        502,
        None,
        "redirects are not followed",
    ),
    (308, {}, b"", UpstreamFailed, 502, None, "redirects"),
    (
        200,
        HTML,
        b"<!doctype html><html>Welcome</html>",
        UpstreamFailed,
        502,
        None,
        "a web page",
    ),
    (200, {}, b"", UpstreamFailed, 502, None, "an empty answer"),
    (200, {}, b"hello", UpstreamFailed, 502, None, "what is no answer"),
    (
        200,
        {},
        {"wss_url": "wss://x.example", "conversation_id": "C"},
        UpstreamFailed,
        502,
        None,
        "wss_url",
    ),
    (
        200,
        {},
        {"detail": {"type": "invalid_request_error", "message": "no"}},
        UpstreamFailed,
        502,
        None,
        "no",
    ),
    (200, {}, EXPIRED, TokenRejected, 401, None, "expired"),
    (
        200,
        {},
        {"status": False, "error": "Invalid API key", "hint": "x"},
        UpstreamFailed,
        502,
        None,
        "Invalid API key",
    ),
]


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "as_status", "wait", "message"), RESPONSES
)
def test_a_response_becomes_one_error(
    status: int,
    headers: dict[str, str],
    body: Any,
    error: type[RelayError],
    as_status: int,
    wait: int | None,
    message: str,
) -> None:
    failure = failures.from_response(status, headers, encoded(body))
    assert type(failure) is error
    assert (failure.status, failure.retry_after) == (as_status, wait)
    assert message in failure.message
    assert failure.may_have_been_sent == (as_status >= 500)


def test_an_upstreams_text_is_passed_on_short_and_without_secrets() -> None:
    secret = "eyJhbGciOi.eyJzdWIi.c2ln sk-proj-abcdefgh12 Bearer abc https://host.example/?verify=x rt_aaaaaaaaaaaa"
    failure = failures.from_response(
        400, {}, encoded({"detail": f"bad\n{secret} " + "x" * 1000})
    )
    assert (
        "bad" in failure.message
        and len(failure.message) < 400
        and "\n" not in failure.message
    )
    for part in ("eyJ", "sk-proj", "Bearer", "host.example", "rt_a"):
        assert part not in failure.message


@given(
    st.integers(200, 599),
    st.dictionaries(
        st.sampled_from(["content-type", "retry-after"]), st.text(max_size=9)
    ),
    st.binary(max_size=99),
)
def test_no_response_breaks_it(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    failure = failures.from_response(status, headers, body)
    assert (
        failure.source == "upstream"
        and 400 <= failure.status <= 599
        and failure.message
    )


@pytest.mark.parametrize("depth", [254, 990, 5000])
@pytest.mark.parametrize("name", ["message", "code", "error", "clears_in"])
def test_an_error_of_any_depth_is_an_error(name: str, depth: int) -> None:
    for inner in ("[" * depth + "]" * depth, '{"error":' * depth + "1" + "}" * depth):
        for body in (f'{{"detail": {{"{name}": {inner}}}}}', f'{{"{name}": {inner}}}'):
            failure = failures.from_response(400, {}, body.encode())
            assert failure.status == 400 and len(failure.message) < 400
    for key in ("loc", "msg", "type"):
        nested = json.dumps({"detail": [{key: [[[[1]]]]}]}).replace("1", inner)
        assert failures.from_response(422, {}, nested.encode()).status == 422


WAITS: list[tuple[Any, int | None]] = [
    (0.2, 1),
    (99_999_999, 99_999_999),
    (10**8, None),
    (10**18, None),
    (1e300, None),
    (0, None),
    (-5, None),
    (True, None),
    ("60", None),
    (None, None),
    ([60], None),
    (float("inf"), None),
    (float("nan"), None),
]


@pytest.mark.parametrize(("wait", "expected"), WAITS)
def test_a_stated_wait_is_a_number_of_seconds_or_none(
    wait: Any, expected: int | None
) -> None:
    payload = {"detail": {"message": "cap", "clears_in": wait}}
    assert stated_wait(payload) == expected
    failure = failures.from_event("cap", "usage_limit_reached", payload)
    assert failure.retry_after == expected


@pytest.mark.parametrize(
    "value",
    [
        "9" * 400,
        "9" * 5000,
        "-5",
        "inf",
        "nan",
        "1e9",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00",
        "x" * 100_000,
    ],
)
def test_a_retry_after_that_means_nothing_is_none(value: str) -> None:
    assert retry_after({"retry-after": value}) in (None, 1)


def test_a_phrase_with_a_number_beyond_all_measure_states_no_wait() -> None:
    body = encoded({"detail": f"try again in {'9' * 250} hours"})
    assert failures.from_response(429, {}, body).retry_after is None


def test_texts_are_replaced_as_deep_as_error_objects_are_read() -> None:
    payload = {"a": ["key", {"b": "key", "c": 5}], "d": [[[[[["key"]]]]]]}
    replaced = replaced_in_texts(payload, lambda text: text.replace(b"key", b"..."))
    assert replaced == {"a": ["...", {"b": "...", "c": 5}], "d": [[[[[None]]]]]}
