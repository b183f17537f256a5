"""Who rests, in the database. Each function works on a connection of the caller's own transaction.

Times are seconds since 1970. A row's key is a `relay.accounts.Scope`; `code` is that of the error.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select

from relay.schema import rests

COLUMNS = tuple(column.name for column in rests.columns)
KEY = COLUMNS[:3]

SELECT_RESTS = select(rests).where(rests.c.until > bindparam("now"))
DELETE_REST = delete(rests).where(
    *(rests.c[column] == bindparam(f"the_{column}") for column in KEY)
)
DELETE_ENDED = delete(rests).where(rests.c.until <= bindparam("now"))


def build_put_rest(insert: Any) -> Any:
    """The statement that adds a row, or replaces it. Its parameters are the columns.

    `insert`: an INSERT into the table, in the database's own dialect, that has ON CONFLICT.
    """
    statement = insert.values({column: bindparam(column) for column in COLUMNS})
    replaced = {column: statement.excluded[column] for column in COLUMNS[3:]}
    return statement.on_conflict_do_update(index_elements=KEY, set_=replaced)


def select_rests(connection: Connection, now: float) -> list[Row[Any]]:
    return list(connection.execute(SELECT_RESTS, {"now": now}))


def delete_rest(connection: Connection, account: str, model: str, token: str) -> None:
    values = {"the_account": account, "the_model": model, "the_token": token}
    connection.execute(DELETE_REST, values)


def delete_ended(connection: Connection, now: float) -> None:
    connection.execute(DELETE_ENDED, {"now": now})
