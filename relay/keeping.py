"""What is kept of a turn while it runs and when it ends: here, at its upstream, or nothing."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from threading import Event as Flag
from threading import Lock, Thread
from time import sleep
from typing import Any, Protocol

from relay.domain import Conversation, Reply, Started
from relay.errors import RelayError, StoreFailed
from relay.store import Begun, Claimed, Opening, Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0  # a conversation whose process was killed is free again after this
RENEW_SECONDS = 5.0
UPKEEP_SECONDS = 3600.0


class Leases:
    """Keeps the leases of running turns alive: one write every few seconds for all of them, and none when idle."""

    def __init__(
        self,
        renew: Callable[[Collection[str], float], None],
        every: float = RENEW_SECONDS,
    ) -> None:
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
            except BaseException:
                self._running = False  # the next to hold one begins anew
                raise


class Upkeep:
    """Deletes what is past its time: at once, then every hour, by one process of all that share the database.

    `seconds`: how long a conversation is kept after what was last said in it; 0: for ever.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._holder = str(uuid.uuid4())
        self._stopped = Flag()
        self._thread = Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.once()
            except StoreFailed as error:
                log.warning("What is past its time could not be deleted: %s", error)
            self._stopped.wait(UPKEEP_SECONDS)

    def once(self) -> None:
        if not self._store.lease("upkeep", self._holder, LEASE_SECONDS):
            return
        self._store.tidy()
        if self._seconds and (gone := self._store.expire(self._seconds)):
            log.info("Conversations past their time: %d deleted.", gone)
        self._store.free("upkeep", self._holder)


class Keeper(Protocol):
    """Keeps how one turn ended: as a whole answer, a broken one, or not at all. Each method is one write at most.

    `shows_ids`: what was kept can be gone on with, so its ids are the caller's to know.
    """

    opening: Opening
    shows_ids: bool

    def begun(self, started: Started) -> None: ...

    def whole(self, reply: Reply) -> None: ...

    def broken(self, text: str, model: str | None, error: RelayError) -> bool:
        """Whether the question stays: it does unless no upstream took it."""


def done(reply: Reply) -> Claimed:
    """A whole answer as it is kept for an ask with a key."""
    told: dict[str, Any] = {
        "text": reply.text,
        "conversation_id": reply.conversation_id,
        "message_id": reply.message_id,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "reasoning": reply.reasoning,
        "usage": dict(reply.usage) if reply.usage else None,
    }
    return Claimed("done", told)


def lost(error: RelayError, text: str, conversation_id: str = "") -> Claimed | None:
    """What is kept for an ask with a key that failed; None where it was not taken, so that it may be asked again."""
    if not error.taken and not text:
        return None
    told = {
        "code": error.code,
        "message": error.message,
        "conversation_id": conversation_id or None,
    }
    return Claimed("refused" if error.settles else "unknown", told)


class _Keeping:
    def __init__(self, store: Store, leases: Leases, opening: Opening) -> None:
        self._store = store
        self._leases = leases
        self.opening = opening

    def begun(self, started: Started) -> None:
        pass


class OwnKeeper(_Keeping):
    """Keeps a conversation that lives here: its question and its open answer are in the store already."""

    shows_ids = True

    def whole(self, reply: Reply) -> None:
        self._store.finish(self.opening, reply, "whole", done(reply))
        self._leases.drop(self.opening.holder)

    def broken(self, text: str, model: str | None, error: RelayError) -> bool:
        self._leases.drop(self.opening.holder)
        ended = lost(error, text, self.opening.conversation_id)
        if ended is not None:
            reply = Reply(
                text,
                self.opening.conversation_id,
                self.opening.answer_id,
                model,
                error.code,
            )
            self._store.finish(self.opening, reply, "broken", ended)
        else:
            self._store.forget(self.opening)
        return ended is not None


class NoKeeper(_Keeping):
    """Keeps nothing of what was said; at most how an ask with a key ended."""

    shows_ids = False

    def whole(self, reply: Reply) -> None:
        self._release(done(reply))

    def broken(self, text: str, model: str | None, error: RelayError) -> bool:
        self._release(lost(error, text))
        return True

    def _release(
        self, outcome: Claimed | None, row: Conversation | None = None
    ) -> None:
        if row is not None or self.opening.claim is not None or not self.opening.new:
            self._leases.drop(self.opening.holder)
            self._try(lambda: self._store.release(self.opening, outcome, row))

    def _try(self, write: Callable[[], None]) -> bool:
        """The answer is not ours to keep: a row that cannot be written is no reason to withhold it."""
        try:
            write()
            return True
        except StoreFailed as error:
            log.warning("What goes with an answer could not be kept: %s", error)
            return False


class IndexKeeper(NoKeeper):
    """Keeps the index row of a conversation that lives at its upstream; its text is kept there."""

    shows_ids = True

    def __init__(
        self, store: Store, leases: Leases, opening: Opening, begun: Begun
    ) -> None:
        super().__init__(store, leases, opening)
        self._begun = begun
        self._started: Started | None = None
        self._row: Conversation | None = None

    def begun(self, started: Started) -> None:
        self._started = started
        if started.conversation_id:
            opening, where = self.opening, (self._begun.upstream, started.account)
            row = Conversation(
                started.conversation_id,
                opening.owner,
                *where,
                opening.title,
                None,
                0,
                0,
                True,
            )
            if self._begun.listed or self._try(
                lambda: self._store.note(row)
            ):  # what is listed may be deleted by now
                self._row = row

    def whole(self, reply: Reply) -> None:
        if self._row is None and self._started is not None:
            self.begun(self._started)
        row = self._row and replace(self._row, newest=reply.message_id)
        self._release(done(reply), row)
