"""What SQLite and PostgreSQL say of their failures, as errors of ours."""

from __future__ import annotations

import logging
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import make_url
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    OperationalError,
    SQLAlchemyError,
)

from relay.errors import RelayError, StoreFailed

log = logging.getLogger(__name__)

DISK_FULL = (
    "The database's disk is full: nothing was stored. Make room on the disk of DATA_DIR "
    "(or of PostgreSQL): other files there must go first."
)
#: PostgreSQL's SQLSTATEs
_FULL_STATE = "53100"
_MISSING_RIGHT = "42501"
#: what PostgreSQL's words mean at a start -> what to do, with the user and the name of the database
_HINTS = {
    r'database ".*" does not exist': "To make it: createdb -O {user} {name}",
    r"permission denied for (schema|database)": (
        "Its user must own the database. To make one that it owns: createdb -O {user} "
        "{name}; for one that exists: ALTER DATABASE ... OWNER TO ..."
    ),
    r'role ".*" does not exist': "To make it: createuser -P {user}",
    r"password authentication failed|no password supplied": (
        "Look at the password in DATABASE_URL; in it, : / @ and % are written as %3A "
        "%2F %40 and %25."
    ),
}


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raises StoreFailed for any error of SQLAlchemy, and logs the cause without the texts it may quote."""
    try:
        yield
    except SQLAlchemyError as error:
        log.warning(
            "The database failed: %s %s", type(error).__name__, _safe_reason(error)
        )
        raise StoreFailed(DISK_FULL if _is_full(error) else "") from error


def _safe_reason(error: SQLAlchemyError) -> str:
    """The cause's first line; empty for errors that may quote messages of a conversation."""
    # these two classes speak of files, locks and servers
    is_safe = type(error) in (OperationalError, DatabaseError)
    if not is_safe and _sqlstate(error) != _MISSING_RIGHT:
        return ""
    cause = str(getattr(error, "orig", error))
    return cause.partition("\n")[0]


def _sqlstate(error: SQLAlchemyError) -> str | None:
    """The cause's SQLSTATE; None of what is not PostgreSQL's."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _is_full(error: BaseException | None) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    is_sqlite = isinstance(error.orig, sqlite3.Error)
    if is_sqlite and "disk is full" in str(error.orig):
        return True
    return _sqlstate(error) == _FULL_STATE


def met_full_disk(failure: BaseException | None) -> bool:
    """Whether this is a StoreFailed of `translate_errors` for want of room on the disk."""
    return isinstance(failure, StoreFailed) and _is_full(failure.__cause__)


def refused_start(failure: RelayError, url: str) -> RelayError:
    """A failure of the first transaction with PostgreSQL's own words, and what to do, where those may be shown."""
    cause = failure.__cause__
    if not isinstance(cause, DBAPIError):
        return failure
    words = _safe_reason(cause)
    if not words:
        return failure
    known = make_url(url)
    if known.password:
        words = words.replace(str(known.password), "...")
    sentence = f"PostgreSQL cannot be used: {words.rstrip('.')}."
    for pattern, hint in _HINTS.items():
        if re.search(pattern, words):
            user = shlex.quote(known.username or "USER")
            name = shlex.quote(known.database or "NAME")
            return StoreFailed(f"{sentence} {hint.format(user=user, name=name)}")
    return StoreFailed(sentence)
