"""ChatGPT's streams, both encodings: the protocol's worked examples, cut at every byte, and what is no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.citations import (
    LONGEST_MARKER,
    CitationFilter,
    visible,
)
from relay.domain import Delta, Event, Finished, Restarted, Started
from relay.errors import (
    Blocked,
    RateLimited,
    RelayError,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.shown import IMAGE
from relay.upstreams.chatgpt_web.classic import Continue, Poll, WebDecoder
from relay.upstreams.chatgpt_web.delta import Documents
from relay.upstreams.wording import Secrets
from tests.chatgpt_backend import classic, delta
from tests.growth import assert_grows_at_most, processor_seconds

RECORDINGS = Path(__file__).parents[1] / "recordings"


def recording(name: str) -> bytes:
    return (RECORDINGS / name).read_bytes()


def decoded(
    *pieces: bytes, known: frozenset[str] = frozenset()
) -> tuple[list[Event], WebDecoder]:
    decoder = WebDecoder(known=known)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + ([] if decoder.wants else decoder.end()), decoder


def final_text(events: list[Event]) -> str:
    """What the caller has in the end."""
    text = ""
    for event in events:
        match event:
            case Restarted():
                text = ""
            case Delta(piece):
                text += piece
    return text


def frame(value: Any, name: str = "") -> bytes:
    return (
        (f"event: {name}\n" if name else "").encode()
        + b"data: "
        + json.dumps(value).encode()
        + b"\n\n"
    )


def assistant(text: str, **more: Any) -> dict[str, Any]:
    base = {
        "id": "a1",
        "author": {"role": "assistant"},
        "content": {"content_type": "text", "parts": [text]},
    }
    return {
        **base,
        "status": "in_progress",
        "end_turn": None,
        "metadata": {},
        "recipient": "all",
        **more,
    }


def envelope(message: dict[str, Any], **more: Any) -> bytes:
    return frame({"message": message, "conversation_id": "C", "error": None, **more})


WHOLE: dict[str, Any] = {"status": "finished_successfully", "end_turn": True}
DONE = b"data: [DONE]\n\n"

ANSWERS = [
    ("classic.sse", "Hi there", "a1", "C1", "gpt-4"),
    ("classic-tools.sse", "It is 4.", "a3", "C2", None),
    (
        "delta.sse",
        "Blue and red.",
        "m2",
        "68aa0000-0000-8000-9000-000000000001",
        "gpt-5",
    ),
    ("delta-thinking.sse", "Option A.", "f1", "C6", "gpt-5-thinking"),
]


@pytest.mark.parametrize(
    ("name", "text", "message_id", "conversation", "model"), ANSWERS
)
def test_a_recording_gives_its_answer(
    name: str, text: str, message_id: str, conversation: str, model: str | None
) -> None:
    events, _ = decoded(recording(name))
    assert final_text(events) == text and Restarted() not in events
    assert events[-1] == Finished("stop", message_id, model)
    assert [event for event in events if isinstance(event, Started)][
        0
    ].conversation_id == conversation


@pytest.mark.parametrize("name", [name for name, *_ in ANSWERS])
@pytest.mark.parametrize("ends", ["lf", "crlf", "cr"])
def test_the_answer_is_the_same_wherever_the_bytes_are_cut(
    name: str, ends: str
) -> None:
    wire = recording(name).replace(b"\r\n", b"\n")
    wire = b"\xef\xbb\xbf" + wire.replace(
        b"\n", {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}[ends]
    )
    whole, _ = decoded(wire)
    for cut in range(0, len(wire) + 1, 1 if ends == "lf" else 7):
        events, _ = decoded(wire[:cut], wire[cut:])
        assert events == whole
    events, _ = decoded(*(wire[at : at + 1] for at in range(len(wire))))
    assert events == whole


@pytest.mark.parametrize("name", [name for name, *_ in ANSWERS])
def test_a_stream_that_ends_without_its_end_is_no_answer(name: str) -> None:
    wire = recording(name)
    for cut in range(len(wire)):
        decoder = WebDecoder()
        list(decoder.feed(wire[:cut]))
        if decoder.complete:
            break
        with pytest.raises(RelayError):
            decoder.end()
    assert cut < len(wire), "it is complete before its last byte"


@pytest.mark.parametrize(
    "end",
    [b"", frame({"type": "message_stream_complete", "conversation_id": "C"}), DONE],
)
def test_a_complete_answer_is_whole_even_if_the_end_is_missing(end: bytes) -> None:
    events, _ = decoded(
        envelope(assistant("Hel")), envelope(assistant("Hello", **WHOLE)), end
    )
    assert final_text(events) == "Hello" and isinstance(events[-1], Finished)


def test_what_comes_after_the_end_is_ignored() -> None:
    events, _ = decoded(
        envelope(assistant("Hello", **WHOLE)),
        DONE,
        envelope(assistant("Hello, and more")),
        b"data: {broken",
    )
    assert final_text(events) == "Hello"


NO_ANSWERS = [
    {"author": {"role": "user"}},
    {"author": {"role": "tool", "name": "python"}},
    {"author": {"role": "system"}},
    {"recipient": "python"},
    {"channel": "analysis"},
    {"channel": "commentary"},
    {"content": {"content_type": "code", "language": "unknown", "text": "2+2"}},
    {
        "content": {
            "content_type": "thoughts",
            "thoughts": [{"summary": "Plan", "content": "x"}],
        }
    },
    {"content": {"content_type": "reasoning_recap", "content": "Thought for 4s"}},
    {"content": {"content_type": "model_editable_context"}},
    {"metadata": {"is_visually_hidden_from_conversation": True}},
    {"metadata": {"is_thinking_preamble_message": True}},
]


@pytest.mark.parametrize("what", NO_ANSWERS, ids=lambda what: json.dumps(what)[:50])
def test_what_is_not_the_answer(what: dict[str, Any]) -> None:
    other = assistant("Not this.", id="x", **{**WHOLE, **what})
    for wire in (
        envelope(other) + envelope(assistant("This.", **WHOLE)),
        envelope(assistant("This.", **WHOLE)) + envelope(other),
    ):
        events, _ = decoded(wire + DONE)
        assert final_text(events) == "This." and Restarted() not in events


def test_echoes_of_earlier_answers_are_not_the_answer() -> None:
    by_id = envelope(assistant("Earlier.", id="before", **WHOLE))
    by_shape = envelope(
        assistant(
            "Much earlier.", id="older", status="finished_successfully", end_turn=None
        )
    )
    events, _ = decoded(
        by_shape + by_id + envelope(assistant("This.", **WHOLE)) + DONE,
        known=frozenset({"before"}),
    )
    assert final_text(events) == "This." and Restarted() not in events


def test_an_answer_that_is_finished_at_first_sight_counts_if_nothing_follows() -> None:
    events, _ = decoded(
        envelope(
            assistant("All at once.", status="finished_successfully", end_turn=None)
        )
        + DONE
    )
    assert final_text(events) == "All at once."


def test_of_several_answers_the_last_counts() -> None:
    first = envelope(assistant("Let me look.", id="p")) + envelope(
        assistant("Let me look.", id="p", **{**WHOLE, "end_turn": False})
    )
    events, _ = decoded(first + envelope(assistant("Found.", **WHOLE)) + DONE)
    assert Restarted() in events and final_text(events) == "Found."
    assert events[-1] == Finished("stop", "a1", None)


def test_a_text_that_was_edited_upstream_begins_anew() -> None:
    events, _ = decoded(
        envelope(assistant("Helo wor"))
        + envelope(assistant("Hello world", **WHOLE))
        + DONE
    )
    assert events[1:-1] == [Delta("Helo wor"), Restarted(), Delta("Hello world")]


def test_repeated_events_say_nothing_twice() -> None:
    events, _ = decoded(
        envelope(assistant("Hel")) * 3
        + envelope(assistant("Hello", **WHOLE)) * 3
        + DONE * 2
    )
    assert [event for event in events if isinstance(event, Delta)] == [
        Delta("Hel"),
        Delta("lo"),
    ]


def test_an_event_of_a_megabyte() -> None:
    text = "你好" * 200_000
    events, _ = decoded(envelope(assistant(text, **WHOLE)) + DONE)
    assert final_text(events) == text


def test_a_long_answer_in_many_small_pieces() -> None:
    """Each piece costs the same, however long the answer is by then: 100,000 of them are read in seconds."""
    start = {"v": {"message": assistant(""), "conversation_id": "C"}, "c": 1}
    wire = b'event: delta_encoding\ndata: "v1"\n\n' + frame(start, "delta")
    wire += (
        frame({"p": "/message/content/parts/0", "o": "append", "v": "word "}, "delta")
        + frame({"v": "word "}, "delta") * 99_999
    )
    edits = [
        {"p": "/message/status", "o": "replace", "v": "finished_successfully"},
        {"p": "/message/end_turn", "v": True},
    ]
    events, _ = decoded(
        wire + frame({"p": "", "o": "patch", "v": edits}, "delta") + DONE
    )
    assert (
        final_text(events[-1:]) == ""
        and sum(len(event.text) for event in events if isinstance(event, Delta))
        == 500_000
    )


def delta_stream(*frames: Any) -> list[bytes]:
    """A delta stream with one answer, which these frames edit."""
    start = {"v": {"message": assistant(""), "conversation_id": "C"}, "c": 1}
    return [
        b'event: delta_encoding\ndata: "v1"\n\n',
        *(frame(value, "delta") for value in (start, *frames)),
    ]


def appended(text: str) -> dict[str, Any]:
    return {"p": "/message/content/parts/0", "o": "append", "v": text}


END = {
    "p": "/message",
    "o": "patch",
    "v": [
        {"p": "/status", "o": "replace", "v": "finished_successfully"},
        {"p": "/end_turn", "o": "replace", "v": True},
    ],
}
SAME_STATUS = {"p": "/message/status", "o": "replace", "v": "in_progress"}


def seconds_to_decode(pieces: list[bytes]) -> float:
    decoder = WebDecoder()

    def run() -> None:
        for piece in pieces:
            for _ in decoder.feed(piece):
                pass
        decoder.end()

    return processor_seconds(run)


def one_by_one(text: str) -> Callable[[int], list[dict[str, Any]]]:
    return lambda number: [appended(text)] * number


def after_much_text(*edits: dict[str, Any]) -> Callable[[int], list[dict[str, Any]]]:
    return lambda number: [appended("x" * 500 * number), *edits * number]


GROWTHS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "words": one_by_one("word "),
    "references that never close": one_by_one("【1†"),
    "blocks that never close": one_by_one("\ue200"),
    "both": one_by_one("\ue200【12:3†"),
    "brackets": one_by_one("【"),
    "references": one_by_one("a【1†source】"),
    "stray marks": one_by_one("\ue203"),
    "one block, then words": lambda number: [
        appended("\ue200a\ue201"),
        *one_by_one("word ")(number),
    ],
    "a state again and again": after_much_text(SAME_STATUS),
    "a field that grows": lambda number: (
        [{"p": "/message/metadata/x", "o": "append", "v": "\U0001f600" * 40}] * number
    ),
    "pieces and states in turn": after_much_text(appended("x"), SAME_STATUS),
    "pieces within patches": after_much_text(
        {"p": "", "o": "patch", "v": [appended("x"), SAME_STATUS]}
    ),
}


@pytest.mark.parametrize("name", GROWTHS)
def test_an_answer_of_twice_the_length_takes_twice_the_time(name: str) -> None:
    def seconds(number: int) -> float:
        return seconds_to_decode(delta_stream(*GROWTHS[name](number), END, END))

    assert_grows_at_most(3, seconds, 4_000, 8_000)


@pytest.mark.parametrize(
    "mark", ["【1†", "\ue200", "【", "](", "](sandbox:/", "](sandbox:/a)", IMAGE]
)
def test_a_whole_text_of_unclosed_markers_is_scanned_in_linear_time(mark: str) -> None:
    def seconds(number: int) -> float:
        return seconds_to_decode([envelope(assistant(mark * number, **WHOLE)), DONE])

    assert_grows_at_most(3, seconds, 20_000, 40_000)


def test_pieces_within_patches_are_part_of_the_text() -> None:
    patch = {"p": "", "o": "patch", "v": [appended("lo"), SAME_STATUS, appended(" w")]}
    events, _ = decoded(
        *delta_stream(appended("Hel"), patch, appended("orld"), END), DONE
    )
    assert [event for event in events if isinstance(event, Delta)] == [
        Delta("Hel"),
        Delta("lo w"),
        Delta("orld"),
    ]


def test_text_that_grew_while_it_was_hidden_is_not_lost() -> None:
    hidden = "/message/metadata/is_visually_hidden_from_conversation"
    hide = {"p": "", "o": "patch", "v": [{"p": hidden, "v": True}, appended("lo")]}
    show = {"p": hidden, "o": "replace", "v": False}
    events, _ = decoded(*delta_stream(appended("Hel"), hide, show, END), DONE)
    assert final_text(events) == "Hello" and Restarted() not in events


def test_text_that_grew_while_it_was_hidden_and_goes_on_so_is_not_lost() -> None:
    hidden = "/message/metadata/is_visually_hidden_from_conversation"
    hide = {"p": "", "o": "patch", "v": [{"p": hidden, "v": True}, appended("lo")]}
    show = {"p": hidden, "o": "replace", "v": False}
    frames = delta_stream(appended("Hel"), hide, appended("!"), show, END)
    events, _ = decoded(*frames, DONE)
    assert final_text(events) == "Hello!"


def test_an_echo_that_has_grown_before_another_message_took_its_place_is_whole() -> (
    None
):
    """It is the answer in the end, where no other comes."""
    echo = {"message": assistant("Forty", status="finished_successfully")}
    tool = {"message": assistant("", id="t1", author={"role": "tool"})}
    encoding, *_ = delta_stream()
    frames = [
        {"p": "", "o": "add", "v": echo},
        appended("-two."),
        {"p": "", "o": "add", "v": tool},
    ]
    events, _ = decoded(encoding, *(frame(each, "delta") for each in frames), DONE)
    assert final_text(events) == "Forty-two."


def test_what_grows_under_the_answers_id_and_is_none_may_grow_as_long() -> None:
    code = {"message": assistant("", recipient="python")}
    frames = delta_stream(
        appended("Let me see."), {"p": "", "o": "add", "v": code}, appended("x")
    )
    more = [frame({"v": "abcd"}, "delta")] * 12_000
    answer = frame({"p": "", "o": "add", "v": {"message": assistant("4.", **WHOLE)}})
    events, _ = decoded(*frames, *more, answer, DONE)
    assert final_text(events) == "4."


def test_a_message_in_two_channels_has_the_text_of_the_one_that_was_edited_last() -> (
    None
):
    envelope = {"message": assistant(""), "conversation_id": "C"}
    frames = delta_stream(
        appended("One"),
        {"c": 2, "p": "", "o": "add", "v": envelope},
        appended("Three"),
        {"c": 1, **appended(" more")},
        END,
    )
    events, _ = decoded(*frames, DONE)
    assert final_text(events) == "One more"


def test_text_that_is_edited_between_its_pieces() -> None:
    events, _ = decoded(
        *delta_stream(
            appended("Helo"),
            {"p": "/message/content/parts/0", "o": "truncate", "v": 3},
            appended("lo"),
            {"p": "/message/content", "o": "replace", "v": {"content_type": "text", "parts": ["Hello, "]}},
            appended("you"),
            {"p": "/message/content/parts/1", "o": "add", "v": "!"},
            END,
        ),
        DONE,
    )  # fmt: skip
    assert final_text(events) == "Hello, you!"


def test_documents_without_an_id_do_no_harm() -> None:
    message = {"message": {"content": {"parts": ["x"]}}, "conversation_id": "C"}
    nameless = b'event: delta_encoding\ndata: "v1"\n\n' + frame({"v": message}, "delta")
    answer = {"message": assistant("Hello", **WHOLE), "conversation_id": "C"}
    events, _ = decoded(
        nameless, frame(appended("y"), "delta"), frame({"v": answer, "c": 2}), DONE
    )
    assert final_text(events) == "Hello"


TOO_MUCH: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "a text that is edited again and again": lambda: [
        appended("x" * 1_000_000),
        *[{"p": "/message/content/parts/0", "o": "truncate", "v": 999_999}] * 99,
    ],
    "a patch of edits that copy the text": lambda: [
        appended("x" * 1_000_000),
        {
            "p": "/message/content/parts/0",
            "o": "patch",
            "v": [{"o": "truncate", "v": 999_999}] * 99,
        },
    ],
    "a field that grows": lambda: (
        [{"p": "/message/x", "o": "append", "v": "x" * 1_000_000}] * 9
    ),
    "objects that paths make": lambda: [
        {"p": f"/x{number}{'/a' * 30}", "o": "add", "v": 1} for number in range(6_000)
    ],
    "a path of many parts": lambda: [{"p": "/a" * 33, "o": "add", "v": 1}],
    "a path of many characters": lambda: [{"p": f"/{'a' * 1000}", "o": "add", "v": 1}],
    "an index of many digits": lambda: [
        {"p": f"/message/content/parts/{'1' * 5000}", "o": "add", "v": 1}
    ],
    "a list of many values": lambda: [
        {"p": "/message/list", "o": "add", "v": [1] * 20_000},
        {"p": "/message/list/0", "o": "add", "v": 1},
    ],
    "patches in patches": lambda: [{"p": "", "o": "patch", "v": nested_patch(300)}],
}


def nested_patch(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"p": "/a", "v": 1}
    for _ in range(depth):
        value = {"o": "patch", "v": value}
    return value


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_edits_may_cost_is_bounded(name: str) -> None:
    with pytest.raises(UpstreamFailed):
        decoded(*delta_stream(*TOO_MUCH[name](), END), DONE)


def test_events_before_an_error_in_the_same_piece_are_given_first() -> None:
    failure = frame({"error": "Something went wrong"})
    texts = ("H", "He", "Hel", "Hell")
    as_classic = b"".join(envelope(assistant(text)) for text in texts)
    as_delta = b"".join(delta_stream(*(appended(text) for text in "Hell")))
    for wire in (as_classic, as_delta):
        events: list[Event] = []
        with pytest.raises(UpstreamFailed, match="went wrong"):
            for event in WebDecoder().feed(wire + failure):
                events.append(event)
        assert events == [Started(None, "C", None), *(Delta(text) for text in "Hell")]


def test_nothing_is_consumed_after_the_end_or_while_something_is_wanted() -> None:
    decoder = WebDecoder()
    wire = envelope(assistant("Hello", **WHOLE)) + DONE
    assert isinstance(list(decoder.feed(wire + b"data: {broken"))[-1], Finished)
    assert list(decoder.feed(envelope(assistant("Hello, and more")))) == []
    cut = assistant("One", **WHOLE, metadata={"finish_details": {"type": "max_tokens"}})
    decoder = WebDecoder()
    more = envelope(assistant("More", id="a2"))
    events = list(decoder.feed(envelope(cut) + DONE + more))
    assert list(decoder.feed(more)) == [] and final_text(events) == "One"
    assert decoder.wants == Continue("C", "a1") and not decoder.complete


def test_a_token_is_never_quoted_and_no_depth_is_too_deep() -> None:
    token = "a-token-that-is-opaque"
    for depth in (5, 254, 990):
        nested = "[" * depth + "]" * depth
        for message in (f"bad {token}", "x" * 1190 + token):
            decoder = WebDecoder()
            decoder.redact = Secrets({"Authorization": f"Bearer {token}"}).redact
            wire = (
                f'data: {{"error": {{"message": "{message}", "more": {nested}}}}}\n\n'
            )
            with pytest.raises(UpstreamFailed) as raised:
                list(decoder.feed(wire.encode()))
            assert token[:8] not in raised.value.message


@pytest.mark.parametrize("depth", [5, 254, 990])
def test_an_id_of_any_depth_is_an_error(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    wire = envelope(assistant("x", id="nested")).replace(b'"nested"', nested)
    with pytest.raises(UpstreamFailed, match="no id can be"):
        decoded(wire)


def test_an_echo_of_the_first_stream_is_no_continuation() -> None:
    echo = assistant("Echo.", id="e", status="finished_successfully", end_turn=None)
    cut = assistant("One", **WHOLE, metadata={"finish_details": {"type": "max_tokens"}})
    decoder = WebDecoder()
    list(decoder.feed(envelope(echo) + envelope(cut) + DONE))
    decoder.again()
    assert list(decoder.feed(DONE)) == [] and decoder.wants == Poll("C")


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] ", b"", b"2025-01-01 00:00:00"])
def test_what_is_no_object_is_no_edit_whatever_its_event_is_called(
    data: bytes,
) -> None:
    wire = recording("delta.sse")
    edits = wire[: wire.index(b'data: {"type":"message_stream_complete"')]
    named = b"event: delta\ndata: " + data + b"\n\n"
    assert decoded(edits + named + DONE)[0] == decoded(wire)[0]


def test_garbage_loses_no_text_silently() -> None:
    healed, _ = decoded(
        envelope(assistant("Hel"))
        + b"data: {oops\n\n"
        + envelope(assistant("Hello", **WHOLE))
        + DONE
    )
    assert final_text(healed) == "Hello"
    with pytest.raises(UpstreamFailed, match="garbage"):
        decoded(envelope(assistant("Hel")) + b"data: {oops\n\n" + DONE)
    with pytest.raises(UpstreamFailed, match="garbage"):
        decoded(recording("delta.sse").replace(b'{"v":" and"}', b'{"v":" an'))


E1 = {"id": "a", "author": {"role": "assistant"}, "recipient": "all", "metadata": {}}


def test_streams_of_early_2023_have_no_status() -> None:
    events = [
        envelope({**E1, "content": {"content_type": "text", "parts": [part]}})
        for part in ("H", "Hello")
    ]
    whole, _ = decoded(*events, DONE)
    assert final_text(whole) == "Hello"
    with pytest.raises(UpstreamCut):
        decoded(*events)


def test_an_answer_that_stopped_for_its_length_is_continued() -> None:
    cut = assistant(
        "One, ", **WHOLE, metadata={"finish_details": {"type": "max_tokens"}}
    )
    decoder = WebDecoder()
    events = list(decoder.feed(envelope(cut) + DONE))
    assert decoder.wants == Continue("C", "a1") and not any(
        isinstance(event, Finished) for event in events
    )
    decoder.again()
    events += decoder.feed(
        envelope(cut) + envelope(assistant("two.", id="a2", **WHOLE)) + DONE
    )
    assert final_text(events) == "One, two." and events[-1] == Finished(
        "stop", "a2", None
    )


def test_continuations_are_bounded() -> None:
    decoder, events = WebDecoder(), list[Event]()
    for number in range(50):
        details = {"finish_details": {"type": "max_tokens"}}
        events += decoder.feed(
            envelope(assistant("x", id=f"a{number}", **WHOLE, metadata=details)) + DONE
        )
        if decoder.wants is None:
            break
        decoder.again()
    assert (
        events[-1] == Finished("length", "a10", None) and final_text(events) == "x" * 11
    )


def test_an_edit_within_a_continuation_keeps_what_came_before() -> None:
    decoder = WebDecoder()
    details = {"finish_details": {"type": "max_tokens"}}
    events = list(
        decoder.feed(envelope(assistant("One, ", **WHOLE, metadata=details)) + DONE)
    )
    decoder.again()
    events += decoder.feed(
        envelope(assistant("tow", id="a2"))
        + envelope(assistant("two.", id="a2", **WHOLE))
        + DONE
    )
    assert final_text(events) == "One, two."


def test_a_handed_off_answer_is_polled_for_in_the_conversation() -> None:
    events, decoder = decoded(recording("handoff.sse"))
    assert decoder.wants == Poll("C4") and events == [Started(None, "C4", None)]
    decoder.again()
    events = list(decoder.feed(envelope(assistant("Here it is.", **WHOLE)) + DONE))
    assert final_text(events) == "Here it is." and isinstance(events[-1], Finished)


def test_an_end_without_any_text_is_polled_for_too_but_a_cut_is_a_cut() -> None:
    _, decoder = decoded(
        envelope(
            {
                **E1,
                "author": {"role": "user"},
                "content": {"content_type": "text", "parts": ["x"]},
            }
        )
        + DONE
    )
    assert decoder.wants == Poll("C")
    with pytest.raises(UpstreamCut):
        decoded(envelope(assistant("Hel")) + DONE)
    for nothing in (b"", DONE, b": comment\n\n"):
        with pytest.raises(UpstreamCut):
            decoded(nothing)


def test_a_partial_completion_stopped_for_its_length() -> None:
    events, _ = decoded(
        envelope(assistant("Hel", status="finished_partial_completion")) + DONE
    )
    assert (
        final_text(events) == "Hel"
        and isinstance(events[-1], Finished)
        and events[-1].reason == "length"
    )


FAILURES = [
    (
        frame(
            {"message": None, "conversation_id": "C5", "error": "Something went wrong"}
        ),
        UpstreamFailed,
        "went wrong",
    ),
    (
        frame({"error": {"message": "Bad thing", "code": "x"}}),
        UpstreamFailed,
        "Bad thing",
    ),
    (
        frame({"detail": "Invalid conversation body"}),
        UpstreamFailed,
        "Invalid conversation body",
    ),
    (
        frame({"type": "stream_quota_check", "detail": "No more today"}),
        RateLimited,
        "No more today",
    ),
    (b"internal server error\n\n", UpstreamFailed, "internal server error"),
    (
        frame({"message": None, "error_code": "conversation_too_large"}),
        UpstreamRefused,
        "too long",
    ),
    (
        frame(
            {"message": None, "error": {"code": "model_cap_exceeded", "clears_in": 60}}
        ),
        RateLimited,
        "limit",
    ),
    (
        frame({"message": None, "error_code": "conversation_not_found"}),
        UpstreamRefused,
        "no such conversation",
    ),
    (frame({"v": "text"}, "delta"), UpstreamFailed, "before it named"),
    (b'event: delta_encoding\ndata: "v9"\n\n', UpstreamFailed, "not known"),
    (
        envelope(assistant("x", status="finished_error")) + DONE,
        UpstreamFailed,
        "gave its answer up",
    ),
    (
        frame({"moderation_response": {"blocked": True}, "conversation_id": "C"}),
        Blocked,
        "moderation",
    ),
]


@pytest.mark.parametrize(
    ("wire", "error", "message"), FAILURES, ids=lambda value: str(value)[:40]
)
def test_failures_within_a_stream(
    wire: bytes, error: type[RelayError], message: str
) -> None:
    for before in (b"", envelope(assistant("Hel"))):
        with pytest.raises(error, match=message):
            decoded(before + wire)


def test_unknown_events_are_skipped() -> None:
    noise = (
        b"event: unheard\ndata: {}\n\n"
        + frame({"type": "url_moderation", "x": 1})
        + b"data: 5\n\nid: 7\n\n"
    )
    noise += (
        frame([1])
        + b"data: 2026-01-01 00:00:00.1\n\n"
        + frame({"type": "safety_review_update", "active": True})
    )
    events, _ = decoded(
        noise
        + envelope(assistant("Hel"))
        + noise
        + envelope(assistant("Hello", **WHOLE))
        + noise
        + DONE
    )
    assert final_text(events) == "Hello"


def test_edits_of_every_kind() -> None:
    documents = Documents()
    documents.apply(
        {
            "p": "",
            "o": "add",
            "v": {
                "message": {"content": {"parts": ["abcdef"]}, "metadata": {"list": [1]}}
            },
        }
    )

    def after(edit: dict[str, Any]) -> Any:
        document = documents.apply(edit).document
        documents.join_text()
        return document["message"]

    assert after({"p": "/message/content/parts/0", "o": "truncate", "v": 3})["content"][
        "parts"
    ] == ["abc"]
    assert after({"o": "append", "v": "Z"})["content"]["parts"] == ["abcZ"]
    assert after({"p": "/message/metadata/list", "o": "append", "v": [2, 3]})[
        "metadata"
    ]["list"] == [1, 2, 3]
    assert after({"v": 4})["metadata"]["list"] == [1, 2, 3, 4]
    assert (
        after({"p": "/message/metadata", "o": "append", "v": {"k": 1}})["metadata"]["k"]
        == 1
    )
    assert "k" not in after({"p": "/message/metadata/k", "o": "remove"})["metadata"]
    edits = [{"p": "/status", "o": "replace", "v": "finished_successfully"}]
    assert (
        after({"p": "/message", "o": "patch", "v": edits})["status"]
        == "finished_successfully"
    )
    assert (
        after({"v": [{"p": "/status", "o": "replace", "v": "again"}]})["status"]
        == "again"
    )
    assert after({"p": "/message/a~1b/c~0d", "o": "append", "v": "x"})["a/b"] == {
        "c~d": "x"
    }
    assert after({"p": "/message/metadata/list/1", "o": "add", "v": 9})["metadata"][
        "list"
    ] == [1, 9, 2, 3, 4]
    assert after({"p": "/message/metadata/list/1", "o": "remove"})["metadata"][
        "list"
    ] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "edit",
    [
        {"p": "/message/content/parts/0", "o": "append", "v": 5},
        {"p": "/message/content/parts/0/deeper", "o": "add", "v": 5},
        {"p": "/message/content/parts/7", "o": "append", "v": "x"},
        {"p": "no-slash", "o": "add", "v": 5},
        {"p": 5, "o": "add", "v": 5},
        {"p": "", "o": "explode", "v": 5},
        {"p": "", "o": "patch", "v": "no list"},
        {"p": "", "o": "patch", "v": [5]},
        {"c": [], "v": "x"},
    ],
)
def test_an_edit_that_fits_nothing_is_an_error(edit: dict[str, Any]) -> None:
    documents = Documents()
    documents.apply(
        {"p": "", "o": "add", "v": {"message": {"content": {"parts": ["abc"]}}}}
    )
    with pytest.raises(UpstreamFailed, match="text may be lost"):
        documents.apply(edit)


CITED = [
    ("See \ue200cite\ue202turn0search1\ue201 for more.", "See  for more."),
    ("Paris【3†source】 is big【1:2†x】.", "Paris is big."),
    ("A 【normal】 bracket", "A 【normal】 bracket"),
    ("stray \ue203mark", "stray mark"),
]


@pytest.mark.parametrize(("text", "expected"), CITED)
@pytest.mark.parametrize("encode", [classic, delta])
def test_citation_markers_are_left_out_wherever_they_are_cut(
    text: str, expected: str, encode: Any
) -> None:
    wire = "".join(encode("C", [assistant(text, **WHOLE)]))
    events, _ = decoded(wire.encode())
    assert final_text(events) == expected and Restarted() not in events
    for end in range(len(text)):
        assert expected.startswith(visible(text[:end], is_complete=False))


def test_an_unclosed_marker_is_not_shown() -> None:
    assert visible("See \ue200cite\ue202tur", is_complete=False) == "See "
    assert visible("See \ue200cite\ue202tur", is_complete=True) == "See "
    assert visible("Room 【4", is_complete=True) == "Room 【4"


@pytest.mark.parametrize("opening", ["\ue200", "【1†"])
def test_a_marker_is_held_back_only_up_to_its_longest_length(opening: str) -> None:
    closing = {"\ue200": "\ue201", "【1†": "】"}[opening]
    longest = opening + "x" * (LONGEST_MARKER - len(opening) - 1)
    assert visible(f"a{longest}", is_complete=False) == "a"
    assert visible(f"a{longest}{closing}b", is_complete=False) == "ab"
    too_long = f"{longest}x"
    expected = f"a{too_long}b".replace("\ue200", "")
    assert visible(f"a{too_long}b", is_complete=False) == expected
    ended = f"a{too_long}{closing}b".replace("\ue200", "").replace("\ue201", "")
    assert visible(f"a{too_long}{closing}b", is_complete=True) == ended


MARKED = st.lists(
    st.sampled_from(["\ue200", "\ue201", "\ue203", "【", "】", "†", "1", "12:3", "x", "y" * 99]),
    max_size=40,
).map("".join)  # fmt: skip


@given(MARKED, st.lists(st.integers(1, 60), min_size=1))
def test_markers_are_left_out_alike_wherever_the_text_is_cut(
    text: str, sizes: list[int]
) -> None:
    citations = CitationFilter()
    pieces: list[str] = []
    position = 0
    while position < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(citations.feed(text[position : position + size]))
        position += size
    filtered = "".join([*pieces, citations.end()])
    assert filtered == visible(text, is_complete=True)
    assert not set(filtered) & set("\ue200\ue201\ue203")


TEXTS = st.text(
    st.characters(
        codec="utf-8", exclude_characters="\ue200\ue201\ue202\ue203\ue204\ue205\ue206【"
    ),
    max_size=60,
)
NOISE = st.sampled_from(
    [
        {"id": "n1", "author": {"role": "user"}},
        {"id": "n2", "author": {"role": "tool", "name": "python"}},
        {"id": "n3", "recipient": "browser"},
        {"id": "n4", "channel": "analysis"},
        {"id": "n5", "metadata": {"is_visually_hidden_from_conversation": True}},
    ]
)


@given(
    st.lists(st.tuples(NOISE, TEXTS), max_size=4),
    TEXTS.filter(bool),
    st.integers(1, 200),
)
def test_any_turn_decodes_to_the_same_answer_either_way(
    noise: list[tuple[dict[str, Any], str]], text: str, size: int
) -> None:
    messages = [assistant(other, **{**WHOLE, **what}) for what, other in noise]
    messages.append(assistant(text, **WHOLE, channel="final"))
    for encode in (classic, delta):
        wire = "".join(encode("C", messages)).encode()
        events, _ = decoded(*(wire[at : at + size] for at in range(0, len(wire), size)))
        assert (
            final_text(events) == text
            and isinstance(events[-1], Finished)
            and events[-1].message_id == "a1"
        )


@given(
    st.lists(
        st.binary(max_size=80)
        | st.sampled_from([DONE, frame({"v": {"message": assistant("x")}}, "delta")]),
        max_size=8,
    )
)
def test_no_bytes_break_the_decoder(pieces: list[bytes]) -> None:
    try:
        decoded(*pieces)
    except RelayError as error:
        assert error.source == "upstream"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["message", "v", "p", "o", "c", "type", "error", "detail", "content", "parts", "author", "metadata",
                         "status", "id", "conversation_id", "role", "finish_details", "moderation_response"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(JSON, max_size=5), st.booleans())
def test_no_json_breaks_the_decoder(values: list[Any], as_delta: bool) -> None:
    wire = b'event: delta_encoding\ndata: "v1"\n\n' if as_delta else b""
    wire += b"".join(frame(value, "delta" if as_delta else "") for value in values)
    try:
        decoded(envelope(assistant("Hel")) + wire)
    except RelayError as error:
        assert error.source == "upstream"
