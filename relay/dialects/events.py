"""Event streams that pass as they are, read along event by event. Pure.

Bytes are passed on as they came. It is watched whether the stream came to its end, because a client takes one that
merely ends for a whole one.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

BATCH = 2048  # bytes that are looked at at once
LONGEST_HELD = 8 * 1024 * 1024  # bytes of one event that wait for its end


class EventWatch:
    """Whole events pass on, so that an error can follow where the next one was cut. A dialect says what its end is.

    `batch`: how many bytes are looked at at once: to look at each event would cost as much as to pass it on.
    `has_failed`: an event said that the answer failed.
    """

    has_failed = False

    def __init__(self, batch: int = BATCH) -> None:
        self._held = bytearray()
        self._ended = False
        self._batch = batch
        self._unseen: list[bytes] = []
        self._unseen_size = 0
        self._listener: Callable[[bytes], None] | None = None

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """Have another one look along at the events that pass."""
        self._listener = listener

    def ends(self, passed: bytes) -> bool:
        """Whether one of these whole events says that the answer is whole, or that it failed."""
        raise NotImplementedError

    @property
    def is_whole(self) -> bool:
        self.look()
        return self._ended

    @property
    def is_between_events(self) -> bool:
        """Whether a keep-alive can stand here. One that waits in the middle of an event has held back its piece."""
        return not self._held

    def feed(self, piece: bytes) -> bytes:
        """The whole events that have come."""
        if self._held or not piece.endswith(b"\n\n"):
            piece = self._whole_events(piece)
        self._unseen.append(piece)
        self._unseen_size += len(piece)
        if self._unseen_size >= self._batch:
            self.look()
        return piece

    def _whole_events(self, piece: bytes) -> bytes:
        """The whole events of what is held and this piece; the rest is held."""
        held = self._held
        known = len(held)
        held += piece  # in its place: an event may come in many pieces
        last = _last_boundary(held, known)
        if not last and len(held) > LONGEST_HELD:
            last = len(held)
        whole = bytes(held[:last])
        del held[:last]
        return whole

    def end(self) -> bytes:
        """The bytes are over: what was held, which no empty line ended. It counts where its JSON is whole."""
        held = bytes(self._held)
        self._held.clear()
        if _is_whole_event(held):
            self._unseen.append(held)
        return held

    def look(self) -> None:
        """Look at what has passed since the last time."""
        events = b"".join(self._unseen)
        self._unseen.clear()
        self._unseen_size = 0
        if not events:
            return
        self._ended = self._ended or self.ends(events)
        if self._listener is not None:
            self._listener(events)


def data_of(event: bytes) -> bytes:
    """The data of an event, of all its lines."""
    lines = event.splitlines()
    return b"\n".join([line[5:] for line in lines if line.startswith(b"data:")])


def _is_whole_event(event: bytes) -> bool:
    data = data_of(event)
    if data.strip() == b"[DONE]":
        return True
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _last_boundary(held: bytearray, known: int) -> int:
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
