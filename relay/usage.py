"""What was asked, and what it used, by owner, day, upstream and model: counted in memory, and written in groups.

An ask counts when it ends, on that day (UTC). What a process has counted is written WRITE_SECONDS later, and when the
service stops: one that is killed loses that much. No name of a model takes a row of its own without bound.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from threading import Lock, Timer
from typing import Any, Protocol, TypeAlias

from relay.database import Database
from relay.domain import (
    AnswerSize,
    Caller,
    Findings,
    Tokens,
    UsageQuery,
    UsageRow,
)
from relay.errors import (
    BadRequest,
    CallerLeft,
    RelayError,
    StoreFailed,
    UpstreamFailed,
)
from relay.schema import usage as usage_table
from relay.tables import usage as table
from relay.values import frozen

log = logging.getLogger(__name__)

WRITE_SECONDS = 2.0  # between an ask's end and the write that has it
RETRY_SECONDS = 30.0  # after a write that failed
KEPT_DAYS = 400
MOST_ROWS = 20_000  # of one answer
LONGEST_MODEL = 128  # characters
MOST_MODELS = 100  # of one owner on one day
MOST_KNOWN = 10_000  # names of models that are remembered, of all owners together
MOST_WAITING = 20_000  # rows that wait while the database cannot be written
Place: TypeAlias = tuple[str, str, str, str]  # day, owner, upstream, model
_COUNTS_OF = operator.attrgetter(*table.COUNTS)
UNKNOWN = "unknown"  # no model was named
OTHER = "other"


def tokens_of(
    usage: Mapping[str, Any] | None, prompt_tokens: int, size: AnswerSize
) -> Tokens:
    """What an ask used: by the upstream's `usage`, or else by what is estimated of what was sent and of the answer."""
    usage = usage or {}
    stated = Tokens.stated(usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if stated is not None:
        return stated
    return Tokens(prompt_tokens, sum(size), estimated=True)


class UsageStore:
    """The counts in the database. Every method may block, and raises StoreFailed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._add_statement = table.build_add_usage(database.insert(usage_table))

    def today(self) -> str:
        """The day by the clock that all processes share. Does not block."""
        return day_of(self._database.clock())

    def add(self, rows: Sequence[UsageRow]) -> None:
        """Add counts to those that are there, whichever process wrote them."""
        self._database.write(
            lambda connection: table.add_usage(connection, self._add_statement, rows)
        )

    def read(self, query: UsageQuery, owner: str | None) -> list[UsageRow]:
        """The counts of one owner, or of all. Raises BadRequest for more than MOST_ROWS."""
        rows = self._database.read(
            lambda connection: table.select_usage(
                connection, query, owner, MOST_ROWS + 1
            )
        )
        if len(rows) > MOST_ROWS:
            raise BadRequest(
                f"That is more than {MOST_ROWS} rows: name fewer days with from and to, "
                "or less in by."
            )
        return rows

    def expire(self) -> None:
        """Delete what is older than KEPT_DAYS."""
        first = day_of(self._database.clock() - KEPT_DAYS * 86400)
        self._database.write(lambda connection: table.delete_before(connection, first))

    def give(self, former_owner: str, owner: str) -> bool:
        """Make all usage of `former_owner` the `owner`'s; whether there was any."""
        count = self._database.write(
            lambda connection: table.give_usage(
                connection, self._add_statement, former_owner, owner
            )
        )
        return count > 0


def day_of(seconds: float) -> str:
    """The day (UTC) of a moment in seconds since 1970."""
    return _name_of_day(int(seconds // 86400))


@lru_cache(maxsize=4)
def _name_of_day(number: int) -> str:
    return datetime.fromtimestamp(number * 86400, timezone.utc).date().isoformat()


class Models:
    """Bounds the names of models, which are callers' own words: what is too much, or no name, is OTHER."""

    def __init__(self) -> None:
        self._day = ""
        self._known: dict[str, set[str]] = {}
        self._size = 0

    def name_for(self, owner: str, day: str, model: str) -> str:
        """The name under which a model of this owner's is counted on this day."""
        if len(model) > LONGEST_MODEL or not model.isprintable():
            return OTHER
        if day != self._day or self._size >= MOST_KNOWN:
            self._day = day
            self._known.clear()
            self._size = 0
        names = self._known.setdefault(owner, set())
        if model in names:
            return model
        if len(names) >= MOST_MODELS:
            return OTHER
        names.add(model)
        self._size += 1
        return model


@frozen
class Meter:
    """Counts one ask, when it has ended. `model`: the name that the upstream was asked for."""

    counter: UsageCounter
    caller: Caller
    upstream: str
    model: str | None

    def count(
        self,
        failure: RelayError | None,
        tokens: Tokens,
        model: str | None,
        *,
        accepted: bool,
    ) -> None:
        """`failure`: what ended it, if anything did. `model`: the one that answered. `accepted`: by the upstream.

        Of a caller whose token no upstream accepted, nothing is counted.
        """
        if self.caller.unverified and not accepted:
            return
        is_cancelled = isinstance(failure, CallerLeft)
        row = UsageRow(
            day=self.counter.store.today(),
            key=self.caller.verified_owner,
            upstream=self.upstream,
            model=model or self.model or UNKNOWN,
            asks=1,
            errors=int(failure is not None and not is_cancelled),
            cancelled=int(is_cancelled),
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            estimated_tokens=tokens.prompt + tokens.completion
            if tokens.estimated
            else 0,
        )
        self.counter.add(row)


class AnswerReader(Protocol):
    """Reads along with an answer that passes. See `relay.passage.Observer` for its other methods."""

    @property
    def may_block(self) -> bool: ...

    def findings(self, asked: Callable[[], int]) -> Findings:
        """What it has found. `asked`: gives the estimated tokens of the request."""

    def accepted(self, account: Any) -> None: ...

    def feed(self, piece: bytes) -> None: ...

    def end(self) -> None: ...


class PassageMeter:
    """Counts an ask that passes. See `relay.passage.Observer`.

    `asked`: the estimated tokens of the request, or what gives them: an answer may state its own.
    """

    def __init__(
        self, meter: Meter, reader: AnswerReader, asked: int | Callable[[], int]
    ) -> None:
        self._meter = meter
        self._reader = reader
        self._asked = asked
        self._is_accepted = False
        self.feed = reader.feed
        self.end = reader.end

    @property
    def may_block(self) -> bool:
        return self._reader.may_block

    def accepted(self, account: Any) -> None:
        self._is_accepted = True
        self._reader.accepted(account)

    def _prompt_tokens(self) -> int:
        return self._asked if isinstance(self._asked, int) else self._asked()

    def count(self, failure: RelayError | None) -> None:
        """Count it, once it is over. `failure`: what ended it, as far as that was no answer of the upstream's."""
        model = None
        if self._is_accepted:
            model, tokens, has_failed = self._reader.findings(self._prompt_tokens)
            if has_failed:
                failure = failure or UpstreamFailed()
        elif failure is not None and failure.may_have_been_sent:
            tokens = Tokens(self._prompt_tokens(), estimated=True)
        else:
            tokens = Tokens()
            failure = failure or UpstreamFailed()  # its refusal passed as it came
        self._meter.count(failure, tokens, model, accepted=self._is_accepted)


class UsageCounter:
    """Counts what ends in this process. `add` does not block; `every`: seconds from an ask's end to its write."""

    def __init__(self, store: UsageStore, every: float = WRITE_SECONDS) -> None:
        self.store = store
        self._every = every
        self._waiting: dict[Place, tuple[int, ...]] = {}
        self._models = Models()
        self._timer: Timer | None = None
        self._lock = Lock()
        self._write_lock = Lock()

    def meter(self, caller: Caller, upstream: str, model: str | None) -> Meter:
        """What counts one ask of this caller. `model`: the name that the upstream is asked for."""
        return Meter(self, caller, upstream, model)

    def add(self, row: UsageRow) -> None:
        """Count what a row says."""
        with self._lock:
            model = self._models.name_for(row.key, row.day, row.model)
            self._gather((row.day, row.key, row.upstream, model), _COUNTS_OF(row))
            if self._timer is None:
                self._start_timer(self._every)

    def _gather(self, place: Place, counts: tuple[int, ...]) -> None:
        known = self._waiting.get(place)
        if known is not None:
            counts = tuple(map(operator.add, known, counts))
        elif len(self._waiting) >= MOST_WAITING:
            return
        self._waiting[place] = counts

    def _start_timer(self, seconds: float) -> None:
        self._timer = Timer(seconds, self.write)
        self._timer.daemon = True
        self._timer.start()

    def write(self) -> None:
        """Write what was counted. What cannot be written now is tried again later. May block."""
        with self._write_lock:
            with self._lock:
                waiting = self._waiting
                self._waiting = {}
                timer = self._timer
                self._timer = None
            if timer is not None:
                timer.cancel()
            if waiting:
                self._write(waiting)

    def _write(self, waiting: dict[Place, tuple[int, ...]]) -> None:
        try:
            self.store.add([UsageRow(*place, *waiting[place]) for place in waiting])
        except StoreFailed as error:
            log.warning("Usage could not be written: %s", error)
            with self._lock:
                for place, counts in waiting.items():
                    self._gather(place, counts)
                if self._timer is None:
                    self._start_timer(RETRY_SECONDS)

    def close(self) -> None:
        """Write the rest. Nothing is counted afterwards."""
        self.write()
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
