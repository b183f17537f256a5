"""Callers with a token that no upstream has accepted yet: few of their asks are in flight at once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock

from relay.chat import Waiting
from relay.delivery import Clocks, DirectDelivery
from relay.errors import TooManyAttempts
from relay.turn import Printer, Turn

MOST_IN_FLIGHT = 16  # asks of all newcomers together
MOST_OF_ONE = 4
MOST_KNOWN = 10_000  # tokens that were accepted and are remembered, by their hash


class Newcomers:
    """Counts the asks of tokens that nobody has checked; one that an upstream accepted is no newcomer any more."""

    def __init__(self) -> None:
        self._in_flight: dict[bytes, int] = {}
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def enter(self, token: str) -> Callable[[bool], None]:
        """Count an ask of this token; what it gives is called once when the ask ended: was it accepted?

        Raises TooManyAttempts where there are enough already.
        """
        name = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return lambda accepted: None
            count = self._in_flight.get(name, 0)
            total = sum(self._in_flight.values())
            if count >= MOST_OF_ONE or total >= MOST_IN_FLIGHT:
                raise TooManyAttempts(
                    "Too many asks with tokens that no upstream has accepted yet are in "
                    "flight. Send this one again soon.",
                    retry_after=5,
                )
            self._in_flight[name] = count + 1
        return lambda accepted: self._leave(name, accepted)

    def _leave(self, name: bytes, accepted: bool) -> None:
        with self._lock:
            self._in_flight[name] -= 1
            if not self._in_flight[name]:
                del self._in_flight[name]
            if accepted:
                self._known[name] = None
                if len(self._known) > MOST_KNOWN:
                    self._known.popitem(last=False)


class NewcomerDelivery(DirectDelivery):
    """A delivery that is counted while it is in flight. `enter`: `Newcomers.enter` with the token."""

    def __init__(
        self,
        enter: Callable[[], Callable[[bool], None]],
        open_turn: Callable[[], Turn | Waiting],
        printer: Printer,
        clocks: Clocks,
        *,
        timeout: float | None,
        request_id: str,
    ) -> None:
        super().__init__(open_turn, printer, clocks, timeout, request_id)
        self._enter = enter
        self._leave: Callable[[bool], None] | None = None

    def chunks(self) -> Iterator[bytes | None]:
        try:
            self._leave = self._enter()
        except TooManyAttempts as error:
            self._fail(error)
            raise
        yield from super().chunks()

    def close(self) -> None:
        super().close()
        leave = self._leave
        self._leave = None
        if leave is not None:
            leave(self.turn is not None and self.turn.started)
