"""What runs beside the turns: leases are renewed and waited for, and old conversations are deleted."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from threading import Event as Flag
from threading import Lock, Thread
from time import sleep
from typing import Any, Generic, TypeVar

from relay.deadline import Deadline
from relay.errors import Busy, StoreFailed
from relay.ids import new_id
from relay.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0  # a conversation whose process was killed is free again after this
RENEW_SECONDS = 5.0
UPKEEP_SECONDS = 3600.0
MOST_WAITERS = 20  # for one lease, in this process
WAIT_SECONDS = 0.25  # the longest that a look at a waiter blocks
POLL_SECONDS = (
    5.0  # between two looks at the database while this process itself has the lease
)
GONE_SECONDS = 3.0  # a waiter that nobody has looked at for so long has given up

T = TypeVar("T")
R = TypeVar("R")


class Leases:
    """Renews the leases of running turns: one write every few seconds for all of them, none when idle.

    `renew(holders, seconds)` is called from a thread of its own; it may block and raise StoreFailed.
    `every`: seconds between two calls. Who waits for a lease that a turn of this process has, is woken
    when it is free.
    """

    def __init__(
        self,
        renew: Callable[[Collection[str], float], None],
        every: float = RENEW_SECONDS,
    ) -> None:
        self._renew = renew
        self._every = every
        self._held: set[str] = set()
        self._names: dict[str, tuple[str, ...]] = {}
        self._freed: dict[str, Flag] = {}
        self._running = False
        self._lock = Lock()

    def hold(self, holder: str, names: tuple[str, ...] = ()) -> None:
        """Renew the holder's leases from now on. `names`: theirs, for those who wait for them."""
        with self._lock:
            self._held.add(holder)
            self._names[holder] = names
            for name in names:
                self._freed.setdefault(name, Flag())
            if not self._running:
                self._running = True
                Thread(target=self._run, name="leases", daemon=True).start()

    def drop(self, holder: str) -> None:
        """Renew the holder's leases no more; they are not deleted. Wakes those who wait for them."""
        with self._lock:
            self._held.discard(holder)
            names = self._names.pop(holder, ())
            freed = [self._freed.pop(name) for name in names if name in self._freed]
        for flag in freed:
            flag.set()

    def freed(self, names: tuple[str, ...]) -> Flag | None:
        """Is set when the first of these leases is free that a turn of this process has; None where none has."""
        with self._lock:
            flags = (self._freed.get(name) for name in names)
            return next((flag for flag in flags if flag is not None), None)

    def _run(self) -> None:
        failed = True
        try:
            self._renew_until_idle()
            failed = False
        finally:
            if failed:
                self._running = False  # the next `hold` starts another thread

    def _renew_until_idle(self) -> None:
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


@dataclass(eq=False)
class Waiter(Generic[T, R]):
    """An ask that waits for its leases. `prepared`: what was made of it. `waits_for`: why."""

    ask: weakref.ref[Any]
    names: tuple[str, ...]
    prepared: T
    waits_for: R
    next_poll: Deadline
    gives_up: Deadline


class Waiters(Generic[T, R]):
    """The asks of this process that wait for a lease, so that each is prepared once and few wait for one lease.

    An ask is known by its identity. One that is given up is forgotten, at the latest when it is deleted.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._waiting: dict[int, Waiter[T, R]] = {}

    def find(self, ask: Any) -> Waiter[T, R] | None:
        waiter = self._waiting.get(id(ask))
        if waiter is None or waiter.ask() is not ask:
            return None
        return waiter

    def add(self, ask: Any, names: tuple[str, ...], prepared: T, waits_for: R) -> None:
        """From now on the ask waits for the leases of these names. Raises Busy where enough asks do."""
        known = self.find(ask)
        if known is not None:
            known.names = names
            known.prepared = prepared
            known.waits_for = waits_for
            return
        waiting = list(self._waiting.values())
        for name in names:
            count = sum(
                name in other.names and not other.gives_up.passed for other in waiting
            )
            if count >= MOST_WAITERS:
                raise Busy()
        key = id(ask)
        # no lock: it may be called while another thread, or this one, is anywhere here
        reference = weakref.ref(ask, lambda gone: self._forget(key, gone))
        self._waiting[key] = Waiter(
            reference,
            names,
            prepared,
            waits_for,
            Deadline.after(POLL_SECONDS),
            Deadline.after(GONE_SECONDS),
        )

    def is_due(self, waiter: Waiter[T, R]) -> bool:
        """Whether to try again: a lease was freed here, or another process may have freed it.

        Blocks for WAIT_SECONDS at most.
        """
        freed = self._leases.freed(waiter.names)
        is_due = True
        if freed is not None:
            is_due = freed.wait(WAIT_SECONDS) or waiter.next_poll.passed
        if is_due:
            waiter.next_poll = Deadline.after(POLL_SECONDS)
        waiter.gives_up = Deadline.after(GONE_SECONDS)
        return is_due

    def remove(self, ask: Any) -> None:
        """The ask waits no more."""
        self._waiting.pop(id(ask), None)

    def _forget(self, key: int, gone: object) -> None:
        waiter = self._waiting.get(key)
        if waiter is not None and waiter.ask is gone:
            del self._waiting[key]


class Upkeep:
    """Deletes old rows at once, then every hour; no two of the processes that share the database at once.

    `seconds`: how long a conversation is kept after its last change; 0: without limit. `tidy`: what else
    is done, each of which may block and raise StoreFailed.
    """

    def __init__(
        self, store: Store, seconds: float, tidy: Sequence[Callable[[], None]] = ()
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._tidy = (store.tidy, *tidy)
        self._holder = new_id()
        self._stopped = Flag()
        self._thread = Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Start the thread. Called once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until a clean-up that is under way has ended."""
        self._stopped.set()
        self._thread.join()

    def once(self) -> None:
        """Clean up, unless another process does. Raises StoreFailed."""
        if not self._store.lease("upkeep", self._holder, LEASE_SECONDS):
            return
        for tidy in self._tidy:
            tidy()
        if self._seconds:
            deleted = self._store.expire(self._seconds)
            if deleted:
                log.info("Retention cleanup: %d conversations deleted.", deleted)
        self._store.free("upkeep", self._holder)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.once()
            except StoreFailed as error:
                log.warning("Retention cleanup failed: %s", error)
            self._stopped.wait(UPKEEP_SECONDS)
