"""Counters of changes in the database: a process compares them with those that it knows, and reads no more."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, bindparam, select

from relay.schema import revisions

#: what is counted: changes of the server's own accounts, and of who rests
Name: TypeAlias = Literal["accounts", "rests"]

SELECT_REVISIONS = select(revisions.c.name, revisions.c.number)


def build_count_change(insert: Any) -> Any:
    """The statement that counts one more change.

    `insert`: an INSERT into the table, in the database's own dialect, that has ON CONFLICT.
    """
    statement = insert.values(name=bindparam("name"), number=1)
    return statement.on_conflict_do_update(
        index_elements=["name"], set_={"number": revisions.c.number + 1}
    )


def count_change(connection: Connection, statement: Any, name: Name) -> None:
    """`statement`: of `build_count_change`."""
    connection.execute(statement, {"name": name})


def select_revisions(connection: Connection) -> dict[str, int]:
    """All counters that have counted anything."""
    return {row.name: row.number for row in connection.execute(SELECT_REVISIONS)}
