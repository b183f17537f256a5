"""Streams without a thread each: one loop takes up whichever has something to do, and writes it at once.

A stream is parked here by whoever served it (`Delivery.park`), and leaves by itself before anything that may block: its
end, a failure, a caller that reads slowly. Then its server goes on with it in a thread of its own. The same rules hold
in both places, because it is the same delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from typing import Protocol

from relay.deadline import Deadline
from relay.delivery import Delivery

TICK = 0.1  # seconds: how late a stream's clock may be looked at
MOST_AT_ONCE = 64  # streams that are taken up before others run
READABLE = 1  # epoll's EPOLLIN; that a connection ended is always told


class Poll(Protocol):
    """Python's `select.epoll`."""

    def register(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, seconds: float, most: int) -> list[tuple[int, int]]: ...


class Waiter(Protocol):
    """Waits for the poll in the pump's thread."""

    def wait(self, seconds: float | None) -> None:
        """Until something in the poll is ready, for that many seconds at most."""

    def wake(self) -> None:
        """End a wait that is going on. Called by other threads."""


class ParkedStream(Protocol):
    """A stream in the pump. `pieces`: the delivery's output. `descriptor`, `tick`: where it is found there."""

    delivery: Delivery
    pieces: Iterator[bytes]
    descriptor: int
    tick: int

    def write(self, piece: bytes) -> bytes:
        """Send a piece without waiting; what did not go. Raises OSError."""

    def leave(self, rest: bytes, failure: Exception | None) -> None:
        """Go on elsewhere: with what is left of a piece first, or with what ended the stream. Does not block."""


class StreamPump:
    """The loop over all parked streams."""

    def __init__(self, poll: Poll, waiter: Waiter) -> None:
        self._poll = poll
        self._waiter = waiter
        self._streams: dict[int, ParkedStream] = {}
        self._wheel: dict[int, dict[ParkedStream, None]] = {}  # by their next clock
        self._wakes_at = inf  # the tick

    def __len__(self) -> int:
        return len(self._streams)

    def park(self, stream: ParkedStream) -> None:
        """Take a stream over, something of which is awaited."""
        descriptor = stream.delivery.awaited
        assert descriptor is not None
        stream.descriptor = descriptor
        stream.delivery.park()
        self._streams[descriptor] = stream
        self._poll.register(descriptor, READABLE)
        self._set_clock(stream)
        if stream.tick < self._wakes_at:
            self._waiter.wake()

    def run(self) -> None:
        """Does not end. Runs in a thread of its own."""
        while True:
            self._waiter.wait(self._seconds_to_next_clock())
            for descriptor, _ in self._poll.poll(0, MOST_AT_ONCE):
                stream = self._streams.get(descriptor)
                if stream is not None:
                    self._advance(stream)
            self._look_at_clocks()

    def _advance(self, stream: ParkedStream) -> None:
        """Give the caller what has arrived."""
        delivery = stream.delivery
        rest = b""
        failure = None
        try:
            piece = next(stream.pieces)
            if piece:
                rest = stream.write(piece)
        except Exception as error:  # this stream's alone: raised where it goes on
            failure = error
        if rest or failure is not None or delivery.awaited is None:
            delivery.unpark()
        if not delivery.is_parked:
            self._release(stream, rest, failure)

    def _release(
        self, stream: ParkedStream, rest: bytes, failure: Exception | None
    ) -> None:
        del self._streams[stream.descriptor]
        self._forget_clock(stream)
        with suppress(OSError, ValueError):  # it may be closed by now
            self._poll.unregister(stream.descriptor)
        stream.leave(rest, failure)

    def _set_clock(self, stream: ParkedStream) -> None:
        stream.tick = int(stream.delivery.wakes_at.at / TICK) + 1
        self._wheel.setdefault(stream.tick, {})[stream] = None

    def _forget_clock(self, stream: ParkedStream) -> None:
        at_tick = self._wheel.get(stream.tick)
        if at_tick is not None:
            at_tick.pop(stream, None)
            if not at_tick:
                del self._wheel[stream.tick]

    def _seconds_to_next_clock(self) -> float | None:
        self._wakes_at = min(self._wheel, default=inf)
        return None if self._wakes_at == inf else Deadline(self._wakes_at * TICK).left

    def _look_at_clocks(self) -> None:
        """Take up the streams whose time has come; of most it moved on with what arrived."""
        now = int(time.monotonic() / TICK)
        for tick in [tick for tick in self._wheel if tick <= now]:
            for stream in self._wheel.pop(tick):
                if stream.delivery.wakes_at.passed:
                    self._advance(stream)
                if stream.delivery.is_parked:
                    self._set_clock(stream)
