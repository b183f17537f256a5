"""Refresh tokens in the database, with the access tokens that they got, and the pool's access tokens.

Each function works on a connection of the caller's own transaction. Times are seconds since 1970.

A row is found by its id, which only who shows the refresh token knows: SHA-256 of the token as it was first given.
`refresh_token` is the current one. `began`: when an exchange began whose outcome is not known. `dead`: the code by
which the token server said that it gives no access token any more. `updated`: when it was last used, to the day.
An access token of the pool that has no refresh token has "" as such. `workspace`: see `relay.accounts.Account`.
"""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from relay.schema import tokens

COLUMNS = tuple(column.name for column in tokens.columns)

_THIS = tokens.c.id == bindparam("token_id")

SELECT_TOKEN = select(tokens).where(_THIS)
SELECT_OF_SOURCE = (
    select(tokens)
    .where(tokens.c.source == bindparam("token_source"))
    .order_by(tokens.c.updated)
)
UPDATE_TOKEN = update(tokens).where(_THIS)
DELETE_TOKEN = delete(tokens).where(_THIS)
DELETE_UNUSED = delete(tokens).where(
    tokens.c.source == bindparam("token_source"),
    tokens.c.updated <= bindparam("before"),
)


def build_put_token(insert: Any) -> Any:
    """The statement that adds a row, or replaces it. Its parameters are the columns.

    `insert`: an INSERT into the table, in the database's own dialect, that has ON CONFLICT.
    """
    statement = insert.values({column: bindparam(column) for column in COLUMNS})
    replaced = {column: statement.excluded[column] for column in COLUMNS[1:]}
    return statement.on_conflict_do_update(index_elements=["id"], set_=replaced)


def select_token(connection: Connection, token_id: str) -> Row[Any] | None:
    return connection.execute(SELECT_TOKEN, {"token_id": token_id}).first()


def select_of_source(connection: Connection, source: str) -> list[Row[Any]]:
    """All rows of a source, the one that was used least recently first."""
    return list(connection.execute(SELECT_OF_SOURCE, {"token_source": source}))


def update_token(
    connection: Connection, token_id: str, changes: dict[str, Any]
) -> None:
    connection.execute(UPDATE_TOKEN, {"token_id": token_id, **changes})


def delete_token(connection: Connection, token_id: str) -> bool:
    """Delete a row; whether there was one."""
    return connection.execute(DELETE_TOKEN, {"token_id": token_id}).rowcount > 0


def delete_of_source(connection: Connection, source: str) -> int:
    """Delete all rows of a source; how many there were."""
    return delete_unused(connection, source, math.inf)


def delete_unused(connection: Connection, source: str, before: float) -> int:
    """Delete the rows of a source that were last used before this moment; how many there were."""
    parameters = {"token_source": source, "before": before}
    return connection.execute(DELETE_UNUSED, parameters).rowcount
