"""The one use case: a question goes to its upstream, and what was said is kept.

`Chat.open` begins a turn; the turn is then pushed: bytes from the upstream go in, bytes for the caller come out. `feed`
does no I/O; `end` and `fail` make one write to the store. Who reads, and where, is the driver's business.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from threading import Lock, Thread
from time import sleep
from typing import Protocol

from relay.domain import Ask, Conversation, Delta, Event, Finished, Message, Question, Reply, Restarted, Started
from relay.errors import BadRequest, Forbidden, RelayError, StoreFailed, Unauthorized, UpstreamCut, UpstreamGone
from relay.store import Begun, Opening, Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0  # a conversation whose process was killed is free again after this
RENEW_SECONDS = 5.0
TITLE_LENGTH = 60


class Stream(Protocol):
    """Bytes on their way from an upstream. Raises only RelayError."""

    def read(self, seconds: float) -> bytes | None:
        """What has arrived, at the latest after `seconds`: b"" at the end, None if nothing came."""

    def interrupt(self) -> None:
        """From another thread: make a read that is under way return or raise at once."""

    def close(self) -> None:
        """Let the connection go. May be called twice."""


class Decoder(Protocol):
    """An upstream's bytes as events: Started, any number of Delta, Finished. No I/O. Raises only RelayError.

    `settled`: all of the answer is there, and only the stream's own end is still to come.
    """

    @property
    def settled(self) -> bool: ...

    def feed(self, piece: bytes) -> list[Event]: ...

    def end(self) -> list[Event]:
        """The bytes are over: what was still held back. Raises UpstreamCut where the answer is not whole."""


class Printer(Protocol):
    """Events as a caller's dialect has them. No I/O."""

    keep_alive: bytes

    def print(self, batch: list[Event]) -> bytes: ...

    def end(self, reply: Reply) -> bytes: ...

    def fail(self, error: RelayError) -> bytes | None:
        """How a failure is told within an answer; None where the dialect has no way, so that the body is broken off."""


class Upstream(Protocol):
    """A way to a model.

    `protected`: it spends what is the operator's. `checks_tokens`: a caller's own credential replaces all of that, and
    is checked there. `keeps`: it keeps conversations itself, under ids of its own.
    """

    name: str
    protected: bool
    checks_tokens: bool
    keeps: bool

    def ask(self, question: Question) -> tuple[Stream, Decoder]:
        """Send the question. Its status may come with the stream's first read. Raises only RelayError."""


class Leases:
    """Keeps the leases of running turns alive: one write every few seconds for all of them, and none when idle."""

    def __init__(self, renew: Callable[[Collection[str], float], None], every: float = RENEW_SECONDS) -> None:
        self._renew = renew
        self._every = every
        self._held: set[str] = set()
        self._running = False
        self._lock = Lock()

    def hold(self, holder: str) -> None:
        with self._lock:
            self._held.add(holder)
            if not self._running:
                self._running = True
                Thread(target=self._keep, name="leases", daemon=True).start()

    def drop(self, holder: str) -> None:
        with self._lock:
            self._held.discard(holder)

    def _keep(self) -> None:
        while True:
            sleep(self._every)
            with self._lock:
                held = tuple(self._held)
                self._running = bool(held)
            if not held:
                return
            try:
                self._renew(held, LEASE_SECONDS)
            except StoreFailed as error:
                log.warning("Leases could not be renewed: %s", error)


class Keeper(Protocol):
    """Keeps how one turn ended: as a whole answer, a broken one, or not at all. Each method is one write at most."""

    opening: Opening

    def begun(self, started: Started) -> None: ...

    def whole(self, reply: Reply) -> None: ...

    def broken(self, text: str, model: str | None, error: RelayError) -> None: ...


class OwnKeeper:
    """Keeps a conversation that lives here: its question and its open answer are in the store already."""

    def __init__(self, store: Store, leases: Leases, opening: Opening) -> None:
        self._store = store
        self._leases = leases
        self.opening = opening

    def begun(self, started: Started) -> None:
        pass

    def whole(self, reply: Reply) -> None:
        self._store.finish(self.opening, reply.text, "whole", reply.model, reply.finish_reason)
        self._leases.drop(self.opening.holder)

    def broken(self, text: str, model: str | None, error: RelayError) -> None:
        self._leases.drop(self.opening.holder)
        if error.taken or text:
            self._store.finish(self.opening, text, "broken", model, error.code)
        else:
            self._store.forget(self.opening)


class IndexKeeper:
    """Keeps the index row of a conversation that lives at its upstream; its text is kept there."""

    def __init__(self, store: Store, leases: Leases, opening: Opening, upstream: str) -> None:
        self._store = store
        self._leases = leases
        self.opening = opening
        self._upstream = upstream
        self._started: Started | None = None

    def begun(self, started: Started) -> None:
        self._started = started
        self._note(None)

    def whole(self, reply: Reply) -> None:
        self._note(reply.message_id)
        self._release()

    def broken(self, text: str, model: str | None, error: RelayError) -> None:
        self._release()

    def _note(self, newest: str | None) -> None:
        if self._started is not None and self._started.conversation_id:
            opening, started = self.opening, self._started
            where = self._upstream, started.account
            row = Conversation(started.conversation_id or "", opening.owner, *where, opening.title, newest, 0, 0, True)
            self._try(lambda: self._store.note(row))

    def _release(self) -> None:
        if not self.opening.new:
            self._leases.drop(self.opening.holder)
            self._try(lambda: self._store.release(self.opening))

    def _try(self, write: Callable[[], None]) -> None:
        """The answer itself is kept at the upstream: a row that cannot be written is no reason to withhold it."""
        try:
            write()
        except StoreFailed as error:
            log.warning("The index could not be brought up to date: %s", error)


class Turn:
    """One question and its answer, pushed from outside."""

    def __init__(
        self, stream: Stream, decoder: Decoder, keeper: Keeper, printer: Printer, remote: bool = False
    ) -> None:
        self.stream = stream
        self.conversation_id = "" if remote else keeper.opening.conversation_id
        self.ended = False
        self.reply: Reply | None = None
        self._decoder = decoder
        self._keeper = keeper
        self._printer = printer
        self._started: Started | None = None
        self._noted = False
        self._model: str | None = None
        self._text: list[str] = []
        self._finished: Finished | None = None

    @property
    def over(self) -> bool:
        """The answer is whole; what the upstream may still say is not waited for."""
        return self._finished is not None

    @property
    def started(self) -> bool:
        return self._started is not None

    @property
    def settled(self) -> bool:
        """All of the answer is there, though the upstream has not said that it is over."""
        return self._decoder.settled

    def feed(self, piece: bytes) -> bytes:
        """What the caller is told of this piece; nothing is kept yet."""
        return b"" if self.over else self._take(self._decoder.feed(piece))

    def _take(self, batch: list[Event]) -> bytes:
        told: list[Event] = []
        for event in batch:
            match event:
                case Started(model, conversation_id):
                    self._started, self._model = event, model
                    self.conversation_id = conversation_id or self.conversation_id
                case Restarted():
                    self._text.clear()
                case Delta(text):
                    self._text.append(text)
                case Finished():
                    self._finished = event
                    break
            told.append(event)
        return self._printer.print(told) if told else b""

    def begin(self) -> None:
        """Keep that the upstream took the question, once it has said so."""
        if self._started is not None and not self._noted:
            self._noted = True
            self._keeper.begun(self._started)

    def end(self) -> bytes:
        """The stream is over: keep the answer, and tell its end. Raises UpstreamCut if it has none."""
        rest = b"" if self.over else self._take(self._decoder.end())
        if self._finished is None:
            raise UpstreamCut()
        self.begin()
        ids = self.conversation_id, self._finished.message_id or self._keeper.opening.answer_id
        reply = Reply("".join(self._text), *ids, self._finished.model or self._model, self._finished.reason)
        self._keeper.whole(reply)
        self.reply, self.ended = reply, True
        return rest + self._printer.end(reply)

    def fail(self, error: RelayError) -> bytes | None:
        """The turn failed: keep what came as a broken answer, and tell it; None: the body is to be broken off."""
        self.ended = True
        try:
            self._keeper.broken("".join(self._text), self._model, error)
        except StoreFailed as failure:
            log.warning("A broken answer could not be kept: %s", failure)
        return self._printer.fail(error)

    def close(self) -> None:
        self.stream.close()


@dataclass(frozen=True)
class Choice:
    """Where new conversations go. `explicit`: the operator named the upstream, so what it cannot use is refused.

    `sole_owner`: there is one client key at most, so conversations that only an upstream knows of are that owner's.
    """

    upstream: str
    explicit: bool = False
    sole_owner: bool = True


class Chat:
    """Opens turns. Decides which upstream is asked, with whose credential."""

    def __init__(self, upstreams: Mapping[str, Upstream], choice: Choice, store: Store, leases: Leases) -> None:
        self._upstreams = upstreams
        self._choice = choice
        self._store = store
        self._leases = leases

    def open(self, ask: Ask, printer: Printer, request_id: str = "") -> Turn | None:
        """Keep the question and send it. None while the conversation is being asked something else."""
        if ask.parent_id and not ask.conversation_id:
            raise BadRequest("A parent id goes with the conversation_id of the same reply: send both, or neither.")
        home = self._home(ask)
        if not ask.conversation_id:
            self._permit(ask, home)
        opening = _opening(ask, home.name, adopt=home.keeps and (bool(ask.caller.token) or self._choice.sole_owner))
        if opening.new and home.keeps:
            begun = Begun(home.name, _first(ask), remote=True)
        elif (found := self._store.begin(opening, LEASE_SECONDS)) is not None:
            begun = found
            self._leases.hold(opening.holder)
        else:
            return None
        keeper: Keeper = OwnKeeper(self._store, self._leases, opening)
        if begun.remote:
            keeper = IndexKeeper(self._store, self._leases, opening, begun.upstream)
        turn = None
        try:
            stream, decoder = self._send(ask, opening, begun, request_id)
            turn = Turn(stream, decoder, keeper, printer, begun.remote)
        except RelayError as error:
            keeper.broken("", None, error)
            raise
        finally:
            if turn is None:
                self._leases.drop(opening.holder)
        return turn

    def _home(self, ask: Ask) -> Upstream:
        """Where a new conversation of this caller goes: its own token leads to where tokens are checked."""
        if ask.caller.token and not self._choice.explicit:
            for upstream in self._upstreams.values():
                if upstream.checks_tokens:
                    return upstream
        return self._upstreams[self._choice.upstream]

    def _send(self, ask: Ask, opening: Opening, begun: Begun, request_id: str) -> tuple[Stream, Decoder]:
        upstream = self._upstreams.get(begun.upstream)
        if upstream is None:
            raise UpstreamGone(
                f"This conversation lives at the upstream {begun.upstream}, which is not open any more. "
                "Leave conversation_id out to begin a new one."
            )
        question = Question(
            begun.messages,
            question_id=opening.question_id,
            conversation_id=ask.conversation_id if begun.remote else None,
            parent_id=begun.parent,
            account=begun.account,
            model=ask.model,
            reverse_proxy=ask.reverse_proxy,
            timeout=ask.timeout,
            token=self._permit(ask, upstream),
            request_id=request_id,
        )
        return upstream.ask(question)

    def _permit(self, ask: Ask, upstream: Upstream) -> str | None:
        """The caller's own credential where it is to be spent. Raises where neither it nor ours may be."""
        if ask.reverse_proxy and not upstream.keeps:
            raise Forbidden(f"The upstream {upstream.name} is reached by no reverse proxy: leave reverse_proxy out.")
        if ask.caller.token and upstream.checks_tokens:
            return ask.caller.token
        if not ask.caller.may_spend:
            raise Unauthorized(f"The upstream {upstream.name} takes no access token; it asks for a client key.")
        if ask.caller.token and self._choice.explicit:
            raise BadRequest(f"The upstream {upstream.name} takes no access token: leave access_token out.")
        return None


def _first(ask: Ask) -> tuple[Message, ...]:
    """The messages that begin a conversation."""
    system = (Message("system", ask.system),) if ask.system else ()
    return (*system, Message("user", ask.prompt))


def _opening(ask: Ask, upstream: str, adopt: bool) -> Opening:
    new = not ask.conversation_id
    return Opening(
        conversation_id=ask.conversation_id or str(uuid.uuid4()),
        owner=ask.caller.owner,
        upstream=upstream,
        question_id=str(uuid.uuid4()),
        answer_id=str(uuid.uuid4()),
        prompt=ask.prompt,
        parent=ask.parent_id,
        title=_title(ask.prompt),
        new=new,
        adopt=adopt,
        system=ask.system if new else None,
        system_id=str(uuid.uuid4()),
    )


def _title(prompt: str) -> str:
    """The prompt's first words, on one line."""
    line = " ".join(prompt[: 10 * TITLE_LENGTH].split()) or "New chat"
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"
