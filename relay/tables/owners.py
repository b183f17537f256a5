"""Owners in the database: when each last asked, and how many conversations each has.

Each function works on a connection of the caller's own transaction. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from relay.schema import conversations, owners

_FORMER = conversations.c.owner == bindparam("former_owner")
_namesake = conversations.alias("namesake")
_NAMES_OF_OWNER = select(_namesake.c.name).where(
    _namesake.c.owner == bindparam("new_owner"), _namesake.c.name.is_not(None)
)

COUNT_CONVERSATIONS = (
    select(conversations.c.owner, func.count())
    .group_by(conversations.c.owner)
    .order_by(conversations.c.owner)
)
SELECT_LAST_ASKS = select(owners.c.owner, owners.c.last_asked)
CLEAR_TAKEN_NAMES = (
    update(conversations)
    .where(_FORMER, conversations.c.name.in_(_NAMES_OF_OWNER))
    .values(name=None)
)
GIVE_CONVERSATIONS = (
    update(conversations).where(_FORMER).values(owner=bindparam("new_owner"))
)


def build_note_ask(insert: Any) -> Any:
    """The statement that notes an ask. Parameters: owner, last_asked.

    `insert`: an INSERT into the table, in the database's own dialect, that has ON CONFLICT.
    """
    columns = ("owner", "last_asked")
    statement = insert.values({column: bindparam(column) for column in columns})
    return statement.on_conflict_do_update(
        index_elements=["owner"],
        set_={"last_asked": statement.excluded.last_asked},
    )


def count_conversations(connection: Connection) -> dict[str, int]:
    """The number of conversations of each owner that has any."""
    rows = connection.execute(COUNT_CONVERSATIONS)
    return {owner: count for owner, count in rows}


def select_last_asks(connection: Connection) -> dict[str, float]:
    """When each owner last asked, to the minute."""
    rows = connection.execute(SELECT_LAST_ASKS)
    return {owner: last_asked for owner, last_asked in rows}


def give_conversations(
    connection: Connection, former_owner: str, owner: str
) -> tuple[int, int]:
    """Make all conversations of one owner another's: how many there were, and how many of them lost their names.

    One whose name the new owner uses already loses it.
    """
    parameters = {"former_owner": former_owner, "new_owner": owner}
    nameless = connection.execute(CLEAR_TAKEN_NAMES, parameters).rowcount
    return connection.execute(GIVE_CONVERSATIONS, parameters).rowcount, nameless
