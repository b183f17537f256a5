"""Event streams that pass as they are, read along event by event. Pure.

Bytes are passed on as they came. It is watched whether the stream came to its end, because a client takes one that
merely ends for a whole one.
"""

from __future__ import annotations

import orjson

BATCH = 2048  # bytes that are looked at at once
LONGEST_HELD = 8 * 1024 * 1024  # bytes of one event that wait for its end


class Batch:
    """Pieces that pass, looked at many at once: a look at each would cost as much as passing it on."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> bool:
        """Whether there are enough for a look now."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size >= BATCH

    def take(self) -> bytes:
        """What was added since the last time."""
        text = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return text


class EventWatch:
    """Whole events pass on, so that an error can follow where the next one was cut. A dialect says what its end is."""

    def __init__(self) -> None:
        self._held = b""
        self._ended = False
        self._batch = Batch()

    def ends(self, passed: bytes) -> bool:
        """Whether one of these whole events says that the answer is whole, or that it failed."""
        raise NotImplementedError

    @property
    def is_whole(self) -> bool:
        self._look()
        return self._ended

    @property
    def is_between_events(self) -> bool:
        """No event has begun, so that a keep-alive can stand here."""
        return not self._held

    def feed(self, piece: bytes) -> bytes:
        """The whole events that have come."""
        if not self._held and piece.endswith(b"\n\n"):
            return self._passed(piece)
        held = self._held + piece
        last = _last_boundary(held, len(self._held))
        if not last and len(held) > LONGEST_HELD:
            last = len(held)
        self._held = held[last:]
        return self._passed(held[:last])

    def end(self) -> bytes:
        """The bytes are over: what was held, which no empty line ended. It counts where its JSON is whole."""
        held = self._held
        self._held = b""
        return self._passed(held) if _is_whole_event(held) else held

    def _passed(self, events: bytes) -> bytes:
        if self._batch.add(events):
            self._look()
        return events

    def _look(self) -> None:
        events = self._batch.take()
        self._ended = self._ended or self.ends(events)


def _is_whole_event(event: bytes) -> bool:
    data = b"\n".join(
        line[5:] for line in event.splitlines() if line.startswith(b"data:")
    )
    if data.strip() == b"[DONE]":
        return True
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _last_boundary(held: bytes, known: int) -> int:
    """The end of the last whole event; 0 where there is none. In the first `known` bytes there is none."""
    if held.endswith(b"\n\n"):
        return len(held)
    start = max(0, known - 3)
    last = 0
    for mark in (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"):
        found = held.rfind(mark, start)
        if found >= 0:
            last = max(last, found + len(mark))
    return last
