"""How a turn's output reaches its caller: read directly in the request's thread, or in the background.

A delivery reads the upstream, pushes the turn, enforces the time limits and notices that the caller
left. All failures leave it as RelayError; here stands the one handler that catches everything.

What stops which clock, while the upstream is read:

- the total clock: nothing. It ends answers without end, be they words or comments;
- the silence clock, and the first-byte clock before it: bytes of the answer's body, also those that
  decode to no event. Upstreams send comments and pings while they think;
- bytes that are no body are silence: headers, 1xx responses, trailers, chunk extensions, and
  everything before an answer that is read whole has come to its end;
- once the answer is complete, nothing: its trailer has TRAILER_SECONDS, whatever comes;
- the caller's own time counts for the total clock alone: a slow reader makes no upstream silent.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from threading import Condition, Thread
from threading import Event as Flag
from typing import NoReturn

from relay.chat import Waiting
from relay.deadline import Deadline
from relay.domain import Event, Reply
from relay.errors import (
    Busy,
    CallerLeft,
    InternalError,
    RelayError,
    StillAnswering,
    UpstreamCut,
    UpstreamTimeout,
)
from relay.turn import Printer, Turn
from relay.values import frozen

log = logging.getLogger(__name__)

#: how long the end of a stream is waited for whose answer is complete
TRAILER_SECONDS = 5.0
GRACE_SECONDS = (
    0.5  # for the end of an ask that has run out of time, to reach its follower
)
SHORTEST_PAUSE = 0.02  # between two looks at a busy conversation
LONGEST_PAUSE = 0.5
LARGEST_BACKLOG = 1024 * 1024  # bytes of output that wait for one follower
COST_OF_CHUNK = 64  # bytes that each chunk of it counts as, at least


@frozen
class Clocks:
    """Seconds: to the first byte, of silence within the answer, for the whole ask, and between keep-alives."""

    first_byte: float = 120.0
    silence: float = 60.0
    total: float = 600.0
    keep_alive: float = 15.0


class BodyAborted(BrokenPipeError):
    """Ends a response body without its end, so that its reader sees it is not whole. WSGI servers then close."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "answer aborted")


class Silent:
    """Prints nothing: for answers that are sent whole, or not at all."""

    keep_alive = b""
    needs_text = True

    def print(self, batch: list[Event]) -> bytes:
        return b""

    def end(self, reply: Reply) -> bytes:
        return b""

    def fail(self, error: RelayError) -> bytes:
        return b""


class SilenceClock:
    """The clock for the first byte, then for silence within the answer, then for the trailer after it.

    `ends`: when it runs out, on the monotonic clock.
    """

    __slots__ = ("_is_trailer", "_silence", "ends", "limit")

    def __init__(self, clocks: Clocks, now: float) -> None:
        self._silence = clocks.silence
        self._is_trailer = False
        self.limit = clocks.first_byte
        self.ends = now + self.limit

    def restart(self, is_complete: bool, now: float) -> None:
        """Something of the body came. While the answer is complete, that moves nothing."""
        if is_complete and self._is_trailer:
            return
        self._is_trailer = is_complete
        self.limit = self._silence
        if is_complete:
            self.limit = min(TRAILER_SECONDS, self._silence)
        self.ends = now + self.limit


class Delivery:
    """A turn on its way to its caller. `chunks` says where the output comes from; the rest is common.

    Used by one thread: `reply` or `stream` once, then `close`; only `leave` may be called from
    others. `turn` is there once it was opened. `outcome`: "open", "whole", or an error's code;
    `failure` is that error, `reason` what the log may say of it.

    A stream whose head was sent can be parked, while there is something `awaited`: then it never
    waits, and gives b"" where nothing has arrived. It is taken up once that descriptor is readable,
    or at `wakes_at`. Before whatever may block it gives b"" and is parked no more.
    """

    is_parked = False

    def __init__(
        self, printer: Printer, clocks: Clocks, timeout: float | None = None
    ) -> None:
        self._printer = printer
        self._clocks = clocks
        self._last_chunk: bytes | None = None
        self.seconds = min(clocks.total, timeout or clocks.total)
        now = time.monotonic()
        self._deadline = Deadline(now + self.seconds)
        self._caller_left = Flag()
        self._silence = SilenceClock(clocks, now)
        self._spoke = now  # when the caller got something last
        self._was_parked = False
        self.turn: Turn | None = None
        self.outcome = "open"
        self.failure: RelayError | None = None

    @property
    def reason(self) -> str:
        return self.failure.reason if self.failure else ""

    @property
    def seconds_left(self) -> float:
        """Seconds until the total clock has run out."""
        return self._deadline.left

    @property
    def awaited(self) -> int | None:
        """The descriptor that is readable as soon as there is more output; None where it cannot be parked."""
        return None

    @property
    def wakes_at(self) -> Deadline:
        """When something is to be done, whatever arrives."""
        keep_alive = self._spoke + self._clocks.keep_alive
        return Deadline(min(self._deadline, self._silence.ends, keep_alive))

    @property
    def _needs_keep_alive(self) -> bool:
        return time.monotonic() >= self._spoke + self._clocks.keep_alive

    def park(self) -> None:
        self.is_parked = self._was_parked = True

    def unpark(self) -> None:
        self.is_parked = False

    def _wait_unparked(self) -> Iterator[bytes]:
        """Let what comes next be done where it may block."""
        if self.is_parked:
            self.unpark()
            yield b""

    def chunks(self) -> Iterator[bytes | None]:
        """The output, read by read; None for a time of silence. Every failure is a RelayError."""
        raise NotImplementedError

    def leave(self) -> None:
        """The caller left; called from another thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Let everything go. The last call, whatever happened before."""
        if self.failure is not None:
            self.failure.drop_frames()  # they have this object

    def reply(self) -> Reply:
        """The whole answer."""
        for _ in self.chunks():
            pass
        assert self.turn is not None and self.turn.reply is not None
        return self.turn.reply

    def stream(self) -> Generator[bytes, None, None]:
        """The output as it comes. Waits for the first event, but not beyond one keep-alive.

        Raises RelayError for what fails until then; later failures are printed in the output.
        """
        chunks = self.chunks()
        first: bytes | None = None
        keep_alive = Deadline.after(self._clocks.keep_alive)
        for first in chunks:
            has_started = self.turn is not None and self.turn.started
            if first is None or first or has_started or keep_alive.passed:
                break
        return self._body(first or self._printer.keep_alive, chunks)

    def _body(
        self, first: bytes, chunks: Iterator[bytes | None]
    ) -> Generator[bytes, None, None]:
        self._spoke = time.monotonic()
        yield first
        del first  # else an open stream would hold it to its end
        try:
            for chunk in chunks:
                if not chunk and self._needs_keep_alive:
                    chunk = self._printer.keep_alive
                if chunk:
                    self._spoke = time.monotonic()
                    yield chunk
                elif self._was_parked:
                    yield b""
        except RelayError:
            if self._last_chunk is None:
                raise BodyAborted() from None
            yield self._last_chunk

    def _patience(self) -> float:
        """Seconds that one read may wait: to the next clock, and no longer than between two keep-alives."""
        left = min(self._deadline, self._silence.ends) - time.monotonic()
        return max(0.0, min(left, self._clocks.keep_alive))

    def _check_clocks(self) -> None:
        """Raise CallerLeft, or UpstreamTimeout where a clock ran out."""
        if self._caller_left.is_set():
            raise CallerLeft()
        if time.monotonic() < min(self._deadline, self._silence.ends):
            return
        if self._deadline.passed:
            raise UpstreamTimeout(
                f"The answer was not whole within {self.seconds:g} s; it was given up."
            )
        raise UpstreamTimeout(
            f"The upstream was silent for {self._silence.limit:g} s; it was given up."
        )


class DirectDelivery(Delivery):
    """A turn read in the thread that sends it.

    `open_turn` gives it, or what it waits for. `timeout` (s) can only shorten the total clock.
    `request_id` is for the log.
    """

    def __init__(
        self,
        open_turn: Callable[[], Turn | Waiting],
        printer: Printer,
        clocks: Clocks,
        timeout: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(printer, clocks, timeout)
        self._open_turn = open_turn
        self._request_id = request_id
        self._waiting_is_over = False
        self._waits_for: Waiting | None = None

    def leave(self) -> None:
        self._caller_left.set()
        if self.turn is not None:
            self.turn.stream.interrupt()

    def too_late(self, seconds: float) -> RelayError:
        """The error for a caller that waits for `seconds` and no longer, while this goes on."""
        if self.turn is None and self._waits_for is Waiting.CONVERSATION:
            return Busy()
        return StillAnswering(seconds)

    def stop_waiting(self) -> None:
        """If the question still waits for its conversation, it is not asked any more."""
        self._waiting_is_over = True

    @property
    def awaited(self) -> int | None:
        turn = self.turn
        if turn is None or turn.over or turn.ended or not turn.started:
            return None
        return turn.stream.awaited

    def chunks(self) -> Iterator[bytes | None]:
        try:
            open_turn = self._open_turn
            del self._open_turn  # it has the request, which has this object
            turn = open_turn()
            if isinstance(turn, Waiting):
                turn = yield from self._wait(turn, open_turn)
            del open_turn
            self.turn = turn
            yield from self._read(turn)
        except RelayError as error:
            yield from self._wait_unparked()
            self._fail(error)
            raise
        except Exception as error:
            log.exception("Request %s failed unexpectedly", self._request_id)
            yield from self._wait_unparked()
            failure = InternalError()
            self._fail(failure)
            raise failure from error

    def _wait(
        self, turn: Turn | Waiting, open_turn: Callable[[], Turn | Waiting]
    ) -> Generator[None, None, Turn]:
        """Wait until nothing keeps the turn from being opened; the turn."""
        pause = SHORTEST_PAUSE
        keep_alive = Deadline.after(self._clocks.keep_alive)
        while isinstance(turn, Waiting):
            self._waits_for = turn
            self._caller_left.wait(min(pause, self._deadline.left))
            if self._caller_left.is_set() or self._waiting_is_over:
                raise CallerLeft()
            if self._deadline.passed:
                raise self.too_late(self.seconds)
            if keep_alive.passed:
                keep_alive = Deadline.after(self._clocks.keep_alive)
                yield None
            pause = min(pause * 1.5, LONGEST_PAUSE)
            turn = open_turn()
        return turn

    def _read(self, turn: Turn) -> Iterator[bytes | None]:
        self._silence = SilenceClock(self._clocks, time.monotonic())
        output = b""
        while not turn.over:
            piece = self._read_piece(turn)
            if piece == b"":
                break
            if piece is None:
                yield None
                continue
            output = turn.feed(piece)
            del piece  # else a parked stream would hold it until the next one
            turn.accepted()
            if turn.over:
                break
            self._silence.restart(turn.complete, time.monotonic())
            if output or turn.failure is None:
                yield output
                output = b""
            if turn.failure is not None:
                raise turn.failure
            if not self.is_parked:  # how long the caller took to read is no silence
                self._silence.restart(turn.complete, time.monotonic())
        yield from self._end(turn, output)

    def _end(self, turn: Turn, output: bytes) -> Iterator[bytes]:
        """End the turn: what it still gives goes out with the last output, which goes out whatever happens."""
        if self._caller_left.is_set() and not turn.over:
            raise CallerLeft()
        yield from self._wait_unparked()
        failure: RelayError | None = None
        try:
            output += turn.end()
            self.outcome = "whole"
        except RelayError as error:
            failure = error
        if output or failure is None:
            yield output
        if failure is not None:
            raise failure

    def _read_piece(self, turn: Turn) -> bytes | None:
        """What has arrived; None for one keep-alive of silence, b"" at the end. Raises where a clock ran out."""
        try:
            piece = turn.stream.read(0.0 if self.is_parked else self._patience())
            if piece is None or time.monotonic() >= min(
                self._deadline, self._silence.ends
            ):
                self._check_clocks()
        except (UpstreamCut, UpstreamTimeout):
            if turn.complete and not self._caller_left.is_set():
                return b""  # nothing of the answer is missing
            raise
        return piece

    def _fail(self, error: RelayError) -> None:
        self.outcome = error.code
        self.failure = error
        if self.turn is None:
            self._last_chunk = self._printer.fail(error)
        else:
            self._last_chunk = self.turn.fail(error)

    def close(self) -> None:
        if self.turn is not None:
            if not self.turn.ended:
                self._fail(CallerLeft())
            self.turn.close()
        super().close()


class Background:
    """Work that goes on beside the requests; a stop waits for it."""

    def __init__(self) -> None:
        self._running: set[Thread] = set()

    @property
    def is_running(self) -> bool:
        return bool(self._running)

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
        deadline = Deadline.after(seconds)
        for thread in tuple(self._running):
            thread.join(deadline.left)


class Backlog:
    """Output on its way from the thread that reads to the one that follows, LARGEST_BACKLOG bytes at most."""

    def __init__(self) -> None:
        self._chunks: deque[bytes | None] = deque()
        self._size = 0
        self._is_followed = True
        self._is_over = False
        self._changed = Condition()

    @property
    def drained(self) -> bool:
        """Everything was taken, and nothing more will come."""
        return self._is_over and not self._chunks

    def put(self, chunk: bytes | None, seconds: float) -> None:
        """Add a chunk, or None for a time of silence. While it is full, waits for `seconds` at most."""
        with self._changed:
            self._changed.wait_for(self._has_room, seconds)
            if self._is_followed:
                self._chunks.append(chunk)
                self._size += _cost(chunk)
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._size < LARGEST_BACKLOG or not self._is_followed

    def get(self, seconds: float) -> bytes | None:
        """The next chunk; None where none comes within `seconds`, or none will come."""
        with self._changed:
            self._changed.wait_for(self._has_news, seconds)
            if not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._size -= _cost(chunk)
            self._changed.notify_all()
            return chunk

    def _has_news(self) -> bool:
        return bool(self._chunks) or self._is_over or not self._is_followed

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody follows any more: drop what is here, and what is still to come."""
        with self._changed:
            self._is_followed = False
            self._chunks.clear()
            self._changed.notify_all()


def _cost(chunk: bytes | None) -> int:
    return COST_OF_CHUNK + len(chunk or b"")


class BackgroundDelivery(Delivery):
    """A turn that goes on without its caller: read in the background, and followed from here.

    `timeout` only ends the following. A follower that is slower than the upstream holds the reading
    back, as the caller of a DirectDelivery does; output that nobody follows any more is dropped.
    """

    def __init__(
        self,
        source: DirectDelivery,
        background: Background,
        printer: Printer,
        clocks: Clocks,
        timeout: float | None = None,
    ) -> None:
        super().__init__(printer, clocks, timeout)
        if self.seconds == clocks.total:  # then the source itself says what happened
            self._deadline = Deadline.after(self.seconds + GRACE_SECONDS)
        self._source = source
        self._background = background
        self._backlog = Backlog()
        self._error: RelayError | None = None

    def leave(self) -> None:
        self._stop_following()

    def _stop_following(self) -> None:
        self._caller_left.set()
        self._source.stop_waiting()
        self._backlog.close()

    def _run(self) -> None:
        try:
            for chunk in self._source.chunks():
                self._backlog.put(chunk, self._source.seconds_left)
        except RelayError as error:
            self._error = error
        finally:
            try:
                self._source.close()
            finally:
                self._backlog.end()

    def chunks(self) -> Iterator[bytes | None]:
        self._background.start(self._run)
        silence = Deadline.after(self._clocks.keep_alive)
        while not self._backlog.drained:
            self._check()
            chunk = self._next_chunk()
            self.turn = self._source.turn
            if chunk is None and not silence.passed:
                continue
            silence = Deadline.after(self._clocks.keep_alive)
            yield chunk
        self.turn = self._source.turn
        if self._error is not None:
            self._end(self._error)
        self.outcome = "whole"

    def _next_chunk(self) -> bytes | None:
        return self._backlog.get(min(self.seconds_left, self._clocks.keep_alive))

    def _check(self) -> None:
        if self._caller_left.is_set():
            self._end(CallerLeft())
        if self._deadline.passed:
            self._end(self._source.too_late(self.seconds))

    def _end(self, error: RelayError) -> NoReturn:
        self.outcome = error.code
        self.failure = error
        self._last_chunk = self._printer.fail(error)
        raise error

    def close(self) -> None:
        """The following is over; what is followed goes on, if it was begun."""
        self._stop_following()
        if self.outcome == "open":
            self.failure = CallerLeft()
            self.outcome = self.failure.code
        super().close()
