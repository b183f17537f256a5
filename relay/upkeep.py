"""What runs in the background: leases are renewed while turns run, and old conversations are deleted."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection
from threading import Event as Flag
from threading import Lock, Thread
from time import sleep

from relay.errors import StoreFailed
from relay.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0  # a conversation whose process was killed is free again after this
RENEW_SECONDS = 5.0
UPKEEP_SECONDS = 3600.0


class Leases:
    """Renews the leases of running turns: one write every few seconds for all of them, none when idle.

    `renew(holders, seconds)` is called from a thread of its own; it may block and raise StoreFailed.
    `every`: seconds between two calls.
    """

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
        """Renew the holder's leases from now on."""
        with self._lock:
            self._held.add(holder)
            if not self._running:
                self._running = True
                Thread(target=self._run, name="leases", daemon=True).start()

    def drop(self, holder: str) -> None:
        """Renew the holder's leases no more; they are not deleted."""
        with self._lock:
            self._held.discard(holder)

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


class Upkeep:
    """Deletes old rows at once, then every hour; no two of the processes that share the database at once.

    `seconds`: how long a conversation is kept after its last change; 0: without limit.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._holder = str(uuid.uuid4())
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
        self._store.tidy()
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
