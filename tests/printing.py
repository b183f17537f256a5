"""Answers as a printer makes them, for tests of what is printed."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from relay.dialects.chatgpt.answer import Answer
from relay.domain import Delta, Event, Reply, Restarted, Started
from relay.turn import Printer

CONVERSATION = "6d0c0000-0000-4000-8000-000000000001"
ANSWER = "a1b2c3d4-0000-4000-8000-00000000000a"
QUESTION = "0b0d3f1e-1111-4222-8333-444455556666"
STARTED = Started("tiny-1", CONVERSATION, None, ANSWER, QUESTION)
#: any text, with what has misled readers of such streams: quotes, backslashes, line ends, DEL, astral characters
PIECES = st.lists(
    st.text()
    | st.text("\\\"'\n\r\t\x00\x1f\x7f\x85\u2028é你🙂 data:[DONE]{}", max_size=12)
)
#: reads of an upstream: each a batch of events, with restarts in it now and then
BATCHES = st.lists(
    st.lists(st.builds(Delta, st.text()) | st.just(Restarted()), min_size=1, max_size=3)
)


def begun() -> Answer:
    return Answer.new("next", "gpt-4", 1683782781.5)


def reply(text: str, reason: str = "stop") -> Reply:
    return Reply(text, CONVERSATION, ANSWER, "tiny-1", reason)  # type: ignore[arg-type]


def deltas(pieces: Iterable[str]) -> list[list[Event]]:
    """One read for each piece."""
    return [[Delta(piece)] for piece in pieces]


def text_of(batches: Iterable[list[Event]]) -> str:
    """What the answer is in the end."""
    text = ""
    for event in (event for batch in batches for event in batch):
        match event:
            case Delta(piece):
                text += piece
            case Restarted():
                text = ""
    return text


def printed(printer: Printer, batches: Iterable[list[Event]]) -> list[bytes]:
    """What a whole answer is on the wire, read by read."""
    known = [*batches]
    pieces = [printer.print([STARTED]), *map(printer.print, known)]
    return [*pieces, printer.end(reply(text_of(known)))]
