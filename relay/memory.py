"""A bound on the memory of request bodies, all of them together."""

from __future__ import annotations

from threading import Condition

from relay.errors import Overloaded

MOST_IN_MEMORY = 32 * 1024 * 1024  # bytes that all bodies may hold together
WAIT_FOR_MEMORY = 5.0  # seconds that a body waits for room


class BodyMemory:
    """Bounds the memory of all bodies together: what has arrived counts, until its request is answered.

    For the oldest of the bodies that are being read the others of these do not count, so that of
    many that wait for one another one gets on. All hold twice the bound at most. Shared by all threads.
    """

    def __init__(self, wait: float = WAIT_FOR_MEMORY) -> None:
        self._wait = wait
        self._reading: dict[object, int] = {}  # in the order of their first bytes
        self._read: dict[object, int] = {}
        self._changed = Condition()

    def reserve(self, holder: object, size: int, most: int) -> None:
        """Let the body of `holder` grow to `size` where all of them hold `most` at most.

        Waits a little for others to end; raises Overloaded where they do not.
        """
        with self._changed:
            self._reading.setdefault(holder, 0)
            has_room = self._changed.wait_for(
                lambda: self._held_beside(holder) + size <= most, self._wait
            )
            if not has_room:
                raise Overloaded()
            self._reading[holder] = size

    def _held_beside(self, holder: object) -> int:
        """What counts for a body beside itself."""
        held = sum(self._read.values())
        is_oldest = next(iter(self._reading)) is holder
        if not is_oldest:
            held += sum(self._reading.values()) - self._reading[holder]
        return held

    def finish(self, holder: object) -> None:
        """The body is read; it is held until it is released."""
        with self._changed:
            self._read[holder] = self._reading.pop(holder)
            self._changed.notify_all()

    def release(self, holder: object) -> None:
        with self._changed:
            self._reading.pop(holder, None)
            self._read.pop(holder, None)
            self._changed.notify_all()
