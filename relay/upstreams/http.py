"""One question's way over HTTP: the loop over accounts, event streams, whole bodies, waiting, closing.

An upstream gives a `Procedure`, which is pure: `steps` yields the requests that its protocol needs,
one after the other, and is resumed with their answers. The session sends them, so everything that
needs a socket, a clock or another account is here, once:

- a request that `streams` is read as an event stream where the answer is one (by its type, or by
  its first bytes); its bytes go to the decoder, and the procedure is resumed with None at its end.
  Any other answer is read whole and given to `Procedure.decode_body`;
- the answer to another request is read whole, and the procedure is resumed with it;
- a computation is made slice by slice, where it stops nobody else, and the procedure is resumed with
  None once it is over or its time is;
- bytes that the procedure yields go to the decoder, as if they had been streamed;
- an error that leaves the procedure is a refusal: the steps begin again with another account,
  where that may help and the question was not accepted yet.

How much an upstream may send is bounded: by `Limits.answer`, for all streams of an answer together
and for each body that is read whole; and by LARGEST_UNSTREAMED, for an answer that is decoded at
once. Who calls the session has the clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import field
from functools import partial
from threading import Event as Flag
from typing import Protocol, TypeAlias

from relay import sse
from relay.accounts import Account, AccountPool, Attempts
from relay.deadline import NOW, Deadline
from relay.errors import (
    OneAtATime,
    RelayError,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
    UpstreamTimeout,
)
from relay.server import Run
from relay.transports import TOO_LARGE, Call, Exchange, Head, Transport
from relay.upstreams.wording import Secrets
from relay.values import frozen

LARGEST_ERROR = 64 * 1024
LARGEST_ANSWER = 32 * 1024 * 1024
LARGEST_UNSTREAMED = 4 * 1024 * 1024
REPETITION = 32  # so many bytes that repeat earlier ones count as one
NOT_STREAMED = "The upstream's answer is larger than one may be that is not streamed."
READY_SECONDS = 0.25  # between two looks at an account whose access token is being got
ADMISSION_SECONDS = 0.1  # between two looks at an account that has enough to do
SHARED_PAUSE = 0.2  # before an account is asked again that we ourselves keep busy
LONGEST_PAUSE = 8.0  # and one that others keep busy


class StreamFollower(Protocol):
    """Who knows more of an event stream than that it is one.

    `is_enough`: no more of it is needed. `repeated`: how many bytes of all streams so far only repeated earlier ones.
    """

    @property
    def is_enough(self) -> bool: ...

    @property
    def repeated(self) -> int: ...

    def begin(self) -> None:
        """It begins: the request that asked for it is not sent again."""


@frozen
class Step:
    """One request of a procedure.

    `asks`: it carries the question itself, so it is dispatched once. `streams`: an event stream is
    the expected answer; `follower`: who follows it. `pause`: seconds before it is sent. `seconds`: the
    longest wait for an answer that is read whole, then UpstreamTimeout; None: the asker's clocks do.
    `single_use`: where the account is busy it is not sent again: OneAtATime is raised where it was
    yielded, and what is yielded next waits.
    """

    call: Call
    asks: bool = False
    streams: bool = False
    follower: StreamFollower | None = None
    pause: float = 0.0
    seconds: float | None = None
    single_use: bool = False


@frozen
class Computation:
    """Work of a procedure that takes long.

    `advance`: does a slice of it, well under 100 ms, and says whether it is over. `run`: runs a
    slice where it stops nobody else. `seconds`: the longest time for all slices.
    """

    advance: Callable[[], bool]
    run: Run
    seconds: float


@frozen
class WholeResponse:
    """An answer that was read whole. `redacted`: its body, to be quoted, without what the call kept secret."""

    head: Head
    body: bytes = field(repr=False)
    call: Call

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def redacted(self) -> bytes:
        return Secrets(self.call.headers).redact_body(self.body)


Yielded: TypeAlias = Step | Computation | bytes
Steps: TypeAlias = Generator[Yielded, WholeResponse | None, None]


class Procedure(Protocol):
    """What an upstream's protocol asks for one question. Pure: no I/O, no clock.

    `model`: what limits are per, where the upstream has limits per model; else "".
    """

    model: str

    def steps(self, account: Account) -> Steps:
        """The requests, with this account. Called again from the start for each other account.

        Raises RelayError for what an answer refuses; a failed request is raised where it was
        yielded, and may be caught there.
        """

    def decode_body(self, response: WholeResponse) -> bytes:
        """An answer that is no event stream, as events for the decoder. Raises the failure it tells of."""


class BodyReader:
    """An answer that is read to its end, within a bound. A read may be resumed after a silence.

    `head`: where it has been read already.
    """

    def __init__(
        self, exchange: Exchange, call: Call, largest: int, head: Head | None = None
    ) -> None:
        self._exchange = exchange
        self._call = call
        self._head = head
        self._largest = largest
        self._pieces: list[bytes] = []
        self._size = 0
        self._opening = b""

    @property
    def is_event_stream(self) -> bool:
        """Whether its first bytes are those of an event stream."""
        return sse.opens_stream(self._opening)

    @property
    def body(self) -> bytes:
        """What was read so far."""
        return b"".join(self._pieces)

    def head(self, seconds: float) -> Head | None:
        """Its head; None while that has not come."""
        if self._head is None:
            self._head = self._exchange.head(seconds)
        return self._head

    def read(self, seconds: float) -> WholeResponse | None:
        """The answer; None while there is more to come. Raises UpstreamFailed for one that is too large."""
        deadline = Deadline.after(seconds)
        head = self.head(seconds)
        if head is None:
            return None
        piece = self._piece(head, deadline.left)
        if piece is None:
            return None
        self._add(piece)
        is_error = head.status >= 400
        largest = min(LARGEST_ERROR, self._largest) if is_error else self._largest
        if piece and self._size <= largest:
            return None
        if piece and not is_error:
            is_unstreamed = self._largest == LARGEST_UNSTREAMED
            raise UpstreamFailed(NOT_STREAMED if is_unstreamed else TOO_LARGE)
        return WholeResponse(head, self.body, self._call)

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if len(self._opening) < sse.OPENING_SIZE:
            self._opening += piece[: sse.OPENING_SIZE]

    def _piece(self, head: Head, seconds: float) -> bytes | None:
        try:
            return self._exchange.read(seconds)
        except UpstreamCut:
            if head.status < 400:
                raise
            return b""  # what there is of an error still says why


def fetch(
    transport: Transport,
    call: Call,
    seconds: float,
    largest: int = LARGEST_ANSWER,
) -> WholeResponse:
    """One request and its whole answer, of `largest` bytes at most. Blocks.

    Raises UpstreamFailed for a larger one, and after `seconds`.
    """
    deadline = Deadline.after(seconds)
    exchange = transport.send(call)
    try:
        answer = BodyReader(exchange, call, largest)
        while (response := answer.read(deadline.left)) is None:
            if deadline.passed:
                raise UpstreamFailed(
                    f"The upstream did not answer within {seconds:g} s."
                )
        return response
    finally:
        exchange.close()


@frozen
class Limits:
    """Bounds of one question.

    `concurrency`: asks at once per account, 0 for no bound. `patience`: seconds to wait for a busy
    one. `answer`: bytes of all streams of its answer together, and of each body that is read whole.
    """

    concurrency: int = 0
    patience: float = 120.0
    answer: int = LARGEST_ANSWER


class HttpSession:
    """One question's stream. See `relay.upstreams.Stream` for its contract."""

    def __init__(
        self,
        transport: Transport,
        procedure: Procedure,
        pool: AccountPool,
        attempts: Attempts,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self._transport = transport
        self._procedure = procedure
        self._pool = pool
        self._attempts = attempts
        self._concurrency = limits.concurrency
        self._largest = limits.answer
        self._patience = Deadline.after(limits.patience)
        self._pause = 1.0
        self._interrupted = Flag()
        self._due = NOW
        self._expiry: Deadline | None = None
        self._step: Step | None = None
        self._follower: StreamFollower | None = None
        self._computation: Computation | None = None
        self._exchange: Exchange | None = None
        self._body: BodyReader | None = None
        self._first = b""
        self._streamed = 0
        self._streaming = False
        self._accepted = False
        self._over = False
        self._holds_account = False
        self.dispatched = False
        self._account = attempts.next()
        self._steps: Steps | None = None

    def _begin(self, seconds: float) -> bytes | None:
        """Begin the procedure once the account has its access token."""
        account = self._attempts.ready(min(seconds, READY_SECONDS))
        if account is None:
            return None
        self._account = account
        self._steps = self._procedure.steps(account)
        return self._resume(None)

    @property
    def awaited(self) -> int | None:
        """There is one while an event stream is read, and no more than that is to be done."""
        if not self._streaming or self._first or self._exchange is None:
            return None
        return self._exchange.awaited

    def read(self, seconds: float) -> bytes | None:
        deadline = Deadline.after(seconds) if seconds else NOW
        while not self._interrupted.is_set():
            try:
                if self._streaming:
                    piece = self._read_stream(seconds)
                else:
                    piece = self._advance(deadline)
            except (UpstreamCut, Unreachable):
                if self._interrupted.is_set():
                    return b""
                raise
            if piece is not None or deadline.passed:
                return piece
            seconds = deadline.left
        return b""

    def _advance(self, deadline: Deadline) -> bytes | None:
        """One wait for what comes next; None if it led to nothing for the decoder yet."""
        if self._over:
            return b""
        if self._steps is None:
            return self._begin(deadline.left)
        if self._computation is not None:
            return self._compute(self._computation)
        if self._step is None:
            return self._resume(None)
        if not self._due.passed:
            self._interrupted.wait(min(self._due.left, deadline.left))
            return None
        return self._take_step(self._step, deadline)

    def _take_step(self, step: Step, deadline: Deadline) -> bytes | None:
        """Send the step's request, or read on in its answer, as long as that is no stream."""
        try:
            if self._exchange is None and not self._send(step):
                return None
            return self._read_answer(step, deadline)
        except (Unreachable, UpstreamCut) as error:
            if self._interrupted.is_set():
                raise
            return self._fail_step(error)

    def _compute(self, computation: Computation) -> bytes | None:
        """One slice of a computation; what is due between two of them is done then."""
        is_over = computation.run(computation.advance)
        assert self._expiry is not None
        if is_over or self._expiry.passed:
            return self._resume(None)
        return None

    def _send(self, step: Step) -> bool:
        """Send the step's request; False while the account has enough to do."""
        if step.streams and not self._holds_account:
            if not self._pool.take(self._account, self._concurrency):
                self._due = Deadline.after(ADMISSION_SECONDS)
                return False
            self._holds_account = True
        self.dispatched = self.dispatched or step.asks
        largest = self._largest
        if step.streams:
            largest = min(LARGEST_UNSTREAMED, largest)
        self._exchange = self._transport.send(step.call)
        self._body = BodyReader(self._exchange, step.call, largest)
        if self._interrupted.is_set():  # it came before there was an exchange
            raise UpstreamCut()
        return True

    def _read_answer(self, step: Step, deadline: Deadline) -> bytes | None:
        """The answer's head, and its body where it is no event stream."""
        assert self._exchange is not None and self._body is not None
        deadline = min(deadline, self._expiry or deadline)
        head = self._body.head(deadline.left)
        if head is None:
            return self._check_expiry()
        if not step.streams:
            return self._take_body(step, self._body.read(deadline.left))
        if _is_event_stream(head):
            self._accept(step, b"")
            return None
        response = self._body.read(deadline.left)
        if head.status == 200 and self._body.is_event_stream:
            self._accept(step, self._body.body)
            return None
        return self._take_body(step, response)

    def _take_body(self, step: Step, response: WholeResponse | None) -> bytes | None:
        """An answer that was read whole, or not to its end yet."""
        if response is None:
            return self._check_expiry()
        if self._interrupted.is_set():
            raise UpstreamCut()
        return self._finish_step(step, response)

    def _check_expiry(self) -> bytes | None:
        """Fail a step that had its time; nothing for one that has more."""
        if self._expiry is None or not self._expiry.passed:
            return None
        return self._fail_step(UpstreamTimeout("A request took too long."))

    def _accept(self, step: Step, first: bytes) -> None:
        """The answer is an event stream, and `first` is what was read of it."""
        self._streaming = True
        self._first = first
        self._follower = step.follower
        if step.follower is not None:
            step.follower.begin()
        self._step = self._body = None  # they have the request, and it may stream long
        self._succeed(step)

    def _succeed(self, step: Step) -> None:
        if step.asks and not self._accepted:
            self._accepted = True
            self._attempts.model = self._procedure.model
            self._attempts.succeeded()
            del self._attempts  # no other account is asked any more

    def _read_stream(self, seconds: float) -> bytes | None:
        assert self._exchange is not None
        if self._follower is not None and self._follower.is_enough:
            piece: bytes | None = b""
        elif self._first:
            piece = self._first
            self._first = b""
        else:
            piece = self._exchange.read(seconds)
        if piece == b"":
            self._release()
            return self._resume(None)
        if piece:
            self._streamed += len(piece)
            if self._streamed > self._largest:
                self._check_size()
        return piece

    def _check_size(self) -> None:
        """Raise UpstreamFailed where more was streamed than an answer may have, without what only repeats."""
        repeated = self._follower.repeated if self._follower is not None else 0
        if self._streamed - repeated + repeated // REPETITION > self._largest:
            raise UpstreamFailed(TOO_LARGE)

    def _finish_step(self, step: Step, response: WholeResponse) -> bytes | None:
        """A whole answer has come: give it to the procedure."""
        if not step.streams:
            self._release()
            return self._resume(response)
        try:
            events = self._procedure.decode_body(response)
        except OneAtATime as error:
            self._wait_for_account(error)
            return self._begin_later(error) if step.single_use else None
        except RelayError as error:
            return self._fail_step(error)
        self._succeed(step)
        self._release()
        self._step = None
        return events

    def _fail_step(self, error: RelayError) -> bytes | None:
        """Raise a step's failure where the procedure yielded it; what leaves it is a refusal."""
        self._release()
        assert self._steps is not None
        return self._run(partial(self._steps.throw, error))

    def _resume(self, response: WholeResponse | None) -> bytes | None:
        assert self._steps is not None
        return self._run(partial(self._steps.send, response))

    def _run(self, resume: Callable[[], Yielded]) -> bytes | None:
        """Run the procedure to its next step."""
        self._step = self._computation = self._expiry = None
        try:
            step = resume()
        except StopIteration:
            self._over = True
            return b""
        except RelayError as error:
            self._refuse(error)
            return None
        if isinstance(step, bytes):
            return step
        if step.seconds is not None:
            self._expiry = Deadline.after(step.seconds)
        if isinstance(step, Computation):
            self._computation = step
            return None
        self._step = step
        self._due = Deadline.after(step.pause) if step.pause else NOW
        return None

    def _refuse(self, error: RelayError) -> None:
        """Begin again with another account. Raises the error where none may help."""
        if self._accepted:
            raise error  # the rest of an answer is at this account or nowhere
        self._attempts.model = self._procedure.model
        self._attempts.refused(error)
        self._attempts.next()
        self.dispatched = False
        self._steps = None

    def _wait_for_account(self, error: OneAtATime) -> None:
        """Send the same request again after a pause. Raises the error where that would take too long."""
        self._release()
        if self._pool.in_flight(self._account):
            pause = SHARED_PAUSE
        else:
            pause = self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
        self._due = Deadline.after(pause)
        if self._due >= self._patience:
            raise error
        self.dispatched = self._accepted

    def _begin_later(self, error: OneAtATime) -> bytes | None:
        """Raise the error where the procedure yielded the step; what it yields instead waits for the account."""
        due = self._due
        piece = self._fail_step(error)
        self._due = max(due, self._due)
        return piece

    def _release(self) -> None:
        """Close the exchange, and leave the account to others."""
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = None
        self._body = None
        self._streaming = False
        if self._holds_account:
            self._pool.leave(self._account)
        self._holds_account = False

    def interrupt(self) -> None:
        self._interrupted.set()
        exchange = self._exchange
        if exchange is not None:
            exchange.interrupt()

    def close(self) -> None:
        self._interrupted.set()
        self._release()
        if self._steps is not None:
            self._steps.close()


def _is_event_stream(head: Head) -> bool:
    kind = head.headers.get("content-type", "").lower()
    return head.status == 200 and "text/event-stream" in kind
