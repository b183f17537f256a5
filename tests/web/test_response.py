"""A response as WSGI's servers take it."""

from __future__ import annotations

from typing import Any

import pytest

from relay.web.response import Response, status_line


class Sent:
    """What a server was given of a response."""

    def __init__(self, response: Response, method: str = "GET") -> None:
        answer = response({"REQUEST_METHOD": method}, self._start)
        self.body = b"".join(answer)
        answer.close()

    def _start(self, status: str, fields: list[tuple[str, str]]) -> None:
        self.status = status
        self.fields = dict(fields)
        assert len(self.fields) == len(fields)


def test_a_body_comes_with_its_type_and_length() -> None:
    sent = Sent(Response("ü".encode(), "text/plain; charset=utf-8", status=201))
    assert sent.status == "201 Created" and sent.body == "ü".encode()
    assert sent.fields == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "2",
    }


def test_a_head_says_the_length_of_what_it_leaves_out() -> None:
    sent = Sent(Response(b"hello"), "HEAD")
    assert sent.body == b"" and sent.fields["Content-Length"] == "5"


@pytest.mark.parametrize("status", [204, 304])
def test_what_has_no_body_says_no_length(status: int) -> None:
    assert Sent(Response(status=status)).fields == {}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("a\r\nSet-Cookie: b=c", "a  Set-Cookie: b=c"),
        ("a\x00\x7fb", "a  b"),
        ("three 三, ü", "three ?, ü"),
    ],
)
def test_others_words_begin_no_other_field(value: str, sent: str) -> None:
    headers = {"X-Conversation-Id": value, "X-Other": "plain"}
    fields = Sent(Response(headers=headers)).fields
    assert fields["X-Conversation-Id"] == sent and fields["X-Other"] == "plain"
    sent.encode("latin-1")


def test_it_is_closed_once() -> None:
    calls: list[Any] = []
    response = Response()
    response.when_closed += (lambda: calls.append(1), lambda: calls.append(2))
    Sent(response)
    response.close()
    assert calls == [1, 2]


def test_statuses_that_no_standard_names_have_a_line() -> None:
    assert status_line(404) == "404 Not Found"
    assert status_line(520) == "520 Unknown"
