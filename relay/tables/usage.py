"""The usage of each owner, by day, upstream and model.

Each function works on a connection of the caller's own transaction. Days are texts, as in 2026-12-31.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select

from relay.domain import UsageQuery, UsageRow
from relay.schema import usage

#: the column of each field of `UsageRow` that rows are told apart by
PLACES = {
    "day": usage.c.day,
    "key": usage.c.owner,
    "upstream": usage.c.upstream,
    "model": usage.c.model,
}
COUNTS = (
    "asks",
    "errors",
    "cancelled",
    "prompt_tokens",
    "completion_tokens",
    "estimated_tokens",
)
_SUMS = [func.sum(usage.c[name]).label(name) for name in COUNTS]

DELETE_BEFORE = delete(usage).where(usage.c.day < bindparam("first_day"))
TAKE_OWNED = (
    delete(usage)
    .where(usage.c.owner == bindparam("former_owner"))
    .returning(*[column.label(name) for name, column in PLACES.items()])
    .returning(*[usage.c[name] for name in COUNTS])
)


def build_add_usage(insert: Any) -> Any:
    """The statement that adds a row's counts to those that are there. Parameters: as `UsageRow`'s fields.

    `insert`: an INSERT into the table, in the database's own dialect, that has ON CONFLICT.
    """
    places: dict[str, Any] = {
        column.name: bindparam(name) for name, column in PLACES.items()
    }
    counts: dict[str, Any] = {name: bindparam(name) for name in COUNTS}
    statement = insert.values({**places, **counts})
    sums = {name: usage.c[name] + statement.excluded[name] for name in COUNTS}
    return statement.on_conflict_do_update(index_elements=list(places), set_=sums)


def add_usage(connection: Connection, statement: Any, rows: Sequence[UsageRow]) -> None:
    """Add the rows' counts. `statement`: that of `build_add_usage`.

    In one order, so that no two processes wait for each other's rows.
    """
    if rows:
        ordered = sorted(
            rows, key=lambda row: (row.key, row.day, row.upstream, row.model)
        )
        connection.execute(statement, [row._asdict() for row in ordered])


def select_usage(
    connection: Connection, query: UsageQuery, owner: str | None, most: int
) -> list[UsageRow]:
    """The sums, `most` rows at most, in the order of `query.by`. `owner`: whose; None: everybody's."""
    columns = [PLACES[name] for name in query.by]
    labels = [PLACES[name].label(name) for name in query.by]
    statement = select(*labels, *_SUMS).where(
        usage.c.day.between(query.first, query.last)
    )
    if owner is not None:
        statement = statement.where(usage.c.owner == owner)
    statement = statement.group_by(*columns).order_by(*columns).limit(most)
    rows = connection.execute(statement.having(func.count() > 0)).mappings()
    return [_to_row(row) for row in rows]


def _to_row(row: Any) -> UsageRow:
    counts = {name: int(row[name]) for name in COUNTS}  # PostgreSQL's sums are decimals
    return UsageRow(**{**row, **counts})


def delete_before(connection: Connection, day: str) -> int:
    """Delete the rows of earlier days; how many there were."""
    return connection.execute(DELETE_BEFORE, {"first_day": day}).rowcount


def give_usage(
    connection: Connection, statement: Any, former_owner: str, owner: str
) -> int:
    """Make all usage of one owner another's; how many rows there were. `statement`: as for `add_usage`."""
    taken = connection.execute(TAKE_OWNED, {"former_owner": former_owner}).mappings()
    rows = [_to_row(row)._replace(key=owner) for row in taken]
    add_usage(connection, statement, rows)
    return len(rows)
