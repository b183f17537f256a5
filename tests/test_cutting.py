"""Answers that end at a stop sequence or a number of tokens, where the upstream knows neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from relay.cutting import LONGEST_STOP, AnswerLimits, CuttingDecoder, limits_of
from relay.domain import Delta, Event, Finished, Reasoning, Restarted, Started
from relay.errors import BadRequest, UpstreamCut, UpstreamFailed
from relay.window import estimate_text
from tests.chatgpt_backend import Backend
from tests.growth import assert_grows_at_most, processor_seconds
from tests.scripted import Scripted

Build = Callable[..., Flask]


class Written:
    """A decoder that gives each piece's events as they were written down; `end` raises `failure`."""

    started = True
    complete = False
    message_id = "the-answers-id"

    def __init__(self, events: list[Event], failure: Exception | None = None) -> None:
        self._events = events
        self._failure = failure
        self.given = 0

    def feed(self, piece: bytes) -> Iterator[Event]:
        for event in self._events:
            self.given += 1
            yield event

    def end(self) -> Iterable[Event]:
        raise self._failure or UpstreamCut()


def cut(
    events: list[Event], *stops: str, tokens: int | None = None
) -> tuple[str, Finished | None]:
    """The text that a decoder gives, and how it ends; a restart voids what came before."""
    text = ""
    for event in CuttingDecoder(Written(events), AnswerLimits(stops, tokens)).feed(b""):
        match event:
            case Delta(piece):
                assert piece
                text += piece
            case Restarted():
                text = ""
            case Finished():
                return text, event
    return text, None


def pieces(text: str, cuts: Iterable[int]) -> list[Event]:
    """A text in pieces, and its end."""
    places = [0, *sorted(at % (len(text) + 1) for at in cuts), len(text)]
    parts = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    return [*map(Delta, parts), Finished("stop", "id")]


def expected(text: str, stops: tuple[str, ...], tokens: int | None) -> tuple[str, str]:
    """The same by brute force."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            text = text[: end - max(map(len, found))]
            break
    if tokens is not None and estimate_text(text) > tokens:
        fitting = [at for at in range(len(text)) if estimate_text(text[:at]) <= tokens]
        return text[: max(fitting)], "length"
    return text, "stop"


SMALL = st.text("ab你", max_size=30)
STOPS = st.lists(st.text("ab你", min_size=1, max_size=5), max_size=4)


@given(SMALL, STOPS, st.none() | st.integers(1, 12), st.lists(st.integers(0, 30)))
def test_the_text_ends_at_the_same_place_however_it_is_split(
    text: str, stops: list[str], tokens: int | None, cuts: list[int]
) -> None:
    found, finished = cut(pieces(text, cuts), *stops, tokens=tokens)
    assert finished is not None
    assert (found, finished.reason) == expected(text, tuple(stops), tokens)


@pytest.mark.parametrize(
    ("text", "stops", "tokens", "found", "reason"),
    [
        ("one END two", ("END",), None, "one ", "stop"),
        ("one EN", ("END",), None, "one EN", "stop"),
        ("END", ("END",), None, "", "stop"),
        ("xabcd", ("abcd", "bc"), None, "xa", "stop"),
        ("xabc", ("bc", "abc"), None, "x", "stop"),
        ("aaab", ("aab",), None, "a", "stop"),
        ("你好。再见", ("。",), None, "你好", "stop"),
        ("12345678", (), 2, "12345678", "stop"),
        ("123456789", (), 2, "12345678", "length"),
        ("你好你", (), 2, "你好", "length"),
        ("12345678END", ("END",), 2, "12345678", "stop"),
        ("123456789END", ("END",), 2, "12345678", "length"),
        ("12345678EN", ("END",), 2, "12345678", "length"),
    ],
)
def test_where_an_answer_ends(
    text: str, stops: tuple[str, ...], tokens: int | None, found: str, reason: str
) -> None:
    for events in (pieces(text, ()), pieces(text, range(len(text)))):
        given, finished = cut(events, *stops, tokens=tokens)
        assert finished is not None and (given, finished.reason) == (found, reason)


@pytest.mark.parametrize(
    ("texts", "given"),
    [
        (["Hello E", "ND", "never"], ["Hello "]),
        (["Hello E", "NTER", " E", "N", "D", "never"], ["Hello ", "ENTER", " "]),
        (["Hello E", "N", "EN", "."], ["Hello ", "EN", "EN."]),
    ],
)
def test_only_what_may_begin_a_stop_sequence_is_held_back(
    texts: list[str], given: list[str]
) -> None:
    upstream = Written([*map(Delta, texts), Finished("stop", "the-answers-id")])
    decoder = CuttingDecoder(upstream, AnswerLimits(("END",)))
    ended = Finished("stop", "the-answers-id")
    assert list(decoder.feed(b"")) == [*map(Delta, given), ended]


def test_nothing_of_the_upstream_is_read_after_the_end() -> None:
    upstream = Written([Delta("one END"), Delta("two"), Finished("stop", "other")])
    decoder = CuttingDecoder(upstream, AnswerLimits(("END",)))
    assert list(decoder.feed(b"")) == [
        Delta("one "),
        Finished("stop", "the-answers-id"),
    ]
    assert upstream.given == 1
    assert list(decoder.feed(b"")) == [] and list(decoder.end()) == []
    assert upstream.given == 1


def test_other_events_pass_and_a_restart_begins_anew() -> None:
    events = [
        Started("m"),
        Reasoning("END"),
        Delta("12345678E"),
        Restarted(),
        Delta("ND 123"),
        Finished("length", "id", usage={"total_tokens": 1}),
    ]
    decoder = CuttingDecoder(Written(events), AnswerLimits(("END",), tokens=2))
    assert list(decoder.feed(b"")) == [*events[:2], Delta("12345678"), *events[3:]]


@pytest.mark.parametrize("tokens", [None, 100])
def test_what_came_before_a_failure_is_given(tokens: int | None) -> None:
    upstream = Written([Delta("one E")], UpstreamFailed("It broke."))
    decoder = CuttingDecoder(upstream, AnswerLimits(("END",), tokens))
    assert list(decoder.feed(b"")) == [Delta("one ")]
    events = decoder.end()
    assert next(events) == Delta("E")
    with pytest.raises(UpstreamFailed, match="It broke"):
        next(events)


def test_a_failure_after_the_last_token_is_none() -> None:
    upstream = Written([Delta("1234E")], UpstreamFailed("It broke."))
    decoder = CuttingDecoder(upstream, AnswerLimits(("END",), 1))
    assert list(decoder.feed(b"")) == [Delta("1234")]
    assert list(decoder.end()) == [Finished("length", "the-answers-id")]


WRONG: list[dict[str, Any]] = [
    {"stop": 5},
    {"stop": ""},
    {"stop": [""]},
    {"stop": [1]},
    {"stop": {"a": 1}},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"stop": "x" * (LONGEST_STOP + 1)},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"max_tokens": "5"},
    {"max_completion_tokens": [5]},
    {"max_tokens": 5, "max_completion_tokens": 0},
]


@pytest.mark.parametrize("options", WRONG, ids=lambda options: str(options)[:40])
def test_what_is_no_limit_is_refused_by_its_name(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=f"The field ({'|'.join(options)}) must be"):
        limits_of(options)


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({}, None),
        ({"temperature": 1, "stop": None, "max_tokens": None}, None),
        ({"stop": []}, None),
        ({"stop": "x"}, AnswerLimits(("x",))),
        ({"stop": ["x", "y", "x"]}, AnswerLimits(("x", "y"))),
        ({"max_tokens": 5}, AnswerLimits((), 5)),
        ({"max_tokens": 5, "max_completion_tokens": 3}, AnswerLimits((), 3)),
    ],
)
def test_limits_are_read(options: dict[str, Any], limits: AnswerLimits | None) -> None:
    assert limits_of(options) == limits


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("unit", "stop"),
    [("a", "a" * 999 + "b"), ("ab", "ab" * 499 + "b"), ("word ", "\n\n"), ("你", "b")],
)
def test_it_takes_linear_time(unit: str, stop: str, size: int) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        events: list[Event] = [
            Delta(text[at : at + size]) for at in range(0, len(text), size)
        ]
        return processor_seconds(lambda: cut(events, stop, tokens=10**9))

    assert_grows_at_most(3, seconds, 20_000, 40_000)


# through the service


def ask(app: Flask, route: str = "/ask", **fields: Any) -> Any:
    return app.test_client().post(route, json={"msg": "hello", **fields}, buffered=True)


def test_the_offline_responder_stops_where_it_is_told(build: Build) -> None:
    app = build()
    whole = ask(app).json["data"]["message"]
    stopped = ask(app, stop="model was")
    data = stopped.json["data"]
    assert data["message"] == whole.partition("model was")[0]
    assert data["finish_details"] == stopped.headers["X-Finish-Reason"] == "stop"
    assert "X-Ignored-Parameters" not in stopped.headers
    kept = app.test_client().get(f"/conversation/{data['conversation_id']}").json
    answer = kept["mapping"][kept["current_node"]]["message"]
    assert answer["content"]["parts"] == [data["message"]]


def test_max_tokens_end_an_answer_with_the_reason_length(build: Build) -> None:
    app = build()
    whole = ask(app).json["data"]["message"]
    for name in ("max_tokens", "max_completion_tokens"):
        cut_short = ask(app, **{name: 5})
        assert cut_short.json["data"]["message"] == whole[:20]
        assert cut_short.headers["X-Finish-Reason"] == "length"
        assert "X-Ignored-Parameters" not in cut_short.headers
    assert ask(app, max_tokens=10_000).headers["X-Finish-Reason"] == "stop"


def test_every_route_and_format_has_the_same_end(build: Build) -> None:
    client = build().test_client()
    form = {"prompt": "hello", "stop": "no model"}
    text = client.post("/send_message", data=form).json["text"]
    assert text.endswith("chatgpt-webapi: ")
    raw = client.post("/ask?format=text&stream=true", data=form).text
    assert raw == text + "\n"
    streamed = client.post("/ask", data={**form, "stream": "true"}).text
    assert "no model" not in streamed and '"finish_details":"stop"' in streamed
    messages = [{"role": "user", "content": "hello"}]
    lines = client.post("/chat", json={"messages": messages, "stop": ["no model"]})
    assert "no model" not in lines.text and lines.text.endswith('"[DONE]"}')
    number = client.post("/ask", data={"msg": "1 2 3", "stop": "2"}).json["data"]
    assert number["message"].endswith("You said: 1 ")


@pytest.mark.parametrize("options", WRONG[2:7], ids=lambda options: str(options)[:40])
def test_a_wrong_limit_is_a_bad_request_and_keeps_nothing(
    build: Build, options: dict[str, Any]
) -> None:
    upstream = Scripted()
    app = build(upstream)
    refused = ask(app, **options)
    assert (refused.status_code, refused.json["error"]) == (400, "bad_request")
    assert "stop" in refused.json["msg"] and upstream.asked == []
    assert app.test_client().get("/conversations").json == []


def test_the_stream_is_let_go(build: Build) -> None:
    upstream = Scripted(b"S|", b"one |two |", b"three|", b"F|")
    app = build(upstream)
    assert ask(app, stop="two").json["data"]["message"] == "one "
    [stream] = upstream.streams
    assert stream.closed and stream.read(0) == b"three|", "the rest was not read"


def test_an_upstream_that_knows_them_gets_them_as_they_are(build: Build) -> None:
    upstream = Scripted(accepts_options=True)
    app = build(upstream)
    wanted = {"stop": ["a", "b", "c", "d", "e"], "max_tokens": -1}
    assert ask(app, **wanted).status_code == 200
    assert upstream.asked[0].options == wanted


def test_chatgpts_answer_is_cut_and_the_conversation_goes_on_from_it(
    build: Build, backend: Backend
) -> None:
    key = {"Authorization": "Bearer the-client-key-0"}
    client = build(
        reverse_proxy=backend.url,
        access_token=("token-1",),
        authorization=("the-client-key-0",),
    ).test_client()
    first = client.post(
        "/ask", json={"msg": "hello", "stop": "You said"}, headers=key
    ).json["data"]
    assert first["message"] == "Turn 1. "
    [tree] = backend.trees.values()
    kept = tree["mapping"][first["parent_id"]]["message"]
    assert kept["content"]["parts"][0].startswith("Turn 1. You said: hello")
    again = client.post(
        "/ask",
        json={"msg": "more", "conversation_id": first["conversation_id"]},
        headers=key,
    )
    assert again.json["data"]["message"].startswith("Turn 2. You said: more")
    assert backend.turns[1].body["parent_message_id"] == first["parent_id"]
