"""Drives one turn by a loop, in the caller's own thread or beside it: reads the upstream, pushes the turn, minds the
clocks."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event as Flag
from threading import Thread
from typing import NoReturn

from relay.chat import Printer, Turn
from relay.domain import Event, Reply
from relay.errors import (
    Busy,
    CallerLeft,
    InternalError,
    RelayError,
    UpstreamCut,
    UpstreamTimeout,
)

log = logging.getLogger(__name__)

SETTLED_SECONDS = (
    5.0  # how long the end of a stream is waited for whose answer is there
)
_LONGEST_PAUSE = 0.5


@dataclass(frozen=True)
class Clocks:
    """Seconds: to the first byte, of silence within the answer, for the whole ask, and between signs of life."""

    first_byte: float = 120.0
    silence: float = 60.0
    total: float = 600.0
    keep_alive: float = 15.0


class BodyBrokenOff(BrokenPipeError):
    """Ends a response without its end, so that its reader sees it is not whole. WSGI servers then just hang up."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "answer broken off")


class Silent:
    """Prints nothing: for answers that are told whole, or not at all."""

    keep_alive = b""

    def print(self, batch: list[Event]) -> bytes:
        return b""

    def end(self, reply: Reply) -> bytes:
        return b""

    def fail(self, error: RelayError) -> bytes:
        return b""


class Telling:
    """A turn being told to its caller. `pulses` is where its pieces come from; the rest is the same for all ways.

    `turn` is there once the question was sent; `outcome` is for the log.
    """

    def __init__(self, printer: Printer, clocks: Clocks, timeout: float | None) -> None:
        self._printer = printer
        self._clocks = clocks
        self._last_words: bytes | None = None
        self.turn: Turn | None = None
        self.seconds = min(clocks.total, timeout or clocks.total)
        self.outcome = "open"

    def pulses(self) -> Iterator[bytes | None]:
        """What the caller is told, piece by piece; None for a time of silence. Every failure leaves as a RelayError."""
        raise NotImplementedError

    def reply(self) -> Reply:
        """The whole answer."""
        for _ in self.pulses():
            pass
        assert self.turn is not None and self.turn.reply is not None
        return self.turn.reply

    def stream(self) -> Iterator[bytes]:
        """The answer's pieces as the printer has them. Waits for the first event, but not beyond one keep-alive.

        Raises RelayError for what fails until then; later failures are told within the pieces.
        """
        pulses = self.pulses()
        for first in pulses:
            if first is None or first or (self.turn and self.turn.started):
                break
        return self._body(first or self._printer.keep_alive, pulses)

    def _body(self, first: bytes, pulses: Iterator[bytes | None]) -> Iterator[bytes]:
        told = time.monotonic()
        yield first
        try:
            for pulse in pulses:
                if not pulse and time.monotonic() - told >= self._clocks.keep_alive:
                    pulse = self._printer.keep_alive
                if pulse:
                    yield pulse
                    told = time.monotonic()
        except RelayError:
            if self._last_words is None:
                raise BodyBrokenOff() from None
            yield self._last_words


class Drive(Telling):
    """A turn driven by whoever tells it. `open_turn` gives it, or None while its conversation is busy.

    `timeout` (s) can only shorten the total clock; `name` is the request's id, for the log.
    """

    def __init__(
        self,
        open_turn: Callable[[], Turn | None],
        printer: Printer,
        clocks: Clocks,
        timeout: float | None = None,
        name: str = "",
    ) -> None:
        super().__init__(printer, clocks, timeout)
        self._open = open_turn
        self._name = name
        self._deadline = time.monotonic() + self.seconds
        self._gone = Flag()
        self._unwanted = Flag()

    def leave(self) -> None:
        """The caller left; called from another thread. What is being awaited is given up at once."""
        self._gone.set()
        if self.turn is not None:
            self.turn.stream.interrupt()

    def begin_no_more(self) -> None:
        """If the question still waits for its conversation, it is not asked any more."""
        self._unwanted.set()

    def pulses(self) -> Iterator[bytes | None]:
        try:
            turn = yield from self._begin()
            yield from self._read(turn)
            self.outcome = "whole"
        except RelayError as error:
            self._fail(error)
            raise
        except Exception as error:
            log.exception("Request %s failed in a way that nobody foresaw", self._name)
            self._fail(failure := InternalError())
            raise failure from error

    def _begin(self) -> Generator[None, None, Turn]:
        pause = 0.02
        told = time.monotonic()
        while (turn := self._open()) is None:
            if self._gone.wait(min(pause, max(0.0, self._deadline - time.monotonic()))):
                raise CallerLeft()
            if self._unwanted.is_set():
                raise CallerLeft()
            now = time.monotonic()
            if now >= self._deadline:
                raise Busy()
            if now - told >= self._clocks.keep_alive:
                told = now
                yield None
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        self.turn = turn
        return turn

    def _read(self, turn: Turn) -> Iterator[bytes | None]:
        limit, heard = self._clocks.first_byte, time.monotonic()
        while not turn.over:
            try:
                piece = turn.stream.read(
                    min(self._left(heard, limit), self._clocks.keep_alive)
                )
                if piece is None:
                    self._left(heard, limit)
            except (UpstreamCut, UpstreamTimeout):
                if turn.settled and not self._gone.is_set():
                    break  # nothing of the answer is missing
                raise
            if piece is None:
                yield None
            elif piece:
                told = turn.feed(piece)
                turn.begin()
                limit = (
                    min(SETTLED_SECONDS, self._clocks.silence)
                    if turn.settled
                    else self._clocks.silence
                )
                heard = time.monotonic()
                yield told
            else:
                break
        if self._gone.is_set() and not turn.over:
            raise CallerLeft()
        yield turn.end()

    def _left(self, heard: float, limit: float) -> float:
        """Seconds until the next clock runs out; raises for one that has, and for a caller that left."""
        if self._gone.is_set():
            raise CallerLeft()
        now = time.monotonic()
        if now >= self._deadline:
            raise UpstreamTimeout(
                f"The answer was not whole within {self.seconds:g} s; it was given up."
            )
        if now >= heard + limit:
            raise UpstreamTimeout(
                f"The upstream was silent for {limit:g} s; it was given up."
            )
        return min(self._deadline, heard + limit) - now

    def _fail(self, error: RelayError) -> None:
        self.outcome = error.code
        self._last_words = (
            self.turn.fail(error)
            if self.turn is not None
            else self._printer.fail(error)
        )

    def close(self) -> None:
        """Whatever happened: nothing stays open behind the response."""
        if self.turn is not None:
            if not self.turn.ended:
                self._fail(CallerLeft())
            self.turn.close()


class Background:
    """Work that goes on beside the requests; a stop waits for it."""

    def __init__(self) -> None:
        self._running: set[Thread] = set()

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                self._running.discard(thread)

        thread = Thread(target=run, name="background", daemon=True)
        self._running.add(thread)
        thread.start()

    def wait(self, seconds: float) -> None:
        """Until all of it is done, for `seconds` at most."""
        until = time.monotonic() + seconds
        for thread in tuple(self._running):
            thread.join(max(0.0, until - time.monotonic()))


class Detached(Telling):
    """A turn that goes on without its caller: driven in the background, and followed from here.

    `timeout` only ends the following. Pieces that nobody follows any more are let go.
    """

    def __init__(
        self,
        drive: Drive,
        background: Background,
        printer: Printer,
        clocks: Clocks,
        timeout: float | None = None,
    ) -> None:
        super().__init__(printer, clocks, timeout)
        self._drive = drive
        self._background = background
        self._deadline = time.monotonic() + self.seconds
        self._told: Queue[bytes | None] = Queue()
        self._over = Flag()
        self._error: RelayError | None = None
        self._gone = Flag()

    def leave(self) -> None:
        """The caller left; called from another thread."""
        self._gone.set()
        self._drive.begin_no_more()
        self._told.put(None)

    def _run(self) -> None:
        try:
            for pulse in self._drive.pulses():
                if not self._gone.is_set():
                    self._told.put(pulse)
        except RelayError as error:
            self._error = error
        finally:
            try:
                self._drive.close()
            finally:
                self._over.set()
                self._told.put(None)

    def pulses(self) -> Iterator[bytes | None]:
        self._background.start(self._run)
        heard = time.monotonic()
        while not (self._over.is_set() and self._told.empty()):
            if self._gone.is_set():
                self._end(CallerLeft())
            if (left := self._deadline - time.monotonic()) <= 0:
                said = f"The answer was not whole within {self.seconds:g} s."
                self._end(
                    UpstreamTimeout(
                        f"{said} Send the same key again for it: nothing is asked twice."
                    )
                )
            try:
                pulse = self._told.get(timeout=min(left, self._clocks.keep_alive))
            except Empty:
                pulse = None
            self.turn = self._drive.turn
            if pulse is not None:
                heard = time.monotonic()
                yield pulse
            elif time.monotonic() - heard >= self._clocks.keep_alive:
                heard = time.monotonic()
                yield None
        self.turn = self._drive.turn
        if self._error is not None:
            self._end(self._error)
        self.outcome = "whole"

    def _end(self, error: RelayError) -> NoReturn:
        self.outcome = error.code
        self._last_words = self._printer.fail(error)
        raise error

    def close(self) -> None:
        """The following is over; what is followed goes on, if it was begun."""
        self._gone.set()
        self._drive.begin_no_more()
        if self.outcome == "open":
            self.outcome = CallerLeft.code
