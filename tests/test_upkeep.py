"""Conversations searched, exported, deleted, and let go when their time is over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from relay.domain import Conversation
from relay.errors import StoreFailed
from relay.keeping import Upkeep
from relay.serving import in_place
from relay.store import Claim, Claimed, Store
from tests.chatgpt_backend import Backend
from tests.scripted import Scripted
from tests.test_routes import said
from tests.test_store import Clock, end, following, new
from tests.test_store import said as turn

ON_BOTH = True

Build = Callable[..., Flask]


def found(client: FlaskClient, words: str, **more: Any) -> list[str]:
    headers = more.pop("headers", {})
    answer = client.get(
        "/conversations", query_string={"q": words, **more}, headers=headers
    )
    return [item["title"] for item in said(answer)]  # type: ignore[index]


def test_search_finds_what_was_asked_answered_and_titled(build: Build) -> None:
    client = build(
        Scripted(b"S|The ANSWER is 42 percent_of it, \xc3\x9cber alles.|F|")
    ).test_client()
    for prompt in ("first question", "Zweite Frage: 天气好吗", "третий ВОПРОС"):
        said(client.post("/ask", data={"msg": prompt}))
    assert found(client, "QUESTION") == ["first question"]
    assert found(client, "天气") == ["Zweite Frage: 天气好吗"]
    assert (
        found(client, "вопрос") == ["третий ВОПРОС"]
        and found(client, "über")
        and found(client, "ÜBER")
    )
    said(client.post("/ask", data={"msg": "İSTANBUL ΟΔΟΣ"}))
    assert found(client, "İSTANBUL") == found(client, "ΟΔΟΣ") == ["İSTANBUL ΟΔΟΣ"], (
        "what is typed as it was said is found"
    )
    said(
        client.post(
            f"/conversation/{said(client.get('/conversations'))[0]['id']}/delete"
        )
    )  # type: ignore[index]
    assert (
        len(found(client, "answer is 42")) == 3 and found(client, "answer is 43") == []
    )
    assert (
        len(found(client, "percent_of")) == 3
        and found(client, "percent%of") == []
        and found(client, "percentxof") == []
    )
    assert found(client, "answer", limit=1, offset=1) == ["Zweite Frage: 天气好吗"]
    assert len(found(client, "  ")) == 3, "nothing is searched for"
    conversation_id = said(client.get("/conversations"))[0]["id"]  # type: ignore[index]
    client.post(f"/conversation/{conversation_id}/title", data={"title": "Renamed"})
    assert found(client, "renamed") == ["Renamed"]
    for wrong in ("x" * 201, "a\0b"):
        assert (
            client.get("/conversations", query_string={"q": wrong}).status_code == 400
        )


def test_search_sees_its_owners_conversations_alone(build: Build) -> None:
    client = build(Scripted(), authorization=("alice:a-key", "bob:b-key")).test_client()
    said(
        client.post(
            "/ask", data={"msg": "alices secret"}, headers={"Authorization": "a-key"}
        )
    )
    assert found(client, "secret", headers={"Authorization": "b-key"}) == []
    assert found(client, "secret", headers={"Authorization": "a-key"}) == [
        "alices secret"
    ]


def exported(client: FlaskClient, conversation_id: str, **how: Any) -> Any:
    return client.get(f"/conversation/{conversation_id}", **how)


def test_a_conversation_as_markdown_and_as_lines(build: Build) -> None:
    client = build(Scripted()).test_client()
    first = said(client.post("/ask", data={"msg": "one", "system": "Be kind."}))["data"]
    ids = {"conversation_id": first["conversation_id"], "parent_id": first["parent_id"]}
    said(client.post("/ask", data={"msg": "left branch", **ids}))
    said(client.post("/ask", data={"msg": "right branch", **ids}))
    name = ids["conversation_id"]
    told = exported(client, name, headers={"Accept": "text/markdown"})
    assert told.content_type == "text/markdown; charset=utf-8"
    assert (
        told.text
        == "# one\n\n## System\n\nBe kind.\n\n## You\n\none\n\n## Answer\n\nHello\n\n## You\n\nright branch\n\n## Answer\n\nHello\n"
    )
    assert exported(client, name, query_string={"format": "markdown"}).text == told.text
    assert (
        exported(client, name, query_string={"format": "text"}).content_type
        == "text/plain; charset=utf-8"
    )
    for how in (
        {"headers": {"Accept": "application/x-ndjson"}},
        {"query_string": {"format": "jsonl"}},
    ):
        answer = exported(client, name, **how)
        assert answer.content_type == "application/x-ndjson; charset=utf-8"
        rows = [json.loads(line) for line in answer.text.splitlines()]
        assert [row["text"] for row in rows] == [
            "Be kind.",
            "one",
            "Hello",
            "left branch",
            "Hello",
            "right branch",
            "Hello",
        ]
        assert rows[3]["parent"] == rows[5]["parent"] == rows[2]["id"] and set(
            rows[0]
        ) == {
            "id",
            "parent",
            "role",
            "text",
            "status",
            "created",
            "model",
        }
    assert (
        exported(client, name, headers={"Accept": "*/*"}).is_json
        and exported(client, name, headers={"Accept": "text/html"}).is_json
    )
    assert exported(client, name, query_string={"format": "xml"}).status_code == 400
    assert (
        client.get("/conversations", query_string={"format": "markdown"}).status_code
        == 400
    )
    missing = exported(client, "none", query_string={"format": "markdown"})
    assert missing.status_code == 404 and not missing.is_json


def test_a_broken_answer_is_marked_and_not_on_the_way(build: Build) -> None:
    client = build(Scripted(b"S|", b"Hel|")).test_client()
    client.post("/ask", data={"msg": "one"})
    name = said(client.get("/conversations"))[0]["id"]  # type: ignore[index]
    assert (
        exported(client, name, query_string={"format": "markdown"}).text
        == "# one\n\n## You\n\none\n\n## Answer (broken)\n\nHel\n"
    )


def test_chatgpts_own_trees_are_exported_too(build: Build, backend: Backend) -> None:
    client = build(
        reverse_proxy=backend.url, access_token=("t",), authorization=("k",)
    ).test_client()
    key = {"Authorization": "k"}
    first = said(client.post("/ask", data={"msg": "你好"}, headers=key))["data"]
    told = exported(
        client,
        first["conversation_id"],
        query_string={"format": "markdown"},
        headers=key,
    )
    assert "## You\n\n你好\n\n## Answer\n\nTurn 1." in told.text
    rows = exported(
        client, first["conversation_id"], query_string={"format": "jsonl"}, headers=key
    ).text.splitlines()
    assert [json.loads(row)["role"] for row in rows] == ["user", "assistant"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aging(tmp_path: Path, database: str, clock: Clock) -> Any:
    store = Store(database or f"sqlite:///{tmp_path}/data/test.db", in_place, clock)
    yield store
    store.close()


def test_what_rested_for_too_long_is_deleted(
    aging: Store, clock: Clock, database: str, tmp_path: Path
) -> None:
    old = [turn(aging, new(f"a-word-of-old-{number}")) for number in range(250)]
    clock.now += 100
    spared, running = turn(aging, new("spared")), turn(aging, new("running"))
    aging.note(
        Conversation(
            "remote-1", "owner", "chatgpt-web", None, "told elsewhere", None, 0, 0, True
        )
    )
    clock.now += 60
    held = following(running, "more")
    assert aging.begin(held, 500)
    turn(aging, following(old[7], "woken"))
    clock.now += 50
    assert aging.expire(100) == 249 + 2
    assert {kept.title for kept in aging.list("owner", 0, 300)} == {
        "a-word-of-old-7",
        "running",
    }
    assert aging.expire(100) == 0 and spared
    if not database:
        files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        assert b"a-word-of-old-9" not in files and b"a-word-of-old-7" in files


def test_upkeep_is_one_processs_work(aging: Store, clock: Clock) -> None:
    first = turn(aging, new("old", claim=None))
    clock.now += 2 * 86400
    claim = Claim("owner", "k", "print")
    assert aging.claim(claim, "holder", 15).state == "mine"
    ours, theirs = Upkeep(aging, 86400), Upkeep(aging, 86400)
    ours.once()
    assert aging.list("owner", 0, 10) == [] and first
    turn(aging, new("more"))
    clock.now += 86400 + 1000
    theirs.once()
    assert aging.list("owner", 0, 10) == [], "an hour later it may be another's"


def test_upkeep_survives_a_database_that_fails(
    aging: Store, caplog: pytest.LogCaptureFixture
) -> None:
    upkeep = Upkeep(aging, 1.0)

    def fails(*_arguments: object) -> bool:
        upkeep._stopped.set()
        raise StoreFailed()

    aging.lease = fails  # type: ignore[method-assign]
    upkeep._run()
    assert "could not be deleted" in caplog.text


def test_without_the_setting_nothing_is_deleted(aging: Store, clock: Clock) -> None:
    turn(aging, new("old"))
    clock.now += 10 * 365 * 86400
    Upkeep(aging, 0).once()
    assert len(aging.list("owner", 0, 10)) == 1


def test_what_a_key_kept_goes_with_its_conversation(
    aging: Store, clock: Clock, database: str, tmp_path: Path
) -> None:
    opening = new("x", claim=Claim("owner", "k", "print"))
    assert (
        opening.claim and aging.claim(opening.claim, opening.holder, 15).state == "mine"
    )
    assert aging.begin(opening, 15)
    kept = {
        "text": "a-word-that-nobody-else-says",
        "conversation_id": opening.conversation_id,
    }
    end(aging, opening, "a-word-that-nobody-else-says", outcome=Claimed("done", kept))
    assert aging.claim(opening.claim, "other", 15).state == "done"
    aging.delete("owner", opening.conversation_id)
    assert aging.claim(opening.claim, "other", 15) == Claimed("gone")
    if not database:
        files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        assert b"a-word-that-nobody-else-says" not in files
    late = new("y", claim=Claim("owner", "k2", "print"))
    assert (
        late.claim
        and aging.claim(late.claim, late.holder, 15).state == "mine"
        and aging.begin(late, 15)
    )
    aging.delete("owner", late.conversation_id)
    end(
        aging,
        late,
        "late words",
        outcome=Claimed(
            "done", {"text": "late words", "conversation_id": late.conversation_id}
        ),
    )
    assert aging.claim(late.claim, "other", 15) == Claimed("gone"), (
        "deleted while it was being answered"
    )


def test_the_setting_deletes_at_the_start(build: Build, store: Store) -> None:
    client = build(Scripted()).test_client()
    said(client.post("/ask", data={"msg": "one"}))
    again = build(Scripted(), retention_days=0.0000001)
    upkeep_ran = again.test_client()
    for _ in range(100):
        if said(upkeep_ran.get("/conversations")) == []:
            break

        time.sleep(0.05)
    assert said(upkeep_ran.get("/conversations")) == []
