"""The messages of a conversation in the database, as a tree: a message names its parent.

Each function works on a connection of the caller's own transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from sqlalchemy import (
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)

from relay.domain import (
    ROOT,
    SYSTEM_ROLES,
    TOOL_ROLES,
    Message,
    Node,
    Reply,
    Status,
)
from relay.errors import BadRequest, NoConversation
from relay.schema import messages
from relay.tables.prepared import Prepared

# what a message counts beside its text, so that their number is bounded too
MESSAGE_SIZE = 1024

_OF_CONVERSATION = messages.c.conversation_id == bindparam("conversation_id")

INSERT_MESSAGES = Prepared(insert(messages))
SELECT_MESSAGES = select(messages).where(_OF_CONVERSATION).order_by(messages.c.number)
SELECT_ROLE = select(messages.c.role).where(
    _OF_CONVERSATION, messages.c.id == bindparam("message_id")
)
SELECT_SYSTEM_MESSAGES = (
    select(messages.c.id, messages.c.parent)
    .where(_OF_CONVERSATION, messages.c.role.in_(SYSTEM_ROLES))
    .order_by(messages.c.number)
)
UPDATE_ANSWER = Prepared(
    update(messages).where(
        messages.c.id == bindparam("answer_id"), messages.c.status == "open"
    )
)
DELETE_TURN = delete(messages).where(
    messages.c.id.in_((bindparam("question_id"), bindparam("answer_id")))
)
SELECT_MESSAGE = select(messages).where(messages.c.id == bindparam("message_id"))
SELECT_ANSWER = (
    select(messages.c.id)
    .where(
        _OF_CONVERSATION,
        messages.c.role == "assistant",
        messages.c.status != "deleted",
    )
    .limit(1)
)
_question = messages.alias("question")
_BEFORE_QUESTION = and_(
    messages.c.conversation_id == bindparam("of_conversation"),
    messages.c.number
    < select(_question.c.number)
    .where(_question.c.id == bindparam("question_id"))
    .scalar_subquery(),
)
SELECT_BEFORE = select(messages).where(_BEFORE_QUESTION).order_by(messages.c.number)
#: an answer that was asked for here: those that a dialogue began with have no finish reason
SELECT_EARLIER_ANSWER = (
    select(messages.c.id)
    .where(
        _BEFORE_QUESTION,
        messages.c.role == "assistant",
        or_(messages.c.finish_reason.is_not(None), messages.c.status != "whole"),
    )
    .limit(1)
)
_ERASED = {
    "status": "deleted",
    "text": "",
    **dict.fromkeys(("reasoning", "usage", "payloads", "echo")),
}
ERASE_TURN = (
    update(messages)
    .where(messages.c.id.in_((bindparam("question_id"), bindparam("answer_id"))))
    .values(_ERASED)
)
ERASE_BEFORE = update(messages).where(_BEFORE_QUESTION).values(_ERASED)
DELETE_MESSAGES = delete(messages).where(_OF_CONVERSATION)


def size_of(*messages: Message) -> int:
    """What messages count in a conversation's size: their bytes in UTF-8, and a share for each."""
    size = 0
    for message in messages:
        size += _length(message.text) + MESSAGE_SIZE
        if message.payloads:
            size += len(orjson.dumps(message.payloads))
    return size


def size_of_answer(reply: Reply) -> int:
    """What a whole answer counts."""
    text = reply.text + reply.reasoning
    return size_of(Message("assistant", text, payloads_of(reply)))


def size_of_echo(echo: Mapping[str, Any] | None) -> int:
    """What an answer's echo counts."""
    return len(orjson.dumps(dict(echo))) if echo else 0


def _length(text: str) -> int:
    return len(text if text.isascii() else text.encode("utf-8", "surrogatepass"))


def payloads_of(reply: Reply) -> tuple[dict[str, Any], ...]:
    """An answer as OpenAI's API has it in a dialogue, where it is more than text."""
    return (reply.as_sent,) if reply.tool_calls or reply.refusal else ()


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
    if role == "user" or role in TOOL_ROLES:
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
            "payloads": _to_json(node.payloads),
            "echo": _to_json(node.echo),
        }
        for node in nodes
    ]
    INSERT_MESSAGES.run_many(connection, rows)


def complete_answer(connection: Connection, answer_id: str, reply: Reply) -> bool:
    """Write a whole answer. False if it is not open: it was deleted, or has ended."""
    parameters = {
        "answer_id": answer_id,
        "status": "whole",
        "text": _storable(reply.text),
        "model": _storable(reply.model or "") or None,
        "finish_reason": _storable(reply.finish_reason),
        "reasoning": _storable(reply.reasoning) or None,
        "usage": _to_json(reply.usage),
        "payloads": _to_json(payloads_of(reply)),
    }
    return UPDATE_ANSWER.run(connection, parameters) == 1


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
    return UPDATE_ANSWER.run(connection, parameters) == 1


def delete_turn(connection: Connection, question_id: str, answer_id: str) -> None:
    """Delete a question and its answer."""
    parameters = {"question_id": question_id, "answer_id": answer_id}
    connection.execute(DELETE_TURN, parameters)


def select_message(connection: Connection, message_id: str) -> Row[Any] | None:
    """One message's row; for `to_node`."""
    return connection.execute(SELECT_MESSAGE, {"message_id": message_id}).first()


def is_answer(row: Row[Any]) -> bool:
    """Whether a message is an answer that was asked for here, and is not deleted."""
    if row.role != "assistant" or row.status == "deleted":
        return False
    was_sent = row.status == "whole" and row.finish_reason is None
    return not was_sent


def erase_turn(connection: Connection, question_id: str, answer_id: str) -> None:
    """Delete what a question and its answer say; their places stay, because others may follow them."""
    parameters = {"question_id": question_id, "answer_id": answer_id}
    connection.execute(ERASE_TURN, parameters)


def select_preamble(connection: Connection, question: Row[Any]) -> list[Row[Any]]:
    """The rows before a conversation's first question; none before any other."""
    if question.parent is None:
        return []
    parameters = {
        "of_conversation": question.conversation_id,
        "question_id": question.id,
    }
    if connection.execute(SELECT_EARLIER_ANSWER, parameters).first() is not None:
        return []
    return list(connection.execute(SELECT_BEFORE, parameters))


def erase_before(
    connection: Connection, conversation_id: str, question_id: str
) -> None:
    """Delete what the messages before a question say; their places stay."""
    parameters = {"of_conversation": conversation_id, "question_id": question_id}
    connection.execute(ERASE_BEFORE, parameters)


def has_answer(connection: Connection, conversation_id: str) -> bool:
    """Whether a conversation has an answer that is not deleted."""
    parameters = {"conversation_id": conversation_id}
    return connection.execute(SELECT_ANSWER, parameters).first() is not None


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
        payloads=read_payloads(row.payloads),
        usage=orjson.loads(row.usage) if row.usage else None,
        echo=orjson.loads(row.echo) if row.echo else None,
    )


def read_payloads(column: str | None) -> tuple[Mapping[str, Any], ...]:
    """The payloads of a message, as their column has them."""
    return tuple(orjson.loads(column)) if column else ()


def _to_json(value: Any) -> str | None:
    """A value for a column of JSON; None where it is empty. NUL stays an escape there."""
    if not value:
        return None
    return orjson.dumps(dict(value) if isinstance(value, Mapping) else value).decode()


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
