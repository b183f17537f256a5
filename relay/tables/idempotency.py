"""Idempotency keys in the database: which asks were sent, and how they ended.

Each function works on a connection of the caller's own transaction. A key's lease says that a
process is working on its ask: the caller takes the lease before `claim_key`, and deletes it in the
transaction in which the ask ends.

A row's state: `open` until the question is about to be sent, then `dispatched`, then how it ended:
`done`, `refused`, `unknown` or `gone` (the conversation was deleted).
"""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import (
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from relay.domain import IdempotencyKey, KeyRecord
from relay.schema import requests

REPLAY_SECONDS = 24 * 3600.0  # for so long a key's outcome is kept
UNFINISHED = ("open", "dispatched")

# The bind parameters of an UPDATE may not be named as its columns are.
_THIS_KEY = and_(
    requests.c.owner == bindparam("key_owner"),
    requests.c.key == bindparam("key_name"),
)
_THIS_HOLDER = requests.c.holder == bindparam("key_holder")

SELECT_KEY = select(requests).where(_THIS_KEY)
INSERT_KEY = insert(requests)
UPDATE_KEY = update(requests).where(_THIS_KEY)
UPDATE_DISPATCHED = update(requests).where(
    _THIS_KEY, _THIS_HOLDER, requests.c.state == "open"
)
# `unknown`: a process that could not renew its lease was taken for dead, and finished after all
UPDATE_OUTCOME = update(requests).where(
    _THIS_KEY, _THIS_HOLDER, requests.c.state.in_((*UNFINISHED, "unknown"))
)
DELETE_KEY = delete(requests).where(_THIS_KEY)
DELETE_HELD_KEY = delete(requests).where(_THIS_KEY, _THIS_HOLDER)
DELETE_OLD_KEYS = delete(requests).where(requests.c.updated <= bindparam("before"))
CLEAR_OUTCOMES = (
    update(requests)
    .where(requests.c.conversation_id == bindparam("deleted_id"))
    .values(state="gone", outcome=None)
)


CLEAR_ANSWER = CLEAR_OUTCOMES.where(
    requests.c.outcome.contains(bindparam("answer_id"), autoescape=False)
)


def key_lease(key: IdempotencyKey) -> str:
    """The name of the lease of an ask with a key."""
    return f"request/{key.owner}/{key.key}"


def claim_key(
    connection: Connection,
    key: IdempotencyKey,
    holder: str,
    now: float,
    lease_taken: bool,
) -> KeyRecord:
    """Make the key this holder's, or say how its ask stands. `lease_taken`: the holder has the key's lease."""
    row = _select_unexpired(connection, key, now)
    never_sent = row is None or row.state == "open"
    if lease_taken and never_sent:
        _replace_key(connection, key, holder, now)
        return KeyRecord("mine")
    if row is None:
        return KeyRecord("running")
    if row.fingerprint != key.fingerprint:
        return KeyRecord("other")
    if row.state not in UNFINISHED:
        return KeyRecord(row.state, orjson.loads(row.outcome or "{}"))
    if not lease_taken:
        return KeyRecord("running")
    # its process died after it had sent the question
    connection.execute(
        UPDATE_KEY, {**_parameters(key), "state": "unknown", "updated": now}
    )
    return KeyRecord("unknown")


def mark_dispatched(
    connection: Connection, key: IdempotencyKey, holder: str, now: float
) -> bool:
    """Record that the question is about to be sent. False if the key is no longer the holder's."""
    parameters = {
        **_parameters(key),
        "key_holder": holder,
        "state": "dispatched",
        "updated": now,
    }
    return connection.execute(UPDATE_DISPATCHED, parameters).rowcount == 1


def record_outcome(
    connection: Connection,
    key: IdempotencyKey,
    holder: str,
    record: KeyRecord | None,
    now: float,
) -> None:
    """Keep how the holder's ask ended; without a record the key is free again."""
    parameters: dict[str, Any] = {**_parameters(key), "key_holder": holder}
    if record is None:
        connection.execute(DELETE_HELD_KEY, parameters)
        return
    outcome = dict(record.outcome)
    parameters["state"] = record.state
    parameters["outcome"] = orjson.dumps(outcome).decode()
    parameters["conversation_id"] = outcome.get("conversation_id")
    parameters["updated"] = now
    connection.execute(UPDATE_OUTCOME, parameters)


def clear_outcomes(connection: Connection, conversation_id: str) -> None:
    """Delete what is kept of the answers of a deleted conversation."""
    connection.execute(CLEAR_OUTCOMES, {"deleted_id": conversation_id})


def clear_answer(connection: Connection, conversation_id: str, answer_id: str) -> None:
    """Delete what is kept of one answer. `answer_id`: a UUID, which no other text of an outcome holds."""
    parameters = {"deleted_id": conversation_id, "answer_id": answer_id}
    connection.execute(CLEAR_ANSWER, parameters)


def delete_old_keys(connection: Connection, before: float) -> int:
    """Delete the keys whose row has not changed since `before`; how many there were."""
    return connection.execute(DELETE_OLD_KEYS, {"before": before}).rowcount


def _parameters(key: IdempotencyKey) -> dict[str, str]:
    return {"key_owner": key.owner, "key_name": key.key}


def _select_unexpired(
    connection: Connection, key: IdempotencyKey, now: float
) -> Row[Any] | None:
    """The key's row; one that ended too long ago is deleted."""
    row = connection.execute(SELECT_KEY, _parameters(key)).first()
    if row is None or row.state in UNFINISHED:
        return row
    if row.updated + REPLAY_SECONDS > now:
        return row
    connection.execute(DELETE_KEY, _parameters(key))
    return None


def _replace_key(
    connection: Connection, key: IdempotencyKey, holder: str, now: float
) -> None:
    connection.execute(DELETE_KEY, _parameters(key))
    values = {
        "owner": key.owner,
        "key": key.key,
        "fingerprint": key.fingerprint,
        "holder": holder,
        "state": "open",
        "updated": now,
    }
    connection.execute(INSERT_KEY, values)
