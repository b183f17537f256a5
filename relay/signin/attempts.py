"""Sign-ins are few: within a minute from one address, and at once from one address and from all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from relay.errors import TooManyAttempts

MOST_ATTEMPTS = 10  # of one address within a minute
ATTEMPT_SECONDS = 60.0
MOST_OF_ONE = 4  # in flight from one address
MOST_IN_FLIGHT = 16  # from all addresses together
MOST_ADDRESSES = 10_000
TOO_MANY = "Too many sign-ins came from this address. Keep the access token: it lasts for days."
TOO_MANY_AT_ONCE = "Too many sign-ins are in flight. Send this one again soon."


class AttemptCounter:
    """Counts the sign-ins that are sent on. What is answered from memory is none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[str, list[float]] = {}
        self._in_flight: dict[str, int] = {}
        self._lock = Lock()

    @contextmanager
    def counted(self, address: str) -> Iterator[None]:
        """Count a sign-in from `address` while it lasts. Raises TooManyAttempts."""
        with self._lock:
            self._check(address)
            self._in_flight[address] = self._in_flight.get(address, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight[address] -= 1
                if not self._in_flight[address]:
                    del self._in_flight[address]

    def _check(self, address: str) -> None:
        now = self._clock()
        since = now - ATTEMPT_SECONDS
        times = [at for at in self._began.get(address, ()) if at > since]
        if len(times) >= MOST_ATTEMPTS:
            wait = max(1, round(times[0] - since))
            raise TooManyAttempts(TOO_MANY, retry_after=wait)
        is_full = sum(self._in_flight.values()) >= MOST_IN_FLIGHT
        if is_full or self._in_flight.get(address, 0) >= MOST_OF_ONE:
            raise TooManyAttempts(TOO_MANY_AT_ONCE, retry_after=5)
        if len(self._began) >= MOST_ADDRESSES and address not in self._began:
            self._began.clear()  # so many addresses are a flood, which this does not stop
        self._began[address] = [*times, now]
