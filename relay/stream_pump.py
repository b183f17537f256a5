"""Streams without a thread each: one loop takes up whichever has something to do, and writes it at once.

A stream is parked here by whoever served it (`Delivery.park`), and leaves by itself before anything that may block: its
end, a failure, a caller that reads slowly. Then its server goes on with it in a thread of its own. The same rules hold
in both places, because it is the same delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf
from typing import Protocol

from relay.deadline import Deadline
from relay.delivery import Delivery

NEVER = Deadline(inf)
TICK = 0.1  # seconds: how late a stream's clock may be looked at


class Readiness(Protocol):
    """Waits in the pump's thread until descriptors can be read. All but `wake` are called there, or by what parks."""

    def add(self, descriptor: int) -> None: ...

    def remove(self, descriptor: int) -> None:
        """It may be closed by now."""

    def wait(self, deadline: Deadline) -> list[int]:
        """Those that can be read, or have ended; none at the deadline."""

    def wake(self) -> None:
        """End a wait that is going on."""


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

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._streams: dict[int, ParkedStream] = {}
        self._wheel: dict[int, dict[ParkedStream, None]] = {}  # by their next clock
        self._wakes_at = NEVER

    def __len__(self) -> int:
        return len(self._streams)

    def park(self, stream: ParkedStream) -> None:
        """Take a stream over, something of which is awaited."""
        descriptor = stream.delivery.awaited
        assert descriptor is not None
        stream.descriptor = descriptor
        stream.delivery.park()
        self._streams[descriptor] = stream
        self._readiness.add(descriptor)
        self._set_clock(stream)
        self._readiness.wake()

    def run(self) -> None:
        """Does not end. Runs in a thread of its own."""
        while True:
            for descriptor in self._readiness.wait(self._wakes_at):
                stream = self._streams.get(descriptor)  # it may have left by now
                if stream is not None:
                    self._advance(stream)
            if self._wakes_at.passed:
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
        self._readiness.remove(stream.descriptor)
        stream.leave(rest, failure)

    def _set_clock(self, stream: ParkedStream) -> None:
        stream.tick = int(stream.delivery.wakes_at / TICK) + 1
        self._wheel.setdefault(stream.tick, {})[stream] = None
        self._wakes_at = min(self._wakes_at, Deadline(stream.tick * TICK))

    def _forget_clock(self, stream: ParkedStream) -> None:
        at_tick = self._wheel.get(stream.tick)
        if at_tick is not None:
            at_tick.pop(stream, None)
            if not at_tick:
                del self._wheel[stream.tick]

    def _look_at_clocks(self) -> None:
        """Take up the streams whose time has come; of most it moved on with what arrived."""
        now = int(time.monotonic() / TICK)
        for tick in [tick for tick in self._wheel if tick <= now]:
            for stream in self._wheel.pop(tick):
                if stream.delivery.wakes_at.passed:
                    self._advance(stream)
                if stream.delivery.is_parked:
                    self._set_clock(stream)
        self._wakes_at = Deadline(min(self._wheel, default=inf) * TICK)
