"""Conversations searched, exported, deleted and expired; leases renewed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from relay.domain import Conversation, IdempotencyKey, KeyRecord
from relay.errors import StoreFailed
from relay.server import in_place
from relay.store import Store
from relay.upkeep import Leases, Upkeep
from tests.chatgpt_backend import Backend
from tests.replies import body_of
from tests.scripted import Scripted
from tests.turns import Clock, answered, end, following, new_turn
from tests.waiting import wait_for

ON_BOTH = True

Build = Callable[..., Flask]


def titles_found(client: FlaskClient, words: str, **more: Any) -> list[str]:
    headers = more.pop("headers", {})
    response = client.get(
        "/conversations", query_string={"q": words, **more}, headers=headers
    )
    return [item["title"] for item in body_of(response)]


def test_search_looks_in_questions_answers_and_titles(build: Build) -> None:
    client = build(
        Scripted(b"S|The ANSWER is 42 percent_of it, \xc3\x9cber alles.|F|")
    ).test_client()
    for prompt in ("first question", "Zweite Frage: 天气好吗", "третий ВОПРОС"):
        body_of(client.post("/ask", data={"msg": prompt}))
    assert titles_found(client, "QUESTION") == ["first question"]
    assert titles_found(client, "天气") == ["Zweite Frage: 天气好吗"]
    assert (
        titles_found(client, "вопрос") == ["третий ВОПРОС"]
        and titles_found(client, "über")
        and titles_found(client, "ÜBER")
    )
    body_of(client.post("/ask", data={"msg": "İSTANBUL ΟΔΟΣ"}))
    assert (
        titles_found(client, "İSTANBUL")
        == titles_found(client, "ΟΔΟΣ")
        == ["İSTANBUL ΟΔΟΣ"]
    ), "letters as they stand in the text are found"
    body_of(
        client.post(
            f"/conversation/{body_of(client.get('/conversations'))[0]['id']}/delete"
        )
    )
    assert (
        len(titles_found(client, "answer is 42")) == 3
        and titles_found(client, "answer is 43") == []
    )
    assert (
        len(titles_found(client, "percent_of")) == 3
        and titles_found(client, "percent%of") == []
        and titles_found(client, "percentxof") == []
    )
    assert titles_found(client, "answer", limit=1, offset=1) == [
        "Zweite Frage: 天气好吗"
    ]
    assert len(titles_found(client, "  ")) == 3, "nothing is searched for"
    conversation_id = body_of(client.get("/conversations"))[0]["id"]
    client.post(f"/conversation/{conversation_id}/title", data={"title": "Renamed"})
    assert titles_found(client, "renamed") == ["Renamed"]
    for wrong in ("x" * 201, "a\0b"):
        assert (
            client.get("/conversations", query_string={"q": wrong}).status_code == 400
        )


def test_search_sees_its_owners_conversations_alone(build: Build) -> None:
    client = build(
        Scripted(), authorization=("alice:alices-client-key", "bob:bobs-client-key-1")
    ).test_client()
    body_of(
        client.post(
            "/ask",
            data={"msg": "alices secret"},
            headers={"Authorization": "alices-client-key"},
        )
    )
    assert (
        titles_found(client, "secret", headers={"Authorization": "bobs-client-key-1"})
        == []
    )
    assert titles_found(
        client, "secret", headers={"Authorization": "alices-client-key"}
    ) == ["alices secret"]


def exported(client: FlaskClient, conversation_id: str, **options: Any) -> Any:
    return client.get(f"/conversation/{conversation_id}", **options)


def test_a_conversation_as_markdown_and_as_lines(build: Build) -> None:
    client = build(Scripted()).test_client()
    first = body_of(client.post("/ask", data={"msg": "one", "system": "Be kind."}))[
        "data"
    ]
    ids = {"conversation_id": first["conversation_id"], "parent_id": first["parent_id"]}
    body_of(client.post("/ask", data={"msg": "left branch", **ids}))
    body_of(client.post("/ask", data={"msg": "right branch", **ids}))
    name = ids["conversation_id"]
    response = exported(client, name, headers={"Accept": "text/markdown"})
    assert response.content_type == "text/markdown; charset=utf-8"
    assert (
        response.text
        == "# one\n\n## System\n\nBe kind.\n\n## You\n\none\n\n## Answer\n\nHello\n\n## You\n\nright branch\n\n## Answer\n\nHello\n"
    )
    assert (
        exported(client, name, query_string={"format": "markdown"}).text
        == response.text
    )
    assert (
        exported(client, name, query_string={"format": "text"}).content_type
        == "text/plain; charset=utf-8"
    )
    for options in (
        {"headers": {"Accept": "application/x-ndjson"}},
        {"query_string": {"format": "jsonl"}},
    ):
        lines = exported(client, name, **options)
        assert lines.content_type == "application/x-ndjson; charset=utf-8"
        rows = [json.loads(line) for line in lines.text.splitlines()]
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


def test_a_broken_answer_is_marked_in_an_export(build: Build) -> None:
    client = build(Scripted(b"S|", b"Hel|")).test_client()
    client.post("/ask", data={"msg": "one"})
    name = body_of(client.get("/conversations"))[0]["id"]
    assert (
        exported(client, name, query_string={"format": "markdown"}).text
        == "# one\n\n## You\n\none\n\n## Answer (broken)\n\nHel\n"
    )


def test_chatgpts_own_trees_are_exported_too(build: Build, backend: Backend) -> None:
    client = build(
        reverse_proxy=backend.url,
        access_token=("t",),
        authorization=("the-client-key-0",),
    ).test_client()
    key = {"Authorization": "the-client-key-0"}
    first = body_of(client.post("/ask", data={"msg": "你好"}, headers=key))["data"]
    response = exported(
        client,
        first["conversation_id"],
        query_string={"format": "markdown"},
        headers=key,
    )
    assert "## You\n\n你好\n\n## Answer\n\nTurn 1." in response.text
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


def test_conversations_expire(
    aging: Store, clock: Clock, database: str, tmp_path: Path
) -> None:
    old = [
        answered(aging, new_turn(f"a-word-of-old-{number}")) for number in range(250)
    ]
    clock.now += 100
    spared = answered(aging, new_turn("spared"))
    running = answered(aging, new_turn("running"))
    aging.index(
        Conversation(
            "remote-1", "owner", "chatgpt-web", None, "remote title", None, 0, 0, True
        )
    )
    clock.now += 60
    held = following(running, "more")
    assert aging.open_turn(held, 500)
    answered(aging, following(old[7], "woken"))
    clock.now += 50
    assert aging.expire(100) == 249 + 2
    assert {row.title for row in aging.list("owner", 0, 300)} == {
        "a-word-of-old-7",
        "running",
    }
    assert aging.expire(100) == 0 and spared
    if not database:
        files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        assert b"a-word-of-old-9" not in files and b"a-word-of-old-7" in files


def test_upkeep_is_done_by_one_process(aging: Store, clock: Clock) -> None:
    first = answered(aging, new_turn("old", idempotency_key=None))
    clock.now += 2 * 86400
    key = IdempotencyKey("owner", "k", "print")
    assert aging.claim(key, "holder", 15).state == "mine"
    first_process = Upkeep(aging, 86400)
    second_process = Upkeep(aging, 86400)
    first_process.once()
    assert aging.list("owner", 0, 10) == [] and first
    answered(aging, new_turn("more"))
    clock.now += 86400 + 1000
    second_process.once()
    assert aging.list("owner", 0, 10) == [], "an hour later another process may do it"


def test_upkeep_survives_a_database_that_fails(
    aging: Store, caplog: pytest.LogCaptureFixture
) -> None:
    upkeep = Upkeep(aging, 1.0)

    def fails(*_arguments: object) -> bool:
        upkeep._stopped.set()
        raise StoreFailed()

    aging.lease = fails  # type: ignore[method-assign]
    upkeep._run()
    assert "Retention cleanup failed: The database cannot be used" in caplog.text


def test_without_the_setting_nothing_is_deleted(aging: Store, clock: Clock) -> None:
    answered(aging, new_turn("old"))
    clock.now += 10 * 365 * 86400
    Upkeep(aging, 0).once()
    assert len(aging.list("owner", 0, 10)) == 1


def test_the_outcome_of_a_key_is_deleted_with_its_conversation(
    aging: Store, clock: Clock, database: str, tmp_path: Path
) -> None:
    key = IdempotencyKey("owner", "k", "print")
    request = new_turn("x", idempotency_key=key)
    assert aging.claim(key, request.holder, 15).state == "mine"
    assert aging.open_turn(request, 15)
    outcome = {
        "text": "a-word-that-nobody-else-says",
        "conversation_id": request.conversation_id,
        "usage": {"total_tokens": 3, "details": [{"cached": 0}]},
    }
    record = KeyRecord("done", outcome)
    end(aging, request, "a-word-that-nobody-else-says", record=record)
    assert aging.claim(key, "other", 15) == record
    aging.delete("owner", request.conversation_id)
    assert aging.claim(key, "other", 15) == KeyRecord("gone")
    if not database:
        files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        assert b"a-word-that-nobody-else-says" not in files
    late_key = IdempotencyKey("owner", "k2", "print")
    late = new_turn("y", idempotency_key=late_key)
    assert aging.claim(late_key, late.holder, 15).state == "mine"
    assert aging.open_turn(late, 15)
    aging.delete("owner", late.conversation_id)
    outcome = {"text": "late words", "conversation_id": late.conversation_id}
    end(aging, late, "late words", record=KeyRecord("done", outcome))
    assert aging.claim(late_key, "other", 15) == KeyRecord("gone"), (
        "deleted while it was being answered"
    )


def test_the_setting_deletes_at_the_start(build: Build, store: Store) -> None:
    client = build(Scripted()).test_client()
    body_of(client.post("/ask", data={"msg": "one"}))
    restarted = build(Scripted(), retention_days=0.0000001).test_client()
    wait_for(lambda: body_of(restarted.get("/conversations")) == [])


def test_leases_are_renewed_while_turns_run_and_not_otherwise() -> None:
    renewed: list[tuple[str, ...]] = []
    leases = Leases(
        lambda holders, seconds: renewed.append(tuple(sorted(holders))), every=0.02
    )
    leases.hold("a")
    leases.hold("b")
    wait_for(lambda: renewed.count(("a", "b")) >= 2)
    leases.drop("a")
    leases.drop("b")
    wait_for(lambda: not leases._running)
    count = len(renewed)
    assert renewed[-1] == ("a", "b")
    time.sleep(0.1)  # five times as long as it takes to renew them
    assert len(renewed) == count
    leases.hold("c")
    wait_for(lambda: len(renewed) > count)
    leases.drop("c")
    assert renewed[-1] == ("c",)


def test_leases_survive_a_database_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []

    def renew(holders: Collection[str], seconds: float) -> None:
        calls.append(seconds)
        raise StoreFailed()

    leases = Leases(renew, every=0.01)
    leases.hold("a")
    wait_for(lambda: len(calls) >= 2)
    leases.drop("a")
    assert calls[:2] == [15.0, 15.0]
    assert "Leases could not be renewed: The database cannot be used" in caplog.text
    wait_for(lambda: not leases._running)


def test_after_an_unforeseen_error_the_next_turn_renews_again() -> None:
    def fails(holders: Collection[str], seconds: float) -> None:
        raise TypeError("unforeseen")

    leases = Leases(fails, every=0)
    leases._held.add("a")
    leases._running = True
    with pytest.raises(TypeError, match="unforeseen"):
        leases._run()
    assert not leases._running
