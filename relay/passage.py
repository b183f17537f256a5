"""One request that passes to a fixed origin as it is, and its answer back, streamed both ways in constant memory.

The same rules as for a turn: the loop over accounts, how many asks each may have at once, the clocks, the caller who
leaves. Another account is tried only after a refusal that certainly was no answer, and only with a body that can be
sent once more. An answer with an error's status is read whole, because it may quote a credential. An event stream is
watched: one that was cut ends with an error, and never like a whole one; any other body that was cut is broken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

import orjson

from relay.accounts import Account
from relay.deadline import Deadline
from relay.delivery import BodyAborted, Clocks, Delivery, Silent
from relay.errors import (
    CallerLeft,
    RelayError,
    UpstreamCut,
    UpstreamFailed,
)
from relay.transports import Exchange, Head
from relay.upstreams import Forwarded, Forwarder
from relay.upstreams.http import (
    ADMISSION_SECONDS,
    LARGEST_ERROR,
    READY_SECONDS,
    BodyReader,
    WholeResponse,
)

FAILED_WITHIN = "The upstream told of a failure within its answer."
#: between two connections (RFC 9110, 7.6.1), or of the upstream's origin and not of ours
DROPPED_HEADERS = frozenset(
    (
        "alt-svc",
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "nel",
        "openai-organization",
        "openai-project",
        "proxy-authenticate",
        "report-to",
        "server",
        "strict-transport-security",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
        "x-content-type-options",
        "x-request-id",
    )
)
DROPPED_PREFIXES = ("access-control-", "cf-", "proxy-")


class Watch(Protocol):
    """Reads along with an event stream, in its dialect. Pure; one for each answer."""

    keep_alive: bytes

    @property
    def is_whole(self) -> bool: ...

    @property
    def has_failed(self) -> bool:
        """Whether what passed told of a failure; known once `is_whole` was asked for."""

    @property
    def is_between_events(self) -> bool: ...

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """Have another one look at the events, too: not later than `is_whole` is asked for, or `look` called."""

    def look(self) -> None: ...

    def feed(self, piece: bytes) -> bytes: ...

    def end(self) -> bytes: ...

    def fail(self, error: RelayError) -> bytes: ...


class Observer(Protocol):
    """Learns from a passage what is kept of it; never a reason to withhold an answer.

    Nothing is called where the upstream refused the request. `may_block`: what is fed next may be written.
    """

    @property
    def may_block(self) -> bool: ...

    def accepted(self, account: Account) -> None:
        """The upstream took the request, which was sent with this account. Before anything goes to the caller."""

    def feed(self, piece: bytes) -> None:
        """Bytes that pass; of an event stream, when its `Watch` looks at them."""

    def end(self) -> None:
        """The answer came to its end, whole."""


class Passage(Delivery):
    """See the module. `start` once, then `body` to its end, then `close`; `leave` may be called from others.

    `streams`: an event stream is expected, so its head is not waited for beyond one keep-alive.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        request: Forwarded,
        watch: Watch,
        clocks: Clocks,
        *,
        streams: bool,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(Silent(), clocks)
        self._observer = observer
        self._forwarder = forwarder
        self._watch = watch
        self._streams = streams
        self._attempts = forwarder.attempts(request)
        self._exchange: Exchange | None = None
        # that alone has the request, and only until it is answered: an answer may take long
        self._opening = self._open(request)
        self._refusal: WholeResponse | None = None
        self._refused: RelayError | None = None  # what it means
        self._why_refused = ""
        self._head: Head | None = None
        self._began_late = False  # the caller was promised an event stream
        self._is_watched = False
        self._arrived = 0.0  # when the last piece did, on the monotonic clock

    def start(self) -> Head | None:
        """Send the request; the answer's head. None for an event stream that has not begun yet.

        Raises RelayError.
        """
        patience = Deadline.after(self._clocks.keep_alive)
        try:
            for _ in self._opening:
                if self._streams and patience.passed:
                    return None
        except RelayError as error:
            self._fail(error)
            if isinstance(self.failure, CallerLeft):
                raise self.failure from None
            raise
        return self._head

    @property
    def is_event_stream(self) -> bool:
        if self._head is None:
            return self._streams
        headers = self._head.headers
        is_packed = headers.get("content-encoding", "identity") != "identity"
        kind = headers.get("content-type", "").lower()
        return "text/event-stream" in kind and not is_packed

    @property
    def accepted(self) -> bool:
        """The upstream answered the request, so it took the credential."""
        return self._head is not None and self._head.status < 400

    @property
    def reason(self) -> str:
        return super().reason or self._why_refused

    @property
    def awaited(self) -> int | None:
        if self._exchange is None or not self._is_watched:
            return None
        if self.is_parked or self._observer is None or not self._observer.may_block:
            return self._exchange.awaited
        return None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The fields of the answer that go to the caller, duplicates too."""
        if self._head is None:
            return []
        return [
            (name, value)
            for name, value in self._head.headers.pairs
            if name not in DROPPED_HEADERS
            and not name.startswith(DROPPED_PREFIXES)
            and self._forwarder.passes(name)
        ]

    @property
    def length(self) -> int | None:
        """Bytes of the body, where that is known before it comes."""
        if self._refusal is not None:
            return len(_quoted(self._refusal))
        stated = self._head.headers.get("content-length", "") if self._head else ""
        return int(stated) if stated.isascii() and stated.isdigit() else None

    def _open(self, request: Forwarded) -> Iterator[None]:
        """Send the request, with one account after the other; yields while that is waited for."""
        while self._head is None:
            self._attempts.next()
            account = yield from self._get_ready()
            yield from self._admit()
            call = self._forwarder.call(request, account)
            self._exchange = self._forwarder.transport.send(call)
            try:
                head = yield from self._read_head(self._exchange)
                if head.status >= 300:
                    reader = BodyReader(self._exchange, call, LARGEST_ERROR, head)
                    response = yield from self._read_refusal(reader)
                    self._refuse(response, self._forwarder.failure(response, request))
                else:
                    self._head = head
                    self._attempts.succeeded()
            except RelayError as error:
                self._try_another(error, request)

    def _get_ready(self) -> Generator[None, None, Account]:
        """Wait until the account has its access token."""
        while (account := self._attempts.ready(READY_SECONDS)) is None:
            yield None
            self._check_clocks()
        return account

    def _admit(self) -> Iterator[None]:
        """Wait while the account has enough to do."""
        while not self._attempts.take():
            self._caller_left.wait(min(ADMISSION_SECONDS, self._patience()))
            yield None
            self._check_clocks()

    def _read_head(self, exchange: Exchange) -> Generator[None, None, Head]:
        while True:
            head = exchange.head(self._patience())
            if head is not None:
                return head
            yield None
            self._check_clocks()

    def _read_refusal(self, reader: BodyReader) -> Generator[None, None, WholeResponse]:
        while (response := reader.read(self._patience())) is None:
            yield None
            self._check_clocks()
        return response

    def _refuse(self, response: WholeResponse, failure: RelayError) -> None:
        """Take an error for the answer. Raises one that is not to be passed on: a page, a redirect, a key of ours."""
        is_object = response.body.lstrip().startswith(b"{")
        is_error = response.status >= 400
        if failure.another_account_may_help or not is_error or not is_object:
            raise failure
        self._release()
        self._refusal = response
        self._refused = failure
        self._why_refused = failure.reason
        self._head = response.head

    def _try_another(self, error: RelayError, request: Forwarded) -> None:
        """Let the next account have the request. Raises the error where none may help."""
        self._release()
        self._attempts.refused(error)
        if not request.is_repeatable:
            raise error

    def body(self) -> Generator[bytes, None, None]:
        """The answer's body. Ends in BodyAborted where it was cut and has no place for an error."""
        try:
            if self._head is None:
                yield from self._begin_late()
            yield from self._pass_on()
            yield from self._wait_unparked()
            self._observe_end()
            self.outcome = self._refused.code if self._refused else self._told()
        except RelayError as error:
            yield from self._wait_unparked()
            self._fail(error)
            if not (self._began_late or self.is_event_stream):
                raise BodyAborted() from None
            yield self._watch.fail(error)

    def _told(self) -> str:
        """The outcome of an answer that passed to its end."""
        if not self._is_watched or not self._watch.has_failed:
            return "whole"
        self._why_refused = FAILED_WITHIN
        return UpstreamFailed.code

    def _begin_late(self) -> Iterator[bytes]:
        """The head comes after the caller's own was sent."""
        self._began_late = True
        self._spoke = time.monotonic()
        yield self._watch.keep_alive
        for _ in self._opening:
            if self._needs_keep_alive:
                self._spoke = time.monotonic()
                yield self._watch.keep_alive
        assert self._head is not None
        if self._refused is not None:
            raise self._refused
        if not self.is_event_stream:
            raise UpstreamFailed("The upstream did not stream, as it was asked to.")

    def _observe_begin(self) -> Callable[[bytes], None] | None:
        """What is given the bytes that pass; None where nobody reads along but the watch, and who listens to it."""
        if self._observer is None or not self.accepted:
            return None
        assert self._attempts.account is not None
        self._observer.accepted(self._attempts.account)
        if not self._is_watched:
            return self._observer.feed
        self._watch.listen(self._observer.feed)
        return None

    def _observe_end(self) -> None:
        if self._observer is not None and self.accepted:
            self._observer.end()

    def _pass_on(self) -> Iterator[bytes]:
        watches = self._is_watched = self.is_event_stream
        observe = self._observe_begin()
        while (piece := self._read()) != b"":
            if piece is None:
                chunk = self._silent(watches)
                if chunk or self._was_parked:
                    yield chunk
                continue
            passed = self._watch.feed(piece) if watches else piece
            if passed:
                self._spoke = self._arrived
                if observe is not None:
                    observe(passed)
                yield passed
        if watches:
            yield self._rest()

    def _rest(self) -> bytes:
        """What an event stream ends with. Raises UpstreamCut where it is not whole."""
        rest = self._watch.end()
        if not self._watch.is_whole:
            raise UpstreamCut()
        return rest

    def _silent(self, watches: bool) -> bytes:
        """What the caller gets where nothing has come: a keep-alive, if it is time and can stand here."""
        if self.is_parked and not self._needs_keep_alive:
            return b""
        self._spoke = time.monotonic()
        can_stand = watches and self._watch.is_between_events
        return self._watch.keep_alive if can_stand else b""

    def _read(self) -> bytes | None:
        """What has arrived; None for one keep-alive of silence, b"" at the end."""
        if self._refusal is not None:
            refusal = _quoted(self._refusal)
            self._refusal = None
            return refusal
        if self._exchange is None:
            return b""
        piece = self._exchange.read(0.0 if self.is_parked else self._patience())
        if piece == b"":
            self._release()
            return piece
        if piece:
            self._arrived = time.monotonic()
            self._silence.restart(False, self._arrived)
            if self._arrived < self._deadline and not self._caller_left.is_set():
                return piece
        self._check_clocks()
        return piece

    def _fail(self, error: RelayError) -> None:
        failure = CallerLeft() if self._caller_left.is_set() else error
        self.failure = failure
        self.outcome = failure.code
        if self._is_watched:
            self._watch.look()
        self._release()

    def leave(self) -> None:
        self._caller_left.set()
        exchange = self._exchange
        if exchange is not None:
            exchange.interrupt()

    def _release(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = None
        self._attempts.leave()

    def close(self) -> None:
        if self.outcome == "open":
            self._fail(CallerLeft())
        self._refused = None  # once raised, it has this object
        self._release()
        super().close()


def _quoted(response: WholeResponse) -> bytes:
    """An error's body as it came, unless it quotes what the request kept secret."""
    redacted = response.redacted
    try:
        is_same = orjson.loads(redacted) == orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return redacted
    return response.body if is_same else redacted
