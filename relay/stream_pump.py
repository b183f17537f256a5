"""What waits without a thread of its own: one loop takes up whatever has something to do.

A stream is parked here by whoever served it (`Delivery.park`); what arrives for it is written at once. It leaves by
itself before anything that may block: its end, a failure, a caller that reads slowly. Then its server goes on with it
in a thread of its own. The same rules hold in both places, because it is the same delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf
from typing import Protocol

from relay.deadline import Deadline
from relay.delivery import Delivery

NEVER = Deadline(inf)
AT_ONCE = 64  # streams that go on before other requests do: some 10 ms
TICK = 0.1  # seconds: how late a stream's clock may be looked at


class Readiness(Protocol):
    """Waits in the pump's thread until descriptors can be read. All but `wake` are called there, or by what parks."""

    def add(self, descriptor: int) -> None: ...

    def remove(self, descriptor: int) -> None:
        """It may be closed by now."""

    def wait(self, deadline: Deadline, most: int) -> list[int]:
        """Those that can be read, or have ended, `most` at a time; none at the deadline. Others run meanwhile."""

    def wake(self) -> None:
        """End a wait that is going on."""


class Parked(Protocol):
    """What waits in the pump until its `descriptor` can be read, or for `wakes_at`. `tick`: where it is found there."""

    descriptor: int
    tick: int

    @property
    def wakes_at(self) -> Deadline: ...

    def advance(self) -> bool:
        """Do what is to be done, without waiting; whether more is awaited here."""

    def leave(self) -> None:
        """Go on elsewhere: it is parked no more. Does not block."""


class ParkedStream:
    """A stream in the pump. `pieces`: the delivery's output; `rest`, `failure`: what it goes on with elsewhere."""

    __slots__ = ("delivery", "descriptor", "failure", "pieces", "rest", "tick")

    def __init__(self, delivery: Delivery, pieces: Iterator[bytes]) -> None:
        self.delivery = delivery
        self.pieces = pieces
        self.descriptor = self.tick = -1
        self.rest = b""
        self.failure: Exception | None = None

    @property
    def wakes_at(self) -> Deadline:
        return self.delivery.wakes_at

    def advance(self) -> bool:
        """Give the caller what has arrived."""
        delivery = self.delivery
        try:
            piece = next(self.pieces)
            if piece:
                self.rest = self.write(piece)
        except Exception as error:  # this stream's alone: raised where it goes on
            self.failure = error
        if self.rest or self.failure is not None or delivery.awaited is None:
            delivery.unpark()
        return delivery.is_parked

    def take_failure(self) -> Exception:
        """What ended it, to be raised: held here as well, both would wait for the garbage collector."""
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure

    def write(self, piece: bytes) -> bytes:
        """Send a piece without waiting; what did not go. Raises OSError."""
        raise NotImplementedError

    def leave(self) -> None:
        """See `Parked`: with what is left of a piece first, or with what ended the stream."""
        raise NotImplementedError


class StreamPump:
    """The loop over all that is parked."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._parked: dict[int, Parked] = {}
        self._wheel: dict[int, dict[Parked, None]] = {}  # by their next clock
        self._wakes_at = NEVER

    def __len__(self) -> int:
        return len(self._parked)

    def park_stream(self, stream: ParkedStream) -> None:
        """Take a stream over, something of which is awaited."""
        descriptor = stream.delivery.awaited
        assert descriptor is not None
        stream.descriptor = descriptor
        stream.delivery.park()
        self.park(stream)

    def park(self, parked: Parked) -> None:
        """Take over what waits for its descriptor."""
        self._parked[parked.descriptor] = parked
        self._set_clock(parked)
        self._readiness.add(parked.descriptor)  # from now on it may leave
        self._readiness.wake()

    def run(self) -> None:
        """Does not end. Runs in a thread of its own."""
        while True:
            for descriptor in self._readiness.wait(self._wakes_at, AT_ONCE):
                parked = self._parked.get(descriptor)  # it may have left by now
                if parked is not None and not parked.advance():
                    self._release(parked)
            if self._wakes_at.passed:
                self._look_at_clocks()

    def _release(self, parked: Parked) -> None:
        self._forget_clock(parked)
        # an interrupt may have closed it, and then another one may have its descriptor
        if self._parked.get(parked.descriptor) is parked:
            del self._parked[parked.descriptor]
            self._readiness.remove(parked.descriptor)
        parked.leave()

    def _set_clock(self, parked: Parked) -> None:
        parked.tick = int(parked.wakes_at / TICK) + 1
        self._wheel.setdefault(parked.tick, {})[parked] = None
        self._wakes_at = min(self._wakes_at, Deadline(parked.tick * TICK))

    def _forget_clock(self, parked: Parked) -> None:
        at_tick = self._wheel.get(parked.tick)
        if at_tick is not None:
            at_tick.pop(parked, None)
            if not at_tick:
                del self._wheel[parked.tick]

    def _look_at_clocks(self) -> None:
        """Take up what has come to its time; that of most streams moved on with what arrived."""
        now = int(time.monotonic() / TICK)
        for tick in [tick for tick in self._wheel if tick <= now]:
            for parked in self._wheel.pop(tick):
                if parked.wakes_at.passed and not parked.advance():
                    self._release(parked)
                else:
                    self._set_clock(parked)
        self._wakes_at = Deadline(min(self._wheel, default=inf) * TICK)
