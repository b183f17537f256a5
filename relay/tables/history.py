"""The history of a question: the path from the root of its conversation to the message that it follows.

Works on a connection of the caller's own transaction. The path is read upwards, the newest message
first, in pages without long texts. A long text is read only where it fits the budget, so memory is
in proportion to what is sent, however large the conversation is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
)

from relay.domain import SYSTEM_ROLES, Message
from relay.schema import messages
from relay.tables.messages import read_payloads
from relay.values import frozen
from relay.window import Room, estimate_tokens, least_cost

PAGE = 100  # messages
SHORT = 8192  # characters of a text that is read with its page
UNBOUNDED = 2**31 - 1


def _number(value: int) -> ColumnElement[int]:
    """A constant of the statement, which costs less than a parameter."""
    return literal_column(str(value), Integer)


def _select_page() -> Select[Any]:
    """From one message upwards to the root, a page at most; `depth` grows upwards."""
    length = func.length(messages.c.text)
    is_plain = messages.c.payloads.is_(None)
    is_short = and_(is_plain, length <= bindparam("short", type_=Integer))
    columns = (
        messages.c.id,
        messages.c.parent,
        messages.c.role,
        messages.c.status,
        length.label("length"),
        case((is_short, messages.c.text)).label("text"),
    )
    start = select(*columns, _number(0).label("depth"))
    path = start.where(messages.c.id == bindparam("message_id")).cte(recursive=True)
    is_next = messages.c.id == path.c.parent
    parents = select(*columns, path.c.depth + _number(1)).where(
        is_next, path.c.depth < _number(PAGE - 1)
    )
    path = path.union_all(parents)
    return select(path).order_by(path.c.depth)


SELECT_PAGE = _select_page()
SELECT_MESSAGE = select(messages.c.text, messages.c.payloads).where(
    messages.c.id == bindparam("message_id")
)


@frozen
class History:
    """Messages from the root on, and how many of the conversation do not fit the budget."""

    messages: tuple[Message, ...] = field(default=(), repr=False)
    dropped: int = 0


def load_history(
    connection: Connection, message_id: str | None, question: Message, budget: int
) -> History:
    """What goes upstream before `question`, which follows the message `message_id`.

    That is what `relay.window.fit` keeps of the path with `budget` tokens (0: all of it). Broken and
    deleted answers and their questions are left out, and do not count as dropped.
    """
    candidates: list[Row[Any]] = []
    least = estimate_tokens(question)
    dropped = 0
    for row in _read_path(connection, message_id, UNBOUNDED if not budget else SHORT):
        least += least_cost(row.length)
        if not budget or least <= budget or row.role in SYSTEM_ROLES:
            candidates.append(row)
        else:
            dropped += 1
    if not budget:
        whole = [_read_message(connection, row) for row in reversed(candidates)]
        return History(tuple(whole))
    return _select_fitting(connection, candidates, dropped, question, budget)


def _select_fitting(
    connection: Connection,
    candidates: list[Row[Any]],
    dropped: int,
    question: Message,
    budget: int,
) -> History:
    """Of the newest messages, newest first, those that fit; `dropped`: the older ones."""
    fixed = {
        row.id: _read_message(connection, row)
        for row in candidates
        if row.role in SYSTEM_ROLES
    }
    cost = sum(estimate_tokens(message) for message in fixed.values())
    room = Room(budget - estimate_tokens(question) - cost)
    talk = [row for row in candidates if row.id not in fixed]
    fitting = _read_fitting(connection, talk, room)
    if dropped or len(fitting) < len(talk):
        fitting = dict(list(fitting.items())[: room.in_whole_turns])
    kept = {**fixed, **fitting}
    chosen = [kept[row.id] for row in reversed(candidates) if row.id in kept]
    return History(tuple(chosen), dropped + len(talk) - len(fitting))


def _read_fitting(
    connection: Connection, talk: list[Row[Any]], room: Room
) -> dict[str, Message]:
    """By their ids, newest first, the messages up to the first that does not fit."""
    fitting: dict[str, Message] = {}
    for row in talk:
        if least_cost(row.length) > room.left:
            break
        message = _read_message(connection, row)
        if not room.take(message):
            break
        fitting[row.id] = message
    return fitting


def _read_message(connection: Connection, row: Row[Any]) -> Message:
    if row.text is not None:
        return Message(row.role, row.text)
    whole = connection.execute(SELECT_MESSAGE, {"message_id": row.id}).one()
    return Message(row.role, whole.text, read_payloads(whole.payloads))


def _read_path(
    connection: Connection, message_id: str | None, short: int
) -> Iterator[Row[Any]]:
    """The rows from a message up to the root, without broken and deleted answers and their questions.

    A text is None where it is longer than `short`, or not all of its message.
    """
    unanswered = ""
    while message_id is not None:
        parameters = {"message_id": message_id, "short": short}
        rows = connection.execute(SELECT_PAGE, parameters).all()
        for row in rows:
            if row.status == "deleted" and row.role != "assistant":
                continue
            if row.status != "whole":
                unanswered = row.parent
            elif row.id != unanswered:
                yield row
        message_id = rows[-1].parent if len(rows) == PAGE else None
