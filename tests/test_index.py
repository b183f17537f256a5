"""What is learnt of a turn that passes: the same, however few of its events are decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain import Conversation, Findings
from relay.index import TurnObserver
from relay.upstreams.chatgpt_web.classic import WebDecoder

CONVERSATION = "conversation-1"


class Rows:
    """A store that keeps what it is given of the index."""

    def __init__(self) -> None:
        self.written: list[Conversation] = []

    def index(self, row: Conversation) -> None:
        self.written.append(row)


class CountingDecoder(WebDecoder):
    """Counts the bytes that it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def feed(self, piece: bytes) -> Any:
        self.size += len(piece)
        return super().feed(piece)


def event(text: str, name: str = "m1", **more: Any) -> bytes:
    """A classic event."""
    message = {
        "id": name,
        "author": {"role": "assistant"},
        "content": {"content_type": "text", "parts": [text]},
        "status": more.pop("status", "in_progress"),
        "end_turn": more.pop("end_turn", None),
        "metadata": {"model_slug": "gpt-4o"},
    }
    payload = {"message": message, "conversation_id": CONVERSATION, **more}
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def last_event(text: str, name: str = "m1") -> bytes:
    return event(text, name, status="finished_successfully", end_turn=True)


def row() -> Conversation:
    return Conversation("", "owner", "chatgpt-web", None, "Hello", None, 0.0, 0.0)


def read(pieces: list[bytes]) -> tuple[Findings, list[Conversation], int]:
    """What an observer finds, the rows that it writes, and the bytes that it decodes."""
    rows = Rows()
    decoder = CountingDecoder()
    observer = TurnObserver(rows, row(), decoder)  # type: ignore[arg-type]
    for piece in pieces:
        observer.feed(piece)
    observer.end()
    return observer.findings(lambda: 7), rows.written, decoder.size


def growing(words: list[str], name: str = "m1") -> list[bytes]:
    texts = ["".join(words[: at + 1]) for at in range(len(words))]
    return [*(event(text, name) for text in texts), last_event(texts[-1], name)]


WORDS = [f"word{number} " for number in range(300)]


def test_a_text_that_grows_is_decoded_once() -> None:
    pieces = [*growing(WORDS), b"data: [DONE]\n\n"]
    findings, rows, size = read(pieces)
    assert (findings.model, findings.has_failed) == ("gpt-4o", False)
    assert findings.tokens.completion == -(-len("".join(WORDS)) // 4)
    assert [(each.id, each.newest) for each in rows] == [
        (CONVERSATION, None),
        (CONVERSATION, "m1"),
    ]
    assert size < 4 * len(pieces[-2]) < sum(map(len, pieces)) / 30


def test_the_conversation_is_indexed_with_the_first_event() -> None:
    rows = Rows()
    observer = TurnObserver(rows, row(), WebDecoder())  # type: ignore[arg-type]
    assert observer.may_block
    observer.feed(event("He"))
    assert [each.id for each in rows.written] == [CONVERSATION]
    assert not observer.may_block


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(growing(["a"]) + growing(["b", "c"], "m2"), id="another message"),
        pytest.param(
            [event("one two"), event("one"), last_event("one six")], id="edited"
        ),
        pytest.param(growing(['a "]', 'b"]', ' \\"]', "c"]), id="ends of lists"),
        pytest.param([b"".join(growing(WORDS)[:3]), *growing(WORDS)[3:]], id="several"),
        pytest.param([event("cut"), event("cut off")], id="cut"),
        pytest.param([event("a"), event("ab"), event("ab", error="no")], id="failed"),
        pytest.param(
            [event("a"), event("a", error="x"), event("ab", error="x")],
            id="failed early",
        ),
        pytest.param(
            [event("a"), b"data: {garbage\n\n", *growing(["a", "b"])], id="garbage"
        ),
    ],
)
def test_what_is_found_is_what_decoding_all_finds(pieces: list[bytes]) -> None:
    assert found(pieces) == found_by_decoding_all(pieces)


@given(st.lists(st.text('ab"]\\é\n', min_size=1, max_size=5), min_size=1, max_size=8))
def test_any_text_is_found_whole(words: list[str]) -> None:
    pieces = growing(words)
    assert found(pieces) == found_by_decoding_all(pieces)


def found(pieces: list[bytes]) -> tuple[Any, ...]:
    findings, rows, _ = read(pieces)
    return findings.model, findings.tokens.completion, findings.has_failed, rows


def found_by_decoding_all(pieces: list[bytes]) -> tuple[Any, ...]:
    """The same of an observer that is given each piece as if nothing were like it."""
    apart = [part for piece in pieces for part in (piece, b": a comment\n\n")]
    return found(apart)
