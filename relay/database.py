"""Transactions on SQLite or PostgreSQL; no other module tells the two apart.

SQLite: reading and writing have one connection each, used by one native thread each, so that neither
the event loop nor a reader waits for the disk or for another process's write lock. WAL lets both work
at the same time; with synchronous=NORMAL a kill loses nothing and a power cut at most the last
commits (sqlite.org/wal.html).

PostgreSQL: a small pool. psycopg waits for its sockets in select, which gevent patches, so only the
calling greenlet waits. The pool can be small because a turn needs a connection twice, for a
millisecond each time. A pooler may stand between (PgBouncer): it gives each transaction any of the
server's connections, so nothing may outlast a transaction, neither a setting nor a prepared
statement (pgbouncer.org/features.html).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection, StaticPool

from relay.database_errors import met_full_disk, refused_start, translate_errors
from relay.errors import RelayError, StoreFailed
from relay.server import Run

log = logging.getLogger(__name__)

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], T]

BUSY_SECONDS = 8  # how long a write waits for another process's lock: less than a lease lives unrenewed
LARGEST_COMMIT = 100
LARGEST_LOG = 4 * 2**20  # bytes that SQLite's log keeps on disk once it is written back
ERASE_SECONDS = (
    2.0  # how long what is erased soon waits, so that many are erased at once
)
OTHERS = 0o077  # the bits of a file's mode that let others than its owner use it
POOL_SIZE = 10
POOL_SECONDS = 20  # how long a turn waits for a connection of the pool
START_LOCK = 0x63772D776562  # of pg_advisory_xact_lock, while the tables are made
_LIMIT_TIME = (
    f"SELECT set_config('statement_timeout', '{BUSY_SECONDS}s', %(is_local)s),"
    f" set_config('idle_in_transaction_session_timeout', '{BUSY_SECONDS}s', %(is_local)s)"
)  # is_local: for the transaction alone


class Database(Protocol):
    """Runs work in transactions.

    All methods may be called from any thread or greenlet, at the same time. `work` gets a connection
    that is valid during the call alone, may run in another thread, and may be one of several works
    of one transaction: it uses nothing but SQL that can be undone. All methods but `clock` and
    `insert` may block for disk, locks or network, and raise StoreFailed where the database cannot
    be used; a RelayError of `work` undoes it and is raised again. Whoever opened the database
    closes it.
    """

    def clock(self) -> float:
        """Seconds since 1970, the same for all processes that share the database. Does not block."""

    def insert(self, table: Any) -> Any:
        """An INSERT statement of the database's own dialect, which has ON CONFLICT. Does not block."""

    def read(self, work: Work[T]) -> T:
        """The result of `work`, which only reads."""

    def write(self, work: Work[T]) -> T:
        """The result of `work`, once it is committed."""

    def prepare(self, work: Work[None]) -> None:
        """Write while no other process prepares. Called once, before any other work."""

    def erase(self) -> None:
        """Remove deleted text from the database's files too, as far as the database allows."""

    def erase_soon(self) -> None:
        """As `erase`, in the background within a few seconds: once for many calls. Does not block."""

    def close(self) -> None:
        """Close all connections. Called once, after the last work has ended."""


def open_database(url: str, native: Callable[[], Run]) -> Database:
    """The database that a URL names. `native`: makes a runner with a thread of its own. Raises StoreFailed."""
    if make_url(url).get_backend_name() == "sqlite":
        return SQLite(url, native)
    return PostgreSQL(url)


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite database; None for any other database, and for one in memory."""
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    if not is_file or parsed.database == ":memory:":
        return None
    return Path(str(parsed.database))


class PostgreSQL:
    """A pool of connections. Its clock is the server's, so that leases mean the same to all clients."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clock_offset = 0.0
        self._engine = create_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            pool_pre_ping=True,  # after a restart of the server no request fails
            pool_use_lifo=True,
            hide_parameters=True,
            connect_args={"connect_timeout": 10, "application_name": "chatgpt-webapi"},
        )
        event.listen(self._engine, "connect", self._set_up)
        self._engine.dialect.do_begin = _begin  # type: ignore[method-assign]

    def _set_up(self, connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            before = time.time()
            cursor.execute(
                "SELECT extract(epoch FROM clock_timestamp()), pg_backend_pid()"
            )
            after = time.time()
            server_time, process = cursor.fetchone()
            self._clock_offset = float(server_time) - (before + after) / 2
            # a pooler names a process of its own making
            if process != connection.info.backend_pid:
                connection.prepare_threshold = None  # see `_begin`
            else:
                cursor.execute(_LIMIT_TIME, {"is_local": False})
        connection.commit()

    def clock(self) -> float:
        return time.time() + self._clock_offset

    def insert(self, table: Any) -> Any:
        from sqlalchemy.dialects import postgresql  # 2 MB that SQLite has no use for

        return postgresql.insert(table)

    def read(self, work: Work[T]) -> T:
        return self.write(work)

    def write(self, work: Work[T]) -> T:
        with translate_errors(), self._engine.begin() as connection:
            return work(connection)

    def prepare(self, work: Work[None]) -> None:
        def locked(connection: Connection) -> None:
            # to change a large table takes long
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": START_LOCK}
            )
            work(connection)

        try:
            self.write(locked)
        except RelayError as failure:
            raise refused_start(failure, self._url) from failure.__cause__

    def erase(self) -> None:
        """Nothing to do: the server's own vacuum does that."""

    def erase_soon(self) -> None:
        """Nothing to do, as for `erase`."""

    def close(self) -> None:
        self._engine.dispose()


def _begin(dbapi_connection: PoolProxiedConnection) -> None:
    """By way of a pooler each transaction sets its limits, and nothing is prepared."""
    driver: Any = dbapi_connection
    if driver.prepare_threshold is None:
        with contextlib.closing(driver.cursor()) as cursor:
            cursor.execute(_LIMIT_TIME, {"is_local": True})


class SQLite:
    """One file: one thread reads, one writes, each with a connection of its own."""

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
            with translate_errors(), self._reading.begin() as connection:
                return work(connection)

        result: T = self._run_read(run)
        return result

    def write(self, work: Work[T]) -> T:
        return self._writer(work)

    def prepare(self, work: Work[None]) -> None:
        self.write(work)
        self.erase()  # what a process that was killed had no time to erase

    def erase(self) -> None:
        self._writer.checkpoint()

    def erase_soon(self) -> None:
        self._writer.checkpoint_soon()

    def close(self) -> None:
        self._writer.close()
        self._reading.dispose()
        self._writing.dispose()


def _engine(url: str, begin: str) -> Engine:
    """An engine with one connection that stays open. `begin`: the statement that begins its transactions."""
    path = make_url(url).database
    if path:
        _create_file(Path(path))
    # the thread that opened the connection is not always the one that closes it
    connect_args = {"check_same_thread": False, "timeout": BUSY_SECONDS}
    engine = create_engine(
        url, poolclass=StaticPool, hide_parameters=True, connect_args=connect_args
    )
    event.listen(engine, "connect", _set_up_connection)

    def begin_transaction(dbapi_connection: PoolProxiedConnection) -> None:
        dbapi_connection.cursor().execute(begin)

    # with SQLAlchemy's event for it, each statement would look for listeners of all kinds
    engine.dialect.do_begin = begin_transaction  # type: ignore[method-assign]
    return engine


def _create_file(path: Path) -> None:
    """Create the database's file for its owner alone. Raises StoreFailed, also where others may read it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # its log gets the same mode
    except OSError as error:
        raise StoreFailed(
            f"The database cannot be used: {path}: {error.strerror}. Look at DATABASE_URL, or DATA_DIR."
        ) from error
    check_private(path)


def check_private(path: Path) -> None:
    """Raise StoreFailed where others than its owner may use a file or folder. One that is not there is private."""
    try:
        status = path.stat()
    except OSError:
        return
    if not status.st_mode & OTHERS:
        return
    mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
    raise StoreFailed(
        f"{path} can be read by others than its owner. Say: chmod {mode} {path}"
    )


def _set_up_connection(connection: Any, _record: object) -> None:
    # sqlite3 would begin transactions by itself, and too late
    connection.isolation_level = None
    # SQLite's own `lower` knows only ASCII
    connection.create_function("lower", 1, _lower, deterministic=True)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "secure_delete=ON",
        f"journal_size_limit={LARGEST_LOG}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _lower(value: object) -> object:
    if isinstance(value, str):
        return value.lower()
    return value


@dataclass(eq=False)
class _Write(Generic[T]):
    """A work that waits for its commit, then its result or error."""

    work: Work[T]
    done: bool = False
    result: T | None = None
    error: BaseException | None = None

    def begin_anew(self) -> None:
        """Forget the error of an attempt. Its frames hold it, and all works of the attempt."""
        if isinstance(self.error, RelayError):
            self.error.drop_frames()
        self.error = None


class Writer:
    """Commits in groups: the caller whose turn it is commits all works that are waiting, also the others'."""

    def __init__(self, engine: Engine, run: Run) -> None:
        self._engine = engine
        self._run = run
        self._waiting: deque[_Write[Any]] = deque()
        self._connection: Connection | None = None
        self._commit_lock = Lock()
        self._log_is_due = False
        self._has_written = False
        self._closed = False
        self._timer: Timer | None = None
        self._timer_lock = Lock()

    def __call__(self, work: Work[T]) -> T:
        """The result of `work`, once it is committed. Raises RelayError."""
        write = _Write(work)
        self._waiting.append(write)
        with self._commit_lock:
            if not write.done:
                size = min(len(self._waiting), LARGEST_COMMIT)
                group = [self._waiting.popleft() for _ in range(size)]
                self._run(lambda: self._commit(group))
            if not write.done:  # more were waiting than one commit takes
                self._waiting.remove(write)
                self._run(lambda: self._commit([write]))
            if met_full_disk(write.error):
                self._try_again(write)
            if self._log_is_due:
                self._run(self._empty_log)
        if write.error is not None:
            raise write.error
        return write.result  # type: ignore[return-value]

    def _try_again(self, write: _Write[Any]) -> None:
        """Commit a write that found the disk full, in the room that the WAL takes: a delete needs little more."""
        self._run(self._empty_log)
        write.begin_anew()
        self._run(lambda: self._commit([write]))

    def checkpoint(self) -> None:
        """Write the WAL back into the file and empty it, so that deleted text is in neither.

        That fails while another program reads the old state, or the disk is full; it is tried again
        after each of the next writes.
        """
        with self._commit_lock:
            if not self._closed:
                self._run(self._empty_log)

    def checkpoint_soon(self) -> None:
        """Have a `checkpoint` within ERASE_SECONDS, in a thread of its own: one for all calls until then."""
        with self._timer_lock:
            if self._timer is not None:
                return
            self._timer = Timer(ERASE_SECONDS, self._checkpoint_now)
            self._timer.daemon = True
            self._timer.start()

    def _checkpoint_now(self) -> None:
        with self._timer_lock:
            self._timer = None
        self.checkpoint()

    def close(self) -> None:
        """Do what is due. Nothing is written afterwards."""
        with self._timer_lock:
            timer = self._timer
        if timer is not None:
            timer.cancel()
        if self._has_written:
            self.checkpoint()  # the file alone has everything, whoever else has it open
        with self._commit_lock:
            self._closed = True
            self._disconnect()

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
        """Commit all of them in one transaction; where one fails, it alone is undone."""
        try:
            if not self._commit_by(_execute_plainly, group) and len(group) > 1:
                for write in group:
                    write.begin_anew()
                self._commit_by(_execute_in_savepoints, group)
        finally:
            for write in group:
                write.done = True

    def _commit_by(
        self,
        execute: Callable[[Connection, list[_Write[Any]]], None],
        group: list[_Write[Any]],
    ) -> bool:
        """Whether they are committed; else each has its error."""
        failure: BaseException = StoreFailed()
        committed = False
        try:
            with translate_errors(), self._connected().begin():
                execute(self._connected(), group)
            committed = True
            self._has_written = True
        except RelayError as error:
            failure = error
        finally:
            if not committed:
                self._disconnect()
                for write in group:
                    write.error = write.error or failure
        return committed

    def _connected(self) -> Connection:
        """The connection of all writes: to take it anew for each would cost as much as a statement."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        """After a failure the next write begins anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.close()


def _execute_plainly(connection: Connection, group: list[_Write[Any]]) -> None:
    for write in group:
        write.result = write.work(connection)


def _execute_in_savepoints(connection: Connection, group: list[_Write[Any]]) -> None:
    for write in group:
        _execute_in_savepoint(connection, write)


def _execute_in_savepoint(connection: Connection, write: _Write[Any]) -> None:
    """One write of a group, undone alone if it fails."""
    try:
        with translate_errors(), connection.begin_nested():
            write.result = write.work(connection)
    except RelayError as error:
        write.error = error
