"""Keeps the server's accounts, and who of them rests, alike in all processes that share the database.

One small read of the database every LOOK_SECONDS says whether there is anything new. What this process learns of a
rest is written at once, by the same thread, so that no ask waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from threading import Event as Flag
from threading import Lock, Thread
from typing import Protocol

from relay.accounts import Rest, Scope
from relay.errors import (
    Challenged,
    OneAtATime,
    RateLimited,
    RelayError,
    StoreFailed,
    TokenRejected,
)
from relay.rest_store import RestStore, StoredRest

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # until a process has seen what another one has written
RETRY_SECONDS = 10.0  # after a look that failed
KINDS: dict[str, type[RelayError]] = {
    kind.code: kind for kind in (RateLimited, OneAtATime, Challenged, TokenRejected)
}


class RestOutbox:
    """See `relay.accounts.RestNotes`: what has changed here and is not written yet. `clock`: monotonic seconds."""

    def __init__(self, store: RestStore, clock: Callable[[], float]) -> None:
        self.store = store
        self.clock = clock
        self.filled = Flag()
        self._waiting: dict[Scope, StoredRest | None] = {}
        self._lock = Lock()

    def note(self, scope: Scope, rest: Rest | None) -> None:
        with self._lock:
            self._waiting[scope] = self._to_row(scope, rest) if rest else None
        self.filled.set()

    def _to_row(self, scope: Scope, rest: Rest) -> StoredRest:
        began = self.store.now() - self.clock()
        return StoredRest(
            *scope, rest.kind.code, began + rest.since, began + rest.until
        )

    @property
    def scopes(self) -> Collection[Scope]:
        with self._lock:
            return set(self._waiting)

    def write(self) -> None:
        """Write all of it; what cannot be written waits on. Raises StoreFailed."""
        with self._lock:
            waiting = dict(self._waiting)
        if not waiting:
            return
        self.store.write(waiting)
        with self._lock:
            for scope, rest in waiting.items():
                if self._waiting.get(scope) is rest:
                    del self._waiting[scope]

    def read(self) -> dict[Scope, Rest]:
        """All rests that the database has. Raises StoreFailed."""
        rows = self.store.read()
        began = self.store.now() - self.clock()
        return {
            row.scope: Rest(
                row.until - began, row.since - began, KINDS.get(row.code, RateLimited)
            )
            for row in rows
        }


class Watched(Protocol):
    """The accounts of this process. Both methods may be called from any thread."""

    def reload(self) -> None:
        """Learn from the database which accounts there are. May block. Raises StoreFailed."""

    def take_rests(self, rests: Mapping[Scope, Rest], own: Collection[Scope]) -> None:
        """See `relay.accounts.AccountPool.take_rests`."""


class AccountWatch:
    """A thread that looks, writes, and does `scheduled` at each start and then every fourth night, if that is given."""

    def __init__(
        self,
        outbox: RestOutbox,
        watched: Watched,
        scheduled: Callable[[bool], None] | None = None,
        every: float = LOOK_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._watched = watched
        self._scheduled = scheduled
        self._every = every
        self._known: dict[str, int] = {}
        self._failed = False
        self._stopped = Flag()
        self._thread = Thread(target=self._run, name="accounts", daemon=True)
        self._look_lock = Lock()

    def start(self) -> None:
        """Look, and start the threads. Called once. May block."""
        self._try_to_look()
        self._thread.start()
        if self._scheduled is not None:
            Thread(target=self._run_schedule, name="refresh", daemon=True).start()

    def stop(self) -> None:
        """End them, once what is known here is written."""
        self._stopped.set()
        self._outbox.filled.set()
        self._thread.join()

    def look(self) -> None:
        """Write what is new here, and learn what is new elsewhere. May block. Raises StoreFailed."""
        with self._look_lock:
            self._outbox.write()
            found = self._outbox.store.revisions()
            if found.get("accounts") != self._known.get("accounts"):
                self._watched.reload()
            if found.get("rests") != self._known.get("rests"):
                rests = self._outbox.read()
                self._watched.take_rests(rests, self._outbox.scopes)
            self._known = found

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._failed:
                self._stopped.wait(RETRY_SECONDS)
            else:
                self._outbox.filled.wait(self._every)
            self._outbox.filled.clear()
            self._try_to_look()

    def _try_to_look(self) -> None:
        try:
            self.look()
            self._failed = False
        except StoreFailed as error:
            if not self._failed:
                log.warning("Accounts could not be compared: %s", error)
            self._failed = True

    def _run_schedule(self) -> None:
        assert self._scheduled is not None
        self._scheduled(False)
        while True:
            now = datetime.now()
            wait = (next_refresh(now) - now).total_seconds()
            if self._stopped.wait(wait):
                return
            self._scheduled(True)


def next_refresh(now: datetime) -> datetime:
    """The next 03:00 of a fourth day, by the machine's own time: chat2api's schedule."""
    night = now.replace(hour=3, minute=0, second=0, microsecond=0)
    while night <= now or night.toordinal() % 4:
        night += timedelta(days=1)
    return night
