"""The messages of a conversation in the database, as a tree: a message names its parent.

Each function works on a connection of the caller's own transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from relay.domain import ROOT, SYSTEM_ROLES, Node, Reply, Status
from relay.errors import BadRequest, NoConversation
from relay.schema import messages

# what a message counts beside its text, so that their number is bounded too
MESSAGE_SIZE = 1024

_OF_CONVERSATION = messages.c.conversation_id == bindparam("conversation_id")

INSERT_MESSAGES = insert(messages)
SELECT_MESSAGES = select(messages).where(_OF_CONVERSATION).order_by(messages.c.number)
SELECT_ROLE = select(messages.c.role).where(
    _OF_CONVERSATION, messages.c.id == bindparam("message_id")
)
SELECT_SYSTEM_MESSAGES = (
    select(messages.c.id, messages.c.parent)
    .where(_OF_CONVERSATION, messages.c.role.in_(SYSTEM_ROLES))
    .order_by(messages.c.number)
)
UPDATE_ANSWER = update(messages).where(
    messages.c.id == bindparam("answer_id"), messages.c.status == "open"
)
DELETE_TURN = delete(messages).where(
    messages.c.id.in_((bindparam("question_id"), bindparam("answer_id")))
)
DELETE_MESSAGES = delete(messages).where(_OF_CONVERSATION)


def size_of(*texts: str) -> int:
    """What messages of these texts count in a conversation's size: their bytes in UTF-8, and a share for each."""
    size = 0
    for text in texts:
        length = len(text)
        if not text.isascii():
            length = len(text.encode("utf-8", "surrogatepass"))
        size += length + MESSAGE_SIZE
    return size


def find_parent(
    connection: Connection,
    conversation_id: str,
    parent_id: str | None,
    newest: str | None,
) -> str | None:
    """The id of the message that a question follows; None where it is the first.

    That is `parent_id`, else the newest whole answer, else the last of the system messages at the
    root. Raises NoConversation for an unknown parent, BadRequest for one that is a question.
    """
    wanted = parent_id or newest or ROOT
    if wanted == ROOT:
        return _last_system_message(connection, conversation_id)
    if parent_id is None:
        return newest
    parameters = {"conversation_id": conversation_id, "message_id": wanted}
    role = connection.execute(SELECT_ROLE, parameters).scalar()
    if role is None:
        raise NoConversation(
            "This conversation has no message with that parent id. Leave it out to go on from the newest answer."
        )
    if role == "user":
        raise BadRequest(
            "The parent id names a question. Send the id of an answer, as an earlier reply gave it."
        )
    return wanted


def select_messages(connection: Connection, conversation_id: str) -> list[Row[Any]]:
    """The rows of a conversation, in the order in which they were added; for `to_node`."""
    parameters = {"conversation_id": conversation_id}
    return list(connection.execute(SELECT_MESSAGES, parameters))


def insert_messages(
    connection: Connection, conversation_id: str, nodes: Iterable[Node]
) -> None:
    """Add at least one message: id, parent, role, text, status and time of each."""
    rows = [
        {
            "conversation_id": conversation_id,
            "id": node.id,
            "parent": node.parent,
            "role": node.role,
            "text": node.text,
            "status": node.status,
            "created": node.created,
        }
        for node in nodes
    ]
    connection.execute(INSERT_MESSAGES, rows)


def complete_answer(connection: Connection, answer_id: str, reply: Reply) -> bool:
    """Write a whole answer. False if it is not open: it was deleted, or has ended."""
    usage = None
    if reply.usage:
        usage = orjson.dumps(dict(reply.usage)).decode()
    parameters = {
        "answer_id": answer_id,
        "status": "whole",
        "text": _storable(reply.text),
        "model": _storable(reply.model or "") or None,
        "finish_reason": _storable(reply.finish_reason),
        "reasoning": _storable(reply.reasoning) or None,
        "usage": usage,
    }
    return connection.execute(UPDATE_ANSWER, parameters).rowcount == 1


def break_answer(
    connection: Connection,
    answer_id: str,
    text: str,
    model: str | None,
    error_code: str,
) -> bool:
    """Write a broken answer, as far as it came. False as for `complete_answer`."""
    parameters = {
        "answer_id": answer_id,
        "status": "broken",
        "text": _storable(text),
        "model": _storable(model or "") or None,
        "finish_reason": error_code,
    }
    return connection.execute(UPDATE_ANSWER, parameters).rowcount == 1


def delete_turn(connection: Connection, question_id: str, answer_id: str) -> None:
    """Delete a question and its answer."""
    parameters = {"question_id": question_id, "answer_id": answer_id}
    connection.execute(DELETE_TURN, parameters)


def delete_messages(connection: Connection, conversation_id: str) -> None:
    """Delete all messages of a conversation."""
    connection.execute(DELETE_MESSAGES, {"conversation_id": conversation_id})


def to_node(row: Row[Any], holder: str | None) -> Node:
    """A message's row as a value. `holder`: who has the conversation's lease."""
    status: Status = row.status
    # an open answer that nobody works on was left by a process that was killed
    if status == "open" and row.id != holder:
        status = "broken"
    return Node(
        id=row.id,
        parent=row.parent,
        role=row.role,
        text=row.text,
        status=status,
        created=row.created,
        model=row.model,
        finish_reason=row.finish_reason,
        reasoning=row.reasoning,
    )


def _last_system_message(connection: Connection, conversation_id: str) -> str | None:
    """The last of the system messages that follow each other from the root; None where there is none."""
    last: str | None = None
    parameters = {"conversation_id": conversation_id}
    for row in connection.execute(SELECT_SYSTEM_MESSAGES, parameters):
        if row.parent == last:
            last = row.id
    return last


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # PostgreSQL's text cannot hold NUL
