"""A SQLite database copied to a file and back, whether or not a service uses it. PostgreSQL has programs of its own."""

from __future__ import annotations

import fcntl
import os
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, make_url

from relay.database import BUSY_SECONDS, sqlite_path
from relay.errors import StoreFailed
from relay.schema import NEWEST_VERSION
from relay.values import frozen

# where SQLite locks a database's file; with a log, each connection has a lock on the last 510 of these bytes
LOCK_START = 0x40000000
LOCK_LENGTH = 512
OUR_TABLES = {"conversations", "messages", "leases"}


@frozen
class Restored:
    """What a restore did. `former`: where the database is that was there before, if there was one."""

    conversations: int
    database: Path
    former: Path | None


def postgresql_line(url: str, program: str, file: Path) -> str | None:
    """The shell line that does it for a PostgreSQL database, without its password; None for SQLite.

    `program`: pg_dump or pg_restore.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return None
    address = URL.create(
        "postgresql",
        username=parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.difference_update_query(["password"]).query,
    )
    text = address.render_as_string()
    options = {
        "pg_dump": ["--format=custom", f"--file={file}", text],
        "pg_restore": ["--clean", "--if-exists", f"--dbname={text}", str(file)],
    }
    return shlex.join([program, *options[program]])


def back_up(url: str, target: Path) -> int:
    """Copy a SQLite database to a new file, which only its owner may read; the number of its conversations.

    A service may use the database meanwhile. Raises StoreFailed.
    """
    source = _path_of(url)
    if not source.exists():
        raise StoreFailed(f"There is no database at {source}.")
    if os.path.lexists(target):
        raise StoreFailed(f"{target} exists already: name a new file.")
    with _draft_beside(target) as draft:
        _copy(f"{_uri(source)}?mode=rw", draft)
        count = _count_conversations(draft)
        draft.rename(target)
    return count


def restore(url: str, source: Path) -> Restored:
    """Put a backup in the place of a SQLite database. What was there stays beside it under another name.

    Raises StoreFailed for a file that is no backup of this service or of a newer version's, and
    where a service has the database open.
    """
    database = _path_of(url)
    if not source.is_file():
        raise StoreFailed(f"There is no file {source}.")
    if database.exists() and database.samefile(source):
        raise StoreFailed(f"{source} is the database itself.")
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _draft_beside(database) as draft:
        has_log = Path(f"{source}-wal").exists()
        # nobody writes to a file without a log, so its folder need not be writable
        options = "mode=ro" if has_log else "mode=ro&immutable=1"
        _copy(f"{_uri(source)}?{options}", draft)
        count = _count_conversations(draft)
        _keep_owner(database, draft)
        with _unused(database):
            former = _set_aside(database)
            draft.rename(database)
    return Restored(count, database, former)


def _path_of(url: str) -> Path:
    path = sqlite_path(url)
    if path is None:
        raise StoreFailed("The database is in memory alone: there is no file of it.")
    return path


def _uri(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}"


@contextmanager
def _draft_beside(path: Path) -> Iterator[Path]:
    """A file of a temporary name in the folder of another; it is removed unless it was renamed. Raises StoreFailed."""
    folder = path.absolute().parent
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}-")
    except OSError as error:  # it names a file that nobody knows
        raise StoreFailed(
            f"No file can be made in {folder}: {error.strerror}."
        ) from error
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
    finally:
        for rest in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            rest.unlink(missing_ok=True)


def _copy(uri: str, target: Path) -> None:
    """Copy a database as it is at one moment, its log included, and check the copy. Raises StoreFailed."""
    try:
        with (
            closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            problems = copy.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.Error as error:
        raise StoreFailed(f"The database cannot be copied: {error}.") from error
    if problems != [("ok",)]:
        reason = " ".join(str(problems[0][0]).split())
        raise StoreFailed(f"The database is damaged: {reason}")


def _count_conversations(path: Path) -> int:
    """How many conversations a database has. Raises StoreFailed for one that this version cannot use."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows}
        if not tables >= OUR_TABLES:
            raise StoreFailed("That is no database of chatgpt-webapi.")
        version = 1
        if "schema_version" in tables:
            found = connection.execute("SELECT version FROM schema_version").fetchone()
            version = found[0] if found else 1
        if version > NEWEST_VERSION:
            raise StoreFailed(
                f"The database is of a newer version ({version}) than this service "
                f"({NEWEST_VERSION}): use the newer service."
            )
        (count,) = connection.execute("SELECT count(*) FROM conversations").fetchone()
        return int(count)


def _keep_owner(database: Path, draft: Path) -> None:
    """Give a new file to the owner of the one that it replaces, where root restores for another account."""
    if os.geteuid() != 0:
        return
    model = database if database.exists() else database.parent
    status = model.stat()
    os.chown(draft, status.st_uid, status.st_gid)


@contextmanager
def _unused(database: Path) -> Iterator[None]:
    """Holds SQLite's own locks, so that nobody uses the database meanwhile. Raises StoreFailed where somebody does."""
    if not database.exists():
        yield
        return
    with database.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCK_LENGTH, LOCK_START)
        except OSError:
            raise StoreFailed(
                f"{database} is in use: stop the service first."
            ) from None
        yield


def _set_aside(database: Path) -> Path | None:
    """Rename a database and its log, which goes with its name; its new name."""
    if not database.exists():
        return None
    at = time.strftime("%Y%m%d-%H%M%S")
    former = database.with_name(f"{database.name}.before-restore-{at}")
    if former.exists():
        raise StoreFailed(f"{former} exists already: try again in a second.")
    database.rename(former)
    with suppress(FileNotFoundError):
        Path(f"{database}-wal").rename(f"{former}-wal")
    Path(f"{database}-shm").unlink(missing_ok=True)
    return former
