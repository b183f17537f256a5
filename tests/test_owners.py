"""Owners in the store: when each last asked, how many conversations each has, and conversations given to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask

from relay.domain import Caller, Conversation
from relay.server import in_place
from relay.store import NOTE_SECONDS, Store

ON_BOTH = True


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_an_owners_last_ask_is_noted_once_a_minute(
    tmp_path: Path, database: str
) -> None:
    clock = Clock()
    store = Store(database or f"sqlite:///{tmp_path}/test.db", in_place, clock)
    store.note_ask("alice")
    clock.now += NOTE_SECONDS - 1
    store.note_ask("alice")
    assert store.last_asks() == {"alice": 1_000_000.0}
    clock.now += 1
    store.note_ask("alice")
    store.note_ask("bob")
    assert store.last_asks() == {"alice": clock.now, "bob": clock.now}
    store.close()


def test_within_the_minute_nothing_is_written_and_little_is_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.store.MOST_NOTED", 2)
    for owner in ("alice", "bob", "carol"):
        store.note_ask(owner)
    assert len(store._noted) <= 2 and len(store.last_asks()) == 3
    monkeypatch.setattr(store, "_write", None)
    store.note_ask("carol")


def add(store: Store, owner: str, name: str, own_name: str | None = None) -> None:
    row = Conversation(name, owner, "offline", None, name, None, 1.0, 1.0)
    store.index(replace(row, name=own_name))


def test_conversations_are_counted_and_given_to_another(store: Store) -> None:
    for number in range(3):
        add(store, "anonymous", f"c-{number}")
    add(store, "alice", "a-0")
    assert store.owners_with_counts() == {"alice": 1, "anonymous": 3}
    assert store.give("anonymous", "alice") == (3, 0)
    assert store.owners_with_counts() == {"alice": 4}
    assert store.give("anonymous", "alice") == (0, 0)


def test_a_name_that_the_new_owner_uses_stays_the_new_owners(store: Store) -> None:
    add(store, "anonymous", "c-0", "news")
    add(store, "anonymous", "c-1", "chat")
    add(store, "alice", "a-0", "news")
    assert store.give("anonymous", "alice") == (2, 1)
    names = {row.id: row.name for row in store.list("alice", 0, 10)}
    assert names == {"a-0": "news", "c-0": None, "c-1": "chat"}


def test_a_given_conversation_goes_on_under_its_new_owner(
    build: Callable[..., Flask],
) -> None:
    client = build().test_client()
    reply = client.post("/send_message", data={"prompt": "hello"}).json
    client.application.extensions["service"].close()
    app = build(authorization=("alice:alices-client-key",))
    service = app.extensions["service"]
    caller = Caller("alice", may_spend=True)
    assert service.conversations.list(caller, 0, 10).items == []
    service.store.give("anonymous", "alice")
    answer = app.test_client().post(
        "/send_message",
        data={"prompt": "again", "conversation_id": reply["conversation_id"]},
        headers={"Authorization": "Bearer alices-client-key"},
    )
    assert "Turn 2." in answer.json["text"]
