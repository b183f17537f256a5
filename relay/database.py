"""How work reaches the database, SQLite or PostgreSQL; nothing else tells them apart.

SQLite: reading and writing have one connection each, used by one native thread each, so that neither the event loop nor
a reader ever waits for the disk or for another process's write lock. WAL lets them work side by side; with
synchronous=NORMAL a kill loses nothing and a power cut at most the last commits (sqlite.org/wal.html).

PostgreSQL: a small pool. psycopg waits for its sockets as gevent's patched select does, so only the asking greenlet
waits; what keeps many from using the pool at once is that a turn needs it twice, for a millisecond each.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from relay.errors import RelayError, StoreFailed
from relay.serving import Run

log = logging.getLogger(__name__)

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], T]

BUSY_SECONDS = 8  # how long a write waits for another process's lock: less than a lease lives unrenewed
LARGEST_COMMIT = 100
POOL_SIZE = 10
POOL_SECONDS = 20  # how long a turn waits for a connection of the pool
START_LOCK = 0x63772D776562  # of pg_advisory_xact_lock, while the tables are made


class Database(Protocol):
    """Runs work in transactions of its own. Raises only RelayError."""

    def clock(self) -> float:
        """Seconds since 1970, the same for all who share the database."""

    def insert(self, table: Any) -> Any:
        """An INSERT that knows ON CONFLICT, in the database's own dialect."""

    def read(self, work: Work[T]) -> T: ...

    def write(self, work: Work[T]) -> T: ...

    def prepare(self, work: Work[None]) -> None:
        """Write, while no other process prepares."""

    def erase(self) -> None:
        """What was deleted leaves the database's files too, as far as that is in our hands."""

    def close(self) -> None: ...


@contextmanager
def told_as_ours() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        # what these two say is of files, locks and servers; other errors may quote what was said
        sayable = type(error) in (OperationalError, DatabaseError)
        reason = (
            str(getattr(error, "orig", error)).partition("\n")[0] if sayable else ""
        )
        log.warning("The database failed: %s %s", type(error).__name__, reason)
        raise StoreFailed() from error


def open_database(url: str, native: Callable[[], Run]) -> Database:
    """The database that a URL names. `native` makes a runner of its own thread."""
    return (
        SQLite(url, native)
        if make_url(url).get_backend_name() == "sqlite"
        else PostgreSQL(url)
    )


class PostgreSQL:
    """A pool of connections. Its clock is the server's, so that leases mean the same to all its clients."""

    def __init__(self, url: str) -> None:
        self._ahead = 0.0
        limits = f"-c statement_timeout={BUSY_SECONDS}s -c idle_in_transaction_session_timeout={BUSY_SECONDS}s"
        self._engine = create_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            pool_pre_ping=True,  # a restarted server costs nobody an answer
            pool_use_lifo=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": 10,
                "application_name": "chatgpt-webapi",
                "options": limits,
            },
        )
        event.listen(self._engine, "connect", self._measure)

    def _measure(self, connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            before = time.time()
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            self._ahead = float(cursor.fetchone()[0]) - (before + time.time()) / 2
        connection.rollback()

    def clock(self) -> float:
        return time.time() + self._ahead

    def insert(self, table: Any) -> Any:
        return postgresql.insert(table)

    def read(self, work: Work[T]) -> T:
        return self.write(work)

    def write(self, work: Work[T]) -> T:
        with told_as_ours(), self._engine.begin() as connection:
            return work(connection)

    def prepare(self, work: Work[None]) -> None:
        def locked(connection: Connection) -> None:
            connection.execute(
                text("SET LOCAL statement_timeout = 0")
            )  # a large table's change takes its time
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": START_LOCK}
            )
            work(connection)

        self.write(locked)

    def erase(self) -> None:
        """Its own vacuum does that."""

    def close(self) -> None:
        self._engine.dispose()


class SQLite:
    """One file, in two native threads."""

    def __init__(self, url: str, native: Callable[[], Run]) -> None:
        self._run_read = native()
        self._writing = _engine(url, "BEGIN IMMEDIATE")
        self._reading = _engine(url, "BEGIN")
        self._writer = Writer(self._writing, native())

    def clock(self) -> float:
        return time.time()

    def insert(self, table: Any) -> Any:
        return sqlite.insert(table)

    def read(self, work: Work[T]) -> T:
        def run() -> T:
            with told_as_ours(), self._reading.begin() as connection:
                return work(connection)

        result: T = self._run_read(run)
        return result

    def write(self, work: Work[T]) -> T:
        return self._writer(work)

    def prepare(self, work: Work[None]) -> None:
        self.write(work)

    def erase(self) -> None:
        self._writer.checkpoint()

    def close(self) -> None:
        self._reading.dispose()
        self._writing.dispose()


def _engine(url: str, begin: str) -> Engine:
    path = make_url(url).database or ""
    if path:
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            Path(path).touch(mode=0o600)  # its log gets the same mode
        except OSError as error:
            message = f"The database cannot be used: {path}: {error.strerror}. Look at DATABASE_URL, or DATA_DIR."
            raise StoreFailed(message) from error
    # One connection that stays open; check_same_thread: the thread that opened it is not always the one that closes it.
    given = {"check_same_thread": False, "timeout": BUSY_SECONDS}
    engine = create_engine(
        url, poolclass=StaticPool, hide_parameters=True, connect_args=given
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = (
            None  # sqlite3 would begin transactions by itself, and too late
        )
        connection.create_function(
            "lower", 1, _lower, deterministic=True
        )  # SQLite's own knows ASCII alone
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


@dataclass(eq=False)
class _Write(Generic[T]):
    work: Work[T]
    done: bool = False
    result: T | None = None
    error: BaseException | None = None


class Writer:
    """Commits in groups: whoever comes to the turn commits all that is waiting, its own and the others'."""

    def __init__(self, engine: Engine, run: Run) -> None:
        self._engine = engine
        self._run = run
        self._waiting: deque[_Write[Any]] = deque()
        self._turn = Lock()
        self._log_is_due = False

    def __call__(self, work: Work[T]) -> T:
        write = _Write(work)
        self._waiting.append(write)
        with self._turn:
            if not write.done:
                group = [
                    self._waiting.popleft()
                    for _ in range(min(len(self._waiting), LARGEST_COMMIT))
                ]
                self._run(lambda: self._commit(group))
            if not write.done:  # more were waiting than one commit takes
                self._waiting.remove(write)
                self._run(lambda: self._commit([write]))
            if self._log_is_due:
                self._run(self._empty_log)
        if write.error is not None:
            raise write.error
        return write.result  # type: ignore[return-value]

    def checkpoint(self) -> None:
        """Write the log back into the file and empty it, so that what was deleted is in neither.

        While another program reads the old state, or the disk is full, that cannot be; it is tried again after each of
        the next writes.
        """
        with self._turn:
            self._run(self._empty_log)

    def _empty_log(self) -> None:
        connection = self._engine.raw_connection()
        cursor = connection.cursor()
        self._log_is_due = True
        try:
            cursor.execute("PRAGMA busy_timeout=0")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            ((busy, _, _),) = cursor.fetchall()
            self._log_is_due = bool(busy)
        except sqlite3.Error as error:
            log.warning("The database's log could not be emptied: %s", error)
        finally:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
            cursor.close()
            connection.close()

    def _commit(self, group: list[_Write[Any]]) -> None:
        failure: BaseException = StoreFailed()
        committed = False
        try:
            with told_as_ours(), self._engine.begin() as connection:
                if (
                    len(group) == 1
                ):  # no savepoint is needed: the whole transaction is its own
                    group[0].result = group[0].work(connection)
                else:
                    for write in group:
                        _attempt(connection, write)
            committed = True
        except RelayError as error:
            failure = error
        finally:
            for write in group:
                write.done = True
                if not committed:
                    write.error = write.error or failure


def _attempt(connection: Connection, write: _Write[Any]) -> None:
    """One write of a group, undone alone if it fails."""
    try:
        with told_as_ours(), connection.begin_nested():
            write.result = write.work(connection)
    except RelayError as error:
        write.error = error
