"""The index of conversations in the database: one row each, also for those whose text lives at an upstream.

Each function works on a connection of the caller's own transaction. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Text,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from relay.domain import Conversation, Node
from relay.errors import NoConversation
from relay.schema import conversations, leases, messages
from relay.tables.prepared import Prepared

EXPIRE_BATCH = 100  # conversations deleted in one transaction, where many are
_LEASE_PREFIX = "conversation/"
_NAME_LEASE_PREFIX = "name/"

# Statements are built once: building one costs several times as much as running it.
# The bind parameters of an UPDATE may not be named as its columns are.
_THIS_CONVERSATION = conversations.c.id == bindparam("conversation_id")
_THIS_OWNER = conversations.c.owner == bindparam("owner")
# lowered by the database, as the texts are: not every database lowers all letters
_PATTERN = func.lower(bindparam("pattern"))
_IN_TITLE = func.lower(conversations.c.title).like(_PATTERN, escape="\\")
_IN_NAME = func.lower(conversations.c.name).like(_PATTERN, escape="\\")
_IN_MESSAGES = exists().where(
    messages.c.conversation_id == conversations.c.id,
    func.lower(messages.c.text).like(_PATTERN, escape="\\"),
)
_LEASED_BY_HOLDER = exists().where(
    leases.c.name == bindparam("lease_name"),
    leases.c.holder == bindparam("lease_holder"),
)
_LEASED = exists().where(
    leases.c.name == _LEASE_PREFIX + conversations.c.id,
    leases.c.expires > bindparam("now"),
)

SELECT_CONVERSATION = select(conversations).where(_THIS_CONVERSATION)
# two turns that open at once see each other's end; SQLite does not need it
LOCK_CONVERSATION = SELECT_CONVERSATION.with_for_update()
SELECT_OWNED = SELECT_CONVERSATION.where(_THIS_OWNER)
_HAS_NAME = conversations.c.name == bindparam("name")
# a name comes before an id: whoever chose it means it
SELECT_NAMED = (
    select(conversations)
    .where(_THIS_OWNER, or_(_HAS_NAME, conversations.c.id == bindparam("name")))
    .order_by(case((_HAS_NAME, 0), else_=1))
    .limit(1)
)
SELECT_PAGE = (
    select(conversations)
    .where(_THIS_OWNER)
    .order_by(conversations.c.updated.desc(), conversations.c.id)
    .offset(bindparam("offset"))
    .limit(bindparam("limit"))
)
SEARCH_PAGE = SELECT_PAGE.where(or_(_IN_TITLE, _IN_NAME, _IN_MESSAGES))
LOCK_EXPIRED = (
    select(conversations.c.id)
    .where(conversations.c.updated < bindparam("before"), ~_LEASED)
    .limit(EXPIRE_BATCH)
    .with_for_update(skip_locked=True)
)
LOCK_STORED_HERE = (
    select(conversations.c.id)
    .where(_THIS_OWNER, ~conversations.c.remote)
    .limit(EXPIRE_BATCH)
    .with_for_update()
)
LOCK_AT_ACCOUNT = (
    select(conversations.c.id)
    .where(
        _THIS_OWNER,
        conversations.c.remote,
        conversations.c.upstream == bindparam("upstream"),
        conversations.c.account == bindparam("account"),
    )
    .limit(EXPIRE_BATCH)
    .with_for_update()
)
INSERT_CONVERSATION = Prepared(insert(conversations))
UPDATE_CONVERSATION = update(conversations).where(_THIS_CONVERSATION)
ADD_SIZE = UPDATE_CONVERSATION.values(
    updated=bindparam("now"), size=conversations.c.size + bindparam("added_size")
)
ADVANCE_NEWEST = Prepared(
    ADD_SIZE.values(
        newest=case(
            (_LEASED_BY_HOLDER, bindparam("answer_id", type_=Text)),
            else_=conversations.c.newest,
        ),
    )
)
UPDATE_REMOTE = Prepared(
    UPDATE_CONVERSATION.where(conversations.c.owner == bindparam("of_owner")).values(
        updated=bindparam("now"),
        account=bindparam("at_account", type_=Text),
        newest=func.coalesce(
            bindparam("answer_id", type_=Text), conversations.c.newest
        ),
    )
)
SELECT_ID = Prepared(select(conversations.c.id).where(_THIS_CONVERSATION))
TAKE_OVER = UPDATE_CONVERSATION.where(
    conversations.c.owner == bindparam("former_owner")
).values(owner=bindparam("new_owner"))
DELETE_CONVERSATION = delete(conversations).where(_THIS_CONVERSATION)


def conversation_lease(conversation_id: str) -> str:
    """The name of a conversation's lease."""
    return f"{_LEASE_PREFIX}{conversation_id}"


def name_lease(owner: str, name: str) -> str:
    """The name of the lease of what an owner asks in a conversation by its name."""
    return f"{_NAME_LEASE_PREFIX}{owner}/{name}"


def select_named(connection: Connection, owner: str, name: str) -> Row[Any] | None:
    """The owner's conversation of that name, or else that of that id."""
    parameters = {"owner": owner, "name": name}
    return connection.execute(SELECT_NAMED, parameters).first()


def select_conversation(
    connection: Connection, conversation_id: str
) -> Row[Any] | None:
    parameters = {"conversation_id": conversation_id}
    return connection.execute(SELECT_CONVERSATION, parameters).first()


def lock_conversation(connection: Connection, conversation_id: str) -> Row[Any] | None:
    """The row, which no other transaction changes before the end of this one."""
    parameters = {"conversation_id": conversation_id}
    return connection.execute(LOCK_CONVERSATION, parameters).first()


def select_owned(connection: Connection, owner: str, conversation_id: str) -> Row[Any]:
    """The owner's conversation. Raises NoConversation, for another owner's too."""
    parameters = {"conversation_id": conversation_id, "owner": owner}
    row = connection.execute(SELECT_OWNED, parameters).first()
    if row is None:
        raise NoConversation()
    return row


def select_page(
    connection: Connection, owner: str, offset: int, limit: int, search: str
) -> list[Row[Any]]:
    """The owner's rows, newest first; with `search`, of the conversations that contain it."""
    statement = SELECT_PAGE
    parameters: dict[str, Any] = {"owner": owner, "offset": offset, "limit": limit}
    if search:
        statement = SEARCH_PAGE
        parameters["pattern"] = _like_pattern(search)
    return list(connection.execute(statement, parameters))


def lock_expired(connection: Connection, before: float, now: float) -> list[str]:
    """The ids of a batch of conversations that have not changed since `before` and have no lease."""
    parameters = {"before": before, "now": now}
    return list(connection.execute(LOCK_EXPIRED, parameters).scalars())


def lock_stored_here(connection: Connection, owner: str) -> list[str]:
    """The ids of a batch of the owner's conversations whose text is stored here."""
    return list(connection.execute(LOCK_STORED_HERE, {"owner": owner}).scalars())


def lock_at_account(
    connection: Connection, owner: str, upstream: str, account: str
) -> list[str]:
    """The ids of a batch of the owner's conversations whose text lives at this account."""
    parameters = {"owner": owner, "upstream": upstream, "account": account}
    return list(connection.execute(LOCK_AT_ACCOUNT, parameters).scalars())


def insert_conversation(
    connection: Connection, conversation: Conversation, size: int = 0
) -> None:
    """Add an index row. `size`: of the messages that are stored with it."""
    values = {
        "id": conversation.id,
        "owner": conversation.owner,
        "upstream": conversation.upstream,
        "account": conversation.account,
        "remote": conversation.remote,
        "title": conversation.title,
        "newest": conversation.newest,
        "created": conversation.created,
        "updated": conversation.updated,
        "size": size,
        "name": conversation.name,
    }
    INSERT_CONVERSATION.run(connection, values)


def update_conversation(
    connection: Connection, conversation_id: str, values: dict[str, Any]
) -> None:
    """Set these columns of a row, if it is there."""
    parameters = {"conversation_id": conversation_id, **values}
    connection.execute(UPDATE_CONVERSATION, parameters)


def advance_newest(
    connection: Connection,
    conversation_id: str,
    answer_id: str,
    now: float,
    added_size: int,
) -> None:
    """Make an answer the conversation's newest, if the answer still holds the conversation's lease.

    `added_size`: of the answer and its question.
    """
    parameters = {
        "conversation_id": conversation_id,
        "answer_id": answer_id,
        "lease_name": conversation_lease(conversation_id),
        "lease_holder": answer_id,
        "now": now,
        "added_size": added_size,
    }
    ADVANCE_NEWEST.run(connection, parameters)


def add_size(
    connection: Connection, conversation_id: str, now: float, added_size: int
) -> None:
    """The conversation changed now, and its messages have become larger by `added_size`."""
    parameters = {
        "conversation_id": conversation_id,
        "now": now,
        "added_size": added_size,
    }
    connection.execute(ADD_SIZE, parameters)


def take_over(
    connection: Connection, conversation_id: str, former_owner: str, owner: str
) -> None:
    """Make a conversation `owner`'s, if it is `former_owner`'s."""
    parameters = {
        "conversation_id": conversation_id,
        "former_owner": former_owner,
        "new_owner": owner,
    }
    connection.execute(TAKE_OVER, parameters)


def update_remote(connection: Connection, row: Conversation, now: float) -> bool:
    """Update the row of a remote conversation, unless it is another owner's; False where there is none."""
    values = {
        "conversation_id": row.id,
        "of_owner": row.owner,
        "now": now,
        "at_account": row.account,
        "answer_id": row.newest or None,
    }
    if UPDATE_REMOTE.run(connection, values):
        return True
    return bool(SELECT_ID.rows(connection, {"conversation_id": row.id}))


def delete_row(connection: Connection, conversation_id: str) -> None:
    """Delete the index row alone."""
    connection.execute(DELETE_CONVERSATION, {"conversation_id": conversation_id})


def to_conversation(row: Row[Any], nodes: tuple[Node, ...] = ()) -> Conversation:
    """An index row as a value."""
    return Conversation(
        id=row.id,
        owner=row.owner,
        upstream=row.upstream,
        account=row.account,
        title=row.title,
        newest=row.newest,
        created=row.created,
        updated=row.updated,
        remote=bool(row.remote),
        name=row.name,
        nodes=nodes,
    )


def _like_pattern(search: str) -> str:
    """The LIKE pattern that finds these words anywhere; the escape character is a backslash."""
    escaped = search
    for special in ("\\", "%", "_"):
        escaped = escaped.replace(special, f"\\{special}")
    return f"%{escaped}%"
