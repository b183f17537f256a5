"""Leases in the database: rows with a name, a holder and an expiry.

Each function works on a connection of the caller's own transaction. A lease ends by itself when its
holder dies; while its holder lives, it is renewed. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from relay.schema import leases

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
DELETE_LEASE = delete(leases).where(
    leases.c.name == bindparam("lease_name"),
    leases.c.holder == bindparam("lease_holder"),
)
DELETE_ANY_LEASE = delete(leases).where(leases.c.name == bindparam("lease_name"))
DELETE_OLD_LEASES = delete(leases).where(leases.c.expires <= bindparam("before"))


def build_take_lease(insert: Any) -> Any:
    """The statement that takes a lease: it inserts one, or takes over an expired one.

    Parameters: name, holder, expires, now; it returns a row if it did. `insert`: an INSERT into the
    table, in the database's own dialect, that has ON CONFLICT.
    """
    columns = ("name", "holder", "expires")
    statement = insert.values({column: bindparam(column) for column in columns})
    taken_over = {
        "holder": statement.excluded.holder,
        "expires": statement.excluded.expires,
    }
    return statement.on_conflict_do_update(
        index_elements=["name"],
        set_=taken_over,
        where=leases.c.expires <= bindparam("now"),
    ).returning(leases.c.name)


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


def delete_lease(connection: Connection, name: str, holder: str) -> None:
    """Delete the lease if `holder` has it."""
    connection.execute(DELETE_LEASE, {"lease_name": name, "lease_holder": holder})


def delete_any_lease(connection: Connection, name: str) -> None:
    """Delete the lease, whoever has it."""
    connection.execute(DELETE_ANY_LEASE, {"lease_name": name})


def delete_old_leases(connection: Connection, before: float) -> None:
    """Delete the leases that expired before this moment."""
    connection.execute(DELETE_OLD_LEASES, {"before": before})
