"""Leases in the database: rows with a name, a holder and an expiry.

Each function works on a connection of the caller's own transaction. A lease ends by itself when its
holder dies; while its holder lives, it is renewed. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import Connection, bindparam, delete, select, text, update

from relay.schema import leases
from relay.tables.prepared import Prepared

# Statements are built once: building one costs several times as much as running it.
SELECT_LEASE_HOLDER = select(leases.c.holder).where(
    leases.c.name == bindparam("lease_name"), leases.c.expires > bindparam("now")
)
# a row that is locked is being deleted or looked at: it is renewed the next time
LOCK_HELD_LEASES = (
    select(leases.c.name)
    .where(leases.c.holder.in_(bindparam("holders", expanding=True)))
    .order_by(leases.c.name)
    .with_for_update(skip_locked=True)
)
UPDATE_LEASES = update(leases).where(
    leases.c.name.in_(bindparam("lease_names", expanding=True))
)
DELETE_LEASE = Prepared(
    delete(leases).where(
        leases.c.name == bindparam("lease_name"),
        leases.c.holder == bindparam("lease_holder"),
    )
)
DELETE_ANY_LEASE = delete(leases).where(leases.c.name == bindparam("lease_name"))
#: as text, because each kind of database has an INSERT of its own with ON CONFLICT
TAKE_LEASE = Prepared(
    text(
        "INSERT INTO leases (name, holder, expires) VALUES (:name, :holder, :expires) "
        "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires = excluded.expires "
        "WHERE leases.expires <= :now RETURNING name"
    )
)
DELETE_OLD_LEASES = delete(leases).where(leases.c.expires <= bindparam("before"))


def select_lease_holder(connection: Connection, name: str, now: float) -> str | None:
    """Who has the lease; None where it is free or expired."""
    parameters = {"lease_name": name, "now": now}
    return connection.execute(SELECT_LEASE_HOLDER, parameters).scalar()


def renew_leases(
    connection: Connection,
    holders: Collection[str],
    clock: Callable[[], float],
    seconds: float,
) -> None:
    """Keep all leases of `holders` for `seconds` from the moment at which they are locked."""
    held = connection.execute(LOCK_HELD_LEASES, {"holders": list(holders)})
    names = list(held.scalars())
    expires = clock() + seconds
    connection.execute(UPDATE_LEASES, {"lease_names": names, "expires": expires})


def take_lease(
    connection: Connection, name: str, holder: str, now: float, seconds: float
) -> bool:
    """Take the lease for `seconds`, or take over an expired one; whether that was possible."""
    parameters = {"name": name, "holder": holder, "expires": now + seconds, "now": now}
    return bool(TAKE_LEASE.rows(connection, parameters))


def delete_lease(connection: Connection, name: str, holder: str) -> None:
    """Delete the lease if `holder` has it."""
    DELETE_LEASE.run(connection, {"lease_name": name, "lease_holder": holder})


def delete_any_lease(connection: Connection, name: str) -> None:
    """Delete the lease, whoever has it."""
    connection.execute(DELETE_ANY_LEASE, {"lease_name": name})


def delete_old_leases(connection: Connection, before: float) -> None:
    """Delete the leases that expired before this moment."""
    connection.execute(DELETE_OLD_LEASES, {"before": before})
