"""Event streams that pass as they are, read along event by event. Pure.

Bytes are passed on as they came. It is watched whether the stream came to its end, because a client takes one that
merely ends for a whole one.
"""

from __future__ import annotations

import orjson

BATCH = 2048  # bytes of events that are looked at at once
LONGEST_HELD = 8 * 1024 * 1024  # bytes of one event that wait for its end


class EventWatch:
    """Whole events pass on, so that an error can follow where the next one was cut. A dialect says what its end is."""

    def __init__(self) -> None:
        self._held = b""
        self._ended = False
        self._unseen: list[bytes] = []
        self._unseen_size = 0

    def ends(self, passed: bytes) -> bool:
        """Whether one of these whole events says that the answer is whole, or that it failed."""
        raise NotImplementedError

    @property
    def is_whole(self) -> bool:
        self._look_at_unseen()
        return self._ended

    @property
    def is_between_events(self) -> bool:
        """No event has begun, so that a keep-alive can stand here."""
        return not self._held

    def feed(self, piece: bytes) -> bytes:
        """The whole events that have come."""
        if not self._held and piece.endswith(b"\n\n"):
            return self._look(piece)
        held = self._held + piece
        last = _last_boundary(held, len(self._held))
        if not last and len(held) > LONGEST_HELD:
            last = len(held)
        self._held = held[last:]
        return self._look(held[:last])

    def end(self) -> bytes:
        """The bytes are over: what was held, which no empty line ended. It counts where its JSON is whole."""
        held = self._held
        self._held = b""
        return self._look(held) if _is_whole_event(held) else held

    def _look(self, events: bytes) -> bytes:
        """Many are looked at at once: to look at each would cost as much as passing it on."""
        self._unseen.append(events)
        self._unseen_size += len(events)
        if self._unseen_size >= BATCH:
            self._look_at_unseen()
        return events

    def _look_at_unseen(self) -> None:
        if not self._ended and self._unseen:
            self._ended = self.ends(b"".join(self._unseen))
        self._unseen.clear()
        self._unseen_size = 0


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
