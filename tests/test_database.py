"""The two databases themselves: failures, older versions, and what only one of them has."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from relay.database import BUSY_SECONDS, open_database
from relay.domain import Reply
from relay.errors import NoConversation, StoreFailed
from relay.schema import NEWEST
from relay.serving import in_place
from relay.store import Begun, Opening, Store
from tests.postgresql import PostgreSQL
from tests.test_store import following, new, said, texts

ON_BOTH = True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/data/test.db", in_place)
    yield store
    store.close()


def test_deleted_words_leave_the_file(store: Store, tmp_path: Path) -> None:
    first = said(store, new("a-word-that-nobody-else-says"))
    store.delete("owner", first.conversation_id)
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert b"a-word-that-nobody-else-says" not in files


def test_a_reader_elsewhere_holds_up_nobody_and_the_words_leave_after_it(
    store: Store, tmp_path: Path
) -> None:
    first, second = (
        said(store, new("a-word-that-nobody-else-says")),
        said(store, new("x")),
    )
    reader = sqlite3.connect(tmp_path / "data" / "test.db")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM messages").fetchall()
    began = time.monotonic()
    store.delete("owner", first.conversation_id)
    said(store, following(second))
    assert time.monotonic() - began < 4, "a lock would be waited for twice as long"
    reader.close()
    said(store, following(second))
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert b"a-word-that-nobody-else-says" not in files


def test_a_log_that_cannot_be_emptied_fails_no_write(store: Store) -> None:
    """As on a disk that is full: what was committed was committed, and locks are waited for as before."""
    first = said(store, new("one"))
    writer = store._database._writer
    connection = writer._engine.raw_connection()
    connection.driver_connection.set_authorizer(
        lambda action, name, *_: (
            sqlite3.SQLITE_DENY if name == "wal_checkpoint" else sqlite3.SQLITE_OK
        )
    )
    store.delete("owner", first.conversation_id)
    second = said(store, new("two"))
    assert writer._log_is_due
    connection.driver_connection.set_authorizer(
        lambda *_: sqlite3.SQLITE_OK
    )  # Python 3.10 knows no None here
    assert texts(store.begin(following(second, "three"), 15)) == [
        "two",
        "Hello",
        "three",
    ]
    assert not writer._log_is_due
    cursor = connection.cursor()
    assert cursor.execute("PRAGMA busy_timeout").fetchone() == (BUSY_SECONDS * 1000,)
    cursor.close()
    connection.close()


def test_its_files_are_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    store = Store(f"sqlite:///{tmp_path}/open/test.db", in_place)
    said(store, new("x"))
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "open").iterdir()
    }
    store.close()
    assert len(modes) == 3 and set(modes.values()) == {0o600}


def test_one_failing_write_spares_the_others_of_its_commit(store: Store) -> None:
    """While one write is being made, others gather; they are then committed together."""
    first = said(store, new())
    inside, go_on = threading.Event(), threading.Event()

    def slow(_connection: object) -> None:
        inside.set()
        go_on.wait(10)

    outcome: dict[str, object] = {}

    def attempt(name: str, opening: Opening) -> None:
        try:
            outcome[name] = store.begin(opening, 15)
        except NoConversation as error:
            outcome[name] = error

    openings = {
        "good": following(first),
        "bad": following(first, conversation_id="none"),
        "other": new(),
    }
    blocker = threading.Thread(target=store._write, args=(slow,))
    blocker.start()
    inside.wait(10)
    threads = [threading.Thread(target=attempt, args=pair) for pair in openings.items()]
    for thread in threads:
        thread.start()
    while len(store._database._writer._waiting) < 3:
        pass
    go_on.set()
    for thread in [blocker, *threads]:
        thread.join(10)
    assert isinstance(outcome["good"], Begun) and isinstance(outcome["other"], Begun)
    assert isinstance(outcome["bad"], NoConversation)


def test_a_database_that_fails_is_told_as_ours(store: Store, tmp_path: Path) -> None:
    store.check()
    other = sqlite3.connect(tmp_path / "data" / "test.db")
    other.execute("DROP TABLE leases")
    other.commit()
    other.close()
    with pytest.raises(StoreFailed):
        store.begin(new(), 15)
    with pytest.raises(StoreFailed):
        store.check()


def test_a_file_that_is_no_database_is_told_as_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test.db").write_bytes(
        b"not a database, but long enough to be looked at" * 100
    )
    with pytest.raises(StoreFailed):
        Store(f"sqlite:///{tmp_path}/test.db", in_place)
    assert "file is not a database" in caplog.text


#: what version 1 made, with a conversation of one turn, as it lay in people's files
VERSION_1 = """
CREATE TABLE conversations (id TEXT NOT NULL, owner TEXT NOT NULL, upstream TEXT NOT NULL, account TEXT,
  remote BOOLEAN NOT NULL, title TEXT NOT NULL, newest TEXT, created FLOAT NOT NULL, updated FLOAT NOT NULL, PRIMARY KEY (id));
CREATE INDEX conversations_of_owner ON conversations (owner, updated);
CREATE TABLE messages (number {serial} NOT NULL, id TEXT NOT NULL, conversation_id TEXT NOT NULL, parent TEXT, role TEXT NOT NULL,
  text TEXT NOT NULL, status TEXT NOT NULL, model TEXT, finish_reason TEXT, created FLOAT NOT NULL, PRIMARY KEY (number), UNIQUE (id));
CREATE INDEX ix_messages_conversation_id ON messages (conversation_id);
CREATE TABLE leases (name TEXT NOT NULL, holder TEXT NOT NULL, expires FLOAT NOT NULL, PRIMARY KEY (name));
INSERT INTO conversations VALUES ('c1', 'owner', 'offline', NULL, {false}, 'Old', 'a1', 1, 2);
INSERT INTO messages (id, conversation_id, parent, role, text, status, created) VALUES ('q1', 'c1', NULL, 'user', 'old question', 'whole', 1);
INSERT INTO messages (id, conversation_id, parent, role, text, status, created) VALUES ('a1', 'c1', 'q1', 'assistant', 'old answer', 'whole', 2)
"""


def address(database: str, tmp_path: Path) -> str:
    return database or f"sqlite:///{tmp_path}/test.db"


def shape(url: str) -> dict[str, object]:
    """Every table with its columns and indexes, as the database tells them."""
    engine = create_engine(url)
    try:
        seen = inspect(engine)
        return {
            table: (
                sorted(
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in seen.get_columns(table)
                ),
                sorted(
                    (str(index["name"]), index["column_names"])
                    for index in seen.get_indexes(table)
                ),
                sorted(seen.get_pk_constraint(table)["constrained_columns"]),
            )
            for table in seen.get_table_names()
        }
    finally:
        engine.dispose()


def run(url: str, statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements.split(";"):
            connection.execute(text(statement))
    engine.dispose()


def test_an_older_versions_database_becomes_todays_and_goes_on(
    database: str, tmp_path: Path
) -> None:
    url = address(database, tmp_path)
    postgres = url.startswith("postgresql")
    run(
        url,
        VERSION_1.format(
            serial="SERIAL" if postgres else "INTEGER",
            false="FALSE" if postgres else "0",
        ),
    )
    for _ in range(2):  # the second start finds nothing to do
        store = Store(url, in_place)
        try:
            old = new("more", conversation_id="c1", new=False)
            assert texts(store.begin(old, 15)) == ["old question", "old answer", "more"]
            store.forget(old)
        finally:
            store.close()
    fresh = f"sqlite:///{tmp_path}/fresh.db"
    if postgres:
        fresh = url.rpartition("/")[0] + "/fresh_" + url.rpartition("_")[2]
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {fresh.rpartition('/')[2]}"))
        engine.dispose()
    Store(fresh, in_place).close()
    assert shape(url) == shape(fresh)


def test_a_newer_versions_database_refuses_the_start(
    database: str, tmp_path: Path
) -> None:
    url = address(database, tmp_path)
    Store(url, in_place).close()
    run(url, f"UPDATE schema_version SET version = {NEWEST + 1}")
    with pytest.raises(StoreFailed, match="newer version"):
        Store(url, in_place)


def test_many_that_start_at_once_make_the_tables_once(
    database: str, tmp_path: Path
) -> None:
    url = address(database, tmp_path)
    stores: list[Store] = []
    threads = [
        threading.Thread(target=lambda: stores.append(Store(url, in_place)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(stores) == 6
    first = said(stores[0], new("one"))
    assert texts(stores[5].begin(following(first, "two"), 15)) == [
        "one",
        "Hello",
        "two",
    ]
    for store in stores:
        store.close()


def test_text_that_a_database_cannot_hold_is_kept_as_far_as_it_can(
    database: str, tmp_path: Path
) -> None:
    store = Store(address(database, tmp_path), in_place)
    first = said(store, new("one"), "before\0after \U0001f600 \u2028")
    assert (
        store.get("owner", first.conversation_id).nodes[-1].text
        == "before\ufffdafter \U0001f600 \u2028"
    )
    second = following(first)
    assert store.begin(second, 15)
    store.finish(
        second,
        Reply("x", second.conversation_id, second.answer_id, "m\0", "s\0p"),
        "whole",
    )
    told = store.get("owner", first.conversation_id).nodes[-1]
    assert (told.model, told.finish_reason) == ("m\ufffd", "s\ufffdp")
    store.close()


def test_a_postgresql_that_restarts_costs_no_later_turn_and_one_that_is_gone_is_told(
    postgresql: PostgreSQL,
) -> None:
    store = Store(postgresql.database(), in_place)
    first = said(store, new("one"))
    postgresql.stop()
    with pytest.raises(StoreFailed):
        store.check()
    postgresql.start()
    assert texts(store.begin(following(first, "two"), 15)) == ["one", "Hello", "two"]
    store.close()


def test_leases_go_by_the_servers_clock(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is wrong takes no lease too early."""
    url = postgresql.database()
    right = open_database(url, in_place)
    monkeypatch.setattr("relay.database.time.time", lambda: 1000.0)
    wrong = open_database(url, in_place)
    for database in (right, wrong):
        database.read(lambda connection: connection.execute(text("SELECT 1")).all())
    assert wrong.clock() > 1_700_000_000
    for database in (right, wrong):
        database.close()
